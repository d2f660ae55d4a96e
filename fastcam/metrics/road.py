"""ROAD: the score when pixels are removed in the order of the map and imputed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastcam.engine.inputs import Argument, Inputs
from fastcam.engine.outputs import Output
from fastcam.engine.per_image import PerImage
from fastcam.errors import ArgumentError
from fastcam.metrics.imputation import impute
from fastcam.metrics.maps import quantiles, with_nan
from fastcam.metrics.scoring import Scorer
from fastcam.targets import Targets

PERCENTILES = (10, 20, 30, 40, 50, 60, 70, 80, 90)


@dataclass(frozen=True)
class Road:
    """Changes of the score when pixels are removed, one column per percentile."""

    most_relevant_first: Tensor
    """(N, P), without pixels at or above the percentile of the map. Low is good."""
    least_relevant_first: Tensor
    """(N, P), without pixels at or above the percentile of 1 - map. High is good."""

    @property
    def combined(self) -> Tensor:
        """(N,): the mean of (least - most relevant first) / 2. High is good."""
        return (self.least_relevant_first - self.most_relevant_first).mean(1) / 2


def road(
    model: nn.Module,
    images: Inputs,
    maps: Tensor,
    targets: Targets = None,
    *,
    percentiles: Sequence[float] = PERCENTILES,
    noise: float = 0.01,
    seed: int = 0,
    batch_size: int = 32,
    probabilities: bool = True,
    output: Output | None = None,
    per_image: PerImage | Collection[Argument] | None = None,
) -> Road:
    """ROAD, remove and debias: removes pixels in the order of the map, by noisy linear imputation.

    Rong et al. 2022, arXiv 2202.00449. All percentiles, both orders and all images are imputed
    together (:func:`fastcam.metrics.imputation.impute`). For P percentiles it takes 2 P + 1
    forwards per image.

    Args:
        model, images, targets, maps, probabilities, output, per_image: as for :func:`confidence`;
            the images are 2-D.
        percentiles: percentiles of the map; pixels below are kept.
        noise: the standard deviation of the noise added to imputed pixels.
        seed: the seed of the noise.
        batch_size: the number of imputed images per run.

    Returns:
        NaN for the images whose map holds NaN.

    Raises:
        ValueError, TypeError: if maps or targets do not fit the images, or the images are not 2-D.
    """
    wrong = [each for each in percentiles if not 0 <= each <= 100]
    if wrong:
        raise ArgumentError("percentiles", f"got {wrong[0]}, expected 0 to 100")
    scorer = Scorer(
        model, images, targets, probabilities=probabilities, output=output, per_image=per_image
    )
    with scorer:
        return road_of(scorer, maps, percentiles, noise, seed, batch_size)


def road_of(
    scorer: Scorer,
    maps: Tensor,
    percentiles: Sequence[float],
    noise: float,
    seed: int,
    batch_size: int,
) -> Road:
    """The same, within the context of a scorer."""
    scorer.check(maps)
    pixels = scorer.images
    if pixels.dim() != 4:
        raise ArgumentError(
            "images", f"got shape {tuple(pixels.shape)}, expected 2-D images (N, C, H, W)"
        )
    shares = torch.tensor(percentiles, dtype=torch.float64, device=maps.device) / 100
    orders = torch.stack([maps, 1 - maps], 1)  # (N, 2, H, W)
    limits = quantiles(orders.flatten(2), shares)  # (N, 2, P)
    known = (orders.unsqueeze(2) < limits[..., None, None].to(maps.dtype)).flatten(0, 2)
    generator = torch.Generator(pixels.device).manual_seed(seed)

    def imputed(copies: Tensor, rows: Tensor) -> Tensor:
        chosen = pixels[rows]
        added = torch.empty_like(chosen).normal_(generator=generator) * noise
        return impute(chosen, known[copies], added)

    count = len(percentiles)
    after = scorer.of_copies(scorer.rows.repeat_interleave(2 * count), batch_size, imputed)
    changes = after.view(-1, 2, count) - scorer.before[:, None, None]
    changes = with_nan(changes, maps)
    return Road(changes[:, 0], changes[:, 1])
