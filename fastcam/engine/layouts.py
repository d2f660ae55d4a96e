"""Where a network's layers have batch, channels and positions: found by one run on the exact model.

A dispatch mode follows every axis of the inputs through all operators
(:mod:`fastcam.engine.propagation`), so a layer is read by what happened to its axes and not by
their extents. Two rows run, for an axis of extent 1 could not be told from others in a view.
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


@dataclass(frozen=True)
class Reading:
    """Turns a layer's output, and its gradient, into a view (N, C, *S)."""

    prefix: tuple[tuple[int, int, int], ...]
    """Dimension, tokens before and tokens behind that are left out."""
    parts: tuple[tuple[int, ...], ...]
    """By dimension, what it is split into; -1 for what a call decides."""
    order: tuple[int, ...]
    """Then, which dimension comes where."""
    is_row: bool
    """Whether the positions are one row of no known origin, such as tokens."""
    has_rows: bool = True
    """Whether its rows are known to be the images; else there are only as many."""
    blank: int = 0
    """How many axes of extent 1, which are no positions, are left out at the end."""

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
        """The same for a row that is a grid, behind some tokens that are left out."""
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
        """Whether it holds no extents of the images that it was found with."""
        return not self.prefix and all(len(parts) == 1 for parts in self.parts)


@dataclass(frozen=True)
class Unreadable:
    """A layer whose positions are known not to be those of the input, in their order."""

    reason: str


class Steps(NamedTuple):
    """How a layer runs along an axis of the images."""

    axis: int
    runs: int
    """For each step, of which the last one counts."""


