"""How operators carry the axes of tensors (:mod:`fastcam.engine.axes`) from inputs to outputs.

An operator that sums over an axis (a convolution over axis 1, a matrix product over the last) turns
it into channels; all others keep, move, split, join or resize the axes. The axes of an unknown
operator's results are lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import torch
from torch import Tag, Tensor

from fastcam.engine.axes import (
    Axes,
    Axis,
    Source,
    agreed,
    in_window,
    is_channel,
    is_placed,
    joined,
    kinds,
    origins,
    regrouped,
    resized,
    size,
    whole,
)

AxesOf = Callable[[Any], Axes | None]
"""The axes of an operand; None for constants, lost axes, and objects other than tensors."""

_numbers = count(1)


def unknown(extent: int) -> Axis:
    """A new axis of unknown origin."""
    return whole(Source("unknown", extent, number=next(_numbers)))


def channels(extent: int) -> Axis:
    """A new axis of channels."""
    return whole(Source("channel", extent, number=next(_numbers)))


def disordered(axis: Axis, extent: int) -> Axis:
    """The axis in another order: positions that are no longer the input's."""
    placed = origins(axis) or "disordered" in kinds(axis)
    if not placed or (0, 0) in origins(axis):  # the batch is either whole or lost
        return unknown(extent)
    return whole(Source("disordered", extent, number=next(_numbers)))


def gathered(extent: int) -> Axis:
    """An axis of stacked values without positions, which has none either."""
    return whole(Source("disordered", extent, number=next(_numbers)))


def summed_over(axes: Axes, dim: int, extent: int) -> Axis:
    """The axis that replaces one that an operator sums over: ``extent`` channels.

    If another axis holds channels, positions are mixed with each other and stay positions
    (MLP-Mixer).
    """
    others = [axis for i, axis in enumerate(axes) if i != dim % len(axes)]
    if is_placed(axes[dim]) and any("channel" in kinds(axis) for axis in others):
        return disordered(axes[dim], extent)
    return channels(extent)


def normed_over(axes: Axes, dim: int) -> Axes:
    """A norm mixes no channels, but shows which axis they are if that was lost."""
    dim %= len(axes)
    if any(map(is_channel, axes)) or kinds(axes[dim]) != {"unknown"}:
        return axes
    return (*axes[:dim], channels(size(axes[dim])), *axes[dim + 1 :])


def propagate(function: Any, args: tuple[Any, ...], results: list[Any], of: AxesOf) -> list[Axes]:
    """The axes of each result of a call of an ATen operator; unknown axes if they are lost."""
    name = function.overloadpacket.__name__
    rule = _RULES.get(name) or _RULES.get(name.removesuffix("_"))
    if rule is None:
        rule = next((rule for part, rule in _FAMILIES.items() if part in name), None)
    if rule is None:
        rule = _elementwise if Tag.pointwise in function.tags else _lost
    try:
        found = rule(args, results, of)
    except (LookupError, TypeError, ValueError):  # a form of the call that no rule expects
        found = _lost(args, results, of)
    return [
        axes
        if axes is not None and tuple(map(size, axes)) == tuple(result.shape)
        else tuple(map(unknown, result.shape))
        for axes, result in zip(found, results, strict=True)
    ]


_Rule = Callable[[tuple[Any, ...], list[Any], AxesOf], list[Any]]


def _lost(args: tuple[Any, ...], results: list[Any], of: AxesOf) -> list[Any]:
    return [None] * len(results)


def _first(rule: Callable[[tuple[Any, ...], Tensor, Axes], Axes | None]) -> _Rule:
    """A rule for operators whose first operand gives the axes of the first result."""

    def applied(args: tuple[Any, ...], results: list[Any], of: AxesOf) -> list[Any]:
        axes = of(args[0])
        found = None if axes is None else rule(args, results[0], axes)
        return [found, *[None] * (len(results) - 1)]

    return applied


def _each(rule: Callable[[tuple[Any, ...], Tensor, Axes], Axes | None]) -> _Rule:
    """The same for operators with several results of a kind."""

    def applied(args: tuple[Any, ...], results: list[Any], of: AxesOf) -> list[Any]:
        axes = of(args[0])
        return [None if axes is None else rule(args, result, axes) for result in results]

    return applied


def _same(args: tuple[Any, ...], result: Tensor, axes: Axes) -> Axes | None:
    return axes if len(axes) == result.dim() else None


