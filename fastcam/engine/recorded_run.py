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
from fastcam.errors import ArgumentError

Graph = Literal["layers", "images"]
"""Where the recorded graph starts: at the target layers or at the images."""


@dataclass(frozen=True)
class RecordedRun:
    """The raw results of one run of a network."""

    outputs: Any
    """The model's outputs, with their graph."""
    points: dict[str, tuple[Point, ...]]
    """By layer, in the order in which they ran: the first tensor with positions that it returned,
    and its place in the graph, for each run that counts."""
    returned: dict[str, Any]
    """By layer, all that its caller received, including later operations in place."""
    shapes: dict[str, list[torch.Size]]
    """By layer, the shapes that it returned, one per run."""
    counted: dict[str, int]
    """By layer that ran, the index of the run that counts, from 0."""
    inputs: Inputs
    """The model's inputs."""
    images: Tensor | None
    """The first input with positions; the graph's leaf if it starts at the images."""
    linear: tuple[nn.Linear, Tensor, Tensor] | None
    """The last linear layer that ran, its input and output."""
    started: list[ReferenceType[Tensor]]
    """The model's tensors at which a graph was started."""

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
        reruns: whether further runs should start with the present inputs.

    Raises:
        ValueError: if the graph should start at the images but these are not floating point; for
            a quantized module above a layer.
    """
    repeats = repeats or Repeats()
    inputs = rebuild(inputs, lambda tensor: tensor.clone() if tensor.is_inference() else tensor)
    images = images_of(inputs, picture)
    given = inputs
    if graph == "images":
        if images is None or not images.is_floating_point():
            raise ArgumentError(
                "images",
                "got no floating-point tensor (N, C, *S), but this method needs the "
                "gradient with respect to them",
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
            raise ArgumentError(
                "model",
                "its parameters cannot be recorded; create or load it outside of "
                "torch.inference_mode()",
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
