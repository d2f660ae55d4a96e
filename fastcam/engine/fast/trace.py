"""The order in which the modules of a network run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastcam.engine.inputs import Inputs
from fastcam.engine.running import run

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Call:
    start: int
    end: int


class Trace:
    """In which order the modules of a network ran, and which convolution each BatchNorm follows."""

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        self._model = model
        self._owners: dict[nn.Parameter, set[str]] = {}  # the modules that hold each
        for name, module in model.named_modules():
            for parameter in module.parameters(recurse=False):
                self._owners.setdefault(parameter, set()).add(name)
        self.calls: dict[str, list[Call]] = {}
        self.norms: list[str] = []
        """BatchNorm layers that ran."""
        self.producers: dict[str, str] = {}
        """By BatchNorm, the convolution whose output it took."""
        clock = 0
        started: dict[str, list[int]] = {}
        returned: list[tuple[str, Tensor]] = []  # by convolutions; kept to compare by identity

        def enter(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
                nonlocal clock
                clock += 1
                started.setdefault(name, []).append(clock)

            return hook

        def leave(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                nonlocal clock
                clock += 1
                self.calls.setdefault(name, []).append(Call(started[name].pop(), clock))
                if isinstance(module, CONVOLUTIONS):
                    returned.append((name, output))
                elif isinstance(module, _BatchNorm):
                    self.norms.append(name)
                    for producer, tensor in returned:
                        if args and args[0] is tensor:
                            self.producers[name] = producer

            return hook

        named = [(name, module) for name, module in model.named_modules() if name]
        run(
            model,
            inputs,
            [(module, leave(name)) for name, module in named],
            before=[(module, enter(name)) for name, module in named],
        )

    def end(self, name: str) -> int:
        """When its last call ended."""
        return self.calls[name][-1].end

    def is_unit(self, name: str, layer: str) -> bool:
        """Whether it runs once, before the layer does last, and nothing in it is used elsewhere."""
        calls = self.calls.get(name, ())
        if len(calls) != 1 or calls[0].end > self.calls[layer][-1].start:
            return False
        module = self._model.get_submodule(name)
        parts = {part for part, _ in module.named_modules(prefix=name)}
        return all(
            calls[0].start <= inner.start and inner.end <= calls[0].end
            for part in parts
            for inner in self.calls.get(part, ())
        ) and all(self._owners.get(p, set()) <= parts for p in module.parameters())
