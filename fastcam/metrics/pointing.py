"""Pointing games: does the map's maximum, or its energy, lie in an instance?"""

from __future__ import annotations

import math
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcam.errors import ArgumentError
from fastcam.metrics.maps import with_nan
from fastcam.metrics.regions import Boxes, Masks, unions


def pointing_game(
    maps: Tensor, boxes: Boxes | None = None, masks: Masks | None = None, *, tolerance: float = 0
) -> Tensor:
    """Pointing game: whether the map's maximum lies in an instance, or near one. High is good.

    Zhang et al. 2016, arXiv 1608.00507. With a tolerance of t pixels, a maximum nearer
    than t to an instance is a hit, as in TorchRay, whose default is 15. If the map has several
    maxima, the value is the share of them that hit, so a constant map has the share of the image
    that would hit; TorchRay takes the first one, Quantus counts a hit if any hits.

    Args:
        maps: (N, *S).
        boxes, masks: the instances of each image; masks, if both are given.
        tolerance: in pixels; 0 for none.

    Returns:
        (N,), in [0, 1]; NaN for images without an instance and for maps that hold NaN.

    Raises:
        ValueError: if boxes or masks do not fit the maps.
    """
    if not tolerance >= 0:
        raise ArgumentError("tolerance", f"got {tolerance}, expected 0 or more pixels")
    values = maps.new_full((len(maps),), torch.nan)
    for n, (heat, region) in enumerate(zip(maps, unions(maps, boxes, masks), strict=True)):
        if region.any():
            hits = _grown(region, tolerance)[heat == heat.max()]
            values[n] = hits.to(maps.dtype).mean()
    return with_nan(values, maps)


def energy_pointing_game(
    maps: Tensor, boxes: Boxes | None = None, masks: Masks | None = None
) -> Tensor:
    """Energy-based pointing game: sum of M in the instances / sum of M. High is good.

    Wang et al. 2020, Score-CAM, arXiv 1910.01279. Negative values count as 0. A map of
    zeros has 0; Quantus' RelevanceMassAccuracy, the same otherwise, gives NaN.

    Args:
        maps: (N, *S).
        boxes, masks: the instances of each image; masks, if both are given.

    Returns:
        (N,), in [0, 1]; NaN for images without an instance and for maps that hold NaN.

    Raises:
        ValueError: if boxes or masks do not fit the maps.
    """
    values = maps.new_full((len(maps),), torch.nan)
    for n, (heat, region) in enumerate(zip(maps, unions(maps, boxes, masks), strict=True)):
        if region.any():
            energy = heat.double().relu()
            total = energy.sum()
            values[n] = energy[region].sum() / total.where(total != 0, 1.0)
    return with_nan(values, maps)


def _grown(region: Tensor, tolerance: float) -> Tensor:
    """(*S): the positions nearer than the tolerance to a region (*S), and the region."""
    reach = max(math.ceil(tolerance) - 1, 0)
    if reach == 0:
        return region
    offsets = range(-reach, reach + 1)
    near = [
        math.dist(each, [0] * region.dim()) < tolerance
        for each in product(offsets, repeat=region.dim())
    ]
    ball = torch.tensor(near, device=region.device).view([len(offsets)] * region.dim())
    convolve = (F.conv1d, F.conv2d, F.conv3d)[region.dim() - 1]
    counts = convolve(region.float()[None, None], ball.float()[None, None], padding=reach)
    return counts[0, 0] > 0.5
