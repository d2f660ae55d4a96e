"""A method's maps against the network itself, recorded as a whole."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastcam.engine.capture import Capture
from fastcam.engine.inputs import Inputs
from fastcam.engine.running import run
from fastcam.engine.values import tensors_of
from fastcam.targets import Selection, Targets, select

if TYPE_CHECKING:
    from fastcam.methods.base import MapMethod


@dataclass(frozen=True)
class Verification:
    """How far a method's answer is from that of the network itself."""

    layer: str
    """The target layers' names."""
    gradient_error: float | None
    """The largest difference of the gradients from those of the whole graph, relative to the
    largest of these; None for a method without gradients."""
    map_error: float
    """The largest difference of the maps, before they are normalized, relative to the largest
    value."""
    outputs_equal: bool
    """Whether the model's outputs are those of plain inference, bit for bit. PyTorch itself rounds
    some layers in another way if a graph is recorded: :class:`torch.nn.LSTM` on a CPU, and
    :class:`torch.nn.TransformerEncoder`, which leaves its fast path."""


def verify(cam: MapMethod, images: Inputs, targets: Targets) -> Verification:
    """See :meth:`fastcam.methods.base.MapMethod.verify`."""
    with cam._calling():
        cam._find_layers(images)
        whole = cam._record(images, exact=True)
        selection = select(whole.logits, targets)
        gradients = None if cam.graph is None else _gradients(whole, selection)
        with torch.autocast(whole.logits.device.type, enabled=False):
            wanted = cam._maps(whole, selection, cam.relu)
        chosen = targets if selection.class_ids is None else selection.class_ids
        layer = ", ".join(cam.layers)
        try:
            record, own = cam._run(images, chosen)
            plain = tensors_of(run(cam.model, images))
            given = tensors_of(cam.outputs)
            equal = len(plain) == len(given) and all(map(torch.equal, plain, given))
            error = None if gradients is None else _error(_gradients(record, own), gradients)
            with torch.autocast(record.logits.device.type, enabled=False):
                return Verification(
                    layer, error, _error(cam._maps(record, own, cam.relu), wanted), equal
                )
        except ValueError:  # where the whole graph has an answer, no answer is a wrong one
            return Verification(layer, None if gradients is None else math.inf, math.inf, False)


def _gradients(record: Capture, selection: Selection) -> list[Tensor]:
    columns = selection.columns()
    return [gradient for scores in columns for gradient in record.gradients(scores)]


def _error(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest difference, relative to the largest value; NaN counts where only one has it."""
    largest = 0.0
    for one, other in zip(found, wanted, strict=True):
        scale = float(other.abs().nan_to_num().max()) if other.numel() else 0.0
        same = (one == other) | (one.isnan() & other.isnan())
        difference = float(torch.where(same, 0.0, (one - other).abs()).nan_to_num(math.inf).max())
        largest = max(largest, difference / scale if scale else difference)
    return largest
