"""One run of a network, in evaluation mode and with hooks, which restores it afterwards.

All changes are undone, also after an error. Threads may run one network side by side: hooks act in
the thread that set them, and evaluation mode ends with the last run that needs it.
"""

from __future__ import annotations

import copy
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastcam.engine.inputs import Inputs

Hooks = Sequence[tuple[nn.Module, Callable[..., Any]]]

_lock: Any = threading.RLock()
"""Held while a loan is taken or given back, and while a network is copied."""


def run(
    model: nn.Module,
    inputs: Inputs,
    hooks: Hooks = (),
    *,
    before: Hooks = (),
    from_images: bool = False,
) -> Any:
    """The model's outputs in evaluation mode, with hooks that are removed after the call.

    Args:
        hooks: forward hooks.
        before: forward pre-hooks, called with the keyword arguments too. The forward hooks of these
            modules run after all others, even those that the model registers during the run.
        from_images: whether grad mode is on from the first instruction, and a torch function mode,
            such as guided backpropagation's, has to see every function.
    """
    loan = Loan(hooks, before)
    grad_mode = torch.is_grad_enabled()
    try:
        try:
            torch.set_grad_enabled(from_images)
            modules = modules_of(model)
            loan.take(modules, functions=from_images)
            with _recurrent_backward(modules):
                if isinstance(inputs, Mapping):
                    return model(**inputs)
                return model(*inputs) if isinstance(inputs, tuple) else model(inputs)
        finally:
            loan.give_back()
            torch.set_grad_enabled(grad_mode)
    finally:  # an interrupt may have ended the first attempt
        loan.give_back()
        torch.set_grad_enabled(grad_mode)


def modules_of(model: nn.Module) -> list[nn.Module]:
    """The same modules as ``model.modules()``, in its order but faster."""
    found: dict[nn.Module, None] = {}
    waiting: list[nn.Module | None] = [model]
    while waiting:
        module = waiting.pop()
        if module is not None and module not in found:
            found[module] = None
            waiting.extend(reversed(module._modules.values()))
    return list(found)


def _recurrent_backward(modules: Iterable[nn.Module]) -> AbstractContextManager[Any]:
    """For networks with recurrent modules on a GPU, a mode in which these have a backward."""
    recurrent = (module for module in modules if isinstance(module, nn.RNNBase))
    on_gpu = any(weight.is_cuda for module in recurrent for weight in module.parameters())
    return RecurrentBackward() if on_gpu else nullcontext()


