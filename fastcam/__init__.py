"""Class activation maps for PyTorch at the price of inference."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from fastcam.render import overlay
    from fastcam.targets import TopClasses

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
    "TopClasses",
    "XGradCAM",
    "explain",
    "overlay",
]

_ELSEWHERE = {"TopClasses": "fastcam.targets", "overlay": "fastcam.render"}
_MODULES = ("demo", "models", "ops", "pictures", "reference", "render", "video")


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used: `fastcam --help` need not wait for torch."""
    if name in _MODULES:
        return importlib.import_module(f"fastcam.{name}")
    if name not in __all__:
        raise AttributeError(f"module 'fastcam' has no attribute '{name}'")
    module = importlib.import_module(_ELSEWHERE.get(name, "fastcam.methods"))
    globals()[name] = getattr(module, name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
