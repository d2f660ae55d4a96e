"""Agreement with other libraries, where they are installed."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import network
from torch import Tensor, nn

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


def convolutional() -> tuple[nn.Sequential, Tensor]:
    """Milliseconds, with ReLU modules and no activation below 0 at the target layer, number 4."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2),
        nn.ReLU(),
        nn.BatchNorm2d(6),
        nn.Conv2d(6, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 8, 2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model.eval(), torch.randn(3, 3, 28, 28)


@pytest.mark.parametrize("name", ["EigenCAM", "EigenGradCAM", "FEM", "AblationCAM", "FullGrad"])
def test_further_methods_of_pytorch_grad_cam(name: str) -> None:
    library = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is missing")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model, images = convolutional()
    targets = [ClassifierOutputTarget(int(c)) for c in CLASSES]
    layers = [] if name == "FullGrad" else [model[4]]
    with getattr(library, name)(model, layers) as cam:
        expected = torch.from_numpy(cam(images, targets))
    method = fastcam.METHODS[name.lower()]
    maps = method(model, *layers)(images, CLASSES)
    if "Eigen" in name:  # its sign is the one that SVD happens to give
        cam = method(model, model[4])
        signed = cam(images, CLASSES, relu=False, size="layer", normalize=False)
        both = [_enlarged(m, images.shape[2:]) for m in (signed.relu(), (-signed).relu())]
        for found, other, map_ in zip(*both, expected, strict=True):
            assert min((found - map_).abs().max(), (other - map_).abs().max()) < 1e-4
        torch.testing.assert_close(maps, both[0], rtol=0, atol=1e-4)
    elif name == "FullGrad":  # an eps of 1e-7 is beside products of 1e-3
        torch.testing.assert_close(maps, expected, rtol=0, atol=1e-2)
    else:
        torch.testing.assert_close(maps, expected, rtol=0, atol=1e-4)


def _enlarged(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    maps = fastcam.ops.normalize(maps)
    return fastcam.ops.upsample(maps, size)


def test_score_cam_of_torchcam() -> None:
    library = pytest.importorskip("torchcam.methods", reason="torchcam is missing")
    model, images = convolutional()
    with library.ScoreCAM(model, model[4]) as cam:
        model(images)
        (expected,) = cam(CLASSES.tolist())

    class Peer(fastcam.ScoreCAM):
        """It normalizes before it enlarges."""

        def _masks(self, activations: Tensor, extents: tuple[int, ...]) -> Tensor:
            return fastcam.ops.upsample(fastcam.ops.normalize(activations), extents, False)

    maps = Peer(model, model[4])(images, CLASSES, size="layer")
    torch.testing.assert_close(maps, expected, rtol=0, atol=1e-4)


def test_refine_cam_and_finer_cam_of_torchcam() -> None:
    library = pytest.importorskip("torchcam.methods", reason="torchcam is missing")
    model, images = convolutional()
    layers = [model[1], model[4]]
    with library.RefineCAM(model, layers, base_method=library.LayerCAM) as cam:
        (expected,) = cam(CLASSES.tolist(), model(images))
    refined = fastcam.RefineCAM(model, layers, base=fastcam.LayerCAM)
    maps = refined(images, CLASSES, size="layer")
    torch.testing.assert_close(maps, expected.detach(), rtol=0, atol=1e-4)
    with library.FinerCAM(model, model[4], base_method=library.LayerCAM) as cam:
        (expected,) = cam(CLASSES.tolist(), model(images))
    finer = fastcam.FinerCAM(model, model[4], base=fastcam.LayerCAM)
    maps = finer(images, CLASSES, size="layer")
    torch.testing.assert_close(maps, expected.detach(), rtol=0, atol=1e-4)


def test_finer_target_of_pytorch_grad_cam() -> None:
    library = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is missing")
    model, images = convolutional()
    expected = torch.from_numpy(library.FinerCAM(model, [model[4]])(images))
    finer = fastcam.FinerCAM(model, model[4], gamma=1.0, weights="softmax")
    torch.testing.assert_close(finer(images), expected, rtol=0, atol=1e-3)


def test_legrad_of_torchcam() -> None:
    library = pytest.importorskip("torchcam.methods", reason="torchcam is missing")
    models = pytest.importorskip("torchvision.models", reason="torchvision is missing")
    torch.manual_seed(0)
    model = models.VisionTransformer(32, 8, 3, 2, 16, 32, num_classes=5).eval()
    torch.nn.init.normal_(model.heads.head.weight)
    images = torch.randn(3, 3, 32, 32)
    with library.LeGrad(model, list(model.encoder.layers)) as cam:
        (expected,) = cam(CLASSES.tolist(), model(images))
    maps = fastcam.LeGrad(model)(images, CLASSES, size="layer")
    torch.testing.assert_close(maps, expected.detach(), rtol=0, atol=1e-4)


def test_deconvolution_of_captum() -> None:
    attr = pytest.importorskip("captum.attr", reason="captum is missing")
    model, images = convolutional()
    expected = attr.Deconvolution(copy.deepcopy(model)).attribute(images, CLASSES)
    maps = fastcam.Deconvnet(model)(images, CLASSES)
    torch.testing.assert_close(maps, expected.detach(), rtol=1e-4, atol=1e-5)
