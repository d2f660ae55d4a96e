"""Class activation maps for PyTorch at the price of inference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastcam.methods import (
    CAM,
    METHODS,
    Explanation,
    GradCAM,
    GradCAMElementWise,
    GradCAMPlusPlus,
    GuidedBackprop,
    GuidedGradCAM,
    HiResCAM,
    LayerCAM,
    XGradCAM,
    explain,
)

if TYPE_CHECKING:
    from fastcam.render import overlay

__all__ = [
    "CAM",
    "METHODS",
    "Explanation",
    "GradCAM",
    "GradCAMElementWise",
    "GradCAMPlusPlus",
    "GuidedBackprop",
    "GuidedGradCAM",
    "HiResCAM",
    "LayerCAM",
    "XGradCAM",
    "explain",
    "overlay",
]


def __getattr__(name: str) -> Any:
    if name == "overlay":  # its module needs more than torch and numpy
        from fastcam.render import overlay

        return overlay
    raise AttributeError(f"module 'fastcam' has no attribute '{name}'")
