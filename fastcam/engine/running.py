"""One run of a network, in evaluation mode and with hooks, which leaves it as it was."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from fastcam.engine.inputs import Inputs

Hooks = Sequence[tuple[nn.Module, Callable[..., Any]]]


def run(
    model: nn.Module,
    inputs: Inputs,
    hooks: Hooks,
    *,
    from_images: bool = False,
) -> Any:
    """What the model returns in evaluation mode, with forward hooks; both end with the call.

    Args:
        from_images: whether the graph starts at the images, and a torch function mode, such as
            guided backpropagation's, has to see every function.
    """
    with ExitStack() as undo:
        undo.enter_context(torch.set_grad_enabled(from_images))
        undo.enter_context(_evaluation(model))
        # compiled code would not see the hooks, nor a function mode; a compiled function cannot be
        # told from outside, but without torch._dynamo there is none
        if any(map(is_compiled, model.modules())) or (
            from_images and "torch._dynamo" in sys.modules
        ):
            undo.enter_context(_eager())
        for module, hook in hooks:
            undo.callback(module.register_forward_hook(hook).remove)
        if isinstance(inputs, Mapping):
            return model(**inputs)
        return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode, then back in its own, without calling the user's train()."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile stands before or in a module."""
    if "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None:
        return True
    return hasattr(getattr(module, "forward", None), "_torchdynamo_orig_callable")


_eager_lock = threading.Lock()
_eager_runs = 0
_eager_undo = ExitStack()


@contextmanager
def _eager() -> Iterator[None]:
    """Runs compiled code eagerly.

    The stance is one for all threads: the first run sets it and the last one puts it back.
    """
    global _eager_runs
    with _eager_lock:
        if _eager_runs == 0:
            _eager_undo.enter_context(torch.compiler.set_stance("force_eager"))
        _eager_runs += 1
    try:
        yield
    finally:
        with _eager_lock:
            _eager_runs -= 1
            if _eager_runs == 0:
                _eager_undo.close()


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module inside torch.compile, DataParallel and DistributedDataParallel."""
    while True:
        if "_orig_mod" in model._modules:
            model = model.get_submodule("_orig_mod")
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            return model
