"""What goes into a network."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastcam.engine.values import items, rebuild

Inputs = Any  # a tensor, or a tuple (positional) or mapping (by keyword) of what the model takes


def images_of(inputs: Inputs) -> Tensor | None:
    """The first tensor with positions that goes into the model."""
    return next((value for value in items(inputs) if value.dim() > 2), None)


def first_image(inputs: Inputs) -> Inputs:
    """The first of the images, and what belongs to it."""
    images = images_of(inputs)
    if images is None:
        return inputs
    count = images.shape[0]
    return rebuild(inputs, lambda t: (t[:1] if t.dim() and t.shape[0] == count else t).clone())