class RecurrentBackward(TorchFunctionMode):
    """Within the context, recurrent modules in evaluation mode have a backward on a GPU too.

    cuDNN keeps the values for a backward in training mode only, which differs by dropout alone: it
    runs in that mode, without dropout. This affects calls of this thread, not the modules.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in _RECURRENT and torch.is_grad_enabled():
            # (input, state, weights, bias, layers, dropout, training, ...); packed sequences have
            # their batch sizes after the input
            dropout = 6 if isinstance(args[3], (list, tuple)) else 5
            if not args[dropout + 1]:
                args = (*args[:dropout], 0.0, True, *args[dropout + 2 :])
        return func(*args, **(kwargs or {}))


_RECURRENT = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)


class Loan:
    """The changes of one run to a network and to the process, until :meth:`give_back`.

    Every step can be repeated or missing, so that an interrupt at any moment can be cleaned up.

    Args:
        hooks, before: see :func:`run`.
    """

    def __init__(self, hooks: Hooks, before: Hooks = ()) -> None:
        self._hooks = [(module, _in_this_thread(hook)) for module, hook in hooks]
        self._before = [
            (
                module,
                _in_this_thread(_behind_others(hook, [h for m, h in self._hooks if m is module])),
            )
            for module, hook in before
        ]

    def take(self, modules: Sequence[nn.Module] = (), *, functions: bool = False) -> None:
        """Registers the hooks, and switches a model to evaluation mode.

        Args:
            modules: the modules of the model that is about to run.
            functions: whether compiled functions have to run uncompiled.
        """
        _evaluation.enter(self, modules)
        # compiled code would not see the hooks, nor a function mode; a compiled function cannot be
        # told from outside, but without torch._dynamo there is none
        if "torch._dynamo" in sys.modules and (functions or any(map(is_compiled, modules))):
            _eager.enter(self)
        if self._before or functions:
            _plain_checkpoints.enter(self)
        with _lock:
            for module, hook in self._before:
                module.register_forward_pre_hook(hook, with_kwargs=True)
            for module, hook in self._hooks:
                module.register_forward_hook(hook)

    def give_back(self) -> None:
        """Restores everything; further calls have no effect."""
        with _lock:
            for module, hook in self._hooks:
                for key in _keys(module._forward_hooks, hook):
                    del module._forward_hooks[key]
            for module, hook in self._before:
                for key in _keys(module._forward_pre_hooks, hook):
                    module._forward_pre_hooks_with_kwargs.pop(key, None)
                    del module._forward_pre_hooks[key]
        _plain_checkpoints.leave(self)
        _eager.leave(self)
        _evaluation.leave(self)
        while _lock._is_owned():  # an interrupt on the way out of a with block has left it held
            _lock.release()

    def __enter__(self) -> Loan:
        self.take()
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self.give_back()
        finally:
            self.give_back()


def ours(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a hook that is not the user's: see :func:`hooks_of`."""
    hook.of_a_run = True  # type: ignore[attr-defined]
    return hook


def _in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """The hook, silent in other threads."""
    thread = threading.get_ident()

    @ours
    def called(*args: Any) -> Any:
        return hook(*args) if threading.get_ident() == thread else None

    return called


class CopiedResults(TorchFunctionMode):
    """Within the context, deepcopy copies the values of tensors with a graph instead of failing.

    A network holds such a tensor if it has kept one from a call, or if a weight is computed.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            return args[0].detach().clone()
        return func(*args, **(kwargs or {}))


def copied(model: nn.Module) -> nn.Module:
    """A deep copy, without the hooks of runs in other threads."""
    with _lock, CopiedResults():
        made = copy.deepcopy(model)
    for module in made.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if _is_ours(hook)]:
                module._forward_pre_hooks_with_kwargs.pop(key, None)
                del hooks[key]
    return made


def hooks_of(module: nn.Module) -> dict[int, Any]:
    """A module's forward hooks and pre-hooks, without those of runs, in other threads too."""
    found = [*list(module._forward_hooks.items()), *list(module._forward_pre_hooks.items())]
    return {key: hook for key, hook in found if not _is_ours(hook)}


def _is_ours(hook: Any) -> bool:
    return getattr(hook, "of_a_run", False)


def _behind_others(hook: Callable[..., Any], after: Sequence[Any]) -> Callable[..., Any]:
    """The pre-hook, which also moves forward hooks of its module after all others."""

    def called(module: nn.Module, *args: Any) -> Any:
        hung: OrderedDict[int, Any] = module._forward_hooks  # type: ignore[assignment]
        for each in after:
            for key in _keys(hung, each):
                hung.move_to_end(key)
        return hook(module, *args)

    return called


def _keys(hooks: Mapping[int, Any], hook: Any) -> list[int]:
    return [key for key, each in list(hooks.items()) if each is hook]


FLAGS = ("training", "use_nested_tensor")
"""The flags that runs switch off in modules: training mode, and the nested tensors of
nn.TransformerEncoder, which have no shape."""


