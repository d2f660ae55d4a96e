"""Fuses the maps of several layers, enlarged by the kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastcam import ops
from fastcam.dropin.calls import counted
from fastcam.dropin.settings import settings
from fastcam.dropin.takeover import Replacement
from fastcam.dropin.torchcam.peer import EPS, EXACT


def fuse_cams(present: Replacement) -> Replacement:
    """The maximum of the enlarged maps at every position."""

    def fuse(cams: list[Tensor], target_shape: Any) -> Tensor:
        with counted("torchcam.fuse_cams") as call:
            if not _can_enlarge(cams, target_shape, (2, 3)):
                call.leave_to("torchcam", "maps with a graph, or of an unsupported type or size")
                return present(cams, target_shape)
            call.why = call.why or "enlarged by the kernels"
            fused = _enlarged(cams[0], target_shape)
            for cam in cams[1:]:
                fused = torch.maximum(fused, _enlarged(cam, target_shape))
            return fused

    return fuse


def refine(present: Replacement) -> Replacement:
    """The product of the normalized and enlarged maps."""

    @torch.no_grad()
    def refine(cams: Any, target_shape: Any = None, normalized: bool = True) -> Tensor:
        with counted("torchcam.RefineCAM.fuse_cams") as call:
            shape = target_shape
            if not shape and isinstance(cams, list) and all(isinstance(c, Tensor) for c in cams):
                shape = tuple(map(max, zip(*(c.shape[1:] for c in cams), strict=False)))
            exact = isinstance(cams, list) and all(
                isinstance(c, Tensor) and c.dtype in EXACT for c in cams
            )
            if not exact or not _can_enlarge(cams, shape, (2, 3)):
                call.leave_to("torchcam", "maps of an unsupported type or size")
                return present(cams, target_shape, normalized)
            call.why = call.why or "enlarged by the kernels"
            dims = len(shape)
            product = _enlarged(ops.normalize(cams[0], dims, EPS), shape)
            for cam in cams[1:]:
                product = product.mul_(_enlarged(ops.normalize(cam, dims, EPS), shape))
            return ops.normalize(product, dims, EPS) if normalized else product

    return refine


def _can_enlarge(cams: Sequence[Tensor], shape: Any, dims: tuple[int, ...]) -> bool:
    """Whether torchcam does linear interpolation and nothing else."""
    dims = (1, *dims) if settings.fix else dims  # torchcam fails on one dimension
    return (
        len(cams) > 0
        and isinstance(shape, (tuple, torch.Size))
        and len(shape) in dims
        and all(isinstance(extent, int) and extent > 0 for extent in shape)
        and all(
            cam.is_floating_point()
            and cam.dim() == len(shape) + 1
            and cam.numel() > 0
            and not (cam.requires_grad and torch.is_grad_enabled())
            and cam.dtype == cams[0].dtype
            for cam in cams
        )
    )


def _enlarged(maps: Tensor, shape: Sequence[int]) -> Tensor:
    if tuple(maps.shape[-len(shape) :]) == tuple(shape):
        return maps
    return ops.upsample(maps.detach(), shape, normalize=False).to(maps.dtype)
