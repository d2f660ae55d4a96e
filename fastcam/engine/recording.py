"""Where the graph of a run starts, and the place of a layer's output in it.

The graph starts at the target layer, so that below it the network runs as in inference. How close
to the layer it may start depends on who reads what the layer computes: see :func:`find_start`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, NamedTuple
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from fastcam.engine.inputs import Inputs
from fastcam.engine.running import Hooks, hooks_of, modules_of
from fastcam.engine.trials import OF_EVERY_MODULE, raise_out_of_memory, trial
from fastcam.engine.values import (
    agree,
    close,
    first_with_positions,
    rebuild,
    storage,
    tensors_of,
    version,
)

Place = Literal["output", "layer", "model"]
"""At the output of the first target layer that runs, with that layer's first instruction, or with
the model's."""


class Start(NamedTuple):
    """Where a graph starts."""

    place: Place
    copying: frozenset[str] = frozenset()
    """The layers that return their input: they get a copy, which nobody else reads."""


OUTPUT = Start("output")


@dataclass(frozen=True)
class Point:
    """A tensor as a layer's caller received it, and its place in the graph."""

    value: Tensor
    """What it was then, without a graph."""
    edge: GradientEdge | None
    """What gradients are asked for: its own place, or that of the tensor it is a view of. None if
    it has no graph."""
    own: GradientEdge | None
    """Its own place."""
    view: _View | None = None
    """How it lies in that tensor."""

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


class Recorder:
    """Hooks for a run that starts a graph at layers and keeps what they return.

    They are for a run under ``no_grad``, or with grad mode on from the first instruction for a
    graph that starts with the model.

    Args:
        layers: by name.
        start: where the graph starts; None for no graph.
        pick: the tensors to keep of what a layer returns.
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
        """By layer, the shapes of the first tensor to keep that it returned, one a run."""
        self.passing_on: set[str] = set()
        """Layers that returned memory that they were given, as it was."""
        self.held = False
        """Whether a layer returned memory that it held before it ran."""
        self._layers = layers
        self._start = start
        self._run = run
        self._stepwise = stepwise or {}
        self.started: list[ReferenceType[Tensor]] = []
        """The tensors of the model's that a graph was started in."""
        self._kept: dict[str, list[_Kept]] = {}
        self._pick = pick or first_with_positions
        self._entered: dict[str, list[Given]] = {name: [] for name in layers}
        self._inputs: list[tuple[str, Tensor, int]] = []  # returned as they were given

    @property
    def points(self) -> dict[str, tuple[Point, ...]]:
        """By layer, in the order in which they ran: what it returned, in all runs that count."""
        return {
            name: tuple(point for kept in runs for point in kept.points)
            for name, runs in self._counted()
        }

    @property
    def returned(self) -> dict[str, Any]:
        """By layer, all that its caller received; an operation in place behind it shows here."""
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
            ValueError: if a layer returned its input and the model has overwritten that since.
        """
        for name, tensor, before in self._inputs:
            if version(tensor) != before:  # the copy that was handed on has missed that
                raise ValueError(_overwritten(name))

    def _enter(self, name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
            arguments = given = args, kwargs
            if any(map(torch._C._functorch.is_functorch_wrapped_tensor, tensors_of(given))):
                raise ValueError(
                    f"target_layers: '{name}' runs within torch.func (vmap or grad), whose tensors "
                    "have no place in a graph; name a layer outside of it"
                )
            if self._start is not None and name in self._start.copying:
                given = rebuild(given, copied)
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
        if self._start is None:
            return tensor
        if passed_on and name not in self._start.copying:
            self._inputs.append((name, tensor, version(tensor)))
            tensor = copied(tensor)
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


def _overwritten(name: str) -> str:
    return (
        f"target_layers: '{name}' returns its input, which the model overwrites later; name the "
        "layer before it"
    )


class Given:
    """What went into a layer, and which tensors there were before it ran."""

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
        """Whether this is memory of the arguments, with what it had before."""
        return self._versions.get(storage(tensor), -1) == version(tensor)


def has_graph(tensor: Tensor) -> bool:
    """Whether gradients reach it: not so a view that was taken under no_grad."""
    if not tensor.requires_grad:
        return False
    try:
        return not tensor._is_view() or tensor.grad_fn is not None
    except RuntimeError:  # such a view that has been written to has no answer
        return False


def started(
    tensor: Tensor, same: bool = False, passed: Callable[[Tensor], None] | None = None
) -> Tensor:
    """The tensor at the start of a graph, in the same memory; as it is without floating point.

    Args:
        same: whether the tensor itself gets the graph, so that all who hold it have it; a view and
            a tensor made in inference mode cannot.
        passed: called if a backward comes to the start.
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


