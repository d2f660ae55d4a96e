"""The metrics over any number of batches and processes, as metrics of torchmetrics.

Each class has a function's arguments: those that are the same for all batches are given to the
class, the others to ``update``.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from fastcam.engine.inputs import Inputs
from fastcam.errors import ArgumentError
from fastcam.metrics import curves, overlap, quality, sanity, stability
from fastcam.metrics.box_accuracy import LEVELS, box_ious, max_box_acc_v2
from fastcam.metrics.confidence import Confidence, as_numbers, confidence, win
from fastcam.metrics.pixel_precision import pixel_histograms, px_ap
from fastcam.metrics.pointing import energy_pointing_game, pointing_game
from fastcam.metrics.regions import Boxes, Masks
from fastcam.metrics.road import road
from fastcam.metrics.similarity import Similarity
from fastcam.targets import Targets


class MapMetric(Metric):
    """The base class: it keeps one row of values per image, for means and intervals.

    ``update`` adds a batch, ``compute`` returns the metric over all images, ``reset`` starts anew.
    Images without a value (NaN: no instance, or NaN in the map) are left out, with a warning.

    Args:
        settings: the keyword arguments of the function that the class stands for, and those of
            torchmetrics' Metric.
    """

    function: ClassVar[Callable[..., Any]]
    """The function whose results are kept."""
    higher_is_better: bool | None = None
    is_differentiable = False
    full_state_update = False
    kept: list[Tensor]

    def __init__(self, *owned: Any, row: Sequence[int] = (), **settings: Any) -> None:
        names = inspect.signature(self.function).parameters
        self._settings = {name: settings.pop(name) for name in list(settings) if name in names}
        super().__init__(**settings)
        self._borrowed = _Borrowed(owned)
        self._row = tuple(row)
        # one row after another: a process without images has the shape of the others too
        self.add_state("kept", default=[], dist_reduce_fx="cat")
        # NaN equals nothing: a MetricCollection merges metrics whose states are equal after the
        # first batch, even if their settings are not
        self.add_state("apart", default=torch.tensor(torch.nan), dist_reduce_fx="sum")

    @property
    def values(self) -> Tensor:
        """(N, ...): the values of each image, in the order of the updates; float32.

        Raises:
            ValueError: before the first update.
        """
        if len(self.kept) == 0:
            raise ArgumentError(
                "images", "got none, expected at least one batch; call update() first"
            )
        return dim_zero_cat(self.kept).view(-1, *self._row)

    def compute(self) -> Any:
        """The metric over all images."""
        values = self.values
        undefined = values.isnan().flatten(1).any(1) if values.dim() > 1 else values.isnan()
        if undefined.any():
            warnings.warn(
                f"{type(self).__name__}: {int(undefined.sum())} of {len(values)} images have no "
                "value, for they have no instance or NaN in the map; they are left out",
                stacklevel=2,
            )
        return self._summary(values[~undefined].double())

    def _summary(self, values: Tensor) -> Any:
        """The metric, for the values (N, ...) of all images."""
        return values.mean(0)

    def _add(self, *batch: Any, **further: Any) -> None:
        """Calls the function for a batch, and keeps its values."""
        found = self.function(*self._borrowed.objects, *batch, **further, **self._settings)
        self.kept.append(self._values_of(found).float().flatten())

    def _values_of(self, found: Any) -> Tensor:
        """(N, ...), in what the function returned."""
        values: Tensor = found
        return values


class _Borrowed:
    """Holds a user's model or method: it is not a part of the metric, and copies share it."""

    def __init__(self, objects: tuple[Any, ...]) -> None:
        self.objects = objects

    def __deepcopy__(self, memo: Any) -> _Borrowed:
        return self


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

    def _values_of(self, found: Any) -> Tensor:
        return found.combined


class Infidelity(_OfScores):
    """See :func:`infidelity`."""

    function = staticmethod(stability.infidelity)
    higher_is_better = False


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


class _OfPlaces(MapMetric):
    """A metric of maps and of the instances that they should find."""

    def update(self, maps: Tensor, boxes: Boxes | None = None, masks: Masks | None = None) -> None:
        """Adds a batch of maps (N, *S) with boxes (B, 4) or masks (I, *S) for each."""
        self._add(maps, boxes, masks)


