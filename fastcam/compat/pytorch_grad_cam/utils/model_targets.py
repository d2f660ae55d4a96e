"""Targets: functions from one row of the model's output, or all of it, to a score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


class ClassifierOutputTarget:
    """The class's logit."""

    def __init__(self, category: int) -> None:
        self.category = category

    def __call__(self, model_output: Tensor) -> Tensor:
        return _of_category(model_output, self.category)


class ClassifierOutputSoftmaxTarget:
    """The class's probability."""

    def __init__(self, category: int) -> None:
        self.category = category

    def __call__(self, model_output: Tensor) -> Tensor:
        return _of_category(torch.softmax(model_output, dim=-1), self.category)


class ClassifierOutputReST:
    """The class's logit minus its cross-entropy, for Shapley-CAM (arXiv 2501.06261)."""

    def __init__(self, category: int) -> None:
        self.category = category

    def __call__(self, model_output: Tensor) -> Tensor:
        target = torch.full(model_output.shape[:-1], self.category, device=model_output.device)
        entropy = F.cross_entropy(model_output, target, reduction="none")
        return _of_category(model_output, self.category) - entropy


class BinaryClassifierOutputTarget:
    """The output for category 1, its negative for category 0."""

    def __init__(self, category: int) -> None:
        self.category = category

    def __call__(self, model_output: Tensor) -> Tensor:
        return model_output * (1 if self.category == 1 else -1)


class SoftmaxOutputTarget:
    """All probabilities."""

    def __init__(self) -> None:
        pass

    def __call__(self, model_output: Tensor) -> Tensor:
        return torch.softmax(model_output, dim=-1)


class RawScoresOutputTarget:
    """The unchanged output."""

    def __init__(self) -> None:
        pass

    def __call__(self, model_output: Tensor) -> Tensor:
        return model_output


class SemanticSegmentationTarget:
    """The sum of the category's scores, (C, H, W), over the pixels of a mask (H, W)."""

    def __init__(self, category: int, mask: NDArray[Any]) -> None:
        self.category = category
        self.mask = torch.from_numpy(mask)

    def __call__(self, model_output: Tensor) -> Tensor:
        return (model_output[self.category, :, :] * self.mask.to(model_output.device)).sum()


class FasterRCNNBoxScoreTarget:
    """The sum over boxes of the IoU and score of the detection that overlaps most.

    A detection counts if its IoU exceeds ``iou_threshold`` and it has the box's label.
    """

    def __init__(
        self,
        labels: Sequence[Any],
        bounding_boxes: Sequence[NDArray[Any]],
        iou_threshold: float = 0.5,
    ) -> None:
        self.labels = labels
        self.bounding_boxes = bounding_boxes
        self.iou_threshold = iou_threshold

    def __call__(self, model_outputs: Mapping[str, Tensor]) -> Tensor:
        from torchvision.ops import box_iou

        found, scores = model_outputs["boxes"], model_outputs["scores"]
        output = torch.zeros(1, device=found.device, dtype=found.dtype)
        if len(found) == 0:
            return output
        for box, label in zip(self.bounding_boxes, self.labels, strict=False):
            wanted = torch.as_tensor(box[None], dtype=found.dtype, device=found.device)
            overlaps = box_iou(wanted, found)[0]
            index = overlaps.argmax()
            if overlaps[index] > self.iou_threshold and model_outputs["labels"][index] == label:
                output = output + (overlaps[index] + scores[index])
        return output


class FinerWeightedTarget:
    """The main category's logit minus alpha times each other's, averaged by probability."""

    def __init__(
        self, main_category: int, comparison_categories: Sequence[int], alpha: float
    ) -> None:
        self.main_category = main_category
        self.comparison_categories = comparison_categories
        self.alpha = alpha

    def __call__(self, model_output: Tensor) -> Tensor:
        probabilities = torch.softmax(model_output, dim=-1)
        main = model_output[..., self.main_category]
        differences = weights = torch.zeros_like(main)
        for category in self.comparison_categories:
            weight = probabilities[..., category]
            differences = differences + weight * (main - self.alpha * model_output[..., category])
            weights = weights + weight
        return differences / (weights + 1e-9)


def _of_category(scores: Tensor, category: int) -> Tensor:
    return scores[category] if scores.dim() == 1 else scores[:, category]
