"""Which axes of a network's layers are batch, channels and positions, found by one run.

A dispatch mode follows every axis of the inputs through all operators
(:mod:`fastcam.engine.propagation`), so a layer's layout depends on the origin of its axes and not
on their extents. Two rows run, because a view hides axes of extent 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.weak import WeakTensorKeyDictionary

from fastcam.engine.axes import (
    Atom,
    Axes,
    Axis,
    Origin,
    Source,
    agreed,
    is_channel,
    is_placed,
    is_together,
    kinds,
    origins,
    size,
    whole,
)
from fastcam.engine.inputs import (
    Inputs,
    are_pictures,
    arguments,
    images_of,
    number_of,
    with_images,
)
from fastcam.engine.outputs import Output
from fastcam.engine.propagation import channels, disordered, gathered, propagate
from fastcam.engine.shapes import Reshape, is_ambiguous, reading, token_grid
from fastcam.engine.trials import raise_out_of_memory, trial
from fastcam.engine.values import rebuild, replace_first, tensors_of
from fastcam.errors import ArgumentError


@dataclass(frozen=True)
class Reading:
    """Turns a layer's output, and its gradient, into a view (N, C, *S)."""

    prefix: tuple[tuple[int, int, int], ...]
    """Dimensions, and how many tokens to leave out at their beginning and end."""
    parts: tuple[tuple[int, ...], ...]
    """By dimension, the extents to split it into; -1 for an extent that depends on the call."""
    order: tuple[int, ...]
    """The permutation of the dimensions after that."""
    is_row: bool
    """Whether the positions are one row of unknown origin, such as tokens."""
    has_rows: bool = True
    """Whether its rows are known to be the images; if False, only their number is."""
    blank: int = 0
    """How many axes of extent 1 without positions to leave out at the end."""

    def __call__(self, output: Tensor) -> Tensor:
        for dim, before, behind in self.prefix:
            output = output.narrow(dim, before, output.shape[dim] - before - behind)
        for dim in reversed(range(len(self.parts))):
            if len(self.parts[dim]) > 1:
                output = output.unflatten(dim, self.parts[dim])
        output = output.permute(self.order)
        for _ in range(self.blank):
            output = output.squeeze(-1)
        return output

    def on_grid(self, before: int, grid: Sequence[int]) -> Reading:
        """The reading of a row as a grid, without the first ``before`` tokens."""
        row, more = self.order[2], len(grid) - 1
        dim = next(d for d in range(len(self.parts)) if sum(map(len, self.parts[: d + 1])) > row)
        rows, column = (part + more if part > row else part for part in self.order[:2])
        return Reading(
            (*self.prefix, (dim, before, 0)),
            (*self.parts[:dim], tuple(grid), *self.parts[dim + 1 :]),
            (rows, column, *range(row, row + len(grid))),
            False,
        )

    @property
    def fits_all_sizes(self) -> bool:
        """Whether it is independent of the extents of the images that it was found with."""
        return not self.prefix and all(len(parts) == 1 for parts in self.parts)


@dataclass(frozen=True)
class Unreadable:
    """A layer whose positions are known to differ from the input's, or from their order."""

    reason: str


class Steps(NamedTuple):
    """How a layer runs along an axis of the images."""

    axis: int
    runs: int
    """Runs per step, of which the last one counts."""


@dataclass(frozen=True)
class Layouts:
    """The axes of inputs and layers, as found by a run."""

    places: tuple[int, ...] | None
    """The axes of the images that are positions; None if that is unknown."""
    layers: Mapping[str, Reading | Unreadable]
    """The readings of the layers whose axes could be followed."""
    steps: Mapping[str, Steps] = field(default_factory=dict)
    """The layers that run for each step along an axis of the images, in order."""
    loops: frozenset[int] = frozenset()
    """The extents of the axes that the model goes through step by step."""
    rows: int | None = None
    """The logits' axis with a row for each image; None if that is unknown."""
    picture: int = 0
    """Which of the input tensors with positions are the images that the layers see."""

    @property
    def stepwise(self) -> dict[str, int]:
        """The layers that run for each step of a loop, and how often per step."""
        return {name: steps.runs for name, steps in self.steps.items()}

    @property
    def fits_all_sizes(self) -> bool:
        """Whether images of other sizes are read in the same way."""
        found = self.layers.values()
        known = all(isinstance(each, Reading) and each.fits_all_sizes for each in found)
        return known and not self.steps and 1 not in self.loops