def _elementwise(args: tuple[Any, ...], results: list[Any], of: AxesOf) -> list[Any]:
    result = results[0]
    merged: list[Axis] | None = None
    for axes in map(of, args):
        if axes is None or len(axes) > result.dim():
            continue
        aligned = [()] * (result.dim() - len(axes)) + list(axes)
        merged = aligned if merged is None else _merged(merged, aligned)
    if merged is not None:
        merged = [
            axis if size(axis) == extent else unknown(extent)
            for axis, extent in zip(merged, result.shape, strict=True)
        ]
    return [None if merged is None else tuple(merged)] + [None] * (len(results) - 1)


def _merged(first: Sequence[Axis], second: Sequence[Axis]) -> list[Axis]:
    merged = []
    for a, b in zip(first, second, strict=True):
        both = agreed(a, b)
        merged.append(disordered((*a, *b), max(size(a), size(b))) if both is None else both)
    return merged


def _viewed(args: tuple[Any, ...], result: Tensor, axes: Axes) -> Axes | None:
    return viewed(axes, tuple(result.shape))


def viewed(axes: Axes, shape: tuple[int, ...]) -> Axes:
    """The axes in another shape; unknown between the first and the last part that does not fit."""
    old = tuple(map(size, axes))
    front = 0
    while front < min(len(old), len(shape)) and old[front] == shape[front]:
        front += 1
    back = 0
    while back < min(len(old), len(shape)) - front and old[-1 - back] == shape[-1 - back]:
        back += 1
    middle = shape[front : len(shape) - back]
    inner = regrouped(axes[front : len(old) - back], middle)
    if inner is None:
        inner = tuple(map(unknown, middle))
    return (*axes[:front], *inner, *axes[len(old) - back :])


def _permuted(args: tuple[Any, ...], result: Tensor, axes: Axes) -> Axes | None:
    return tuple(axes[dim] for dim in args[1])


def _transposed(args: tuple[Any, ...], result: Tensor, axes: Axes) -> Axes | None:
    moved = list(axes)
    moved[args[1]], moved[args[2]] = moved[args[2]], moved[args[1]]
    return tuple(moved)


def _selected(args: tuple[Any, ...], result: Tensor, axes: Axes) -> Axes | None:
    dim = (args[1] if len(args) > 1 else 0) % len(axes)
    return (*axes[:dim], *axes[dim + 1 :])


def _sliced(args: tuple[Any, ...], result: Tensor, axes: Axes) -> Axes | None:
    dim = args[1] if len(args) > 1 else 0
    start = args[2] if len(args) > 2 else 0
    step = args[4] if len(args) > 4 else 1
    old, new = size(axes[dim]), result.shape[dim]
    begin = min(max((start or 0) + (old if (start or 0) < 0 else 0), 0), old)
    return _put(axes, dim, cut(axes[dim], begin, new, step))


def cut(axis: Axis, start: int, extent: int, step: int = 1) -> Axis:
    """A slice of an axis."""
    if extent == size(axis):
        return axis
    if extent <= 1 or (0, 0) in origins(axis):
        return unknown(extent)
    if is_channel(axis):
        return whole(replace(axis[0].source, extent=extent))
    if len(axis) == 1 and axis[0].source.parts is not None and step == 1:
        before, inner, _ = axis[0].source.parts
        first, last = before - start, start + extent - before - size(inner)
        if first >= 0 and last >= 0:
            return tokens(first, inner, last)
        outside = start + extent <= before or start >= before + size(inner)
        return unknown(extent) if outside else disordered(inner, extent)
    if len(axis) == 1 and axis[0].source.kind == "input" and step == 1 and extent > 1:
        return in_window(axis, start, start + extent)
    if len(axis) == 1 and axis[0].source.kind in ("input", "place"):
        return whole(replace(axis[0].source, extent=extent))
    return disordered(axis, extent)


def tokens(before: int, inner: Axis, behind: int) -> Axis:
    """An axis of positions with other tokens before and after them."""
    if before == behind == 0:
        return inner
    extent = before + size(inner) + behind
    return whole(Source("tokens", extent, parts=(before, inner, behind)))


def _put(axes: Axes, dim: int, axis: Axis) -> Axes:
    dim %= len(axes)
    return (*axes[:dim], axis, *axes[dim + 1 :])


def _split(args: tuple[Any, ...], results: list[Any], of: AxesOf) -> list[Any]:
    axes = of(args[0])
    if axes is None:
        return [None] * len(results)
    dim = args[2] if len(args) > 2 else 0
    start, found = 0, []
    for result in results:
        found.append(_put(axes, dim, cut(axes[dim], start, result.shape[dim])))
        start += result.shape[dim]
    return found


