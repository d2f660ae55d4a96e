"""A ReLU with another backward, which replaces every ReLU that runs, module or function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastcam import ops


class GuidedReLU(TorchFunctionMode):
    """While entered, ReLU and ReLU6 record a backward that :attr:`rule` switches.

    So do hardtanh, threshold and clamp if they do the same: zero for values below zero.

    ========== =========================================================================
    rule       passes
    ========== =========================================================================
    plain      the gradient where the input is positive
    guided     the positive part of the gradient where the input is positive
    deconvnet  the positive part of the gradient
    ========== =========================================================================

    The same graph gives all three; the switch works after leaving the mode too. Nothing in the
    network is touched.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rule: Literal["plain", "guided", "deconvnet"] = "plain"
        self.met = 0
        """How many ReLUs ran with a gradient to pass."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        read = _CALLS.get(func)
        if read is None or "out" in kwargs:
            return func(*args, **kwargs)
        call = read(*args, **kwargs)
        if call.low != 0 or not (torch.is_grad_enabled() and call.input.requires_grad):
            return func(*args, **kwargs)
        self.met += 1
        return _ReLU.apply(call.input, call.high, call.inplace, call.keeps_input, self)


class Call(NamedTuple):
    """What a call of one of the functions amounts to."""

    input: Tensor
    inplace: bool = False
    low: float | None = 0
    high: float | None = None
    keeps_input: bool = False
    """Whether the backward must not need the output, for PyTorch's own does not."""


def _relu(input: Tensor, inplace: bool = False) -> Call:
    return Call(input, inplace)


def _relu_(input: Tensor) -> Call:
    return Call(input, True)


def _relu6(input: Tensor, inplace: bool = False) -> Call:
    return Call(input, inplace, high=6, keeps_input=not inplace)


def _hardtanh(
    input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Call:
    return Call(input, inplace, min_val, max_val, keeps_input=not inplace)


def _hardtanh_(input: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Call:
    return Call(input, True, min_val, max_val)


def _threshold(input: Tensor, threshold: float, value: float, inplace: bool = False) -> Call:
    return Call(input, inplace, 0 if threshold == value == 0 else None, keeps_input=True)


def _threshold_(input: Tensor, threshold: float, value: float) -> Call:
    return _threshold(input, threshold, value, True)


def _clamp(
    input: Tensor,
    min: float | Tensor | None = None,
    max: float | Tensor | None = None,
    inplace: bool = False,
) -> Call:
    if isinstance(min, Tensor) or isinstance(max, Tensor):
        return Call(input, low=None)
    return Call(input, inplace, min, max, keeps_input=True)


def _clamp_(
    input: Tensor, min: float | Tensor | None = None, max: float | Tensor | None = None
) -> Call:
    return _clamp(input, min, max, True)


_ATEN = torch.ops.aten
_CALLS: dict[Any, Callable[..., Call]] = {
    F.relu: _relu,
    torch.relu: _relu,
    Tensor.relu: _relu,
    torch.relu_: _relu_,
    Tensor.relu_: _relu_,
    F.relu6: _relu6,
    F.hardtanh: _hardtanh,
    F.hardtanh_: _hardtanh_,
    F.threshold: _threshold,
    torch.threshold: _threshold,
    torch.threshold_: _threshold_,
    **dict.fromkeys((torch.clamp, torch.clip, torch.clamp_min), _clamp),
    **dict.fromkeys((Tensor.clamp, Tensor.clip, Tensor.clamp_min), _clamp),
    **dict.fromkeys((torch.clamp_, torch.clip_, torch.clamp_min_), _clamp_),
    **dict.fromkeys((Tensor.clamp_, Tensor.clip_, Tensor.clamp_min_), _clamp_),
    # as torch.export writes them
    _ATEN.relu.default: _relu,
    _ATEN.relu_.default: _relu_,
    _ATEN.relu6.default: _relu6,
    _ATEN.hardtanh.default: _hardtanh,
    _ATEN.hardtanh_.default: _hardtanh_,
    _ATEN.threshold.default: _threshold,
    _ATEN.threshold_.default: _threshold_,
    **dict.fromkeys((_ATEN.clamp.default, _ATEN.clamp_min.default), _clamp),
    **dict.fromkeys((_ATEN.clamp_.default, _ATEN.clamp_min_.default), _clamp_),
}


class _ReLU(torch.autograd.Function):
    """y = min(max(x, 0), high), with the backward of ``mode.rule``."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        high: float | None,
        inplace: bool,
        keeps_input: bool,
        mode: GuidedReLU,
    ) -> Tensor:
        if keeps_input:
            ctx.save_for_backward(input.clone() if inplace else input)
        output = input.clamp_(0, high) if inplace else input.clamp(0, high)
        if inplace:
            ctx.mark_dirty(output)
        if not keeps_input:
            # 0 < y < high exactly where 0 < x < high, and y lives on for the next layer anyway
            ctx.save_for_backward(output)
        ctx.high, ctx.mode = high, mode
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        (kept,) = ctx.saved_tensors
        if ctx.mode.rule == "deconvnet":
            return gradient.relu(), None, None, None, None
        if ctx.high is not None:
            gradient = gradient.masked_fill(kept >= ctx.high, 0)
        if ctx.mode.rule == "guided":
            return ops.guided_relu_backward(gradient, kept), None, None, None, None
        return gradient.masked_fill(kept <= 0, 0), None, None, None, None
