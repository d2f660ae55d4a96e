"""A copy of a network that is fast below its target layer.

The part before the target layer needs no gradient, so the copy prepares it for inference: BatchNorm
folded into convolutions, channels_last, a lower precision, compiled. From the layer up the copy
computes as the network itself does. If a part does not allow a step, the step is skipped for this
part, and :meth:`FastModel.report` says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fastcam.engine.fast.changes import Snapshot
from fastcam.engine.fast.copies import copied, why_not_copied
from fastcam.engine.fast.folding import fold
from fastcam.engine.fast.options import Options, preferred_dtype
from fastcam.engine.fast.trace import Trace
from fastcam.engine.fast.units import (
    Unit,
    has_parameters,
    keep_precision,
    replace_first,
    replace_module,
)
from fastcam.engine.graph import OUTPUT, Start
from fastcam.engine.inputs import Inputs
from fastcam.engine.running import run
from fastcam.engine.trials import raise_out_of_memory
from fastcam.engine.values import rebuild, tensors_of
from fastcam.errors import first_line


class FastModel:
    """A copy of a network, fast below the first of the target layers.

    Args:
        model: the network, which stays unchanged; :attr:`is_stale` notices later changes to it.
        inputs: the inputs of one image, in the form that the copy will be called with.
        layers: the target layers' dotted names; if there are none, all of the network is prepared.
        options: the steps to take.
        start: where the graph starts (:func:`fastcam.engine.start.find_start`); the part that
            autograd records stays unchanged.
        last: whether the last run counts of a layer that runs several times. Then the copy is
            fast below that run; otherwise, such a layer prevents a fast copy.

    Raises:
        ValueError: if the model cannot be copied.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        layers: Sequence[str],
        options: Options,
        start: Start = OUTPUT,
        last: bool = False,
    ) -> None:
        self.source = model
        """The network itself."""
        self._channels_last = options.channels_last
        self._notes: dict[str, str] = {}
        self._units: list[Unit] = []
        self.start = start._replace(skipped=())
        """Where the graph of the copy starts."""
        self._last = last
        one = self.prepared(inputs)
        self._before = Snapshot(model, one)
        reason = why_not_copied(model, one)
        if reason:
            self._notes["model"] = f"the model itself runs: {reason}"
            self._channels_last = False
            self.model = model
            return
        self._build(model, one, layers, options)
        if options.dtype is not None:
            try:
                run(self.model, one, [])
            except Exception as error:  # of any kind, from a part that expects another precision
                raise_out_of_memory(error)
                self._build(model, one, layers, replace(options, dtype=None))
                self._notes["precision"] = f"the network's own: {first_line(error)}"
        if options.compile:
            for unit in self._units:
                unit.allow_compilation()

    @property
    def is_stale(self) -> bool:
        """Whether the network was changed since the copy was made.

        Counts parameters, buffers, modules and other attributes that were replaced or written to,
        except by the network itself, and hooks and forwards that were set. PyTorch does not count
        writes through ``.data``: of these, only those to a whole tensor on a CPU are noticed.
        """
        copied = self.model is not self.source
        return self._before.parts_changed or (copied and self._before.attributes_changed)

    def prepared(self, inputs: Inputs) -> Inputs:
        """The inputs in the copy's memory format."""
        return rebuild(inputs, in_channels_last) if self._channels_last else inputs

    def report(self) -> dict[str, str]:
        """By part of the network, the step that was taken, or the reason why not."""
        return {**self._notes, **{unit.name: unit.state for unit in self._units}}

    def _build(
        self, model: nn.Module, inputs: Inputs, layers: Sequence[str], options: Options
    ) -> None:
        self._units = []
        self.model = copied(model)
        """The network that runs instead; its modules have the same names."""
        if self.start.place == "model":
            self._notes["model"] = "unchanged: it sets grad modes, so autograd records all of it"
            return
        trace = Trace(self.model, inputs)
        ran = [name for name in layers if name in trace.calls]
        if layers and not ran:
            return  # the call will raise the error
        layer = min(ran, key=trace.end) if ran else None  # where the graph starts
        several = [name for name in ran if len(trace.calls[name]) > 1]
        if several and not (self._last and self.start.place == "output"):
            self._notes[several[0]] = "runs several times: nothing below it was changed"
            return
        skipped = tuple((name, len(trace.calls[name]) - 1) for name in several)
        self.start = self.start._replace(skipped=skipped)
        if options.fold_batchnorm:
            self._notes["BatchNorm"], agrees = fold(self.model, trace, layer, layers, inputs)
            if not agrees:
                self.model = copied(model)
        if options.channels_last:
            for parameter in self.model.parameters():
                parameter.data = in_channels_last(parameter.data)
        # the parameters' precision until their unit lowers it
        restored = next((p.dtype for p in self.model.parameters()), None)
        if layer is None:
            self._units.append(replace_module(self.model, "network", options.dtype, restored))
        else:
            self._add_units("", trace, layer, options.dtype, restored)
        if options.dtype is not None:
            lowered = {id(p) for unit in self._units for m in unit.modules for p in m.parameters()}
            for module in self.model.modules():
                own = next(module.parameters(recurse=False), None)
                if own is not None and id(own) not in lowered:
                    keep_precision(module, own.dtype)

    def _add_units(
        self,
        name: str,
        trace: Trace,
        layer: str,
        dtype: torch.dtype | None,
        restored: torch.dtype | None,
    ) -> None:
        """Adds units for the layer and for the parts of module ``name`` that run before it."""
        parent = self.model.get_submodule(name)
        children = [f"{name}.{child}" if name else child for child in parent._modules]
        if type(parent).forward is nn.Sequential.forward:
            below = [child for child in children if trace.is_unit(child, layer)]
            if len(below) > 1 and below == children[: len(below)]:
                self._units.append(replace_first(parent, below, dtype))
                children = children[len(below) :]
        for child in children:
            module = self.model.get_submodule(child)
            if child == layer and self.start.place == "layer":
                self._notes[child] = "unchanged: tensors computed within it are read later"
            elif child == layer:
                self._units.append(replace_module(module, child, dtype, restored))
            elif not trace.is_unit(child, layer):
                self._add_units(child, trace, layer, dtype, restored)
            elif has_parameters(module):
                self._units.append(replace_module(module, child, dtype))


