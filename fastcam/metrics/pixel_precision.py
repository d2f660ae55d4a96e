"""PxAP: precision and recall of the pixels that a map marks, over all thresholds."""

from __future__ import annotations

import torch
from torch import Tensor

from fastcam.errors import check_positive
from fastcam.metrics.maps import unit, with_nan
from fastcam.metrics.regions import Boxes, Masks, unions


def pixel_histograms(
    maps: Tensor,
    boxes: Boxes | None = None,
    masks: Masks | None = None,
    *,
    ignored: Masks | None = None,
    thresholds: int = 100,
) -> Tensor:
    """Counts of the map's values inside and outside of the instances, for :func:`px_ap`.

    The maps are scaled to [0, 1] first. No forward.

    Args:
        maps: (N, *S).
        boxes, masks: the instances of each image; masks, if both are given.
        ignored: masks of pixels outside of the instances that do not count.
        thresholds: T.

    Returns:
        (N, 2, T + 1): inside and outside, the pixels with t / T <= M < (t + 1) / T, the last one
        for M = 1; NaN for maps that hold NaN.

    Raises:
        ValueError: if boxes or masks do not fit the maps.
    """
    check_positive(thresholds=thresholds)
    inside = unions(maps, boxes, masks)
    if ignored is None:
        left_out = [torch.zeros_like(each) for each in inside]
    else:
        left_out = unions(maps, None, ignored)
    edges = torch.arange(thresholds + 1, device=maps.device, dtype=torch.float64) / thresholds
    found = maps.new_zeros(len(maps), 2, thresholds + 1, dtype=torch.float64)
    for row, heat, region, without in zip(
        found, unit(maps).double().nan_to_num(), inside, left_out, strict=True
    ):
        bins = torch.bucketize(heat, edges, right=True) - 1
        for counts, chosen in zip(row, (region, ~region & ~without), strict=True):
            counts += torch.bincount(bins[chosen], minlength=thresholds + 1)
    return with_nan(found, maps)


def px_ap(histograms: Tensor) -> Tensor:
    """PxAP: sum_t precision_t (recall_t - recall_(t+1)), over the pixels of all images.

    High is good. Choe et al. 2020, arXiv 2007.04178. The authors' code expects maps
    in [0, 1].

    Args:
        histograms: (N, 2, T + 1), of all images, from :func:`pixel_histograms`.

    Returns:
        A value in [0, 1]; NaN if no image has an instance.
    """
    inside, outside = histograms.double().sum(0).flip(1).cumsum(1)  # from the highest threshold on
    precision = inside / (inside + outside).clamp(min=1)
    gained = inside.diff(prepend=inside.new_zeros(1)) / inside[-1]
    return (precision * gained).sum()
