"""The network for many runs on changed images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fastcam.dropin.settings import settings
from fastcam.engine.fast.model import FastCopies, folded

_fast_copies = FastCopies()


def for_many_runs(owner: Any, model: nn.Module, one: Tensor) -> Callable[[Tensor], Any]:
    """A copy with BatchNorm folded, or in the fast mode the fast copy of ``owner``.

    Args:
        one: one image.
    """
    if not settings.fast:
        return folded(model, one)
    fast = _fast_copies.of(owner, model, one)
    return lambda images: fast.model(fast.prepared(images))
