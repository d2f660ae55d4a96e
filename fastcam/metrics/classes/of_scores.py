"""Classes of faithfulness: they get maps, and the model whose scores the maps explain."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastcam.engine.inputs import Inputs
from fastcam.metrics import curves, stability
from fastcam.metrics.classes.base import MapMetric
from fastcam.metrics.confidence import Confidence, as_numbers, confidence, win
from fastcam.metrics.road import Road, road
from fastcam.targets import Targets


class _OfScores(MapMetric):
    """A metric of maps and of the scores of a model."""

    def __init__(self, model: nn.Module, **settings: Any) -> None:
        super().__init__(model, **settings)

    def update(self, images: Inputs, maps: Tensor, targets: Targets = None) -> None:
        """Adds a batch; ``targets`` None for the top class."""
        self._add(images, maps, targets)


class AverageDrop(_OfScores):
    """Average drop in percent, 100 mean(ReLU(before - after) / before): see :func:`confidence`."""

    function = staticmethod(confidence)
    higher_is_better = False

    def _values_of(self, found: Confidence) -> Tensor:
        return 100 * found.relative_drop


class IncreaseInConfidence(_OfScores):
    """Increase in confidence in percent, 100 mean(after > before): see :func:`confidence`."""

    function = staticmethod(confidence)
    higher_is_better = True

    def _values_of(self, found: Confidence) -> Tensor:
        return 100 * as_numbers(found.increase, found.change)


class Win(_OfScores):
    """Win in percent, over another method's maps: see :func:`win`."""

    function = staticmethod(win)
    higher_is_better = True

    def update(  # type: ignore[override]
        self, images: Inputs, maps: Tensor, other_maps: Tensor, targets: Targets = None
    ) -> None:
        """Adds a batch with the maps of both methods."""
        self._add(images, maps, other_maps, targets)

    def _values_of(self, found: Tensor) -> Tensor:
        return 100 * found


class Deletion(_OfScores):
    """The area below the curve of :func:`deletion`."""

    function = staticmethod(curves.deletion)
    higher_is_better = False

    def _values_of(self, found: curves.Curve) -> Tensor:
        return found.area


class Insertion(_OfScores):
    """The area below the curve of :func:`insertion`."""

    function = staticmethod(curves.insertion)
    higher_is_better = True

    def _values_of(self, found: curves.Curve) -> Tensor:
        return found.area


class InsertionMinusDeletion(_OfScores):
    """See :func:`insertion_minus_deletion`."""

    function = staticmethod(curves.insertion_minus_deletion)
    higher_is_better = True


class ROAD(_OfScores):
    """ROAD combined: see :func:`road`."""

    function = staticmethod(road)
    higher_is_better = True

    def _values_of(self, found: Road) -> Tensor:
        return found.combined


class Infidelity(_OfScores):
    """See :func:`infidelity`."""

    function = staticmethod(stability.infidelity)
    higher_is_better = False