@dataclass(frozen=True)
class Layouts:
    """What a run told about the axes of inputs and layers."""

    places: tuple[int, ...] | None
    """The axes of the images that are positions; None where that did not show."""
    layers: Mapping[str, Reading | Unreadable]
    """By layer, as far as its axes could be followed."""
    steps: Mapping[str, Steps] = field(default_factory=dict)
    """The layers that run for each step along an axis of the images, in order."""
    loops: frozenset[int] = frozenset()
    """The extents of the axes that the model goes through step by step."""
    rows: int | None = None
    """The axis of the logits that the images are along; None where that did not show."""
    picture: int = 0
    """Which of the tensors with positions that go in are the images that the layers see."""

    @property
    def stepwise(self) -> dict[str, int]:
        """The layers that run for each step of a loop, and how often in each."""
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
    """Where the layers have batch, channels and positions, and which images they see.

    Args:
        model: what is explained.
        rows: the inputs for two images.
        layers: dotted names within the model.
        output: picks the logits out of what the model returns.
        run: which run of a layer counts; None for the last.

    Raises:
        ValueError: if one layer sees one picture alone, and another one another.
    """
    names = list(layers)
    found, seen = follow(model, rebuild(rows, Tensor.clone), names, output, run)
    pictures = {name: seen[name] for name in names if name in seen}
    if len(set(pictures.values())) > 1:
        told = " and ".join(f"'{name}' picture {number}" for name, number in pictures.items())
        raise ValueError(
            f"target_layers: {told} of the inputs, counted from 0: their maps are no maps of one "
            "picture; explain them one by one"
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

    A model that fails in such a run tells nothing, which is no error.

    Args:
        model, layers, output, run: as for :func:`find_layouts`.
        rows: the inputs for two images; they are run, so they should be copies.
        picture: which of the tensors with positions are the images.

    Returns:
        that, and by layer the number of the picture that it sees, if that is known.
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
    # a clip of one picture: in a loop or not, it is all the same
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
        # a layer within it has what is left of (B, T, C, H, W); otherwise the axis is the colours'
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
    """Those of the layers whose first row depends on the second image rather than their second row.

    Both orders of two images are tried, for a model may sort them by what they hold.
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
    except Exception as error:  # what is wrong, the run that explains says
        raise_out_of_memory(error)
    return found


def seen_of(inputs: Inputs, picture: int = 0) -> Tensor | None:
    """The images; without them a batch of signals or words, (N, L)."""
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
        self._picked: dict[int, Source] = {}  # by extent, axes that the model goes through
        self._inputs: list[Tensor] = []
        self._met = WeakTensorKeyDictionary()  # by tensor, the steps that it was computed from

    def start(self, inputs: Inputs, images: Tensor) -> None:
        """What goes in; axis 0 of what has a row for each image is the batch."""
        self._images = tuple(images.shape)
        # pictures that the model itself stacks are not followed
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
        """The number of the one picture whose positions these axes are; None if that is unknown."""
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
            runs: what each run was computed from; later ones may depend on earlier ones.
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
        """Which axis of the inputs the outputs have first: the batch, 0 as a rule."""
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
            with self:  # in inference mode they come whole, elsewhere in parts
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
            if given is not None:  # an axis may have one position left: it is one all the same
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
        """A part of a tensor by another part of it: then its positions are in another order."""
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
        """By result, the step that it is, if the model goes through an axis of the inputs."""
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
        """As many parts as there were steps, one behind the other, are that axis again.

        Parts that have no positions and come from no steps make an axis without positions.
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
        """The first channels: what is left of the images' axes are positions."""
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


# By operator: the dimension that it takes parts of, and the index of the first one.
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
    """How axes are read as (N, C, *S), None where the chain is lost.

    Args:
        batch: the inputs' axis that is the batch.
        places: the axes of the images that are positions.
        images: how many there are; as many rows that were picked one by one may be theirs.
    """
    mixed = [i for i, axis in enumerate(axes) if "channel" in kinds(axis)]
    if not mixed:  # nothing summed over channels: they are the one axis without positions
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
            return Unreadable("whose positions are mirrored, for the model flips what went in")
        if any(map(_lies_elsewhere, axis)):
            return Unreadable("which does not cover what went in, for the model crops or pads that")
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
    # what a kernel as wide as a word's channels leaves of them
    ones = [sum(map(len, parts[:i])) for i, axis in enumerate(axes) if not axis]
    blank = [i for i in others if labels[i] is None and i in ones]
    if places is None or len(others) - len(blank) != len(places):
        blank = []
    order = (rows, column, *(i for i in others if i not in blank), *blank)
    return Reading(tuple(prefix), tuple(parts), order, is_row, has_rows, len(blank))


def _lies_elsewhere(atom: Atom) -> bool:
    """Whether it begins or ends more than a position and a tenth away from the input's ends."""
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
    """What turns a layer's output of this shape into (N, C, *S).

    By what happened to its axes; by their extents if that is not known.

    Args:
        name: the layer's.
        shape: of its output.
        extents: the images'.
        found: what a run told.
        rows: N, of the model's output; None if either of two readings will do.

    Raises:
        ValueError: if it cannot be read, or in two ways.
    """
    came = f"target_layers: '{name}' returned {tuple(shape)}, "
    way = "; give reshape= to turn it into (N, C, *S)"
    if isinstance(found, Unreadable):
        raise ValueError(came + found.reason + way)
    if found is not None and found.is_row and extents is not None and len(extents) > 1:
        tokens = found(torch.empty(shape, device="meta")).shape[2]
        grid = token_grid(tokens, (extents[0], extents[1])) if len(extents) == 2 else None
        if grid is None:
            raise ValueError(f"{came}which is no grid of patches of a {extents} image{way}")
        return found.on_grid(grid[0], grid[1:])
    if found is not None:
        return found
    read = reading(shape, extents)
    if read is None:
        raise ValueError(f"{came}which is no grid of patches of a {extents} image{way}")
    others = extents is not None and len(shape) > 3 and len(extents) != len(shape) - 2
    if shape[0] == rows and (others or is_ambiguous(shape, extents)):
        raise ValueError(
            f"{came}whose axes could not be followed, and which can be read in two ways; if its "
            "rows are the images in their order, give reshape= to turn it into (N, C, *S)"
        )
    return read
