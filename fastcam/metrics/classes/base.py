"""What all classes share: the values of every image, over any number of batches and processes."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from fastcam.errors import ArgumentError


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
        parameters = inspect.signature(self.function).parameters.values()
        own = {each.name for each in parameters if each.kind is each.KEYWORD_ONLY}
        self._settings = {name: settings.pop(name) for name in own & settings.keys()}
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
                "value and are left out: they have no instance, or their map holds NaN",
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
