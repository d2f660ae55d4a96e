"""One run of a network with a graph from the target layers up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import ReferenceType

import torch
from torch import Tensor, nn

from fastcam.engine.graph import OUTPUT, Point, Start
from fastcam.engine.inputs import Inputs, images_of, with_images
from fastcam.engine.opaque import refusals
from fastcam.engine.recorder import Recorder
from fastcam.engine.repeats import Repeats
from fastcam.engine.running import Hooks, modules_of, run
from fastcam.engine.start import start_at_inputs
from fastcam.engine.values import rebuild

Graph = Literal["layers", "images"]
"""Where the recorded graph starts: at the target layers or at the images."""


@dataclass(frozen=True)
class RecordedRun:
    """What one run of a network left behind, before anything is read out of it."""

    outputs: Any
    """What the model returned, with its graph."""
    points: dict[str, tuple[Point, ...]]
    """By layer, in the order in which they ran: the first tensor with positions that it returned,
    and where it stands in the graph, for each run that counts."""
    returned: dict[str, Any]
    """By layer, all that its caller received: an operation in place behind it shows here."""
    shapes: dict[str, list[torch.Size]]
    """By layer, the shapes that it returned, one a run."""
    counted: dict[str, int]
    """By layer that ran, which run that is, from 0."""
    inputs: Inputs
    """What went in."""
    images: Tensor | None
    """The first input with positions; the graph's leaf where it starts at the images."""
    linear: tuple[nn.Linear, Tensor, Tensor] | None
    """The last linear layer that ran, its input and output."""
    started: list[ReferenceType[Tensor]]
    """The model's tensors that a graph was started in."""

    @property
    def runs(self) -> dict[str, int]:
        """By layer, how often it ran."""
        return {name: len(shapes) for name, shapes in self.shapes.items()}


def record(
    model: nn.Module,
    inputs: Inputs,
    layers: Sequence[str],
    *,
    graph: Graph | None = "layers",
    start: Start | None = None,
    hooks: Hooks = (),
    repeats: Repeats | None = None,
    stepwise: Mapping[str, int] | None = None,
    picture: int = 0,
    reruns: bool = False,
) -> RecordedRun:
    """Runs the model once in evaluation mode, with a graph from the first of the layers up.

    Args:
        model, inputs, layers, graph, start, repeats: as for :func:`capture`.
        hooks: further forward hooks, for this run.
        stepwise: the layers that run for each step of a loop, and how often: the last of each
            step counts.
        picture: which of the tensors with positions are the images.
        reruns: whether further runs are to begin with the inputs as they are now.

    Raises:
        ValueError: for images without floating point, where the graph is to start there; for a
            quantized module above a layer.
    """
    repeats = repeats or Repeats()
    inputs = rebuild(inputs, lambda tensor: tensor.clone() if tensor.is_inference() else tensor)
    images = images_of(inputs, picture)
    given = inputs
    if graph == "images":
        if images is None or not images.is_floating_point():
            raise ValueError(
                "images: got no floating-point tensor (N, C, *S), but this method derives the "
                "score by them"
            )
        images = images.detach().requires_grad_()
        with torch.enable_grad():
            inputs = with_images(inputs, images.clone(), picture)  # it may write there
        start = Start("model")
    elif graph is None:
        start = None
    else:
        start = start or OUTPUT
        if start.place == "model":
            inputs = start_at_inputs(inputs)
        elif start.place == "layer":  # the user's own tensors do not count what happens here
            inputs = rebuild(inputs, lambda tensor: tensor.data)
    if reruns:
        inputs = rebuild(inputs, Tensor.clone)  # the model may write there
    modules = {name: model.get_submodule(name) for name in layers}
    recorder = Recorder(modules, start, run=repeats.chosen, stepwise=stepwise)
    linear: list[tuple[nn.Linear, Tensor, Tensor]] = []

    def remember(module: nn.Linear, args: tuple[Tensor, ...], returned: Tensor) -> None:
        if args and args[0].dim() == 2:
            linear[:] = [(module, args[0].detach(), returned.detach())]

    every = modules_of(model)
    heads = [(module, remember) for module in every if isinstance(module, nn.Linear)]
    ends = refusals(model, every) if graph is not None else ()
    try:
        outputs = run(
            model,
            inputs,
            [*recorder.hooks, *heads, *hooks, *ends],
            before=recorder.before,
            from_images=start is not None and start.place == "model",
        )
    except RuntimeError as error:
        if any(parameter.is_inference() for parameter in model.parameters()):
            raise ValueError(
                "model: its parameters cannot be recorded; create or load it outside of "
                "torch.inference_mode()"
            ) from error
        raise
    recorder.check()
    shapes = {name: recorder.shapes[name] for name in layers}
    counted = {name: repeats.index(name, shapes[name]) for name in layers if shapes[name]}
    return RecordedRun(
        outputs,
        recorder.points,
        recorder.returned,
        shapes,
        counted,
        given,
        images,
        linear[0] if linear else None,
        recorder.started,
    )
