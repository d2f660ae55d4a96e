"""MaxBoxAccV2: do boxes around the hot parts of a map match those of the instances?"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from fastcam.errors import check_positive
from fastcam.metrics.maps import unit, with_nan
from fastcam.metrics.regions import Boxes, checked

LEVELS = (0.3, 0.5, 0.7)


def box_ious(maps: Tensor, boxes: Boxes, *, thresholds: int = 100) -> Tensor:
    """The best IoU of an instance's box and a box around a hot part of the map, by threshold.

    A hot part is a connected component (8 neighbours) of M >= t / T, for t = 0 ... T - 1; M is
    scaled to [0, 1] first. Components are found on the CPU. No forward.

    Args:
        maps: (N, H, W).
        boxes: the instances' boxes in each image.
        thresholds: T.

    Returns:
        (N, T), in [0, 1]; NaN for images without a box and for maps that hold NaN.

    Raises:
        ValueError: if the boxes do not fit the maps.
    """
    check_positive(thresholds=thresholds)
    truth = [each.cpu().numpy() for each in checked(boxes, maps)]
    found = np.full((len(maps), thresholds), np.nan)
    for row, heat, wanted in zip(found, unit(maps).cpu().numpy(), truth, strict=True):
        if len(wanted) and not np.isnan(heat).any():
            for t in range(thresholds):
                row[t] = _ious(_hot_boxes(heat, t / thresholds), wanted).max(initial=0)
    return with_nan(torch.from_numpy(found).to(maps), maps)


def max_box_acc_v2(ious: Tensor, levels: Sequence[float] = LEVELS) -> Tensor:
    """MaxBoxAccV2: the mean over levels d of max_t mean_n [IoU >= d]. In [0, 1], high is good.

    Choe et al. 2020, arXiv 2007.04178. The authors' code differs in detail: it
    rounds maps to 8 bits and takes what is above the threshold, takes the outlines of holes for
    further boxes, and its boxes are one pixel wider and higher than the component, except at the
    image's far edges.

    Args:
        ious: (N, T), of all images, from :func:`box_ious`.
        levels: the IoUs d.
    """
    return torch.stack([(ious >= level).double().mean(0).max() for level in levels]).mean()


def _hot_boxes(heat: np.ndarray, threshold: float) -> np.ndarray:
    """The boxes (K, 4) around the components of a map (H, W) from a threshold on."""
    mask = (heat >= threshold).astype(np.uint8)
    statistics = cv2.connectedComponentsWithStats(mask, connectivity=8)[2][1:]  # without the rest
    x, y, width, height = statistics[:, :4].T
    return np.stack([x, y, x + width, y + height], 1).astype(np.float64)


def _ious(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(K, B), for boxes (K, 4) and (B, 4)."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = (high - low).clip(min=0).prod(2)
    areas = [(each[:, 2:] - each[:, :2]).prod(1) for each in (boxes, others)]
    return shared / (areas[0][:, None] + areas[1][None] - shared)
