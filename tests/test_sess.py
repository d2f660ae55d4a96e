"""SESS against a double loop over windows in float64, and against pytorch-grad-cam."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import network
from torch import Tensor, nn

import fastcam

CLASSES = torch.tensor([1, 4])


def convolutional() -> nn.Sequential:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model.double().eval()


def pictures(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, height, width, generator=generator, dtype=torch.float64)


def bilinear(image: Tensor, height: int, width: int) -> Tensor:
    """(..., h, w), sample by sample."""
    result = image.new_zeros(*image.shape[:-2], height, width)
    taps = []
    for extent, size in zip(image.shape[-2:], (height, width), strict=True):
        places = []
        for i in range(size):
            place = min(max((i + 0.5) * extent / size - 0.5, 0), extent - 1)
            low = min(int(place), extent - 1)
            places.append((low, min(low + 1, extent - 1), place - low))
        taps.append(places)
    for i, (above, below, v) in enumerate(taps[0]):
        for j, (left, right, u) in enumerate(taps[1]):
            top = (1 - u) * image[..., above, left] + u * image[..., above, right]
            bottom = (1 - u) * image[..., below, left] + u * image[..., below, right]
            result[..., i, j] = (1 - v) * top + v * bottom
    return result


def blurred(maps: Tensor) -> Tensor:
    height, width = maps.shape
    result = torch.zeros_like(maps)
    mirror = [lambda i, n=n: (n - 1) - abs(n - 1 - i % (2 * n - 2)) for n in (height, width)]
    weights = {(y, x): math.exp(-(y * y + x * x) / 50) for y in range(-5, 6) for x in range(-5, 6)}
    for i in range(height):
        for j in range(width):
            for (y, x), weight in weights.items():
                result[i, j] += weight * maps[mirror[0](i + y), mirror[1](j + x)]
    return result / sum(weights.values())


def starts(length: int, window: int, step: int) -> list[int]:
    found = [0]
    while found[-1] + window < length:
        found.append(min(found[-1] + step, length - window))
    return found


def by_hand(
    model: nn.Module,
    image: Tensor,
    target: int,
    base: Any,
    *,
    scales: list[int],
    window: tuple[int, int],
    step: int | None = None,
    drop: float = 0.0,
    theta: float = 0.0,
    pool: str = "mean",
    smooth: bool = True,
    probabilities: bool = True,
) -> Tensor:
    """(H, W), before it is normalized."""
    height, width = image.shape[1:]
    explained = []
    for scale in scales:
        ratio = max(height, width) / min(height, width)
        tall, wide = (int(scale * ratio), scale) if height > width else (scale, int(scale * ratio))
        enlarged = bilinear(image, tall, wide)
        for y in starts(tall, window[0], step or window[0]):
            for x in starts(wide, window[1], step or window[1]):
                patch = enlarged[:, y : y + window[0], x : x + window[1]]
                with torch.no_grad():
                    row = model(patch[None])[0]
                score = float((row.softmax(0) if probabilities else row)[target])
                canvas = image.new_zeros(tall, wide)
                map_ = base(patch[None], target)[0]
                canvas[y : y + window[0], x : x + window[1]] = map_
                explained.append((score, canvas))
    explained.sort(key=lambda each: each[0])
    highest = explained[-1][0]
    total, counts = image.new_zeros(height, width), image.new_zeros(height, width)
    for score, canvas in explained[int(drop * len(explained)) :]:
        weight = max(score, 0) / highest if highest > 0 else 1
        placed = bilinear(canvas * weight, height, width)
        if pool == "max":
            total = torch.maximum(total, placed)
        else:
            total += placed * (placed > theta)
            counts += placed > theta
    if pool == "mean":
        total = torch.where(counts > 0, total / counts, 0)
    return blurred(total) if smooth else total


def near(value: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    assert value.shape == expected.shape and expected.any()
    torch.testing.assert_close(value, expected, rtol=0, atol=tolerance * expected.abs().max())


OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "max": {"pool": "max", "smooth": False},
    "logits": {"probabilities": False, "step": 5, "batch_size": 5, "theta": 0.1},
    "least dropped": {"drop": 0.4, "batch_size": 3, "smooth": False},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("extents", [(12, 12), (10, 13), (14, 9)])
def test_by_a_double_loop(extents: tuple[int, int], options: str) -> None:
    """The windows are as large as the images, whatever their shape."""
    model, images = convolutional(), pictures(*extents)
    given = OPTIONS[options]
    least = min(extents)
    scales = [least + round(least * 2 / 7) * i for i in range(3)]
    loop = {key: value for key, value in given.items() if key != "batch_size"}
    base = fastcam.GradCAM(model, "2")
    expected = torch.stack(
        [
            by_hand(model, image, int(c), base, scales=scales, window=extents, **loop)
            for image, c in zip(images, CLASSES, strict=True)
        ]
    )
    for chosen in (3, scales):
        cam = fastcam.SESS(model, "2", scales=chosen, **given)
        near(cam(images, CLASSES, normalize=False), expected)
        near(cam(images, CLASSES, size="layer", normalize=False), expected)
        assert torch.equal(cam.outputs, model(images).detach())
    normalized = fastcam.ops.normalize(expected)
    near(cam(images, CLASSES), normalized)
    larger = F.interpolate(expected[:, None], (20, 21), mode="bilinear")[:, 0]
    near(cam(images, CLASSES, size=(20, 21)), fastcam.ops.normalize(larger))


BASES = {
    fastcam.GradCAMPlusPlus: ["2"],
    fastcam.LayerCAM: ["0", "2"],
    fastcam.FinerCAM: ["2"],
    fastcam.RefineCAM: ["0", "2"],
    fastcam.EigenCAM: ["2"],
    fastcam.ShapleyCAM: ["2"],
    fastcam.AblationCAM: ["2"],
    fastcam.ScoreCAM: ["2"],
    fastcam.CAM: ["3"],
}


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.name)
def test_any_base_and_several_layers(base: Any) -> None:
    model, images = convolutional(), pictures(11, 12)
    cam = fastcam.SESS(model, BASES[base], base=base, scales=[11, 15], smooth=False)
    alone = base(model, BASES[base])
    for image, c, found in zip(images, CLASSES, cam(images, CLASSES, normalize=False), strict=True):
        options = {"scales": [11, 15], "window": (11, 12), "smooth": False}
        near(found, by_hand(model, image, int(c), alone, **options))
    assert cam.verify(images, CLASSES).map_error < 1e-9


def test_targets_as_every_method_takes_them() -> None:
    model, images = convolutional(), pictures(12, 12)
    cam = fastcam.SESS(model, "2", scales=4, drop=0.3)
    top = model(images).argmax(1)
    near(cam(images), cam(images, top))
    assert cam.class_ids is not None and cam.class_ids.equal(top)
    with torch.no_grad():  # of the whole image, not of each window
        patch = F.interpolate(images, (21, 21), mode="bilinear")[:, :, :12, :12]
        assert not model(patch).argmax(1).equal(top)
    near(cam(images, [lambda row, c=c: row[c] for c in CLASSES.tolist()]), cam(images, CLASSES))
    several = cam(images, torch.stack([CLASSES, top], 1))
    near(several[:, 0], cam(images, CLASSES))
    near(several[:, 1], cam(images, top))
    near(cam(images[1:], 4)[0], several[1, 0])


def test_windows_of_all_images_and_sizes_run_together_and_once() -> None:
    model, images = convolutional(), pictures(12, 12)
    cam = fastcam.SESS(model, "2", scales=[12, 18, 25], batch_size=8)
    cam(images, CLASSES)
    rows: list[int] = []
    model.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    cam(images, CLASSES)
    assert rows == [2, *[8] * 3, 4]  # 1 + 4 + 9 windows an image
    rows.clear()
    fastcam.SESS(model, "2", batch_size=122)(pictures(14, 14), CLASSES)
    assert rows[-2:] == [122, 122]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window_size": 15, "scales": [15, 21, 37], "theta": 0.2, "smooth": False},
        {"num_scales": 4, "pre_filter_ratio": 0.4, "step_size": 9},
        {"num_scales": 3, "pool": "max", "use_softmax_scores": False},
    ],
)
@pytest.mark.parametrize("extents", [(24, 24), (20, 26), (29, 20)])
def test_pytorch_grad_cam(extents: tuple[int, int], options: dict[str, Any]) -> None:
    library = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is missing")
    if not hasattr(library, "SESS"):
        pytest.skip("the installed pytorch-grad-cam has no SESS")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model, images = convolutional().float(), pictures(*extents).float()
    names = {"window_size": "window", "step_size": "step", "num_scales": "scales"}
    names |= {"pre_filter_ratio": "drop", "use_softmax_scores": "probabilities"}
    ours = {"window": min(extents)} | {names.get(key, key): options[key] for key in options}
    for layers in ([model[2]], [model[0], model[2]]):
        with library.SESS(model, layers, **options) as cam:
            expected = cam(images, [ClassifierOutputTarget(int(c)) for c in CLASSES])
        found = fastcam.SESS(model, layers, **ours)(images, CLASSES)
        near(found, torch.from_numpy(expected), 1e-4)


def test_a_network_of_one_input_size() -> None:
    model, images = network("timm/vit_tiny_patch16_224")  # of 64 x 64
    for base in (fastcam.GradCAM, fastcam.ShapleyCAM):
        maps = fastcam.SESS(model, base=base, scales=[64, 100])(images, 1)
        assert maps.shape == (3, 64, 64) and maps.isfinite().all() and maps.any()


@pytest.mark.parametrize("wrap", [fastcam.FinerCAM, fastcam.RefineCAM])
def test_a_second_derivative_below_another_method(wrap: Any) -> None:
    model, images = network("timm/vit_tiny_patch16_224")
    maps = wrap(model, base=fastcam.ShapleyCAM)(images, 1)
    assert maps.isfinite().all() and maps.any()


def test_finer_cam_of_a_product() -> None:
    model, images = convolutional(), pictures(12, 13)
    layers = ["0", "2"]
    cam = fastcam.FinerCAM(model, layers, base=fastcam.RefineCAM)

    def contrast(row: Tensor, c: int) -> Tensor:
        nearest = (row.detach() - row[c].detach()).abs().argsort()[1:4]
        return row[c] - 0.6 * row[nearest].mean()

    targets = [lambda row, c=c: contrast(row, c) for c in CLASSES.tolist()]
    for size in (None, "layer"):
        expected = fastcam.RefineCAM(model, layers)(images, targets, size=size)
        near(cam(images, CLASSES, size=size), expected)
    assert cam.verify(images, CLASSES).map_error < 1e-9
    assert fastcam.RefineCAM(model, layers).verify(images, CLASSES).map_error < 1e-9


class Conditioned(nn.Module):
    """With a vector for each image, and a table for all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = convolutional()

    def forward(self, image: Tensor, factor: Tensor, table: Tensor) -> Tensor:
        return (self.inner[:3](image) * factor[:, :, None, None]).relu().mean((2, 3)) @ table


