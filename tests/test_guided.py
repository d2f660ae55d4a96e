"""Guided backpropagation against a literal one, and Guided Grad-CAM from one forward."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from networks import network, small, small_images
from torch import Tensor, nn

import fastcam

CLASSES = torch.tensor([1, 4, 2])


def relu_as_statement(x: Tensor) -> Tensor:
    x.relu_()
    return x


def relu_of_a_view(x: Tensor) -> Tensor:
    x[:, :].relu_()
    return x


RELUS = {
    "module": nn.ReLU(),
    "module in place": nn.ReLU(inplace=True),
    "F.relu": F.relu,
    "F.relu in place": lambda x: F.relu(x, inplace=True),
    "F.relu_": F.relu_,
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "Tensor.relu": lambda x: x.relu(),
    "Tensor.relu_": lambda x: x.relu_(),
    "statement": relu_as_statement,
    "view": relu_of_a_view,
    "module relu6": nn.ReLU6(),
    "module relu6 in place": nn.ReLU6(inplace=True),
    "F.relu6": F.relu6,
    "F.hardtanh": lambda x: F.hardtanh(x, 0, 6),
    "F.hardtanh_": lambda x: F.hardtanh_(x, 0.0, 6.0),
    "module threshold": nn.Threshold(0, 0),
    "F.threshold in place": lambda x: F.threshold(x, 0.0, 0.0, inplace=True),
    "F.threshold_": lambda x: F.threshold_(x, 0, 0),
    "torch.threshold": lambda x: torch.threshold(x, 0, 0),
    "torch.clamp": lambda x: torch.clamp(x, 0),
    "torch.clamp_": lambda x: torch.clamp_(x, min=0),
    "torch.clip": lambda x: torch.clip(x, 0),
    "torch.clamp_min": lambda x: torch.clamp_min(x, 0),
    "torch.clamp_min_": lambda x: torch.clamp_min_(x, 0),
    "Tensor.clamp": lambda x: x.clamp(min=0),
    "Tensor.clamp_": lambda x: x.clamp_(min=0),
    "Tensor.clamp_min": lambda x: x.clamp_min(0.0),
    "Tensor.clamp_min_": lambda x: x.clamp_min_(min=0),
    "Tensor.clip_": lambda x: x.clip_(0),
    "Tensor.clamp 6": lambda x: x.clamp(0, 6),
    "F.relu6 written to": lambda x: F.relu6(x).add_(0),
    "Tensor.clamp_ written to": lambda x: x.clamp_(0).add_(0),
    "F.threshold_ written to": lambda x: F.threshold_(x, 0, 0).add_(0),
}


def literal(model: nn.Module, images: Tensor, ids: Tensor, guided: bool, high: float) -> Tensor:
    """The gradient of the small network's scores at the images, layer by layer, by hand."""
    norm = model.norm
    x1 = norm(model.conv(images))
    x2 = model.features(x1.clamp(0, high))
    g = (model.head.weight[ids] / x2[0, 0].numel())[:, :, None, None].expand_as(x2)
    for x, weight, options in (
        (x2, model.features.weight, {"padding": 1}),
        (x1, model.conv.weight, {"padding": 1, "stride": 2, "output_padding": 1}),
    ):
        g = g * ((x > 0) & (x < high))
        g = g.relu() if guided else g
        if x is x1:
            g = g * (norm.weight / (norm.running_var + norm.eps).sqrt())[:, None, None]
        g = F.conv_transpose2d(g, weight, **options)
    return g.detach()


@pytest.mark.parametrize("relu", RELUS)
def test_every_relu(relu: str, device: torch.device) -> None:
    model = small(relu=RELUS[relu]).to(device)
    with torch.no_grad():
        model.conv.weight *= 20  # so that ReLU6 saturates
    images, ids = small_images().to(device), CLASSES.to(device)
    high = 6.0 if "6" in relu or "hardtanh" in relu else float("inf")
    expected = literal(model, images, ids, True, high)
    assert not torch.allclose(expected, literal(model, images, ids, False, high))
    if high == 6:
        assert not torch.allclose(expected, literal(model, images, ids, True, float("inf")))
    guided = fastcam.GuidedBackprop(model)(images, ids)
    assert (guided < 0).any() and (guided > 0).any()
    torch.testing.assert_close(guided, expected, rtol=1e-5, atol=1e-6 * expected.abs().max().item())


def test_classes_at_once() -> None:
    model, images = small(), small_images()
    classes = torch.tensor([[0, 1], [2, 2], [4, 3]])
    for method in (fastcam.GuidedBackprop(model), fastcam.GuidedGradCAM(model)):
        several = method(images, classes)
        assert several.shape == (3, 2, 3, 16, 20)
        for k in range(2):
            torch.testing.assert_close(several[:, k], method(images, classes[:, k]))


def test_a_network_without_relu_is_warned_about() -> None:
    model, images = small(relu=F.gelu), small_images()
    leaf = images.clone().requires_grad_()
    model(leaf).gather(1, CLASSES[:, None]).sum().backward()
    with pytest.warns(UserWarning, match="no ReLU"):
        guided = fastcam.GuidedBackprop(model)(images, CLASSES)
    torch.testing.assert_close(guided, leaf.grad)


@pytest.mark.parametrize(
    "function",
    [
        F.hardtanh,
        lambda x: x.clamp(max=6),
        lambda x: x.clamp(min=torch.zeros(())),
        lambda x: F.threshold(x, 0, 1),
        lambda x: F.threshold(x, 0.5, 0),
    ],
)
def test_what_is_no_relu(function) -> None:
    with pytest.warns(UserWarning, match="no ReLU"):
        fastcam.GuidedBackprop(small(relu=function))(small_images())


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_relus_in_torchscript_are_refused() -> None:
    model = nn.Sequential(torch.jit.script(nn.ReLU()), small()).eval()
    for method in (fastcam.GuidedBackprop(model), fastcam.GuidedGradCAM(model, "1.features")):
        with pytest.raises(ValueError, match=r"^model: .* TorchScript module, such as '0'"):
            method(small_images(), CLASSES)


@pytest.mark.parametrize("layers", ["features", ["norm", "features"]])
def test_guided_gradcam_is_the_product_from_one_forward(layers, device: torch.device) -> None:
    model, images = small().to(device), small_images().to(device)
    ids = CLASSES.to(device)
    maps = fastcam.GradCAM(model, layers)(images, ids)
    expected = maps[:, None] * fastcam.GuidedBackprop(model)(images, ids)
    runs: list[int] = []
    cam = fastcam.GuidedGradCAM(model, layers)
    cam(images, ids)  # finds the layers' axes
    model.register_forward_hook(lambda *_: runs.append(1))
    product = cam(images, ids)
    assert len(runs) == 1
    torch.testing.assert_close(
        product, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item()
    )


def test_the_map_half_is_the_plain_gradient() -> None:
    """On a network where the guided gradient gives another Grad-CAM."""
    model, images = network("vgg11")
    model = copy.deepcopy(model)
    maps = fastcam.GradCAM(model, "features.5")(images, CLASSES)
    expected = maps[:, None] * fastcam.GuidedBackprop(model)(images, CLASSES)
    product = fastcam.GuidedGradCAM(model, "features.5")(images, CLASSES)
    torch.testing.assert_close(
        product, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item()
    )


def test_images_must_be_floating_point() -> None:
    with pytest.raises(ValueError, match="floating-point"):
        fastcam.GuidedBackprop(small())((small_images() * 100).to(torch.uint8))
    with pytest.raises(ValueError, match="has none"):
        fastcam.GuidedBackprop(small(), "features")
