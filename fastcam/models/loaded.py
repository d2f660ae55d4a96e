"""A network with its preprocessing and class names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastcam.errors import ArgumentError, UsageError, near
from fastcam.models.preprocessing import ASSUMED, Transform
from fastcam.pictures import Picture
from fastcam.targets import shares

_FEW = 20  # classes, which are listed if none of them is meant


@dataclass(frozen=True)
class LoadedModel:
    """A network in evaluation mode with its preprocessing and class names.

    Attributes:
        module: (N, 3, h, w) -> logits (N, classes).
        preprocessing: converts pictures to the module's input: a
            :class:`fastcam.models.Preprocessing` or a :class:`fastcam.models.MeasuredTransform`.
        classes: the names by class id; empty if unknown.
        multilabel: whether classes are independent (sigmoid) or exclusive (softmax).
        clip_length: T if the network takes clips, (N, 3, T, h, w); None if it takes pictures.

    Raises:
        UsageError: if the preprocessing is neither of the two.
    """

    module: nn.Module
    preprocessing: Transform = ASSUMED
    classes: tuple[str, ...] = ()
    multilabel: bool = False
    clip_length: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.preprocessing, Transform):
            came = type(self.preprocessing).__name__
            raise UsageError(
                f"preprocessing: got {came}, expected Preprocessing(...), or "
                "MeasuredTransform(function) for a function of a picture"
            )

    @property
    def device(self) -> torch.device:
        """The device of the module's parameters; the CPU if it has none."""
        return next((each.device for each in self.module.parameters()), torch.device("cpu"))

    def inputs_of(self, pictures: Sequence[Picture]) -> Tensor:
        """Preprocesses pictures (H, W, 3), each of any size: (N, 3, h, w) on the module's device.

        Raises:
            ValueError: if the inputs differ in size, or the module takes clips.
        """
        if self.clip_length is not None:
            raise ArgumentError(
                "images",
                f"got pictures, but the network takes clips of {self.clip_length} frames; pass a "
                "tensor (N, 3, T, H, W)",
            )
        inputs = [self.preprocessing(torch.from_numpy(each)[None]) for each in pictures]
        for picture, image in zip(pictures, inputs, strict=True):
            if image.shape != inputs[0].shape:
                raise ArgumentError(
                    "images",
                    f"pictures of {_extents(pictures[0].shape)} and {_extents(picture.shape)} "
                    f"pixels become inputs of {_extents(inputs[0].shape[2:])} and "
                    f"{_extents(image.shape[2:])} pixels; explain them one at a time",
                )
        return torch.cat(inputs).to(self.device)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits (N, classes) -> probabilities (N, classes).

        For logits (N, classes, *S) the share of the positions at which each class is on top.
        """
        if logits.dim() > 2:
            return shares(logits)
        if self.multilabel or logits.shape[1] == 1:
            return logits.sigmoid()
        return logits.softmax(1)

    def class_name(self, class_id: int) -> str:
        return self.classes[class_id] if self.classes else f"class {class_id}"

    def class_id(self, text: str) -> int:
        """The class id for a number or a class name.

        Raises:
            UsageError: if the number is out of range, or the name is unknown or ambiguous.
        """
        if text.isdecimal() and len(text) < 19:  # no class id has more digits
            if self.classes and int(text) >= len(self.classes):
                ids = f"the ids are 0 to {len(self.classes) - 1}"
                raise UsageError(f"class {text} is out of range: {ids}")
            return int(text)
        names = [name.casefold() for name in self.classes]
        found = [index for index, name in enumerate(names) if name == text.casefold()]
        if len(found) > 1:
            raise UsageError(f"class {text} is ambiguous: give one of the ids {found}")
        if not found:
            hint = near(text, self.classes)
            if not names:
                hint = ": the model has no class names, give an id"
            elif not hint and len(names) <= _FEW:
                hint = f"; choose from {', '.join(self.classes)}"
            raise UsageError(f"unknown class {text}{hint}")
        return found[0]


def _extents(shape: Sequence[int]) -> str:
    return f"{shape[1]}x{shape[0]}"
