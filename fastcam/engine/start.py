"""How close to the target layer the graph of a run may start.

Below the start the network runs as in inference. How close it may be depends on who reads what the
layer computes: see :func:`find_start`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from fastcam.engine.graph import Place, Point, Start, started
from fastcam.engine.inputs import Inputs
from fastcam.engine.recorder import Recorder, overwritten
from fastcam.engine.running import hooks_of
from fastcam.engine.trials import raise_out_of_memory, trial
from fastcam.engine.values import agree, close, rebuild, tensors_of


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
            raise ValueError(overwritten(", ".join(copying)))
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
