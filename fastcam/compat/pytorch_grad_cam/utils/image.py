"""Converts images and overlays maps, with the results of pytorch-grad-cam."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastcam.dropin.pytorch_grad_cam.image import (
    deprocess_image,
    scale_accross_batch_and_channels,
    scale_cam_image,
    show_cam_on_image,
    show_factorization_on_image,
)

__all__ = [
    "create_labels_legend",
    "deprocess_image",
    "preprocess_image",
    "scale_accross_batch_and_channels",
    "scale_cam_image",
    "show_cam_on_image",
    "show_factorization_on_image",
]

Array = NDArray[Any]


def preprocess_image(
    img: Any, mean: Sequence[float] = (0.5, 0.5, 0.5), std: Sequence[float] = (0.5, 0.5, 0.5)
) -> Tensor:
    """(H, W, C), uint8 or floating point, to a normalized (1, C, H, W); divides uint8 by 255."""
    values: Array = np.array(img, copy=True)
    values = values[:, :, None] if values.ndim == 2 else values
    pixels = torch.from_numpy(values).permute(2, 0, 1).contiguous()
    if pixels.dtype == torch.uint8:
        pixels = pixels.to(torch.get_default_dtype()).div_(255)
    if not pixels.is_floating_point():
        raise TypeError(f"img: got dtype {values.dtype}, expected uint8 or floating point")
    center, scale = (torch.as_tensor(x, dtype=pixels.dtype).view(-1, 1, 1) for x in (mean, std))
    if (scale == 0).any():
        raise ValueError(f"std: got {tuple(std)}, expected nonzero values in {pixels.dtype}")
    return pixels.sub_(center).div_(scale).unsqueeze(0)


def create_labels_legend(
    concept_scores: Array, labels: Mapping[int, str], top_k: int = 2
) -> list[str]:
    """One label per concept: its ``top_k`` classes, up to three synonyms each, and scores."""
    best = np.argsort(concept_scores, axis=1)[:, ::-1][:, :top_k]
    return [
        "\n".join(f"{','.join(labels[c].split(',')[:3])}:{scores[c]:.2f}" for c in categories)
        for scores, categories in zip(concept_scores, best, strict=True)
    ]
