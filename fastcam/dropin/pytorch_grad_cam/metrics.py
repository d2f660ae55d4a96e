"""The metrics of pytorch-grad-cam: how a score changes with a perturbed image.

The first argument of each function is the object of the library or of
:mod:`fastcam.compat.pytorch_grad_cam`.
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

_ROWS = 32  # changed images per run; at least one batch


def confidence_change(
    metric: Any,
    input_tensor: Tensor,
    cams: Array,
    targets: Sequence[Target],
    model: nn.Module,
    return_visualization: bool = False,
    return_diff: bool = True,
) -> Any:
    """PerturbationConfidenceMetric, (N,): the scores after, minus those before if return_diff."""
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
    """AveragerAcrossThresholds, (N,): the mean of its metric over its percentiles."""
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
    """The same for 1 - map."""
    return _imputed(removal, image, 1 - mask)


def impute(imputer: Any, image: Tensor, mask: Tensor) -> Tensor:
    """NoisyLinearImputer, (C, H, W): imputes pixels where the mask is 0, and adds noise to them.

    If no pixel is known, the result is 0 plus noise.
    """
    missing = (mask == 0).to(image.device)
    return _filled(image.unsqueeze(0), missing.unsqueeze(0), [imputer.noise])[0]


def _run(model: nn.Module, images: Tensor) -> Any:
    with torch.no_grad():
        return model(images)


def _scores(targets: Sequence[Target], outputs: Any) -> Scores:
    # rows of the output beyond the targets are ignored
    rows = zip(targets, outputs, strict=False)
    return np.array([target(output).cpu().numpy() for target, output in rows], np.float32)


def _changed(
    perturbation: Callable[[Tensor, Tensor], Tensor], images: Tensor, cams: Array
) -> Tensor:
    maps = _maps(images, cams)
    if _is(perturbation, "cam_mult_image", "multiply_tensor_with_cam"):
        together = torch.stack(maps).to(images.device)
        return images * (together.unsqueeze(1) if together.dim() < images.dim() else together)
    changed = [
        perturbation(image.cpu(), heat).to(images.device)
        for image, heat in zip(images, maps, strict=True)
    ]
    return torch.stack(changed)


def _maps(images: Tensor, cams: Array) -> list[Tensor]:
    """One map per image; IndexError if there are fewer, as in pytorch-grad-cam."""
    return [torch.from_numpy(cams[i]) for i in range(len(images))]


def _imputed(removal: Any, image: Tensor, relevance: Tensor) -> Tensor:
    """The image imputed with a removal's percentile and imputer."""
    imputed: Tensor = removal.imputer(image, _known(removal, relevance))
    return imputed


def _known(removal: Any, relevance: Tensor) -> Tensor:
    """Nonzero where pixels are kept, for a relevance (H, W)."""
    if removal.percentile == "auto":
        levels = (relevance.cpu().numpy() * 255).astype(np.uint8)
        _, found = cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
        return torch.from_numpy(found).to(relevance.device)
    limit = np.percentile(relevance.cpu().numpy(), removal.percentile)
    return (relevance < limit).float()


def _filled(images: Tensor, missing: Tensor, noises: Sequence[float]) -> Tensor:
    """Images (R, C, H, W) with missing pixels (R, H, W) imputed, plus noise of one scale per row.

    The noise is drawn image by image, as in pytorch-grad-cam.
    """
    precise = images.detach() if images.dtype == torch.float64 else images.detach().float()
    filled = ops.impute(precise, ~missing).to(images.dtype)
    for values, gone, noise in zip(filled.flatten(2), missing.flatten(1), noises, strict=True):
        places = gone.nonzero().squeeze(1)
        drawn = torch.randn(len(values), len(places), device=values.device)
        noisy = values[:, places].float() + noise * drawn
        values.index_copy_(1, places, noisy.to(values.dtype))
    return filled


def _all_changed(perturbations: Sequence[Any], images: Tensor, cams: Array) -> Tensor:
    """(P N, C, H, W): the images changed by one perturbation after another."""
    maps = _maps(images, cams)
    as_usual = all(heat.shape == images.shape[2:] for heat in maps)
    if not as_usual or not all(_is_plain_removal(each) for each in perturbations):
        return torch.cat([_changed(each, images, cams) for each in perturbations])
    known = [
        _known(each, 1 - heat if _removes_least(each) else heat)
        for each in perturbations
        for heat in maps
    ]
    noises = [each.imputer.noise for each in perturbations for _ in maps]
    repeated = images.repeat(len(perturbations), 1, 1, 1)
    return _filled(repeated, torch.stack(known).to(images.device) == 0, noises)


def _together(
    metrics: Sequence[Any],
    images: Tensor,
    cams: Array,
    targets: Sequence[Target],
    model: nn.Module,
) -> list[Scores]:
    """The changes of several metrics; the model runs once on the images, then on batches."""
    outputs = _run(model, images)
    before, rows = _scores(targets, outputs), len(images)
    by_rows = isinstance(outputs, Tensor) and outputs.dim() > 0 and len(outputs) == rows
    together = max(1, _ROWS // rows) if by_rows else 1
    changes = []
    for first in range(0, len(metrics), together):
        some = metrics[first : first + together]
        changed = _all_changed([metric.perturbation for metric in some], images, cams)
        outputs = _run(model, changed)
        for part in outputs.split(rows) if by_rows else [outputs]:
            changes.append(_scores(targets, part) - before)
    return changes


def _is_plain(metric: Any) -> bool:
    """Whether a metric uses ``PerturbationConfidenceMetric.__call__``."""
    return _is(
        type(metric).__call__, "perturbation_confidence", "PerturbationConfidenceMetric.__call__"
    )


def _is_plain_removal(perturbation: Any) -> bool:
    """Whether a perturbation is one of the two removals, unchanged, with a NoisyLinearImputer."""
    call = type(perturbation).__call__
    names = ("RemoveMostRelevantFirst.__call__", "RemoveLeastRelevantFirst.__call__")
    return any(_is(call, "perturbation_confidence", name) for name in names) and _is(
        type(perturbation.imputer).__call__, "road", "NoisyLinearImputer.__call__"
    )


def _removes_least(perturbation: Any) -> bool:
    name = "RemoveLeastRelevantFirst.__call__"
    return _is(type(perturbation).__call__, "perturbation_confidence", name)


def _is(function: Any, module: str, name: str) -> bool:
    """Whether a function has this name in fastcam.compat or in pytorch-grad-cam."""
    return getattr(function, "__qualname__", None) == name and function.__module__ in (
        f"pytorch_grad_cam.metrics.{module}",
        f"fastcam.compat.pytorch_grad_cam.metrics.{module}",
    )
