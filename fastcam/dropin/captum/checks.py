"""Why a call needs captum's own code."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastcam.engine.running import is_compiled, unwrap
from fastcam.engine.start import has_hooks


def why_whole(forward: Any) -> str:
    """Why captum has to run the forward function itself, or "" if fastcam can."""
    if torch.is_inference_mode_enabled():
        return "inference mode"
    if not isinstance(forward, nn.Module):
        return ""
    if unwrap(forward) is not forward or any(map(is_compiled, forward.modules())):
        return "the model is compiled or parallel"
    return ""


def is_training(part: Any) -> bool:
    return isinstance(part, nn.Module) and any(module.training for module in part.modules())


def has_hooks_of(part: Any) -> bool:
    return isinstance(part, nn.Module) and has_hooks(part)


def has_own_forward(module: nn.ReLU) -> bool:
    return type(module).forward is not nn.ReLU.forward or "forward" in vars(module)
