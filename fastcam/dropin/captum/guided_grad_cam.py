"""Guided Grad-CAM, with one forward pass for the map and the guided gradient."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcam.dropin.calls import counted
from fastcam.dropin.captum.checks import has_own_forward, is_training, why_whole
from fastcam.dropin.captum.guided import as_found, everywhere, plain
from fastcam.dropin.captum.maps import all_tensors, map_of, output_gradients
from fastcam.dropin.captum.peer import Peer
from fastcam.dropin.settings import settings
from fastcam.dropin.takeover import Replacement
from fastcam.engine.graph import Start
from fastcam.engine.guided import GuidedReLU
from fastcam.engine.recorder import Recorder
from fastcam.engine.running import Loan
from fastcam.engine.trials import raise_out_of_memory


def guided_grad_cam(present: Replacement) -> Replacement:
    def attribute(
        self: Any,
        inputs: Any,
        target: Any = None,
        additional_forward_args: Any = None,
        interpolate_mode: str = "nearest",
        attribute_to_layer_input: bool = False,
    ) -> Any:
        with counted("captum.GuidedGradCam") as call, as_found(inputs):
            found, reason = None, _why_twice(self, attribute_to_layer_input)
            if not reason:
                found = _both(self, inputs, target, additional_forward_args)
                reason = "no gradient reached the layer"
            if found is None:
                call.leave_to("captum", reason)
                more = (additional_forward_args, interpolate_mode, attribute_to_layer_input)
                return present(self, inputs, target, *more)
            call.why = "one forward pass for both gradients"
            maps, guided = found
            products = []
            for gradient in guided:
                try:
                    size = tuple(gradient.shape[2:])
                    products.append(gradient * F.interpolate(maps, size, mode=interpolate_mode))
                except Exception as error:
                    raise_out_of_memory(error)
                    warnings.warn(
                        "GuidedGradCam: the map cannot be enlarged to an input's shape; the result "
                        "for this input is an empty tensor",
                        stacklevel=2,
                    )
                    products.append(torch.empty(0))
            common = Peer.common
            return common._format_output(common._is_tuple(inputs), tuple(products))

    return attribute


def _why_twice(attribution: Any, to_layer_input: bool) -> str:
    """Why the map and the guided gradient need separate forward passes, as in captum, or ""."""
    model = attribution.guided_backprop.model
    reason = why_whole(model)
    if reason:
        return reason
    if to_layer_input:
        return "the layer's input may be used elsewhere too"
    if attribution.grad_cam.forward_func is not model:
        return "its parts have different models"
    if is_training(model):
        return "the model is in training mode"
    if any(isinstance(module, nn.ReLU) and has_own_forward(module) for module in model.modules()):
        return "a ReLU overrides forward"
    functions = (attribution.guided_backprop.gradient_func, attribution.grad_cam.gradient_func)
    if any(function is not Peer.gradient.compute_gradients for function in functions):
        return "another gradient_func"
    return ""


def _both(
    attribution: Any, inputs: Any, target: Any, additional: Any
) -> tuple[Tensor, tuple[Tensor, ...]] | None:
    """The map after ReLU, (N, 1, *S), and the guided gradient of each input."""
    guided, maps = attribution.guided_backprop, []
    relu = GuidedReLU()

    def gradients(forward: Any, given: Any, target: Any, additional: Any) -> tuple[Tensor, ...]:
        recorder = Recorder({"layer": attribution.grad_cam.layer}, Start("model"), all_tensors)
        with Loan(recorder.hooks, recorder.before), torch.enable_grad():
            scores = Peer.common._run_forward(forward, given, target, additional)
        plain.add(guided)
        try:
            found = output_gradients(recorder, scores, retain=True)
        finally:
            plain.discard(guided)
        if found is None or len(found) != 1:
            return given
        maps.append(map_of(*found[0], relu=True, summed=True))
        relu.rule = "guided"
        return torch.autograd.grad(scores, given, torch.ones_like(scores))

    usual = guided.gradient_func
    guided.gradient_func = gradients
    try:
        if settings.fix:
            gradient = everywhere(relu, guided, inputs, target, additional)
        else:
            gradient = guided.attribute(inputs, target, additional)
    finally:
        guided.gradient_func = usual
    if not maps:
        return None
    return maps[0], gradient if isinstance(gradient, tuple) else (gradient,)
