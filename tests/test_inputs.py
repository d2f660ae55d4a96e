"""What goes into the model: lists, pictures, and which inputs have a row for each image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import Small, full_backward, literal_map, small, small_images
from torch import Tensor, nn

import fastcam
from fastcam import demo, metrics
from fastcam.engine.inputs import images_of
from fastcam.engine.per_image import PerImage

CLASSES = torch.tensor([1, 0, 1])
MASKING = ["scorecam", "sscam", "iscam", "ablationcam"]


def cam_of(method: str, model: nn.Module, layer: str, **options: Any) -> Any:
    options |= {"samples": 3} if method in ("sscam", "iscam") else {}
    return fastcam.METHODS[method](model, layer, **options)


class SlowFast(nn.Module):
    """Takes a list of two pathways (N, C, T, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.slow, self.fast = nn.Conv3d(3, 4, 3, padding=1), nn.Conv3d(3, 4, 3, stride=(4, 1, 1))
        self.head = nn.Linear(8, 5)

    def forward(self, pathways: list[Tensor]) -> Tensor:
        assert isinstance(pathways, list)
        slow, fast = self.slow(pathways[0]).relu(), self.fast(pathways[1]).sin()
        return self.head(torch.cat([slow.mean((2, 3, 4)), fast.mean((2, 3, 4))], 1))


def test_a_list_is_one_argument() -> None:
    model = SlowFast().double().eval()
    slow, fast = torch.randn(3, 3, 2, 8, 8).double(), torch.randn(3, 3, 8, 8, 8).double()
    pathways = [slow, fast]

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, slow: Tensor) -> Tensor:
            return self.model([slow, fast])

    expected = literal_map("hirescam", *full_backward(Fixed(), slow, "model.slow", CLASSES))
    for inputs in (pathways, (pathways,), {"pathways": pathways}):
        cam = fastcam.HiResCAM(model, "slow")
        raw = cam(inputs, CLASSES, size="layer", normalize=False)
        torch.testing.assert_close(raw, expected)
        assert cam(inputs).shape == (3, 2, 8, 8)
    assert fastcam.GradCAM(model)(pathways).shape == (3, 2, 8, 8)
    each = [fastcam.ScoreCAM(model, "slow")([slow[i : i + 1], fast[i : i + 1]]) for i in range(3)]
    torch.testing.assert_close(fastcam.ScoreCAM(model, "slow")(pathways), torch.cat(each))


class Detector(Small):
    """Takes a list of pictures (C, H, W), as torchvision's detectors do."""

    def forward(self, pictures: list[Tensor]) -> Tensor:
        assert isinstance(pictures, list) and all(p.dim() == 3 for p in pictures)
        return super().forward(torch.stack(pictures))


@pytest.mark.parametrize("method", ["gradcam", "guided-gradcam", "fullgrad", *MASKING])
def test_a_list_of_pictures(method: str) -> None:
    model, images = small().eval(), small_images()
    detector = Detector().eval()
    detector.load_state_dict(model.state_dict())
    layers = [] if method == "fullgrad" else ["features"]
    expected = cam_of(method, model, *layers or [None])(images)
    cam = cam_of(method, detector, *layers or [None])
    torch.testing.assert_close(cam(list(images)), expected)
    if method != "sscam":  # its noise depends on how many images there are
        torch.testing.assert_close(cam([images[0]]), expected[:1])
    with pytest.raises(ValueError, match=r"^images: .*\(3, 16, 20\) and \(3, 16, 19\); .* one at"):
        cam([images[0], images[1, :, :, 1:]])


def test_a_detector_of_torchvision() -> None:
    detection = pytest.importorskip("torchvision", reason="torchvision is missing").models.detection
    torch.manual_seed(0)
    model = detection.ssdlite320_mobilenet_v3_large(
        weights_backbone=None, num_classes=3, score_thresh=0.0, detections_per_img=4
    ).eval()
    image = torch.rand(3, 64, 48)
    with pytest.raises(ValueError, match=r"^output: found no logits"):
        fastcam.GradCAM(model, "backbone.features.0.4")([image])
    cam = fastcam.GradCAM(model, "backbone.features.0.4", output=lambda o: o[0]["scores"][None])
    maps = cam([image], 0)
    assert maps.shape == (1, 64, 48) and maps.amax() == 1


