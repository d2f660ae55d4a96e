"""Models and preprocessing from a user's code, "package.module:function"."""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import replace
from typing import Any

from torch import nn

from fastcam.errors import FastcamError, UsageError, first_line, near
from fastcam.models.loaded import LoadedModel
from fastcam.models.measured import MeasuredTransform
from fastcam.models.preprocessing import Preprocessing, Transform


def model_of(name: str, weights: str) -> LoadedModel:
    """What the function ``name`` returns, as a LoadedModel."""
    if weights == "none":
        raise UsageError(
            f"model {name}: weights none is not supported for a function, which sets its own"
        )
    function = _imported("model", name)
    try:
        made = function()
    except Exception as error:  # user code may raise anything
        raise FastcamError(f"model {name}: {_of_kind(error)}") from error
    if isinstance(made, nn.Module):
        return LoadedModel(made)
    if not isinstance(made, LoadedModel):
        raise UsageError(
            f"model {name}: the function returned {type(made).__name__}, expected a torch.nn.Module"
        )
    preprocessing = made.preprocessing
    if isinstance(preprocessing, Preprocessing) and not preprocessing.assumed:
        return replace(made, preprocessing=replace(preprocessing, origin=name))
    return made


def transform_of(name: str) -> Transform:
    """The preprocessing ``name``: a Preprocessing, or a function of a picture, to be measured."""
    function = _imported("preprocess", name)
    if isinstance(function, Preprocessing):
        return replace(function, origin=name)
    return MeasuredTransform(function, name)


def _imported(option: str, name: str) -> Any:
    path, _, attribute = name.partition(":")
    if not path or not attribute:
        raise UsageError(f"{option} {name}: expected package.module:function")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(path)
    except Exception as error:
        raise UsageError(f"{option} {name}: {_of_kind(error)}") from error
    function: Any = getattr(module, attribute, None)
    if function is None:
        hint = near(attribute, dir(module))
        raise UsageError(f"{option} {name}: {path} has no {attribute}{hint}")
    if not callable(function):
        raise UsageError(f"{option} {name}: expected a function, got {type(function).__name__}")
    return function


def _of_kind(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
