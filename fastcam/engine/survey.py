"""Every layer's output for one image, and the score's gradient with respect to it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from fastcam.engine.inputs import Inputs, images_of, rows_of, with_images
from fastcam.engine.opaque import is_quantized, why_hidden
from fastcam.engine.outputs import Output, logits_of
from fastcam.engine.shapes import has_positions
from fastcam.engine.trials import raise_out_of_memory, trial
from fastcam.engine.values import rebuild, storage, tensors_of, version
from fastcam.errors import ArgumentError

_AT_ONCE = 16  # gradients per backward; the layer is usually one of the last


@dataclass(frozen=True, eq=False)
class Returned:
    """The first tensor with positions of a module's last run on which the score depends."""

    name: str
    module: nn.Module
    runs: int
    """How often the module ran."""
    tensor: Tensor
    version: int
    """The tensor's when the module returned it: an operation in place makes the next one."""
    edge: GradientEdge | None
    """Its place in the graph, or None if it has none."""
    order: int
    """When it was computed, not returned: what a list holds first is no later than the rest."""


@dataclass(frozen=True)
class Survey:
    """One run on the first image. It holds the whole graph: drop it when done."""

    logits: Tensor
    class_id: int
    """The top class; for dense scores the top class at the most positions."""
    images: torch.Size | None
    """The shape of the images."""
    groups: list[list[Returned]]
    """Modules that returned the same tensor, the innermost first; the last tensor first."""
    has_graph: bool
    """Whether autograd leads from the score to the images; else the groups are all that ran."""
    score: Tensor

    @property
    def extents(self) -> tuple[int, ...] | None:
        """The usual extents of the images' positions."""
        return None if self.images is None else tuple(self.images[2:])

    def gradients(self, of: Sequence[Returned]) -> Iterator[tuple[Returned, Tensor | None]]:
        """dS/dA for the top class, as the modules returned A; None without a graph."""
        for start in range(0, len(of), _AT_ONCE):
            some = of[start : start + _AT_ONCE]
            edges = [each.edge for each in some if each.edge is not None]
            if not self.has_graph or not edges:
                yield from ((each, None) for each in some)
                continue
            try:
                found = torch.autograd.grad(self.score, edges, retain_graph=True, allow_unused=True)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise_out_of_memory(error)
                raise ArgumentError(
                    "target_layers",
                    "none given, and the search for one failed in the gradient of "
                    f"the model's top score ({error}); name a layer",
                ) from error
            yield from zip(some, found, strict=True)


def survey(model: nn.Module, inputs: Inputs, output: Output | None, picture: int = 0) -> Survey:
    """Runs the model on one image, with a graph from the images on.

    Args:
        picture: which of the tensors with positions that is.

    Raises:
        ValueError: if the model returned no scores.
    """
    images = images_of(inputs, picture)
    if images is not None and len(images) == 0:  # a blank one instead
        inputs = rebuild(
            inputs, lambda t: t if t.dim() == 0 or len(t) else t.new_zeros(1, *t.shape[1:])
        )
        images = images_of(inputs, picture)
    # parameters made in inference mode cannot be recorded, nor quantized modules differentiated
    recorded = not (
        any(parameter.is_inference() for parameter in model.parameters())
        or any(map(is_quantized, model.modules()))
    )
    leaf = None
    given = images if images is not None else next(iter(tensors_of(inputs)), None)
    if recorded and given is not None and given.is_floating_point():
        leaf = given.detach().requires_grad_()
        with torch.enable_grad():
            copied = leaf.clone()  # the model may write into it
        if images is not None:
            inputs = with_images(inputs, copied, picture)
        else:
            inputs = rebuild(inputs, lambda tensor: copied if tensor is given else tensor)
    every: list[Returned] = []
    runs: Counter[str] = Counter()

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, returned: Any) -> None:
            tensor = next(filter(has_positions, tensors_of(returned)), None)
            if tensor is None:
                return
            runs[name] += 1
            edge = get_gradient_edge(tensor) if tensor.requires_grad else None
            order = runs.total()
            if recorded:
                order = -1 if edge is None or tensor.is_leaf else edge.node._sequence_nr()
            # the tensor is kept, so that its memory is no later one's
            every.append(Returned(name, module, runs[name], tensor, version(tensor), edge, order))

        return hook

    hooks = [
        (module, watch(name))
        for name, module in model.named_modules()
        if name and why_hidden(model, name) is None
    ]
    outputs = trial(model, inputs, hooks, from_images=recorded)
    with torch.set_grad_enabled(recorded):
        logits = logits_of(outputs, output, rows_of(inputs))
        score, class_id = _top(logits)
    nodes = _nodes(score, leaf)
    bears = [each for each in every if not nodes or (each.edge and each.edge.node in nodes)]
    last = {each.name: i for i, each in enumerate(bears)}  # of a layer's runs
    seen = [replace(bears[i], runs=runs[bears[i].name]) for i in sorted(last.values())]
    if nodes:
        seen.sort(key=lambda each: each.order)  # keeps the order of what is the same tensor
    same: dict[tuple[int, int], list[Returned]] = defaultdict(list)
    for each in seen:
        same[storage(each.tensor), each.version].append(each)
    return Survey(
        logits=logits.detach(),
        class_id=class_id,
        images=None if images is None else images.shape,
        groups=list(same.values())[::-1],
        has_graph=bool(nodes),
        score=score,
    )


def _top(logits: Tensor) -> tuple[Tensor, int]:
    """The score of the top class, and its id.

    For dense scores (N, K, *S), the class that is on top at the most positions, summed over these.
    """
    if logits.numel() == 0:
        raise ArgumentError(
            "output",
            f"got {tuple(logits.shape)}, which is no score, for the first image; name a "
            "layer as target_layers, or give an image that the model has an answer to",
        )
    if logits.dim() > 2:
        winners = logits.detach().argmax(1)
        class_id = int(winners.flatten().mode().values)
        return logits.select(1, class_id)[winners == class_id].sum(), class_id
    scores = logits.flatten()
    top = int(scores.detach().argmax())
    return scores[top], top % logits.shape[-1]


def _nodes(score: Tensor, leaf: Tensor | None) -> set[Node]:
    """The nodes of the score's graph that depend on the leaf; without a leaf all of them."""
    if score.grad_fn is None:
        return set()
    readers: dict[Node, list[Node]] = {score.grad_fn: []}
    waiting = [score.grad_fn]
    while waiting:
        node = waiting.pop()
        for source, _ in node.next_functions:
            if source is None:
                continue
            if source not in readers:
                readers[source] = []
                waiting.append(source)
            readers[source].append(node)
    if leaf is None:
        return set(readers)
    found: set[Node] = set()
    waiting = [get_gradient_edge(leaf).node]
    while waiting:
        node = waiting.pop()
        if node in readers and node not in found:
            found.add(node)
            waiting += readers[node]
    return found
