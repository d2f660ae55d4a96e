"""One run of a network: a layer's activations, and the gradients of any score with respect to them.

Below the first target layer the network runs as in inference; from there up autograd records, and
:meth:`Capture.gradients` computes dS/dA alone. The network runs in evaluation mode; hooks and modes
are always restored, and fastcam never writes to parameters, ``.grad`` or buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import ReferenceType

import torch
from torch import Tensor, nn

from fastcam.engine.graph import Point, Start, gradients_at
from fastcam.engine.inputs import (
    Inputs,
    are_pictures,
    arguments,
    rows_of,
    select_rows,
    with_images,
)
from fastcam.engine.layouts import Layouts, find_layouts, reading_of, seen_of
from fastcam.engine.opaque import why_nothing_is_seen
from fastcam.engine.outputs import Output, logits_of
from fastcam.engine.per_image import PerImage
from fastcam.engine.recorded_run import Graph, record
from fastcam.engine.repeats import Repeats
from fastcam.engine.running import Hooks, run
from fastcam.engine.shapes import Reshape
from fastcam.engine.start import find_start
from fastcam.engine.trials import State
from fastcam.engine.values import rebuild
from fastcam.errors import ArgumentError

_ROOM = 2**28  # bytes of gradients that a shared capture keeps


@dataclass(frozen=True)
class LayerReading:
    """Turns a layer's outputs, or their gradients, in the runs that count into (N, C, *S)."""

    of_run: Reshape
    """Turns the output of one run into (N, C, *S)."""
    axis: int | None
    """The axis of (N, C, *S) that the runs are along; None if only one counts."""

    def __call__(self, runs: Sequence[Tensor]) -> Tensor:
        if self.axis is None:
            (only,) = runs
            return self.of_run(only)
        return torch.stack([self.of_run(each) for each in runs], self.axis)


