"""FullGrad: the gradients by the input and by all biases, in one map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from fastcam.compat.pytorch_grad_cam.base_cam import BaseCAM, projected
from fastcam.compat.pytorch_grad_cam.run import (
    SCALE_EPS,
    Array,
    TargetFunctions,
    aside,
    top_classes,
)
from fastcam.compat.pytorch_grad_cam.utils.find_layers import find_layer_predicate_recursive
from fastcam.compat.pytorch_grad_cam.utils.image import (
    scale_accross_batch_and_channels,
    scale_cam_image,
)
from fastcam.dropin.calls import counted
from fastcam.methods.fullgrad import summed

_WITH_BIAS = (nn.Conv2d, nn.BatchNorm2d)


class FullGrad(BaseCAM):
    """psi(x dS/dx) + sum over biases b of psi(b dS/db).

    Srinivas and Fleuret 2019, arXiv 1905.00780. The biases are those of the modules Conv2d and
    BatchNorm2d. psi takes the magnitude, brings each channel to [0, 1] and enlarges it.

    Args:
        target_layers: not used; pass an empty list.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module],
        reshape_transform: Callable[[Any], Tensor] | None = None,
    ) -> None:
        if len(target_layers) > 0:
            print("FullGrad takes all layers with a bias: target_layers is not used")
        layers = find_layer_predicate_recursive(
            model, lambda layer: type(layer) in _WITH_BIAS and layer.bias is not None
        )
        super().__init__(model, layers, reshape_transform, compute_input_gradient=True)
        self.bias_data = [self.get_bias_data(layer).cpu().numpy() for layer in layers]

    def get_bias_data(self, layer: Any) -> Tensor:
        """What a layer adds: for BatchNorm, shift - scale mean / sqrt(var + eps)."""
        bias: Tensor = layer.bias.detach()
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            scale = layer.weight.detach() / torch.sqrt(layer.running_var + layer.eps)
            bias = bias - layer.running_mean * scale
        return bias

    def forward(
        self, input_tensor: Any, targets: TargetFunctions | None, eigen_smooth: bool = False
    ) -> Array:
        """Maps (N, H, W) in [0, 1], float32."""
        if eigen_smooth:
            return super().forward(input_tensor, targets, eigen_smooth)
        return full_gradient(self, input_tensor, targets)

    def compute_cam_per_layer(self, input_tensor: Tensor, targets: Any, eigen_smooth: bool) -> Any:
        """The sum over layers, (N, 1, H, W); with eigen_smooth their first principal component."""
        size = self.get_target_width_height(input_tensor)
        assert input_tensor.grad is not None
        products = np.abs(input_tensor.grad.cpu().numpy() * input_tensor.detach().cpu().numpy())
        maps = [scale_accross_batch_and_channels(products, size)]
        gradients = (each.numpy() for each in self.activations_and_grads.gradients)
        for bias, gradient in zip(self.bias_data, gradients, strict=True):
            products = np.abs(bias[None, :, None, None] * gradient)
            scaled = scale_accross_batch_and_channels(products, size)
            maps.append(scaled.sum(axis=1, keepdims=True))
        layers = np.concatenate(maps, axis=1)
        if not eigen_smooth:
            return layers.sum(axis=1, keepdims=True)
        # smaller: there are many layers
        small = scale_accross_batch_and_channels(layers, tuple(each // 8 for each in size))
        return scale_accross_batch_and_channels(projected(small)[:, None], size)

    def aggregate_multi_layers(self, cam_per_target_layer: Any) -> Array:
        """The sum, normalized."""
        return scale_cam_image(np.sum(cam_per_target_layer, axis=1))


def full_gradient(cam: Any, input_tensor: Tensor, targets: TargetFunctions | None) -> Array:
    """The maps of a FullGrad object, by one backward that ends at the layers and the input."""
    images = input_tensor.detach().to(cam.device).requires_grad_()
    edges: list[GradientEdge] = []

    def keep(module: nn.Module, args: Any, output: Tensor) -> None:
        edges.append(get_gradient_edge(output))

    with ExitStack() as during, torch.inference_mode(False), torch.enable_grad():
        during.enter_context(aside(cam))
        for layer in cam.target_layers:
            during.callback(layer.register_forward_hook(keep).remove)
        outputs = cam.model(images)
        targets = top_classes(outputs) if targets is None else targets
        pairs = zip(targets, outputs, strict=False)
        loss: Any = sum(target(output) for target, output in pairs)
        gradients = torch.autograd.grad(loss, [get_gradient_edge(images), *edges])
    cam.outputs = outputs.detach()
    biases = [torch.from_numpy(b).to(images.device)[:, None, None] for b in cam.bias_data]
    factors = [images.detach(), *biases]
    size = tuple(cam.get_target_width_height(images))[::-1]
    products = (g.float() * f for g, f in zip(gradients, factors, strict=True))
    with torch.no_grad():
        maps = summed(products, size, SCALE_EPS)
    with counted(f"pytorch_grad_cam.{type(cam).__name__}") as call:
        call.why = "one backward to all biases, channels summed before they are enlarged"
    return scale_cam_image(maps.cpu().numpy())
