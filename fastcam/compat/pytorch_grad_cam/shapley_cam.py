"""Shapley-CAM: Grad-CAM with second derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastcam import ops
from fastcam.compat.pytorch_grad_cam.base_cam import BaseCAM, by_kernel
from fastcam.dropin.pytorch_grad_cam.run import Array


@by_kernel
class ShapleyCAM(BaseCAM):
    """w_k = mean(g - H A / 2), H the Hessian of S with respect to A; Cai 2025, arXiv 2501.06261."""

    def __init__(
        self,
        model: nn.Module,
        target_layers: list[nn.Module],
        reshape_transform: Callable[[Any], Tensor] | None = None,
    ) -> None:
        super().__init__(
            model, target_layers, reshape_transform, compute_input_gradient=True, detach=False
        )

    def get_cam_weights(
        self,
        input_tensor: Any,
        target_layer: Any,
        target_category: Any,
        activations: Tensor,
        grads: Tensor,
    ) -> Array:
        """(N, C); takes activations and gradients with their graphs, before reshape_transform."""
        (product,) = torch.autograd.grad(
            grads, activations, activations, allow_unused=True, materialize_grads=True
        )
        reshape = self.reshape_transform or nn.Identity()
        return ops.gap(reshape((grads - product / 2).detach())).cpu().numpy()
