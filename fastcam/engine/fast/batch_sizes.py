"""Batch sizes that are worth compiling or recording for."""

from __future__ import annotations

import torch
from torch import Tensor


class BatchSizes:
    """Which batch sizes are worth being prepared for: the first, and any that comes again."""

    def __init__(self) -> None:
        self._ready: set[int] = set()
        self._met: set[int] = set()

    def choose(self, size: int) -> int | None:
        """The size to run ``size`` images at: its own, or a larger one to be filled up to.

        None where neither is worth it: for a small last batch of a kind that has come once.
        """
        larger = [ready for ready in self._ready if size <= ready < 2 * size]
        if larger:
            return min(larger)
        if self._ready and size not in self._met:
            self._met.add(size)
            return None
        self._ready.add(size)
        return size


def filled(tensor: Tensor, size: int) -> Tensor:
    """(n, ...) to (size, ...), by repeating the last row."""
    missing = size - tensor.shape[0]
    if missing == 0:
        return tensor
    return torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])])
