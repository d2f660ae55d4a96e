"""The output that is explained: what is picked, what is refused, and that it is what is scored."""

from __future__ import annotations

import re
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from networks import Small, Wrapped, full_backward, literal_map, small, small_images
from torch import Tensor, nn

import fastcam
from fastcam import metrics
from fastcam.engine.outputs import logits_of

CLASSES = torch.tensor([1, 2, 0])


def model_and_images() -> tuple[Small, Tensor]:
    return small().double(), small_images().double()


def expected_map(
    model: nn.Module, images: Tensor, pick: Callable[[Any], Tensor], method: str = "hirescam"
) -> Tensor:
    """By a backward through the whole graph of the picked scores."""
    picked = Wrapped(model, pick)
    return literal_map(method, *full_backward(picked, images, "inner.inner.features", CLASSES))


def raw_map(model: nn.Module, images: Tensor, **options: Any) -> Tensor:
    cam = fastcam.HiResCAM(model, "inner.features", **options)
    return cam(images, CLASSES, size="layer", normalize=False)


@dataclass
class Answer:
    embedding: Tensor
    scores: Tensor


SEVERAL = [
    lambda y: (y.cos(), y),
    lambda y: [y.argmax(1), y, y * y],
    lambda y: {"scores": y, "embedding": y.sin()},
    lambda y: Answer(y.cos(), y),
    lambda y: {"loss": y.mean(), "tasks": {"color": y, "shape": (y.sin(), y.cos())}},
    lambda y: SimpleNamespace(hidden=[y.sin()], heads=namedtuple("Heads", "a b")(y, y.cos())),
]


@pytest.mark.parametrize("wrap", SEVERAL)
def test_several_candidates_are_refused_and_each_line_works(wrap: Callable) -> None:
    inner, images = model_and_images()
    model = Wrapped(inner, wrap)
    with pytest.raises(ValueError, match=r"^output: got [23] tensors") as raised:
        fastcam.GradCAM(model, "inner.features")(images)
    lines = re.findall(r"output=(lambda o: \S+) for \((\d), (\d)\)", str(raised.value))
    assert len(lines) == int(str(raised.value)[12])
    for line, *shape in lines:
        pick = eval(line)
        assert pick(model(images)).shape == tuple(map(int, shape))
        torch.testing.assert_close(
            raw_map(model, images, output=pick), expected_map(model, images, pick)
        )


def transformers_output(y: Tensor) -> Any:
    output = pytest.importorskip("transformers.modeling_outputs")
    return output.ImageClassifierOutput(loss=None, logits=y, hidden_states=(y.cos(), y.sin()))


GoogLeNetOutputs = namedtuple("GoogLeNetOutputs", ["logits", "aux_logits2", "aux_logits1"])


@pytest.mark.parametrize(
    ("wrap", "pick"),
    [
        (lambda y: OrderedDict(out=y, aux=y.sin()), lambda o: o["out"]),
        (lambda y: GoogLeNetOutputs(y, y.sin(), y.cos()), lambda o: o.logits),
        (transformers_output, lambda o: o.logits),
        (lambda y: {"loss": y.mean(), "ids": y.argmax(1), "y": y}, lambda o: o["y"]),
        (lambda y: (None, {"a": [y, y]}), lambda o: o[1]["a"][0]),
        (lambda y: (y, y.sum(0)), lambda o: o[0]),
    ],
)
def test_what_is_picked(wrap: Callable, pick: Callable) -> None:
    inner, images = model_and_images()
    model = Wrapped(inner, wrap)
    torch.testing.assert_close(raw_map(model, images), expected_map(model, images, pick))


TEXTS = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize(
    "output",
    [
        lambda o: o[:, :3],
        lambda o: torch.cat([o[:, 2:], -o], 1),
        lambda o: o @ TEXTS,
        lambda o: o.log_softmax(1),
        lambda o: nn.functional.normalize(o, dim=1) @ TEXTS.requires_grad_(),
    ],
)
@pytest.mark.parametrize("frozen", [False, True])
def test_output_computes_with_a_graph(output: Callable, frozen: bool) -> None:
    inner, images = model_and_images()
    model = Wrapped(inner.requires_grad_(not frozen), lambda y: y)
    expected = expected_map(model, images, output)
    assert expected.any()
    torch.testing.assert_close(raw_map(model, images, output=output), expected)
    picked = fastcam.GuidedBackprop(Wrapped(model, output))(images, CLASSES)
    torch.testing.assert_close(
        fastcam.GuidedBackprop(model, output=output)(images, CLASSES), picked
    )
    for method in ("scorecam", "ablationcam", "eigencam", "smoothgradcam++", "shapleycam"):
        cam = fastcam.METHODS[method]
        maps = cam(model, "inner.features", output=output)(images, CLASSES)
        same = cam(Wrapped(model, output), "inner.inner.features")(images, CLASSES)
        torch.testing.assert_close(maps, same, msg=method)


def test_output_computes_with_a_graph_in_the_layer_search() -> None:
    timm = pytest.importorskip("timm", reason="timm is missing")
    torch.manual_seed(0)
    model = timm.models.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=12, depth=2, num_heads=2, num_classes=5
    ).eval()
    cam = fastcam.GradCAM(model, output=lambda o: o[:, :3] @ o[0, :3].detach().diag())
    assert cam(torch.randn(2, 3, 16, 16)).shape == (2, 16, 16)
    assert cam.layers == ("blocks.1.norm1",)


