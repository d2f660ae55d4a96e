"""What metrics of pytorch-grad-cam compute: the change of a score with its image.

Each function takes the library's object, or one of :mod:`fastcam.compat.pytorch_grad_cam`, first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastcam import ops

Array = NDArray[Any]
Scores = NDArray[np.float32]
Target = Callable[[Any], Tensor]

_ROWS = 32  # how many changed images run together, at least one batch


def confidence_change(
    metric: Any,
    input_tensor: Tensor,
    cams: Array,
    targets: Sequence[Target],
    model: nn.Module,
    return_visualization: bool = False,
    return_diff: bool = True,
) -> Any:
    """A PerturbationConfidenceMetric's (N,): the scores after less those before, or those after."""
    if return_diff:
        before = _scores(targets, _run(model, input_tensor))
    changed = _changed(metric.perturbation, input_tensor, cams)
    result = _scores(targets, _run(model, changed))
    if return_diff:
        result = result - before
    return (result, changed) if return_visualization else result


def mean_change(
    averager: Any, input_tensor: Tensor, cams: Array, targets: Sequence[Target], model: nn.Module
) -> Scores:
    """An AveragerAcrossThresholds' (N,): the mean of its metric over its percentiles."""
    metrics = [averager.imputer(percentile) for percentile in averager.percentiles]
    if all(_is_plain(metric) for metric in metrics):
        changes = _together(metrics, input_tensor, cams, targets, model)
    else:
        changes = [metric(input_tensor, cams, targets, model) for metric in metrics]
    mean: Scores = np.mean(np.array(changes, np.float32), axis=0)
    return mean


def without_most_relevant(removal: Any, image: Tensor, mask: Tensor) -> Tensor:
    """The image (C, H, W) with its pixels at or above a percentile of the map imputed."""
    return _imputed(removal, image, mask)


def without_least_relevant(removal: Any, image: Tensor, mask: Tensor) -> Tensor:
    """The same of 1 - map."""
    return _imputed(removal, image, 1 - mask)


def impute(imputer: Any, image: Tensor, mask: Tensor) -> Tensor:
    """A NoisyLinearImputer's (C, H, W): where the mask is 0, from the neighbours, and noise.

    The noise is drawn as pytorch-grad-cam draws it. Where no pixel is known, 0 and the noise.
    """
    missing = (mask == 0).cpu()
    precise = image.detach() if image.dtype == torch.float64 else image.detach().float()
    solved = ops.impute(precise.unsqueeze(0), ~missing.to(image.device).unsqueeze(0))[0]
    filled = solved[:, missing].float()  # (C, n)
    imputed = image.clone()
    imputed[:, missing] = (filled + imputer.noise * torch.randn_like(filled)).to(image.dtype)
    return imputed


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
    """Whether a metric is called as PerturbationConfidenceMetric is."""
    return _is(
        type(metric).__call__, "perturbation_confidence", "PerturbationConfidenceMetric.__call__"
    )


def _is(function: Any, module: str, name: str) -> bool:
    """Whether a function is the one of a name, in fastcam.compat or in pytorch-grad-cam."""
    return getattr(function, "__qualname__", None) == name and function.__module__ in (
        f"pytorch_grad_cam.metrics.{module}",
        f"fastcam.compat.pytorch_grad_cam.metrics.{module}",
    )
