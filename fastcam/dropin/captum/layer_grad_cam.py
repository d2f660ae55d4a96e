"""Layer Grad-CAM, with a graph that begins at the layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastcam.dropin.calls import counted
from fastcam.dropin.captum.checks import has_hooks_of, is_training, why_whole
from fastcam.dropin.captum.maps import all_tensors, map_of, output_gradients
from fastcam.dropin.captum.peer import Peer
from fastcam.dropin.settings import settings
from fastcam.dropin.starts import Starts, attempts
from fastcam.dropin.takeover import Replacement
from fastcam.engine.fast.model import FastCopies
from fastcam.engine.graph import Start
from fastcam.engine.inputs import first_row
from fastcam.engine.recorder import Recorder
from fastcam.engine.running import Loan
from fastcam.engine.start import closest_start


def layer_grad_cam(present: Replacement) -> Replacement:
    def attribute(
        self: Any,
        inputs: Any,
        target: Any = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = False,
        attr_dim_summation: bool = True,
        grad_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        with counted("captum.LayerGradCam") as call:
            found = None
            reason = why_whole(self.forward_func)
            if attribute_to_layer_input:
                reason = "the layer's input may be used elsewhere too"
            elif any(map(is_training, (self.forward_func, self.layer))):
                reason = "the model is in training mode"
            elif any(map(has_hooks_of, (self.forward_func, self.layer))):
                reason = "the model has other hooks"
            elif grad_kwargs:
                reason = "grad_kwargs"
            if not reason:
                common = Peer.common
                given = common._format_tensor_into_tuples(inputs)
                more = common._format_additional_forward_args(additional_forward_args)
                forward, layer = self.forward_func, self.layer
                start = _start(self, given, more)
                if settings.fast:
                    forward, layer, given = _fast(self, given, more, start)
                recorder = Recorder({"layer": layer}, start, all_tensors)
                reason = "no gradient reached the layer"
                if start.place == "model":
                    reason = "the model sets grad modes itself"
                else:
                    with Loan(recorder.hooks, recorder.before), torch.no_grad():
                        scores = common._run_forward(forward, given, target, more)
                    found = output_gradients(recorder, scores)
            if found is None:
                call.leave_to("captum", reason)
                return present(
                    self,
                    inputs,
                    target,
                    additional_forward_args,
                    attribute_to_layer_input,
                    relu_attributions,
                    attr_dim_summation,
                    grad_kwargs,
                )
            call.why = "the graph begins at the layer"
            maps = tuple(
                map_of(value, gradient, relu_attributions, attr_dim_summation)
                for value, gradient in found
            )
            return maps if len(maps) > 1 else maps[0]

    return attribute


_starts = Starts()


def _start(attribution: Any, inputs: tuple[Tensor, ...], additional: Any) -> Start:
    """Where the graph starts in an object's runs; determined by its first call."""
    forward, layer = attribution.forward_func, attribution.layer

    def find() -> Start:
        given, more = first_row((inputs, additional))
        model = forward if isinstance(forward, nn.Module) else layer
        runs = attempts(
            lambda given: Peer.common._run_forward(forward, given, None, more), given, model
        )
        return closest_start(runs, {"layer": layer})

    return _starts.of(attribution, (id(forward), id(layer)), find)


_fast_copies = FastCopies()


def _fast(
    attribution: Any,
    inputs: tuple[Tensor, ...],
    additional: tuple[Any, ...] | None,
    start: Start,
) -> tuple[Any, nn.Module, Any]:
    """The fast copy of the model, the layer in it, and the inputs for it."""
    model, layer = attribution.forward_func, attribution.layer
    names = model.named_modules() if isinstance(model, nn.Module) else ()
    name = next((name for name, module in names if module is layer), "")
    if not name or is_training(model):
        return model, layer, inputs
    fast = _fast_copies.of(attribution, model, (*inputs, *(additional or ())), [name], start)
    return fast.model, fast.model.get_submodule(name), fast.prepared(inputs)
