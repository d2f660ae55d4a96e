"""Which run of a layer counts if it runs several times."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from fastcam.engine.inputs import Inputs, images_of, with_images
from fastcam.engine.trials import trial
from fastcam.engine.values import rebuild, replace_first
from fastcam.errors import ArgumentError


class Repeats:
    """The run that counts: the one that was chosen, or the last if it depends on all the others.

    It does in a shared activation and in a loop, but not in the branches of a Siamese network. The
    dependence is found once for each layer, by one run with a whole graph; if the model cuts its
    graph, by runs with a changed output.

    Args:
        chosen: the index of the run, from 0, or from -1 backwards; None for the last.
    """

    def __init__(self, chosen: int | None = None) -> None:
        if chosen is not None and (isinstance(chosen, bool) or not isinstance(chosen, int)):
            raise TypeError(f"run: got {chosen!r}, expected the index of a run, an int")
        self.chosen = chosen
        self._checked: set[str] = set()

    def index(self, name: str, shapes: Sequence[torch.Size]) -> int:
        """The index of the run that counts, from 0, of a layer that gave these shapes.

        Raises:
            ValueError: if there is no such run.
        """
        chosen, count = -1 if self.chosen is None else self.chosen, len(shapes)
        if not -count <= chosen < count:
            times = "once" if count == 1 else f"{count} times"
            raise ArgumentError(
                "run", f"got {chosen}, but '{name}' ran {times}, expected {-count} to {count - 1}"
            )
        return chosen % count

    def forget(self) -> None:
        """Drops all findings, so that they are made again."""
        self._checked.clear()

    def needs_check(self, repeated: Collection[str]) -> bool:
        """Whether one of these layers, which run several times, has not been checked yet."""
        return self.chosen is None and not self._checked.issuperset(repeated)

    def check(
        self,
        model: nn.Module,
        inputs: Inputs,
        repeated: Mapping[str, Sequence[torch.Size]],
        stepwise: Mapping[str, int],
    ) -> None:
        """Checks that the last run of each of these layers may count without having been chosen.

        Args:
            model: the model that ran.
            inputs: the inputs of one image, for another run.
            repeated: the layers that run several times, and the shapes that they gave.
            stepwise: those that run for each step of a loop, and how often: there it is the last
                run of each step.

        Raises:
            ValueError: if not, with the layer's runs.
        """
        unknown = [name for name in repeated if name not in self._checked]
        for name, edges in whole_graph(model, inputs, unknown).items():
            if len(edges) != len(repeated[name]) and name not in stepwise:
                raise ArgumentError(
                    "target_layers",
                    f"'{name}' ran {len(repeated[name])} times for these images, "
                    f"but {len(edges)} for one of them alone: it goes through its images one "
                    "by one; give one image at a time",
                )
            if name in stepwise:
                times = stepwise[name]
                steps = [edges[i : i + times] for i in range(0, len(edges), times)]
                depends = all(map(is_ancestor_of_last, steps))
            elif None in edges:  # the model cuts its graph
                depends = changes_last(model, inputs, name, len(edges))
            else:
                depends = bool(edges) and is_ancestor_of_last(edges)
            if not depends:
                runs = ", ".join(f"{i}: {tuple(s)}" for i, s in enumerate(repeated[name]))
                raise ArgumentError(
                    "target_layers",
                    f"'{name}' runs {len(repeated[name])} times and the last run "
                    "does not depend on all the others; choose one by run=, of those that "
                    f"returned {runs}",
                )
            self._checked.add(name)


def whole_graph(
    model: nn.Module, inputs: Inputs, layers: Collection[str]
) -> dict[str, list[GradientEdge | None]]:
    """The places of each layer's outputs in a graph from the images and the parameters on.

    If an output has several tensors, the first with positions; None if it has no graph.
    """
    edges: dict[str, list[GradientEdge | None]] = {name: [] for name in layers}
    images = images_of(inputs)
    if images is not None and images.is_floating_point():
        with torch.enable_grad():
            inputs = with_images(inputs, images.detach().requires_grad_().clone())

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, returned: Any) -> None:
            def note(tensor: Tensor) -> Tensor:
                edges[name].append(get_gradient_edge(tensor) if tensor.requires_grad else None)
                return tensor

            replace_first(returned, note)

        return hook

    hooks = [(model.get_submodule(name), keep(name)) for name in layers]
    # function modes that surround this, as guided backpropagation's, are about another run
    with torch._C.DisableTorchFunction():
        trial(model, inputs, hooks, from_images=True)
    return edges


def changes_last(model: nn.Module, inputs: Inputs, layer: str, runs: int) -> bool:
    """Whether the last output of a layer changes if any of the earlier ones is changed."""

    def last(changed: int | None) -> Tensor:
        outputs: list[Tensor] = []

        def hook(module: nn.Module, args: Any, returned: Any) -> Any:
            def note(tensor: Tensor) -> Tensor:
                outputs.append(tensor.clone())
                return tensor * 1.5 + 0.1 if len(outputs) - 1 == changed else tensor

            return replace_first(returned, note)

        trial(model, rebuild(inputs, Tensor.clone), [(model.get_submodule(layer), hook)])
        return outputs[-1]

    with torch._C.DisableTorchFunction():
        expected = last(None)
        return all(not torch.equal(last(i), expected) for i in range(runs - 1))


def is_ancestor_of_last(edges: Sequence[GradientEdge | None]) -> bool:
    """Whether the last of these places in a graph was computed from every other one."""
    *others, last = edges
    if last is None or any(edge is None for edge in others):
        return False
    wanted = {edge.node for edge in others if edge is not None}
    met: set[Node] = {last.node}
    waiting = [last.node]
    while waiting and not wanted <= met:
        for node, _ in waiting.pop().next_functions:
            if node is not None and node not in met:
                met.add(node)
                waiting.append(node)
    return wanted <= met
