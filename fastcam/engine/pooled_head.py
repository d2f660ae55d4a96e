"""A head of global average pooling and one linear layer, which gives gradients in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastcam.engine.capture import Capture
from fastcam.engine.values import close
from fastcam.targets import Selection


@dataclass(frozen=True)
class PooledHead:
    """Global average pooling and one linear layer after a layer: S_c = W[c] mean(pooled) + b."""

    weight: Tensor
    """(classes, C), float32 or float64."""
    pooled: Tensor
    """The averaged tensor, (N, C, *S): A, or ReLU(A)."""
    rectified: bool
    """Whether it is ReLU(A)."""


def find_pooled_head(record: Capture, layer: int, selection: Selection) -> PooledHead | None:
    """A layer's global average pooling and linear head, or None if the network has another head.

    Accepted if the last linear layer returned the logits for the mean of A or ReLU(A), and the
    gradient of the scores is W[c] / Z (where A > 0). The values alone would also fit a ReLU after
    A >= 0, which blocks gradients, or a block that is close to the identity.

    Args:
        record: the run.
        layer: the index of the layer.
        selection: the classes to explain; the gradient of the first one is checked.
    """
    if record.linear is None or selection.class_ids is None:
        return None
    linear, features, answer = record.linear
    activations = record.activations[layer]
    if (
        features.shape != activations.shape[:2]
        or answer.data_ptr() != record.logits.data_ptr()
        or answer.numel() != record.logits.numel()
    ):
        return None
    weight = linear.weight.detach()
    weight = weight if weight.dtype == torch.float64 else weight.float()
    class_ids = selection.class_ids if selection.class_ids.dim() == 1 else selection.class_ids[:, 0]
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
        try:
            gradient = record.gradients(selection.columns[0])[layer]
        except ValueError:  # the model runs without a graph
            return None
        if close(gradient[finite], expected[finite]):
            return PooledHead(weight, pooled, rectified)
    return None
