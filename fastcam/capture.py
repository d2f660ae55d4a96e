"""One run of a network: a layer's activations, and the gradients of any score with respect to them.

Below the first target layer the network runs as in inference; from there up autograd records, and
:meth:`Capture.gradients` asks for dS/dA alone. The network runs in evaluation mode and is left as
it was found: hooks and modes are put back on every way out; fastcam never writes to parameters,
``.grad`` and buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastcam.engine.inputs import Inputs, images_of
from fastcam.engine.outputs import Output, logits_of
from fastcam.engine.running import Hooks, run
from fastcam.engine.survey import Reading, Survey, Unreadable, survey
from fastcam.engine.values import close, rebuild, replace_first, shares_input
from fastcam.layout import Reshape, is_ambiguous, reading, token_grid
from fastcam.targets import Selection

Graph = Literal["layers", "images"]  # where the recorded graph starts


@dataclass(frozen=True)
class PooledHead:
    """Global average pooling and one linear layer behind a layer: S_c = W[c] mean(pooled) + b."""

    weight: Tensor
    """(classes, C), float32 or float64."""
    pooled: Tensor
    """What is averaged, (N, C, *S): A, or ReLU(A)."""
    rectified: bool
    """Whether that is ReLU(A)."""


@dataclass(frozen=True)
class Capture:
    """What one run of a network left behind. It holds the recorded graph: drop it when done."""

    outputs: Any
    """The model's own answer, detached."""
    logits: Tensor
    """The class scores within it, (N, classes) as a rule, with their graph."""
    layers: tuple[str, ...]
    """The target layers' names."""
    activations: tuple[Tensor, ...]
    """One a layer, (N, C, *S), without a graph."""
    extents: tuple[int, ...] | None
    """The extents of the images' positions."""
    places: tuple[int, ...]
    """The images' axes that are positions."""
    images: Tensor | None
    """The first input with positions; the graph's leaf where it starts at the images."""
    nodes: tuple[Tensor, ...]
    """What the layers returned, with its graph: in another form than ``activations``, as a rule."""
    readings: tuple[Reshape, ...]
    """What turns that, and its gradient, into (N, C, *S)."""

    runs: tuple[int, ...]
    """How often each layer ran; the last time counts."""

    _model: nn.Module
    _inputs: Inputs
    _output: Output | None
    _autocast: tuple[str, bool, torch.dtype]  # device type, on or off, precision
    _linear: tuple[nn.Linear, Tensor, Tensor] | None  # the last one that ran, its input and output

    def gradients(self, scores: Tensor, *, retain: bool = True) -> list[Tensor]:
        """dS/dA for each layer, (N, C, *S).

        Args:
            scores: (N,), computed from ``logits`` with autograd on; each image's score depends on
                that image alone.
            retain: whether the graph stays for further calls.

        Raises:
            ValueError: if a score does not depend on a layer.
        """
        found = self._raw_gradients(scores, retain)
        return [read(gradient) for read, gradient in zip(self.readings, found, strict=True)]

    def hessian_products(
        self, scores: Tensor, *, retain: bool = True
    ) -> list[tuple[Tensor, Tensor]]:
        """dS/dA, and the Hessian d2S/dA2 times A, for each layer: twice (N, C, *S).

        Args:
            scores: as for :meth:`gradients`.
            retain: whether the graph stays for further calls.
        """
        products = []
        with torch.enable_grad():
            found = self._raw_gradients(scores, True, create_graph=True)
        for i, (gradient, node, read) in enumerate(
            zip(found, self.nodes, self.readings, strict=True), start=1
        ):
            kept = retain or i < len(found)
            product = None
            if gradient.requires_grad:
                (product,) = torch.autograd.grad(
                    gradient, node, node.detach(), retain_graph=kept, allow_unused=True
                )
            # a network that is linear from the layer up has no second derivative
            product = torch.zeros_like(gradient) if product is None else product
            products.append((read(gradient.detach()), read(product)))
        return products

    def _raw_gradients(
        self, scores: Tensor, retain: bool, create_graph: bool = False
    ) -> list[Tensor]:
        """dS/dA as the layers returned A."""
        found = _gradients(scores, self.nodes, retain, create_graph)
        gradients = []
        for name, gradient in zip(self.layers, found, strict=True):
            if gradient is None:
                raise ValueError(
                    f"target_layers: the score does not depend on what '{name}' returned (a branch "
                    "that is not used, or torch.no_grad() or detach() behind it in the model)"
                )
            gradients.append(gradient)
        return gradients

    def image_gradients(self, scores: Tensor, *, retain: bool = True) -> Tensor:
        """dS/dx for the images x, in their shape; the graph must start at the inputs."""
        assert self.images is not None
        (gradient,) = _gradients(scores, (self.images,), retain)
        if gradient is None:
            raise ValueError("model: the score does not depend on the images")
        return gradient

    def over_images(self, masks: Tensor) -> Tensor:
        """Masks (R, *S) for the images' positions, in a shape that multiplies with the images."""
        assert self.images is not None
        shape = [1] * self.images.dim()
        for axis, extent in zip(self.places, masks.shape[1:], strict=True):
            shape[axis] = extent
        return masks.reshape(masks.shape[0], *shape[1:])

    def module(self, layer: int) -> nn.Module:
        """The layer itself."""
        return self._model.get_submodule(self.layers[layer])

    def autocast(self) -> torch.autocast:
        """The precision that the run had, for others like it."""
        device, enabled, dtype = self._autocast
        return torch.autocast(device, dtype=dtype, enabled=enabled)

    def inputs(self, rows: Tensor, images: Tensor | None = None) -> Inputs:
        """What went into the model, other rows of it.

        Args:
            rows: (R,), which image each row is of.
            images: (R, C, *S), what to put in the place of those images.
        """
        count = self.logits.shape[0]

        def row(tensor: Tensor) -> Tensor:
            if tensor is self.images and images is not None:
                return images
            return tensor[rows] if tensor.dim() and tensor.shape[0] == count else tensor

        return rebuild(self._inputs, row)

    def again(self, rows: Tensor, images: Tensor | None = None, hooks: Hooks = ()) -> Tensor:
        """The logits (R, ...) of another run of the model, in the same precision.

        Args:
            rows, images: see :meth:`inputs`.
            hooks: forward hooks, for this run.
        """
        with self.autocast():
            outputs = run(self._model, self.inputs(rows, images), hooks)
        return logits_of(outputs, self._output).detach()

    def for_runs_of(self, prepare: Callable[[nn.Module, Inputs], nn.Module]) -> Capture:
        """The same, whose :meth:`again` runs what ``prepare`` makes of the model and its inputs."""
        with self.autocast(), torch.no_grad():
            return replace(self, _model=prepare(self._model, self._inputs))

    def pooled_head(self, layer: int, selection: Selection) -> PooledHead | None:
        """The layer's global average pooling and linear head, None where the network has another.

        Accepted where the last linear layer gave the logits and took the mean of A or ReLU(A), and
        the gradient of the scores is W[c] / Z (where A > 0): the values alone would also fit a ReLU
        behind A >= 0 that blocks gradients, or a block that is near to the identity.

        Args:
            layer: the index of the layer.
            selection: the classes to explain; the gradient of the first one is checked.
        """
        if self._linear is None or selection.class_ids is None:
            return None
        linear, features, answer = self._linear
        activations = self.activations[layer]
        if (
            features.shape != activations.shape[:2]
            or answer.data_ptr() != self.logits.data_ptr()
            or answer.numel() != self.logits.numel()
        ):
            return None
        weight = linear.weight.detach()
        weight = weight if weight.dtype == torch.float64 else weight.float()
        class_ids = (
            selection.class_ids if selection.class_ids.dim() == 1 else selection.class_ids[:, 0]
        )
        slope = weight[class_ids] / activations.shape[2:].numel()  # (N, C)
        slope = slope.reshape(slope.shape + (1,) * (activations.dim() - 2))
        finite = activations.flatten(1).isfinite().all(1)  # NaN says nothing about the head
        if finite.numel() and not finite.any():
            return None
        for rectified in (False, True):
            pooled = activations.relu() if rectified else activations
            if not close(features[finite], pooled.flatten(2).mean(-1)[finite]):
                continue
            expected = slope * (activations > 0) if rectified else slope.expand_as(activations)
            gradient = self.gradients(selection.columns()[0])[layer]
            if close(gradient[finite], expected[finite]):
                return PooledHead(weight, pooled, rectified)
        return None


