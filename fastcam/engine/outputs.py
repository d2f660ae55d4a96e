"""The class scores among the outputs of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

from torch import Tensor

from fastcam.errors import ArgumentError

Output = Callable[[Any], Tensor]

_NAMES = ("logits", "out")  # of transformers and most others, of torchvision's segmentation
_MOST_LISTED = 8


def logits_of(outputs: Any, output: Output | None = None, count: int | None = None) -> Tensor:
    """The class scores among a model's outputs.

    By default the tensor itself, else the entry "logits" or "out", else the only floating-point
    tensor with a row for each image, in containers and objects of any kind.

    Args:
        outputs: the model's outputs.
        output: picks the scores; runs in the caller's grad mode.
        count: the number of images, or None if it is unknown.

    Raises:
        ValueError: if there are no scores or several candidates, if the scores are complex, or if
            the axis of a batch of one was squeezed.
    """
    if output is not None:
        logits: Any = output(outputs)
        again = "append {} to what output= returns"
    else:
        logits, place = _picked(outputs, count)
        again = f"give output=lambda o: o{place}{{}}"
    if not isinstance(logits, Tensor) or (logits.dim() == 0 and count != 1):
        came = type(outputs if output is None else logits).__name__
        raise ArgumentError(
            "output",
            f"found no logits (N, classes) in {came}; give output= to pick them out of "
            "what the model returns",
        )
    if logits.is_complex():
        raise ArgumentError(
            "output",
            f"got complex logits, {tuple(logits.shape)} of {logits.dtype}, expected real "
            f"ones; {again.format('.abs()')}, or another real part of them",
        )
    if count == 1 and logits.shape[:1] != (1,):
        if 1 in logits.shape:
            axis = logits.shape.index(1)
            raise ArgumentError(
                "output",
                f"got shape {tuple(logits.shape)} for one image, expected (1, classes); if "
                f"axis {axis} is that of the images, {again.format(f'.movedim({axis}, 0)')}",
            )
        reshaped = f".reshape({', '.join(map(str, (-1, *logits.shape)))})"
        raise ArgumentError(
            "output",
            f"got shape {tuple(logits.shape)} for one image, expected (1, classes); if the "
            f"model squeezes the axis of a batch of one away, {again.format(reshaped)}",
        )
    return logits


def _picked(outputs: Any, count: int | None) -> tuple[Tensor | None, str]:
    """The scores, and the expression that picks them from the outputs."""
    if isinstance(outputs, Tensor):
        return outputs, ""
    for name in _NAMES:
        item = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
        if isinstance(item, Tensor):
            return item, f'["{name}"]' if isinstance(outputs, Mapping) else f".{name}"
    found: dict[int, tuple[Tensor, str]] = {}
    for tensor, place in _tensors(outputs, "", set()):
        rows = tensor.dim() > 0 and count in (None, tensor.shape[0])
        if rows and tensor.is_floating_point():
            found.setdefault(id(tensor), (tensor, place))
    if len(found) < 2:
        return next(iter(found.values()), (None, ""))
    lines = [f"output=lambda o: o{place} for {tuple(t.shape)}" for t, place in found.values()]
    listed = ", ".join(lines[:_MOST_LISTED])
    more = len(lines) - _MOST_LISTED
    raise ValueError(
        f"output: got {len(found)} tensors that may be the class scores; choose one of them: "
        + (f"{listed} and {more} more" if more > 0 else listed)
    )


def _tensors(value: Any, place: str, met: set[int]) -> Iterator[tuple[Tensor, str]]:
    """All tensors in containers and objects, and the expression that picks each."""
    if isinstance(value, Tensor):
        yield value, place
        return
    # functions, classes, modules of either kind: nothing that a network computes
    if (callable(value) and not isinstance(value, Mapping)) or isinstance(value, ModuleType):
        return
    if id(value) in met:
        return
    met.add(id(value))
    if isinstance(value, Mapping):
        parts = [
            (f'["{key}"]' if isinstance(key, str) else f"[{key!r}]", item)
            for key, item in value.items()
        ]
    elif isinstance(value, (tuple, list)):
        fields = getattr(value, "_fields", None)
        names = [f".{f}" for f in fields] if fields else [f"[{i}]" for i in range(len(value))]
        parts = list(zip(names, value, strict=True))
    else:
        parts = [(f".{name}", item) for name, item in getattr(value, "__dict__", {}).items()]
    for name, item in parts:
        yield from _tensors(item, place + name, met)
