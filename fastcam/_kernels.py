"""Loads the compiled operators and says which code serves which device."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fastcam import reference


def operator(name: str, tensor: Tensor) -> Callable[..., Tensor]:
    """The implementation of an operator for the device that ``tensor`` is on."""
    return getattr(reference, name)
