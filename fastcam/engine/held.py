"""Tensors with a graph that a network keeps beyond a run, and how to take the graph from them."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import Any, NamedTuple
from weakref import ReferenceType

from torch import Tensor, nn

from fastcam.engine.running import modules_of
from fastcam.engine.trials import OF_EVERY_MODULE

_PLAIN = (bool, int, float, str, bytes, type(None), ModuleType)


def let_go(started: list[ReferenceType[Tensor]]) -> None:
    """Takes the graph from tensors that the model, its hooks or its user may have kept.

    Empties the list as it goes, so that what an interrupt leaves is the next call's to do.
    """
    while started:
        tensor = started[-1]()
        if tensor is not None and not tensor._is_view():
            tensor.detach_()
        started.pop()


class Held(NamedTuple):
    """A tensor with a graph that a model holds, and where."""

    place: Any
    """A mapping of attributes or buffers, or another object that holds it."""
    name: Any
    tensor: Tensor

    def let_go(self) -> None:
        """Takes the graph from it."""
        if not self.tensor._is_view():
            self.tensor.detach_()
        elif not isinstance(self.place, tuple):
            self.place[self.name] = self.tensor.detach()


def held_with_graph(model: nn.Module) -> list[Held]:
    """The tensors with a graph in the attributes, buffers and containers of modules."""
    found: list[Held] = []
    met: set[int] = set()

    def look(place: Any, parts: Iterable[tuple[Any, Any]]) -> None:
        for name, value in parts:
            if isinstance(value, Tensor):
                if value.requires_grad and not _is_leaf(value):
                    found.append(Held(place, name, value))
            elif not isinstance(value, _PLAIN) and id(value) not in met:
                met.add(id(value))
                if isinstance(value, dict):
                    look(value, list(value.items()))
                elif isinstance(value, (list, tuple)):
                    look(value, list(enumerate(value)))
                elif hasattr(value, "__dict__") and not callable(value):
                    look(vars(value), list(vars(value).items()))

    for module in modules_of(model):
        own = vars(module)
        kept = [(name, own[name]) for name in list(own) if name not in OF_EVERY_MODULE]
        look(own, kept)
        look(module._buffers, list(module._buffers.items()))
    return found


def _is_leaf(tensor: Tensor) -> bool:
    return not tensor._is_view() and tensor.grad_fn is None
