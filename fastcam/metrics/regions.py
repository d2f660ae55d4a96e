"""What a map should find: boxes or masks of instances, as boolean masks over the map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastcam.errors import ArgumentError
from fastcam.metrics.maps import check_floating

Boxes = Sequence[Any] | Tensor
"""One (B, 4) per image, x0, y0, x1, y1 in pixels of the map, with x1 and y1 at the far edge: the
box of the pixel (x, y) is (x, y, x + 1, y + 1). B may be 0."""

Masks = Sequence[Any] | Tensor
"""One (I, *S) per image, or (*S) for a single instance: nonzero inside. I may be 0."""


def regions(maps: Tensor, boxes: Boxes | None, masks: Masks | None) -> list[Tensor]:
    """The instances of each image, (I, *S) bool; masks, if both are given.

    A box covers all pixels that it overlaps.

    Raises:
        ValueError, TypeError: if neither is given, or if they do not fit the maps.
    """
    check_floating(maps)
    if masks is not None:
        _check_count("masks", masks, maps)
        return [_mask(mask, number, maps) for number, mask in enumerate(masks)]
    return [_filled(each, maps) for each in checked(boxes, maps)]


def unions(maps: Tensor, boxes: Boxes | None, masks: Masks | None) -> list[Tensor]:
    """All instances of each image together, (*S) bool."""
    return [each.any(0) for each in regions(maps, boxes, masks)]


def checked(boxes: Boxes | None, maps: Tensor) -> list[Tensor]:
    """The boxes (B, 4) of each image in float64, within the map.

    Raises:
        ValueError, TypeError: if there are none, if one is empty, or outside of the maps (N, H, W).
    """
    check_floating(maps)
    if boxes is None:
        raise ArgumentError("boxes", "got None, expected (B, 4) for each image")
    if maps.dim() != 3:
        raise ArgumentError(
            "maps", f"got shape {tuple(maps.shape)}, but boxes need 2-D maps (N, H, W)"
        )
    _check_count("boxes", boxes, maps)
    height, width = maps.shape[1:]
    found = []
    for number, given in enumerate(boxes):
        each = torch.as_tensor(given, device=maps.device).double()
        each = each.reshape(0, 4) if each.numel() == 0 else each
        if each.dim() != 2 or each.shape[1] != 4:
            raise ArgumentError(
                "boxes", f"got shape {tuple(each.shape)} for image {number}, expected (B, 4)"
            )
        low, high = each[:, :2], each[:, 2:]
        size = each.new_tensor([width, height])
        if not (low < high).all():
            raise ArgumentError(
                "boxes",
                f"image {number} has an empty box among {each.tolist()}, expected x0 < x1 and "
                "y0 < y1; the box of the pixel (x, y) is (x, y, x + 1, y + 1)",
            )
        if not ((low > -1) & (high < size + 1) & (low < size) & (high > 0)).all():
            raise ArgumentError(
                "boxes",
                f"image {number} has a box outside of its map of {width} x {height} among "
                f"{each.tolist()}; scale and clip boxes to the map's pixels",
            )
        found.append(torch.cat([low.clamp(min=0), high.minimum(size)], 1))
    return found


def _filled(boxes: Tensor, maps: Tensor) -> Tensor:
    height, width = maps.shape[1:]
    low, high = boxes[:, :2].floor(), boxes[:, 2:].ceil()
    x, y = (torch.arange(extent, device=maps.device) for extent in (width, height))
    across = (x >= low[:, :1]) & (x < high[:, :1])
    down = (y >= low[:, 1:]) & (y < high[:, 1:])
    return down[:, :, None] & across[:, None, :]


def _mask(given: Any, number: int, maps: Tensor) -> Tensor:
    mask = torch.as_tensor(given, device=maps.device)
    mask = mask.unsqueeze(0) if mask.dim() == maps.dim() - 1 else mask
    if mask.shape[1:] != maps.shape[1:]:
        raise ArgumentError(
            "masks",
            f"got shape {tuple(mask.shape)} for image {number}, expected (I, *S) of the map's "
            f"size {tuple(maps.shape[1:])}",
        )
    if mask.is_floating_point() and not ((mask == 0) | (mask == 1)).all():
        raise ArgumentError(
            "masks",
            f"got floating-point values other than 0 and 1 for image {number}; compare them with a "
            "threshold first",
        )
    return mask != 0


def _check_count(argument: str, given: Any, maps: Tensor) -> None:
    if len(given) != len(maps):
        raise ArgumentError(
            argument, f"got {len(given)} for {len(maps)} maps, expected one for each image"
        )