@dataclass(frozen=True)
class Recording:
    """What one run of a network left behind, before anything is read out of it."""

    outputs: Any
    """What the model returned, with its graph."""
    nodes: dict[str, Tensor]
    """By layer, the first tensor with positions that it returned: what scores are derived by."""
    handed_on: dict[str, Any]
    """By layer, all that the model went on with: an operation in place behind it shows here."""
    runs: dict[str, int]
    """By layer, how often it ran; the last time counts."""
    inputs: Inputs
    """What went in."""
    images: Tensor | None
    """The first input with positions; the graph's leaf where it starts at the images."""
    linear: tuple[nn.Linear, Tensor, Tensor] | None
    """The last linear layer that ran, its input and output."""


def record(
    model: nn.Module, inputs: Inputs, layers: Sequence[str], *, graph: Graph | None = "layers"
) -> Recording:
    """Runs the model once in evaluation mode, with a graph from the first of the layers up.

    Args:
        model, inputs, layers, graph: as for :func:`capture`.

    Raises:
        ValueError: for images without floating point, where the graph is to start there.
    """
    inputs = rebuild(inputs, lambda tensor: tensor.clone() if tensor.is_inference() else tensor)
    images = images_of(inputs)
    given = inputs
    if graph == "images":
        if images is None or not images.is_floating_point():
            raise ValueError(
                "images: got none in floating point, but this method derives the score by them"
            )
        first, images = images, images.detach().requires_grad_()
        with torch.enable_grad():
            copied = images.clone()  # the model may write into it
        inputs = rebuild(inputs, lambda tensor: copied if tensor is first else tensor)
    nodes: dict[str, Tensor] = {}
    handed_on: dict[str, Any] = {}
    runs = dict.fromkeys(layers, 0)
    shared: list[tuple[str, Tensor, int]] = []  # returned tensors that are the layer's input too
    linear: list[tuple[nn.Linear, Tensor, Tensor]] = []

    def watch(name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, returned: Any) -> Any:
            def node(tensor: Tensor) -> Tensor:
                runs[name] += 1
                nodes[name] = tensor if tensor.requires_grad else tensor.detach()
                if graph is not None:
                    nodes[name].requires_grad_()
                    torch.set_grad_enabled(True)  # undone by the no_grad around the model
                if shares_input(tensor, args):
                    # what was written to its input may be read from there: record that very tensor
                    if in_place(module) and not (tensor.requires_grad or tensor._is_view()):
                        nodes[name] = nodes[name].detach().clone()
                        nodes[name].requires_grad_(graph is not None)
                        return tensor.copy_(nodes[name])
                    shared.append((name, tensor, tensor._version))
                return nodes[name].clone()  # what comes next may write into it

            handed_on[name] = replace_first(returned, node)
            return handed_on[name]

        return hook

    def remember(module: nn.Linear, args: tuple[Tensor, ...], returned: Tensor) -> None:
        if args and args[0].dim() == 2:
            linear[:] = [(module, args[0].detach(), returned.detach())]

    hooks = [(model.get_submodule(name), watch(name)) for name in layers]
    heads = [(module, remember) for module in model.modules() if isinstance(module, nn.Linear)]
    try:
        outputs = run(model, inputs, [*hooks, *heads], from_images=graph == "images")
    except RuntimeError as error:
        if any(parameter.is_inference() for parameter in model.parameters()):
            raise ValueError(
                "model: its parameters cannot be recorded; create or load it outside of "
                "torch.inference_mode()"
            ) from error
        raise
    for name, tensor, version in shared:
        if tensor._version != version:  # the clone that was handed on has missed that
            raise ValueError(
                f"target_layers: '{name}' returns its input, which the model overwrites later; "
                "name the layer before it"
            )
    return Recording(outputs, nodes, handed_on, runs, given, images, linear[0] if linear else None)


