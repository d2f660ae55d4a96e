"""Average drop, increase in confidence and win: the score of images times their maps."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastcam.engine.inputs import Argument, Inputs
from fastcam.engine.outputs import Output
from fastcam.engine.per_image import PerImage
from fastcam.errors import ArgumentError
from fastcam.metrics.scoring import Scorer
from fastcam.targets import Targets


@dataclass(frozen=True)
class Confidence:
    """The scores of the images, and of the images times their maps."""

    before: Tensor
    """(N,)."""
    after: Tensor
    """(N,)."""

    @property
    def change(self) -> Tensor:
        """after - before."""
        return self.after - self.before

    @property
    def drop(self) -> Tensor:
        """ReLU(before - after), as in pytorch-grad-cam's DropInConfidence."""
        return (self.before - self.after).relu()

    @property
    def relative_drop(self) -> Tensor:
        """ReLU(before - after) / before, in [0, 1], low is good; 0 if before is 0.

        Its mean is the average drop of the Grad-CAM++ paper, there in percent: Chattopadhyay et al.
        2018, arXiv 1710.11063, section 4.1. torchcam adds 1e-7 to the denominator.

        Raises:
            ValueError: if a score is below 0, so that no share of it can be lost.
        """
        if (self.before < 0).any():
            raise ArgumentError(
                "targets",
                f"got a score of {self.before.min():.3g}, but a relative drop needs scores of at "
                "least 0; use probabilities=True and class ids, or Confidence.drop",
            )
        return (self.drop / self.before).masked_fill(self.before == 0, 0)

    @property
    def increase(self) -> Tensor:
        """Whether after > before, high is good; its mean is that paper's increase in confidence."""
        return self.after > self.before

    def wins(self, other: Confidence) -> Tensor:
        """Whether the score falls less than with another method's maps of the same images.

        High is good. The mean is that paper's win, there in percent. The same fall is a win for
        neither.
        """
        return self.after > other.after


def confidence(
    model: nn.Module,
    images: Inputs,
    maps: Tensor,
    targets: Targets = None,
    *,
    probabilities: bool = True,
    output: Output | None = None,
    per_image: PerImage | Collection[Argument] | None = None,
) -> Confidence:
    """The confidence in the images, and in the images times their maps: 2 forwards per image.

    Args:
        model, images, targets, output, per_image: as for the methods of :mod:`fastcam.methods`,
            with one class per image.
        maps: (N, *S).
        probabilities: whether class ids select softmax probabilities instead of logits.

    Raises:
        ValueError, TypeError: if maps or targets do not fit the images.
    """
    scorer = Scorer(
        model, images, targets, probabilities=probabilities, output=output, per_image=per_image
    )
    with scorer:
        return confidence_of(scorer, maps)


def confidence_of(scorer: Scorer, maps: Tensor) -> Confidence:
    """The same, within the context of a scorer."""
    return Confidence(scorer.before, scorer.after(scorer.masked(maps)))


def win(
    model: nn.Module,
    images: Inputs,
    maps: Tensor,
    other_maps: Tensor,
    targets: Targets = None,
    *,
    probabilities: bool = True,
    output: Output | None = None,
    per_image: PerImage | Collection[Argument] | None = None,
) -> Tensor:
    """Where the score falls less with the maps than with another method's: 3 forwards per image.

    Chattopadhyay et al. 2018, arXiv 1710.11063, section 4.1: win % is 100 times the mean. The same
    fall is a win for neither, so the two methods' values need not add up to 100.

    Args:
        model, images, maps, targets, probabilities, output, per_image: as for :func:`confidence`.
        other_maps: (N, *S), the other method's.

    Returns:
        (N,), 1 or 0, high is good; NaN if a map holds NaN.

    Raises:
        ValueError, TypeError: if maps or targets do not fit the images.
    """
    scorer = Scorer(
        model, images, targets, probabilities=probabilities, output=output, per_image=per_image
    )
    with scorer:
        ours, others = (confidence_of(scorer, each) for each in (maps, other_maps))
        return as_numbers(ours.wins(others), ours.after + others.after)


def as_numbers(flags: Tensor, scores: Tensor) -> Tensor:
    """Flags (N,) as 1 and 0, NaN where the scores that were compared are NaN."""
    return flags.to(scores.dtype).masked_fill(scores.isnan(), torch.nan)
