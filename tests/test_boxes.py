"""Boxes: maps of detectors' candidates, compared with whole-graph autograd in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import fastcam
from fastcam.targets import Boxes, Negative

detectors = pytest.importorskip("tests.detectors", reason="torchvision is missing")
KINDS = detectors.KINDS


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(kind):
    return detectors.make(kind)


IMAGE = torch.rand(3, 70, 90, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def detected(model, count=2):
    with torch.no_grad():
        (found,) = model([IMAGE])
    boxes = found["boxes"]
    large = (boxes[:, 2:] - boxes[:, :2]).amin(1) > 2  # random detectors also find lines
    assert large.sum() >= count
    return boxes[large][:count], found["labels"][large][:count]


def leaves(model):
    """The pyramid's levels, kept with their graph by hooks."""
    kept = {}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda module, args, out, name=name: kept.__setitem__(name, out)
        )
        for name in detectors.LEVELS
    ]
    return kept, handles


def test_scores_and_raw_maps_are_those_of_the_whole_graph(kind, model):
    boxes, labels = detected(model)
    cam = fastcam.GradCAM(model)
    maps = cam([IMAGE], Boxes(boxes, labels), size="layer", normalize=False)
    assert cam.layers == detectors.LEVELS
    assert torch.equal(cam.class_ids, labels[None])
    for number, (box, label) in enumerate(zip(boxes, labels.tolist(), strict=True)):
        kept, handles = leaves(model)
        score = detectors.suppressed_class_logits(kind, model, IMAGE, box, label)
        for handle in handles:
            handle.remove()
        torch.testing.assert_close(cam.scores[0, number], score.detach(), rtol=1e-12, atol=1e-12)
        levels = [kept[name] for name in detectors.LEVELS]
        gradients = torch.autograd.grad(score, levels)
        assert any(gradient.any() for gradient in gradients)
        for of_level, activations, gradient in zip(maps, levels, gradients, strict=True):
            expected = detectors.gradcam(activations.detach(), gradient)
            torch.testing.assert_close(of_level[:, number], expected, rtol=1e-9, atol=1e-12)


def test_the_levels_are_one_map_in_the_pixels_of_the_image(kind, model):
    boxes, labels = detected(model, 1)
    cam = fastcam.HiResCAM(model)
    levels = cam([IMAGE], Boxes(boxes, labels), size="layer")
    (joined,) = cam([IMAGE], Boxes(boxes, labels))[0]
    assert joined.shape == IMAGE.shape[1:]
    shown, _ = model.transform([IMAGE])
    (height, width), padded = shown.image_sizes[0], shown.tensors.shape[2:]
    size = round(70 * padded[0] / height), round(90 * padded[1] / width)
    enlarged = [F.interpolate(level, size, mode="bilinear") for level in levels]
    cut = torch.stack(enlarged).mean(0)[0, 0, :70, :90]
    torch.testing.assert_close(joined, (cut - cut.min()) / (cut.max() - cut.min()))


def test_a_detector_is_left_as_it_was(model):
    boxes, labels = detected(model)
    before = {name: len(each._forward_hooks) for name, each in model.named_modules()}
    cam = fastcam.GradCAM(model)
    cam([IMAGE], Boxes(boxes, labels))
    with pytest.raises(ValueError, match=r"^boxes: no candidate of class 1 fits box 0 \(0\.0, "):
        cam([IMAGE], Boxes([[0, 0, 1, 1]], [1], iou=0.99))
    assert before == {name: len(each._forward_hooks) for name, each in model.named_modules()}
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["faster", "retinanet", "ssd"], indirect=True)
def test_two_images_and_a_second_call_with_other_boxes(model):
    boxes, labels = detected(model)
    cam = fastcam.GradCAM(model)
    alone = cam([IMAGE], Boxes(boxes, labels))
    first = cam.scores
    pair = cam(
        [IMAGE, IMAGE.flip(2)], Boxes([boxes[:1], boxes[1:]], [labels[:1], labels[1:]], 0.01)
    )
    assert pair.shape == (2, 1, 70, 90)
    torch.testing.assert_close(pair[0, 0], alone[0, 0])
    torch.testing.assert_close(cam.scores[0, 0], first[0, 0])


@pytest.mark.parametrize("kind", ["faster", "fcos"], indirect=True)
def test_negative_boxes(model):
    boxes, labels = detected(model)
    cam = fastcam.HiResCAM(model)
    plain = cam([IMAGE], Boxes(boxes, labels), size="layer", normalize=False, relu=False)
    scores = cam.scores
    against = cam(
        [IMAGE], Negative(Boxes(boxes, labels)), size="layer", normalize=False, relu=False
    )
    assert torch.equal(cam.scores, -scores) and torch.equal(cam.class_ids, labels[None])
    for level, other in zip(plain, against, strict=True):
        torch.testing.assert_close(other, -level)


@pytest.mark.parametrize("kind", ["faster", "fcos"], indirect=True)
def test_verify(model):
    boxes, labels = detected(model)
    found = fastcam.GradCAM(model).verify([IMAGE], Boxes(boxes, labels))
    assert found.gradient_error < 1e-12 and found.map_error < 1e-12 and found.outputs_equal


@pytest.mark.parametrize(
    ("boxes", "labels", "iou", "error", "message"),
    [
        ([1, 2, 3, 4], [1], 0.5, ValueError, r"^boxes: got shape \(4,\), expected \(B, 4\)"),
        (torch.zeros(0, 4), [], 0.5, ValueError, r"^boxes: got shape \(0, 4\)"),
        ([[5, 5, 5, 9]], [1], 0.5, ValueError, r"^boxes: got a box without area"),
        ([[1, 2, 3, 4]], [1, 2], 0.5, ValueError, r"^labels: got shapes \[\(2,\)\] for boxes"),
        ([[1, 2, 3, 4]], [1.0], 0.5, TypeError, r"^labels: got torch.float32, expected class ids"),
        ([[1, 2, 3, 4]], [1], 1.5, ValueError, r"^iou: got 1.5, expected more than 0"),
    ],
)
def test_wrong_boxes(boxes, labels, iou, error, message):
    with pytest.raises(error, match=message):
        Boxes(boxes, labels, iou)


@pytest.mark.parametrize("kind", ["ssd"], indirect=True)
def test_wrong_calls(model):
    target = Boxes([[1, 2, 30, 40]], [1], 0.01)
    with pytest.raises(ValueError, match=r"^labels: got 99, expected 0 to 3"):
        fastcam.GradCAM(model)([IMAGE], Boxes([[1, 2, 30, 40]], [99]))
    with pytest.raises(ValueError, match=r"^boxes: got those of 1 images, expected 2"):
        fastcam.GradCAM(model)([IMAGE, IMAGE], target)
    with pytest.raises(
        ValueError, match=r"^targets: Boxes needs a method that returns maps of one run"
    ):
        fastcam.ScoreCAM(model)([IMAGE], target)
    with pytest.raises(ValueError, match=r"^output: got a function, but Boxes picks"):
        fastcam.GradCAM(model, output=lambda o: o[0]["scores"][None])([IMAGE], target)
    with pytest.raises(ValueError, match=r"^model: Boxes finds no candidates in Sequential"):
        fastcam.GradCAM(torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3)))(IMAGE[None], target)
    cam = fastcam.GradCAM(model)
    cam.compile()
    with pytest.raises(ValueError, match=r"^targets: the fast mode explains classes"):
        cam([IMAGE], target)
