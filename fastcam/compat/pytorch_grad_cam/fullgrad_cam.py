"""FullGrad: one map from the gradients of the input and of all biases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastcam import ops
from fastcam.compat.pytorch_grad_cam.base_cam import BaseCAM, chosen
from fastcam.compat.pytorch_grad_cam.utils.find_layers import find_layer_predicate_recursive
from fastcam.dropin.pytorch_grad_cam.fullgrad import bias_products, full_gradient
from fastcam.dropin.pytorch_grad_cam.image import (
    scale_accross_batch_and_channels,
    scale_cam_image,
)
from fastcam.dropin.pytorch_grad_cam.maps import SCALE_EPS
from fastcam.dropin.pytorch_grad_cam.projection import get_2d_projection
from fastcam.dropin.pytorch_grad_cam.run import Array, TargetFunctions
from fastcam.methods.fullgrad import summed

_WITH_BIAS = (nn.Conv2d, nn.BatchNorm2d)


class FullGrad(BaseCAM):
    """psi(x dS/dx) + sum over biases b of psi(b dS/db).

    Srinivas and Fleuret 2019, arXiv 1905.00780. The biases are those of the modules Conv2d and
    BatchNorm2d. psi takes the magnitude, scales each channel to [0, 1] and enlarges it.

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
            print("target_layers: ignored, because FullGrad uses all layers with a bias")
        layers = find_layer_predicate_recursive(
            model, lambda layer: type(layer) in _WITH_BIAS and layer.bias is not None
        )
        super().__init__(model, layers, reshape_transform, compute_input_gradient=True)
        self.bias_data = [self.get_bias_data(layer).cpu().numpy() for layer in layers]

    def get_bias_data(self, layer: Any) -> Tensor:
        """The bias of a layer; for BatchNorm, shift - scale mean / sqrt(var + eps)."""
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

        def otherwise() -> Array:
            return super(FullGrad, self).forward(input_tensor, targets, eigen_smooth)

        if eigen_smooth:
            return otherwise()
        return full_gradient(self, input_tensor, chosen(targets), otherwise)

    def compute_cam_per_layer(self, input_tensor: Tensor, targets: Any, eigen_smooth: bool) -> Any:
        """The sum over layers, (N, 1, H, W), or with eigen_smooth the first principal component."""
        size = self.get_target_width_height(input_tensor)
        extents = size[::-1]
        assert input_tensor.grad is not None
        gradients = [input_tensor.grad, *self.activations_and_grads.gradients]
        first, *others = bias_products(self, input_tensor, gradients)
        if not eigen_smooth:
            return summed([first, *others], extents, SCALE_EPS)[:, None].cpu().numpy()
        channels = ops.upsample(ops.normalize(first.abs(), 2, SCALE_EPS), extents, normalize=False)
        maps = [channels, *(summed([each], extents, SCALE_EPS)[:, None] for each in others)]
        # at 1/8 of the size, because there are many layers
        small = scale_accross_batch_and_channels(
            torch.cat(maps, 1).cpu().numpy(), tuple(each // 8 for each in size)
        )
        return scale_accross_batch_and_channels(get_2d_projection(small)[:, None], size)

    def aggregate_multi_layers(self, cam_per_target_layer: Any) -> Array:
        """The normalized sum over layers."""
        return scale_cam_image(cam_per_target_layer.sum(axis=1))