def find_layouts(
    model: nn.Module,
    rows: Inputs,
    layers: Iterable[str],
    output: Output | None = None,
    run: int | None = None,
) -> Layouts:
    """Which axes of the layers are batch, channels and positions, and which images they see.

    Args:
        model: the model to explain.
        rows: the inputs for two images.
        layers: dotted names within the model.
        output: picks the logits from the model's outputs.
        run: which run of a layer counts; None for the last.

    Raises:
        ValueError: if the layers see different pictures.
    """
    names = list(layers)
    found, seen = follow(model, rebuild(rows, Tensor.clone), names, output, run)
    pictures = {name: seen[name] for name in names if name in seen}
    if len(set(pictures.values())) > 1:
        told = " and ".join(f"'{name}' picture {number}" for name, number in pictures.items())
        raise ArgumentError(
            "target_layers",
            f"{told} of the inputs, counted from 0, so that their maps cannot be "
            "joined; explain them one by one",
        )
    picture = next(iter(pictures.values()), 0)
    if picture:
        found, _ = follow(model, rebuild(rows, Tensor.clone), names, output, run, picture)
    return found


def follow(
    model: nn.Module,
    rows: Inputs,
    layers: Iterable[str],
    output: Output | None = None,
    run: int | None = None,
    picture: int = 0,
) -> tuple[Layouts, dict[str, int]]:
    """Runs the model on two images in evaluation mode, without a graph.

    If the model fails in this run, the layouts are unknown; no error is raised.

    Args:
        model, layers, output, run: as for :func:`find_layouts`.
        rows: the inputs for two images; they are run, so they should be copies.
        picture: which of the tensors with positions are the images.

    Returns:
        The layouts, and by layer the number of the picture that it sees, if known.
    """
    following = _Following()
    again = rebuild(rows, Tensor.clone)
    found: dict[str, Reading | Unreadable] = {}
    met: dict[str, list[tuple[Axes | None, frozenset[Step]]]] = {}  # by layer, of each run

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, returned: Any) -> None:
            def look(tensor: Tensor) -> Tensor:
                met.setdefault(name, []).append((following.of(tensor), following.met(tensor)))
                return tensor

            replace_first(returned, look)

        return hook

    images = seen_of(rows, picture)
    if images is None:
        return Layouts(None, {}), {}
    hooks: list[tuple[nn.Module, Callable[..., Any]]] = [
        (module, following.recurrent)
        for module in model.modules()
        if isinstance(module, nn.RNNBase)
    ]
    hooks += [(model.get_submodule(name), note(name)) for name in layers]
    try:
        with following:
            following.start(rows, images)
            outputs = trial(model, rows, hooks)
            logits = None if output is None and not isinstance(outputs, Tensor) else outputs
            logits = logits if output is None else output(outputs)
    except Exception as error:
        raise_out_of_memory(error)
        return Layouts(None, {}, picture=picture), {}
    scores = following.of(logits) or ()
    images_along = [i for i, axis in enumerate(scores) if origins(axis) == [(0, 0)]]
    batch = following.batch(outputs)
    stepwise: dict[str, Steps] = {}
    lone = [axis for axis in following.places or () if images.shape[axis] == 1]
    # for a clip of one picture, a loop makes no difference
    single = lone[0] if lone and images.dim() == 5 else None
    counted = {
        name: -1 if run is None or not -len(runs) <= run < len(runs) else run
        for name, runs in met.items()
    }
    for name, runs in met.items():
        readings = [axes and read(axes, batch, following.places, len(images)) for axes, _ in runs]
        reading = readings[counted[name]]
        if reading:
            found[name] = reading
        steps = following.steps_of([met for _, met in runs])
        steps = Steps(single, len(runs)) if steps is None and single is not None else steps
        positions = {len(each.order) - 2 for each in readings if isinstance(each, Reading)}
        # a layer in the loop has the axes of (B, T, C, H, W) but T; else the axis is the colours'
        if steps is not None and len(set(readings)) == 1 and positions == {images.dim() - 3}:
            stepwise[name] = steps
    followed = {
        name for name, each in found.items() if isinstance(each, Unreadable) or each.has_rows
    }
    untold = [name for name in met if name not in followed]
    for name in _in_another_order(model, again, untold, picture):
        found[name] = Unreadable("whose rows are not the images in their order")
    first = images_along[0] if images_along else None
    seen = {
        name: number
        for name, runs in met.items()
        if (number := following.picture(rows, runs[counted[name]][0])) is not None
    }
    return Layouts(following.places, found, stepwise, following.loops, first, picture), seen