@pytest.mark.parametrize(
    ("wrap", "pick"),
    [
        (lambda y: y.squeeze(), lambda y: y),
        (lambda y: y[:, :1].squeeze(), lambda y: y[:, :1]),
        (lambda y: {"logits": y.squeeze(0), "loss": None}, lambda y: y),
        (lambda y: SimpleNamespace(out=y.sin().squeeze()), lambda y: y.sin()),
    ],
)
def test_the_advice_for_a_squeezed_batch_of_one_works(wrap: Callable, pick: Callable) -> None:
    inner, images = model_and_images()
    model = Wrapped(inner, wrap)
    with pytest.raises(ValueError, match=r"^output: got shape .* for one image, .* give") as raised:
        fastcam.GradCAM(model, "inner.features")(images[:1])
    output = eval(str(raised.value).partition("give output=")[2])
    for some in (images[:1], images):
        expected = fastcam.GradCAM(Wrapped(inner, pick), "inner.features")(some)
        assert fastcam.GradCAM(model, "inner.features", output=output)(some).equal(expected)


def test_a_squeezed_dense_output() -> None:
    inner, images = model_and_images()
    dense = Wrapped(inner.features, lambda y: y.squeeze(0))
    target = lambda row: row[1].sum()  # noqa: E731
    images = torch.cat([images, images], 1)
    with pytest.raises(ValueError, match=r"reshape\(-1, 8, 16, 20\)"):
        fastcam.GuidedBackprop(dense)(images[:1], target)
    with pytest.raises(ValueError, match=r"append \.reshape\(-1, 5\) to what output= returns"):
        fastcam.GradCAM(inner, output=lambda o: o[0])(small_images(1).double())


def test_a_squeezed_chunk_of_one_masked_image() -> None:
    """The model squeezes only where a chunk of masked images has one row."""
    inner, images = model_and_images()
    cam = fastcam.ScoreCAM(Wrapped(inner, torch.squeeze), "inner.features", batch_size=5)
    with pytest.raises(ValueError, match=r"^output: got shape \(5,\) for one image"):
        fastcam.ScoreCAM(cam.model, "inner.features", batch_size=23)(images)
    whole = fastcam.ScoreCAM(inner, "features", batch_size=6)(images)
    six = fastcam.ScoreCAM(cam.model, "inner.features", batch_size=6)(images)
    torch.testing.assert_close(six, whole)


def test_complex_logits_are_refused() -> None:
    inner, images = model_and_images()
    model = Wrapped(inner, lambda y: torch.complex(y, y))
    with pytest.raises(ValueError, match=r"^output: got complex logits.*\.abs\(\)"):
        fastcam.GradCAM(model, "inner.features")(images)
    maps = raw_map(model, images, output=lambda o: o.real)
    torch.testing.assert_close(maps, expected_map(model, images, lambda o: o.real))


def test_more_candidates_than_are_listed() -> None:
    with pytest.raises(ValueError, match=r"got 30 tensors .* and 22 more$"):
        logits_of([torch.randn(2, 3) for _ in range(30)], count=2)


def test_metrics_score_what_the_method_explains() -> None:
    inner, images = small(), small_images()
    wrapped = Wrapped(inner, lambda y: (y.cos() * 9, y))
    pick = lambda o: o[0][:, 1:]  # noqa: E731
    cam = fastcam.GradCAM(wrapped, "inner.features", output=pick)
    expected = fastcam.GradCAM(Wrapped(wrapped, pick), "inner.inner.features")
    for targets in (None, CLASSES):
        for metric in (metrics.adcc, metrics.arcc):
            found, wanted = (metric(c, images, targets) for c in (cam, expected))
            assert found.score.equal(wanted.score) and found.faithfulness.any()
        summaries = []
        for c in (cam, expected):
            metric = metrics.ClassificationMetric(c)
            metric.update(images, targets)
            summaries.append(metric.summary())
        assert summaries[0] == summaries[1]
    another = metrics.adcc(cam, images, CLASSES, output=lambda o: o[1])
    assert not another.faithfulness.equal(metrics.adcc(cam, images, CLASSES).faithfulness)


def test_the_fast_mode_of_a_model_with_several_outputs() -> None:
    model, images = Wrapped(small(), lambda y: (y.cos(), y)), small_images()
    cam = fastcam.GradCAM(model, "inner.features", output=lambda o: o[1])
    expected = cam(images)
    cam.compile(check=True)
    torch.testing.assert_close(cam(images), expected, rtol=1e-3, atol=1e-3)
    assert "1 folded" in cam.compiled["BatchNorm"]


def test_segmentation_of_torchvision() -> None:
    models = pytest.importorskip("torchvision", reason="torchvision is missing").models
    torch.manual_seed(0)
    model = models.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None, num_classes=3)
    model, images = model.double().eval(), torch.randn(2, 3, 32, 32).double()
    target = lambda row: row[1].mean()  # noqa: E731
    cam = fastcam.HiResCAM(model, "classifier.cbr")
    maps = cam(images, target, size="layer", normalize=False)
    summed = Wrapped(model, lambda o: o["out"].mean((2, 3)))
    ids = torch.ones(2, dtype=torch.int64)
    expected = literal_map("hirescam", *full_backward(summed, images, "inner.classifier.cbr", ids))
    assert expected.any()
    torch.testing.assert_close(maps, expected)
