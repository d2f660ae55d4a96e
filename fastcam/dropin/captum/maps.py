"""From a layer's outputs in a run, and their gradients, to maps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastcam import ops
from fastcam.engine.graph import gradients_at
from fastcam.engine.recorder import Recorder


def all_tensors(returned: Any) -> list[Tensor]:
    """The tensors that a layer returned; empty unless all are floating-point tensors."""
    tensors = list(returned) if isinstance(returned, (tuple, list)) else [returned]
    usual = all(isinstance(each, Tensor) and each.is_floating_point() for each in tensors)
    return tensors if usual else []


def output_gradients(
    recorder: Recorder, scores: Any, retain: bool = False
) -> list[tuple[Tensor, Tensor]] | None:
    """The layer's outputs, each with dS/d output; None in cases that captum handles or reports."""
    points = recorder.points.get("layer", ())
    if (
        not points
        or not isinstance(scores, Tensor)
        or scores.dim() == 0
        or scores.shape[0] == 0
        or scores[0].numel() != 1
    ):
        return None
    try:
        recorder.check()
    except ValueError:
        return None
    gradients = gradients_at(points, scores, retain=retain)
    found = [(p.value, g) for p, g in zip(points, gradients, strict=True) if g is not None]
    return found if len(found) == len(points) else None


@torch.no_grad()
def map_of(activations: Tensor, gradients: Tensor, relu: bool, summed: bool) -> Tensor:
    """The map (N, 1, *S), or without the channel sum (N, C, *S)."""
    dtype = torch.promote_types(activations.dtype, gradients.dtype)
    if summed and 3 <= activations.dim() <= 5:
        return ops.cam(activations, gradients, "gradcam", relu).unsqueeze(1).to(dtype)
    dims = tuple(range(2, gradients.dim()))
    weights = gradients.mean(dims, keepdim=True) if dims else gradients
    maps = weights * activations
    maps = maps.sum(1, keepdim=True) if summed else maps
    return maps.relu() if relu else maps
