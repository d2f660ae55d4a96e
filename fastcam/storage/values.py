"""Raw maps to values in [0, 1] with their ranges, and back."""

from __future__ import annotations

import torch
from torch import Tensor


def packed(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Scales each map to [0, 1]: (..., h, w) to float16 maps, and their ranges (..., 2) float32.

    A constant map becomes 0. A map with a value that is not finite becomes NaN, its range too.
    """
    wide = raw.double()
    low, high = wide.amin((-2, -1)), wide.amax((-2, -1))
    bad = ~(low.isfinite() & high.isfinite())
    ranges = torch.stack([low, high], -1).masked_fill(bad.unsqueeze(-1), torch.nan)
    low, span = (each[..., None, None] for each in (low, high - low))
    maps = torch.where(span > 0, (wide - low) / span, 0.0)
    return maps.masked_fill(bad[..., None, None], torch.nan).half(), ranges.float()


def unpacked(maps: Tensor, ranges: Tensor) -> Tensor:
    """The raw maps (..., h, w) float32, up to the rounding of float16."""
    low, high = (each[..., None, None] for each in ranges.unbind(-1))
    return low + maps.float() * (high - low)
