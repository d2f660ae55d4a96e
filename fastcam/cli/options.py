"""Checks options before the first picture is read and before anything is written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from fastcam.errors import ArgumentError, FastcamError, UsageError, near
from fastcam.explainer import TOP_CLASS, Explainer
from fastcam.methods import METHODS
from fastcam.targets import TopClasses

BOXES, AUTO = "boxes", "auto"  # a target; a method or a layer
_BLANK = 256  # side of a picture, in pixels; the preprocessing makes it what the network takes


def check(
    target: str,
    method: str,
    threshold: float | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> bool:
    """Raises UsageError if an option is wrong for any model.

    Returns:
        Whether the target is a detector's boxes.
    """
    detects = target == BOXES
    if threshold is not None and not detects:
        raise UsageError(f"threshold {threshold}: only boxes have one; add --target boxes")
    if method != AUTO and method not in METHODS:
        hint = near(method, METHODS) or f"; choose from {', '.join(METHODS)}"
        raise UsageError(f"unknown method {method}{hint}")
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and not all(map(math.isfinite, values)):
            raise UsageError(f"{name} {_shown(values)}: expected three finite numbers")
    if std is not None and min(std) <= 0:
        raise UsageError(f"std {_shown(std)}: expected three numbers above 0")
    return detects


def boxes_or_top_class(target: str) -> bool:
    """Whether the target is a detector's boxes; raises UsageError if it is a class but the top."""
    if target not in (BOXES, TOP_CLASS):
        raise UsageError(f"target {target}: expected {TOP_CLASS}, or {BOXES} for a detector")
    return target == BOXES


def layers(names: Sequence[str], norm: str = "frame") -> str | Sequence[str]:
    """The layers as :class:`fastcam.explainer.Explainer` takes them.

    Args:
        names: those that the option named.
        norm: how a clip's maps are normalized.

    Raises:
        UsageError: if "auto" is one of several, or the norm does not fit several.
    """
    if len(names) == 1:
        return names[0]
    if AUTO in names:
        raise UsageError("layer auto: it stands for one layer; leave it out, or name each layer")
    if norm != "frame":
        raise UsageError(
            f"norm {norm}: the maps of {len(names)} layers are normalized in each frame; add "
            "--norm frame"
        )
    return names


def usual(method: str) -> str:
    """The method for classes: Grad-CAM++ if none is named."""
    return "gradcam++" if method == AUTO else method


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
