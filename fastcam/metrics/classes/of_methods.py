"""Classes of metrics that explain by themselves: they get a method."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from fastcam.engine.inputs import Inputs
from fastcam.errors import ArgumentError
from fastcam.metrics import quality, sanity, stability
from fastcam.metrics.classes.base import MapMetric
from fastcam.metrics.confidence import Confidence, as_numbers
from fastcam.metrics.similarity import Similarity
from fastcam.targets import Targets


class _OfMethod(MapMetric):
    """A metric that explains by itself."""

    def __init__(self, method: Any, **settings: Any) -> None:
        super().__init__(method, **settings)

    @property
    def method(self) -> Any:
        """The method."""
        return self._borrowed.objects[0]

    def update(self, images: Inputs, targets: Targets = None) -> None:
        """Adds a batch; ``targets`` None for the top class."""
        self._add(images, targets)


class ClassificationMetric(_OfMethod):
    """Average drop and increase in confidence of a method, as shares: see :func:`confidence`.

    Args:
        method: a method that returns one map per image, such as ``fastcam.GradCAM(model)``.
        probabilities: as for :func:`confidence`.
        output: the output to score; by default the one that the method explains.
    """

    function = staticmethod(quality.method_confidence)

    def __init__(self, method: Any, **settings: Any) -> None:
        super().__init__(method, row=(2,), **settings)

    def _values_of(self, found: Confidence) -> Tensor:
        return torch.stack([found.relative_drop, as_numbers(found.increase, found.change)], 1)

    def _summary(self, values: Tensor) -> dict[str, Tensor]:
        average_drop, increase = values.mean(0)
        return {"average_drop": average_drop, "increase": increase}

    def summary(self) -> dict[str, float]:
        """``average_drop`` and ``increase``, the means over all images.

        Raises:
            ValueError: if :meth:`update` has not been called.
        """
        return {name: value.item() for name, value in self.compute().items()}


class MaxSensitivity(_OfMethod):
    """See :func:`max_sensitivity`."""

    function = staticmethod(stability.max_sensitivity)
    higher_is_better = False


class Coherency(_OfMethod):
    """See :func:`self_coherency`."""

    function = staticmethod(quality.self_coherency)
    higher_is_better = True


class ADCC(_OfMethod):
    """See :func:`adcc`."""

    function = staticmethod(quality.adcc)
    higher_is_better = True

    def _values_of(self, found: quality.Quality) -> Tensor:
        return found.score


class ARCC(_OfMethod):
    """See :func:`arcc`."""

    function = staticmethod(quality.arcc)
    higher_is_better = True

    def _values_of(self, found: quality.Quality) -> Tensor:
        return found.score


Measure = Literal["ssim", "rank_correlation"]


class ParameterRandomisation(_OfMethod):
    """How alike maps stay when layers are randomised, (L,): see :func:`parameter_randomisation`.

    Args:
        method: a method that returns one map per image, such as ``fastcam.GradCAM(model)``.
        measure: ``"ssim"`` or ``"rank_correlation"``.
    """

    function = staticmethod(sanity.parameter_randomisation)
    higher_is_better = False

    def __init__(
        self, method: Any, *, measure: Measure = "rank_correlation", **settings: Any
    ) -> None:
        self.layers = sanity.randomised_layers(method.model)
        """The L layers, from the output down."""
        self._measure = _checked(measure)
        super().__init__(method, row=(len(self.layers),), **settings)

    def _values_of(self, found: sanity.Randomisation) -> Tensor:
        return getattr(found, self._measure)


class ClassSensitivity(_OfMethod):
    """How alike the maps of two classes are: see :func:`class_sensitivity`.

    Args:
        method: a method that returns one map per image, such as ``fastcam.GradCAM(model)``.
        measure: ``"ssim"`` or ``"rank_correlation"``.
    """

    function = staticmethod(sanity.class_sensitivity)
    higher_is_better = False

    def __init__(
        self, method: Any, *, measure: Measure = "rank_correlation", **settings: Any
    ) -> None:
        self._measure = _checked(measure)
        super().__init__(method, **settings)

    def update(self, images: Inputs, targets: Targets = None, others: Targets = None) -> None:
        """Adds a batch; ``others`` None for the class with the lowest score."""
        self._add(images, targets, others=others)

    def _values_of(self, found: Similarity) -> Tensor:
        return getattr(found, self._measure)


def _checked(measure: str) -> str:
    if measure not in ("ssim", "rank_correlation"):
        raise ArgumentError("measure", f'got {measure!r}, expected "ssim" or "rank_correlation"')
    return measure
