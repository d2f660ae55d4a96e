"""Parts of a network that are hidden from hooks and autograd: scripted, exported, quantized."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit._script import RecursiveScriptModule

from fastcam.engine.running import Hooks, modules_of
from fastcam.engine.values import tensors_of
from fastcam.errors import ArgumentError

_RELUS = ("aten::relu", "aten::relu_", "aten::relu6", "aten::relu6_")  # in TorchScript
_LIMITS = ("aten::hardtanh", "aten::clamp", "aten::clip", "aten::threshold")  # and in place
_QUANTIZED = (
    "torch.ao.nn.quantized",
    "torch.ao.nn.intrinsic.quantized",
    "torch.ao.nn.sparse.quantized",
)


def why_hidden(model: nn.Module, name: str) -> str | None:
    """Why hooks on a module would not act; None if they do."""
    around: Any = model
    inside: list[nn.Module] = [model]
    for part in name.split("."):
        around = getattr(around, part)
        inside.append(around)
    *parents, module = inside
    if isinstance(module, RecursiveScriptModule) or any(
        isinstance(parent, torch.jit.ScriptModule) for parent in parents
    ):
        return _SCRIPTED
    if _has_no_forward(module) and any(isinstance(p, torch.fx.GraphModule) for p in parents):
        return _EXPORTED
    return None


def why_nothing_is_seen(model: nn.Module) -> str | None:
    """Why hooks and autograd may have seen nothing in a network; None for an open network."""
    modules = modules_of(model)
    if any(isinstance(module, torch.jit.ScriptModule) for module in modules):
        return _SCRIPTED
    if any(map(is_quantized, modules)):
        return QUANTIZED
    graphs = [module for module in modules if isinstance(module, torch.fx.GraphModule)]
    if any(_has_no_forward(part) for graph in graphs for part in graph.children()):
        return _EXPORTED
    return None


_SCRIPTED = "TorchScript runs without hooks; explain the network from before torch.jit"
_EXPORTED = (
    "a program of torch.export or torch.fx runs without its modules; explain the network that the "
    "program was made from"
)
QUANTIZED = (
    "quantized modules compute with integers, which have no derivative; explain the network from "
    "before its quantization"
)


def is_quantized(module: nn.Module) -> bool:
    """Whether a module computes with integers."""
    return type(module).__module__.startswith(_QUANTIZED)


def refusals(model: nn.Module, modules: Iterable[nn.Module]) -> Hooks:
    """Hooks that raise ValueError as soon as a quantized module ends a graph.

    Args:
        modules: those of the model.
    """

    def refuse(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, returned: Any) -> None:
            if torch.is_grad_enabled() and any(t.requires_grad for t in tensors_of(args)):
                raise ArgumentError("model", f"'{name}' is quantized: {QUANTIZED}")

        return hook

    if not any(map(is_quantized, modules)):
        return []
    named = model.named_modules()
    return [(module, refuse(name)) for name, module in named if is_quantized(module)]


def scripted_relus(model: nn.Module) -> str | None:
    """The name of a TorchScript part with a ReLU in it, if there is one."""
    scripted: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(f"{outer}." if outer else "") for outer in scripted):
            continue
        if isinstance(module, torch.jit.ScriptModule):
            scripted.append(name)
            if any(map(_rectifies, module.inlined_graph.nodes())):
                return name
    return None


def _rectifies(node: Any) -> bool:
    kind = node.kind()
    if kind in _RELUS:
        return True
    if kind.startswith(_LIMITS):
        low: Any = list(node.inputs())[1].toIValue()
        return not isinstance(low, Tensor) and low == 0  # zero for what is below zero
    return any(_rectifies(inner) for block in node.blocks() for inner in block.nodes())


def _has_no_forward(module: nn.Module) -> bool:
    scripted = isinstance(module, torch.jit.ScriptModule)
    return not scripted and type(module).forward is nn.Module.forward
