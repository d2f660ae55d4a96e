"""The candidates of detectors before suppression, as their own modules compute them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastcam.errors import ArgumentError

Candidates = tuple[Tensor, Tensor]
"""Of one image: boxes (A, 4), or (A, classes, 4), in its pixels and without a graph; class logits
(A, classes) with their graph."""


class Detector(ABC):
    """What hooks note in a run of a detector.

    Args:
        model: the detector.
        watched: the modules whose input and output are noted, by the names to note them under.
    """

    def __init__(self, watched: Mapping[str, nn.Module]) -> None:
        self.returned: dict[str, Any] = {}
        self.given: dict[str, tuple[Any, ...]] = {}
        self.hooks = [(module, self._note(name)) for name, module in watched.items()]

    def _note(self, name: str) -> Callable[..., None]:
        def note(module: nn.Module, args: tuple[Any, ...], returned: Any) -> None:
            self.given[name], self.returned[name] = args, returned

        return note

    @property
    @abstractmethod
    def levels(self) -> list[Tensor]:
        """The feature maps that the heads received in the last run."""

    @property
    @abstractmethod
    def visible(self) -> tuple[float, float]:
        """The share of the height and width of the network's input that is not padding."""

    @abstractmethod
    def candidates(self) -> list[Candidates]:
        """Those of each image in the last run."""


class _Torchvision(Detector):
    """A detector that resizes and pads its images by ``transform``."""

    @property
    def levels(self) -> list[Tensor]:
        """See :class:`Detector`."""
        features = self.returned["backbone"]
        return [features] if isinstance(features, Tensor) else list(features.values())

    @property
    def visible(self) -> tuple[float, float]:
        """See :class:`Detector`."""
        images = self.returned["transform"][0]
        (height, width), padded = images.image_sizes[0], images.tensors.shape[2:]
        return height / padded[0], width / padded[1]

    def candidates(self) -> list[Candidates]:
        """See :class:`Detector`."""
        found = []
        sizes = self.returned["transform"][0].image_sizes
        originals = [image.shape[-2:] for image in self.given["transform"][0]]
        for (boxes, logits), size, original in zip(self._raw(), sizes, originals, strict=True):
            (height, width), (down, across) = size, (original[0] / size[0], original[1] / size[1])
            limits, scale = boxes.new_tensor([width, height] * 2), [across, down] * 2
            inside = torch.minimum(boxes.detach().clamp(min=0), limits)
            found.append((inside * boxes.new_tensor(scale), logits))
        return found

    @abstractmethod
    def _raw(self) -> list[Candidates]:
        """Candidates in pixels of the resized images."""


class _TwoStages(_Torchvision):
    """Faster, Mask and Keypoint R-CNN: proposals, classified and refined per class."""

    def __init__(self, model: Any) -> None:
        heads = model.roi_heads
        super().__init__(
            {
                "transform": model.transform,
                "backbone": model.backbone,
                "rpn": model.rpn,
                "predictor": heads.box_predictor,
            }
        )
        self._box_coder = heads.box_coder

    def _raw(self) -> list[Candidates]:
        logits, codes = self.returned["predictor"]
        proposals = self.returned["rpn"][0]
        boxes = self._box_coder.decode(codes, proposals).view(len(logits), -1, 4)
        counts = [len(each) for each in proposals]
        return list(zip(boxes.split(counts), logits.split(counts), strict=True))


class _OneStage(_Torchvision):
    """RetinaNet, FCOS and SSD: a candidate per anchor."""

    def __init__(self, model: Any) -> None:
        super().__init__(
            {
                "transform": model.transform,
                "backbone": model.backbone,
                "head": model.head,
                "anchors": model.anchor_generator,
            }
        )
        coder = model.box_coder
        # FCOS's coder of distances has no decode_single
        self._decode = coder.decode_single if hasattr(coder, "decode_single") else coder.decode

    def _raw(self) -> list[Candidates]:
        head = self.returned["head"]
        of_images = zip(
            head["bbox_regression"], self.returned["anchors"], head["cls_logits"], strict=True
        )
        return [(self._decode(codes, anchors), logits) for codes, anchors, logits in of_images]


class _Ultralytics(Detector):
    """A detection model of ultralytics, whose last module decodes the boxes of all levels."""

    def __init__(self, model: Any) -> None:
        super().__init__({"head": model.model[-1]})

    @property
    def levels(self) -> list[Tensor]:
        """See :class:`Detector`."""
        return list(self.given["head"][0])

    @property
    def visible(self) -> tuple[float, float]:
        """See :class:`Detector`; who calls the model has padded the images."""
        return 1.0, 1.0

    def candidates(self) -> list[Candidates]:
        """See :class:`Detector`."""
        decoded, raw = self.returned["head"]
        decoded = decoded if isinstance(decoded, Tensor) else decoded[0]  # others hold masks
        rows = decoded.shape[2] != raw.get("one2one", raw.get("one2many", raw))["scores"].shape[2]
        if rows:  # without suppression: the best ones
            logits = raw["one2one"]["scores"].transpose(1, 2)
            return [_of_rows(*each) for each in zip(decoded, logits, strict=True)]
        logits = raw.get("one2many", raw)["scores"].transpose(1, 2)  # (N, A, classes)
        centres, sizes = decoded.detach()[:, :4].transpose(1, 2).split(2, 2)
        boxes = torch.cat([centres - sizes / 2, centres + sizes / 2], 2)
        return list(zip(boxes, logits, strict=True))


def _of_rows(rows: Tensor, logits: Tensor) -> Candidates:
    """The candidates behind rows (R, 6...) of left, top, right, bottom, probability and class.

    Args:
        rows: copied from the decoded candidates, in another order.
        logits: of all candidates, (A, classes).
    """
    labels = rows[:, 5].detach().long()
    of_labels = logits[:, labels]  # (A, R)
    found = (of_labels.detach().sigmoid() - rows[:, 4].detach()).abs().argmin(0)
    boxes = rows.new_full((len(rows), logits.shape[1], 4), -1.0)  # of other classes: none
    every = torch.arange(len(rows), device=rows.device)
    boxes[every, labels] = rows[:, :4].detach()
    return boxes, logits[found]


def detector(model: nn.Module) -> Detector:
    """What notes the candidates of this model.

    Raises:
        ValueError: for a model whose candidates are not known.
    """
    if hasattr(model, "roi_heads") and hasattr(model, "rpn"):
        return _TwoStages(model)
    if all(hasattr(model, name) for name in ("head", "anchor_generator", "box_coder")):
        return _OneStage(model)
    if type(model).__module__.startswith("ultralytics."):
        if isinstance(getattr(model, "model", None), nn.Sequential):
            return _Ultralytics(model)
        raise ArgumentError(
            "model", f"got ultralytics' {type(model).__name__}, expected the network in it, .model"
        )
    raise ArgumentError(
        "model",
        f"Boxes finds no candidates in {type(model).__name__}, expected a detector of torchvision "
        "or ultralytics; for another one, pick its class logits (N, candidates) by output=",
    )