def test_the_images_among_the_inputs() -> None:
    images, ids = torch.randn(2, 3, 4, 4), torch.zeros(2, 7, dtype=torch.int64)
    for inputs in (images, (ids, images), {"ids": ids, "x": {"pixels": [images]}}, [ids, images]):
        assert images_of(inputs) is images
    assert images_of(ids) is None
    assert images_of((ids, list(images))).equal(images)


class TwoInputs(nn.Module):
    """(N, 3, H, W) and another input, joined in the way that a kind says."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.kind = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), kind
        self.head, self.forwards = nn.Linear(4, 6), 0

    def forward(self, x: Tensor, other: Tensor, mask: Tensor | None = None) -> Tensor:
        self.forwards += 1
        x = self.norm(self.conv(x)).sin()
        if self.kind == "mask":
            return self.head((x * other).mean((2, 3)))
        if self.kind == "row":
            return self.head(x.mean((2, 3)) * other)
        if mask is not None:
            x = x * mask
        features = nn.functional.normalize(self.head((x**2).mean((2, 3))), dim=1)
        if self.kind == "texts":  # (N, texts), as CLIP
            return features @ other.T
        if self.kind == "softmax":  # over the texts: of one image with one text too
            return (features @ torch.cat([other, -other[:1]]).T).softmax(1).log()
        if self.kind == "prototypes":  # (N, prototypes)
            return -(features[:, None] - other).square().sum(2)
        if self.kind == "first":  # the first row is everybody's
            return features * other[0]
        raise AssertionError(self.kind)


class Fixed(nn.Module):
    """The same with the other inputs within: it takes images alone."""

    def __init__(self, model: nn.Module, *others: Tensor) -> None:
        super().__init__()
        self.model, self.others = model, others

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x, *self.others)


def two_inputs(kind: str, count: int) -> tuple[TwoInputs, Tensor, Tensor]:
    shapes = {"mask": (count, 1, 16, 20), "row": (count, 4)}
    other = torch.randn(shapes.get(kind, (count, 6)), generator=torch.Generator().manual_seed(3))
    return TwoInputs(kind).double().eval(), small_images(count).double(), other.double()


@pytest.mark.parametrize("method", MASKING)
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("kind", ["texts", "softmax", "prototypes", "first", "mask", "row"])
def test_other_inputs_with_as_many_rows(kind: str, count: int, method: str) -> None:
    model, images, other = two_inputs(kind, count)
    cam = cam_of(method, model, "conv", batch_size=3)
    found = cam((images, other), 0, size="layer", normalize=False)
    if kind in ("mask", "row"):
        each = [Fixed(model, other[i : i + 1]) for i in range(count)]
        rows = [images[i : i + 1] for i in range(count)]
    else:
        each, rows = [Fixed(model, other)], [images]
    if method == "sscam":  # its noise is drawn chunk by chunk
        cam.samples, cam.std = 1, 0.0
        found = cam((images, other), 0, size="layer", normalize=False)
    expected = []
    for fixed, some in zip(each, rows, strict=True):
        alone = cam_of(method, fixed, "model.conv", batch_size=3)
        if method == "sscam":
            alone.samples, alone.std = 1, 0.0
        expected.append(alone(some, 0, size="layer", normalize=False))
    assert torch.cat(expected).any()
    torch.testing.assert_close(found, torch.cat(expected))


@pytest.mark.parametrize("as_mapping", [False, True])
def test_one_of_each_kind(as_mapping: bool) -> None:
    model, images, texts = two_inputs("texts", 3)
    masks = torch.rand(3, 1, 16, 20).double()
    inputs: Any = (images, texts, masks)
    if as_mapping:
        inputs = {"other": texts, "x": images, "mask": masks}
    found = fastcam.ScoreCAM(model, "conv")(inputs, CLASSES)
    for i in range(3):
        fixed = Fixed(model, texts, masks[i : i + 1])
        expected = fastcam.ScoreCAM(fixed, "model.conv")(images[i : i + 1], CLASSES[i])
        torch.testing.assert_close(found[i : i + 1], expected)
    found_by = PerImage()
    names = found_by.of(model, inputs)
    assert names == ({"x", "mask"} if as_mapping else {0, 2})


def test_the_answer_is_found_once_and_serves_search_copies_and_metrics() -> None:
    model, images, texts = two_inputs("texts", 3)
    cam = fastcam.GradCAM(model)
    counts = []
    for _ in range(3):
        before = model.forwards
        maps = cam((images, texts))
        counts.append(model.forwards - before)
    # what is found out by further runs leaves no trace in the model
    assert cam.layers == ("norm",) and counts == [1, 1, 1]
    fixed = Fixed(model, texts)
    torch.testing.assert_close(maps, fastcam.GradCAM(fixed, "model.norm")(images))
    cam.compile(check=True)
    torch.testing.assert_close(cam((images, texts)), maps)
    assert cam.compiled
    exact = fastcam.GradCAM(model, "norm")
    quality = metrics.adcc(exact, (images, texts))
    wanted = metrics.adcc(fastcam.GradCAM(fixed, "model.norm"), images)
    torch.testing.assert_close(quality.score, wanted.score)
    before = model.forwards
    fastcam.GradCAM(model, "norm")((images, texts))
    assert model.forwards == before + 1


class Coupled(nn.Module):
    """Each image's logits depend on the whole batch: no single image gives its row."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = TwoInputs("texts").double().eval()

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        logits: Tensor = self.inner(x, other)
        return logits + logits.mean(0).detach()


