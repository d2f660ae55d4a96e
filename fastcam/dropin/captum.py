"""captum 0.9, taken over in place: layer Grad-CAM and the guided methods.

captum runs the network itself, recorded from the input up. Here layer Grad-CAM records from the
layer up, guided Grad-CAM runs the network once, and ReLUs are met without a copy of their input.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcam import ops
from fastcam.dropin.calls import counted
from fastcam.dropin.settings import settings
from fastcam.dropin.takeover import Replacement, Takeover
from fastcam.engine.fast.model import FastCopies
from fastcam.engine.graph import Start, gradients_at
from fastcam.engine.guided import GuidedReLU
from fastcam.engine.inputs import first_row
from fastcam.engine.recorder import Recorder
from fastcam.engine.running import Loan, is_compiled, unwrap
from fastcam.engine.start import closest_start, has_hooks, start_at_inputs
from fastcam.engine.trials import untouched
from fastcam.engine.values import (
    tensors_of,
)


def take_over(takeover: Takeover) -> None:
    """Replaces what fastcam has."""
    attr: Any = importlib.import_module("captum.attr")
    run = ("captum._utils.common", "captum._utils.gradient")
    parts = (attr.LayerGradCam.__module__, attr.GuidedBackprop.__module__)
    takeover.method(attr.LayerGradCam, "attribute", _layer_grad_cam, *run)
    takeover.method(attr.LayerAttribution, "interpolate", _interpolate)
    for owner in (attr.GuidedBackprop, attr.Deconvolution):
        takeover.method(owner, "attribute", _guided, *run)
        takeover.method(owner, "_register_hooks", _register_hooks, *run)
    takeover.method(attr.GuidedGradCam, "attribute", _guided_grad_cam, *run, *parts)


def _common() -> Any:
    return importlib.import_module("captum._utils.common")


def _gradient() -> Any:
    return importlib.import_module("captum._utils.gradient")


def _layer_grad_cam(present: Replacement) -> Replacement:
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
            reason = _why_whole(self.forward_func)
            if attribute_to_layer_input:
                reason = "what goes into the layer may be read elsewhere too"
            elif any(map(_is_training, (self.forward_func, self.layer))):
                reason = "the model is in training mode"
            elif any(map(_has_hooks, (self.forward_func, self.layer))):
                reason = "the model has other hooks"
            elif grad_kwargs:
                reason = "grad_kwargs"
            if not reason:
                common = _common()
                given = common._format_tensor_into_tuples(inputs)
                more = common._format_additional_forward_args(additional_forward_args)
                forward, layer = self.forward_func, self.layer
                start = _start(self, given, more)
                if settings.fast:
                    forward, layer, given = _fast(self, given, more, start)
                recorder = Recorder({"layer": layer}, start, _all_tensors)
                reason = "no gradient came back to the layer"
                if start.place == "model":
                    reason = "the model sets grad modes itself"
                else:
                    with Loan(recorder.hooks, recorder.before), torch.no_grad():
                        scores = common._run_forward(forward, given, target, more)
                    found = _gradients(recorder, scores)
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
                _grad_cam(value, gradient, relu_attributions, attr_dim_summation)
                for value, gradient in found
            )
            return maps if len(maps) > 1 else maps[0]

    return attribute


def _why_whole(forward: Any) -> str:
    """Why captum has to run a forward function itself; empty where it has not."""
    if torch.is_inference_mode_enabled():
        return "inference mode"
    if not isinstance(forward, nn.Module):
        return ""
    if unwrap(forward) is not forward or any(map(is_compiled, forward.modules())):
        return "the model is compiled or parallel"
    return ""


def _is_training(part: Any) -> bool:
    return isinstance(part, nn.Module) and any(module.training for module in part.modules())


def _has_hooks(part: Any) -> bool:
    return isinstance(part, nn.Module) and has_hooks(part)


_starts: WeakKeyDictionary[Any, tuple[Any, Start]] = WeakKeyDictionary()


def _start(attribution: Any, inputs: tuple[Tensor, ...], additional: Any) -> Start:
    """Where the graph of an object's runs starts; found by its first call."""
    forward, layer = attribution.forward_func, attribution.layer
    of, start = _starts.get(attribution, (None, None))
    if start is not None and of == (id(forward), id(layer)):
        return start
    given, more = first_row((inputs, additional))

    def attempt(recorder: Recorder, whole: bool) -> Any:
        kept = untouched(forward if isinstance(forward, nn.Module) else layer)
        with kept, Loan(recorder.hooks, recorder.before), torch.set_grad_enabled(whole):
            return _common()._run_forward(
                forward, start_at_inputs(given) if whole else given, None, more
            )

    try:
        start = closest_start(attempt, {"layer": layer})
    except Exception:  # what is wrong, captum says
        start = Start("model")
    _starts[attribution] = (id(forward), id(layer)), start
    return start


def _all_tensors(returned: Any) -> list[Tensor]:
    """All that a layer returned; nothing if that was not only tensors in floating point."""
    tensors = list(returned) if isinstance(returned, (tuple, list)) else [returned]
    usual = all(isinstance(each, Tensor) and each.is_floating_point() for each in tensors)
    return tensors if usual else []


