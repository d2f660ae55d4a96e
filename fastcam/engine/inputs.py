"""The inputs of a network: its arguments, and the images among them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from fastcam.engine.values import rebuild, tensors_of
from fastcam.errors import ArgumentError

Inputs = Any
"""A tensor, a tuple (positional arguments), a list (one argument) or a mapping (by keyword)."""
Argument = int | str
"""The position or keyword of an argument; the index in a list if that is the only argument."""


def images_of(inputs: Inputs, picture: int = 0) -> Tensor | None:
    """The input tensor with positions; if there are several, the one with this number.

    A list of pictures (C, H, W), as detectors take it, is stacked to (N, C, H, W).

    Raises:
        ValueError: for a list of pictures of several sizes.
    """
    found = _pictures(inputs)
    if picture >= len(found):
        return None
    name, tensor = found[picture]
    return _stacked(arguments(inputs)[name]) if tensor is None else tensor


def with_images(inputs: Inputs, images: Tensor, picture: int = 0) -> Inputs:
    """The inputs with :func:`images_of` replaced."""
    found = _pictures(inputs)
    if picture >= len(found):
        return inputs
    name, tensor = found[picture]
    if tensor is None:
        return _with_arguments(inputs, {**arguments(inputs), name: list(images.unbind(0))})
    return rebuild(inputs, lambda each: images if each is tensor else each)


def count_of(inputs: Inputs) -> int:
    """The number of input tensors with positions."""
    return len(_pictures(inputs))


def number_of(inputs: Inputs, tensor: Tensor) -> int | None:
    """The number of a tensor among those with positions, for :func:`images_of`."""
    found = [each for _, each in _pictures(inputs)]
    return next((number for number, each in enumerate(found) if each is tensor), None)


def _pictures(inputs: Inputs) -> list[tuple[Argument, Tensor | None]]:
    """The tensors with positions, each once, by argument; None for a list of pictures."""
    found: list[tuple[Argument, Tensor | None]] = []
    for name, value in arguments(inputs).items():
        if are_pictures(value):
            found.append((name, None))
            continue
        for tensor in tensors_of(value):
            if tensor.dim() > 2 and all(tensor is not each for _, each in found):
                found.append((name, tensor))
    return found


def rows_of(inputs: Inputs) -> int | None:
    """N, the number of rows of the images; without images, of the first tensor with rows."""
    images = images_of(inputs)
    if images is None:
        images = next((tensor for tensor in tensors_of(inputs) if tensor.dim()), None)
    return None if images is None else images.shape[0]


def arguments(inputs: Inputs) -> dict[Argument, Any]:
    """The arguments, by name."""
    if isinstance(inputs, Mapping):
        return dict(inputs)
    if isinstance(inputs, tuple) or (isinstance(inputs, list) and not are_pictures(inputs)):
        return dict(enumerate(inputs))
    return {0: inputs}


def image_argument(inputs: Inputs) -> Argument | None:
    """The argument that holds the images; without images, the first one with rows."""
    values = arguments(inputs)
    for least in (3, 1):
        for name, value in values.items():
            if any(tensor.dim() >= least for tensor in tensors_of(value)):
                return name
    return None


def has_rows(value: Any, count: int) -> bool:
    """Whether a tensor in an argument has ``count`` rows."""
    return any(tensor.dim() and tensor.shape[0] == count for tensor in tensors_of(value))


def select_rows(
    inputs: Inputs, per_image: Collection[Argument], count: int, rows: Tensor
) -> Inputs:
    """Copies rows (R,) of those arguments' tensors that have ``count`` rows; others are kept.

    If one tensor is given twice, so is its copy.
    """
    kept: dict[int, Tensor] = {}

    def row(tensor: Tensor) -> Tensor:
        if not tensor.dim() or tensor.shape[0] != count:
            return tensor
        if id(tensor) not in kept:
            kept[id(tensor)] = tensor[rows.to(tensor.device)]
        return kept[id(tensor)]

    values = arguments(inputs)
    for name in per_image:
        if are_pictures(values[name]):
            values[name] = list(row(_stacked(values[name])).unbind(0))
        else:
            values[name] = rebuild(values[name], row)
    return _with_arguments(inputs, values)


def first_row(values: Any) -> Any:
    """Copies the first row of all tensors with as many rows as the first one, and other tensors."""
    count = next((tensor.shape[0] for tensor in tensors_of(values) if tensor.dim()), 0)
    return rebuild(values, lambda t: (t[:1] if t.dim() and t.shape[0] == count else t).clone())


def are_pictures(value: Any) -> bool:
    """Whether this is a list of pictures (C, H, W), each without an axis of images."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, Tensor) and item.dim() == 3 for item in value)
    )


def _with_arguments(inputs: Inputs, values: dict[Argument, Any]) -> Inputs:
    if isinstance(inputs, Mapping):
        return values
    if isinstance(inputs, tuple):
        return tuple(values.values())
    if isinstance(inputs, list) and not are_pictures(inputs):
        return list(values.values())
    return values[0]


def _stacked(pictures: list[Tensor]) -> Tensor:
    sizes = list(dict.fromkeys(tuple(picture.shape) for picture in pictures))
    if len(sizes) > 1:
        raise ArgumentError(
            "images",
            f"got a list of pictures of different sizes, {sizes[0]} and {sizes[1]}; "
            "explain them one at a time, each in a separate list",
        )
    return torch.stack(pictures)