def _expanded(args: tuple[Any, ...], result: Tensor, axes: Axes) -> Axes | None:
    aligned = ((),) * (result.dim() - len(axes)) + axes
    return tuple(
        axis if size(axis) == extent else unknown(extent)
        for axis, extent in zip(aligned, result.shape, strict=True)
    )


def _rolled(args: tuple[Any, ...], result: Tensor, axes: Axes) -> Axes | None:
    dims = args[2] if len(args) > 2 else ()
    if not dims:
        return None
    rolled = list(axes)
    for shift, dim in zip(args[1], dims, strict=True):
        axis = rolled[dim]
        if len(axis) == 1 and axis[0] == whole(axis[0].source)[0] and not axis[0].source.parts:
            source = axis[0].source
            rolled[dim] = whole(replace(source, shift=(source.shift + shift) % source.extent))
        elif axis:
            rolled[dim] = disordered(axis, size(axis))
    return tuple(rolled)


def _flipped(args: tuple[Any, ...], result: Tensor, axes: Axes) -> Axes | None:
    flipped = list(axes)
    for dim in args[1]:
        axis = axes[dim]
        if (
            len(axis) == 1
            and axis[0].source.kind in ("input", "place")
            and not (axis[0].source.shift or (0, 0) in origins(axis))
        ):
            source = axis[0].source
            flipped[dim] = (axis[0]._replace(source=replace(source, mirrored=not source.mirrored)),)
        elif axis:
            flipped[dim] = disordered(axis, size(axis))
    return tuple(flipped)


def _turned(args: tuple[Any, ...], result: Tensor, axes: Axes) -> Axes | None:
    """``rot90``: (tensor, times, the two dimensions)."""
    times, dims = args[1] % 4, tuple(dim % len(axes) for dim in args[2])
    mirrored = {0: (), 1: dims[1:], 2: dims, 3: dims[:1]}[times]
    turned = _flipped((None, mirrored), result, axes)
    return (
        turned if turned is None or times % 2 == 0 else _transposed((None, *dims), result, turned)
    )


def _disordered(position: int) -> _Rule:
    """A rule for another order along the dimensions given by an argument."""

    def rule(args: tuple[Any, ...], result: Tensor, axes: Axes) -> Axes | None:
        dims = args[position] if len(args) > position else -1
        changed = list(axes)
        for dim in [dims] if isinstance(dims, int) else dims:
            extent = result.shape[dim]
            changed[dim] = disordered(axes[dim], extent)
        return tuple(changed)

    return _each(rule)


def _indexed(args: tuple[Any, ...], result: Tensor, axes: Axes) -> Axes | None:
    """Handles a single one-dimensional index tensor; all other axes are lost."""
    dims = [dim for dim, index in enumerate(args[1]) if index is not None]
    if len(dims) != 1 or args[1][dims[0]].dim() != 1 or result.dim() != len(axes):
        return None
    if _takes_all(args[1][dims[0]], axes[dims[0]]):
        return axes
    changed = _disordered(1)((None, dims[0]), [result], lambda _: axes)
    return changed[0]


def _index_selected(args: tuple[Any, ...], result: Tensor, axes: Axes) -> Axes | None:
    if _takes_all(args[2], axes[args[1]]):
        return axes
    found = _disordered(1)(args, [result], lambda _: axes)
    return found[0]


def _takes_all(index: Tensor, axis: Axis) -> bool:
    """Whether an index takes all positions in order; False for images, where it may be chance."""
    if index.dtype != torch.int64 or (0, 0) in origins(axis):
        return False
    return index.tolist() == [*range(size(axis))]


def _stacked(args: tuple[Any, ...], results: list[Any], of: AxesOf) -> list[Any]:
    merged = _of_all(args[0], of)
    if merged is None:
        return [None]
    dim = (args[1] if len(args) > 1 else 0) % results[0].dim()
    return [(*merged[:dim], unknown(len(args[0])), *merged[dim:])]


def _of_all(operands: Sequence[Tensor], of: AxesOf, but: int | None = None) -> list[Axis] | None:
    """The axes that operands agree on, except for dimension ``but``."""
    merged: list[Axis] | None = None
    for operand in operands:
        axes = of(operand)
        if axes is not None and but is not None:
            axes = _put(axes, but, ())
        if axes is not None:
            merged = list(axes) if merged is None else _merged(merged, axes)
    return merged