def _gradients(
    recorder: Recorder, scores: Any, retain: bool = False
) -> list[tuple[Tensor, Tensor]] | None:
    """What the layer returned and dS/d each; None where captum is to say what is wrong."""
    points = recorder.points.get("layer", ())
    if (
        not points
        or not isinstance(scores, Tensor)
        or scores.dim() == 0
        or scores.shape[0] == 0
        or scores[0].numel() != 1
    ):
        return None
    try:
        recorder.check()
    except ValueError:
        return None
    gradients = gradients_at(points, scores, retain=retain)
    found = [(p.value, g) for p, g in zip(points, gradients, strict=True) if g is not None]
    return found if len(found) == len(points) else None


@torch.no_grad()
def _grad_cam(activations: Tensor, gradients: Tensor, relu: bool, summed: bool) -> Tensor:
    """(N, 1, *S), or without the channel sum (N, C, *S)."""
    dtype = torch.promote_types(activations.dtype, gradients.dtype)
    if summed and 3 <= activations.dim() <= 5:
        return ops.cam(activations, gradients, "gradcam", relu).unsqueeze(1).to(dtype)
    dims = tuple(range(2, gradients.dim()))
    weights = gradients.mean(dims, keepdim=True) if dims else gradients
    maps = weights * activations
    maps = maps.sum(1, keepdim=True) if summed else maps
    return maps.relu() if relu else maps


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
    if not name or _is_training(model):
        return model, layer, inputs
    fast = _fast_copies.of(attribution, model, (*inputs, *(additional or ())), [name], start)
    return fast.model, fast.model.get_submodule(name), fast.prepared(inputs)


def _interpolate(present: Replacement) -> Replacement:
    def interpolate(
        layer_attribution: Any, interpolate_dims: Any, interpolate_mode: str = "nearest"
    ) -> Tensor:
        with counted("captum.LayerAttribution.interpolate") as call:
            a = layer_attribution
            dims = {"linear": 1, "bilinear": 2, "trilinear": 3}.get(interpolate_mode)
            size = interpolate_dims
            size = (size,) * (dims or 0) if isinstance(size, int) else size
            if (
                dims is None
                or not isinstance(a, Tensor)
                or a.dtype not in (torch.float32, torch.float64)
                or a.dim() != dims + 2
                or a.numel() == 0
                or a.requires_grad
                or not isinstance(size, (tuple, list, torch.Size))
                or len(size) != dims
                or not all(isinstance(extent, int) and extent > 0 for extent in size)
            ):
                call.leave_to("captum", f"{interpolate_mode}, or an attribution with a graph")
                return present(layer_attribution, interpolate_dims, interpolate_mode)
            call.why = call.why or "enlarged by the kernels"
            return ops.upsample(a, size, normalize=False)

    return interpolate


@dataclass
class _Restore:
    """In the place of a hook's handle: ``remove`` puts a ReLU's way of working back."""

    module: nn.ReLU
    done: bool = field(default=False, init=False)

    def remove(self) -> None:
        if not self.done:
            self.done = True
            self.module.inplace = True


def _watch_relu(module: nn.ReLU, rule: Callable[[Tensor, Tensor], Tensor | None]) -> list[Any]:
    """Handles of what applies ``rule`` to the gradient of a ReLU's input.

    Args:
        rule: gets that gradient and the last one of the module's output, as captum keeps it; what
            it gives takes the place of the first.
    """
    last: list[Tensor] = []

    def before(module: nn.Module, args: Any) -> None:
        assert len(args) == 1, "a ReLU took other arguments than one tensor"
        args[0].register_hook(lambda gradient: rule(gradient, last[0]) if last else None)

    def after(module: nn.Module, args: Any, output: Tensor) -> None:
        def keep(gradient: Tensor) -> None:
            last[:] = [gradient]

        output.register_hook(keep)

    handles: list[Any] = [
        module.register_forward_pre_hook(before),
        module.register_forward_hook(after),
    ]
    if module.inplace:  # captum hands on a copy; the ReLU may as well write into a new tensor
        module.inplace = False
        handles.append(_Restore(module))
    return handles


_plain: WeakSet[Any] = WeakSet()
"""Those of captum's guided objects whose hooks leave gradients as they are."""


def _register_hooks(present: Replacement) -> Replacement:
    def register(self: Any, module: nn.Module) -> None:
        def rule(gradient: Tensor, output: Tensor) -> Tensor | None:
            if self in _plain:
                return None
            return (output if self.use_relu_grad_output else gradient).relu()

        if isinstance(module, nn.ReLU) and not _has_own_forward(module):
            self.backward_hooks += _watch_relu(module, rule)
        else:
            present(self, module)

    return register


def _has_own_forward(module: nn.ReLU) -> bool:
    return type(module).forward is not nn.ReLU.forward or "forward" in vars(module)


