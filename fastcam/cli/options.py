"""Checks options before the first picture is read and before anything is written."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from fastcam.errors import ArgumentError, FastcamError, UsageError, near
from fastcam.explainer import Explainer
from fastcam.methods import METHODS
from fastcam.pictures import render
from fastcam.targets import TopClasses

_BLANK = 256  # side of a picture, in pixels; the preprocessing makes it what the network takes


def check(
    method: str,
    colormap: str,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> None:
    """Raises UsageError if an option is wrong for any model."""
    if method not in METHODS:
        hint = near(method, METHODS) or f"; choose from {', '.join(METHODS)}"
        raise UsageError(f"unknown method {method}{hint}")
    render.check_colormap(colormap)
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and not all(map(math.isfinite, values)):
            raise UsageError(f"{name} {_shown(values)}: expected three finite numbers")
    if std is not None and min(std) <= 0:
        raise UsageError(f"std {_shown(std)}: expected three numbers above 0")


def files(weights: str, classes: Path | None) -> list[Path]:
    """The files that options name."""
    return [Path(weights), *([] if classes is None else [classes])]


def targets(explainer: Explainer, target: str, top_k: int | None = None) -> TopClasses:
    """The classes to explain, after a forward on a blank picture that tells how many there are.

    Args:
        explainer: the model, method and layer.
        target: see :meth:`fastcam.explainer.Explainer.targets`.
        top_k: the number of classes; None for three, or all if there are fewer.

    Raises:
        UsageError: if the network has no such class or fewer than ``top_k``.
    """
    model = explainer.model
    chosen = explainer.targets(target, 3 if top_k is None else top_k)
    blank = torch.zeros(1, _BLANK, _BLANK, 3, dtype=torch.uint8)
    try:
        images = model.preprocessing(blank)
        if model.clip_length is not None:
            images = images.unsqueeze(2).expand(-1, -1, model.clip_length, -1, -1)
        probabilities = explainer.probabilities(images)
        chosen.ids(probabilities)
    except ArgumentError as error:
        raise UsageError(error.problem) from None
    except UsageError:
        raise
    except FastcamError:  # it may take pictures of another size, or fail on each of them
        return chosen
    count = probabilities.shape[1]
    if top_k is not None and top_k > count:
        raise UsageError(f"top-k {top_k}: the network has {count} classes")
    return chosen


def _shown(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)