def capture(
    model: nn.Module,
    inputs: Inputs,
    layers: Sequence[str],
    *,
    reshape: Reshape | None = None,
    output: Output | None = None,
    graph: Graph | None = "layers",
    axes: Survey | None = None,
) -> Capture:
    """Runs the model once in evaluation mode and records it from the first of the layers up.

    Call it outside of ``torch.inference_mode``. Of a layer that runs several times the last counts.

    Args:
        model: as :func:`unwrap` gives it.
        inputs: a tensor, or a tuple or mapping that is passed on to the model.
        layers: dotted names within the model.
        reshape: turns a layer's output, and its gradient, into (N, C, *S) where the shape does not
            tell how.
        output: picks the logits out of what the model returns (see :func:`logits_of`).
        graph: where it starts, at the first layer or at the images; None records none.
        axes: what a run told of the layers' axes, found by one more run if it is not given.

    Raises:
        ValueError: if a layer did not run or has no positions or several readings, or the model
            returned no logits.
    """
    if axes is None:
        axes = survey(model, inputs, layers) if layers else Survey(None, {})
    recorded = record(model, inputs, layers, graph=graph)
    nodes, images = recorded.nodes, recorded.images
    places = axes.places or (() if images is None else tuple(range(2, images.dim())))
    extents = None if images is None else tuple(images.shape[axis] for axis in places)
    logits = logits_of(recorded.outputs, output)

    readings = []
    for name in layers:
        if name not in nodes:
            raise ValueError(
                f"target_layers: '{name}' did not run, or returned no floating-point tensor with "
                "positions, (N, C, *S) or (N, tokens, C)"
            )
        if images is not None and images.dim() == 5 and recorded.runs[name] in axes.steps - {1}:
            raise ValueError(
                f"target_layers: '{name}' ran {recorded.runs[name]} times, once for each picture "
                "of the clip; name a layer behind the loop, or let the model fold time into the "
                "batch, (B * T, C, H, W)"
            )
        found = axes.layers.get(name)
        readings.append(reshape or _reading(name, nodes[name], extents, found, logits.shape[0]))
    activations = tuple(
        read(nodes[name].detach()) for name, read in zip(layers, readings, strict=True)
    )
    for name, layer in zip(layers, activations, strict=True):
        if layer.dim() < 3 or layer.shape[0] != logits.shape[0]:
            raise ValueError(
                f"target_layers: '{name}' gives {tuple(layer.shape)}, expected (N, C, *S) with the "
                f"N = {logits.shape[0]} of the model's output; another layer or reshape= may help"
            )
    return Capture(
        outputs=rebuild(recorded.outputs, Tensor.detach),
        logits=logits,
        layers=tuple(layers),
        activations=activations,
        extents=extents,
        places=places,
        images=images,
        nodes=tuple(nodes[name] for name in layers),
        readings=tuple(readings),
        runs=tuple(recorded.runs[name] for name in layers),
        _model=model,
        _inputs=recorded.inputs,
        _output=output,
        _autocast=_autocast(logits.device.type),
        _linear=recorded.linear,
    )


