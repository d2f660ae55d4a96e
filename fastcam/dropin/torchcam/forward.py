"""Records the user's run of the network only from the first target layer up."""

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
from fastcam.dropin.starts import attempts, start_or_none
from fastcam.dropin.takeover import Replacement
from fastcam.dropin.torchcam.peer import Peer, is_own
from fastcam.engine.graph import Start, started
from fastcam.engine.inputs import first_row
from fastcam.engine.recorder import Recorder
from fastcam.engine.running import is_compiled, unwrap
from fastcam.engine.start import closest_start
from fastcam.engine.values import tensors_of


@dataclass
class _Run:
    """A forward pass that began without a graph."""

    owner: Forward
    frame: FrameType
    """The caller of the hook that began it."""


class _Running(threading.local):
    run: _Run | None = None


_running = _Running()
_library_runs: ContextVar[bool] = ContextVar("library_runs", default=False)
"""Whether torchcam itself runs the network, so the gradient of its inputs is not needed."""


@dataclass(eq=False)
class Forward:
    """Hooks of one extractor on its model that avoid a graph below the first target layer.

    The model's pre-hook turns grad mode off, the first target layer turns it on, and the model's
    hook restores it. A run that may serve another purpose is recorded as usual, and :attr:`whole`
    gives the reason. If the output has no graph because the model sets grad modes itself, it is
    computed again, and the model is recorded as usual from then on.
    """

    extractor: Any
    whole: str = field(default="before any forward", init=False)
    """Why the last graph covers the whole model, or "" if it does not."""
    start: Start | None = field(default=None, init=False)
    """Where a graph may start; determined by the first forward pass that succeeds."""

    def begin(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        """The pre-hook."""
        if torch.compiler.is_compiling() or not Peer.active:
            return
        run = _running.run
        if run is not None and _on_the_stack(run.frame):
            self.whole = ""
            return
        if run is not None:  # interrupted by Ctrl-C, after which no hook runs
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
            failed = "a run on one image failed" if self.start is None else ""
            self.whole = failed or self._why_whole(model, given)
        if not self.whole:
            _running.run = _Run(self, sys._getframe(1))
            torch.set_grad_enabled(False)

    def end(self, model: nn.Module, args: Any, kwargs: Any, outputs: Any) -> Any:
        """The forward hook; also called after an exception."""
        run = _running.run
        if run is None or run.owner is not self:
            return None
        self.restore()
        found = tensors_of(outputs)
        if not found or any(tensor.requires_grad for tensor in found):
            return None
        self.start = Start("model")
        return model(*args, **kwargs)

    def _find_start(self, model: nn.Module, args: Any, kwargs: Any) -> Start | None:
        """Determines the start by runs on one image without torchcam's hooks; None if they fail."""
        one = first_row((args, kwargs))
        run = attempts(lambda given: model(*given[0], **given[1]), one, model)
        recorders: list[Recorder] = []

        def attempt(recorder: Recorder, whole: bool) -> Any:
            recorders.append(recorder)
            return run(recorder, whole)

        modules = self.extractor.submodule_dict
        layers = {name: modules[name] for name in self.extractor.target_names}
        with without_hooks(model):
            start = start_or_none(lambda: closest_start(attempt, layers))
        passed_on = any(each.passing_on or each.held for each in recorders)
        return Start("model") if passed_on else start

    def restore(self) -> None:
        """Turns grad mode on again if this object turned it off."""
        if _running.run is not None and _running.run.owner is self:
            _running.run = None
            torch.set_grad_enabled(True)

    def remove(self) -> None:
        """Acts as the last of an extractor's hook handles."""
        self.restore()

    def _why_whole(self, model: nn.Module, given: Sequence[Tensor]) -> str:
        changed = Peer.run.changed() if Peer.run is not None else None
        if changed is not None:
            return changed
        if self.start is not None and self.start.place == "model":
            return "the model sets grad modes itself, or a layer returns its input"
        if self.start is not None and self.start.place == "layer":
            return "an intermediate result of the layer is used later"
        if unwrap(model) is not model:
            return "the model is compiled or parallel"
        may_be_compiled = "torch._dynamo" in sys.modules
        for module in self.extractor.submodule_dict.values():
            state = vars(module)  # ten times as fast as a module's attributes
            if state.get("training", True):
                return "the model, or a part of it, is in training mode or TorchScript"
            if "forward" in state:  # it may count its runs
                return "a module overrides forward"
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
    """Whether a hook belongs to fastcam or to one of torchcam's own classes."""
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
    """Removes torchcam's and fastcam's hooks for the duration of the block."""
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
            # the old hooks in their order, except those that the model removed; then new ones
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
    """Starts the graph at the layer; torchcam and the model then use the same tensor."""

    def hook(self: Any, module: nn.Module, args: Any, output: Any, idx: int = 0) -> Any:
        begun = output
        if self._hooks_enabled and isinstance(self, Peer.gradient._GradCAM):
            begun = _with_graph(output)
        present(self, module, args, begun, idx)
        return None if begun is output else begun

    return hook


def backward_for_maps(present: Replacement) -> Replacement:
    """Suppresses the warning for the gradients of maps, for which 0.4.1 calls ``backward()``."""

    def backprop(self: Any, *args: Any, **kwargs: Any) -> None:
        _Backwards.of_maps += 1
        try:
            present(self, *args, **kwargs)
        finally:
            _Backwards.of_maps -= 1

    return backprop


class _Backwards:
    of_maps = 0
    """The number in progress; global, because autograd calls hooks in its own threads."""


def _warn_of_the_short_graph(gradient: Tensor) -> None:
    if _Backwards.of_maps:
        return
    warnings.warn(
        "fastcam.dropin: this backward() computes no gradient for parameters at and below the "
        "target layer, because the graph begins there; to train, put the model into training "
        "mode, or call the extractor's disable_hooks() before the model",
        stacklevel=2,
    )


def _with_graph(output: Any) -> Any:
    """The output of a layer as the start of a graph."""
    if _running.run is None:
        return output
    torch.set_grad_enabled(True)
    if not isinstance(output, Tensor) or output.requires_grad:
        return output
    # maps need the gradients at the layers, not those passed further down
    return started(output, same=True, passed=_warn_of_the_short_graph)


def prepare_attention(present: Replacement) -> Replacement:
    """Starts LeGrad's graph at the first block's attention."""

    def prepare(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self._hooks_enabled and _running.run is not None:
            torch.set_grad_enabled(True)
        return present(self, *args, **kwargs)

    return prepare


def recorded(extractor: Any) -> str:
    """Where the graph of the last forward pass begins, for the report."""
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
    """A metric's update, which runs the network itself and counts as one call."""

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
