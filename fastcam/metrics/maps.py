"""What several metrics ask of maps: their order, their hottest pixels, whether they hold NaN."""

from __future__ import annotations

import torch
from torch import Tensor

from fastcam import ops


def check_floating(maps: Tensor) -> None:
    """Raises TypeError for maps of integers, such as pictures with 256 levels."""
    if not maps.is_floating_point():
        raise TypeError(f"maps: got {maps.dtype}, expected floating-point values in [0, 1]")


def with_nan(values: Tensor, maps: Tensor) -> Tensor:
    """The values (N, ...), NaN in the rows whose map (N, *S) holds NaN."""
    broken = maps.isnan().flatten(1).any(1)
    return values.masked_fill(broken.view(-1, *[1] * (values.dim() - 1)), torch.nan)


def ranks(maps: Tensor) -> Tensor:
    """(N, *S): the place of each position by decreasing value, from 0; equals in their order."""
    flat = maps.flatten(1)
    order = flat.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(flat.shape[1], device=maps.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).view(maps.shape)


def hot(maps: Tensor, threshold: float) -> Tensor:
    """(N, *S): the positions that reach this share of the map's maximum; all of a map of zeros."""
    limits = threshold * maps.flatten(1).amax(1)
    return maps >= limits.view(-1, *[1] * (maps.dim() - 1))


def unit(maps: Tensor) -> Tensor:
    """The maps (N, *S) with minimum 0 and maximum 1; a constant map becomes 0."""
    return ops.normalize(maps, maps.dim() - 1)


def quantiles(values: Tensor, shares: Tensor) -> Tensor:
    """(*L, P), interpolated linearly between values (*L, n); torch.quantile limits their number."""
    ordered = values.sort(-1).values.double()
    places = shares * (values.shape[-1] - 1)
    below = places.floor().long().clamp(0, values.shape[-1] - 1)
    above = (below + 1).clamp(max=values.shape[-1] - 1)
    low, high = ordered[..., below], ordered[..., above]
    return low + (high - low) * (places - below)
