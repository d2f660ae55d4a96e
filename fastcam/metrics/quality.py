"""Complexity, sparseness and coherency of maps, and the means of several metrics, ADCC and ARCC."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastcam.engine.inputs import Inputs
from fastcam.engine.outputs import Output
from fastcam.metrics.confidence import Confidence, confidence_of
from fastcam.metrics.road import road_of
from fastcam.metrics.scoring import Explained
from fastcam.metrics.similarity import correlation
from fastcam.targets import Targets


def complexity(maps: Tensor) -> Tensor:
    """The mean magnitude of each map, (N,): how much of the image it covers. Low is good.

    Poppi et al. 2021, arXiv 2104.10252; in [0, 1] for maps in [0, 1]. Quantus' Complexity is
    another metric, the entropy of Bhatt et al. 2020. No forward.
    """
    return maps.flatten(1).abs().mean(1)


def sparseness(maps: Tensor) -> Tensor:
    """The Gini index of each map's magnitudes, (N,), in [0, 1). High is good.

    sum_k (2 k - n - 1) v_k / (n sum v), v_k the k-th smallest of n magnitudes: Chalasani et al.
    2020, arXiv 1810.06583. A constant map has 0, also one of zeros, for which Quantus gives NaN. No
    forward.
    """
    values = maps.flatten(1).double().abs().sort(1).values
    count = values.shape[1]
    weights = 2 * torch.arange(1, count + 1, device=maps.device, dtype=values.dtype) - count - 1
    total = values.sum(1)
    index = (weights * values).sum(1) / (count * total.where(total != 0, 1.0))
    return index.clamp(min=0).to(maps.dtype)


def coherency(maps: Tensor, others: Tensor) -> Tensor:
    """(1 + r) / 2, (N,), r the Pearson correlation of two maps; 1/2 if one is constant.

    Poppi et al. 2021, arXiv 2104.10252, compare a map with the map of the image times that map. In
    [0, 1], high is good.
    """
    return ((1 + correlation(maps, others)) / 2).to(maps.dtype)


def self_coherency(method: Any, images: Inputs, targets: Targets = None) -> Tensor:
    """:func:`coherency` of a method's map and of its map of the image times that map.

    Poppi et al. 2021, arXiv 2104.10252. It takes 2 explanations and 1 forward per image.

    Args:
        method: a method that returns one map per image, such as ``fastcam.GradCAM(model)``.
        images, targets: as for :func:`confidence`.

    Returns:
        (N,), in [0, 1], high is good.
    """
    return _coherency_of(Explained(method, images, targets))


def method_confidence(
    method: Any,
    images: Inputs,
    targets: Targets = None,
    *,
    probabilities: bool = True,
    output: Output | None = None,
) -> Confidence:
    """:func:`confidence` of a method's maps: 1 explanation and 2 forwards per image.

    Args:
        method, images, targets, probabilities, output: as for :func:`adcc`.
    """
    explained = Explained(method, images, targets, probabilities=probabilities, output=output)
    with explained.scorer as scorer:
        return confidence_of(scorer, explained.maps)


@dataclass(frozen=True)
class Quality:
    """Coherency, complexity and faithfulness, with their harmonic mean."""

    coherency: Tensor
    """(N,), high is good."""
    complexity: Tensor
    """(N,), low is good."""
    faithfulness: Tensor
    """(N,), high is good: 1 - relative drop, or twice ROAD combined, in [0, 1]."""

    @property
    def score(self) -> Tensor:
        """3 / (1 / coherency + 1 / (1 - complexity) + 1 / faithfulness), or 0 if one is 0.

        (N,), in [0, 1], high is good.
        """
        parts = torch.stack([self.coherency, 1 - self.complexity, self.faithfulness])
        return 3 / (1 / parts).sum(0)


def adcc(
    method: Any,
    images: Inputs,
    targets: Targets = None,
    *,
    probabilities: bool = True,
    output: Output | None = None,
) -> Quality:
    """ADCC: average drop, coherency and complexity (Poppi et al. 2021, arXiv 2104.10252).

    It takes 2 explanations and 2 forwards per image.

    Args:
        method: a method that returns one map per image, such as ``fastcam.GradCAM(model)``.
        images, targets, probabilities: as for :func:`confidence`.
        output: the output to score; by default the one that the method explains.
    """
    explained = Explained(method, images, targets, probabilities=probabilities, output=output)
    with explained.scorer as scorer:
        faithfulness = 1 - confidence_of(scorer, explained.maps).relative_drop
    return _quality(explained, faithfulness)


def arcc(
    method: Any,
    images: Inputs,
    targets: Targets = None,
    *,
    percentiles: Sequence[float] = (20, 40, 60, 80),
    noise: float = 0.01,
    seed: int = 0,
    batch_size: int = 32,
    probabilities: bool = True,
    output: Output | None = None,
) -> Quality:
    """ARCC: the same with :func:`road` instead of the average drop.

    How to Evaluate and Refine your CAM, 2026, arXiv 2605.14641. It takes 2 explanations and
    2 P + 1 forwards per image, for P percentiles.

    Args:
        method, images, targets, probabilities, output: as for :func:`adcc`.
        percentiles, noise, seed, batch_size: as for :func:`road`.
    """
    explained = Explained(method, images, targets, probabilities=probabilities, output=output)
    with explained.scorer as scorer:
        found = road_of(scorer, explained.maps, percentiles, noise, seed, batch_size)
    return _quality(explained, (2 * found.combined).clamp(0, 1))


def _quality(explained: Explained, faithfulness: Tensor) -> Quality:
    return Quality(_coherency_of(explained), complexity(explained.maps), faithfulness)


def _coherency_of(explained: Explained) -> Tensor:
    with explained.scorer as scorer:
        masked = scorer.masked(explained.maps)
    return coherency(explained.maps, explained.again(masked))
