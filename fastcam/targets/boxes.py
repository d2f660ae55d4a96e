"""Targets for detectors: the class logits of the candidates that boxes come from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastcam.errors import ArgumentError
from fastcam.targets.detectors import Detector, detector
from fastcam.targets.selection import ModelTarget, Watch


class Boxes(ModelTarget):
    """The class logit of each box's candidate: maps (N, B, H, W), one per box.

    The candidate is that of the detector before suppression whose box, for the label, has the
    largest IoU with the box. Suppression and thresholds do not matter. The detectors are those of
    torchvision and of ultralytics (``YOLO(...).model``). Call a method that returns maps of one
    run. If it was given no target layers, it takes the levels of the feature pyramid that the
    scores depend on; the maps of the levels are joined, as those of several layers are (with
    ``normalize=False`` or ``size="layer"`` there is one tensor for each level).

    Args:
        boxes: (B, 4), left, top, right, bottom in pixels of the image as the model receives it;
            for N images a list of N, each with B boxes.
        labels: (B,), or a list of N: the columns of the class logits, as the detector returns them.
        iou: the least IoU of a candidate.

    Raises:
        ValueError, TypeError: if boxes and labels do not belong together. In a call, if the model
            is not such a detector, or no candidate overlaps a box as much.
    """

    def __init__(self, boxes: Any, labels: Any, iou: float = 0.5) -> None:
        listed = isinstance(boxes, (list, tuple)) and any(_is_table(each) for each in boxes)
        self.boxes = [_table(each) for each in (boxes if listed else [boxes])]
        self.labels = [torch.as_tensor(each) for each in (labels if listed else [labels])]
        counts = [tuple(each.shape) for each in self.labels]
        if counts != [(len(each),) for each in self.boxes] or len(set(counts)) > 1:
            raise ArgumentError(
                "labels",
                f"got shapes {counts} for boxes {[tuple(each.shape) for each in self.boxes]}, "
                "expected a label for each box, and as many boxes in each image; explain images "
                "with different numbers of boxes one at a time",
            )
        if any(each.is_floating_point() or each.dtype == torch.bool for each in self.labels):
            raise TypeError(f"labels: got {self.labels[0].dtype}, expected class ids (integers)")
        if not 0 < iou <= 1:
            raise ArgumentError("iou", f"got {iou}, expected more than 0 and at most 1")
        self.iou = iou

    def watch(self, model: nn.Module, images: int) -> Watch:
        """See :class:`ModelTarget`."""
        if len(self.boxes) != images:
            raise ArgumentError(
                "boxes",
                f"got those of {len(self.boxes)} images, expected {images}: give a list with the "
                "boxes of each image",
            )
        return _BoxWatch(self, detector(model))


class _BoxWatch(Watch):
    def __init__(self, given: Boxes, found: Detector) -> None:
        self._given, self._detector = given, found
        self.hooks = found.hooks
        self.class_ids = torch.stack(given.labels).to(torch.int64)

    @property
    def levels(self) -> list[Tensor]:
        """See :class:`Watch`."""
        return self._detector.levels

    @property
    def visible(self) -> tuple[float, float]:
        """See :class:`Watch`."""
        return self._detector.visible

    def scores(self, outputs: Any) -> Tensor:
        """See :class:`Watch`. A network is examined with the only image twice."""
        several = len(self._given.boxes) > 1
        return torch.stack(
            [
                self._scores(boxes, logits, row if several else 0)
                for row, (boxes, logits) in enumerate(self._detector.candidates())
            ]
        )

    def _scores(self, candidates: Tensor, logits: Tensor, image: int) -> Tensor:
        """(B,) from candidates (A, 4) or (A, classes, 4), and their logits (A, classes)."""
        boxes, labels = self._given.boxes[image], self._given.labels[image]
        scores = []
        for number, (box, label) in enumerate(zip(boxes, labels.tolist(), strict=True)):
            if not 0 <= label < logits.shape[1]:
                raise ArgumentError("labels", f"got {label}, expected 0 to {logits.shape[1] - 1}")
            own = candidates if candidates.dim() == 2 else candidates[:, label]
            overlaps = _iou(own, box.to(own))
            best = float(overlaps.max()) if len(overlaps) else 0.0
            if not best >= self._given.iou:
                corners = ", ".join(f"{each:.1f}" for each in box.tolist())
                raise ArgumentError(
                    "boxes",
                    f"no candidate of class {label} fits box {number} ({corners}) of image "
                    f"{image}: the largest IoU is {best:.2f}, expected at least {self._given.iou}; "
                    "boxes are left, top, right, bottom in pixels of the image as the model "
                    "receives it",
                )
            scores.append(logits[overlaps.argmax(), label])
        return torch.stack(scores)


def _is_table(value: Any) -> bool:
    return getattr(value, "ndim", 0) == 2 or (
        isinstance(value, (list, tuple)) and any(isinstance(each, (list, tuple)) for each in value)
    )


def _table(boxes: Any) -> Tensor:
    table = torch.as_tensor(boxes)
    if table.dim() != 2 or table.shape[1] != 4 or not len(table):
        raise ArgumentError(
            "boxes",
            f"got shape {tuple(table.shape)}, expected (B, 4) with at least one box, or a list of "
            "those, one per image",
        )
    if not bool((table[:, 2:] > table[:, :2]).all()):
        raise ArgumentError(
            "boxes",
            "got a box without area, expected left, top, right, bottom with left < right and "
            "top < bottom",
        )
    return table.detach()


def _iou(boxes: Tensor, box: Tensor) -> Tensor:
    """(A,), of boxes (A, 4) with one box (4,)."""
    corner = torch.maximum(boxes[:, :2], box[:2])
    shared = (torch.minimum(boxes[:, 2:], box[2:]) - corner).clamp(min=0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return shared / (areas + (box[2:] - box[:2]).prod() - shared)