def test_what_belongs_to_an_image_goes_with_its_windows() -> None:
    model, images = Conditioned(), pictures(12, 14)
    torch.manual_seed(0)
    factors, table = torch.randn(2, 12).double(), torch.randn(12, 5).double()
    cam = fastcam.SESS(model, "inner.2", scales=3, batch_size=4)
    found = cam((images, factors, table), CLASSES)
    for i in range(2):
        alone = cam((images[i : i + 1], factors[i : i + 1], table), CLASSES[i : i + 1])
        near(found[i], alone[0])
    swapped = cam((images, factors.flip(0), table), CLASSES)
    assert (found - swapped).abs().amax((1, 2)).min() > 1e-3


def test_channels_last_and_lists_of_pictures() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = convolutional()

        def forward(self, images: Tensor) -> Tensor:
            return self.inner(images.movedim(3, 1))

    class Stacks(Last):
        def forward(self, images: list[Tensor]) -> Tensor:
            return self.inner(torch.stack(images))

    images = pictures(12, 14)
    expected = fastcam.SESS(convolutional(), "2", scales=3)(images, CLASSES)
    near(fastcam.SESS(Last(), "inner.2", scales=3)(images.movedim(1, 3), CLASSES), expected)
    near(fastcam.SESS(Stacks(), "inner.2", scales=3)(list(images), CLASSES), expected)


