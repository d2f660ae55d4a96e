"""Methods that give one map per image and class: how to call them, and how maps are finished."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastcam import ops
from fastcam.engine.capture import Capture
from fastcam.engine.fast.options import Options, is_emulated
from fastcam.engine.graph import Start
from fastcam.engine.inputs import Inputs
from fastcam.engine.running import run
from fastcam.engine.values import tensors_of
from fastcam.errors import ArgumentError
from fastcam.methods.base import Method
from fastcam.methods.fast_mode import FastMode
from fastcam.methods.result import Result
from fastcam.methods.verification import Verification, gradients_of, relative_error
from fastcam.targets import Selection, Targets, select

Size = Sequence[int] | Literal["layer"] | None


@dataclass(frozen=True)
class Wanted:
    """How to finish the maps of a call."""

    size: tuple[int, ...] | str | None
    """The extents; "layer" for the layer's, None for the images'."""
    normalize: bool
    """Whether to scale each map to [0, 1]."""
    relu: bool | None
    """Whether to set negative values to 0; None for the method's usual choice."""


class MapMethod(Method):
    """A method that gives one map per image and class."""

    relu: bool = True

    _fast: FastMode | None = None  # None: exact mode
    _looked = False  # whether maps were checked for being constant

    def compile(
        self,
        *,
        dtype: torch.dtype | None = None,
        channels_last: bool = True,
        fold_batchnorm: bool = True,
        cuda_graph: bool | Literal["auto"] = "auto",
        check: bool = False,
    ) -> None:
        """Uses the fast mode from the next call on: a copy of the model, prepared for inference.

        Below the first target layer, BatchNorm is folded into convolutions and torch.compile
        compiles the network. This takes from seconds to a minute for each input shape, so batches
        of one size are best; a smaller last batch is padded. From the layer up, gradients included,
        the copy computes as the model does. The model itself does not change; if its parameters,
        attributes or modules are changed, the next call makes a new copy. PyTorch does not count
        writes through ``.data``: on a GPU, call this method again after them. :attr:`compiled`
        reports each step.

        Args:
            dtype: the precision below the layer: float32, bfloat16 or float16; None for the
                model's.
            channels_last: whether to use the channels_last memory format, which most devices
                prefer.
            fold_batchnorm: whether to fold BatchNorm.
            cuda_graph: whether to record and replay the whole step on a GPU, maps included;
                "auto" if possible, True to raise an error if it is not.
            check: whether to compare the first call with exact mode: the mean correlation of the
                maps has to be at least 0.99, and 99 % of the top classes have to agree.

        Raises:
            ValueError: for another dtype; in a later call, if the model cannot be copied.
            RuntimeError: in a later call, if ``check`` or ``cuda_graph=True`` fails.

        Warns:
            UserWarning: if the processor has no instructions for ``dtype``.
        """
        options = Options(dtype, channels_last, fold_batchnorm)
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        if is_emulated(dtype, device):
            warnings.warn(
                f"dtype: this processor has no instructions for {dtype}; None takes less time",
                stacklevel=2,
            )
        self._fast = FastMode(options, cuda_graph, check)

    @property
    def is_ready(self) -> bool:
        return super().is_ready and (self._fast is None or not self._fast.is_stale)

    @property
    def networks(self) -> list[nn.Module]:
        own = super().networks
        fast = None if self._fast is None else self._fast.model
        return own if fast is None else [*own, fast]

    @property
    def compiled(self) -> dict[str, str]:
        """By part of the model, the step that the fast mode took, or why not; empty at first."""
        return {} if self._fast is None else self._fast.report()

    def __call__(
        self,
        images: Inputs,
        targets: Targets = None,
        *,
        size: Size = None,
        normalize: bool = True,
        relu: bool | None = None,
    ) -> Any:
        """Returns maps; ``outputs``, ``class_ids`` and ``scores`` come from the same forward.

        Args:
            images: (N, C, *S), or the model's inputs: a tuple of positional arguments, a list as
                one argument, or a mapping of keyword arguments. The images are the first tensor
                with positions there, or a list of pictures (C, H, W) of one size.
            targets: see :func:`fastcam.targets.select`; None for the top class.
            size: the maps' extents, by default those of the images; "layer" for the layer's own.
            normalize: whether to scale each map to [0, 1]; a constant map becomes 0.
            relu: whether to set negative values to 0; by default as in the method's paper.

        Returns:
            (N, *size) float32 on the images' device (float64 for a float64 model), or (N, K, *size)
            for targets (N, K). For several layers, each map is normalized at its layer's
            resolution and enlarged, and their mean is normalized again; with ``size="layer"`` or
            ``normalize=False``, a list with one tensor per layer.

        Raises:
            ValueError, TypeError: if layers, targets or sizes do not fit the model and the images.
        """
        with self.calling(images), self.watching(images, targets) as targets:
            self.find_layers(images)
            wanted = Wanted(
                tuple(size) if isinstance(size, Sequence) and not isinstance(size, str) else size,
                normalize,
                relu,
            )
            if self._fast is None:
                return self.keep(self.explained(images, targets, wanted))
            if self._watch is not None:
                raise ArgumentError("targets", "the fast mode explains classes, not boxes")
            return self.keep(self._fast.explained(self, images, targets, wanted))

    def explained(self, images: Inputs, targets: Targets, wanted: Wanted) -> Result:
        """One explanation, from a run of the network that :meth:`network` returns."""
        record, selection = self.capture_scores(images, targets)
        with torch.autocast(record.logits.device.type, enabled=False):
            if self._watch is None or wanted.size == "layer":
                maps = self.finished(record, selection, wanted)
            else:
                maps = self._without_padding(record, selection, wanted, self._watch.visible)
            self.look(maps, record, self.rectifies(wanted))
        result = Result.of(maps, record, selection)
        if self._watch is None:
            return result
        return replace(result, class_ids=self._watch.class_ids)

    def _without_padding(
        self, record: Capture, selection: Selection, wanted: Wanted, visible: tuple[float, float]
    ) -> Any:
        """The maps of images that fill only a part of the network's input, from the top left."""
        extents = extents_of(record, wanted.size)
        padded = tuple(round(e / share) for e, share in zip(extents, visible, strict=True))
        maps = self.finished(record, selection, replace(wanted, size=padded))
        if padded == extents:
            return maps
        height, width = extents
        listed = maps if isinstance(maps, list) else [maps]
        cut = [each[..., :height, :width].contiguous() for each in listed]
        if wanted.normalize:
            cut = [ops.normalize(each, 2) for each in cut]
        return cut if isinstance(maps, list) else cut[0]

    @contextmanager
    def exactly(self) -> Iterator[None]:
        """Switches to exact mode within the context."""
        fast, self._fast = self._fast, None
        try:
            yield
        finally:
            self._fast = fast

    def verify(self, images: Inputs, targets: Targets = None) -> Verification:
        """Compares this method, as it is set up, with plain autograd on the network itself.

        The network itself runs once more in its own precision, and autograd records all of it, as
        in training; for a method without gradients, this run uses no recording and no copy. Worth
        a call for an unusual network.

        Args:
            images, targets: as for a call.

        Returns:
            The errors; 0 up to rounding in exact mode.

        Raises:
            ValueError: if the score does not depend on a layer, even in the whole graph.
        """
        with self.calling(images), self.watching(images, targets) as targets:
            self.find_layers(images)
            whole = self.capture(images, exact=True)
            selection = select(whole.logits, targets, whole.extents)
            gradients = None if self.graph is None else gradients_of(whole, selection)
            with torch.autocast(whole.logits.device.type, enabled=False):
                expected = self.layer_maps(whole, selection, self.relu)
            chosen = targets if selection.functions is not None else selection.class_ids
            layer = ", ".join(self.layers)
            try:
                record, own = self.capture_scores(images, chosen)
                plain, given = tensors_of(run(self.model, images)), tensors_of(record.outputs)
                equal = len(plain) == len(given) and all(map(torch.equal, plain, given))
                error = None
                if gradients is not None:
                    error = relative_error(gradients_of(record, own), gradients)
                with torch.autocast(record.logits.device.type, enabled=False):
                    maps = self.layer_maps(record, own, self.relu)
                return Verification(layer, error, relative_error(maps, expected), equal)
            except ValueError:  # the whole graph has an answer, so no answer is a wrong one
                return Verification(layer, None if gradients is None else math.inf, math.inf, False)

    def find_start(self, inputs: Inputs) -> Start | None:
        start = super().find_start(inputs)
        fast = None if self._fast is None else self._fast.start
        return start if start is None or fast is None else fast

    def network(self, inputs: Inputs) -> tuple[nn.Module, Inputs]:
        fast = self._fast
        if fast is None or fast.model is None:
            return super().network(inputs)
        return fast.model, fast.prepared(inputs)

    def finished(self, record: Capture, selection: Selection, wanted: Wanted) -> Any:
        """The maps that a call returns."""
        maps = self.layer_maps(record, selection, self.rectifies(wanted))
        if wanted.size != "layer":
            return self.joined(maps, extents_of(record, wanted.size), wanted.normalize)
        if wanted.normalize:
            dims = [activations.dim() - 2 for activations in record.activations]
            maps = [ops.normalize(m, d) for m, d in zip(maps, dims, strict=True)]
        return maps[0] if len(maps) == 1 else maps

    def joined(self, maps: list[Tensor], extents: tuple[int, ...], normalize: bool) -> Any:
        """The enlarged, normalized maps; for several layers :func:`mean_of_layers`."""
        if normalize and len(maps) > 1:
            return mean_of_layers(maps, extents)
        maps = [ops.upsample(m, extents, normalize) for m in maps]
        return maps[0] if len(maps) == 1 else maps

    def rectifies(self, wanted: Wanted) -> bool:
        """Whether negative values become 0."""
        return self.relu if wanted.relu is None else wanted.relu

    def look(self, maps: Any, record: Capture, relu: bool) -> None:
        """Warns if all maps of the first call are constant; later calls do not wait for a check."""
        if self._looked:
            return
        self._looked = True
        dims = min(activations.dim() for activations in record.activations) - 2
        every = [each.flatten(-dims) for each in (maps if isinstance(maps, list) else [maps])]
        if (
            not any(each.numel() for each in every)
            # a layer with one position has had another warning
            or any(activations.shape[2:].numel() == 1 for activations in record.activations)
            or any(bool((each != each[..., :1]).any()) for each in every)
        ):
            return
        reason = (
            "nothing there speaks for the class (relu=False shows what speaks against it), or "
            if relu
            else ""
        )
        names = ", ".join(f"'{name}'" for name in record.layers)
        warnings.warn(
            f"target_layers: every map of {names} is constant, probably because {reason}the score "
            "does not depend on what is where; try another layer",
            stacklevel=4,
        )

    def layer_maps(self, record: Capture, selection: Selection, relu: bool) -> list[Tensor]:
        """One tensor per layer, at the layer's resolution: (N, *S) or (N, K, *S)."""
        raise NotImplementedError


