"""Enlarging of attributions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastcam import ops
from fastcam.dropin.calls import counted
from fastcam.dropin.takeover import Replacement


def interpolate(present: Replacement) -> Replacement:
    def interpolate(
        layer_attribution: Any, interpolate_dims: Any, interpolate_mode: str = "nearest"
    ) -> Tensor:
        with counted("captum.LayerAttribution.interpolate") as call:
            a = layer_attribution
            dims = {"linear": 1, "bilinear": 2, "trilinear": 3}.get(interpolate_mode)
            size = interpolate_dims
            size = (size,) * (dims or 0) if isinstance(size, int) else size
            if (
                dims is None
                or not isinstance(a, Tensor)
                or a.dtype not in (torch.float32, torch.float64)
                or a.dim() != dims + 2
                or a.numel() == 0
                or a.requires_grad
                or not isinstance(size, (tuple, list, torch.Size))
                or len(size) != dims
                or not all(isinstance(extent, int) and extent > 0 for extent in size)
            ):
                call.leave_to("captum", f"mode {interpolate_mode}, or an attribution with a graph")
                return present(layer_attribution, interpolate_dims, interpolate_mode)
            call.why = call.why or "enlarged by the kernels"
            return ops.upsample(a, size, normalize=False)

    return interpolate
