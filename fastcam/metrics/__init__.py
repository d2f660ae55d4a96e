"""Metrics of the quality of maps: how the score changes when pixels are masked or removed.

Everything stays on the images' device. Maps are (N, *S) in [0, 1] at the images' size, as the
methods return them, and targets are as for the methods. For class ids, confidence is the softmax
probability of the class (with ``probabilities=False``, the logit); for target functions, it is
their result.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastcam.engine.capture import Capture, capture
from fastcam.engine.inputs import (
    Argument,
    Inputs,
)
from fastcam.engine.outputs import (
    Output,
)
from fastcam.engine.per_image import PerImage
from fastcam.engine.running import (
    unwrap,
)
from fastcam.errors import ArgumentError
from fastcam.metrics.imputation import impute
from fastcam.targets import Selection, Targets, probabilities, select

PERCENTILES = (10, 20, 30, 40, 50, 60, 70, 80, 90)


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
        """ReLU(before - after) / before; its mean is the average drop of the Grad-CAM++ paper.

        Chattopadhyay et al. 2018, arXiv 1710.11063, section 4.1.
        """
        return self.drop / self.before

    @property
    def increase(self) -> Tensor:
        """Whether after > before; its mean is that paper's increase in confidence."""
        return self.after > self.before


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
    """The confidence in the images, and in the images times their maps.

    Args:
        model, images, targets, output, per_image: as for the methods of :mod:`fastcam.methods`,
            with one class per image.
        maps: (N, *S).
        probabilities: whether class ids select softmax probabilities instead of logits.

    Raises:
        ValueError, TypeError: if maps or targets do not fit the images.
    """
    with _Scorer(model, images, targets, probabilities, output, per_image) as scorer:
        masked = scorer.masked(maps)
        rows = torch.arange(len(masked), device=masked.device)
        return Confidence(scorer.before, scorer.of(masked, rows))


class ClassificationMetric:
    """Average drop and increase in confidence of a method, over any number of batches.

    Args:
        method: a method that returns one map per image, such as ``fastcam.GradCAM(model)``.
        probabilities: as for :func:`confidence`.
        output: the output to score; by default the one that the method explains.
    """

    def __init__(
        self, method: Any, *, probabilities: bool = True, output: Output | None = None
    ) -> None:
        self.method = method
        self._probabilities, self._scored = probabilities, _scored(method, output)
        self._drops: list[Tensor] = []
        self._increases: list[Tensor] = []

    def update(self, images: Inputs, targets: Targets = None) -> None:
        """Explains a batch and adds its scores; ``targets`` None for the top class."""
        maps = self.method(images, targets)
        targets = self.method.class_ids if targets is None else targets
        found = confidence(
            self.method.model,
            images,
            maps,
            targets,
            probabilities=self._probabilities,
            **self._scored,
        )
        self._drops.append(found.relative_drop)
        self._increases.append(found.increase)

    def summary(self) -> dict[str, float]:
        """``average_drop`` and ``increase``, the means over all images.

        Raises:
            ValueError: if :meth:`update` has not been called.
        """
        if not self._drops:
            raise ArgumentError(
                "images", "got none, expected at least one batch; call update() first"
            )
        drops, increases = torch.cat(self._drops), torch.cat(self._increases)
        return {
            "average_drop": drops.double().mean().item(),
            "increase": increases.double().mean().item(),
        }


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
    together (:func:`fastcam.metrics.imputation.impute`).

    Args:
        model, images, targets, maps, probabilities, output, per_image: as for :func:`confidence`;
            the images are 2-D.
        percentiles: percentiles of the map; pixels below are kept.
        noise: the standard deviation of the noise added to imputed pixels.
        seed: the seed of the noise.
        batch_size: the number of imputed images per run.

    Raises:
        ValueError, TypeError: if maps or targets do not fit the images, or the images are not 2-D.
    """
    with _Scorer(model, images, targets, probabilities, output, per_image) as scorer:
        scorer.check(maps)
        pixels = scorer.images
        if pixels.dim() != 4:
            raise ArgumentError(
                "images", f"got shape {tuple(pixels.shape)}, expected 2-D images (N, C, H, W)"
            )
        ranks = torch.tensor(percentiles, dtype=torch.float64, device=maps.device) / 100
        orders = torch.stack([maps, 1 - maps], 1)  # (N, 2, H, W)
        limits = _quantiles(orders.flatten(2), ranks)  # (N, 2, P)
        known = orders.unsqueeze(2) < limits[..., None, None].to(maps.dtype)
        count = len(percentiles)
        rows = torch.arange(len(pixels), device=pixels.device).repeat_interleave(2 * count)
        generator = torch.Generator(pixels.device).manual_seed(seed)
        scores = []
        for some, kept in zip(
            rows.split(batch_size), known.flatten(0, 2).split(batch_size), strict=True
        ):
            chosen = pixels[some]
            added = torch.empty_like(chosen).normal_(generator=generator) * noise
            scores.append(scorer.of(impute(chosen, kept, added), some))
        after = torch.cat(scores) if scores else scorer.before
        changes = after.view(len(pixels), 2, count) - scorer.before[:, None, None]
        return Road(changes[:, 0], changes[:, 1])


def complexity(maps: Tensor) -> Tensor:
    """The mean magnitude of each map, (N,): how much of the image it covers. Low is good.

    Poppi et al. 2021, arXiv 2104.10252.
    """
    return maps.flatten(1).abs().mean(1)


def coherency(maps: Tensor, others: Tensor) -> Tensor:
    """(1 + r) / 2, (N,), r the Pearson correlation of two maps; 1/2 if one is constant.

    Poppi et al. 2021, arXiv 2104.10252, compare a map with the map of the image times that map.
    """
    first, second = (m.flatten(1).double() for m in (maps, others))
    first, second = (m - m.mean(1, keepdim=True) for m in (first, second))
    spread = first.norm(dim=1) * second.norm(dim=1)
    covariance = (first * second).sum(1)
    correlation = covariance / spread.where(spread != 0, 1.0)
    return ((1 + correlation.clamp(-1, 1)) / 2).to(maps.dtype)


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
        """3 / (1 / coherency + 1 / (1 - complexity) + 1 / faithfulness), or 0 if one is 0."""
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

    Args:
        method: a method that returns one map per image, such as ``fastcam.GradCAM(model)``.
        images, targets, probabilities: as for :func:`confidence`.
        output: the output to score; by default the one that the method explains.
    """
    scored = _scored(method, output)

    def faithfulness(maps: Tensor, targets: Targets) -> Tensor:
        found = confidence(
            method.model, images, maps, targets, probabilities=probabilities, **scored
        )
        return 1 - found.relative_drop

    return _quality(method, images, targets, faithfulness)


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

    How to Evaluate and Refine your CAM, 2026, arXiv 2605.14641.

    Args:
        method, images, targets, probabilities, output: as for :func:`adcc`.
        percentiles, noise, seed, batch_size: as for :func:`road`.
    """
    scored = _scored(method, output)

    def faithfulness(maps: Tensor, targets: Targets) -> Tensor:
        found = road(
            method.model,
            images,
            maps,
            targets,
            percentiles=percentiles,
            noise=noise,
            seed=seed,
            batch_size=batch_size,
            probabilities=probabilities,
            **scored,
        )
        return (2 * found.combined).clamp(0, 1)

    return _quality(method, images, targets, faithfulness)


def _scored(method: Any, output: Output | None) -> dict[str, Any]:
    """The ``output`` and ``per_image`` of a method; ``output`` replaces the method's if given."""
    output = method.output if output is None else output
    return {"output": output, "per_image": method.per_image}


