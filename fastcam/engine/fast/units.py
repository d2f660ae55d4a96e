"""Parts of a network that run in a lower precision and compiled."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastcam.engine.fast.batch_sizes import BatchSizes, filled
from fastcam.engine.trials import raise_out_of_memory
from fastcam.engine.values import rebuild, tensors_of
from fastcam.errors import first_line


class Unit:
    """The forward of a part of the network, in its own precision and compiled."""

    def __init__(
        self,
        name: str,
        modules: Sequence[nn.Module],
        forward: Callable[..., Any],
        dtype: torch.dtype | None,
        restored: torch.dtype | None = None,
    ) -> None:
        """Lowers the modules to ``dtype`` and casts their outputs to ``restored``."""
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
        """Compiles from the next call on, if the unit has parameters."""
        if any(map(has_parameters, self.modules)):
            self.state = "not called yet"
            self._ways = [False, True]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._dtype is not None:
            args, kwargs = rebuild((args, kwargs), _cast(self._dtype))
        returned = self._batched(args, kwargs)
        return returned if self._restored is None else rebuild(returned, _cast(self._restored))

    def _batched(self, args: Any, kwargs: Any) -> Any:
        """Runs compiled if the batch size is worth it, or padded to a size that is."""
        given = tensors_of((args, kwargs))
        # a dispatch mode has to see every operator, which compiled code hides
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
        """Runs compiled in one graph, else in several, else uncompiled."""
        while self._ways:
            try:
                if self._compiled is None:
                    self._compiled = _compiled(self._forward, fullgraph=self._ways[-1])
                if key in self._ready:
                    return self._compiled(*args, **kwargs)
                with _compiling, _freezing():
                    returned = self._compiled(*args, **kwargs)
            except Exception as error:  # of any kind, from a compiler
                raise_out_of_memory(error)
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
    """As nn.Sequential; unlike a function, it is copied together with the network."""

    parts: Sequence[Callable[[Any], Any]]

    def __call__(self, value: Any) -> Any:
        for part in self.parts:
            value = part(value)
        return value


def _compiled(forward: Callable[..., Any], fullgraph: bool) -> Callable[..., Any]:
    def unit(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    # torch.compile counts recompilations by code object: each unit gets a separate one
    unit.__code__ = unit.__code__.replace(co_name=f"unit_{id(unit)}")
    return torch.compile(unit, dynamic=False, fullgraph=fullgraph)


_compiling = threading.Lock()  # if threads have copies of one network, it is compiled once


def _freezing() -> Any:
    """Code compiled within it takes weights as constants, in the layout that suits it best.

    As an option of torch.compile, freezing would have no effect.
    """
    import torch._inductor.config as inductor

    return inductor.patch(freezing=True)


def replace_module(
    module: nn.Module, name: str, dtype: torch.dtype | None, restored: torch.dtype | None = None
) -> Unit:
    """Replaces a module's forward by a unit; hooks on the module stay outside of it."""
    unit = Unit(name, [module], module.forward, dtype, restored)
    module.forward = unit
    return unit


def replace_first(parent: nn.Module, names: Sequence[str], dtype: torch.dtype | None) -> Unit:
    """Replaces the first children of an nn.Sequential by one unit."""
    children = list(parent.children())
    first, rest = children[: len(names)], children[len(names) :]
    unit = Unit(f"{names[0]} to {names[-1]}", first, nn.Sequential(*first), dtype)

    parent.forward = _Sequence([unit, *rest])
    return unit


def keep_precision(module: nn.Module, dtype: torch.dtype) -> None:
    """Casts the inputs of a module outside of all units to ``dtype``, that of its parameters."""

    def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return rebuild((args, kwargs), _cast(dtype))

    module.register_forward_pre_hook(hook, with_kwargs=True)


def _cast(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor


def has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
