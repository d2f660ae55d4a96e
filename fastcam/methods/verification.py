"""A method's maps against the network itself, recorded as a whole."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastcam.engine.capture import Capture
from fastcam.targets import Selection

if TYPE_CHECKING:
    pass


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


def gradients_of(record: Capture, selection: Selection) -> list[Tensor]:
    """dS/dA of every class and layer."""
    return selection.by_class(lambda scores, _: record.gradients(scores))


def relative_error(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest difference, relative to the largest value; NaN counts where only one has it."""
    largest = 0.0
    for one, other in zip(found, wanted, strict=True):
        scale = float(other.abs().nan_to_num().max()) if other.numel() else 0.0
        same = (one == other) | (one.isnan() & other.isnan())
        difference = float(torch.where(same, 0.0, (one - other).abs()).nan_to_num(math.inf).max())
        largest = max(largest, difference / scale if scale else difference)
    return largest