def test_per_image_names_what_cannot_be_found() -> None:
    model, (_, images, texts) = Coupled(), two_inputs("texts", 2)
    with pytest.raises(ValueError, match=r"^per_image: of the inputs 1, .* give per_image=\[\]"):
        fastcam.ScoreCAM(model, "inner.conv")((images, texts))
    named = fastcam.ScoreCAM(model, "inner.conv", per_image=[])((images, texts))
    fixed = Fixed(model, texts)
    expected = fastcam.ScoreCAM(fixed, "model.inner.conv", per_image=[])(images)
    torch.testing.assert_close(named, expected)
    with pytest.raises(ValueError, match=r"^per_image: got 'texts', but the inputs are 0, 1"):
        fastcam.ScoreCAM(model, "inner.conv", per_image=["texts"])((images, texts))
    rows, images, others = two_inputs("row", 2)
    named = fastcam.ScoreCAM(rows, "conv", per_image=[1])((images, others))
    torch.testing.assert_close(named, fastcam.ScoreCAM(rows, "conv")((images, others)))


def test_clip_of_transformers() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is missing")
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2}
    sizes["num_attention_heads"] = 2
    config = transformers.CLIPConfig(
        text_config={"vocab_size": 20, "max_position_embeddings": 6, "eos_token_id": 2, **sizes},
        vision_config={"image_size": 16, "patch_size": 8, **sizes},
        projection_dim=8,
    )
    model = transformers.CLIPModel(config).eval()
    inputs = {
        "input_ids": torch.randint(3, 20, (2, 6)),
        "attention_mask": torch.ones(2, 6, dtype=torch.int64),
        "pixel_values": torch.randn(2, 3, 16, 16),
    }
    layer = "vision_model.encoder.layers.1.layer_norm1"
    with pytest.raises(ValueError, match=r'output=lambda o: o\["logits_per_image"\] for \(2, 2\)'):
        fastcam.ScoreCAM(model, layer)(inputs)
    pick = {"output": lambda o: o.logits_per_image}
    found = fastcam.ScoreCAM(model, layer, **pick)(inputs, 1)
    each = []
    for i in range(2):  # one image with two texts leaves no doubt
        one = {**inputs, "pixel_values": inputs["pixel_values"][i : i + 1]}
        each.append(fastcam.ScoreCAM(model, layer, **pick)(one, 1))
    torch.testing.assert_close(found, torch.cat(each), rtol=1e-3, atol=1e-3)


def test_images_that_are_no_rows_of_the_output() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = small()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).amax(0, keepdim=True)

    with pytest.raises(ValueError, match=r"^images: got \(3, 3, 16, 20\) for 1 rows of the"):
        metrics.confidence(Bag(), small_images(), torch.ones(3, 16, 20))


