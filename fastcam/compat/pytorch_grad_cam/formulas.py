"""Base classes of the CAM classes that share a formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastcam import ops, reference
from fastcam.compat.pytorch_grad_cam.base_cam import BaseCAM
from fastcam.dropin.pytorch_grad_cam.projection import (
    get_2d_projection,
)
from fastcam.dropin.pytorch_grad_cam.run import Array

Reshape = Callable[[Any], Tensor] | None


class OfGradients(BaseCAM):
    _formula: ClassVar[tuple[str, float]]
    """The method of :func:`fastcam.ops.cam`, and its eps."""

    def __init__(
        self, model: nn.Module, target_layers: list[nn.Module], reshape_transform: Reshape = None
    ) -> None:
        super().__init__(model, target_layers, reshape_transform)


class Weighted(OfGradients):
    """M = sum_k w_k A^k."""

    def get_cam_weights(
        self,
        input_tensor: Any,
        target_layer: Any,
        target_category: Any,
        activations: Array,
        grads: Array,
    ) -> Array:
        """(N, C)."""
        a, g = _tensors(activations, grads)
        weights: Array = reference.channel_weights(a, g, *self._formula).numpy()
        return weights


class Elementwise(OfGradients):
    """M = sum_k f(g, A), with f applied at each position."""

    def get_cam_image(
        self,
        input_tensor: Any,
        target_layer: Any,
        target_category: Any,
        activations: Array,
        grads: Array,
        eigen_smooth: bool = False,
    ) -> Array:
        """(N, *S)."""
        a, g = _tensors(activations, grads)
        method, _ = self._formula
        if not eigen_smooth:
            return ops.cam(a, g, method, relu=False).numpy()
        # the map of a single channel is its term of the sum
        channels = ops.cam(
            a.flatten(0, 1).unsqueeze(1), g.flatten(0, 1).unsqueeze(1), method, relu=False
        )
        component: Array = get_2d_projection(channels.reshape(a.shape).numpy())
        return component


def _tensors(activations: Array, grads: Array) -> tuple[Tensor, Tensor]:
    if activations.ndim not in (4, 5):
        raise ValueError(
            f"activations: got {activations.ndim} dimensions, expected (N, C, H, W) or "
            "(N, C, D, H, W); pass a reshape_transform"
        )
    return torch.from_numpy(activations), torch.from_numpy(grads)