def folded(model: nn.Module, inputs: Inputs) -> nn.Module:
    """A copy for many runs without a gradient: BatchNorm folded, channels_last on a CPU.

    Returns the model itself if it cannot be copied.

    Args:
        inputs: the inputs of one image.
    """
    on_cpu = next((p.device.type == "cpu" for p in model.parameters()), True)
    try:
        made = FastModel(model, inputs, (), Options(channels_last=on_cpu, compile=False))
    except ValueError:
        return model
    return made.model


class FastCopies:
    """One fast copy for each object that explains with one.

    A new copy is made if the object's network, target layers or start of the graph is another one,
    or if the network was changed.
    """

    def __init__(self) -> None:
        self._copies: WeakKeyDictionary[Any, tuple[Any, FastModel]] = WeakKeyDictionary()

    def of(
        self,
        owner: Any,
        model: nn.Module,
        inputs: Inputs,
        layers: Sequence[str] = (),
        start: Start = OUTPUT,
    ) -> FastModel:
        """The copy of ``model`` for ``owner``, in the precision that suits the inputs' device.

        Args:
            owner: the object that the copy belongs to; the copy is kept as long as it lives.
            model, inputs, layers, start: as for :class:`FastModel`.
        """
        wanted = tuple(layers), start
        made_for, copy = self._copies.get(owner, (None, None))
        if copy is None or made_for != wanted or copy.source is not model or copy.is_stale:
            options = Options(preferred_dtype(tensors_of(inputs)[0].device))
            copy = FastModel(model, inputs, layers, options, start)
            self._copies[owner] = wanted, copy
        return copy


def in_channels_last(tensor: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    memory_format = formats.get(tensor.dim(), torch.contiguous_format)
    return tensor.contiguous(memory_format=memory_format)
