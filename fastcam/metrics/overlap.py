"""How the hottest area of a map overlaps with instances: IoU, instance recall, class confusion."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastcam.errors import ArgumentError
from fastcam.metrics.maps import hot, with_nan
from fastcam.metrics.regions import Boxes, Masks, regions, unions

THRESHOLDS = (0.25, 0.5, 0.75)


def iou(
    maps: Tensor,
    boxes: Boxes | None = None,
    masks: Masks | None = None,
    *,
    thresholds: Sequence[float] = THRESHOLDS,
) -> Tensor:
    """Intersection over union of the hottest area and all instances. High is good.

    The hottest area is where M >= threshold max(M). Boxes are taken as areas; for the boxes around
    parts of the hottest area see :func:`box_ious`.

    Args:
        maps: (N, *S).
        boxes, masks: the instances of each image; masks, if both are given.
        thresholds: T shares of the maximum.

    Returns:
        (N, T), in [0, 1]; NaN for images without an instance and for maps that hold NaN.

    Raises:
        ValueError: if boxes or masks do not fit the maps.
    """
    if not thresholds:
        raise ArgumentError("thresholds", "got none, expected at least one")
    inside = _stacked(unions(maps, boxes, masks), maps).flatten(1)
    columns = []
    for threshold in thresholds:
        area = hot(maps, threshold).flatten(1)
        columns.append((area & inside).sum(1) / (area | inside).sum(1))
    values = torch.stack(columns, 1).masked_fill(~inside.any(1, keepdim=True), torch.nan)
    return with_nan(values, maps).to(maps.dtype)


def instance_recall(
    maps: Tensor,
    boxes: Boxes | None = None,
    masks: Masks | None = None,
    *,
    threshold: float = 0.5,
) -> Tensor:
    """The share of an image's instances that the hottest area touches. High is good.

    The hottest area is where M >= threshold max(M). A map that is hot everywhere finds everything:
    read it together with :func:`iou` or :func:`energy_pointing_game`.

    Args:
        maps: (N, *S).
        boxes, masks: the instances of each image; masks, if both are given.
        threshold: a share of the maximum.

    Returns:
        (N,), in [0, 1]; NaN for images without an instance and for maps that hold NaN.

    Raises:
        ValueError: if boxes or masks do not fit the maps.
    """
    values = maps.new_full((len(maps),), torch.nan)
    areas = hot(maps, threshold)
    for n, (area, instances) in enumerate(zip(areas, regions(maps, boxes, masks), strict=True)):
        values[n] = (instances & area).flatten(1).any(1).to(maps.dtype).mean()
    return with_nan(values, maps)


def class_confusion(
    maps: Tensor,
    boxes: Boxes | None = None,
    masks: Masks | None = None,
    *,
    other_boxes: Boxes | None = None,
    other_masks: Masks | None = None,
    threshold: float = 0.5,
) -> Tensor:
    """The share of the hottest area that lies on other classes' instances. Low is good.

    |hottest area in other instances, not in those of the class| / |hottest area|; the hottest area
    is where M >= threshold max(M).

    Args:
        maps: (N, *S).
        boxes, masks: the instances of the class in each image; masks, if both are given.
        other_boxes, other_masks: those of other classes.
        threshold: a share of the maximum.

    Returns:
        (N,), in [0, 1]: 0 for images without other classes; NaN for maps that hold NaN.

    Raises:
        ValueError: if boxes or masks do not fit the maps.
    """
    own = _stacked(unions(maps, boxes, masks), maps)
    others = _stacked(unions(maps, other_boxes, other_masks), maps)
    area = hot(maps, threshold)
    confused = (area & others & ~own).flatten(1).sum(1)
    return with_nan(confused / area.flatten(1).sum(1), maps).to(maps.dtype)


def _stacked(areas: list[Tensor], maps: Tensor) -> Tensor:
    """(N, *S)."""
    return torch.stack(areas) if areas else maps.new_zeros(maps.shape, dtype=torch.bool)