class _Evaluation:
    """Flags of modules that are off, and the runs that need them so.

    They are set one by one: a user's own train() is not called.
    """

    def __init__(self) -> None:
        self._runs: dict[tuple[int, str], tuple[nn.Module, set[object]]] = {}  # by module's id

    def enter(self, run: object, modules: Iterable[nn.Module]) -> None:
        with _lock:
            for module in modules:
                # looking up a missing attribute is slow
                for flag in FLAGS if isinstance(module, nn.TransformerEncoder) else FLAGS[:1]:
                    if self._runs and (id(module), flag) in self._runs:
                        self._runs[id(module), flag][1].add(run)
                    elif getattr(module, flag, False) is True:
                        self._runs[id(module), flag] = module, {run}
                        setattr(module, flag, False)

    def leave(self, run: object) -> None:
        if not self._runs:
            return
        with _lock:
            for key, (module, runs) in list(self._runs.items()):
                if runs == {run}:
                    setattr(module, key[1], True)
                    del self._runs[key]
                else:
                    runs.discard(run)


class _Switch:
    """A setting of the process that the first run switches on and the last one switches off.

    Args:
        on, off: functions that switch it; both may be called again after an interrupt.
    """

    def __init__(self, on: Callable[[], None], off: Callable[[], None]) -> None:
        self._on, self._off = on, off
        self.runs: dict[object, int] = {}
        """The runs that need it, and their threads."""

    def enter(self, run: object) -> None:
        with _lock:
            self.runs[run] = threading.get_ident()
            if len(self.runs) == 1:
                self._on()

    def leave(self, run: object) -> None:
        if run not in self.runs:
            return
        with _lock:
            if len(self.runs) == 1:
                self._off()
            self.runs.pop(run, None)


_stances: list[Any] = []


def _run_eagerly() -> None:
    """Makes compiled code run uncompiled, in all threads."""
    _stances.append(torch.compiler.set_stance("force_eager"))


def _run_compiled() -> None:
    for stance in _stances:
        stance.__exit__(None, None, None)
    _stances.clear()


_replaced: dict[str, Any] = {}


def _call_plainly() -> None:
    """Checkpoints in threads that record call their function and keep its intermediate values.

    A reentrant checkpoint has no graph for :func:`torch.autograd.grad`. Any other runs its function
    again in the backward, when hooks and evaluation mode are gone.
    """
    home = vars(torch.utils.checkpoint)
    _replaced.update({name: home[name] for name in _CHECKPOINTS if name in home})
    for name, replaced in _replaced.items():
        home[name] = _CHECKPOINTS[name](replaced)


def _checkpoint_again() -> None:
    vars(torch.utils.checkpoint).update(_replaced)
    _replaced.clear()


class _PlainFunction:
    """Replaces the reentrant checkpoint's autograd function."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def __getattr__(self, name: str) -> Any:
        return getattr(self._function, name)

    def apply(self, function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        if threading.get_ident() in _plain_checkpoints.runs.values():
            return function(*args)
        return self._function.apply(function, preserve, *args)


def _plain_generator(generator: Any) -> Any:
    """Replaces the generator of the other checkpoint, which wraps the function in its yield."""

    def checkpoint(*args: Any, **kwargs: Any) -> Iterator[None]:
        if threading.get_ident() in _plain_checkpoints.runs.values():
            return (None for _ in range(1))
        return generator(*args, **kwargs)

    return checkpoint


_CHECKPOINTS: dict[str, Callable[[Any], Any]] = {
    "CheckpointFunction": _PlainFunction,
    "_checkpoint_without_reentrant_generator": _plain_generator,
    "_checkpoint_without_reentrant_generator_impl": _plain_generator,
}
_evaluation = _Evaluation()
_eager = _Switch(_run_eagerly, _run_compiled)
_plain_checkpoints = _Switch(_call_plainly, _checkpoint_again)


def is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile wraps a module or a part of it."""
    own = vars(module)
    if "_orig_mod" in module._modules or own.get("_compiled_call_impl") is not None:
        return True
    forward = own.get("forward") or getattr(type(module), "forward", None)
    return hasattr(forward, "_torchdynamo_orig_callable")


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module inside torch.compile, DataParallel and DistributedDataParallel."""
    while True:
        if "_orig_mod" in model._modules:
            model = model.get_submodule("_orig_mod")
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            return model
