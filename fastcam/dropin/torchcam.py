"""torchcam 0.5, taken over in place: maps by fastcam's kernels, graphs no larger than needed.

The user runs the network himself, with torchcam's hooks on it. So two things are taken over: that
run, which records from the first target layer up alone (:class:`Forward`), and what follows it. In
between lie torchcam's own objects, with the attributes that they always had.
"""

from __future__ import annotations

import functools
import importlib
import math
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastcam import ops
from fastcam.dropin.calls import counted
from fastcam.dropin.imports import no_longer, when_imported
from fastcam.dropin.settings import settings
from fastcam.dropin.takeover import Replacement, Takeover
from fastcam.engine.inputs import first_row
from fastcam.engine.recording import Recorder, Start, closest_start, start_at_inputs, started
from fastcam.engine.running import (
    Loan,
    is_compiled,
    unwrap,
)
from fastcam.engine.trials import untouched
from fastcam.engine.values import (
    tensors_of,
)
from fastcam.errors import first_line
from fastcam.fast import FastModel, Options, folded, preferred_dtype
from fastcam.methods.masked_runs import masked_runs
from fastcam.methods.smooth import smooth_weights

EPS = 1e-8
"""torchcam's, in denominators and ranges."""
MANY_RUNS = 64
"""Of masked images: from here on a copy of the network, made for them, pays."""
_EXACT = (torch.float32, torch.float64)


def take_over(takeover: Takeover) -> None:
    """Replaces what fastcam has; torchcam.utils and explain wait for their import."""
    _Peer.active = True
    takeover.on_undo(_Peer.leave)
    _take_methods(takeover)
    _take_metrics(takeover)
    for name, take in (("torchcam.utils", _take_utils), ("torchcam.explain", _take_explain)):
        when_imported(name, functools.partial(_take_late, name, take, takeover))
        takeover.on_undo(functools.partial(no_longer, name))


def _take_late(name: str, take: Callable[[Takeover], None], takeover: Takeover) -> None:
    try:
        take(takeover)
        takeover.finish()
    except Exception as error:  # another release, found in the middle of the user's import
        warnings.warn(f"fastcam.dropin: {name} stays as it is ({first_line(error)})", stacklevel=2)


class _Peer:
    """torchcam's classes, once they are taken over."""

    active = False
    core: Any
    activation: Any
    gradient: Any

    @classmethod
    def leave(cls) -> None:
        cls.active = False


def _take_methods(takeover: Takeover) -> None:
    for name in ("core", "activation", "gradient"):
        setattr(_Peer, name, importlib.import_module(f"torchcam.methods.{name}"))
    core, activation, gradient = _Peer.core, _Peer.activation, _Peer.gradient
    run = (core.__name__, gradient.__name__)
    takeover.method(gradient._GradCAM, "__init__", _init, *run)
    takeover.method(gradient.LeGrad, "__init__", _init, *run)
    takeover.function(core._CAM._hook_a, _hook_a, *run)
    takeover.function(gradient.LeGrad._prepare_attention, _prepare_attention, *run)
    takeover.method(core._CAM, "compute_cams", _compute_cams)
    takeover.method(core._CAM, "_normalize", _normalize)
    takeover.method(core._CAM, "_fuse_cams", _fuse_cams)
    takeover.method(gradient.RefineCAM, "fuse_cams", _refine)
    takeover.method(gradient.LeGrad, "compute_cams", _compute_legrad)
    takeover.method(gradient.SmoothGradCAMpp, "_compute_smoothgrad_weights", _smooth, *run)
    for method, variations in (("ScoreCAM", _once), ("SSCAM", None), ("ISCAM", _growing)):
        owner = getattr(activation, method)
        make = functools.partial(_score_weights, variations=variations)
        takeover.method(owner, "_get_score_weights", make, core.__name__)
    for owner in (gradient.RefineCAM, gradient.FinerCAM):
        for name in ("__call__", "compute_cams"):
            takeover.method(owner, name, _as_one_call)
    _FORMULAS.clear()
    if takeover.guard("the formulas", *run) is None:
        return
    for method, formula in (
        ("GradCAM", _Formula(_grad_cam, _grad_cam_weights)),
        ("GradCAMpp", _Formula(_grad_cam_pp, _grad_cam_pp_weights, takes_eps=True)),
        ("XGradCAM", _Formula(_x_grad_cam, _x_grad_cam_weights, takes_eps=True)),
        ("LayerCAM", _Formula(_layer_cam, _layer_cam_weights)),
    ):
        _FORMULAS[getattr(gradient, method)._get_weights] = formula