def _concatenated(args: tuple[Any, ...], results: list[Any], of: AxesOf) -> list[Any]:
    dim = (args[1] if len(args) > 1 else 0) % results[0].dim()
    operands = [operand for operand in args[0] if operand.dim() == results[0].dim()]
    merged = _of_all(operands, of, dim)
    if merged is None:
        return [None]
    merged[dim] = _row([(operand.shape[dim], of(operand)) for operand in operands], dim)
    return [tuple(merged)]


def _row(pieces: list[tuple[int, Axes | None]], dim: int) -> Axis:
    """One axis of concatenated pieces."""
    extents = [extent for extent, _ in pieces]
    axes = [() if axes is None else axes[dim] for _, axes in pieces]
    if len(pieces) == 1:
        return axes[0] or unknown(extents[0])
    if any(map(is_channel, axes)):
        return channels(sum(extents))
    placed = [i for i, axis in enumerate(axes) if axis and is_placed(axis)]
    if len(placed) == 1:
        (i,) = placed
        before, inner, behind = 0, axes[i], 0
        if len(inner) == 1 and inner[0].source.parts is not None:
            before, inner, behind = inner[0].source.parts
        return tokens(sum(extents[:i]) + before, inner, behind + sum(extents[i + 1 :]))
    return disordered(tuple(atom for axis in axes for atom in axis), sum(extents))


def _reduced(args: tuple[Any, ...], results: list[Any], of: AxesOf) -> list[Any]:
    """Reductions over the dimensions of the second argument; they may stay with extent 1."""
    axes, result = of(args[0]), results[0]
    dims = args[1] if len(args) > 1 else None
    if axes is None or dims is None or not isinstance(result, Tensor):
        return [None] * len(results)
    gone = {dim % len(axes) for dim in ([dims] if isinstance(dims, int) else dims)}
    gone = gone or set(range(len(axes)))
    left: Axes = tuple(axis for i, axis in enumerate(axes) if i not in gone)
    if result.dim() == len(axes):
        left = tuple(() if i in gone else axis for i, axis in enumerate(axes))
    return [left if isinstance(r, Tensor) and r.dim() == len(left) else None for r in results]


def _norm_of(args: tuple[Any, ...], results: list[Any], of: AxesOf) -> list[Any]:
    """``linalg_vector_norm`` and similar: the dimensions are the third argument."""
    return _reduced((args[0], *args[2:]), results, of)


def _convolved(args: tuple[Any, ...], result: Tensor, axes: Axes) -> Axes | None:
    if result.dim() != len(axes) or len(axes) < 3:
        return None  # without a batch
    steps = _steps(args[3], len(axes) - 2)
    return (axes[0], channels(result.shape[1]), *_places(axes[2:], tuple(result.shape[2:]), steps))


