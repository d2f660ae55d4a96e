"""torchcam's modules and constants, shared by the modules of this package."""

from __future__ import annotations

from typing import Any

import torch

from fastcam.dropin.known import Guard

EPS = 1e-8
"""torchcam's eps, in denominators and ranges."""
EXACT = (torch.float32, torch.float64)


class Peer:
    """torchcam's modules, after the takeover."""

    active = False
    core: Any
    activation: Any
    gradient: Any
    run: Guard | None = None
    """Watches the modules whose code a recorded run replaces."""

    @classmethod
    def leave(cls) -> None:
        cls.active = False


def is_own(extractor: type) -> bool:
    """Whether a class is one of torchcam's own."""
    return extractor.__module__.partition(".")[0] == "torchcam"
