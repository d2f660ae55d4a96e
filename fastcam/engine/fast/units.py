"""Parts of a network in a lower precision and compiled."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastcam.engine.fast.batch_sizes import BatchSizes, filled
from fastcam.engine.values import rebuild, tensors_of
from fastcam.errors import first_line


class Unit:
    """The forward of a part of the network, in a precision of its own and compiled."""

    def __init__(
        self,
        name: str,
        modules: Sequence[nn.Module],
        forward: Callable[..., Any],
        dtype: torch.dtype | None,
        restored: torch.dtype | None = None,
    ) -> None:
        """Lowers the modules to ``dtype``; what comes out is brought to ``restored``."""
        self.name = name
        self.modules = modules
        self.state = "not compiled: it has no parameters"
        self._forward = forward
        self._dtype = dtype
        self._restored = None if dtype is None else restored
        self._compiled: Callable[..., Any] | None = None
        self._ways: list[bool] = []  # fullgraph=
        self._sizes: dict[Any, BatchSizes] = {}
        self._ready: set[Any] = set()
        if dtype is not None:
            for module in modules:
                module.to(dtype)

    def allow_compilation(self) -> None:
        """From the next call on, unless there is nothing to win."""
        if any(map(has_parameters, self.modules)):
            self.state = "not called yet"
            self._ways = [False, True]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._dtype is not None:
            args, kwargs = rebuild((args, kwargs), _cast(self._dtype))
        returned = self._batched(args, kwargs)
        return returned if self._restored is None else rebuild(returned, _cast(self._restored))

    def _batched(self, args: Any, kwargs: Any) -> Any:
        """Compiled where the batch size is worth it, filled up to one that is."""
        given = tensors_of((args, kwargs))
        # a dispatch mode is there to see every operator, and compiled code has none to show
        watched = torch._C._len_torch_dispatch_stack() > 0
        if watched or not self._ways or not given or given[0].dim() == 0:
            return self._forward(*args, **kwargs)
        count = given[0].shape[0]
        rows = [tensor.dim() > 0 and tensor.shape[0] == count for tensor in given]
        kind = tuple((t.shape[row:], t.dtype, t.device) for t, row in zip(given, rows, strict=True))
        size = self._sizes.setdefault(kind, BatchSizes()).choose(count)
        if size is None:
            return self._forward(*args, **kwargs)
        if size == count:
            return self._run(args, kwargs, (kind, size))

        def fill(tensor: Tensor) -> Tensor:
            return filled(tensor, size) if tensor.dim() and tensor.shape[0] == count else tensor

        def cut(tensor: Tensor) -> Tensor:
            return tensor[:count] if tensor.dim() and tensor.shape[0] == size else tensor

        args, kwargs = rebuild((args, kwargs), fill)
        return rebuild(self._run(args, kwargs, (kind, size)), cut)

    def _run(self, args: Any, kwargs: Any, key: Any) -> Any:
        """By what torch.compile makes of it: in one graph, in several, or as it is."""
        while self._ways:
            try:
                if self._compiled is None:
                    self._compiled = _compiled(self._forward, fullgraph=self._ways[-1])
                if key in self._ready:
                    return self._compiled(*args, **kwargs)
                with _compiling, _freezing():
                    returned = self._compiled(*args, **kwargs)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # a compiler's, of any kind
                reason = first_line(error)
                self._compiled = None
                self._ways.pop()
                self.state = f"not compiled: {reason}"
            else:
                self._ready.add(key)
                whole = self._ways[-1]
                self.state = (
                    "compiled"
                    if whole
                    else self.state.replace("not compiled", "compiled in parts", 1)
                )
                return returned
        return self._forward(*args, **kwargs)


@dataclass(frozen=True)
class _Sequence:
    """What nn.Sequential does; a function would keep its modules where the network is copied."""

    parts: Sequence[Callable[[Any], Any]]

    def __call__(self, value: Any) -> Any:
        for part in self.parts:
            value = part(value)
        return value


def _compiled(forward: Callable[..., Any], fullgraph: bool) -> Callable[..., Any]:
    def unit(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    # torch.compile counts recompilations by code object: each unit gets one of its own
    unit.__code__ = unit.__code__.replace(co_name=f"unit_{id(unit)}")
    return torch.compile(unit, dynamic=False, fullgraph=fullgraph)


_compiling = threading.Lock()  # threads with copies of one network compile it once


def _freezing() -> Any:
    """While it lives: what is compiled takes weights as constants, in the layout it likes best.

    As an option of torch.compile it would have no effect.
    """
    import torch._inductor.config as inductor

    return inductor.patch(freezing=True)


def replace_module(
    module: nn.Module, name: str, dtype: torch.dtype | None, restored: torch.dtype | None = None
) -> Unit:
    """A unit in the place of a module's forward; hooks on the module stay outside of it."""
    unit = Unit(name, [module], module.forward, dtype, restored)
    module.forward = unit
    return unit


def replace_first(parent: nn.Module, names: Sequence[str], dtype: torch.dtype | None) -> Unit:
    """One unit in the place of the first children of an nn.Sequential."""
    children = list(parent.children())
    first, rest = children[: len(names)], children[len(names) :]
    unit = Unit(f"{names[0]} to {names[-1]}", first, nn.Sequential(*first), dtype)

    parent.forward = _Sequence([unit, *rest])
    return unit


def keep_precision(module: nn.Module, dtype: torch.dtype) -> None:
    """Brings the inputs of a module that is in no unit to what its parameters have."""

    def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return rebuild((args, kwargs), _cast(dtype))

    module.register_forward_pre_hook(hook, with_kwargs=True)


def _cast(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor


def has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