class KeptGradients:
    """The gradients of the scores that were asked for so far, up to a limit of memory."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[Tensor, list[Tensor]]] = {}  # with the scores: ids are reused
        self._room = _ROOM

    def of(self, scores: Tensor, compute: Callable[[], list[Tensor]]) -> list[Tensor]:
        """The gradients of these scores, the same tensor as before or a new one."""
        if id(scores) in self._found:
            return self._found[id(scores)][1]
        gradients = compute()
        size = sum(each.numel() * each.element_size() for each in gradients)
        if size <= self._room:
            self._room -= size
            self._found[id(scores)] = scores, gradients
        return gradients


@dataclass(frozen=True)
class Capture:
    """The results of one run of a network. It holds the recorded graph: drop it when done."""

    outputs: Any
    """The model's outputs, detached."""
    logits: Tensor
    """The class scores among them, usually (N, classes), with their graph."""
    layers: tuple[str, ...]
    """The target layers' names."""
    activations: tuple[Tensor, ...]
    """One tensor per layer, (N, C, *S), without a graph."""
    extents: tuple[int, ...] | None
    """The extents of the positions of images, signals or words."""
    places: tuple[int, ...]
    """The images' axes that are positions."""
    images: Tensor | None
    """The first input with positions; the graph's leaf if it starts at the images."""
    points: tuple[tuple[Point, ...], ...]
    """The layers' outputs in the runs that count, and their places in the graph."""
    readings: tuple[LayerReading, ...]
    """Turn these outputs, and their gradients, into (N, C, *S)."""

    runs: tuple[int, ...]
    """How often each layer ran."""
    counted: tuple[int, ...]
    """Which run of each layer counts, from 0; the last one if all do."""

    started: list[ReferenceType[Tensor]]
    """The model's tensors at which a graph was started."""
    linear: tuple[nn.Linear, Tensor, Tensor] | None
    """The last linear layer that ran, its input and output."""
    before: State | None
    """The model's state before the run, if more runs like it will follow."""
    kept: KeptGradients | None = field(default=None, kw_only=True)
    """Gradients that other methods will ask for again; None if one method uses the capture."""
    exact: bool = field(default=False, kw_only=True)
    """Whether all further runs use the model itself, not a copy or a recording."""

    _model: nn.Module
    _inputs: Inputs
    _picture: int
    _output: Output | None
    _per_image: PerImage
    _autocast: tuple[str, bool, torch.dtype]  # device type, on or off, precision

    def gradients(self, scores: Tensor, *, retain: bool = True) -> list[Tensor]:
        """dS/dA for each layer, (N, C, *S).

        Args:
            scores: (N,), computed from ``logits`` with autograd on; each image's score depends on
                that image alone.
            retain: whether to keep the graph for further calls.

        Raises:
            ValueError: if a score does not depend on a layer.
        """

        def compute() -> list[Tensor]:
            found = self._raw_gradients(scores, retain or self.kept is not None)
            return [read(each) for read, each in zip(self.readings, found, strict=True)]

        return compute() if self.kept is None else self.kept.of(scores, compute)

    def hessian_products(
        self, scores: Tensor, *, retain: bool = True
    ) -> list[tuple[Tensor, Tensor]]:
        """dS/dA, and the Hessian d2S/dA2 times A, for each layer: twice (N, C, *S).

        Args:
            scores: as for :meth:`gradients`.
            retain: whether to keep the graph for further calls.
        """
        products = []
        with torch.enable_grad():
            found = self._raw_gradients(scores, True, create_graph=True)
        for i, (gradients, points, read) in enumerate(
            zip(found, self.points, self.readings, strict=True), start=1
        ):
            kept = retain or self.kept is not None or i < len(found)
            # sum over the runs of <dS/dA, A>, A constant: its gradient is the Hessian times A
            with torch.enable_grad():
                slope = torch.stack(
                    [
                        (gradient * point.value).sum()
                        for gradient, point in zip(gradients, points, strict=True)
                    ]
                ).sum()
            # a network that is linear from the layer up has no second derivative
            second = [
                torch.zeros_like(gradient) if product is None else product
                for gradient, product in zip(
                    gradients, gradients_at(points, slope, retain=kept), strict=True
                )
            ]
            products.append((read([each.detach() for each in gradients]), read(second)))
        return products

    def shared(self) -> Capture:
        """This capture for several methods: it keeps its graph, and the gradients that it gave."""
        return replace(self, kept=KeptGradients())

    def _raw_gradients(
        self, scores: Tensor, retain: bool, create_graph: bool = False
    ) -> list[list[Tensor]]:
        """By layer, dS/dA in the shape that it returned A, for each run that counts."""
        every = [point for points in self.points for point in points]
        found = iter(gradients_at(every, scores, retain=retain, create_graph=create_graph))
        gradients = []
        for name, points in zip(self.layers, self.points, strict=True):
            each = [next(found) for _ in points]
            if all(gradient is None for gradient in each):
                raise ArgumentError(
                    "target_layers",
                    f"the score does not depend on what '{name}' returned: it is a "
                    "branch that is not used, or the model cuts the graph there, by detach(), "
                    "torch.no_grad() or torch.inference_mode()",
                )
            gradients.append(
                [
                    torch.zeros_like(point.value) if gradient is None else gradient
                    for point, gradient in zip(points, each, strict=True)
                ]
            )
        return gradients

    def image_gradients(self, scores: Tensor, *, retain: bool = True) -> Tensor:
        """dS/dx for the images x, in their shape; the graph must start at the inputs."""
        assert self.images is not None
        gradient = None
        if scores.requires_grad:
            (gradient,) = torch.autograd.grad(
                scores, self.images, torch.ones_like(scores), retain, allow_unused=True
            )
        if gradient is None:
            raise ArgumentError("model", "the score does not depend on the images")
        return gradient

    def over_images(self, masks: Tensor) -> Tensor:
        """Masks (R, *S) for the images' positions, in a shape that broadcasts with the images."""
        assert self.images is not None
        shape = [1] * self.images.dim()
        for axis, extent in zip(self.places, masks.shape[1:], strict=True):
            shape[axis] = extent
        return masks.reshape(masks.shape[0], *shape[1:])

    def module(self, layer: int) -> nn.Module:
        """The layer itself."""
        return self._model.get_submodule(self.layers[layer])

    def reading_of_one_run(self, layer: int) -> Reshape:
        """The function that turns the output of the layer's run that counts into (N, C, *S).

        Raises:
            ValueError: if every run counts.
        """
        if self.readings[layer].axis is not None:
            raise ArgumentError(
                "target_layers",
                f"'{self.layers[layer]}' runs once for each picture of a clip, but "
                "this method needs one run; name a layer after the loop, or choose a run by run=",
            )
        return self.readings[layer].of_run

    def autocast(self) -> torch.autocast:
        """The precision of the run, for further runs like it."""
        device, enabled, dtype = self._autocast
        return torch.autocast(device, dtype=dtype, enabled=enabled)

    def inputs(self, rows: Tensor, images: Tensor | None = None) -> Inputs:
        """The model's inputs with other rows.

        Args:
            rows: (R,), the image that each row comes from.
            images: (R, C, *S), the images to use instead.

        Raises:
            ValueError: if the model's output has no row for each image, or it is unclear which
                inputs have one.
        """
        count = self.logits.shape[0]
        if self.images is not None and self.images.shape[0] != count:
            raise ArgumentError(
                "images",
                f"got {tuple(self.images.shape)} for {count} rows of the model's output, "
                "but this method runs images one by one: it expects as many rows as images",
            )
        with self.autocast():
            if len(rows) > 1:
                self._per_image.check_rows(self._model, self._inputs, self._output)
            names = self._per_image.of(self._model, self._inputs, self._output, self.logits)
        found = select_rows(self._inputs, names, count, rows)
        return found if images is None else with_images(found, images, self._picture)

    def again(
        self,
        rows: Tensor,
        images: Tensor | None = None,
        hooks: Hooks = (),
        before: Hooks = (),
    ) -> Tensor:
        """The logits (R, ...) of another run of the model, in the same precision.

        Args:
            rows, images: see :meth:`inputs`.
            hooks, before: forward hooks and pre-hooks, for this run.

        Raises:
            ValueError: as for :meth:`inputs`, and if the model returns another number of rows.
        """
        with self.as_before():
            outputs = run(self._model, self.inputs(rows, images), hooks, before=before)
            logits = logits_of(outputs, self._output, len(rows)).detach()
        if logits.shape[0] != len(rows):
            raise ArgumentError(
                "output",
                f"got shape {tuple(logits.shape)} for {len(rows)} images, expected a row for each",
            )
        return logits

    @contextmanager
    def as_before(self) -> Iterator[None]:
        """Uses the precision of the run, and the model's state before it, within the context."""
        with self.autocast():
            if self.before is None:
                yield
                return
            now = State(self._model)
            self.before.restore()
            try:
                yield
            finally:
                now.restore()

    def for_runs_of(self, prepare: Callable[[nn.Module, Inputs], nn.Module]) -> Capture:
        """A capture whose :meth:`again` runs the result of ``prepare(model, one image)``."""
        if self.exact:
            return self
        with self.as_before(), torch.no_grad():
            one = self._per_image.first(self._model, self._inputs, self._output)
            prepared = prepare(self._model, one)
            return replace(self, _model=prepared, before=State(prepared))


