"""Loads detectors by name with their weights and class names."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastcam.errors import FastcamError, UsageError, near
from fastcam.models import functions
from fastcam.models.loaded import LoadedModel
from fastcam.models.weights import build, fill, read_state

DIGITS_DETECTOR = "digits-detector"
_USUAL = 91  # classes of COCO, with the background


def load_detector(
    name: str, weights: str = "DEFAULT", device: torch.device | str = "cpu"
) -> LoadedModel:
    """Loads a detector with its weights, in evaluation mode.

    Args:
        name: "digits-detector" (included), the name of a torchvision detector, or
            "package.module:function" for a function that returns one, or one in a LoadedModel.
        weights: as for :func:`fastcam.models.load`.
        device: the device to put the detector on.

    Returns:
        A module that takes a list of pictures (3, H, W) in [0, 1], and its class names. It resizes
        and normalizes pictures itself.

    Raises:
        UsageError: if the name is unknown, or "none" is given for a function.
        FastcamError: if the weights cannot be read or downloaded, or do not fit the detector.
    """
    state = None if weights in ("DEFAULT", "none") else read_state(Path(weights))
    made_by_user = ":" in name
    model = (
        functions.model_of(name, weights) if made_by_user else _torchvision(name, weights, state)
    )
    if state is not None:
        fill(model.module, state, f"{weights} does not fit {name}")
    model.module.eval().to(device)
    return model


def names() -> list[str]:
    """The names of the detectors that can be loaded; needs torchvision."""
    from torchvision import models

    return [DIGITS_DETECTOR, *models.list_models(module=models.detection)]


def _torchvision(name: str, weights: str, state: dict[str, Tensor] | None) -> LoadedModel:
    try:
        from torchvision import models
    except ImportError:
        raise FastcamError(f"model {name} requires torchvision: pip install torchvision") from None

    if name == DIGITS_DETECTOR:
        from fastcam import demo
        from fastcam.demo.detector import detector

        module = demo.digits_detector() if weights == "DEFAULT" else detector()
        return LoadedModel(module, classes=demo.DIGITS_CLASSES, multilabel=True)
    known = names()
    if name not in known:
        hint = near(name, known) or f"; choose from {', '.join(known)}"
        raise UsageError(f"model {name} is not a detector, which target boxes needs{hint}")
    default: Any = models.get_model_weights(name)["DEFAULT"]
    create = partial(
        models.get_model,
        name,
        weights=default if weights == "DEFAULT" else None,
        weights_backbone=None,
    )
    module, is_usual = build(name, create, state, usual=_USUAL)
    classes = tuple(default.meta["categories"]) if is_usual else ()
    return LoadedModel(module, classes=classes, multilabel=True)
