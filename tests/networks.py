"""Networks for the tests: real architectures with random weights, and small ones of every shape."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# network -> the layer that is found automatically
ARCHITECTURES = {
    "resnet18": "layer4.1",
    "vgg11": "features.20",
    "densenet121": "features.norm5",
    "mobilenet_v3_small": "features.12.2",
    "efficientnet_b0": "features.8.2",
    "convnext_tiny": "features.7.2",
    "googlenet": "inception5b",
    "vit_b_16": "encoder.layers.encoder_layer_11.ln_1",
    "swin_t": "norm",
    "r3d_18": "layer4.1.relu",
    "timm/resnet10t": "layer4.0.act2",
    "timm/vit_tiny_patch16_224": "blocks.11.norm1",
    "signal": "features.4",
}


@functools.cache
def network(name: str) -> tuple[nn.Module, Tensor]:
    """A network in evaluation mode and three inputs for it. Shared: leave it as it is."""
    torch.manual_seed(0)
    images = torch.randn(3, 3, 64, 64)
    if name == "signal":
        images = torch.randn(3, 2, 64)
        model: nn.Module = Signal()
    elif name == "r3d_18":
        images = torch.randn(3, 3, 4, 32, 32)
        model = _library("torchvision").models.video.r3d_18()
    elif name.startswith("timm/"):
        size = {"img_size": 64} if "vit" in name else {}
        model = _library("timm").create_model(name.removeprefix("timm/"), num_classes=20, **size)
    else:
        options = {"vit_b_16": {"image_size": 64}, "googlenet": {"init_weights": False}}
        create = getattr(_library("torchvision").models, name)
        model = create(num_classes=20, **options.get(name, {}))
    return condition(model, images), images


def _library(name: str) -> ModuleType:
    return pytest.importorskip(name, reason=f"{name} is missing: its networks are not tested")


def condition(model: nn.Module, images: Tensor) -> nn.Module:
    """BatchNorm statistics near those of the images and no head of zeros: maps of some size."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.1)
    model.train()
    with torch.no_grad():
        model(images)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_var.mul_(torch.empty_like(module.running_var).uniform_(0.8, 1.2))
    return model.eval()


class Signal(nn.Module):
    """1-D: (N, 2, L) -> (N, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv1d(2, 8, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool1d(4),
            nn.Conv1d(8, 16, 3),
            nn.ReLU(),
        )
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean(-1))


class Small(nn.Module):
    """A network of milliseconds: (N, 3, H, W) -> (N, 5), pooled and linear."""

    def __init__(self, relu: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.features = nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.conv(x)))
        return self.head(self.relu(self.features(x)).mean((2, 3)))


def small(**options: Callable[[Tensor], Tensor]) -> Small:
    torch.manual_seed(1)
    return Small(**options).eval()


def small_images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 16, 20, generator=torch.Generator().manual_seed(2))


class Wrapped(nn.Module):
    """A network whose answer is made into something else."""

    def __init__(self, inner: nn.Module, wrap: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.inner = inner
        self.wrap = wrap

    def forward(self, *args: Tensor, **kwargs: Tensor) -> object:
        return self.wrap(self.inner(*args, **kwargs))


def full_backward(
    model: nn.Module, images: Tensor, layer: str, class_ids: Tensor
) -> tuple[Tensor, Tensor]:
    """A and dS/dA as the layer returned them, from a backward through everything.

    A zero that requires a gradient is added to the layer's output: its gradient is dS/dA whatever
    overwrites the output afterwards.
    """
    kept: list[Tensor] = []

    def add_zero(module: nn.Module, args: object, output: Tensor) -> Tensor:
        zero = torch.zeros_like(output, requires_grad=True)
        kept[:] = [output.detach().clone(), zero]
        return output + zero

    handle = model.get_submodule(layer).register_forward_hook(add_zero)
    try:
        logits = model(images.clone().requires_grad_())
        logits.gather(1, class_ids[:, None]).sum().backward()
    finally:
        handle.remove()
        model.zero_grad()
    activations, zero = kept
    assert zero.grad is not None
    return activations, zero.grad


def literal_map(method: str, activations: Tensor, gradients: Tensor) -> Tensor:
    """The raw map by the formulas, in float64: (N, C, *S) twice -> (N, *S)."""
    a, g = activations.double().flatten(2), gradients.double().flatten(2)
    if method == "gradcam":
        terms = g.mean(2, keepdim=True) * a
    elif method == "gradcam++":
        denominator = 2 * g**2 + a.relu().sum(2, keepdim=True) * g**3
        alpha = torch.where(denominator == 0, 0, g**2 / denominator)
        terms = (alpha * g.relu()).sum(2, keepdim=True) * a
    elif method == "xgradcam":
        total = a.sum(2, keepdim=True)
        terms = torch.where(total == 0, 0, (g * a).sum(2, keepdim=True) / total) * a
    elif method == "hirescam":
        terms = g * a
    elif method == "layercam":
        terms = g.relu() * a
    elif method == "gradcam-elementwise":
        terms = (g * a).relu()
    else:
        raise KeyError(method)
    return terms.sum(1).relu().reshape(activations.shape[:1] + activations.shape[2:])