def copied(tensor: Tensor) -> Tensor:
    """A copy with the same strides, for which every operator takes the same way."""
    if _is_dense(tensor) or not _lies_apart(tensor):
        return tensor.clone()
    return tensor.new_empty_strided(tensor.shape, tensor.stride()).copy_(tensor)


def point_of(tensor: Tensor) -> Point:
    """Where a tensor stands now."""
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
    """The gradient of the scores' sum with respect to each point, None if there is none.

    Args:
        retain: whether the graph stays for further calls.
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
    """Whether every element has memory that no other has: each stride steps over what is below."""
    reach = 0
    for stride, extent in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if extent > 1:
            if stride <= reach:
                return False
            reach += stride * (extent - 1)
    return True


def _held(module: nn.Module) -> list[Tensor]:
    """The parameters, buffers and attributes of a module itself."""
    found: list[Tensor] = []
    for value in (*module._parameters.values(), *module._buffers.values(), *vars(module).values()):
        if isinstance(value, dict):
            value = list(value.values())  # at once: other threads hang hooks on and off
        values = value if isinstance(value, (list, tuple)) else (value,)
        found += [v for v in values if isinstance(v, Tensor)]
    return found


def let_go(started: list[ReferenceType[Tensor]]) -> None:
    """Takes the graph from tensors that the model, its hooks or its user may have kept.

    Empties the list as it goes, so that what an interrupt leaves is the next call's to do.
    """
    while started:
        tensor = started[-1]()
        if tensor is not None and not tensor._is_view():
            tensor.detach_()
        started.pop()


class Held(NamedTuple):
    """A tensor with a graph that a model holds, and where."""

    place: Any
    """A mapping of attributes or buffers, or another object that holds it."""
    name: Any
    tensor: Tensor

    def let_go(self) -> None:
        """Takes the graph from it."""
        if not self.tensor._is_view():
            self.tensor.detach_()
        elif not isinstance(self.place, tuple):
            self.place[self.name] = self.tensor.detach()


def held_with_graph(model: nn.Module) -> list[Held]:
    """The tensors with a graph in the attributes, buffers and containers of modules."""
    found: list[Held] = []
    met: set[int] = set()

    def look(place: Any, parts: Iterable[tuple[Any, Any]]) -> None:
        for name, value in parts:
            if isinstance(value, Tensor):
                if value.requires_grad and not _is_leaf(value):
                    found.append(Held(place, name, value))
            elif not isinstance(value, _PLAIN) and id(value) not in met:
                met.add(id(value))
                if isinstance(value, dict):
                    look(value, list(value.items()))
                elif isinstance(value, (list, tuple)):
                    look(value, list(enumerate(value)))
                elif hasattr(value, "__dict__") and not callable(value):
                    look(vars(value), list(vars(value).items()))

    for module in modules_of(model):
        own = vars(module)
        kept = [(name, own[name]) for name in list(own) if name not in OF_EVERY_MODULE]
        look(own, kept)
        look(module._buffers, list(module._buffers.items()))
    return found


_PLAIN = (bool, int, float, str, bytes, type(None), ModuleType)


def _is_leaf(tensor: Tensor) -> bool:
    return not tensor._is_view() and tensor.grad_fn is None


def start_at_inputs(inputs: Inputs) -> Inputs:
    """The inputs at the start of a graph. They keep their memory; the user's tensors stay apart."""
    return rebuild(inputs, lambda tensor: started(tensor.data))


def find_start(
    model: nn.Module,
    one: Inputs,
    layers: Sequence[str],
    output: Any = None,
    repeat: int | None = None,
    stepwise: Mapping[str, int] | None = None,
) -> Start:
    """The start closest to the layers from which a graph holds all that reads them.

    "output" will do if nothing but what a layer returns is read later. A layer that also keeps a
    value that it has derived from its output needs "layer", grad modes within the model need
    "model". See :func:`closest_start`.

    Args:
        model, layers: as for :func:`fastcam.engine.capture.capture`.
        one: the inputs for one image.
        output: picks what is explained out of what the model returns; it may read the model too.
        repeat: which run of a layer counts; None for the last.
        stepwise: as for :class:`Recorder`.
    """

    def attempt(recorder: Recorder, whole: bool) -> Any:
        given = start_at_inputs(one) if whole else one
        outputs = trial(model, given, recorder.hooks, before=recorder.before, from_images=whole)
        with torch.enable_grad():
            return outputs if output is None else (outputs, output(outputs))

    modules = {name: model.get_submodule(name) for name in layers}
    return closest_start(attempt, modules, repeat, stepwise)


