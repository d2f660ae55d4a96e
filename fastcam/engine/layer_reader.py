"""Reads what layers return as (N, C, *S), before it is known which layer will be explained."""

from __future__ import annotations

from torch import Tensor, nn

from fastcam.engine.inputs import Inputs, are_pictures, arguments
from fastcam.engine.layouts import Layouts, follow, reading_of
from fastcam.engine.shapes import Reshape
from fastcam.engine.survey import Returned, Survey
from fastcam.engine.trials import raise_out_of_memory
from fastcam.engine.values import rebuild


class Reader:
    """Reads layers by following their axes in a run on two images."""

    def __init__(
        self,
        model: nn.Module,
        pair: Inputs,
        seen: Survey,
        reshape: Reshape | None,
        picture: int,
    ) -> None:
        self._reshape, self._rows = reshape, seen.logits.shape[0]
        self._layouts, self._extents = Layouts(None, {}), seen.extents
        # the axes of pictures that the model itself stacks are not followed: extents decide
        self._stacked = any(map(are_pictures, arguments(pair).values()))
        if reshape is None:
            names = [layer.name for group in seen.groups for layer in group]
            rows = rebuild(pair, Tensor.clone)
            self._layouts, _ = follow(model, rows, names, picture=picture)
        if self._layouts.places is not None and seen.images is not None:
            self._extents = tuple(seen.images[axis] for axis in self._layouts.places)
        self.dims = 0 if reshape is not None or self._extents is None else len(self._extents)
        """How many axes of positions the images have; 0 if unknown."""

    def __call__(self, layer: Returned, value: Tensor) -> Tensor | None:
        """A layer's output, or its gradient, as (N, C, *S); None if it cannot be read.

        If there are two readings, either is used: both show how many positions there are.
        """
        steps, places = self._layouts.steps, self._layouts.places
        try:
            activations = self._reading(layer, None)(value.detach())
        except Exception as error:  # reshape= need not fit the layers before and after the target
            raise_out_of_memory(error)
            return None
        fits = activations.dim() > 2 and activations.shape[0] == self._rows
        if layer.name in steps and places is not None:
            activations = activations.unsqueeze(places.index(steps[layer.name].axis) + 2)
        return activations if fits else None

    def why_not(self, layer: Returned) -> str | None:
        """Why a layer cannot be read, or not in one way; None if it can."""
        try:
            self._reading(layer, None if self._stacked else self._rows)
        except ValueError as error:
            return str(error)
        return None

    def _reading(self, layer: Returned, rows: int | None) -> Reshape:
        shape, found = layer.tensor.shape, self._layouts.layers.get(layer.name)
        return self._reshape or reading_of(layer.name, shape, self._extents, found, rows)
