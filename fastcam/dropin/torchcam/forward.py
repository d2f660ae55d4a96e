"""The run of the network, which is the user's: recorded from the first target layer up alone."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from fastcam.dropin.calls import counted
from fastcam.dropin.settings import settings
from fastcam.dropin.takeover import Replacement
from fastcam.dropin.torchcam.peer import Peer, is_own
from fastcam.engine.graph import Start, started
from fastcam.engine.inputs import first_row
from fastcam.engine.recorder import Recorder
from fastcam.engine.running import Loan, is_compiled, unwrap
from fastcam.engine.start import closest_start, start_at_inputs
from fastcam.engine.trials import untouched
from fastcam.engine.values import tensors_of


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
        if torch.compiler.is_compiling() or not Peer.active:
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
        with without_hooks(model):
            try:
                start = closest_start(attempt, layers)
            except Exception:  # what is wrong, the user's own run says
                start = Start("model")
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
        changed = Peer.run.changed() if Peer.run is not None else None
        if changed is not None:
            return changed
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
                if hooks and not all(map(is_ours, hooks.values())):
                    return "the model has other hooks"
        if _library_runs.get():
            return ""
        if any(tensor.requires_grad for tensor in given):
            return "the input requires a gradient"
        attention = isinstance(self.extractor, getattr(Peer.gradient, "LeGrad", ()))
        if not (attention or settings.fix or any(p.requires_grad for p in model.parameters())):
            return "no parameter requires a gradient"
        return ""


def _on_the_stack(frame: FrameType) -> bool:
    current: FrameType | None = sys._getframe(1)
    while current is not None and current is not frame:
        current = current.f_back
    return current is not None


def is_ours(hook: Any) -> bool:
    """Whether a hook is fastcam's, or that of one of torchcam's own classes."""
    owner = getattr(getattr(hook, "func", hook), "__self__", None)
    if isinstance(owner, Peer.core._CAM):
        return is_own(type(owner))
    return isinstance(owner, Forward)


def has_other_hooks(model: nn.Module) -> bool:
    return any(
        not is_ours(hook)
        for module in model.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks)
        for hook in hooks.values()
    )


@contextmanager
def without_hooks(model: nn.Module) -> Iterator[None]:
    """torchcam's hooks, and ours, are not there meanwhile."""
    kept = []
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            if any(map(is_ours, hooks.values())):
                kept.append((hooks, dict(hooks)))
                for key in [key for key, hook in hooks.items() if is_ours(hook)]:
                    del hooks[key]
    try:
        yield
    finally:
        for hooks, before in kept:
            # in their order, without those that the model removed; then those that it added
            now = {key: hook for key, hook in before.items() if is_ours(hook) or key in hooks}
            now |= hooks
            hooks.clear()
            hooks.update(now)


def begin_recording(present: Replacement) -> Replacement:
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        present(self, *args, **kwargs)
        if is_own(type(self)):
            self._forward_by_fastcam = forward = Forward(self)
            self.hook_handles += [
                self.model.register_forward_pre_hook(forward.begin, with_kwargs=True),
                self.model.register_forward_hook(forward.end, with_kwargs=True, always_call=True),
                forward,
            ]

    return init


def hook_a(present: Replacement) -> Replacement:
    """Lets the graph begin at the layer; what the model goes on with is what torchcam keeps."""

    def hook(self: Any, module: nn.Module, args: Any, output: Any, idx: int = 0) -> Any:
        begun = output
        if self._hooks_enabled and isinstance(self, Peer.gradient._GradCAM):
            begun = _with_graph(output)
        present(self, module, args, begun, idx)
        return None if begun is output else begun

    return hook


def backward_for_maps(present: Replacement) -> Replacement:
    """The gradient of maps, for which 0.4.1 calls ``backward()``: no reason for a warning."""

    def backprop(self: Any, *args: Any, **kwargs: Any) -> None:
        _Backwards.of_maps += 1
        try:
            present(self, *args, **kwargs)
        finally:
            _Backwards.of_maps -= 1

    return backprop


class _Backwards:
    of_maps = 0
    """Those that go on; hooks are called in threads of autograd's own."""


def _warn_of_the_short_graph(gradient: Tensor) -> None:
    if _Backwards.of_maps:
        return
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


def prepare_attention(present: Replacement) -> Replacement:
    """LeGrad's graph begins at the first block's attention."""

    def prepare(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self._hooks_enabled and _running.run is not None:
            torch.set_grad_enabled(True)
        return present(self, *args, **kwargs)

    return prepare


def recorded(extractor: Any) -> str:
    """From where the last forward was recorded, for the report."""
    forward = getattr(extractor, "_forward_by_fastcam", None)
    if forward is None:
        return ""
    if forward.whole:
        return f"; the graph is whole: {forward.whole}"
    return "; the graph begins at the first target layer"


@contextmanager
def library_run() -> Iterator[None]:
    token = _library_runs.set(True)
    try:
        yield
    finally:
        _library_runs.reset(token)


def as_own_forward(present: Replacement) -> Replacement:
    """A metric's update: its forward is its own, and it counts as one call."""

    def update(self: Any, *args: Any, **kwargs: Any) -> Any:
        with counted(f"torchcam.{type(self).__name__}") as call, library_run():
            call.why = "maps by fastcam, runs of changed images by torchcam"
            return present(self, *args, **kwargs)

    return update


def explain(present: Replacement) -> Replacement:
    def explain(*args: Any, **kwargs: Any) -> Any:
        with counted("torchcam.explain") as call, library_run():
            call.why = "maps by fastcam"
            return present(*args, **kwargs)

    return explain