def _guided(present: Replacement) -> Replacement:
    def attribute(
        self: Any, inputs: Any, target: Any = None, additional_forward_args: Any = None
    ) -> Any:
        with counted(f"captum.{type(self).__name__}") as call, _as_found(inputs):
            call.why = "every ReLU, functions too" if settings.fix else "ReLU modules"
            if settings.fix:
                relu = GuidedReLU()
                relu.rule = "deconvnet" if self.use_relu_grad_output else "guided"
                return _everywhere(relu, self, inputs, target, additional_forward_args)
            try:
                return present(self, inputs, target, additional_forward_args)
            finally:
                self.backward_hooks.clear()  # they are removed, and captum keeps them

    return attribute


def _everywhere(
    relu: GuidedReLU, attribution: Any, inputs: Any, target: Any, additional: Any
) -> Any:
    """By fastcam's rule: ReLUs that are functions, and what comes to the same."""
    common, gradient = _common(), _gradient()
    given = common._format_tensor_into_tuples(inputs)
    required = gradient.apply_gradient_requirements(given)
    with relu:
        found = attribution.gradient_func(attribution.forward_func, given, target, additional)
    gradient.undo_gradient_requirements(given, required)
    return common._format_output(common._is_tuple(inputs), found)


@contextmanager
def _as_found(inputs: Any) -> Iterator[None]:
    """After an exception too, inputs require a gradient where they did before."""
    required = [(tensor, tensor.requires_grad) for tensor in tensors_of(inputs)]
    try:
        yield
    except BaseException:
        for tensor, before in required:
            if tensor.is_leaf:
                tensor.requires_grad_(before)
        raise


def _guided_grad_cam(present: Replacement) -> Replacement:
    def attribute(
        self: Any,
        inputs: Any,
        target: Any = None,
        additional_forward_args: Any = None,
        interpolate_mode: str = "nearest",
        attribute_to_layer_input: bool = False,
    ) -> Any:
        with counted("captum.GuidedGradCam") as call, _as_found(inputs):
            found, reason = None, _why_twice(self, attribute_to_layer_input)
            if not reason:
                found = _both(self, inputs, target, additional_forward_args)
                reason = "no gradient came back to the layer"
            if found is None:
                call.leave_to("captum", reason)
                return present(
                    self,
                    inputs,
                    target,
                    additional_forward_args,
                    interpolate_mode,
                    attribute_to_layer_input,
                )
            call.why = "one forward for both gradients"
            maps, guided = found
            products = []
            for gradient in guided:
                try:
                    size = tuple(gradient.shape[2:])
                    products.append(gradient * F.interpolate(maps, size, mode=interpolate_mode))
                except Exception:
                    warnings.warn(
                        "GuidedGradCam: the map has no counterpart of an input's shape, which gets "
                        "an empty tensor",
                        stacklevel=2,
                    )
                    products.append(torch.empty(0))
            common = _common()
            return common._format_output(common._is_tuple(inputs), tuple(products))

    return attribute


def _why_twice(attribution: Any, to_layer_input: bool) -> str:
    """Why the map and the guided gradient need a forward each, as in captum."""
    model = attribution.guided_backprop.model
    reason = _why_whole(model)
    if reason:
        return reason
    if to_layer_input:
        return "what goes into the layer may be read elsewhere too"
    if attribution.grad_cam.forward_func is not model:
        return "its parts have different models"
    if _is_training(model):
        return "the model is in training mode"
    if any(isinstance(module, nn.ReLU) and _has_own_forward(module) for module in model.modules()):
        return "a ReLU has a forward of its own"
    functions = (attribution.guided_backprop.gradient_func, attribution.grad_cam.gradient_func)
    if any(function is not _gradient().compute_gradients for function in functions):
        return "another gradient_func"
    return ""


def _both(
    attribution: Any, inputs: Any, target: Any, additional: Any
) -> tuple[Tensor, tuple[Tensor, ...]] | None:
    """The map through ReLU, (N, 1, *S), and the guided gradient of each input."""
    guided, maps = attribution.guided_backprop, []
    relu = GuidedReLU()

    def gradients(forward: Any, given: Any, target: Any, additional: Any) -> tuple[Tensor, ...]:
        recorder = Recorder({"layer": attribution.grad_cam.layer}, Start("model"), _all_tensors)
        with Loan(recorder.hooks, recorder.before), torch.enable_grad():
            scores = _common()._run_forward(forward, given, target, additional)
        _plain.add(guided)
        try:
            found = _gradients(recorder, scores, retain=True)
        finally:
            _plain.discard(guided)
        if found is None or len(found) != 1:
            return given
        maps.append(_grad_cam(*found[0], relu=True, summed=True))
        relu.rule = "guided"
        return torch.autograd.grad(scores, given, torch.ones_like(scores))

    usual = guided.gradient_func
    guided.gradient_func = gradients
    try:
        if settings.fix:
            gradient = _everywhere(relu, guided, inputs, target, additional)
        else:
            gradient = guided.attribute(inputs, target, additional)
    finally:
        guided.gradient_func = usual
    if not maps:
        return None
    return maps[0], gradient if isinstance(gradient, tuple) else (gradient,)