def _in_another_order(
    model: nn.Module, pair: Inputs, layers: Sequence[str], picture: int
) -> list[str]:
    """The layers whose first row depends more on the second image than their second row does.

    Both orders of two images are tried, because a model may sort images by their values.
    """
    images = images_of(pair, picture)
    if not layers or images is None or not images.is_floating_point() or len(images) != 2:
        return []

    def rows_of_layers(given: Tensor) -> dict[str, Tensor]:
        rows: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, returned: Any) -> None:
                tensor = next(iter(tensors_of(returned)), None)
                if tensor is not None and tensor.dim() and tensor.shape[0] == 2:
                    rows[name] = tensor.flatten(1).clone()

            return hook

        inputs = rebuild(with_images(pair, given, picture), Tensor.clone)
        trial(model, inputs, [(model.get_submodule(name), keep(name)) for name in layers])
        return rows

    other = images[1:].flip(-1) * 0.5
    first = images[:1]
    second = images[1:] if not torch.equal(first, images[1:]) else other * 0.5
    found = []
    try:
        for one, two in ((first, second), (second, first)):
            before = rows_of_layers(torch.cat([one, two]))
            after = rows_of_layers(torch.cat([one, other]))
            for name in before.keys() & after.keys():
                if before[name].shape == after[name].shape:
                    moved = (before[name] - after[name]).abs().amax(1).tolist()
                    if moved[0] > moved[1]:
                        found.append(name)
    except Exception as error:  # the run that explains will raise it
        raise_out_of_memory(error)
    return found


def seen_of(inputs: Inputs, picture: int = 0) -> Tensor | None:
    """The images, or if there are none a batch of signals or words, (N, L)."""
    images = images_of(inputs, picture)
    if images is not None:
        return images
    return next((each for each in tensors_of(inputs) if each.dim() == 2), None)


Step = tuple[Origin, int]
"""An axis of the inputs, and an index there."""


