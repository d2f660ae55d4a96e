"""Pictures in, raw maps with their classes and probabilities out: for single ones and clips."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastcam.capture import logits_of
from fastcam.errors import FastcamError, UsageError, first_line, near
from fastcam.methods import METHODS, GuidedBackprop, GuidedGradCAM
from fastcam.models import LoadedModel
from fastcam.targets import TopClasses

TOP_CLASS = "top1"


@dataclass(frozen=True)
class Explained:
    """K classes of N pictures, on the CPU."""

    maps: Tensor
    """(N, K, h, w) at the layer's resolution before normalizing; guided methods (N, K, 3, h, w)."""
    class_ids: Tensor
    """(N, K)."""
    scores: Tensor
    """(N, K), the logits."""
    probabilities: Tensor
    """(N, K)."""

    def heat(self, k: int) -> Tensor:
        """The map of the k-th class to draw, (N, h, w): the magnitude of a signed gradient."""
        maps = self.maps[:, k]
        return maps if maps.dim() == 3 else maps.abs().amax(1)


class Explainer:
    """One model, method, layer and choice of classes, for any number of pictures.

    Args:
        model: as :func:`fastcam.models.load` gives it.
        method: a name of :data:`fastcam.METHODS`.
        layer: a dotted name, or "auto".
        target: "top1", a class id or a class name: the first of the K classes.
        top_k: K; the others are the most probable ones.

    Raises:
        UsageError: an unknown method, layer or class.
    """

    def __init__(
        self,
        model: LoadedModel,
        method: str = "gradcam++",
        layer: str = "auto",
        target: str = TOP_CLASS,
        top_k: int = 1,
    ) -> None:
        if method not in METHODS:
            hint = near(method, METHODS) or f"; there are: {', '.join(METHODS)}"
            raise UsageError(f"unknown method {method}{hint}")
        self.model = model
        first = None if target == TOP_CLASS else model.class_id(target)
        self._targets = TopClasses(top_k, first)
        options: dict[str, Any] = {} if layer == "auto" else {"target_layers": layer}
        self._method: Any = _as_usage_error(lambda: METHODS[method](model.module, **options))
        guided = isinstance(self._method, (GuidedBackprop, GuidedGradCAM))
        self._raw: dict[str, Any] = {} if guided else {"size": "layer", "normalize": False}

    @property
    def layer(self) -> str | None:
        """The target layer's name; None before an automatic choice, and where there is none."""
        return self._method.layers[0] if self._method.layers else None

    def __call__(self, pictures: Tensor) -> Explained:
        """Explains (N, H, W, 3) uint8 RGB pictures in one forward.

        Raises:
            UsageError: the layer, the class or the method does not fit the model.
            FastcamError: the model fails on pictures of this size.
        """
        device = next((each.device for each in self.model.module.parameters()), pictures.device)
        images = self.model.preprocessing(pictures).to(device)
        try:
            maps = _as_usage_error(lambda: self._method(images, self._targets, **self._raw))
        except (RuntimeError, AssertionError) as error:
            height, width = images.shape[2:]
            raise FastcamError(
                f"the model fails on an input of {width}x{height} pixels: {first_line(error)}"
            ) from error
        ids = self._method.class_ids
        logits = logits_of(self._method.outputs).reshape(len(ids), -1).float()
        names, classes = len(self.model.classes), logits.shape[1]
        if names not in (0, classes):
            raise UsageError(f"there are {names} class names for the model's {classes} classes")
        probabilities = self.model.probabilities(logits).gather(1, ids)
        scores = self._method.scores
        return Explained(maps.float().cpu(), ids.cpu(), scores.float().cpu(), probabilities.cpu())


def _as_usage_error(call: Callable[[], Any]) -> Any:
    """The call's result; what a method says about a name or a shape becomes a usage error."""
    try:
        return call()
    except ValueError as error:
        message = str(error).removeprefix("target_layers: ").removeprefix("targets: ")
        raise UsageError(" ".join(message.split())) from error
