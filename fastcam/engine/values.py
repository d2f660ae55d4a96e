"""The tensors in a module's inputs and outputs, in containers and objects of any kind."""

from __future__ import annotations

import copy
from collections.abc import Callable, MutableMapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastcam.engine.shapes import has_positions


def rebuild(
    value: Any, change: Callable[[Tensor], Tensor], objects: dict[int, Any] | None = None
) -> Any:
    """The same containers and objects, with every tensor in them changed; those without are kept.

    ``objects`` are those already met, by id: they may refer to each other.
    """
    objects = {} if objects is None else objects
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (tuple, list)):
        items = [rebuild(item, change, objects) for item in value]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    mapping = isinstance(value, MutableMapping)
    # classes, functions, modules of either kind: nothing that a network computes
    if not mapping and (callable(value) or isinstance(value, ModuleType)):
        return value
    if id(value) in objects:
        return objects[id(value)]
    parts = value if mapping else getattr(value, "__dict__", {})
    objects[id(value)] = value
    changed = {}
    for key, item in parts.items():
        renewed = rebuild(item, change, objects)
        if renewed is not item:
            changed[key] = renewed
    if not changed:
        return value
    copied = objects[id(value)] = copy.copy(value)
    parts = copied if mapping else copied.__dict__
    for key, item in changed.items():
        parts[key] = item
    return copied


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors in containers and objects."""
    found: list[Tensor] = []

    def add(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    rebuild(value, add)
    return found


def replace_first(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same containers, with the first tensor that has positions changed."""
    done = False

    def once(tensor: Tensor) -> Tensor:
        nonlocal done
        if done or not has_positions(tensor):
            return tensor
        done = True
        return change(tensor)

    return rebuild(value, once)


def first_with_positions(value: Any) -> list[Tensor]:
    """The first tensor that has positions, alone; nothing if there is none."""
    return next(([tensor] for tensor in tensors_of(value) if has_positions(tensor)), [])


def storage(tensor: Tensor) -> int:
    """The storage of a tensor, as a number that is equal if tensors share memory."""
    return tensor.untyped_storage().data_ptr()


def version(tensor: Tensor) -> int:
    """How often it was written to; tensors made in inference mode do not count that."""
    return 0 if tensor.is_inference() else tensor._version


def close(value: Tensor, expected: Tensor) -> bool:
    """Equal to rounding, relative to the largest value."""
    if value.numel() == 0:
        return True
    precision = max(torch.finfo(tensor.dtype).eps for tensor in (value, expected))
    value, expected = value.float(), expected.float()
    tolerance = max(1e-5, 4 * precision) * expected.abs().amax()
    return bool(((value - expected).abs() <= tolerance).all())


def agree(value: Tensor, expected: Tensor, limit: float | None = None) -> bool:
    """Equal up to the rounding of a whole network, relative to the largest value.

    Args:
        limit: by default 0.001 in float32 and float64, else 0.1.
    """
    if value.shape != expected.shape:
        return False
    if limit is None:
        limit = 1e-3 if value.dtype in (torch.float32, torch.float64) else 0.1
    scale = float(expected.detach().abs().nan_to_num().max()) if expected.numel() else 0.0
    return torch.allclose(value, expected, rtol=0, atol=limit * scale, equal_nan=True)
