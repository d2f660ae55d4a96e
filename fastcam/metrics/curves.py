"""Deletion and insertion: the score as pixels are replaced by a baseline in the map's order."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcam.engine.inputs import Argument, Inputs
from fastcam.engine.outputs import Output
from fastcam.engine.per_image import PerImage
from fastcam.errors import ArgumentError, check_positive
from fastcam.metrics.imputation import impute
from fastcam.metrics.maps import ranks, with_nan
from fastcam.metrics.scoring import Scorer
from fastcam.targets import Targets

STEPS = 224
BLUR = 5.0, 5
"""The standard deviation and the radius of the blur, in pixels."""

Baseline = Literal["mean", "blur", "impute"] | Tensor
"""What stands for a missing pixel: the mean of each channel over the image, the blurred image, what
linear imputation makes of the pixels that are left, or a tensor that broadcasts to the images."""


@dataclass(frozen=True)
class Curve:
    """The score as more and more pixels are deleted or inserted."""

    shares: Tensor
    """(P,), the share of pixels, from 0 to 1."""
    scores: Tensor
    """(N, P)."""

    @property
    def area(self) -> Tensor:
        """(N,), the area below the curve by trapezoids; in [0, 1] for probabilities."""
        return torch.trapezoid(self.scores, self.shares.to(self.scores.dtype))


def deletion(
    model: nn.Module,
    images: Inputs,
    maps: Tensor,
    targets: Targets = None,
    *,
    baseline: Baseline = "mean",
    steps: int = STEPS,
    batch_size: int = 32,
    probabilities: bool = True,
    output: Output | None = None,
    per_image: PerImage | Collection[Argument] | None = None,
) -> Curve:
    """Deletion: the score as pixels are removed, the most relevant first. A low area is good.

    Petsiuk et al. 2018, RISE, arXiv 1806.07421. It takes steps + 1 forwards per image.
    Equal pixels go row by row, in RISE's code by numpy's unstable sort. RISE's code deletes to 0 of
    images that are normalized by the data's mean: the same is ``baseline=torch.zeros(())``. 224
    steps are its number for images of 224 x 224; torchcam has 20.

    Args:
        model, images, targets, maps, probabilities, output, per_image: as for :func:`confidence`.
        baseline: what replaces the pixels: ``"mean"``, ``"blur"``, ``"impute"`` (images of 2
            dimensions), or a tensor that broadcasts to the images.
        steps: the number of steps from no pixel to all of them; at most one pixel at a time.
        batch_size: the number of changed images per run.

    Returns:
        NaN for the images whose map holds NaN.

    Raises:
        ValueError, TypeError: if maps, targets or the baseline do not fit the images.
    """
    scorer = Scorer(
        model, images, targets, probabilities=probabilities, output=output, per_image=per_image
    )
    with scorer:
        return _curve(scorer, maps, baseline, steps, batch_size, inserts=False)


def insertion(
    model: nn.Module,
    images: Inputs,
    maps: Tensor,
    targets: Targets = None,
    *,
    baseline: Baseline = "blur",
    steps: int = STEPS,
    batch_size: int = 32,
    probabilities: bool = True,
    output: Output | None = None,
    per_image: PerImage | Collection[Argument] | None = None,
) -> Curve:
    """Insertion: the score as pixels return to the baseline. A high area is good.

    Petsiuk et al. 2018, RISE, arXiv 1806.07421. As :func:`deletion` otherwise. The
    blur has a standard deviation of 5 pixels over 11 x 11, as in RISE's code; at the edge it
    repeats the last pixel, RISE's code adds zeros.
    """
    scorer = Scorer(
        model, images, targets, probabilities=probabilities, output=output, per_image=per_image
    )
    with scorer:
        return _curve(scorer, maps, baseline, steps, batch_size, inserts=True)


def insertion_minus_deletion(
    model: nn.Module,
    images: Inputs,
    maps: Tensor,
    targets: Targets = None,
    *,
    deleted: Baseline = "mean",
    inserted: Baseline = "blur",
    steps: int = STEPS,
    batch_size: int = 32,
    probabilities: bool = True,
    output: Output | None = None,
    per_image: PerImage | Collection[Argument] | None = None,
) -> Tensor:
    """The area of :func:`insertion` minus that of :func:`deletion`: 2 steps + 1 forwards per image.

    Args:
        model, images, maps, targets, steps, batch_size, probabilities, output, per_image: as for
            :func:`deletion`.
        deleted, inserted: the baselines of the two.

    Returns:
        (N,), in [-1, 1] for probabilities, high is good; NaN if a map holds NaN.
    """
    scorer = Scorer(
        model, images, targets, probabilities=probabilities, output=output, per_image=per_image
    )
    with scorer:
        low = _curve(scorer, maps, deleted, steps, batch_size, inserts=False)
        high = _curve(scorer, maps, inserted, steps, batch_size, inserts=True)
        return high.area - low.area


def _curve(
    scorer: Scorer, maps: Tensor, baseline: Baseline, steps: int, batch_size: int, inserts: bool
) -> Curve:
    scorer.check(maps)
    check_positive(steps=steps)
    order, total = ranks(maps), maps.shape[1:].numel()
    steps = min(steps, total)
    counts = (torch.arange(steps + 1, device=maps.device) * total + steps // 2) // steps
    changing = counts[:-1] if inserts else counts[1:]  # the other end is the image itself
    wanted = changing.repeat(len(maps))
    fill = _filling(scorer, baseline)

    def changed(copies: Tensor, rows: Tensor) -> Tensor:
        first = order[rows] < wanted[copies].view(-1, *[1] * (order.dim() - 1))
        return fill(rows, ~first if inserts else first)

    rows = scorer.rows.repeat_interleave(steps)
    scores = scorer.of_copies(rows, batch_size, changed).view(-1, steps)
    ends = [scores, scorer.before[:, None]] if inserts else [scorer.before[:, None], scores]
    return Curve(counts.double() / total, with_nan(torch.cat(ends, 1), maps))


def _filling(scorer: Scorer, baseline: Baseline) -> Callable[[Tensor, Tensor], Tensor]:
    """A function (rows, gone): the images of these rows without the pixels ``gone``, (R, *S)."""
    images, record = scorer.images, scorer.record
    if isinstance(baseline, str) and baseline not in ("mean", "blur", "impute"):
        raise ArgumentError(
            "baseline", f'got "{baseline}", expected "mean", "blur", "impute" or a tensor'
        )
    if isinstance(baseline, str) and baseline == "impute" and images.dim() != 4:
        raise ArgumentError(
            "baseline",
            f'got "impute" for images {tuple(images.shape)}, but only images (N, C, H, W) are '
            'imputed; use "mean" or "blur"',
        )
    if isinstance(baseline, Tensor):
        try:
            values = baseline.to(images).broadcast_to(images.shape)
        except RuntimeError:
            raise ArgumentError(
                "baseline",
                f"got shape {tuple(baseline.shape)}, expected one that broadcasts to the images' "
                f"{tuple(images.shape)}",
            ) from None
    elif baseline == "blur":
        values = blurred(images, record.places)
    else:
        values = images.mean(record.places, keepdim=True).expand_as(images)

    def replaced(rows: Tensor, gone: Tensor) -> Tensor:
        return images[rows].where(~record.over_images(gone), values[rows])

    def imputed(rows: Tensor, gone: Tensor) -> Tensor:
        filled = impute(images[rows], ~gone)
        nothing = gone.flatten(1).all(1)[:, None, None, None]
        return filled.where(~nothing, values[rows])  # without a neighbour: the mean

    return imputed if isinstance(baseline, str) and baseline == "impute" else replaced


def blurred(images: Tensor, places: Collection[int]) -> Tensor:
    """The images blurred by a Gaussian over these axes; at the edge the last value is repeated."""
    std, radius = BLUR
    offsets = torch.arange(-radius, radius + 1, device=images.device).to(images.dtype)
    weights = (-0.5 * (offsets / std) ** 2).exp()
    kernel = (weights / weights.sum()).view(1, 1, -1)
    for axis in places:
        moved = images.movedim(axis, -1)
        lines = F.pad(moved.reshape(-1, 1, moved.shape[-1]), (radius, radius), mode="replicate")
        images = F.conv1d(lines, kernel).view(moved.shape).movedim(-1, axis)
    return images
