"""Models for `--model tiny_models:FUNCTION` whose maps are known by looking at the picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastcam.models import LoadedModel, Preprocessing

STRIDE = 8
COLORS = ("red", "green", "blue")


class Colors(nn.Module):
    """How much red, green and blue there is: the map of a class is that channel, shrunk."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.AvgPool2d(STRIDE)
        self.scale = nn.Parameter(torch.tensor(5.0))

    def forward(self, images: Tensor) -> Tensor:
        return self.scale * self.features(images).mean((2, 3))


def colors() -> LoadedModel:
    """Sees the centre of a picture, as most classifiers do: a third is cut off."""
    seen = Preprocessing(resize=(144, 144), crop=(96, 96), mean=(0, 0, 0), std=(1, 1, 1))
    return LoadedModel(Colors(), seen, COLORS)


class Motion(nn.Module):
    """How much of each colour there is in a clip (N, 3, T, H, W): a map of T / 2 times."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.AvgPool3d((2, STRIDE, STRIDE))
        self.scale = nn.Parameter(torch.tensor(5.0))

    def forward(self, clips: Tensor) -> Tensor:
        return self.scale * self.features(clips).mean((2, 3, 4))


def motion() -> LoadedModel:
    """Takes clips of 8 frames, as they are."""
    as_it_is = Preprocessing(resize=None, crop=None, mean=(0, 0, 0), std=(1, 1, 1))
    return LoadedModel(Motion(), as_it_is, COLORS, clip_length=8)


def module() -> nn.Module:
    """Nothing but a module, for pictures of the usual size."""
    return Colors()


def left_half(picture: Any) -> Tensor:
    """The left half of a PIL picture, as (3, h, w) in [0, 1]."""
    pixels = torch.from_numpy(np.array(picture)).movedim(-1, 0)
    return pixels[..., : pixels.shape[2] // 2] / 255


def number() -> int:
    return 3


def unsure() -> LoadedModel:
    """Its logits are NaN."""
    model = colors()
    model.module.scale.data.fill_(torch.nan)
    return model


def broken() -> nn.Module:
    raise KeyError("layers\nand more")


def grey() -> nn.Module:
    """Takes one channel."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