def has_hooks(model: nn.Module) -> bool:
    """Whether further runs of it would be noticed."""
    return any(map(hooks_of, model.modules()))


def closest_start(
    attempt: Callable[[Recorder, bool], Any],
    layers: Mapping[str, nn.Module],
    repeat: int | None = None,
    stepwise: Mapping[str, int] | None = None,
) -> Start:
    """The start of a graph for runs that somebody else makes.

    Each start is tried, and its graph compared with that of a run that records everything: three
    runs for most networks.

    Args:
        attempt: runs the network with a recorder's hooks, under ``no_grad`` or, if the second
            argument says so, with everything recorded; gives what holds the results and leaves no
            trace in the network.
        layers: by name.
        repeat: which run of a layer counts; None for the last.
        stepwise: as for :class:`Recorder`.

    Raises:
        ValueError: if a layer returns its input and the model overwrites that later.
    """

    def tried(start: Start | None) -> tuple[Recorder, list[Tensor]]:
        recorder = Recorder(layers, start, run=repeat, stepwise=stepwise)
        whole = start is not None and start.place == "model"
        results = tensors_of(attempt(recorder, whole))
        return recorder, [each for each in results if each.is_floating_point()]

    def readers(recorder: Recorder, roots: list[Tensor]) -> list[Counter[tuple[str, str]]]:
        return [_readers(roots, recorder.points.get(name, ())) for name in layers]

    first, plain = tried(None)
    copying = frozenset(first.passing_on)
    try:
        whole = tried(Start("model", copying))
        if whole[0].passing_on != copying:  # a model may hang on hooks in its first run
            copying = frozenset(whole[0].passing_on)
            whole = tried(Start("model", copying))
        if not copying and not _agree(plain, whole[1]):  # it asks whether a graph is recorded
            return Start("model", copying)
        expected = readers(*whole)
    except Exception as error:  # what the model does cannot be recorded as a whole
        raise_out_of_memory(error)
        return Start("layer", copying)
    places: tuple[Place, ...] = ("output", "layer")
    if any(m._backward_hooks or m._backward_pre_hooks for m in layers.values()):
        places = ()  # they want the gradient of the layer's input too
    for place in places:
        try:
            recorder, results = tried(Start(place, copying))
            found = readers(recorder, results)
        except Exception as error:  # torch's, if memory is written to with a graph, read without
            raise_out_of_memory(error)
            continue
        if copying and not all(map(close, results, plain)):
            raise ValueError(_overwritten(", ".join(copying)))
        if found == expected:
            return Start(place, copying)
    return Start("model", copying)


def _agree(results: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    return len(results) == len(expected) and all(map(agree, results, expected))


def _readers(roots: Iterable[Tensor], points: Iterable[Point]) -> Counter[tuple[str, str]]:
    """Every edge on the way from results to the points, by the names of its nodes."""
    nodes: dict[Node, None] = {}
    users: dict[Node, list[tuple[Node, int]]] = {}  # who takes which output of a node
    waiting = [root.grad_fn for root in roots if root.grad_fn is not None]
    while waiting:
        node = waiting.pop()
        if node in nodes:
            continue
        nodes[node] = None
        for user_of, number in node.next_functions:
            if user_of is not None:
                users.setdefault(user_of, []).append((node, number))
                waiting.append(user_of)
    counted: Counter[tuple[str, str]] = Counter()
    for point in points:
        if point.edge is None or point.own is None:
            continue
        inside = {point.own.node, *_between(point)}  # a view and what it is a view of are one
        reached: set[Node] = set()
        waiting = []
        for target in inside:
            for user, number in users.get(target, ()):
                edges = [e for e in (point.edge, point.own) if e.node is target]
                if user not in inside and (not edges or number in [e.output_nr for e in edges]):
                    counted[user.name(), ""] += 1
                    waiting.append(user)
        while waiting:
            node = waiting.pop()
            if node in reached:
                continue
            reached.add(node)
            for user, _ in users.get(node, ()):
                counted[user.name(), node.name()] += 1
                waiting.append(user)
    return counted


def _between(point: Point) -> list[Node]:
    """The nodes from a view down to the tensor that it is a view of."""
    assert point.own is not None
    assert point.edge is not None
    found: list[Node] = []
    node: Node | None = point.own.node
    while node is not None and node is not point.edge.node:
        found.append(node)
        node = node.next_functions[0][0] if node.next_functions else None
    return [point.edge.node, *found] if node is not None else [point.own.node, point.edge.node]
