"""Shapley-CAM: Grad-CAM with a second derivative."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fastcam.compat.pytorch_grad_cam.base_cam import BaseCAM, by_kernel


@by_kernel
class ShapleyCAM(BaseCAM):
    """w_k = mean(g - H A / 2), H the Hessian of S by A; Cai 2025, arXiv 2501.06261."""

    def __init__(
        self,
        model: nn.Module,
        target_layers: list[nn.Module],
        reshape_transform: Callable[[Any], Tensor] | None = None,
    ) -> None:
        super().__init__(
            model, target_layers, reshape_transform, compute_input_gradient=True, detach=False
        )