class _Following(TorchDispatchMode):
    """While entered, knows the axes of every tensor that comes from the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.places: tuple[int, ...] | None = None
        self._axes = WeakTensorKeyDictionary()
        self._images: tuple[int, ...] = ()
        self._picked: dict[int, Source] = {}  # by extent, axes that the model loops over
        self._inputs: list[Tensor] = []
        self._met = WeakTensorKeyDictionary()  # by tensor, the steps that it was computed from

    def start(self, inputs: Inputs, images: Tensor) -> None:
        """Names the inputs' axes; axis 0 of those with a row for each image is the batch."""
        self._images = tuple(images.shape)
        # pictures that the model stacks itself are not followed
        values = [value for value in arguments(inputs).values() if not are_pictures(value)]
        others = [tensor for tensor in tensors_of(values) if tensor is not images]
        self._inputs = [images, *others]
        for number, tensor in enumerate(self._inputs):
            rows = tensor.dim() and tensor.shape[0] == images.shape[0]
            self._axes[tensor] = tuple(
                whole(Source("input", extent, (0 if rows and axis == 0 else number, axis)))
                for axis, extent in enumerate(tensor.shape)
            )

    def picture(self, inputs: Inputs, axes: Axes | None) -> int | None:
        """The number of the picture that these axes' positions come from; None if unknown."""
        placed = {origin for axis in axes or () for origin in origins(axis)}
        numbers = {number for number, axis in placed if axis}
        if len(numbers) != 1:
            return None
        return number_of(inputs, self._inputs[numbers.pop()])

    def of(self, value: Any) -> Axes | None:
        return self._axes.get(value) if isinstance(value, Tensor) else None

    def met(self, tensor: Tensor) -> frozenset[Step]:
        """The steps of loops that a tensor was computed from."""
        return self._met.get(tensor, frozenset())

    @property
    def loops(self) -> frozenset[int]:
        return frozenset(self._picked)

    def steps_of(self, runs: Sequence[frozenset[Step]]) -> Steps | None:
        """How a layer went through an axis of the images in order, if it did.

        Args:
            runs: the steps that each run was computed from; later runs may depend on earlier ones.
        """
        for extent, source in self._picked.items():
            times, left = divmod(len(runs), extent)
            if left or source.origin is None or source.origin[0] != 0:
                continue
            indices = [[index for origin, index in met if origin == source.origin] for met in runs]
            if [max(each, default=-1) for each in indices] == [
                i // times for i in range(len(runs))
            ]:
                return Steps(source.origin[1], times)
        return None

    def batch(self, outputs: Any) -> Origin:
        """The inputs' axis that is the outputs' first axis: the batch, usually axis 0."""
        for tensor in tensors_of(outputs):
            axes = self.of(tensor)
            if axes and len(axes[0]) == 1 and axes[0][0].source.kind == "input":
                return origins(axes[0])[0]
        return 0, 0

    def recurrent(self, module: nn.RNNBase, args: Any, returned: Any) -> None:
        """A recurrent layer's output: steps and batch are its input's, the last axis is new."""
        if not isinstance(returned[0], Tensor):
            return
        axes = self.of(args[0]) if args else None
        if axes is not None:
            self._note(returned[0], (*axes[:-1], channels(returned[0].shape[-1])))

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:  # inference mode does not decompose these operators before dispatch
                return func.decompose(*args, **(kwargs or {}))
        output = func(*args, **(kwargs or {}))
        results = [each for each in tree_flatten(output)[0] if isinstance(each, Tensor)]
        operands = [each for each in tree_flatten(args)[0] if isinstance(each, Tensor)]
        if not results or not any(operand in self._axes for operand in operands):
            return output
        found = propagate(func, args, results, self.of)
        name = func.overloadpacket.__name__
        met = frozenset[Step]().union(*map(self.met, operands))
        picked = self._pick(name, args, results)
        if name in ("stack", "cat"):
            found[0] = self._gathered(name, args, found[0], met)
        if self.places is None and ("convolution" in name or name == "im2col"):
            given = self.of(args[0])
            if given is not None:  # an axis with one position left counts as well
                self._see((*found[0][:2], *given[2:]))
        if name == "copy_" and args[0]._base is not None:
            self._overwrite(*args[:2])
        for i, (result, axes) in enumerate(zip(results, found, strict=True)):
            self._note(result, axes)
            steps = met if picked is None else met | {picked[i]}
            if steps:
                self._met[result] = steps
        return output

    def _overwrite(self, view: Tensor, value: Tensor) -> None:
        """Marks a tensor as disordered if a part of it is overwritten by other positions."""
        axes, given, base = self.of(view), self.of(value), self.of(view._base)
        if axes is None or given is None or base is None:
            return
        parts = list(zip(axes, given, strict=True)) if len(axes) == len(given) else []
        other = any(is_placed(new) and agreed(old, new) is None for old, new in parts)
        steps, from_steps = dict(self.met(view)), dict(self.met(value))
        if other or any(from_steps.get(origin, i) != i for origin, i in steps.items()):
            self._axes[view._base] = tuple(
                disordered(axis, size(axis)) if is_placed(axis) else axis for axis in base
            )

    def _note(self, result: Tensor, axes: Axes) -> None:
        self._axes[result] = axes
        if self.places is None and any(map(is_channel, axes)):
            self._see(axes)

    def _pick(
        self, name: str, args: tuple[Any, ...], results: Sequence[Tensor]
    ) -> list[Step] | None:
        """By result, its step, if the operator picks steps of an axis of the inputs."""
        if name not in _PICKING:
            return None
        dim, first = _PICKING[name](args)
        axes = self.of(args[0])
        axis = axes[dim] if axes and -len(axes) <= dim < len(axes) else ()
        kind = axis[0].source.kind if len(axis) == 1 else None
        if kind not in ("input", "place") or axis[0].source.origin == (0, 0):
            return None
        source, extent = axis[0].source, axis[0].extent
        keeps_axis = name not in ("select", "unbind")
        if source.origin is None or (keeps_axis and any(each.shape[dim] != 1 for each in results)):
            return None
        if kind == "input":
            self._picked[extent] = source
        indices = [(first + i) % extent for i in range(len(results))]
        return [(source.origin, extent - 1 - i if source.mirrored else i) for i in indices]

    def _gathered(self, name: str, args: tuple[Any, ...], axes: Axes, met: frozenset[Step]) -> Axes:
        """As many parts as there were steps, stacked or concatenated, are that axis again.

        Parts without positions or steps make an axis without positions.
        """
        parts = args[0]
        dim = (args[1] if len(args) > 1 else 0) % len(axes)
        if name == "cat" and any(part.shape[dim] != 1 for part in parts):
            return axes
        source = self._picked.get(len(parts))
        if source is not None:
            made = whole(replace(source, kind="place"))
        elif met or not all(map(self._has_no_positions, parts)):
            return axes
        else:
            made = gathered(len(parts))
        return (*axes[:dim], made, *axes[dim + 1 :])

    def _has_no_positions(self, tensor: Tensor) -> bool:
        axes = self.of(tensor)
        if axes is None or any("unknown" in kinds(axis) for axis in axes):
            return False
        return any(map(is_channel, axes)) and not any(
            is_placed(axis) and (0, 0) not in origins(axis) for axis in axes
        )

    def _see(self, axes: Axes) -> None:
        """At the first channels: the axes of the images that are left are positions."""
        places = {axis for each in axes for number, axis in origins(each) if number == 0} - {0}
        if not places:
            return
        picked = [source.origin for source in self._picked.values() if source.origin]
        places |= {axis for number, axis in picked if number == 0}
        single = {axis for axis, extent in enumerate(self._images) if axis and extent == 1}
        summed = set(range(1, len(self._images))) - places - single
        if not summed:
            single.discard(1)
        self.places = tuple(sorted(places | single))