class PointingGame(_OfPlaces):
    """See :func:`pointing_game`; with class ids, the mean over the classes' means, as in the paper.

    Zhang et al. and TorchRay average over classes. If an update has no targets, the result is the
    mean over all images.
    """

    function = staticmethod(pointing_game)
    higher_is_better = True
    classes: list[Tensor]

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.add_state("classes", default=[], dist_reduce_fx="cat")

    def update(
        self,
        maps: Tensor,
        boxes: Boxes | None = None,
        masks: Masks | None = None,
        targets: Tensor | Sequence[int] | None = None,
    ) -> None:
        """Adds a batch of maps (N, *S) with boxes (B, 4) or masks (I, *S) for each.

        Args:
            targets: the class id of each map.
        """
        ids = torch.full((len(maps),), -1) if targets is None else torch.as_tensor(targets)
        if ids.shape != (len(maps),):
            raise ArgumentError("targets", f"got shape {tuple(ids.shape)}, expected ({len(maps)},)")
        self._add(maps, boxes, masks)
        self.classes.append(ids.to(maps.device, torch.float32))

    def _summary(self, values: Tensor) -> Tensor:
        classes = dim_zero_cat(self.classes)[~self.values.isnan()]
        if (classes < 0).any():
            return values.mean()
        return torch.stack([values[classes == each].mean() for each in classes.unique()]).mean()


class EnergyPointingGame(_OfPlaces):
    """See :func:`energy_pointing_game`."""

    function = staticmethod(energy_pointing_game)
    higher_is_better = True


class IoU(_OfPlaces):
    """(T,): see :func:`iou`."""

    function = staticmethod(overlap.iou)
    higher_is_better = True

    def __init__(
        self, *, thresholds: Sequence[float] = overlap.THRESHOLDS, **settings: Any
    ) -> None:
        super().__init__(row=(len(thresholds),), thresholds=thresholds, **settings)


class InstanceRecall(_OfPlaces):
    """See :func:`instance_recall`."""

    function = staticmethod(overlap.instance_recall)
    higher_is_better = True


class ClassConfusion(_OfPlaces):
    """See :func:`class_confusion`."""

    function = staticmethod(overlap.class_confusion)
    higher_is_better = False

    def update(
        self,
        maps: Tensor,
        boxes: Boxes | None = None,
        masks: Masks | None = None,
        other_boxes: Boxes | None = None,
        other_masks: Masks | None = None,
    ) -> None:
        """Adds a batch of maps with the instances of their class and of other classes."""
        self._add(maps, boxes, masks, other_boxes=other_boxes, other_masks=other_masks)


class MaxBoxAccV2(_OfPlaces):
    """See :func:`max_box_acc_v2`; ``values`` are those of :func:`box_ious`, (N, T)."""

    function = staticmethod(box_ious)
    higher_is_better = True

    def __init__(
        self, *, thresholds: int = 100, levels: Sequence[float] = LEVELS, **settings: Any
    ) -> None:
        super().__init__(row=(thresholds,), thresholds=thresholds, **settings)
        self._levels = levels

    def update(self, maps: Tensor, boxes: Boxes) -> None:  # type: ignore[override]
        """Adds a batch of maps (N, H, W) with boxes (B, 4) for each."""
        self._add(maps, boxes)

    def _summary(self, values: Tensor) -> Tensor:
        return max_box_acc_v2(values, self._levels)


class PxAP(_OfPlaces):
    """See :func:`px_ap`; ``values`` are those of :func:`pixel_histograms`, (N, 2, T + 1)."""

    function = staticmethod(pixel_histograms)
    higher_is_better = True

    def __init__(self, *, thresholds: int = 100, **settings: Any) -> None:
        super().__init__(row=(2, thresholds + 1), thresholds=thresholds, **settings)

    def update(
        self,
        maps: Tensor,
        boxes: Boxes | None = None,
        masks: Masks | None = None,
        ignored: Masks | None = None,
    ) -> None:
        """Adds a batch of maps (N, *S) with boxes (B, 4) or masks (I, *S) for each."""
        self._add(maps, boxes, masks, ignored=ignored)

    def _summary(self, values: Tensor) -> Tensor:
        return px_ap(values)


class _OfMaps(MapMetric):
    """A metric of maps alone."""

    def update(self, maps: Tensor) -> None:
        """Adds a batch of maps (N, *S)."""
        self._add(maps)


class Complexity(_OfMaps):
    """See :func:`complexity`."""

    function = staticmethod(quality.complexity)
    higher_is_better = False


class Sparseness(_OfMaps):
    """See :func:`sparseness`."""

    function = staticmethod(quality.sparseness)
    higher_is_better = True
