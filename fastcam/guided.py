"""Guided backpropagation's ReLU, put in the place of every ReLU that runs, module or function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastcam import ops


class GuidedReLU(TorchFunctionMode):
    """While entered, ReLU and ReLU6 record a backward that :attr:`guided` switches.

    The same graph gives the plain gradient with ``guided`` off and that of guided backpropagation
    with it on; the switch works after leaving the mode too. Nothing in the network is touched.
    """

    def __init__(self) -> None:
        super().__init__()
        self.guided = False
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
        call = _CALLS.get(func)
        if call is None:
            return func(*args, **kwargs)
        input, inplace, low, high = call(*args, **kwargs)
        if low != 0 or not (torch.is_grad_enabled() and input.requires_grad):
            return func(*args, **kwargs)
        self.met += 1
        return _ReLU.apply(input, high, inplace, self)


Call = tuple[Tensor, bool, float, float | None]  # input, in place, lower and upper bound


def _relu(input: Tensor, inplace: bool = False) -> Call:
    return input, inplace, 0, None


def _relu_(input: Tensor) -> Call:
    return input, True, 0, None


def _relu6(input: Tensor, inplace: bool = False) -> Call:
    return input, inplace, 0, 6


def _hardtanh(
    input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Call:
    return input, inplace, min_val, max_val


def _hardtanh_(input: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Call:
    return input, True, min_val, max_val


_CALLS: dict[Any, Callable[..., Call]] = {
    F.relu: _relu,
    torch.relu: _relu,
    Tensor.relu: _relu,
    torch.relu_: _relu_,
    Tensor.relu_: _relu_,
    F.relu6: _relu6,
    F.hardtanh: _hardtanh,
    F.hardtanh_: _hardtanh_,
}


class _ReLU(torch.autograd.Function):
    """y = min(max(x, 0), high), with the guided backward while ``mode.guided`` is on."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, high: float | None, inplace: bool, mode: GuidedReLU
    ) -> Tensor:
        output = input.clamp_(0, high) if inplace else input.clamp(0, high)
        if inplace:
            ctx.mark_dirty(output)
        # 0 < y < high exactly where 0 < x < high, and y lives on for the next layer anyway
        ctx.save_for_backward(output)
        ctx.high, ctx.mode = high, mode
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (output,) = ctx.saved_tensors
        if ctx.high is not None:
            gradient = gradient.masked_fill(output >= ctx.high, 0)
        if ctx.mode.guided:
            return ops.guided_relu_backward(gradient, output), None, None, None
        return gradient.masked_fill(output <= 0, 0), None, None, None