def _at(args: tuple[Any, ...], index: int, otherwise: Any) -> Any:
    return args[index] if len(args) > index and args[index] is not None else otherwise


# By operator: the dimension that it takes parts of, and the index of the first part.
_PICKING: Mapping[str, Callable[[tuple[Any, ...]], tuple[int, int]]] = {
    "select": lambda args: (args[1], args[2]),
    "slice": lambda args: (_at(args, 1, 0), _at(args, 2, 0)),
    "unbind": lambda args: (_at(args, 1, 0), 0),
    "split": lambda args: (_at(args, 2, 0), 0),
    "split_with_sizes": lambda args: (_at(args, 2, 0), 0),
}


def read(
    axes: Axes,
    batch: Origin = (0, 0),
    places: tuple[int, ...] | None = None,
    images: int | None = None,
) -> Reading | Unreadable | None:
    """How to read axes as (N, C, *S); None if their origin is lost.

    Args:
        batch: the inputs' axis that is the batch.
        places: the axes of the images that are positions.
        images: how many there are; if an unknown first axis has this extent, it may be the batch.
    """
    mixed = [i for i, axis in enumerate(axes) if "channel" in kinds(axis)]
    if not mixed:  # no sum over channels yet: they are the only axis without positions
        mixed = [i for i, axis in enumerate(axes) if not _is_known(axis, batch, places)]
        mixed = mixed if len(mixed) == 1 else [i for i in mixed if not origins(axes[i])]
        if len(mixed) != 1:
            return None
        axes = (*axes[: mixed[0]], channels(2), *axes[mixed[0] + 1 :])
    if len(mixed) > 1 or not is_channel(axes[mixed[0]]):
        return Unreadable("whose channels are spread over several axes, or joined with positions")
    (channel,) = mixed
    prefix: list[tuple[int, int, int]] = []
    parts: list[tuple[int, ...]] = []
    labels: list[Origin | None] = []  # of each part
    for i, axis in enumerate(axes):
        if i == channel:
            parts.append((-1,))
            labels.append(None)
            continue
        if len(axis) == 1 and axis[0].source.parts is not None:
            before, axis, behind = axis[0].source.parts
            prefix.append((i, before, behind))
        if any(atom.source.mirrored for atom in axis):
            return Unreadable("whose positions are mirrored, because the model flips its input")
        if any(map(_lies_elsewhere, axis)):
            return Unreadable("which does not cover the input, because the model crops or pads it")
        if not all(map(is_together, axis)):
            return Unreadable("whose positions lie apart along one axis of the input")
        if {"disordered", "tokens"} & kinds(axis) or any(atom.source.shift for atom in axis):
            return Unreadable("whose positions are not in the input's order")
        known: list[Origin | None] = [atom.source.origin for atom in axis] or [None]
        if any(atom.source.origin == batch and atom.extent != atom.source.extent for atom in axis):
            return None
        if len(known) > 1:
            extents = zip(axis, known, strict=True)
            parts.append(tuple(-1 if origin == batch else atom.extent for atom, origin in extents))
        else:
            parts.append((-1,))
        labels += known
    has_rows = batch in labels
    if not has_rows:
        picked = kinds(axes[0]) == {"unknown"} and size(axes[0]) == images
        if not picked or labels[1:].count(None) > 1:  # the channels have no label
            return None
        labels[0] = batch
    rows, column = labels.index(batch), sum(map(len, parts[:channel]))
    traced = [origin for origin in labels if origin is not None]
    if len(set(traced)) < len(traced):
        return Unreadable("whose positions along one axis are spread over several")
    others = [i for i in range(len(labels)) if i not in (rows, column)]
    if len(traced) == len(others) + 1:
        others.sort(key=lambda i: labels[i] or batch)
    is_row = [labels[i] for i in others] == [None]
    # left by a kernel as wide as a word's channels
    ones = [sum(map(len, parts[:i])) for i, axis in enumerate(axes) if not axis]
    blank = [i for i in others if labels[i] is None and i in ones]
    if places is None or len(others) - len(blank) != len(places):
        blank = []
    order = (rows, column, *(i for i in others if i not in blank), *blank)
    return Reading(tuple(prefix), tuple(parts), order, is_row, has_rows, len(blank))