def test_one_logit_is_weighed_by_its_probability() -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = convolutional()

        def forward(self, images: Tensor) -> Tensor:
            return self.inner(images)[:, 0]

    class Two(One):  # softmax of (-z, 0)
        def forward(self, images: Tensor) -> Tensor:
            z = self.inner(images)[:, :1]
            return torch.cat([z, torch.zeros_like(z)], 1)

    images = pictures(12, 14)
    found = fastcam.SESS(One(), "inner.2", scales=3)(images)
    near(found, fastcam.SESS(Two(), "inner.2", scales=3)(images, 0))


def test_scores_that_are_all_negative_weigh_the_same() -> None:
    model, images = convolutional(), pictures(12, 12)
    with torch.no_grad():
        model[6].bias -= 1000
    cam = fastcam.SESS(model, "2", scales=[12, 17], probabilities=False, drop=0.5, smooth=False)
    options = {"scales": [12, 17], "window": (12, 12), "probabilities": False, "smooth": False}
    for image, c, found in zip(images, CLASSES, cam(images, CLASSES, normalize=False), strict=True):
        base = fastcam.GradCAM(model, "2")
        near(found, by_hand(model, image, int(c), base, drop=0.5, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "sum"}, r'^pool: got .sum., expected "mean" or "max"'),
        ({"drop": 1.0}, r"^drop: got 1.0, expected it in \[0, 1\)"),
        ({"theta": -0.1}, r"^theta: got -0.1"),
        ({"scales": 0}, r"^scales: "),
        ({"scales": []}, r"^scales: "),
        (
            {"scales": [8]},
            r"^scales: got 8, which makes the images \(8, 9\), expected at least the",
        ),
        ({"scales": [16], "window": 20}, r"^scales: got 16, which makes .*windows' \(20, 20\)"),
        ({"window": 0}, r"^window: "),
        ({"step": 0}, r"^step: "),
        ({"batch_size": 0}, r"^batch_size: "),
        ({"base": fastcam.FullGrad}, r"^base: got 'fullgrad', expected a method whose map comes"),
        ({"base": fastcam.SmoothGradCAMPlusPlus}, r"^base: got 'smoothgradcam\+\+'"),
        ({"base": fastcam.SESS}, r"^base: got 'sess'"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fastcam.SESS(convolutional(), "2", **options)(pictures(16, 18))


@pytest.mark.parametrize("name", ["signal", "r3d_18"])
def test_only_images_are_cut(name: str) -> None:
    model, inputs = network(name)
    with pytest.raises(ValueError, match=r"^images: got torch.float32 \(3, .*SESS cuts windows"):
        fastcam.SESS(model)(inputs)


def test_a_model_that_remembers_sees_each_window_as_if_it_came_first() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = convolutional()
            self.register_buffer("calls", torch.zeros((), dtype=torch.float64))

        def forward(self, images: Tensor) -> Tensor:
            self.calls += 1
            return self.inner(images * self.calls.cos())

    model, images = Counting(), pictures(12, 12)
    cam = fastcam.SESS(model, "inner.2", scales=3, batch_size=3)
    found = cam(images, CLASSES)
    model.calls.zero_()
    together = fastcam.SESS(model, "inner.2", scales=3, batch_size=64)(images, CLASSES)
    near(found, together)
