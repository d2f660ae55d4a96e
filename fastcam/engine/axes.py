"""Axes of tensors as products of atoms, which tell where their elements come from.

The slowest atom comes first. A view splits and joins atoms and a permutation moves them, so an axis
that is split and joined again is recognised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

Kind = Literal["input", "place", "channel", "tokens", "unknown", "disordered"]
"""input
    An axis of the inputs, of which nothing is known yet.
place
    Positions along one axis of the inputs.
channel
    The result of a sum over channels.
tokens
    Positions with other tokens before or after them, such as a class token.
unknown
    Of unknown origin.
disordered
    Positions that are mixed, or in another order.
"""

Origin = tuple[int, int]
"""The number of an input, and one of its axes."""


@dataclass(frozen=True)
class Source:
    """The axis that an atom is a part of."""

    kind: Kind
    extent: int
    origin: Origin | None = None
    number: int = 0
    """Distinguishes sources without an origin."""
    shift: int = 0
    """The number of positions that places are rolled by."""
    mirrored: bool = False
    """Whether places are in reverse order."""
    window: tuple[float, float] = (0.0, 1.0)
    """Begin and end as fractions of the input's axis; beyond [0, 1] if it was padded."""
    parts: tuple[int, Axis, int] | None = None
    """For tokens: the number of tokens before, the positions, the number of tokens after."""


class Atom(NamedTuple):
    """``extent`` steps of ``stride`` along a source."""

    source: Source
    stride: int
    extent: int


Axis = tuple[Atom, ...]
"""The empty axis is one of extent 1."""
Axes = tuple[Axis, ...]


def whole(source: Source) -> Axis:
    """The axis that consists of one whole source."""
    return (Atom(source, 1, source.extent),) if source.extent != 1 else ()


def size(axis: Axis) -> int:
    """The extent of an axis."""
    product = 1
    for atom in axis:
        product *= atom.extent
    return product


def joined(atoms: Sequence[Atom]) -> Axis:
    """One axis from atoms; adjacent parts of a source are merged."""
    axis: list[Atom] = []
    for atom in atoms:
        if axis:
            last = axis[-1]
            if last.source == atom.source and last.stride == atom.stride * atom.extent:
                axis[-1] = Atom(atom.source, atom.stride, last.extent * atom.extent)
                continue
        axis.append(atom)
    return tuple(axis)


def regrouped(axes: Axes, shape: Sequence[int]) -> Axes | None:
    """The axes of a view with this shape, or None if an atom does not fit."""
    queue = [atom for axis in axes for atom in axis]
    queue.reverse()
    result: list[Axis] = []
    for extent in shape:
        taken: list[Atom] = []
        while extent > 1:
            if not queue:
                return None
            atom = queue.pop()
            if extent % atom.extent == 0:
                taken.append(atom)
                extent //= atom.extent
            elif atom.extent % extent == 0 and atom.source.kind != "tokens":
                inner = atom.extent // extent
                taken.append(Atom(atom.source, atom.stride * inner, extent))
                queue.append(Atom(atom.source, atom.stride, inner))
                extent = 1
            else:
                return None
        result.append(joined(taken))
    return tuple(result) if not queue else None


def kinds(axis: Axis) -> set[Kind]:
    """The kinds of an axis's atoms."""
    return {atom.source.kind for atom in axis}


def is_channel(axis: Axis) -> bool:
    """Whether it holds channels and nothing else."""
    return kinds(axis) == {"channel"}


def is_placed(axis: Axis) -> bool:
    """Whether it holds positions and nothing else."""
    return bool(axis) and kinds(axis) <= {"input", "place", "tokens", "disordered"}


def origins(axis: Axis) -> list[Origin]:
    """The origins of an axis's positions, including those among tokens."""
    found: list[Origin] = []
    for atom in axis:
        if atom.source.parts is not None:
            found += origins(atom.source.parts[1])
        elif atom.source.origin is not None:
            found.append(atom.source.origin)
    return found


def resized(axis: Axis, extent: int, step: int | None = None) -> Axis | None:
    """The axis resampled to ``extent``, as by a convolution; None if that is not possible.

    Args:
        step: the stride, if it is known.
    """
    if size(axis) == extent and not kinds(axis) & {"unknown", "channel"}:
        return _as_places(axis)
    if len(axis) == 1 and axis[0].source.kind in ("input", "place"):
        return whole(_shrunk(axis[0].source, extent)) if is_together(axis[0]) else None
    merged = size(axis) // extent
    return _merged(axis, merged) if step in (None, merged) and size(axis) % extent == 0 else None


def _shrunk(source: Source, extent: int) -> Source:
    return replace(source, kind="place", extent=extent)


def _merged(axis: Axis, step: int) -> Axis | None:
    """Merges every ``step`` consecutive places; None if some of these lie in several rows.

    So a flattened grid stays a grid when it is pooled, with narrower rows.
    """
    *rows, last = axis
    whole_rows = last == whole(last.source)[0] and last.source.kind in ("input", "place")
    if not whole_rows or last.extent % step or last.extent == step:
        return None
    return _as_places((*rows, *whole(_shrunk(last.source, last.extent // step))))


def is_together(atom: Atom) -> bool:
    """Whether its steps go through the whole source once, not through each of its parts."""
    return atom.stride * atom.extent == atom.source.extent


def in_window(axis: Axis, begin: int, end: int) -> Axis:
    """An input's axis from index ``begin`` to ``end``, which may lie outside; others unchanged."""
    if len(axis) != 1 or axis[0].source.kind != "input" or axis[0] != whole(axis[0].source)[0]:
        return axis
    source = axis[0].source
    first, last = source.window
    step = (last - first) / source.extent
    window = (first + begin * step, first + end * step)
    return whole(replace(source, extent=end - begin, window=window))


def agreed(first: Axis, second: Axis) -> Axis | None:
    """The axis that results from two operands of an elementwise operator; None if they differ.

    Positions in order win over an axis that may be out of order: a shortcut around a layer shows
    where the layer's output is.
    """
    if first == second or not second:
        return first
    if not first:
        return second
    for axis, other in ((first, second), (second, first)):
        if kinds(other) == {"unknown"}:
            return axis
    for axis, other in ((first, second), (second, first)):
        ordered = is_placed(axis) and "disordered" not in kinds(axis)
        if kinds(other) == {"disordered"} and ordered:
            return axis
        if is_channel(other) and ordered:
            return other if kinds(axis) == {"input"} else axis
    if [atom.extent for atom in first] != [atom.extent for atom in second]:
        return None
    pairs = [_agreed_atom(a, b) for a, b in zip(_as_places(first), _as_places(second), strict=True)]
    return None if None in pairs else tuple(atom for atom in pairs if atom is not None)


def _agreed_atom(first: Atom, second: Atom) -> Atom | None:
    kinds = first.source.kind, second.source.kind
    if "unknown" in kinds:
        return second if kinds[0] == "unknown" else first
    return first if first == second or kinds == ("channel", "channel") else None


def _as_places(axis: Axis) -> Axis:
    """The same axis, with those of the inputs known to be places."""
    known = []
    for atom in axis:
        source = atom.source
        if source.kind == "input":
            source = replace(source, kind="place")
        elif source.parts is not None:
            before, inner, behind = source.parts
            source = replace(source, parts=(before, _as_places(inner), behind))
        known.append(atom._replace(source=source))
    return tuple(known)