def _steps(given: Any, dims: int) -> Sequence[int | None]:
    """A stride for each dimension; None if unknown."""
    if isinstance(given, (list, tuple)) and given:
        return [*given] * (dims // len(given))
    return [None] * dims


def _places(axes: Axes, extents: tuple[int, ...], steps: Sequence[int | None] = ()) -> Axes:
    found = []
    steps = steps if len(steps) == len(axes) else [None] * len(axes)
    for axis, extent, step in zip(axes, extents, steps, strict=True):
        places = resized(axis, extent, step)
        found.append(disordered(axis, extent) if places is None else places)
    return tuple(found)


def _resized(args: tuple[Any, ...], results: list[Any], of: AxesOf) -> list[Any]:
    """Padding, interpolation, adaptive pooling: every axis keeps its meaning."""
    return _resized_by((), args, results, of)


def _warped(args: tuple[Any, ...], result: Tensor, axes: Axes) -> Axes | None:
    """``grid_sample``: (N, C, *S) at places given by another tensor."""
    return (*axes[:2], *map(disordered, axes[2:], result.shape[2:]))


def _padded(args: tuple[Any, ...], result: Tensor, axes: Axes) -> Axes | None:
    """Padding by two numbers for each dimension, the last dimension first."""
    found = list(axes)
    for i, (before, behind) in enumerate(zip(args[1][::2], args[1][1::2], strict=True), start=1):
        axis = in_window(axes[-i], -before, size(axes[-i]) + behind)
        extent = result.shape[-i]
        if size(axis) == extent:
            found[-i] = axis
        elif is_channel(axes[-i]):
            found[-i] = channels(extent)
        else:
            found[-i] = _places((axes[-i],), (extent,))[0]
    return tuple(found)


def _pooled(args: tuple[Any, ...], results: list[Any], of: AxesOf) -> list[Any]:
    """Pooling with a kernel and a stride, by default the kernel's extents."""
    given = args[2] if len(args) > 2 and args[2] else args[1]
    return _resized_by(given, args, results, of)


def _resized_by(
    steps: Sequence[int], args: tuple[Any, ...], results: list[Any], of: AxesOf
) -> list[Any]:
    axes = of(args[0])
    if axes is None or len(axes) != results[0].dim():
        return [None] * len(results)
    by_axis = [None] * (len(axes) - len(steps)) + [*steps]
    found = tuple(
        axis
        if size(axis) == extent
        else (channels(extent) if is_channel(axis) else _places((axis,), (extent,), [step])[0])
        for axis, extent, step in zip(axes, results[0].shape, by_axis, strict=True)
    )
    return [found] * len(results)


def _shuffled(args: tuple[Any, ...], result: Tensor, axes: Axes) -> Axes | None:
    """Moves between channels and positions (N, ..., C, H, W), as in ``pixel_shuffle``."""
    places = _places(axes[-2:], tuple(result.shape[-2:]))
    return (*axes[:-3], channels(result.shape[-3]), *places)


def _windowed(args: tuple[Any, ...], result: Tensor, axes: Axes) -> Axes | None:
    """``Tensor.unfold``: windows along an axis, with their contents as a new last axis."""
    _, dim, extent, step = args
    dim %= len(axes)
    shape = tuple(map(size, axes))
    if extent == step and shape[dim] % step == 0:
        split = viewed(axes, (*shape[:dim], shape[dim] // step, step, *shape[dim + 1 :]))
        return (*split[: dim + 1], *split[dim + 2 :], split[dim + 1])
    return (*_put(axes, dim, _places((axes[dim],), (result.shape[dim],))[0]), unknown(extent))


def _embedded(args: tuple[Any, ...], results: list[Any], of: AxesOf) -> list[Any]:
    axes = of(args[1])
    return [None if axes is None else (*axes, channels(results[0].shape[-1]))]


def _unfolded(args: tuple[Any, ...], result: Tensor, axes: Axes) -> Axes | None:
    """``im2col``: (N, C, H, W) -> (N, C * kernel, positions)."""
    _, kernel, dilation, padding, stride = args
    grid = tuple(
        (size(axes[2 + i]) + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i in range(2)
    )
    rows, columns = _places(axes[2:], grid)
    if math.prod(grid) != result.shape[-1]:
        return None
    return (axes[0], unknown(result.shape[1]), joined([*rows, *columns]))


def _product(skip: int) -> _Rule:
    """Matrix products (*B, rows, k) (*B, k, columns); ``skip`` counts the operands before."""

    def rule(args: tuple[Any, ...], results: list[Any], of: AxesOf) -> list[Any]:
        left, right = args[skip : skip + 2]
        a, b = of(left), of(right)
        if a is None and b is None:
            return [None]
        result = results[0]
        batch: tuple[Axis, ...] = ()
        if result.dim() == 3:
            batch = tuple(_merged([a[0] if a else ()], [b[0] if b else ()]))
        if a is not None and b is not None:
            return [(*batch, a[-2], b[-1])]
        if a is not None:
            return [(*batch, a[-2], summed_over(a, -1, result.shape[-1]))]
        assert b is not None
        return [(*batch, summed_over(b, -2, result.shape[-2]), b[-1])]

    return rule


def _linear(args: tuple[Any, ...], result: Tensor, axes: Axes) -> Axes | None:
    return (*axes[:-1], summed_over(axes, -1, result.shape[-1]))


def _attended(args: tuple[Any, ...], results: list[Any], of: AxesOf) -> list[Any]:
    """(N, heads, queries, d): the rows are the queries', the columns the values'."""
    query, value = of(args[0]), of(args[2])
    found = None
    if query is not None:
        last = channels(results[0].shape[-1]) if value is None else value[-1]
        found = (*query[:-1], last)
    return [found, *[None] * (len(results) - 1)]


def _normed(dim: int) -> Callable[[tuple[Any, ...], Tensor, Axes], Axes | None]:
    return lambda args, result, axes: normed_over(axes, dim)


def _layer_normed(args: tuple[Any, ...], result: Tensor, axes: Axes) -> Axes | None:
    over = args[1] if isinstance(args[1], (list, tuple)) else [0]
    return normed_over(axes, -1) if len(over) == 1 else axes


def _like(args: tuple[Any, ...], result: Tensor, axes: Axes) -> Axes | None:
    return axes if tuple(map(size, axes)) == tuple(result.shape) else None


def _copied(args: tuple[Any, ...], results: list[Any], of: AxesOf) -> list[Any]:
    """``copy_``, from a tensor that may have fewer axes."""
    return _elementwise(args[:2], results, of)


_RULES: dict[str, _Rule] = {
    **dict.fromkeys(["view", "_unsafe_view", "_reshape_alias", "reshape"], _first(_viewed)),
    **dict.fromkeys(["unsqueeze", "squeeze", "resize_as_"], _first(_viewed)),
    "permute": _first(_permuted),
    "transpose": _first(_transposed),
    "t": _first(lambda args, result, axes: axes[::-1]),
    "select": _first(_selected),
    "unbind": _each(_selected),
    "slice": _first(_sliced),
    **dict.fromkeys(
        ["split", "unsafe_split", "split_with_sizes", "unsafe_split_with_sizes"], _split
    ),
    **dict.fromkeys(["expand", "repeat"], _first(_expanded)),
    "roll": _first(_rolled),
    "flip": _first(_flipped),
    "rot90": _first(_turned),
    "index_select": _first(_index_selected),
    "gather": _disordered(1),
    "sort": _disordered(1),
    "index": _first(_indexed),
    "stack": _stacked,
    "cat": _concatenated,
    **dict.fromkeys(
        ["mean", "sum", "amax", "amin", "max", "min", "argmax", "argmin", "var", "std"], _reduced
    ),
    **dict.fromkeys(["var_mean", "std_mean", "logsumexp", "any", "all", "prod"], _reduced),
    **dict.fromkeys(["linalg_vector_norm", "norm"], _norm_of),
    **dict.fromkeys(["grid_sampler_2d", "grid_sampler_3d"], _first(_warped)),
    **dict.fromkeys(
        ["constant_pad_nd", *(f"{kind}_pad{n}d" for kind in ("reflection", "replication")
                              for n in (1, 2, 3))],
        _first(_padded),
    ),
    **dict.fromkeys(["pixel_shuffle", "pixel_unshuffle"], _first(_shuffled)),
    "im2col": _first(_unfolded),
    "unfold": _first(_windowed),
    "embedding": _embedded,
    **dict.fromkeys(["channel_shuffle", "native_channel_shuffle"], _first(_same)),
    **dict.fromkeys(["mm", "bmm"], _product(0)),
    **dict.fromkeys(["addmm", "baddbmm", "_addmm_activation"], _product(1)),
    **dict.fromkeys(["linear", "mkldnn_linear", "_mkl_linear"], _first(_linear)),
    **dict.fromkeys(
        ["_native_multi_head_attention", "_transformer_encoder_layer_fwd"],
        _first(
            lambda args, result, axes: (*axes[:-1], channels(result.shape[-1]))
            if len(axes) == result.dim()
            else None
        ),
    ),
    "native_group_norm": _first(_normed(1)),
    **dict.fromkeys(["native_layer_norm", "_fused_rms_norm", "rms_norm"], _first(_layer_normed)),
    **dict.fromkeys(["glu"], _resized),
    **dict.fromkeys(
        ["zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like",
         "new_zeros", "new_empty", "new_ones", "new_full", "new_empty_strided"],
        _first(_like),
    ),
    **dict.fromkeys(
        ["clone", "alias", "detach", "_to_copy", "lift_fresh", "contiguous", "_softmax",
         "_log_softmax", "_safe_softmax", "native_dropout", "cumsum", "cumprod", "fill", "zero",
         "bernoulli",
         "_prelu_kernel", "rrelu_with_noise", "log_sigmoid_forward", "celu", "_conj", "real"],
        _first(_same),
    ),
    "copy": _copied,
    **dict.fromkeys(
        ["hardswish", "hardsigmoid", "hardtanh", "softplus", "softshrink", "hardshrink", "mish",
         "elu", "selu", "leaky_relu", "threshold", "relu6", "where", "masked_fill", "addcmul",
         "addcdiv", "lerp", "clamp", "maximum", "minimum"],
        _elementwise,
    ),
}  # fmt: skip
_FAMILIES: dict[str, _Rule] = {
    "convolution": _first(_convolved),
    "deform_conv2d": _first(_convolved),
    "batch_norm": _first(_normed(1)),
    "_scaled_dot_product": _attended,
    "adaptive": _resized,
    "fractional": _resized,
    "pool": _pooled,
    "upsample": _resized,
    "_pad": _resized,
}
