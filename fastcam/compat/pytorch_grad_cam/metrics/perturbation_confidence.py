"""What a change of the image, by its map, does to the score of its target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[Any]
Scores = NDArray[np.float32]
Target = Callable[[Any], Tensor]

_ROWS = 32  # how many changed images run together, at least one batch


class PerturbationConfidenceMetric:
    """The change of the score when ``perturbation(image, map)`` stands for each image."""

    def __init__(self, perturbation: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.perturbation = perturbation

    def __call__(
        self,
        input_tensor: Tensor,
        cams: Array,
        targets: Sequence[Target],
        model: nn.Module,
        return_visualization: bool = False,
        return_diff: bool = True,
    ) -> Any:
        """(N,): after - before, or with ``return_diff=False`` after alone.

        Args:
            input_tensor: (N, C, H, W).
            cams: (N, H, W) in [0, 1].
            targets: one an image, called with its row of the model's output.
            model: in evaluation mode.
            return_visualization: whether the changed images, (N, C, H, W), are returned too.
            return_diff: whether the score before is subtracted.
        """
        if return_diff:
            before = _scores(targets, _run(model, input_tensor))
        changed = _changed(self.perturbation, input_tensor, cams)
        result = _scores(targets, _run(model, changed))
        if return_diff:
            result = result - before
        return (result, changed) if return_visualization else result


class RemoveMostRelevantFirst:
    """Pixels at or above a percentile of the map, or Otsu's threshold ("auto"), are imputed."""

    def __init__(
        self, percentile: float | str, imputer: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        self.percentile = percentile
        self.imputer = imputer

    def __call__(self, input_tensor: Tensor, mask: Tensor) -> Tensor:
        """(C, H, W), for an image (C, H, W) and its map (H, W)."""
        return _imputed(self, input_tensor, mask)


class RemoveLeastRelevantFirst(RemoveMostRelevantFirst):
    """The same of 1 - map."""

    def __call__(self, input_tensor: Tensor, mask: Tensor) -> Tensor:
        """(C, H, W), for an image (C, H, W) and its map (H, W)."""
        return _imputed(self, input_tensor, 1 - mask)


class AveragerAcrossThresholds:
    """The mean of ``imputer(percentile)``, a metric, over percentiles."""

    def __init__(
        self,
        imputer: Callable[[float], Any],
        percentiles: Sequence[float] = (10, 20, 30, 40, 50, 60, 70, 80, 90),
    ) -> None:
        self.imputer = imputer
        self.percentiles = percentiles

    def __call__(
        self, input_tensor: Tensor, cams: Array, targets: Sequence[Target], model: nn.Module
    ) -> Scores:
        """(N,), arguments as for :class:`PerturbationConfidenceMetric`."""
        metrics = [self.imputer(percentile) for percentile in self.percentiles]
        if all(_is_plain(metric) for metric in metrics):
            changes = _together(metrics, input_tensor, cams, targets, model)
        else:
            changes = [metric(input_tensor, cams, targets, model) for metric in metrics]
        mean: Scores = np.mean(np.array(changes, np.float32), axis=0)
        return mean


def _run(model: nn.Module, images: Tensor) -> Any:
    with torch.no_grad():
        return model(images)


def _scores(targets: Sequence[Target], outputs: Any) -> Scores:
    # zip: an output of more rows than targets is one of which the others are not asked for
    rows = zip(targets, outputs, strict=False)
    return np.array([target(output).cpu().numpy() for target, output in rows], np.float32)


def _changed(
    perturbation: Callable[[Tensor, Tensor], Tensor], images: Tensor, cams: Array
) -> Tensor:
    if _is(perturbation, "cam_mult_image", "multiply_tensor_with_cam"):
        maps = torch.from_numpy(np.asarray(cams)[: len(images)]).to(images.device)
        return images * maps.unsqueeze(1)
    changed = [
        perturbation(image.cpu(), torch.from_numpy(cam)).to(images.device)
        for image, cam in zip(images, cams, strict=False)
    ]
    return torch.stack(changed)


def _imputed(removal: Any, image: Tensor, relevance: Tensor) -> Tensor:
    """With a removal's percentile and imputer."""
    if removal.percentile == "auto":
        levels = (relevance.cpu().numpy() * 255).astype(np.uint8)
        _, found = cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
        known = torch.from_numpy(found).to(relevance.device)
    else:
        limit = np.percentile(relevance.cpu().numpy(), removal.percentile)
        known = (relevance < limit).float()
    imputed: Tensor = removal.imputer(image, known)
    return imputed


def _together(
    metrics: Sequence[Any],
    images: Tensor,
    cams: Array,
    targets: Sequence[Target],
    model: nn.Module,
) -> list[Scores]:
    """The changes of several metrics: the model sees the images once, changed ones in batches."""
    outputs = _run(model, images)
    before, rows = _scores(targets, outputs), len(images)
    by_rows = isinstance(outputs, Tensor) and outputs.dim() > 0 and len(outputs) == rows
    together = max(1, _ROWS // rows) if by_rows else 1
    changes = []
    for first in range(0, len(metrics), together):
        some = metrics[first : first + together]
        changed = [_changed(metric.perturbation, images, cams) for metric in some]
        outputs = _run(model, torch.cat(changed))
        for part in outputs.split(rows) if by_rows else [outputs]:
            changes.append(_scores(targets, part) - before)
    return changes


def _is_plain(metric: Any) -> bool:
    """Whether a metric is called as :class:`PerturbationConfidenceMetric` is."""
    return _is(
        type(metric).__call__, "perturbation_confidence", "PerturbationConfidenceMetric.__call__"
    )


def _is(function: Any, module: str, name: str) -> bool:
    """Whether a function is the one of a name, here or in pytorch-grad-cam."""
    return getattr(function, "__qualname__", None) == name and function.__module__ in (
        f"pytorch_grad_cam.metrics.{module}",
        f"{__package__}.{module}",
    )
