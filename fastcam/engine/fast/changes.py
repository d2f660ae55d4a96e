"""Whether a network was changed since it was copied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fastcam.engine.fast.copies import copied
from fastcam.engine.inputs import Inputs
from fastcam.engine.running import hooks_of, modules_of, run
from fastcam.engine.trials import OF_EVERY_MODULE
from fastcam.engine.values import version

_PLAIN = {type(None), bool, int, float, str}
_Place = tuple[int, str]
"""The number of a module, and the name of an attribute."""


class Snapshot:
    """What a network is made of and what its attributes hold, to be compared with later.

    Of writes through ``.data``, which PyTorch does not count, it notices only those on a CPU to a
    whole tensor.

    Args:
        model: the network.
        inputs: of one image, for a run that shows which attributes a run writes.
    """

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        self._model, self._inputs = model, inputs
        self._parts, self._versions = self._parts_and_versions()
        self._settings = _settings(model)
        self._written: set[_Place] | None = None  # the attributes that runs write to

    @property
    def parts_changed(self) -> bool:
        """Whether parameters, buffers, modules, hooks or forwards were exchanged or written to."""
        parts, versions = self._parts_and_versions()
        same = len(parts) == len(self._parts) and all(
            now is then for now, then in zip(parts, self._parts, strict=True)
        )
        return not same or versions != self._versions

    @property
    def attributes_changed(self) -> bool:
        """Whether other attributes were, except those that the network itself writes."""
        changed = _differences(self._settings, _settings(self._model))
        if changed and self._written is None:
            self._written = _written(self._model, self._inputs)
        return not changed <= (self._written or set())

    def _parts_and_versions(self) -> tuple[list[Any], list[Any]]:
        """What the network is made of, and how often and by which hooks that was changed."""
        parts: list[Any] = []
        versions: list[Any] = []
        for module in modules_of(self._model):
            parts += module, vars(module).get("forward")
            versions.append(tuple(hooks_of(module)))
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None and not tensor.is_inference():
                    parts.append(tensor)
                    versions += _state_of(tensor)
        return parts, versions


def _settings(model: nn.Module) -> dict[_Place, Any]:
    """The attributes of all modules that are no module's own, to be compared with later ones."""
    met: set[int] = set()
    return {
        (number, name): value if type(value) in _PLAIN else _comparable(value, met)
        for number, module in enumerate(modules_of(model))
        for name, value in list(vars(module).items())
        if name not in OF_EVERY_MODULE
    }


def _comparable(value: Any, met: set[int], inside: bool = False) -> Any:
    """Something that compares equal until somebody writes to the value or to what it holds.

    Args:
        met: the objects that have been looked into already.
        inside: whether this is held by another object, of which only values and containers count.
    """
    if type(value) in _PLAIN or (type(value) is tuple and {*map(type, value)} <= _PLAIN):
        return value
    if isinstance(value, Tensor):
        return tuple(value.shape), *_state_of(value)
    parts: Any = ()
    if isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, (tuple, list)):
        parts = enumerate(value)
    elif not inside and not callable(value):
        parts = vars(value).items() if hasattr(value, "__dict__") else ()
    if id(value) in met:
        return id(value)
    met.add(id(value))
    return id(value), *((key, _comparable(part, met, True)) for key, part in list(parts))


def _state_of(tensor: Tensor) -> tuple[int, int, str]:
    """Its memory, how often it was written to, and a value."""
    value = ""
    if tensor.device.type == "cpu" and tensor.numel():
        # writes through .data count nowhere: one value tells of most of them
        value = repr(tensor[tuple(extent // 2 for extent in tensor.shape)].item())
    return tensor.data_ptr(), version(tensor), value


def _differences(before: dict[_Place, Any], after: dict[_Place, Any]) -> set[_Place]:
    missing = object()
    return {
        place
        for place in before.keys() | after.keys()
        if before.get(place, missing) != after.get(place, missing)
    }


def _written(model: nn.Module, inputs: Inputs) -> set[_Place]:
    """The attributes that a run writes to."""
    made = copied(model)
    before = _settings(made)
    run(made, inputs)
    return _differences(before, _settings(made))
