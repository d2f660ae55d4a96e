"""Classes of metrics that know no model: they get maps, and boxes or masks of instances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from fastcam.errors import ArgumentError
from fastcam.metrics import overlap, quality
from fastcam.metrics.box_accuracy import LEVELS, box_ious, max_box_acc_v2
from fastcam.metrics.classes.base import MapMetric
from fastcam.metrics.pixel_precision import pixel_histograms, px_ap
from fastcam.metrics.pointing import energy_pointing_game, pointing_game
from fastcam.metrics.regions import Boxes, Masks


class _OfPlaces(MapMetric):
    """A metric of maps and of the instances that they should find."""

    def update(self, maps: Tensor, boxes: Boxes | None = None, masks: Masks | None = None) -> None:
        """Adds a batch of maps (N, *S) with boxes (B, 4) or masks (I, *S) for each."""
        self._add(maps, boxes, masks)


class PointingGame(_OfPlaces):
    """See :func:`pointing_game`; with class ids, the mean over the classes' means, as in the paper.

    Zhang et al. and TorchRay average over classes. If an update has no targets, the result is the
    mean over all images.
    """

    function = staticmethod(pointing_game)
    higher_is_better = True
    classes: list[Tensor]

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.add_state("classes", default=[], dist_reduce_fx="cat")

    def update(
        self,
        maps: Tensor,
        boxes: Boxes | None = None,
        masks: Masks | None = None,
        targets: Tensor | Sequence[int] | int | None = None,
    ) -> None:
        """Adds a batch of maps (N, *S) with boxes (B, 4) or masks (I, *S) for each.

        Args:
            targets: the class id of each map, or of all.
        """
        ids = torch.as_tensor(-1 if targets is None else targets)
        ids = ids.expand(len(maps)) if ids.dim() == 0 else ids
        if ids.shape != (len(maps),):
            raise ArgumentError("targets", f"got shape {tuple(ids.shape)}, expected ({len(maps)},)")
        self._add(maps, boxes, masks)
        self.classes.append(ids.to(maps.device, torch.float32))

    def _summary(self, values: Tensor) -> Tensor:
        classes = dim_zero_cat(self.classes)[~self.values.isnan()]
        if len(classes) == 0 or (classes < 0).any():
            return values.mean()
        return torch.stack([values[classes == each].mean() for each in classes.unique()]).mean()


class EnergyPointingGame(_OfPlaces):
    """See :func:`energy_pointing_game`."""

    function = staticmethod(energy_pointing_game)
    higher_is_better = True


class IoU(_OfPlaces):
    """(T,): see :func:`iou`."""

    function = staticmethod(overlap.iou)
    higher_is_better = True

    def __init__(
        self, *, thresholds: Sequence[float] = overlap.THRESHOLDS, **settings: Any
    ) -> None:
        super().__init__(row=(len(thresholds),), thresholds=thresholds, **settings)


class InstanceRecall(_OfPlaces):
    """See :func:`instance_recall`."""

    function = staticmethod(overlap.instance_recall)
    higher_is_better = True


class ClassConfusion(_OfPlaces):
    """See :func:`class_confusion`."""

    function = staticmethod(overlap.class_confusion)
    higher_is_better = False

    def update(
        self,
        maps: Tensor,
        boxes: Boxes | None = None,
        masks: Masks | None = None,
        other_boxes: Boxes | None = None,
        other_masks: Masks | None = None,
    ) -> None:
        """Adds a batch of maps with the instances of their class and of other classes."""
        self._add(maps, boxes, masks, other_boxes=other_boxes, other_masks=other_masks)


class MaxBoxAccV2(_OfPlaces):
    """See :func:`max_box_acc_v2`; ``values`` are those of :func:`box_ious`, (N, T)."""

    function = staticmethod(box_ious)
    higher_is_better = True

    def __init__(
        self, *, thresholds: int = 100, levels: Sequence[float] = LEVELS, **settings: Any
    ) -> None:
        super().__init__(row=(thresholds,), thresholds=thresholds, **settings)
        self._levels = levels

    def update(self, maps: Tensor, boxes: Boxes) -> None:  # type: ignore[override]
        """Adds a batch of maps (N, H, W) with boxes (B, 4) for each."""
        self._add(maps, boxes)

    def _summary(self, values: Tensor) -> Tensor:
        return max_box_acc_v2(values, self._levels)


class PxAP(_OfPlaces):
    """See :func:`px_ap`; ``values`` are those of :func:`pixel_histograms`, (N, 2, T + 1)."""

    function = staticmethod(pixel_histograms)
    higher_is_better = True

    def __init__(self, *, thresholds: int = 100, **settings: Any) -> None:
        super().__init__(row=(2, thresholds + 1), thresholds=thresholds, **settings)

    def update(
        self,
        maps: Tensor,
        boxes: Boxes | None = None,
        masks: Masks | None = None,
        ignored: Masks | None = None,
    ) -> None:
        """Adds a batch of maps (N, *S) with boxes (B, 4) or masks (I, *S) for each."""
        self._add(maps, boxes, masks, ignored=ignored)

    def _summary(self, values: Tensor) -> Tensor:
        return px_ap(values)


class _OfMaps(MapMetric):
    """A metric of maps alone."""

    def update(self, maps: Tensor) -> None:
        """Adds a batch of maps (N, *S)."""
        self._add(maps)


class Complexity(_OfMaps):
    """See :func:`complexity`."""

    function = staticmethod(quality.complexity)
    higher_is_better = False


class Sparseness(_OfMaps):
    """See :func:`sparseness`."""

    function = staticmethod(quality.sparseness)
    higher_is_better = True
