"""Trial runs of a network, which leave its state unchanged."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastcam.engine.inputs import Inputs
from fastcam.engine.running import FLAGS, Hooks, hooks_of, run

OF_EVERY_MODULE = frozenset(vars(nn.Module())) | set(FLAGS)
_CONTAINERS = (list, dict, set, deque)


def trial(
    model: nn.Module,
    inputs: Inputs,
    hooks: Hooks = (),
    *,
    before: Hooks = (),
    from_images: bool = False,
) -> Any:
    """As :func:`fastcam.engine.running.run`, but restores the model and the random state."""
    with untouched(model):
        return run(model, inputs, hooks, before=before, from_images=from_images)


def raise_out_of_memory(error: Exception) -> None:
    """Raises the error again if memory ran out, which says nothing about the network."""
    exhausted = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    if exhausted or "can't allocate memory" in str(error):
        raise error


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Restores the model's state and the random state at the end of the context."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    state = State(model)
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        state.restore()


class State:
    """Buffers and attributes of a network's modules, which may change from call to call.

    If the model registers hooks on itself, the hooks and the flags that it sets with them stay.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = [_Module(module) for module in model.modules()]

    def restore(self) -> None:
        hooked = any(each.has_other_hooks for each in self._modules)
        for each in self._modules:
            each.restore(flags=not hooked)


class _Module:
    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._hooks = hooks_of(module).keys()
        attributes = {k: v for k, v in list(vars(module).items()) if k not in OF_EVERY_MODULE}
        buffers = dict(module._buffers.items())
        self._parts = [(vars(module), attributes)]
        if not isinstance(module, torch.jit.ScriptModule):  # its buffers have fixed places
            self._parts.append((module._buffers, buffers))
        values = [*buffers.values(), *attributes.values()]
        self._contents = [(v, v.copy()) for v in values if isinstance(v, _CONTAINERS)]
        for _, content in self._contents:
            values += content.values() if isinstance(content, dict) else content
        self._tensors = [
            (v, v._version, v.detach().clone())
            for v in values
            if isinstance(v, Tensor) and not v.is_inference()
        ]

    @property
    def has_other_hooks(self) -> bool:
        return hooks_of(self._module).keys() != self._hooks

    def restore(self, flags: bool) -> None:
        """Restores the module; attributes other than tensors only if ``flags``."""
        for part, before in self._parts:
            now = [key for key in part if key in before or key not in OF_EVERY_MODULE]
            for key in {*now, *before}:
                old, new = before.get(key), part.get(key)
                if not (flags or isinstance(old, Tensor) or isinstance(new, Tensor)):
                    continue
                if key not in before:
                    del part[key]
                elif old is not new or key not in part:
                    part[key] = old
        for container, content in self._contents if flags else ():
            if len(container) != len(content) or any(
                a is not b for a, b in zip(_parts(container), _parts(content), strict=True)
            ):
                container.clear()
                getattr(container, "extend" if hasattr(container, "extend") else "update")(content)
        for tensor, version, value in self._tensors:
            if tensor._version != version:
                tensor.data.copy_(value)


def _parts(container: Any) -> list[Any]:
    return list(container.values() if isinstance(container, dict) else container)