def for_every_class(maps: Tensor, selection: Selection) -> Tensor:
    """Repeats one map per image, (N, *S), for each of its K classes: (N, K, *S)."""
    if selection.scores.dim() == 1:
        return maps
    count, classes = selection.scores.shape
    return maps.unsqueeze(1).expand(count, classes, *maps.shape[1:])


def mean_of_layers(maps: list[Tensor], extents: tuple[int, ...]) -> Tensor:
    """The normalized mean of several layers' maps, each normalized before it is enlarged."""
    dims = len(extents)
    enlarged = [ops.upsample(ops.normalize(m, dims), extents, normalize=False) for m in maps]
    return ops.normalize(torch.stack(enlarged).mean(0), dims)


def extents_of(record: Capture, size: Size | str) -> tuple[int, ...]:
    """The extents to enlarge to, one per dimension of the layers' positions."""
    extents = record.extents if size is None else size
    if not (extents is None or isinstance(extents, Sequence)):
        raise TypeError(f'size: got {extents!r}, expected a list of integers or "layer"')
    for name, activations in zip(record.layers, record.activations, strict=True):
        dims = activations.dim() - 2
        if extents is None or isinstance(extents, str) or len(extents) != dims or min(extents) < 1:
            source = "the inputs have positions" if size is None else "got"
            raise ArgumentError(
                "size",
                f"{source} {extents!r}, but '{name}' has {dims} dimensions of "
                f'positions; give {dims} positive integers or "layer"',
            )
    return tuple(int(extent) for extent in extents or ())