def _lies_elsewhere(atom: Atom) -> bool:
    """Whether an end is away from the input's by over one position and over a tenth of it."""
    begin, end = atom.source.window
    away = max(abs(begin), abs(1 - end))
    return away > 0.1 and away > (end - begin) / atom.extent


def _is_known(axis: Axis, batch: Origin, places: tuple[int, ...] | None) -> bool:
    """Whether it is the batch or positions."""
    seen = {(0, place) for place in places or ()} | {batch}
    return bool(axis) and all(
        atom.source.kind in ("place", "tokens", "disordered") or atom.source.origin in seen
        for atom in axis
    )


def reading_of(
    name: str,
    shape: torch.Size,
    extents: tuple[int, ...] | None,
    found: Reading | Unreadable | None,
    rows: int | None = None,
) -> Reshape:
    """The function that turns a layer's output of this shape into (N, C, *S).

    It follows the origin of the axes; if that is unknown, their extents.

    Args:
        name: the layer's name.
        shape: the shape of its output.
        extents: the images' extents.
        found: the reading that a run found.
        rows: N, of the model's output; None if either of two readings will do.

    Raises:
        ValueError: if the output cannot be read, or can be read in two ways.
    """
    came = f"target_layers: '{name}' returned {tuple(shape)}, "
    way = "; give reshape= to turn it into (N, C, *S)"
    if isinstance(found, Unreadable):
        raise ValueError(came + found.reason + way)
    if found is not None and found.is_row and extents is not None and len(extents) > 1:
        tokens = found(torch.empty(shape, device="meta")).shape[2]
        grid = token_grid(tokens, (extents[0], extents[1])) if len(extents) == 2 else None
        if grid is None:
            raise ValueError(f"{came}which is not a grid of patches of a {extents} image{way}")
        return found.on_grid(grid[0], grid[1:])
    if found is not None:
        return found
    read = reading(shape, extents)
    if read is None:
        raise ValueError(f"{came}which is not a grid of patches of a {extents} image{way}")
    others = extents is not None and len(shape) > 3 and len(extents) != len(shape) - 2
    if shape[0] == rows and (others or is_ambiguous(shape, extents)):
        raise ValueError(
            f"{came}whose axes could not be followed, and which can be read in two ways; if its "
            "rows are the images in their order, give reshape= to turn it into (N, C, *S)"
        )
    return read
