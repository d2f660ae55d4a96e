"""ROAD, remove and debias: removes pixels by relevance and imputes them from their neighbours.

Rong et al. 2022, arXiv 2202.00449.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from fastcam.compat.pytorch_grad_cam.metrics.perturbation_confidence import (
    AveragerAcrossThresholds,
    PerturbationConfidenceMetric,
    RemoveLeastRelevantFirst,
    RemoveMostRelevantFirst,
)
from fastcam.dropin.pytorch_grad_cam.metrics import Scores, Target, impute

Array = NDArray[Any]
Weighting = Sequence[tuple[tuple[int, int], float]]

neighbors_weights: Weighting = [
    ((dy, dx), 1 / 6 if dy == 0 or dx == 0 else 1 / 12)
    for dy, dx in ((1, 1), (0, 1), (-1, 1), (1, -1), (0, -1), (-1, -1), (1, 0), (-1, 0))
]
PERCENTILES = (10, 20, 30, 40, 50, 60, 70, 80, 90)


class NoisyLinearImputer:
    """Each missing pixel becomes the weighted mean of its neighbours, plus noise.

    Args:
        noise: the standard deviation of the noise.
        weighting: ignored, as in pytorch-grad-cam; always ``neighbors_weights``.
    """

    def __init__(self, noise: float = 0.01, weighting: Weighting = neighbors_weights) -> None:
        self.noise = noise
        self.weighting = neighbors_weights

    @staticmethod
    def add_offset_to_indices(
        indices: Array, offset: tuple[int, int], mask_shape: tuple[int, int]
    ) -> tuple[Array, Array]:
        """Whether each pixel's neighbour is inside the image, and its flat index."""
        height, width = mask_shape
        rows, columns = indices // width + offset[0], indices % width + offset[1]
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        return inside, indices + offset[0] * width + offset[1]

    @staticmethod
    def setup_sparse_system(
        mask: Array, img: Array, neighbors_weights: Weighting
    ) -> tuple[Any, Array]:
        """The equations A x = b for the missing pixels, in the order of their flat indices.

        Args:
            mask: (H, W), 0 where a pixel is missing.
            img: (C, H, W).
            neighbors_weights: ((dy, dx), weight) of each neighbour.

        Returns:
            A (n, n), scipy's ``lil_matrix``, and b (n, C).
        """
        from scipy.sparse import coo_matrix

        known, values = mask.flatten() > 0.5, img.reshape(len(img), -1).T
        missing = np.flatnonzero(mask.flatten() == 0)
        number = np.zeros(known.size, dtype=int)
        number[missing] = np.arange(len(missing))
        right, total = np.zeros((len(missing), len(img))), np.ones(len(missing))
        rows, columns, entries = [np.arange(len(missing))], [np.arange(len(missing))], []
        for offset, weight in neighbors_weights:
            inside, neighbors = NoisyLinearImputer.add_offset_to_indices(
                missing, offset, mask.shape
            )
            equations, neighbors = np.flatnonzero(inside), neighbors[inside]
            given = known[neighbors]
            right[equations[given]] -= weight * values[neighbors[given]]
            rows.append(equations[~given])
            columns.append(number[neighbors[~given]])
            entries.append(np.full(len(rows[-1]), weight))
            total[~inside] -= weight
        at = np.concatenate(rows), np.concatenate(columns)
        matrix = coo_matrix((np.concatenate([-total, *entries]), at), shape=(len(missing),) * 2)
        return matrix.tolil(), right

    def __call__(self, img: Tensor, mask: Tensor) -> Tensor:
        """(C, H, W), for an image (C, H, W) and a mask (H, W), 0 where a pixel is missing.

        The noise is drawn as in pytorch-grad-cam. If no pixel is known, the result is 0 plus noise.
        """
        return impute(self, img, mask)


class ROADMostRelevantFirst(PerturbationConfidenceMetric):
    """The change of the score when pixels at or above the percentile are removed. Low is good."""

    def __init__(self, percentile: float | str = 80) -> None:
        super().__init__(RemoveMostRelevantFirst(percentile, NoisyLinearImputer()))


class ROADLeastRelevantFirst(PerturbationConfidenceMetric):
    """The same for 1 - map. High is good."""

    def __init__(self, percentile: float | str = 20) -> None:
        super().__init__(RemoveLeastRelevantFirst(percentile, NoisyLinearImputer()))


class ROADMostRelevantFirstAverage(AveragerAcrossThresholds):
    """The mean of :class:`ROADMostRelevantFirst` over percentiles."""

    def __init__(self, percentiles: Sequence[float] = PERCENTILES) -> None:
        super().__init__(ROADMostRelevantFirst, percentiles)


class ROADLeastRelevantFirstAverage(AveragerAcrossThresholds):
    """The mean of :class:`ROADLeastRelevantFirst` over percentiles."""

    def __init__(self, percentiles: Sequence[float] = PERCENTILES) -> None:
        super().__init__(ROADLeastRelevantFirst, percentiles)


class ROADCombined:
    """(least - most relevant first) / 2, each averaged over percentiles. High is good."""

    def __init__(self, percentiles: Sequence[float] = PERCENTILES) -> None:
        self.percentiles = percentiles
        self.morf_averager = ROADMostRelevantFirstAverage(percentiles)
        self.lerf_averager = ROADLeastRelevantFirstAverage(percentiles)

    def __call__(
        self, input_tensor: Tensor, cams: Array, targets: Sequence[Target], model: nn.Module
    ) -> Scores:
        """(N,), arguments as for :class:`PerturbationConfidenceMetric`."""
        least = self.lerf_averager(input_tensor, cams, targets, model)
        most = self.morf_averager(input_tensor, cams, targets, model)
        combined: Any = (least - most) / 2
        return combined
