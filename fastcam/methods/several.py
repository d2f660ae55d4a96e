"""Several methods from one forward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from fastcam.engine.capture import Capture
from fastcam.engine.inputs import Inputs
from fastcam.errors import ArgumentError
from fastcam.methods.base import Method
from fastcam.methods.maps import MapMethod, Wanted
from fastcam.targets import Selection


class Several(MapMethod):
    """The maps of several methods for the same classes, from one forward of the network.

    The gradients of each class are computed once too. Methods that run the network again, such as
    Score-CAM, do so, and begin with the shared forward. The maps are those of each method alone.

        with fastcam.Several([fastcam.GradCAM(model), fastcam.ScoreCAM(model)]) as cams:
            maps = cams(images)  # {"gradcam": (N, H, W), "scorecam": (N, H, W)}
    """

    name = "several"
    captures = True

    def __init__(self, methods: Sequence[MapMethod]) -> None:
        """Takes the layers, and how to read the model, from the first method.

        Args:
            methods: of different names, for one model; those whose maps come from target layers.

        Raises:
            ValueError: if there are none, or two of one name, model or layer do not fit.
        """
        if not methods:
            raise ArgumentError("methods", "got none, expected at least one")
        for each in methods:
            if not isinstance(each, MapMethod) or isinstance(each, Several):
                came = each.name if isinstance(each, Method) else type(each).__name__
                raise ArgumentError(
                    "methods",
                    f"got '{came}', expected methods whose maps come from target layers, such as "
                    "GradCAM; call the others on their own",
                )
        self.methods = {each.name: each for each in methods}
        """The methods by name."""
        first = methods[0]
        if len(self.methods) < len(methods):
            names = ", ".join(each.name for each in methods)
            raise ArgumentError("methods", f"got {names}, expected different methods")
        for each in methods:
            if each.model is not first.model:
                raise ArgumentError("methods", f"got another model for '{each.name}', expected one")
            if each.reading != first.reading or each.layers not in ((), first.layers):
                raise ArgumentError(
                    "methods",
                    f"'{each.name}' has other target_layers, reshape, output, per_image or run "
                    f"than '{first.name}'; give the first method what holds for all",
                )
        super().__init__(first.model, list(first.layers) or None, **first.reading)
        self.graph = "layers" if any(each.graph for each in methods) else None
        self.twice = any(each.twice for each in methods)
        self.reruns = any(each.reruns for each in methods)

    @contextmanager
    def calling(self, inputs: Inputs) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(super().calling(inputs))
            for each in self.methods.values():
                if each.captures:  # its further runs are let go of too
                    stack.enter_context(each.calling(inputs))
            yield

    def find_layers(self, inputs: Inputs) -> None:
        super().find_layers(inputs)
        for each in self.methods.values():
            each.layers = self.layers

    def finished(self, record: Capture, selection: Selection, wanted: Wanted) -> dict[str, Any]:
        """By method, the maps that a call of it returns."""
        shared = record.shared()
        return {
            name: each.finished(shared, selection, wanted) for name, each in self.methods.items()
        }

    def look(self, maps: Any, record: Capture, relu: bool) -> None:
        for name, each in self.methods.items():
            each.look(maps[name], record, relu)

    def layer_maps(self, record: Capture, selection: Selection, relu: bool) -> list[Tensor]:
        """Of one method after the other, one tensor per layer."""
        shared = record.shared()
        return [
            maps
            for each in self.methods.values()
            for maps in each.layer_maps(shared, selection, relu)
        ]
