"""Agreement with other libraries, where they are installed."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import network

import fastcam

CLASSES = torch.tensor([1, 4, 2])


@pytest.mark.parametrize("layers", [["layer4"], ["layer2", "layer3", "layer4"]])
@pytest.mark.parametrize(
    ("method", "peer"),
    [
        ("gradcam", "GradCAM"),
        ("hirescam", "HiResCAM"),
        ("xgradcam", "XGradCAM"),
        ("layercam", "LayerCAM"),
        ("gradcam-elementwise", "GradCAMElementWise"),
    ],
)
@pytest.mark.parametrize("name", ["resnet18", "timm/resnet10t"])
def test_pytorch_grad_cam(name: str, method: str, peer: str, layers: list[str]) -> None:
    library = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is missing")
    from pytorch_grad_cam.utils import model_targets as targets

    model, images = copy.deepcopy(network(name))
    with torch.no_grad():
        model.fc.weight *= 10
    raw = fastcam.METHODS[method](model, layers)(images, CLASSES, size="layer", normalize=False)
    for maps in raw if len(layers) > 1 else [raw]:
        spread = maps.amax((1, 2)) - maps.amin((1, 2))
        assert (spread > 1e-2).all(), "its eps would rule"
    with getattr(library, peer)(model, [model.get_submodule(layer) for layer in layers]) as cam:
        expected = cam(images, [targets.ClassifierOutputTarget(int(c)) for c in CLASSES])
    maps = fastcam.METHODS[method](model, layers)(images, CLASSES)
    torch.testing.assert_close(maps, torch.from_numpy(expected), rtol=0, atol=1e-4)


def test_guided_backpropagation_of_pytorch_grad_cam() -> None:
    library = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is missing")
    model, images = copy.deepcopy(network("resnet18"))
    guided = fastcam.GuidedBackprop(model)(images, CLASSES)
    peer = library.GuidedBackpropReLUModel(copy.deepcopy(model), device=torch.device("cpu"))
    for image, target, gradient in zip(images, CLASSES, guided, strict=True):
        expected = torch.from_numpy(peer(image[None].clone(), int(target))).permute(2, 0, 1)
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("method", "peer"), [("gradcam", "GradCAM"), ("xgradcam", "XGradCAM")])
def test_torchcam(method: str, peer: str) -> None:
    library = pytest.importorskip("torchcam.methods", reason="torchcam is missing")
    model, images = copy.deepcopy(network("resnet18"))
    with getattr(library, peer)(model, "layer4") as cam:
        (expected,) = cam(CLASSES.tolist(), model(images))
    maps = fastcam.METHODS[method](model, "layer4")(images, CLASSES, size="layer")
    torch.testing.assert_close(maps, expected.detach(), rtol=0, atol=1e-4)
