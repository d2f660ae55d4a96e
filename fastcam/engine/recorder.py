"""Hooks that start a graph at the target layers and keep what these return."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn

from fastcam.engine.graph import Point, Start, copied_tensor, has_graph, point_of, started
from fastcam.engine.running import Hooks
from fastcam.engine.values import (
    first_with_positions,
    rebuild,
    storage,
    tensors_of,
    version,
)
from fastcam.errors import ArgumentError


class Recorder:
    """Hooks for a run that starts a graph at layers and keeps their outputs.

    The run has to be under ``no_grad``, or have grad mode on from the first instruction for a graph
    that starts with the model.

    Args:
        layers: by name.
        start: where the graph starts; None for no graph.
        pick: the tensors to keep among a layer's outputs.
        run: which run of a layer counts, from 0 or from -1 backwards; None for the last.
        stepwise: the layers that run for each step of a loop, and how often: the last of each
            step counts.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        start: Start | None,
        pick: Callable[[Any], Sequence[Tensor]] | None = None,
        run: int | None = None,
        stepwise: Mapping[str, int] | None = None,
    ) -> None:
        self.shapes: dict[str, list[torch.Size]] = {name: [] for name in layers}
        """By layer, the shapes of the first tensor to keep that it returned, one per run."""
        self.passing_on: set[str] = set()
        """Layers that returned memory of their inputs unchanged."""
        self.held = False
        """Whether a layer returned memory that it held before it ran."""
        self._layers = layers
        self._start = start
        self._run = run
        self._stepwise = stepwise or {}
        self.started: list[ReferenceType[Tensor]] = []
        """The model's tensors at which a graph was started."""
        self._kept: dict[str, list[_Kept]] = {}
        self._pick = pick or first_with_positions
        self._entered: dict[str, list[Given]] = {name: [] for name in layers}
        self._inputs: list[tuple[str, Tensor, int]] = []  # returned as they were given

    @property
    def points(self) -> dict[str, tuple[Point, ...]]:
        """By layer, in the order in which they ran: its outputs in all runs that count."""
        return {
            name: tuple(point for kept in runs for point in kept.points)
            for name, runs in self._counted()
        }

    @property
    def returned(self) -> dict[str, Any]:
        """By layer, all that its caller received, including later operations in place."""
        return {name: runs[-1].returned for name, runs in self._counted()}

    def _counted(self) -> list[tuple[str, list[_Kept]]]:
        run = -1 if self._run is None else self._run
        found = []
        for name, kept in self._kept.items():
            if name in self._stepwise:
                times = self._stepwise[name]
                found.append((name, kept[times - 1 :: times]))
            elif -len(kept) <= run < len(kept):
                found.append((name, [kept[run]]))
        return found

    @property
    def hooks(self) -> Hooks:
        """Forward hooks for the run."""
        return [(layer, self._leave(name)) for name, layer in self._layers.items()]

    @property
    def before(self) -> Hooks:
        """Forward pre-hooks for the run."""
        return [(layer, self._enter(name)) for name, layer in self._layers.items()]

    def check(self) -> None:
        """After the run.

        Raises:
            ValueError: if a layer returned its input and the model has overwritten it since, or
                ran another number of times than the start of the graph supposes.
        """
        for name, tensor, before in self._inputs:
            if version(tensor) != before:  # the copy that was handed on has missed that
                raise ValueError(overwritten(name))
        for name, count in () if self._start is None else self._start.skipped:
            ran = len(self.shapes[name])
            if ran != count + 1:
                raise ArgumentError(
                    "target_layers",
                    f"'{name}' ran {ran} times, but {count + 1} times when the fast mode was "
                    "prepared; explain it without compile()",
                )

    def _enter(self, name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
            arguments = given = args, kwargs
            if any(map(torch._C._functorch.is_functorch_wrapped_tensor, tensors_of(given))):
                raise ArgumentError(
                    "target_layers",
                    f"'{name}' runs within torch.func (vmap or grad), whose tensors "
                    "have no place in a graph; name a layer outside of it",
                )
            if self._start is not None and name in self._start.copying:
                given = rebuild(given, copied_tensor)
            if self._start is not None and self._start.place == "layer":
                torch.set_grad_enabled(True)  # the run ends that
            if (
                self._start is not None
                and self._start.place != "output"
                and torch.is_grad_enabled()
            ):
                # in the same memory: what the layer writes to its input can be read there
                given = rebuild(given, lambda t: t if has_graph(t) else started(t))
            self._entered[name].append(Given(module, given))
            return None if given is arguments else given

        return hook

    def _leave(self, name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, returned: Any) -> Any:
            given = self._entered[name].pop()
            kept = self._pick(returned)
            renewed = {id(tensor): self._handed_on(name, tensor, given) for tensor in kept}
            returned = rebuild(returned, lambda tensor: renewed.get(id(tensor), tensor))
            if kept:
                self.shapes[name].append(kept[0].shape)
                all_stay = self._run is not None or name in self._stepwise
                earlier = self._kept.get(name, []) if all_stay else []
                self._kept.pop(name, None)  # the order is that of the last runs
                points = tuple(point_of(renewed[id(tensor)]) for tensor in kept)
                self._kept[name] = [*earlier, _Kept(points, returned)]
            return returned

        return hook

    def _handed_on(self, name: str, tensor: Tensor, given: Given) -> Tensor:
        """The tensor itself, at the start of a graph unless it has one; a copy of an input."""
        passed_on = given.unwritten(tensor)
        if passed_on:
            self.passing_on.add(name)
        self.held = self.held or given.held(tensor)
        if self._start is None or len(self.shapes[name]) < dict(self._start.skipped).get(name, 0):
            return tensor
        if passed_on and name not in self._start.copying:
            self._inputs.append((name, tensor, version(tensor)))
            tensor = copied_tensor(tensor)
        if self._start.place != "model":
            torch.set_grad_enabled(True)  # the run ends that
        # without a graph it comes from the model's own no_grad, around the layer or within it
        cut = not torch.is_grad_enabled() or (self._start.place != "output" and given.has_graph)
        if has_graph(tensor) or cut:
            return tensor
        if given.held(tensor):  # it outlives the run: it gets no graph and counts nothing
            return started(tensor.data)
        begun = started(tensor, same=True)
        self.started.append(ref(begun))
        return begun


class _Kept(NamedTuple):
    """Of one run of a layer."""

    points: tuple[Point, ...]
    returned: Any


def overwritten(name: str) -> str:
    return (
        f"target_layers: '{name}' returns its input, which the model overwrites later; name the "
        "layer before it"
    )


class Given:
    """The arguments of a layer, and the tensors that existed before it ran."""

    def __init__(self, module: nn.Module, arguments: Any) -> None:
        self.arguments = arguments  # alive, so that nothing else gets its memory
        tensors = tensors_of(arguments)
        self.has_graph = torch.is_grad_enabled() and any(map(has_graph, tensors))
        self._versions = {storage(t): version(t) for t in tensors}
        self._held = {storage(t): t for each in module.modules() for t in _held(each)}

    def held(self, tensor: Tensor) -> bool:
        """Whether the layer held this memory before it ran, and so will after the run."""
        return storage(tensor) in self._held

    def unwritten(self, tensor: Tensor) -> bool:
        """Whether this is memory of the arguments, with unchanged values."""
        return self._versions.get(storage(tensor), -1) == version(tensor)


def _held(module: nn.Module) -> list[Tensor]:
    """The parameters, buffers and attributes of a module itself."""
    found: list[Tensor] = []
    for value in (*module._parameters.values(), *module._buffers.values(), *vars(module).values()):
        if isinstance(value, dict):
            value = list(value.values())  # at once: other threads hang hooks on and off
        values = value if isinstance(value, (list, tuple)) else (value,)
        found += [v for v in values if isinstance(v, Tensor)]
    return found
