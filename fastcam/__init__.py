"""Class activation maps for PyTorch at the price of inference."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastcam.factorization import Factorization, deep_feature_factorization
    from fastcam.methods import (
        CAM,
        FEM,
        ISCAM,
        KPCACAM,
        METHODS,
        SESS,
        SSCAM,
        AblationCAM,
        Deconvnet,
        EigenCAM,
        EigenGradCAM,
        Explanation,
        FinerCAM,
        FullGrad,
        GradCAM,
        GradCAMElementWise,
        GradCAMPlusPlus,
        GuidedBackprop,
        GuidedGradCAM,
        HiResCAM,
        LayerCAM,
        LeGrad,
        RandomCAM,
        RefineCAM,
        ScoreCAM,
        SegEigenCAM,
        ShapleyCAM,
        SmoothGradCAMPlusPlus,
        XGradCAM,
        explain,
    )
    from fastcam.render import overlay
    from fastcam.targets import TopClasses

__all__ = [
    "CAM",
    "FEM",
    "ISCAM",
    "KPCACAM",
    "METHODS",
    "SESS",
    "SSCAM",
    "AblationCAM",
    "Deconvnet",
    "EigenCAM",
    "EigenGradCAM",
    "Explanation",
    "Factorization",
    "FinerCAM",
    "FullGrad",
    "GradCAM",
    "GradCAMElementWise",
    "GradCAMPlusPlus",
    "GuidedBackprop",
    "GuidedGradCAM",
    "HiResCAM",
    "LayerCAM",
    "LeGrad",
    "RandomCAM",
    "RefineCAM",
    "ScoreCAM",
    "SegEigenCAM",
    "ShapleyCAM",
    "SmoothGradCAMPlusPlus",
    "TopClasses",
    "XGradCAM",
    "deep_feature_factorization",
    "explain",
    "overlay",
]

_ELSEWHERE = {
    "Factorization": "fastcam.factorization",
    "TopClasses": "fastcam.targets",
    "deep_feature_factorization": "fastcam.factorization",
    "overlay": "fastcam.render",
}
_MODULES = ("demo", "metrics", "models", "ops", "pictures", "reference", "render", "video")


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