def _take_metrics(takeover: Takeover) -> None:
    metrics: Any = importlib.import_module("torchcam.metrics")
    for owner in (metrics.ClassificationMetric, metrics.DeletionInsertionMetric):
        takeover.method(owner, "update", _as_own_forward)


def _take_explain(takeover: Takeover) -> None:
    takeover.function(importlib.import_module("torchcam.explain").explain, _explain)


def _take_utils(takeover: Takeover) -> None:
    takeover.function(importlib.import_module("torchcam.utils").overlay_mask, _overlay_mask)


@dataclass
class _Run:
    """A forward that began without a graph."""

    owner: Forward
    frame: FrameType
    """Which called the hook that began it."""


class _Running(threading.local):
    run: _Run | None = None


_running = _Running()
_library_runs: ContextVar[bool] = ContextVar("library_runs", default=False)
"""Whether torchcam itself runs the network, so that nobody derives the scores by its inputs."""


@dataclass(eq=False)
class Forward:
    """Hooks of one extractor on its model: no graph below the first target layer.

    The model's pre-hook turns grad mode off, the first target layer turns it on, and the model's
    hook puts it back. A run that could be for something else is recorded as ever; :attr:`whole`
    says why. A model's answer that should have a graph and has none (grad modes within the model)
    is computed again, and the model's graph is whole from then on.
    """

    extractor: Any
    whole: str = field(default="before any forward", init=False)
    """Why the last graph is whole; empty where it is not."""
    start: Start | None = field(default=None, init=False)
    """Where a graph may start; found by the first forward."""

    def begin(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        """The pre-hook."""
        if torch.compiler.is_compiling() or not _Peer.active:
            return
        run = _running.run
        if run is not None and _on_the_stack(run.frame):
            self.whole = ""
            return
        if run is not None:  # left by Ctrl-C, which calls no hook
            run.owner.restore()
        if not self.extractor._hooks_enabled:
            return
        if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            self.whole = "grad mode was off"
            return
        given = tensors_of((args, kwargs))
        self.whole = self._why_whole(model, given)
        if not self.whole and self.start is None:
            self.start = self._find_start(model, args, kwargs)
            self.whole = self._why_whole(model, given)
        if not self.whole:
            _running.run = _Run(self, sys._getframe(1))
            torch.set_grad_enabled(False)

    def end(self, model: nn.Module, args: Any, kwargs: Any, outputs: Any) -> Any:
        """The hook, also after an exception."""
        run = _running.run
        if run is None or run.owner is not self:
            return None
        self.restore()
        found = tensors_of(outputs)
        if not found or any(tensor.requires_grad for tensor in found):
            return None
        self.start = Start("model")
        return model(*args, **kwargs)

    def _find_start(self, model: nn.Module, args: Any, kwargs: Any) -> Start:
        """By runs on one image, without torchcam's hooks."""
        given, named = first_row((args, kwargs))

        recorders: list[Recorder] = []

        def attempt(recorder: Recorder, whole: bool) -> Any:
            recorders.append(recorder)
            inputs = start_at_inputs((given, named)) if whole else (given, named)
            loan = Loan(recorder.hooks, recorder.before)
            with untouched(model), loan, torch.set_grad_enabled(whole):
                return model(*inputs[0], **inputs[1])

        modules = self.extractor.submodule_dict
        layers = {name: modules[name] for name in self.extractor.target_names}
        self.extractor._hooks_enabled = False
        try:
            start = closest_start(attempt, layers)
        except Exception:  # what is wrong, the user's own run says
            start = Start("model")
        finally:
            self.extractor._hooks_enabled = True
        passed_on = any(each.passing_on or each.held for each in recorders)
        return Start("model") if passed_on else start

    def restore(self) -> None:
        """Grad mode as it was before a run that this began."""
        if _running.run is not None and _running.run.owner is self:
            _running.run = None
            torch.set_grad_enabled(True)

    def remove(self) -> None:
        """As the last of an extractor's handles."""
        self.restore()

    def _why_whole(self, model: nn.Module, given: Sequence[Tensor]) -> str:
        if self.start is not None and self.start.place == "model":
            return "the model sets grad modes itself, or a layer returns what it was given"
        if self.start is not None and self.start.place == "layer":
            return "what the layer computes on the way to its output is read later"
        if unwrap(model) is not model:
            return "the model is compiled or parallel"
        may_be_compiled = "torch._dynamo" in sys.modules
        for module in self.extractor.submodule_dict.values():
            state = vars(module)  # a tenth of the time that attributes of a module take
            if state.get("training", True):
                return "the model, or a part of it, is in training mode or TorchScript"
            if "forward" in state:  # it may count its runs
                return "a module has a forward of its own"
            if may_be_compiled and is_compiled(module):
                return "the model is compiled"
            if state["_backward_hooks"] or state["_backward_pre_hooks"]:
                return "the model has backward hooks"
            for hooks in (state["_forward_hooks"], state["_forward_pre_hooks"]):
                if hooks and not all(map(_is_ours, hooks.values())):
                    return "the model has other hooks"
        if _library_runs.get():
            return ""
        if any(tensor.requires_grad for tensor in given):
            return "the input requires a gradient"
        attention = isinstance(self.extractor, _Peer.gradient.LeGrad)
        if not (attention or settings.fix or any(p.requires_grad for p in model.parameters())):
            return "no parameter requires a gradient"
        return ""


def _on_the_stack(frame: FrameType) -> bool:
    current: FrameType | None = sys._getframe(1)
    while current is not None and current is not frame:
        current = current.f_back
    return current is not None


def _is_ours(hook: Any) -> bool:
    """Whether a hook is fastcam's, or that of one of torchcam's own classes."""
    owner = getattr(getattr(hook, "func", hook), "__self__", None)
    if isinstance(owner, _Peer.core._CAM):
        return _is_own(type(owner))
    return isinstance(owner, Forward)


def _is_own(extractor: type) -> bool:
    return extractor.__module__.partition(".")[0] == "torchcam"


def _init(present: Replacement) -> Replacement:
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        present(self, *args, **kwargs)
        if _is_own(type(self)):
            self._forward_by_fastcam = forward = Forward(self)
            self.hook_handles += [
                self.model.register_forward_pre_hook(forward.begin, with_kwargs=True),
                self.model.register_forward_hook(forward.end, with_kwargs=True, always_call=True),
                forward,
            ]

    return init


def _hook_a(present: Replacement) -> Replacement:
    """Lets the graph begin at the layer; what the model goes on with is what torchcam keeps."""

    def hook(self: Any, module: nn.Module, args: Any, output: Any, idx: int = 0) -> Any:
        begun = output
        if self._hooks_enabled and isinstance(self, _Peer.gradient._GradCAM):
            begun = _with_graph(output)
        present(self, module, args, begun, idx)
        return None if begun is output else begun

    return hook


def _warn_of_the_short_graph(gradient: Tensor) -> None:
    warnings.warn(
        "fastcam.dropin: this backward() gives no gradient to parameters at and below the target "
        "layer, for the graph of the scores begins there; to train, put the model into training "
        "mode, or call the extractor's disable_hooks() before the model",
        stacklevel=2,
    )


def _with_graph(output: Any) -> Any:
    """What a layer returned, at the start of a graph."""
    if _running.run is None:
        return output
    torch.set_grad_enabled(True)
    if not isinstance(output, Tensor) or output.requires_grad:
        return output
    # maps ask for the layers' gradients, not for what is passed
    return started(output, same=True, passed=_warn_of_the_short_graph)


def _prepare_attention(present: Replacement) -> Replacement:
    """LeGrad's graph begins at the first block's attention."""

    def prepare(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self._hooks_enabled and _running.run is not None:
            torch.set_grad_enabled(True)
        return present(self, *args, **kwargs)

    return prepare


def _recorded(extractor: Any) -> str:
    """From where the last forward was recorded, for the report."""
    forward = getattr(extractor, "_forward_by_fastcam", None)
    if forward is None:
        return ""
    if forward.whole:
        return f"; the graph is whole: {forward.whole}"
    return "; the graph begins at the first target layer"


@contextmanager
def _library_run() -> Iterator[None]:
    token = _library_runs.set(True)
    try:
        yield
    finally:
        _library_runs.reset(token)


def _as_own_forward(present: Replacement) -> Replacement:
    """A metric's update: its forward is its own, and it counts as one call."""

    def update(self: Any, *args: Any, **kwargs: Any) -> Any:
        with counted(f"torchcam.{type(self).__name__}") as call, _library_run():
            call.why = "maps by fastcam, runs of changed images by torchcam"
            return present(self, *args, **kwargs)

    return update


def _explain(present: Replacement) -> Replacement:
    def explain(*args: Any, **kwargs: Any) -> Any:
        with counted("torchcam.explain") as call, _library_run():
            call.why = "maps by fastcam"
            return present(*args, **kwargs)

    return explain


def _as_one_call(present: Replacement) -> Replacement:
    """A method on top of another: the base's calls are part of it."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with counted(f"torchcam.{type(self).__name__}"):
            return present(self, *args, **kwargs)

    return call


class _Formula(NamedTuple):
    """How a method makes maps of activations and gradients (N, C, *S)."""

    map: Callable[[Tensor, Tensor, float | None], Tensor]
    """(N, *S), through ReLU."""
    weights: Callable[[Tensor, Tensor, float | None], Tensor]
    """(N, C) or (N, C, *S): for maps that leave products that are NaN out."""
    takes_eps: bool = False


_FORMULAS: dict[Any, _Formula] = {}
"""By torchcam's _get_weights, which a user's subclass may have replaced."""


def _grad_cam(activations: Tensor, gradients: Tensor, eps: float | None) -> Tensor:
    return ops.cam(activations, gradients, "gradcam")


def _grad_cam_weights(activations: Tensor, gradients: Tensor, eps: float | None) -> Tensor:
    return gradients.flatten(2).mean(-1)


def _grad_cam_pp(activations: Tensor, gradients: Tensor, eps: float | None) -> Tensor:
    if settings.fix:
        return ops.cam(activations, gradients, "gradcam++-signed", eps=eps or 0.0)
    return ops.weighted_sum(activations, _grad_cam_pp_weights(activations, gradients, eps))


def _grad_cam_pp_weights(activations: Tensor, gradients: Tensor, eps: float | None) -> Tensor:
    if settings.fix:
        g = gradients.flatten(2)
        denominator = 2 + g * activations.flatten(2).sum(-1, keepdim=True)
        if eps:
            denominator = denominator + eps / g**2
        outside = (g <= 0) | (denominator == 0)
        return (g / denominator).masked_fill(outside, 0).sum(-1)
    # torchcam divides a copy of alpha = g^2, so alpha ReLU(g) is ReLU(g)^3
    return gradients.relu().pow_(3).flatten(2).sum(-1)


def _x_grad_cam(activations: Tensor, gradients: Tensor, eps: float | None) -> Tensor:
    return ops.cam(activations, gradients, "xgradcam", eps=EPS if eps is None else eps)


def _x_grad_cam_weights(activations: Tensor, gradients: Tensor, eps: float | None) -> Tensor:
    total = activations.flatten(2).sum(-1)
    return (gradients * activations).flatten(2).sum(-1) / (total + (EPS if eps is None else eps))


def _layer_cam(activations: Tensor, gradients: Tensor, eps: float | None) -> Tensor:
    return ops.cam(activations, gradients, "layercam")


def _layer_cam_weights(activations: Tensor, gradients: Tensor, eps: float | None) -> Tensor:
    return gradients.relu()


def _compute_cams(present: Replacement) -> Replacement:
    def compute_cams(
        self: Any,
        class_idx: Any = None,
        scores: Any = None,
        normalized: bool = True,
        *,
        targets: Any = None,
        **kwargs: Any,
    ) -> list[Tensor]:
        with counted(f"torchcam.{type(self).__name__}") as call:
            if not all(map(_has_map, self.hook_a)):
                call.leave_to("torchcam", "a layer's output is not (N, C, *S) in floating point")
                return present(self, class_idx, scores, normalized, targets=targets, **kwargs)
            if targets is not None:
                kwargs["targets"] = targets
            own = "_get_weights" in vars(self) or "_backprop" in vars(self)
            formula = None if own else _FORMULAS.get(type(self)._get_weights)
            if formula is None:
                weights = self._get_weights(class_idx, scores, **kwargs)
                with torch.no_grad():
                    pairs = zip(self.hook_a, weights, strict=True)
                    maps = [_weighted(a, w, self._relu) for a, w in pairs]
            else:
                eps = kwargs.pop("eps", None) if formula.takes_eps else None
                self._backprop(scores, class_idx, **kwargs)
                with torch.no_grad():
                    pairs = zip(self.hook_a, self.hook_g, strict=True)
                    maps = [_of_gradients(a, g, formula, eps) for a, g in pairs]
            if call.served_by == "fastcam":
                call.why = (call.why or "maps") + _recorded(self)
            return [self._normalize(each) for each in maps] if normalized else maps

    return compute_cams


def _has_map(activations: Any) -> bool:
    return (
        isinstance(activations, Tensor)
        and 3 <= activations.dim() <= 5
        and activations.is_floating_point()
    )


def _of_gradients(
    activations: Tensor, gradients: Tensor, formula: _Formula, eps: float | None
) -> Tensor:
    maps = formula.map(activations, gradients, eps).to(activations.dtype)
    if maps.isnan().any():
        return _without_nan(activations, formula.weights(activations, gradients, eps)).relu()
    return maps


def _weighted(activations: Tensor, weights: Tensor, relu: bool) -> Tensor:
    """The channel sum of (N, C, *S) by weights (N, C), (1, C) or (N, C, *S)."""
    if weights.dim() != 2 or weights.shape[1] != activations.shape[1]:
        maps = _without_nan(activations, weights)
        return maps.relu_() if relu else maps
    dtype = torch.promote_types(activations.dtype, weights.dtype)
    every = weights.expand(activations.shape[0], -1)
    maps = ops.weighted_sum(activations, every, relu).to(dtype)
    if maps.isnan().any():
        maps = _without_nan(activations, weights)
        return maps.relu_() if relu else maps
    return maps


def _without_nan(activations: Tensor, weights: Tensor) -> Tensor:
    """The channel sum of the products that are not NaN, as torchcam takes it."""
    weights = weights.reshape(*weights.shape, *(1,) * (activations.dim() - weights.dim()))
    return torch.nansum(weights * activations, 1)


def _normalize(present: Replacement) -> Replacement:
    """(x - min) / (max - min + eps), in place."""

    @torch.no_grad()
    def normalize(cams: Tensor, spatial_dims: int | None = None, eps: float = EPS) -> Tensor:
        dims = cams.dim() - 1 if spatial_dims is None else spatial_dims
        exact = cams.dtype in _EXACT or (settings.fix and cams.is_floating_point())
        if not exact or not 1 <= dims <= 3 or cams.numel() == 0:
            return present(cams, spatial_dims, eps)
        return cams.copy_(ops.normalize(cams, dims, eps))

    return normalize


def _fuse_cams(present: Replacement) -> Replacement:
    """The largest value of the enlarged maps at every position."""

    def fuse(cams: list[Tensor], target_shape: Any) -> Tensor:
        with counted("torchcam.fuse_cams") as call:
            if not _can_enlarge(cams, target_shape, (2, 3)):
                call.leave_to("torchcam", "maps of a graph, of another type or of other extents")
                return present(cams, target_shape)
            call.why = call.why or "enlarged by the kernels"
            fused = _enlarged(cams[0], target_shape)
            for cam in cams[1:]:
                fused = torch.maximum(fused, _enlarged(cam, target_shape))
            return fused

    return fuse


def _refine(present: Replacement) -> Replacement:
    """The product of the normalized and enlarged maps."""

    @torch.no_grad()
    def refine(cams: Any, target_shape: Any = None, normalized: bool = True) -> Tensor:
        with counted("torchcam.RefineCAM.fuse_cams") as call:
            shape = target_shape
            if not shape and isinstance(cams, list) and all(isinstance(c, Tensor) for c in cams):
                shape = tuple(map(max, zip(*(c.shape[1:] for c in cams), strict=False)))
            exact = isinstance(cams, list) and all(
                isinstance(c, Tensor) and c.dtype in _EXACT for c in cams
            )
            if not exact or not _can_enlarge(cams, shape, (2, 3)):
                call.leave_to("torchcam", "maps of another type or of other extents")
                return present(cams, target_shape, normalized)
            call.why = call.why or "enlarged by the kernels"
            dims = len(shape)
            product = _enlarged(ops.normalize(cams[0], dims, EPS), shape)
            for cam in cams[1:]:
                product = product.mul_(_enlarged(ops.normalize(cam, dims, EPS), shape))
            return ops.normalize(product, dims, EPS) if normalized else product

    return refine


def _can_enlarge(cams: Sequence[Tensor], shape: Any, dims: tuple[int, ...]) -> bool:
    """Whether linear interpolation is what torchcam does, and all that it does."""
    dims = (1, *dims) if settings.fix else dims  # of one dimension torchcam's own call fails
    return (
        len(cams) > 0
        and isinstance(shape, (tuple, torch.Size))
        and len(shape) in dims
        and all(isinstance(extent, int) and extent > 0 for extent in shape)
        and all(
            cam.is_floating_point()
            and cam.dim() == len(shape) + 1
            and cam.numel() > 0
            and not (cam.requires_grad and torch.is_grad_enabled())
            and cam.dtype == cams[0].dtype
            for cam in cams
        )
    )


def _enlarged(maps: Tensor, shape: Sequence[int]) -> Tensor:
    if tuple(maps.shape[-len(shape) :]) == tuple(shape):
        return maps
    return ops.upsample(maps.detach(), shape, normalize=False).to(maps.dtype)


def _compute_legrad(present: Replacement) -> Replacement:
    def compute_cams(self: Any, *args: Any, **kwargs: Any) -> list[Tensor]:
        with counted(f"torchcam.{type(self).__name__}") as call:
            call.why = f"torchcam's own maps{_recorded(self)}"
            return present(self, *args, **kwargs)

    return compute_cams


def _smooth(present: Replacement) -> Replacement:
    """Smooth Grad-CAM++'s weights, from small batches of samples."""

    def weights(self: Any, class_idx: Any, eps: float, **kwargs: Any) -> list[Tensor]:
        with counted(f"torchcam.{type(self).__name__}") as call:
            reason = _why_not_together(self, class_idx)
            if reason:
                call.leave_to("torchcam", reason)
                with _library_run():
                    return present(self, class_idx, eps, **kwargs)
            call.why = "samples together"
            return _smooth_weights(self, class_idx, eps, kwargs)

    return weights


def _why_not_together(extractor: Any, class_idx: Any) -> str:
    """Why samples should run one by one, as in torchcam; empty where they need not."""
    if not extractor._hooks_enabled:
        return "its hooks are disabled"
    own = "_backprop" in vars(extractor)
    if own or type(extractor)._backprop is not _Peer.gradient._GradCAM._backprop:
        return "it derives the score itself"
    if class_idx is None:
        return "the targets are functions"
    for module in extractor.model.modules():
        if module.training:
            return "the model is in training mode"
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            return "BatchNorm takes a batch's own statistics"
    return ""


def _smooth_weights(
    extractor: Any, class_idx: Any, eps: float, kwargs: dict[str, Any]
) -> list[Tensor]:
    images, samples = extractor._input, extractor.num_samples
    count = images.shape[0]
    clean = list(extractor.hook_a)
    draw = extractor._distrib.sample
    noise = [draw(images.shape).to(device=images.device) for _ in range(samples)]
    gradients: list[list[Tensor]] = [[] for _ in clean]  # (samples, N, C, *S) a layer and batch
    together = max(1, 8 // max(1, count))
    for start in range(0, samples, together):
        some = noise[start : start + together]
        noisy = torch.cat([images + each for each in some]).requires_grad_()
        with _library_run():
            scores = extractor.model(noisy)
        classes = class_idx * len(some) if isinstance(class_idx, list) else class_idx
        extractor._backprop(scores, classes, **kwargs)
        for layer, gradient in enumerate(extractor.hook_g):
            gradients[layer].append(gradient.unflatten(0, (len(some), count)))
    weights = []
    for layer, (activations, found) in enumerate(zip(clean, gradients, strict=True)):
        # what a single run of the last sample would have left
        extractor.hook_a[layer] = extractor.hook_a[layer][-count:].clone()
        extractor.hook_g[layer] = extractor.hook_g[layer][-count:].clone()
        if settings.fix:
            extractor.hook_a[layer] = activations
            total = ops.gap(activations) * activations.shape[2:].numel()
            weights.append(smooth_weights(total, torch.cat(found)))
        else:
            weights.append(_smooth_weights_of_torchcam(activations, found, samples, eps))
    return weights


def _smooth_weights_of_torchcam(
    activations: Tensor, gradients: list[Tensor], samples: int, eps: float
) -> Tensor:
    """alpha = E[g^2] / (2 E[g^2] + sum_ab(E[g_ab^3] A_ab) + eps); ReLU(g) of the last sample."""
    second = sum(g.square().sum(0) for g in gradients) / samples
    third = sum((g * g.square()).sum(0) for g in gradients) / samples
    mixed = (third * activations).flatten(2).sum(-1)
    mixed = mixed.reshape(*mixed.shape, *(1,) * (activations.dim() - 2))
    alpha = second / (2 * second + mixed + eps)
    return (alpha * gradients[-1][-1].relu()).flatten(2).sum(-1)


_Variations = Callable[[Tensor, int], Iterator[Tensor]]
_RUNS = (
    "_init_score_weights",
    "_masked_input_chunk",
    "_prepare_masked_inputs",
    "_score_input",
    "_select_scores",
    "_upsample",
)


def _once(images: Tensor, samples: int) -> Iterator[Tensor]:
    yield images


def _growing(images: Tensor, samples: int) -> Iterator[Tensor]:
    factor = 0.0
    for i in range(1, samples + 1):
        factor += i / samples
        yield factor * images


def _score_weights(present: Replacement, variations: _Variations | None) -> Replacement:
    """Score-CAM's weights: softmax over channels of the score of masked images.

    The score of the unmasked image, which torchcam subtracts, is left out by softmax. Channels that
    are constant mask everything: one run will do for those of an image.

    Args:
        variations: of masked images, whose scores are averaged; None for noise on the masks.
    """

    @torch.no_grad()
    def weights(
        self: Any, activations: list[Tensor], class_idx: Any, targets: Any = None
    ) -> list[Tensor]:
        with counted(f"torchcam.{type(self).__name__}") as call:
            reason = _why_not_masked(self, activations)
            if reason:
                call.leave_to("torchcam", reason)
                return present(self, activations, class_idx, targets)
            call.why = "constant channels share a run"
            functions = None
            if targets is not None:
                functions = _Peer.core._resolve_targets(targets, activations[0].shape[0])
            network = _network(self, activations)

            def scores_of(masked: Tensor, images: Tensor) -> Tensor:
                return self._select_scores(network(masked), images, class_idx, functions)

            found = []
            for layer in activations:
                count, channels = layer.shape[:2]
                if variations is None:
                    scores = _noisy_scores(self, layer, scores_of)
                else:
                    scores = _masked_scores(self, layer, scores_of, variations)
                scores = scores.to(layer.dtype).view(count, channels)
                found.append(torch.softmax(scores, -1))
            return found

    return weights


def _why_not_masked(extractor: Any, activations: Sequence[Tensor]) -> str:
    score_cam = _Peer.activation.ScoreCAM
    for name in _RUNS:
        if name in vars(extractor):
            return f"the object has a {name} of its own"
        if getattr(type(extractor), name) is not getattr(score_cam, name):
            return f"a subclass has its own {name}"
    dims = extractor._input.dim() - 2
    if dims not in ((1, 2, 3) if settings.fix else (2, 3)):
        return "the images are not 2-D or 3-D"
    if not all(a.dim() == dims + 2 and a.is_floating_point() for a in activations):
        return "a layer has other dimensions than the images"
    return ""


def _masks(extractor: Any, activations: Tensor) -> Tensor:
    """Activations (R, *S) in [0, 1], enlarged to masks (R, 1, *extents)."""
    extents = extractor._input.shape[2:]
    masks = ops.upsample(activations, extents, normalize=settings.fix)
    return masks.to(activations.dtype).unsqueeze(1)


def _images(extractor: Any, rows: Tensor) -> Tensor:
    images = extractor._input
    return images if images.shape[0] == 1 else images[rows]


def _masked_scores(
    extractor: Any,
    activations: Tensor,
    scores_of: Callable[[Tensor, Tensor], Tensor],
    variations: _Variations,
) -> Tensor:
    """(N, C), the mean over variations of S(x H_k)."""
    samples = getattr(extractor, "num_samples", 1)
    runs = masked_runs(activations)
    flat = activations.flatten(0, 1)
    dtype = torch.promote_types(flat.dtype, torch.float32)
    scores = torch.zeros(len(runs.rows), dtype=dtype, device=flat.device)
    images_of_runs = runs.images.cpu()
    for chunk in torch.arange(len(runs.rows)).split(extractor.bs):
        images = images_of_runs[chunk]
        masked = _masks(extractor, flat[runs.rows[chunk]]) * _images(extractor, images)
        for varied in variations(masked, samples):
            scores[chunk] += scores_of(varied, images)
    return runs.spread(scores) / samples


def _noisy_scores(
    extractor: Any, activations: Tensor, scores_of: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """(N C,), the mean over samples of S(x (H_k + noise)), with torchcam's draws."""
    count, channels = activations.shape[:2]
    extents = extractor._input.shape[2:]
    flat = activations.flatten(0, 1)
    scores = torch.zeros(
        len(flat), dtype=torch.promote_types(flat.dtype, torch.float32), device=flat.device
    )
    for _ in range(extractor.num_samples):
        noise = extractor._distrib.sample(torch.Size((count, channels, *extents))).flatten(0, 1)
        for start in range(0, len(flat), extractor.bs):
            rows = torch.arange(start, min(start + extractor.bs, len(flat)))
            added = noise[start : start + extractor.bs].unsqueeze(1).to(flat.device)
            masks = _masks(extractor, flat[rows]) + added
            images = rows // channels
            scores[rows] += scores_of(masks * _images(extractor, images), images)
    return scores / extractor.num_samples


_fast_models: WeakKeyDictionary[Any, FastModel] = WeakKeyDictionary()


def _network(extractor: Any, activations: Sequence[Tensor]) -> Callable[[Tensor], Any]:
    """What gives the scores of masked images: a copy with BatchNorm folded, or the fast one.

    The model itself where it is wrapped or has hooks of the user's, or for a few runs.
    """
    model, images = extractor.model, extractor._input
    runs = sum(a.shape[0] * a.shape[1] for a in activations) * getattr(extractor, "num_samples", 1)
    if unwrap(model) is not model or _has_other_hooks(model):
        return model
    if not settings.fast:
        if runs < MANY_RUNS:
            return model
        with _without_hooks(model):
            return folded(model, images[:1])
    fast = _fast_models.get(extractor)
    if fast is None or fast.is_stale:
        with _without_hooks(model):
            fast = FastModel(model, images[:1], (), Options(preferred_dtype(images.device)))
        _fast_models[extractor] = fast
    copied = fast
    return lambda images: copied.model(copied.prepared(images))


def _has_other_hooks(model: nn.Module) -> bool:
    return any(
        not _is_ours(hook)
        for module in model.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks)
        for hook in hooks.values()
    )


@contextmanager
def _without_hooks(model: nn.Module) -> Iterator[None]:
    """torchcam's hooks are no part of a copy: with them extractors would be copied."""
    kept = []
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            if any(map(_is_ours, hooks.values())):
                kept.append((hooks, dict(hooks)))
                for key in [key for key, hook in hooks.items() if _is_ours(hook)]:
                    del hooks[key]
    try:
        yield
    finally:
        for hooks, before in kept:
            hooks.clear()
            hooks.update(before)


def _overlay_mask(present: Replacement) -> Replacement:
    """The colour of mask^2 under the image, blended by PIL."""
    pillow: Any = importlib.import_module("PIL.Image")
    colormaps: Any = importlib.import_module("matplotlib").colormaps

    def overlay(img: Any, mask: Any, colormap: Any = "jet", alpha: float = 0.7) -> Any:
        with counted("torchcam.utils.overlay_mask") as call:
            pictures = isinstance(img, pillow.Image) and isinstance(mask, pillow.Image)
            usual = pictures and img.mode in ("L", "RGB") and isinstance(alpha, float)
            if not usual or not 0 <= alpha < 1 or not math.isfinite(alpha):
                call.leave_to("torchcam", "not an L or RGB image, or an alpha outside [0, 1)")
                return present(img, mask, colormap, alpha)
            if settings.fix and mask.mode == "L":
                mask = pillow.fromarray(np.asarray(mask, np.float32) / 255)
            colors = _colors(colormaps.get_cmap(colormap)) if mask.mode == "F" else None
            if colors is None:
                call.leave_to("torchcam", "the mask or the colormap is not a usual one")
                return present(img, mask, colormap, alpha)
            heat = np.asarray(mask.resize(img.size, resample=pillow.Resampling.BICUBIC))
            levels = heat * heat
            levels *= len(colors)
            if np.isnan(levels.max()):
                call.leave_to("torchcam", "the mask has NaN")
                return present(img, mask, colormap, alpha)
            call.why = "colors from a table"
            np.minimum(levels, len(colors) - 1, out=levels)
            heatmap = pillow.fromarray(colors.take(levels.astype(np.uint8), axis=0))
            return pillow.blend(heatmap, img.convert("RGB"), alpha)

    return overlay


def _colors(colormap: Any) -> Any:
    """(levels, 3) uint8; None where there are too many, or too large a value has its own color."""
    if colormap.N > 256:
        return None
    colors = colormap(np.arange(colormap.N + 1), bytes=True)[:, :3]
    return colors[:-1] if (colors[-1] == colors[-2]).all() else None
