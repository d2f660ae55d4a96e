"""How alike two maps are: correlation, rank correlation and SSIM."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcam.errors import ArgumentError


@dataclass(frozen=True)
class Similarity:
    """How alike maps are, by two measures; 1 if they are the same."""

    ssim: Tensor
    """See :func:`ssim`."""
    rank_correlation: Tensor
    """See :func:`rank_correlation`."""


def similarity(maps: Tensor, others: Tensor) -> Similarity:
    """Both measures of maps (N, *S) and others, (N,) each."""
    return Similarity(ssim(maps, others), rank_correlation(maps, others))


def correlation(maps: Tensor, others: Tensor) -> Tensor:
    """Pearson's correlation of maps (N, *S) and others, (N,) in float64; 0 if one is constant."""
    first, second = (each.flatten(1).double() for each in (maps, others))
    constant = is_constant(first) | is_constant(second)
    first, second = (each - each.mean(1, keepdim=True) for each in (first, second))
    spread = first.norm(dim=1) * second.norm(dim=1)
    found = ((first * second).sum(1) / spread.where(spread != 0, 1.0)).clamp(-1, 1)
    return found.masked_fill(constant, 0)


def is_constant(values: Tensor) -> Tensor:
    """(N,): whether all values (N, n) of a row are the same."""
    return (values == values[:, :1]).all(1)


def rank_correlation(maps: Tensor, others: Tensor) -> Tensor:
    """Spearman's rank correlation of maps (N, *S) and others, (N,), in [-1, 1].

    Equal values share the mean of their ranks. If one map is constant, the result is 0, and 1 if
    both are; scipy and Quantus give NaN. NaN if a map holds NaN.
    """
    _check_shapes(maps, others)
    first, second = (_mean_ranks(each.flatten(1)) for each in (maps, others))
    found = correlation(first, second)
    both = is_constant(first) & is_constant(second)
    broken = (maps.isnan() | others.isnan()).flatten(1).any(1)
    return found.masked_fill(both, 1).masked_fill(broken, torch.nan).to(_dtype(maps))


def ssim(maps: Tensor, others: Tensor) -> Tensor:
    """Structural similarity of maps (N, *S) in [0, 1] and others, (N,), in [-1, 1].

    Wang et al. 2004, doi 10.1109/TIP.2003.819861: a Gaussian window of 11 pixels with standard
    deviation 1.5, K1 = 0.01, K2 = 0.03 and a range of 1, the mean over all places where the window
    fits. On smaller maps the window has the largest odd size that fits. scikit-image, and so
    Quantus, has a flat window of 7 pixels by default.
    """
    _check_shapes(maps, others)
    size = min(11, *maps.shape[1:])
    size -= 1 - size % 2
    offsets = torch.arange(size, device=maps.device, dtype=torch.float64) - size // 2
    window = (-0.5 * (offsets / 1.5) ** 2).exp()
    window = window / window.sum()

    def mean(values: Tensor) -> Tensor:
        for axis in range(1, values.dim()):
            moved = values.movedim(axis, -1)
            lines = moved.reshape(-1, 1, moved.shape[-1])
            filtered = F.conv1d(lines, window.view(1, 1, -1))
            values = filtered.view(*moved.shape[:-1], filtered.shape[-1]).movedim(-1, axis)
        return values

    x, y = maps.double(), others.double()
    mean_x, mean_y = mean(x), mean(y)
    # window means of squares minus squares of means: without Bessel's correction, as in the paper
    variances = mean(x * x) - mean_x**2 + mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    values = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    values = values / ((mean_x**2 + mean_y**2 + c1) * (variances + c2))
    return values.flatten(1).mean(1).to(_dtype(maps))


def _mean_ranks(values: Tensor) -> Tensor:
    """The ranks of values (N, n) in float64, from 0; equal values have the mean of theirs."""
    ordered = values.sort(1).values
    below = torch.searchsorted(ordered, values.contiguous())
    upto = torch.searchsorted(ordered, values.contiguous(), right=True)
    return (below + upto - 1).double() / 2


def _check_shapes(maps: Tensor, others: Tensor) -> None:
    if maps.shape != others.shape:
        raise ArgumentError(
            "maps, others",
            f"got shapes {tuple(maps.shape)} and {tuple(others.shape)}, expected the same",
        )


def _dtype(maps: Tensor) -> torch.dtype:
    """That of the result."""
    return maps.dtype if maps.is_floating_point() else torch.get_default_dtype()