def capture(
    model: nn.Module,
    inputs: Inputs,
    layers: Sequence[str],
    *,
    reshape: Reshape | None = None,
    output: Output | None = None,
    graph: Graph | None = "layers",
    start: Start | None = None,
    hooks: Hooks = (),
    per_image: PerImage | None = None,
    repeats: Repeats | None = None,
    layouts: Layouts | None = None,
    reruns: bool = False,
) -> Capture:
    """Runs the model once in evaluation mode and records it from the first of the layers up.

    Call it outside of ``torch.inference_mode``.

    Args:
        model: the model, from :func:`unwrap`.
        inputs: a tensor, a tuple (positional arguments), a list (one argument) or a mapping
            (keyword arguments) for the model.
        layers: dotted names within the model.
        reshape: turns a layer's output, and its gradient, into (N, C, *S), if the layout is not
            recognised.
        output: picks the logits from the model's outputs (see :func:`logits_of`), with a graph if
            one is recorded.
        graph: where the graph starts, at the first layer or at the images; None records no graph.
        start: how close to the layer the graph starts, from
            :func:`fastcam.engine.start.find_start`; None to find it by runs on one image.
        hooks: further forward hooks, for this run.
        per_image: which inputs have a row for each image, as far as known.
        repeats: which run of a layer counts if it runs several times.
        layouts: which axes of the layers are channels and positions, from
            :func:`fastcam.engine.layouts.find_layouts`; None to find them by a run.
        reruns: whether :meth:`Capture.again` will be called; every run then starts with the
            model's present state.

    Raises:
        ValueError: if a layer did not run, or has no positions or several readings, or if the
            model returned no logits.
    """
    per_image, repeats = per_image or PerImage(), repeats or Repeats()
    if layouts is None and not layers:
        layouts = Layouts(None, {})
    elif layouts is None:
        pair = per_image.pair(model, inputs, output)
        layouts = find_layouts(model, pair, layers, output, repeats.chosen)
    stepwise = layouts.stepwise if repeats.chosen is None else {}
    if graph == "layers" and start is None:
        one = per_image.first(model, inputs, output)
        start = find_start(model, one, layers, output, repeats.chosen, stepwise)
    before = State(model) if reruns else None
    recorded = record(
        model,
        inputs,
        layers,
        graph=graph,
        start=start,
        hooks=hooks,
        repeats=repeats,
        stepwise=stepwise,
        picture=layouts.picture,
        reruns=reruns or graph is None,
    )
    points, images = recorded.points, recorded.images
    seen = seen_of(recorded.inputs, layouts.picture)
    places = layouts.places or _places(seen)
    extents = tuple(seen.shape[axis] for axis in places) if seen is not None and places else None
    several = {
        name: shapes
        for name, shapes in recorded.shapes.items()
        if len(shapes) > stepwise.get(name, 1)
    }
    if images is not None and images.dim() == 5 and repeats.chosen is None:
        for name, shapes in several.items():
            if len(shapes) in layouts.loops and name not in stepwise:
                raise ArgumentError(
                    "target_layers",
                    f"'{name}' ran {len(shapes)} times, as often as the clip has "
                    "pictures, but not once for each in their order; choose one by run=, or name "
                    "a layer after the loop",
                )
    if repeats.needs_check(several):
        one = per_image.first(model, recorded.inputs, output)
        repeats.check(model, one, several, stepwise)
    with torch.set_grad_enabled(graph is not None):
        logits = logits_of(recorded.outputs, output, rows_of(recorded.inputs))
    if layouts.rows:
        raise ArgumentError(
            "output",
            f"got shape {tuple(logits.shape)} with the images along axis {layouts.rows}, "
            f"expected (N, classes); give output= with .movedim({layouts.rows}, 0)",
        )

    # the axes of pictures that the model stacks itself are not followed: extents decide
    stacked = any(map(are_pictures, arguments(recorded.inputs).values()))
    rows = None if stacked else logits.shape[0]
    readings = []
    for name in layers:
        if name not in points:
            reason = why_nothing_is_seen(model)
            raise ValueError(
                f"target_layers: '{name}' did not run, or returned no floating-point tensor with "
                "positions, (N, C, *S) or (N, tokens, C)" + (f": {reason}" if reason else "")
            )
        found = layouts.layers.get(name)
        shape = points[name][-1].value.shape
        axis = None
        positions = extents
        if name in stepwise:
            axis = places.index(layouts.steps[name].axis)
            positions = extents and (*extents[:axis], *extents[axis + 1 :])
        read = reshape or reading_of(name, shape, positions, found, rows)
        readings.append(LayerReading(read, None if axis is None else axis + 2))
    activations = tuple(
        read([point.value for point in points[name]])
        for name, read in zip(layers, readings, strict=True)
    )
    usual = _places(images)
    if activations and {layer.dim() - 2 for layer in activations} == {len(usual)} != {len(places)}:
        places = usual  # nothing was summed: the axis of channels is among them
        extents = None if images is None else tuple(images.shape[axis] for axis in usual)
    for name, layer in zip(layers, activations, strict=True):
        if layer.dim() > 5:
            raise ArgumentError(
                "target_layers",
                f"'{name}' gives {tuple(layer.shape)}, with {layer.dim() - 2} axes "
                "of positions, expected one to three, (N, C, *S); give reshape= to join them",
            )
        if layer.dim() < 3 or layer.shape[0] != logits.shape[0]:
            raise ArgumentError(
                "target_layers",
                f"'{name}' gives {tuple(layer.shape)}, expected (N, C, *S) with the "
                f"N = {logits.shape[0]} rows of the output {tuple(logits.shape)}; if these are not "
                "the images, pick the right ones by output=, otherwise another layer or reshape= "
                "may help",
            )
    return Capture(
        outputs=rebuild(recorded.outputs, Tensor.detach),
        logits=logits,
        layers=tuple(layers),
        activations=activations,
        extents=extents,
        places=places,
        images=images,
        points=tuple(points[name] for name in layers),
        readings=tuple(readings),
        runs=tuple(recorded.runs[name] for name in layers),
        counted=tuple(recorded.counted[name] for name in layers),
        started=recorded.started,
        linear=recorded.linear,
        before=before,
        _model=model,
        _inputs=recorded.inputs,
        _picture=layouts.picture,
        _output=output,
        _per_image=per_image,
        _autocast=_autocast(logits.device.type),
    )


def _places(images: Tensor | None) -> tuple[int, ...]:
    """The usual axes of positions: those of (N, C, *S), or of pictures (N, T, C, H, W)."""
    if images is None:
        return ()
    if images.dim() == 5 and images.shape[2] in (1, 3) and images.shape[1] not in (1, 3):
        return 1, 3, 4
    return tuple(range(2, images.dim()))


def _autocast(device: str) -> tuple[str, bool, torch.dtype]:
    return device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
