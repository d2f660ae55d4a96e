"""Which channels' masked images have to run: an image's constant channels share one run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MaskedRuns:
    """The runs that give every channel a score; see :func:`masked_runs`."""

    rows: Tensor
    """(R,), ascending: the channels that run, numbered image by image, n C + k."""
    images: Tensor
    """(R,), the image n of each."""
    _run_of: Tensor
    """(N, C): by channel, the index of its run, below R."""

    def spread(self, scores: Tensor) -> Tensor:
        """Scores (R, ...) of the runs as those of all channels, (N, C, ...)."""
        return scores[self._run_of]


def masked_runs(activations: Tensor, share: bool = True) -> MaskedRuns:
    """The runs of images masked by each of their channels, scaled to [0, 1].

    A constant channel masks everything, so an image's first constant channel runs for all others.

    Args:
        activations: (N, C, *S).
        share: whether constant channels share a run; False if each mask has different noise.
    """
    count, channels = activations.shape[:2]
    numbers = torch.arange(count * channels, device=activations.device).view(count, channels)
    if share:
        low, high = activations.flatten(2).aminmax(dim=2)
        constant = low == high
        first = numbers.gather(1, constant.int().argmax(1, keepdim=True))
        numbers = torch.where(constant, first, numbers)
    rows, run_of = numbers.unique(return_inverse=True)
    return MaskedRuns(rows, rows // channels, run_of)
