"""Intervals by a bootstrap of seeds and scenes, paired tests, and Holm's correction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
LEVEL = 0.95


@dataclass(frozen=True)
class Draws:
    """D draws of training seeds and of scenes, as the weight of each in a mean.

    All networks explain the same scenes, so a draw takes seeds with replacement, then scenes with
    replacement, and has those scenes for each of those seeds (Owen 2007, arXiv 0712.1111). Scenes
    are drawn within their stratum: each draw has as many scenes with k instances as there are.
    """

    seeds: Floats
    """(D, S); rows add up to 1."""
    scenes: Floats
    """(D, N); rows add up to 1."""

    @classmethod
    def of(cls, seeds: int, strata: NDArray[np.int64], count: int, seed: int = 0) -> Draws:
        """``count`` draws of S seeds and of N scenes, whose strata are (N,)."""
        rng = np.random.default_rng(seed)
        of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=count) / seeds
        of_scenes = np.zeros((count, len(strata)))
        for stratum in np.unique(strata):
            (members,) = np.nonzero(strata == stratum)
            equal = np.full(len(members), 1 / len(members))
            of_scenes[:, members] = rng.multinomial(len(members), equal, size=count)
        return cls(of_seeds, of_scenes / len(strata))

    def means(self, values: Floats) -> Floats:
        """The mean of each draw, (D, ...), of values (S, N, ...)."""
        seeds, scenes, *rest = values.shape
        by_scene = self.scenes @ values.astype(float).swapaxes(0, 1).reshape(scenes, -1)
        by_seed = by_scene.reshape(len(self.seeds), seeds, -1)
        found: Floats = np.einsum("ds,dsr->dr", self.seeds, by_seed)
        return found.reshape(len(self.seeds), *rest)


def interval(drawn: Floats) -> tuple[float, float]:
    """The 95 % interval of a figure, by the percentiles of its draws (D,)."""
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def paired_p(differences: Floats) -> float:
    """Wilcoxon's signed-rank test of differences by scene, (N,), two-sided; 1 if all are 0."""
    differences = differences.round(9)  # the same shares, summed in another order, are a tie
    if not differences.any():
        return 1.0
    return float(stats.wilcoxon(differences).pvalue)


def holm(values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (1979), in the order given.

    The i-th smallest of m is multiplied by m + 1 - i; none is smaller than one before it, and none
    larger than 1.
    """
    adjusted = [0.0] * len(values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        largest = max(largest, min(1.0, values[place] * (len(values) - rank)))
        adjusted[place] = largest
    return adjusted
