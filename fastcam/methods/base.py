"""What every method shares: how it is called, how the network runs, how maps are finished."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fastcam import ops
from fastcam.capture import Capture, Inputs, Output, capture, unwrap
from fastcam.layers import Layers, find_layer, layer_names
from fastcam.layout import Reshape
from fastcam.targets import Selection, Targets, look_like_probabilities, select

Size = Sequence[int] | Literal["layer"] | None


class Method:
    """What every method shares: the model, the layers and the last call's answers."""

    name: ClassVar[str]

    def __init__(
        self,
        model: nn.Module,
        target_layers: Layers | None = None,
        *,
        reshape: Reshape | None = None,
        output: Output | None = None,
    ) -> None:
        """Nothing is hooked until a call.

        Args:
            model: the classifier; torch.compile, DataParallel and DistributedDataParallel are
                looked through. It runs in evaluation mode and is left as it was found.
            target_layers: a module, a dotted name, or a list of those; None finds the last layer
                with positions on the first call (see :func:`fastcam.layers.find_layer`).
            reshape: turns a layer's output, and its gradient, into (N, C, *S); needed only where
                token grids and (N, H, W, C) layouts are not recognised.
            output: picks the logits out of what the model returns.

        Raises:
            ValueError, TypeError: if a layer is not in the model.
        """
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
        self.model = unwrap(model)
        self.layers = () if target_layers is None else layer_names(self.model, target_layers)
        """The target layers' names; found on the first call where none were given."""
        self.outputs: Any = None
        """What the model returned in the last call, detached."""
        self.class_ids: Tensor | None = None
        """The classes of the last call, (N,) or (N, K); None where targets were functions."""
        self.scores: Tensor | None = None
        """Their scores, in the same shape."""
        self._reshape = reshape
        self._output = output
        self._checked = False  # the outputs, for being probabilities

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exception: object) -> None:
        """No hook outlives a call; this lets go of the last outputs."""
        self.outputs = self.class_ids = self.scores = None

    def _run(
        self, inputs: Inputs, targets: Targets, *, from_inputs: bool = False
    ) -> tuple[Capture, Selection]:
        record = capture(
            self.model,
            inputs,
            self.layers,
            reshape=self._reshape,
            output=self._output,
            from_inputs=from_inputs,
        )
        selection = select(record.logits, targets)
        if not self._checked:
            self._checked = True
            if look_like_probabilities(record.logits):
                warnings.warn(
                    "the model's outputs look like probabilities, whose gradients vanish where the "
                    "model is sure: explain the logits before softmax or sigmoid instead",
                    stacklevel=3,
                )
        self.outputs = record.outputs
        self.class_ids, self.scores = selection.class_ids, selection.scores.detach()
        return record, selection

    def _find_layers(self, inputs: Inputs) -> None:
        if not self.layers:
            found = find_layer(self.model, inputs, reshape=self._reshape, output=self._output)
            self.layers = (found,)


class MapMethod(Method):
    """A method that gives one map an image and class."""

    relu: ClassVar[bool] = True

    def __call__(
        self,
        images: Inputs,
        targets: Targets = None,
        *,
        size: Size = None,
        normalize: bool = True,
        relu: bool | None = None,
    ) -> Any:
        """Maps; ``outputs``, ``class_ids`` and ``scores`` come from the same forward.

        Args:
            images: (N, C, *S), or a tuple or mapping of what the model takes.
            targets: see :func:`fastcam.targets.select`; None for the top class.
            size: the maps' extents, by default those of the images; "layer" for the layer's own.
            normalize: whether each map is brought to [0, 1], a constant one to 0.
            relu: whether negative values become 0; by default what the method's paper does.

        Returns:
            (N, *size) float32 on the images' device (float64 for a float64 model), or (N, K, *size)
            for targets (N, K). Several layers: each map normalized at its layer's resolution, then
            enlarged, and their mean normalized again; a list with one tensor a layer where
            ``size="layer"`` or not ``normalize``.

        Raises:
            ValueError, TypeError: if layers, targets or sizes do not fit the model and the images.
        """
        with torch.inference_mode(False), torch.no_grad():
            self._find_layers(images)
            record, selection = self._run(images, targets)
            with torch.autocast(record.logits.device.type, enabled=False):
                rectify = self.relu if relu is None else relu
                return self._finished(record, selection, rectify, size, normalize)

    def _finished(
        self, record: Capture, selection: Selection, relu: bool, size: Size, normalize: bool
    ) -> Any:
        """What the call returns."""
        return finish(self._maps(record, selection, relu), record, size, normalize)

    def _maps(self, record: Capture, selection: Selection, relu: bool) -> list[Tensor]:
        """One a layer, at the layer's resolution: (N, *S) or (N, K, *S)."""
        raise NotImplementedError


def finish(maps: list[Tensor], record: Capture, size: Size, normalize: bool) -> Any:
    """Enlargement, then min-max; of several layers the mean (:func:`mean_of_layers`)."""
    if size == "layer":
        dims = [activations.dim() - 2 for activations in record.activations]
        maps = [ops.normalize(m, d) for m, d in zip(maps, dims, strict=True)] if normalize else maps
    else:
        extents = extents_of(record, size)
        if normalize and len(maps) > 1:
            return mean_of_layers(maps, extents)
        maps = [ops.upsample(m, extents, normalize) for m in maps]
    return maps[0] if len(maps) == 1 else maps


def mean_of_layers(maps: list[Tensor], extents: tuple[int, ...]) -> Tensor:
    """The mean of several layers' maps, normalized: each was so before its enlargement too."""
    dims = len(extents)
    enlarged = [ops.upsample(ops.normalize(m, dims), extents, normalize=False) for m in maps]
    return ops.normalize(torch.stack(enlarged).mean(0), dims)


def extents_of(record: Capture, size: Size) -> tuple[int, ...]:
    """The extents to enlarge to, as many as the layers have."""
    extents = record.extents if size is None else size
    if not (extents is None or isinstance(extents, Sequence)):
        raise TypeError(f'size: got {extents!r}, expected a list of integers or "layer"')
    for name, activations in zip(record.layers, record.activations, strict=True):
        dims = activations.dim() - 2
        if extents is None or isinstance(extents, str) or len(extents) != dims or min(extents) < 1:
            source = "the inputs have" if size is None else "got"
            raise ValueError(
                f"size: {source} {extents!r}, but '{name}' has {dims} dimensions of "
                f'positions; give {dims} positive integers or "layer"'
            )
    return tuple(int(extent) for extent in extents or ())
