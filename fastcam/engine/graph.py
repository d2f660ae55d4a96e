"""Where the autograd graph of a run starts, and the place of a tensor in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

Place = Literal["output", "layer", "model"]
"""At the output of the first target layer that runs, at that layer's first instruction, or at the
model's."""


class Start(NamedTuple):
    """Where a graph starts."""

    place: Place
    copying: frozenset[str] = frozenset()
    """The layers that return their input: they get a copy of it, which nothing else reads."""
    skipped: tuple[tuple[str, int], ...] = ()
    """Layers, and how many of their first runs start no graph: all but the last, which counts."""


OUTPUT = Start("output")


@dataclass(frozen=True)
class Point:
    """A tensor as a layer's caller received it, and its place in the graph."""

    value: Tensor
    """The tensor's value at that time, without a graph."""
    edge: GradientEdge | None
    """The place to compute gradients for: its own, or that of its base if it is a view. None if it
    has no graph."""
    own: GradientEdge | None
    """Its own place."""
    view: _View | None = None
    """The position of the view in its base."""

    def read(self, gradient: Tensor) -> Tensor:
        """The gradient with respect to this tensor, from the gradient at :attr:`edge`."""
        return gradient if self.view is None else self.view.of(gradient)


@dataclass(frozen=True)
class _View:
    """A part of another tensor's memory, by extents, strides and the offset between them."""

    size: torch.Size
    stride: tuple[int, ...]
    offset: int
    base_stride: tuple[int, ...]

    def of(self, gradient: Tensor) -> Tensor:
        if gradient.stride() != self.base_stride:
            laid_out = gradient.new_empty_strided(gradient.shape, self.base_stride)
            gradient = laid_out.copy_(gradient)
        return gradient.as_strided(self.size, self.stride, gradient.storage_offset() + self.offset)


def has_graph(tensor: Tensor) -> bool:
    """Whether gradients reach a tensor; they do not reach a view taken under no_grad."""
    if not tensor.requires_grad:
        return False
    try:
        return not tensor._is_view() or tensor.grad_fn is not None
    except RuntimeError:  # such a view that has been written to has no answer
        return False


def started(
    tensor: Tensor, same: bool = False, passed: Callable[[Tensor], None] | None = None
) -> Tensor:
    """The tensor at the start of a graph, in the same memory; unchanged if not floating point.

    Args:
        same: whether the tensor itself gets the graph, for all of its holders; not possible for a
            view or a tensor made in inference mode.
        passed: called when a backward reaches the start.
    """
    if not tensor.is_floating_point():
        return tensor
    if tensor.is_inference():
        tensor = tensor.clone()
    elif tensor._is_view() or not same:
        tensor = tensor.detach()
    zero = torch.zeros((), requires_grad=True)
    if passed is not None:
        zero.register_hook(passed)
    with torch.enable_grad():
        begun: Tensor = _Start.apply(tensor, zero)
    return begun


class _Start(torch.autograd.Function):
    """The same tensor, with a graph from here on."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, zero: Tensor) -> Tensor:
        ctx.mark_dirty(tensor)
        return tensor

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, torch.zeros(())


def copied_tensor(tensor: Tensor) -> Tensor:
    """A copy with the same strides, so that every operator uses the same kernel."""
    if _is_dense(tensor) or not _lies_apart(tensor):
        return tensor.clone()
    return tensor.new_empty_strided(tensor.shape, tensor.stride()).copy_(tensor)


def point_of(tensor: Tensor) -> Point:
    """The present place of a tensor in the graph."""
    value = tensor.detach().clone()
    if not has_graph(tensor):
        return Point(value, None, None)
    own = _place(tensor)
    base = tensor._base
    if base is None or not base.requires_grad or not (_is_dense(base) and _lies_apart(tensor)):
        return Point(value, own, own)
    # an operation in place gives a view another place, but not the tensor it is a view of
    offset = int(tensor.storage_offset()) - int(base.storage_offset())
    view = _View(tensor.shape, tensor.stride(), offset, base.stride())
    return Point(value, _place(base), own, view)


@torch.enable_grad()
def _place(tensor: Tensor) -> GradientEdge:
    return get_gradient_edge(tensor)


def gradients_at(
    points: Sequence[Point],
    scores: Tensor,
    *,
    retain: bool = False,
    create_graph: bool = False,
) -> list[Tensor | None]:
    """The gradient of the scores' sum with respect to each point, or None if there is none.

    Args:
        retain: whether to keep the graph for further calls.
        create_graph: whether the gradients have a graph themselves.
    """
    edges = {edge for point in points for edge in (point.edge, point.own) if edge is not None}
    if not edges or not scores.requires_grad:
        return [None] * len(points)
    asked = tuple(edges)
    found = torch.autograd.grad(
        scores,
        asked,
        torch.ones_like(scores),
        retain_graph=retain,
        create_graph=create_graph,
        allow_unused=True,
    )
    by_edge = dict(zip(asked, found, strict=True))
    return [_gradient_at(point, by_edge) for point in points]


def _gradient_at(point: Point, by_edge: Mapping[GradientEdge, Tensor | None]) -> Tensor | None:
    if point.edge is None or point.own is None:
        return None
    gradient = by_edge[point.edge]
    if gradient is None:
        return None
    gradient = point.read(gradient)
    if by_edge[point.own] is None and not gradient.any():
        return None  # this is a view, and the scores read another part of its base
    return gradient


def _is_dense(tensor: Tensor) -> bool:
    return bool(torch.ops.aten.is_non_overlapping_and_dense(tensor))


def _lies_apart(tensor: Tensor) -> bool:
    """Whether no two elements share memory: each stride exceeds the span of the inner axes."""
    reach = 0
    for stride, extent in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if extent > 1:
            if stride <= reach:
                return False
            reach += stride * (extent - 1)
    return True
