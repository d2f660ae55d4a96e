"""Fast class activation maps for PyTorch."""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastcam.dataset import MapDataset as MapDataset
    from fastcam.engine.listing import ListedLayer as ListedLayer
    from fastcam.engine.listing import list_layers as list_layers
    from fastcam.explainer import Explainer as Explainer
    from fastcam.explainer import Explanation as Explanation
    from fastcam.explainer import explain as explain
    from fastcam.methods import *  # noqa: F403
    from fastcam.methods.factorization import (
        Factorization as Factorization,
    )
    from fastcam.methods.factorization import (
        deep_feature_factorization as deep_feature_factorization,
    )
    from fastcam.pictures.render import overlay as overlay
    from fastcam.targets import TopClasses as TopClasses

    __version__: str

_OTHERS = {
    "Explainer": "fastcam.explainer",
    "Explanation": "fastcam.explainer",
    "MapDataset": "fastcam.dataset",
    "Factorization": "fastcam.methods.factorization",
    "ListedLayer": "fastcam.engine.listing",
    "TopClasses": "fastcam.targets",
    "deep_feature_factorization": "fastcam.methods.factorization",
    "explain": "fastcam.explainer",
    "list_layers": "fastcam.engine.listing",
    "overlay": "fastcam.pictures.render",
}
"""The module of each public name that is not a method."""
_MODULES = {
    **{
        name: f"fastcam.{name}"
        for name in (
            "compat",
            "dataset",
            "demo",
            "dropin",
            "explainer",
            "metrics",
            "models",
            "ops",
            "pictures",
            "reference",
            "targets",
            "video",
        )
    },
    "render": "fastcam.pictures.render",
}


def __getattr__(name: str) -> Any:
    """Imports a public name on first use, so that ``fastcam --help`` does not import torch."""
    if name == "__version__":
        value: Any = _version()
    elif name in _MODULES:
        value = importlib.import_module(_MODULES[name])
    elif name in _OTHERS:
        value = getattr(importlib.import_module(_OTHERS[name]), name)
    elif name.startswith("__") and name != "__all__":
        raise AttributeError(f"module 'fastcam' has no attribute '{name}'")
    else:
        methods = importlib.import_module("fastcam.methods")
        if name == "__all__":
            value = sorted([*methods.__all__, *_OTHERS])
        elif name in methods.__all__:
            value = getattr(methods, name)
        else:
            raise AttributeError(f"module 'fastcam' has no attribute '{name}'")
    globals()[name] = value
    return value


def _version() -> str:
    try:
        return importlib.metadata.version("fastcam")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__"), *_MODULES, "__version__"})
