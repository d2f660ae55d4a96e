"""Loads the model that the options name, and reports its preprocessing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastcam import models
from fastcam.errors import UsageError
from fastcam.models import LoadedModel, detection


def load(
    name: str,
    weights: str,
    device: torch.device,
    *,
    classes: Path | None = None,
    processor: str | None = None,
    preprocess: str | None = None,
    size: int | None = None,
    crop: bool | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> LoadedModel:
    """Loads the model with the preprocessing and class names that the options describe.

    Args:
        name, weights, device, processor, preprocess: see :func:`fastcam.models.load`.
        classes: a file with class names.
        size: the side of the input, in pixels.
        crop: whether to cut out the centre; None to see as much as the network can (see
            :func:`fastcam.models.whole_picture`).
        mean, std: of the channels.

    Raises:
        UsageError, FastcamError: as :func:`fastcam.models.load`, and if the preprocessing is a
            function, which cannot be changed.
    """
    model = models.load(name, weights, device, processor=processor, preprocess=preprocess)
    seen = model.preprocessing
    if size is not None:
        seen = seen.sized(size)
    if crop is False:
        seen = seen.whole()
    if mean is not None or std is not None:
        seen = seen.scaled(mean, std)
    names = model.classes if classes is None else models.read_classes(classes)
    model = replace(model, preprocessing=seen, classes=names)
    return models.whole_picture(model) if crop is None else model


def load_detector(
    name: str,
    weights: str,
    device: torch.device,
    *,
    classes: Path | None = None,
    **preprocessing: Any,
) -> LoadedModel:
    """Loads the detector, with the class names that the option names.

    Args:
        name, weights, device: see :func:`fastcam.models.detection.load_detector`.
        classes: a file with class names.
        preprocessing: the other options of :func:`load`, which a detector does not take.

    Raises:
        UsageError, FastcamError: as the function named above, and for any of ``preprocessing``.
    """
    for option, value in preprocessing.items():
        if value is not None:
            raise UsageError(
                f"{option} {value}: a detector resizes and normalizes pictures itself; leave it out"
            )
    model = detection.load_detector(name, weights, device)
    return model if classes is None else replace(model, classes=models.read_classes(classes))


class Notes:
    """Says what preprocessing was used and which part of a picture the network sees.

    Args:
        model: the model.
        warn: is called with a line about values that are assumed.
        tell: is called with all other lines; None to leave them out.
    """

    def __init__(
        self,
        model: LoadedModel,
        warn: Callable[[str], object],
        tell: Callable[[str], object] | None,
    ) -> None:
        self._transform = model.preprocessing
        self._warn, self._tell = warn, tell or (lambda _: None)
        self._told = False

    def once(self, height: int, width: int) -> None:
        """Says, on the first call, what happens to a picture of this size, and why."""
        if self._told:
            return
        self._told = True
        steps = self._transform.steps(height, width)
        parts = [
            f"resized to {_size(steps['resize'])}",
            f"input {_size(steps['crop'])}",
            steps["interpolation"],
            *(f"{each} {' '.join(map(_number, steps[each]))}" for each in ("mean", "std")),
        ]
        line = f"{', '.join(filter(None, parts))} ({self._transform.origin})"
        if self._transform.assumed:
            self._warn(
                f"preprocessing assumed: {line}; if the network was trained with another one, "
                "give --preprocess, --processor or --size, --mean and --std"
            )
        else:
            self._tell(f"preprocessing: {line}")

    def seen(self, height: int, width: int) -> None:
        """Says if the network sees only a part of a picture of this size."""
        seen = self._transform.region(height, width).within(height, width)
        share = seen.height * seen.width / (height * width)
        if share < 0.995:
            self._tell(
                f"  the network sees {share:.0%} of the picture: columns {seen.left} to "
                f"{seen.right} of {width}, rows {seen.top} to {seen.bottom} of {height}"
            )


def _size(size: list[int]) -> str:
    return f"{size[1]}x{size[0]}"


def _number(value: Any) -> str:
    return "unknown" if value is None else f"{value:g}"