def _quality(
    method: Any,
    images: Inputs,
    targets: Targets,
    faithfulness: Callable[[Tensor, Targets], Tensor],
) -> Quality:
    maps = method(images, targets)
    targets = method.class_ids if targets is None else targets
    with _Scorer(method.model, images, targets, False, **_scored(method, None)) as scorer:
        masked = scorer.record.inputs(
            torch.arange(len(maps), device=maps.device), scorer.masked(maps)
        )
    again = method(masked, targets)
    return Quality(coherency(maps, again), complexity(maps), faithfulness(maps, targets))


class _Scorer:
    """A context that scores one class per image, for the images and for changed images."""

    def __init__(
        self,
        model: nn.Module,
        images: Inputs,
        targets: Targets,
        probabilities: bool,
        output: Output | None,
        per_image: PerImage | Collection[Argument] | None,
    ) -> None:
        self._probabilities = probabilities
        if not isinstance(per_image, PerImage):
            per_image = PerImage(per_image)
        self._modes = torch.inference_mode(False), torch.no_grad()
        with self:
            self.record: Capture = capture(
                unwrap(model), images, (), output=output, graph=None, per_image=per_image
            )
            if self.record.images is None or not self.record.images.is_floating_point():
                raise ArgumentError(
                    "images",
                    "this metric masks images, but the model's inputs contain no floating-point "
                    "tensor (N, C, *S)",
                )
            self.images: Tensor = self.record.images
            self._selection: Selection = select(self.record.logits, targets)
            if self._selection.scores.dim() != 1:
                raise ArgumentError(
                    "targets",
                    f"got {self._selection.scores.shape[1]} classes per image, expected 1",
                )
            rows = torch.arange(len(self.record.logits), device=self.images.device)
            self.before = self._confidence(self.record.logits, rows)

    def __enter__(self) -> _Scorer:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*exception)

    def of(self, images: Tensor, rows: Tensor) -> Tensor:
        """(R,), for images (R, C, *S); row r is a changed copy of image rows[r]."""
        return self._confidence(self.record.again(rows, images), rows)

    def check(self, maps: Tensor) -> None:
        expected = (len(self.images), *self.images.shape[2:])
        if tuple(maps.shape) != expected:
            raise ArgumentError(
                "maps",
                f"got shape {tuple(maps.shape)}, expected {expected}, one map per image and "
                "of its size",
            )

    def masked(self, maps: Tensor) -> Tensor:
        """The images times their maps."""
        self.check(maps)
        return self.images * maps.to(self.images.dtype).unsqueeze(1)

    def _confidence(self, logits: Tensor, rows: Tensor) -> Tensor:
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if self._probabilities and self._selection.class_ids is not None and logits.dim() == 2:
            logits = probabilities(logits)
        return self._selection.of(logits, rows)


def _quantiles(values: Tensor, ranks: Tensor) -> Tensor:
    """(*L, P), interpolated linearly between values (*L, n); torch.quantile limits their number."""
    ordered = values.sort(-1).values.double()
    places = ranks * (values.shape[-1] - 1)
    below = places.floor().long().clamp(0, values.shape[-1] - 1)
    above = (below + 1).clamp(max=values.shape[-1] - 1)
    low, high = ordered[..., below], ordered[..., above]
    return low + (high - low) * (places - below)