def _reading(
    name: str,
    output: Tensor,
    extents: tuple[int, ...] | None,
    found: Reading | Unreadable | None,
    rows: int,
) -> Reshape:
    """By what happened to the axes of a layer's output; by their extents if that is not known."""
    came = f"target_layers: '{name}' returned {tuple(output.shape)}, "
    way = "; give reshape= to turn it into (N, C, *S)"
    if isinstance(found, Unreadable):
        raise ValueError(came + found.reason + way)
    if found is not None and found.is_row and extents is not None and len(extents) > 1:
        tokens = found(output).shape[2]
        grid = token_grid(tokens, (extents[0], extents[1])) if len(extents) == 2 else None
        if grid is None:
            raise ValueError(f"{came}which is no grid of patches of a {extents} image{way}")
        return found.on_grid(grid[0], grid[1:])
    if found is not None:
        return found
    read = reading(output.shape, extents)
    if read is None:
        raise ValueError(f"{came}which is no grid of patches of a {extents} image{way}")
    if output.shape[0] == rows and is_ambiguous(output.shape, extents):
        raise ValueError(
            f"{came}whose axes could not be followed, and which can be read in two ways{way}"
        )
    return read


def in_place(module: nn.Module) -> bool:
    """Whether it writes to its input; dropout in evaluation mode never does."""
    dropout = isinstance(module, nn.modules.dropout._DropoutNd)
    return bool(getattr(module, "inplace", False)) and not dropout


def _autocast(device: str) -> tuple[str, bool, torch.dtype]:
    return device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)


def _gradients(
    scores: Tensor, nodes: tuple[Tensor, ...], retain: bool, create_graph: bool = False
) -> tuple[Tensor | None, ...]:
    if not scores.requires_grad:
        return (None,) * len(nodes)
    return torch.autograd.grad(
        scores,
        nodes,
        torch.ones_like(scores),
        retain_graph=retain,
        create_graph=create_graph,
        allow_unused=True,
    )
