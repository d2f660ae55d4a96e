"""Ablation-CAM's weights: replays the part above the layer with one channel ablated at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastcam.dropin.calls import counted
from fastcam.dropin.pytorch_grad_cam.run import Array, NotServed, TargetFunctions, aside
from fastcam.engine.capture import Capture, capture
from fastcam.engine.layers import layer_names
from fastcam.engine.running import modules_of, unwrap
from fastcam.errors import first_line
from fastcam.methods import masking
from fastcam.targets import Selection, select

BELOW_ALL = 1e7
"""How far below the least activation a channel is ablated to, if the least one is not 0."""


class _Ablation(masking.AblationCAM):
    """The runs of :class:`fastcam.AblationCAM`, with a separate value for each ablated channel.

    Args:
        activations: (N, C, *S), the output of the layer.
        values: (N, C), the value of each channel when ablated.
    """

    def __init__(
        self, model: nn.Module, layer: str, batch_size: int, activations: Tensor, values: Tensor
    ) -> None:
        super().__init__(model, layer, batch_size=batch_size)
        self._activations, self._values = activations, values
        self._rows = torch.arange(len(activations), device=activations.device)

    def _bears(self, activations: Tensor) -> Tensor:
        values = self._values.reshape(*self._values.shape, *[1] * (activations.dim() - 2))
        return (self._activations != values).flatten(2).any(2)

    def _ablate(self, activations: Tensor, channels: Tensor) -> None:
        images = self._rows.repeat_interleave(len(channels) // len(self._rows))
        activations.copy_(self._activations[images])
        rows = torch.arange(len(channels), device=channels.device)
        values = self._values[images, channels].reshape(-1, *[1] * (activations.dim() - 2))
        activations[rows, channels] = values.expand_as(activations[rows, channels])

    def drops(self, record: Capture, selection: Selection) -> Tensor:
        """S - S_k, (N, C)."""
        return self._drops(record, selection, 0, selection.scores.detach().float())


def ablation_weights(
    cam: Any,
    input_tensor: Tensor,
    layer: nn.Module,
    targets: TargetFunctions,
    activations: Array,
    otherwise: Callable[[], Array],
) -> Array:
    """The weights (N, C) of an Ablation-CAM object, from replays of the part above the layer.

    Args:
        otherwise: computes them by runs of the whole network.
    """
    with counted(f"pytorch_grad_cam.{type(cam).__name__}") as call:
        try:
            weights = _by_replays(cam, input_tensor, layer, targets, activations)
        except NotServed as reason:
            call.leave_to("pytorch_grad_cam", str(reason))
            return otherwise()
        call.why = "only the part above the layer runs for each channel"
        return weights


def _by_replays(
    cam: Any,
    input_tensor: Tensor,
    layer: nn.Module,
    targets: TargetFunctions,
    activations: Array,
) -> Array:
    stand_in = cam.ablation_layer
    kind = type(stand_in)
    as_known = kind.__module__.endswith("pytorch_grad_cam.ablation_layer")
    as_known = as_known and not vars(stand_in).keys() & dir(kind)
    reading = _READINGS.get(kind.__name__) if as_known else None
    if reading is None or (cam.reshape_transform is not None) != (reading is _tokens):
        raise NotServed(f"channels are ablated by a {type(stand_in).__name__}")
    if len(targets) != len(activations):
        raise NotServed(f"{len(targets)} targets for {len(activations)} images")
    model = unwrap(cam.model)
    if sum(_mentions(module, layer) for module in modules_of(model)) != 1:
        raise NotServed("the model may call the layer through another reference")
    try:
        (name,) = layer_names(model, layer)
        with torch.no_grad(), aside(cam):
            record = capture(model, input_tensor, (name,), reshape=reading, graph=None)
            selection = select(record.logits, list(targets))
            if record.runs != (1,):
                raise NotServed("the target layer runs several times")
            maps = record.activations[0]
            given = torch.from_numpy(activations).to(maps)
            several = len(cam.target_layers) > 1  # in the order in which they ran
            as_recorded = maps.shape == given.shape and torch.allclose(given, maps)
            if maps.shape[:2] != given.shape[:2] or (several and not as_recorded):
                raise NotServed("the activations may be those of another layer")
            if cam.reshape_transform is None:  # as operations in place have left them
                maps = given
            channels = [
                stand_in.activations_to_be_ablated(each, cam.ratio_channels_to_ablate)
                for each in activations
            ]
            values = _values(maps, channels, cam.batch_size)
            ablation = _Ablation(model, name, cam.batch_size, maps, values.to(maps))
            drops = ablation.drops(record, selection)
    except (ValueError, TypeError) as error:
        raise NotServed(first_line(error)) from error
    original = selection.scores.detach().float()[:, None]
    left = (original - drops).cpu().numpy()
    scores = original.cpu().numpy()
    assembled = [
        cam.assemble_ablation_scores(row[some], score, some, len(row))
        for row, score, some in zip(left, scores[:, 0], channels, strict=True)
    ]
    weights: Array = (scores - float32(assembled)) / scores
    return weights


def _mentions(module: nn.Module, layer: nn.Module) -> int:
    """How often a module refers to the layer, as an attribute or in a list, tuple or dictionary."""
    count = 0
    for value in vars(module).values():  # children are in a dictionary
        values = value.values() if isinstance(value, dict) else value
        together = isinstance(value, (list, tuple, dict))
        count += sum(each is layer for each in values) if together else value is layer
    return count


def _as_it_is(output: Tensor) -> Tensor:
    return output


def _tokens(output: Tensor) -> Tensor:
    """(N, T, C) to (N, C, T)."""
    return output.transpose(1, -1)


_READINGS = {"AblationLayer": _as_it_is, "AblationLayerVit": _tokens}


def _values(activations: Tensor, channels: list[Array], batch_size: int) -> Tensor:
    """The value (N, C) of each channel when ablated; it depends on the place in the batch."""
    values = np.zeros(activations.shape[:2], dtype=np.float32)
    least = activations.flatten(1).amin(1).tolist()
    for row, some, low in zip(values, channels, least, strict=True):
        of_places = float32(values_of_ablated(low, batch_size))
        row[some] = of_places[np.arange(len(some)) % batch_size]
    return torch.from_numpy(values)


def float32(values: Any) -> Array:
    return np.asarray(values, dtype=np.float32)


def values_of_ablated(least: float, count: int) -> list[float]:
    """The value of the ablated channel in each of ``count`` rows; ``least``: least activation."""
    if least == 0:
        return [0.0] * count
    values = []
    for _ in range(count):
        least = float(np.float32(least) - np.float32(BELOW_ALL))
        values.append(least)
    return values
