"""BatchNorm folded into the convolutions in front of it."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastcam.engine.fast.copies import all_agree, other_inputs
from fastcam.engine.fast.trace import Trace
from fastcam.engine.inputs import Inputs
from fastcam.engine.running import run
from fastcam.engine.trials import raise_out_of_memory, trial


def fold(
    model: nn.Module, trace: Trace, layer: str | None, layers: Sequence[str], inputs: Inputs
) -> tuple[str, bool]:
    """Folds every BatchNorm that ends before the layer does into the convolution in front of it.

    Returns:
        What was done, and whether the folded network gives the answers that it gave before.
    """
    pairs, reasons = [], Counter[str]()
    for norm in trace.norms:
        if layer is None or trace.end(norm) <= trace.end(layer):
            reason = _unfoldable(model, trace, norm, layers)
            if reason is None:
                pairs.append((trace.producers[norm], norm))
            else:
                reasons[reason] += 1
    if pairs and _are_read_elsewhere(model, inputs, pairs):
        shared = [pair for pair in pairs if _are_read_elsewhere(model, inputs, [pair])]
        pairs = [pair for pair in pairs if pair not in shared]
        reasons["something else reads the convolution's output"] += len(shared)
    given = inputs, other_inputs(inputs)
    before = [run(model, each) for each in given]
    for convolution, norm in pairs:
        _fold_pair(model, convolution, norm)
    if not all_agree(before, [run(model, each) for each in given]):
        return "not folded: the folded network gave another answer", False
    done = [f"{len(pairs)} folded", *(f"{n} not: {r}" for r, n in reasons.items())]
    return ", ".join(done), True


def _unfoldable(model: nn.Module, trace: Trace, norm: str, layers: Sequence[str]) -> str | None:
    """Why a BatchNorm stays; None where it can go."""
    convolution = trace.producers.get(norm)
    module = model.get_submodule(norm)
    if convolution is None:
        return "no convolution in front"
    if len(trace.calls[norm]) > 1 or len(trace.calls[convolution]) > 1:
        return "called several times"
    if norm in layers or convolution in layers:
        return "a target layer"
    if module.running_mean is None:
        return "no running statistics"
    if type(module).forward is not _BatchNorm.forward and not _is_timm(module):
        return f"{type(module).__name__} has a forward of its own"
    if "weight" not in model.get_submodule(convolution)._parameters:  # normed, parametrized, pruned
        return "the convolution's weight is computed"
    return None


def _are_read_elsewhere(model: nn.Module, inputs: Inputs, pairs: Sequence[tuple[str, str]]) -> bool:
    """Whether anything but the norm behind it reads what one of the convolutions returns.

    All others get NaN in its place.
    """
    returned: dict[str, Tensor] = {}

    def spoil(norm: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            returned[norm] = output
            return torch.full_like(output, torch.nan)

        return hook

    def restore(norm: str) -> Callable[..., Any]:
        return lambda module, args, kwargs: ((returned[norm],), {})

    hooks = [(model.get_submodule(conv), spoil(norm)) for conv, norm in pairs]
    before = [(model.get_submodule(norm), restore(norm)) for _, norm in pairs]
    try:
        found = trial(model, inputs, hooks, before=before)
    except Exception as error:  # a model's that looks at what it computes
        raise_out_of_memory(error)
        return True
    return not all_agree(found, trial(model, inputs))


def _is_timm(norm: nn.Module) -> bool:
    """timm's BatchNorm with an activation."""
    return type(norm).__name__ == "BatchNormAct2d"


def _fold_pair(model: nn.Module, convolution: str, norm: str) -> None:
    """bn(conv(x)) as one convolution: weight s W, bias s (b - mean) + shift, computed in double.

    s = scale / sqrt(variance + eps), by output channel.
    """
    conv: Any = model.get_submodule(convolution)
    bn: Any = model.get_submodule(norm)
    factor = (bn.running_var.double() + bn.eps).rsqrt()
    factor = factor if bn.weight is None else factor * bn.weight.double()
    bias = -bn.running_mean.double() if conv.bias is None else conv.bias.double() - bn.running_mean
    bias = factor * bias if bn.bias is None else factor * bias + bn.bias
    weight = conv.weight.double() * factor.reshape(-1, *(1,) * (conv.weight.dim() - 1))
    dtype = conv.weight.dtype
    conv.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
    rest = nn.Sequential(OrderedDict(drop=bn.drop, act=bn.act)) if _is_timm(bn) else nn.Identity()
    model.set_submodule(norm, rest)
