"""Shapley-CAM: Grad-CAM with a second derivative."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fastcam import ops
from fastcam.compat.pytorch_grad_cam.base_cam import BaseCAM
from fastcam.compat.pytorch_grad_cam.run import Run, TargetFunctions, keep, maps_by


def _maps(cam: Any, run: Run, targets: TargetFunctions) -> list[Tensor]:
    """One map a layer."""
    products = run.hessian_products(targets)
    keep(cam, run.activations, [])  # a run with hooks keeps those of both derivatives
    maps = []
    for a, (gradient, product) in zip(run.handed_on, products, strict=True):
        weights = ops.gap(gradient) - ops.gap(product) / 2
        maps.append(ops.weighted_sum(run.reshape(a.detach()), weights))
    return maps


@maps_by(_maps)
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
