"""Converts a layer's output to activations (N, C, H, W)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def fasterrcnn_reshape_transform(x: Mapping[str, Tensor]) -> Tensor:
    """The magnitudes of a feature pyramid's levels, resized to "pool", concatenated."""
    size = x["pool"].shape[-2:]
    return torch.cat([F.interpolate(level.abs(), size, mode="bilinear") for level in x.values()], 1)


def swinT_reshape_transform(tensor: Tensor, height: int = 7, width: int = 7) -> Tensor:
    """(N, height width, C) to (N, C, height, width)."""
    return tensor.reshape(len(tensor), height, width, tensor.shape[2]).permute(0, 3, 1, 2)


def vit_reshape_transform(tensor: Tensor, height: int = 14, width: int = 14) -> Tensor:
    """(N, 1 + height width, C), the class token first, to (N, C, height, width)."""
    patches = tensor[:, 1:, :]
    return patches.reshape(len(tensor), height, width, tensor.shape[2]).permute(0, 3, 1, 2)