class TwoPictures(nn.Module):
    """A branch for each of two pictures, of any sizes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = (
            nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.ReLU()) for _ in range(2)
        )
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head((self.one(x).mean((2, 3)) - self.two(y).mean((2, 3))) * 20)


class Swapped(nn.Module):
    """The same with the second picture first."""

    def __init__(self, model: TwoPictures) -> None:
        super().__init__()
        self.model = model

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return self.model(x, y)


@pytest.mark.parametrize(
    "method", ["gradcam", "gradcam++", "eigencam", "guided-gradcam", "smoothgradcam++", *MASKING]
)
def test_a_layer_that_sees_the_second_picture(method: str) -> None:
    """As if that were the first."""
    model = TwoPictures().double().eval()
    x, y = torch.randn(2, 3, 16, 16).double(), torch.randn(2, 3, 12, 20).double()
    maps = cam_of(method, model, "two")((x, y), 1)
    expected = cam_of(method, Swapped(model), "model.two")((y, x), 1)
    assert maps.shape[-2:] == (12, 20)
    torch.testing.assert_close(maps, expected)
    keywords = cam_of(method, model, "two")({"x": x, "y": y}, 1)
    torch.testing.assert_close(keywords, expected)


def test_layers_of_two_pictures_have_no_common_map() -> None:
    model = TwoPictures().double().eval()
    pictures = torch.randn(2, 3, 16, 16).double(), torch.randn(2, 3, 16, 16).double()
    with pytest.raises(ValueError, match=r"'one' picture 0 and 'two' picture 1 of the inputs"):
        fastcam.GradCAM(model, ["one", "two"])(pictures)


class Views(nn.Module):
    """One network for all views, of which the strongest counts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.ReLU())
        self.head = nn.Linear(6, 5)

    def forward(self, *views: Tensor) -> Tensor:
        return self.head(torch.stack([self.body(v).mean((2, 3)) for v in views]).amax(0))


def test_the_view_that_counts_is_not_the_first() -> None:
    model, images = Views().double().eval(), torch.randn(2, 3, 16, 16).double()
    maps = [
        fastcam.GradCAM(model, layer, run=1)((images * 0, images), 1, size="layer")
        for layer in (None, "body")
    ]
    assert maps[0].any()
    torch.testing.assert_close(*maps)


class Batched(nn.Module):
    """Runs with four images and no other number."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU())
        self.norm = nn.BatchNorm1d(6, track_running_stats=False) if norm else None
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        if self.norm is None:
            return self.head(x.reshape(4, 6, 8, 8).square().mean((2, 3)))
        return self.head(self.norm(x.square().mean((2, 3))))


@pytest.mark.parametrize("norm", [True, False])
def test_a_network_that_takes_no_single_image(norm: bool) -> None:
    model, images = Batched(norm).double().eval(), torch.randn(4, 3, 16, 16).double()
    classes = torch.tensor([1, 0, 1, 2])
    expected = literal_map("hirescam", *full_backward(model, images, "body", classes))
    for layer in ("body", None):
        cam = fastcam.HiResCAM(model, layer)
        for _ in range(2):
            raw = cam(images, classes, size="layer", normalize=False)
            torch.testing.assert_close(raw, expected)
    with pytest.raises(ValueError, match="depends on the others in its batch"):
        fastcam.ScoreCAM(model, "body")(images)
    with pytest.raises((RuntimeError, ValueError), match=r"invalid for input|more than 1 value"):
        fastcam.GradCAM(model, "body")(images[:1])


class Overwrites(nn.Module):
    """Normalizes its images in place."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.inplace = nn.Conv2d(3, 6, 3, stride=2), nn.Linear(6, 5), inplace

    def forward(self, x: Tensor) -> Tensor:
        x = x.sub_(0.5).mul_(2) if self.inplace else (x - 0.5) * 2
        return self.head(self.body(x).square().mean((2, 3)))


@pytest.mark.parametrize("method", MASKING)
def test_images_that_the_model_overwrites_are_masked_as_they_came(method: str) -> None:
    images = torch.rand(2, 3, 16, 16).double()
    maps = [
        cam_of(method, Overwrites(inplace).double().eval(), "body")(images.clone(), 1)
        for inplace in (True, False)
    ]
    torch.testing.assert_close(*maps)


def test_metrics_mask_the_images_as_they_came() -> None:
    images = torch.rand(2, 3, 16, 16).double()
    maps = torch.rand(2, 16, 16).double()
    found = [
        measure(Overwrites(inplace).double().eval(), images.clone(), maps)
        for inplace in (True, False)
        for measure in (metrics.confidence, metrics.road)
    ]
    torch.testing.assert_close(found[:2], found[2:])


@pytest.mark.parametrize("make", [demo.digits, demo.digits_vit])
def test_a_picture_without_the_axis_of_images_is_said_to_be_one(make) -> None:
    with pytest.raises(ValueError, match=r"^images: got shape \(3, 64, 64\), .*images\[None\]"):
        fastcam.GradCAM(make())(torch.rand(3, 64, 64))


def test_what_is_no_picture_keeps_the_error_of_its_model() -> None:
    signals = nn.Sequential(nn.Conv1d(8, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        fastcam.GradCAM(signals)(torch.rand(2, 8, 20))
