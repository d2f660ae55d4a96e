"""Loads the compiled operators and selects the implementation for each device.

`_ops` holds the schemas and the CPU kernels, `_ops_cuda` the CUDA kernels. A device uses its
kernels if they load and, on a GPU, if the driver accepts them. Otherwise it uses
:mod:`fastcam.reference`, after one warning that gives the reason. FASTCAM_KERNELS=reference
selects the reference on every device.
"""

from __future__ import annotations

import ctypes
import functools
import inspect
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastcam import reference

_HERE = Path(__file__).parent
_REFERENCE_BY_CHOICE = "FASTCAM_KERNELS=reference"


def build_info() -> dict[str, str]:
    """How the binaries were built (compiler, torch, CUDA, architectures); empty without them."""
    try:
        from fastcam import _C
    except ImportError:
        return {}
    return dict(_C.build_info())


def _load(name: str) -> str | None:
    """Loads a library of operators; returns the reason if that fails, else None."""
    path = _HERE / f"{name}.so"
    if not path.exists():
        return f"{path.name} is not built; build it with `pip install -e . --no-build-isolation`"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return f"{path.name} does not load: {error}"
    return None


def _cuda_problem() -> str | None:
    """Why the CUDA kernels cannot be used with this torch, or None if they can."""
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    info = build_info()
    if not info:
        return "fastcam's build information is missing: its module _C does not import"
    built = info["cuda"]
    if not built:
        return "fastcam was built without CUDA kernels"
    if built.split(".")[0] != torch.version.cuda.split(".")[0]:
        return f"fastcam was built for CUDA {built}, torch for CUDA {torch.version.cuda}"
    return None


def _load_all() -> dict[str, str | None]:
    """For each device type, why its kernels cannot be used, or None if they can."""
    if os.environ.get("FASTCAM_KERNELS") == "reference":
        return {"cpu": _REFERENCE_BY_CHOICE, "cuda": _REFERENCE_BY_CHOICE}
    cpu = _load("_ops")
    if cpu is None:
        _register_fakes()
        _register_backward()
        # its batched tensor operations already fill a GPU
        torch.library.impl("fastcam::impute", "cuda", reference.impute)
    return {"cpu": cpu, "cuda": cpu or _cuda_problem() or _load("_ops_cuda")}


_refusals: dict[int, str | None] = {}


@torch.compiler.assume_constant_result
def _refusal(index: int) -> str | None:
    """Why the driver refuses the CUDA kernels on this GPU, or None; cached.

    The binary may lack code for the GPU, or its PTX may come from a toolkit that is newer than the
    driver.
    """
    if index not in _refusals:
        ask = ctypes.CDLL(str(_HERE / "_ops_cuda.so")).fastcam_refusal
        ask.restype = ctypes.c_char_p
        said = ask(index)
        _refusals[index] = None
        if said is not None:
            built = build_info().get("cuda_architectures", "")
            _refusals[index] = (
                f"the driver refuses the kernels, which were built for {built} ({said.decode()}); "
                "build them on this machine with "
                "`FASTCAM_CUDA=1 pip install -e . --no-build-isolation`"
            )
    return _refusals[index]


def _problem(device: torch.device) -> str | None:
    """Why a device has no kernels, or None if it has."""
    problem = _PROBLEMS.get(device.type, "there are kernels for cpu and cuda only")
    return _refusal(device.index) if problem is None and device.type == "cuda" else problem


def _maps_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _on_one_device(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wraps a function of tensors to raise if they are on different devices."""

    @functools.wraps(function)
    def checked(*arguments: Any) -> Tensor:
        first, *others = (x for x in arguments if isinstance(x, Tensor))
        if any(other.device != first.device for other in others):
            given = zip(inspect.signature(function).parameters, arguments, strict=False)
            devices = {name: x.device for name, x in given if isinstance(x, Tensor)}
            expected, *names = devices
            name = next(name for name in names if devices[name] != devices[expected])
            raise RuntimeError(
                f"{name}: is on another device than {expected} ({devices[name]} and "
                f"{devices[expected]}); move both to one device"
            )
        return function(*arguments)

    return checked


def _register_fakes() -> None:
    """Shapes and dtypes of the results, for torch.compile and the device "meta".

    A call with tensors on several devices also arrives here if one of the devices is "meta".
    """

    def register(name: str) -> Callable[[Callable[..., Tensor]], None]:
        return lambda fake: torch.library.register_fake(f"fastcam::{name}", _on_one_device(fake))

    @register("gap")
    def _(gradients: Tensor, spatial_dims: int | None = None) -> Tensor:
        dims = gradients.dim() - 2 if spatial_dims is None else spatial_dims
        return gradients.new_empty(gradients.shape[:-dims], dtype=_maps_dtype(gradients))

    @register("gradcam_plus_plus_weights")
    def _(activations: Tensor, gradients: Tensor, eps: float = 0.0) -> Tensor:
        leading = gradients.shape[: gradients.dim() - activations.dim() + 2]
        return activations.new_empty(leading, dtype=_maps_dtype(activations))

    @register("weighted_sum")
    def _(activations: Tensor, weights: Tensor, relu: bool = True) -> Tensor:
        shape = (*weights.shape[:-1], *activations.shape[2:])
        return activations.new_empty(shape, dtype=_maps_dtype(activations))

    @register("cam")
    def _(
        activations: Tensor, gradients: Tensor, method: str, relu: bool = True, eps: float = 0.0
    ) -> Tensor:
        leading = gradients.shape[: gradients.dim() - activations.dim() + 1]
        shape = (*leading, *activations.shape[2:])
        return activations.new_empty(shape, dtype=_maps_dtype(activations))

    @register("saliency")
    def _(
        activations: Tensor,
        gradients: Tensor,
        method: str,
        size: Sequence[int],
        relu: bool = True,
        normalize: bool = True,
        eps: float = 0.0,
    ) -> Tensor:
        leading = gradients.shape[: gradients.dim() - activations.dim() + 1]
        return activations.new_empty((*leading, *size), dtype=_maps_dtype(activations))

    @register("normalize")
    def _(maps: Tensor, spatial_dims: int = 2, eps: float = 0.0) -> Tensor:
        return maps.new_empty(maps.shape, dtype=_maps_dtype(maps))

    @register("upsample")
    def _(maps: Tensor, size: Sequence[int], normalize: bool = True, eps: float = 0.0) -> Tensor:
        shape = (*maps.shape[: maps.dim() - len(size)], *size)
        return maps.new_empty(shape, dtype=_maps_dtype(maps))

    @register("guided_relu")
    def _(input: Tensor) -> Tensor:
        return torch.empty_like(input)

    @register("guided_relu_backward")
    def _(grad_output: Tensor, input: Tensor) -> Tensor:
        return torch.empty_like(input)

    @register("guided_product")
    def _(maps: Tensor, guided: Tensor, spatial_dims: int = 2, eps: float = 0.0) -> Tensor:
        return torch.empty_like(guided)

    @register("impute")
    def _(images: Tensor, known: Tensor) -> Tensor:
        return images.new_empty(images.shape)

    @register("overlay")
    def _(images: Tensor, maps: Tensor, colormap: Tensor, opacities: Tensor) -> Tensor:
        return images.new_empty(images.shape, dtype=torch.uint8)


def _register_backward() -> None:
    """The guided backward of guided_relu."""

    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    def guided(ctx: Any, grad_output: Tensor) -> Tensor:
        (input,) = ctx.saved_tensors
        return torch.ops.fastcam.guided_relu_backward(grad_output, input)

    torch.library.register_autograd("fastcam::guided_relu", guided, setup_context=setup_context)


def _overload(name: str) -> Callable[..., Tensor]:
    overload: Callable[..., Tensor] = getattr(torch.ops.fastcam, name).default
    return overload


class _WithoutBackward(torch.autograd.Function):
    """Calls a kernel that has no backward on tensors that require a gradient; backward raises.

    Not registered with the dispatcher, because that would slow down every call by more than a
    small map takes.
    """

    generate_vmap_rule = True  # torch.func.jacfwd batches over directions

    @staticmethod
    def forward(name: str, *arguments: Any) -> Tensor:
        return _overload(name)(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.name = inputs[0]
        # overlay returns uint8, which is not differentiable in the reference either
        derived = output.is_floating_point()
        ctx.instead = f"; use fastcam.reference.{ctx.name}, which has one" if derived else ""

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        raise NotImplementedError(f"fastcam.ops.{ctx.name} has no backward{ctx.instead}")


class _WithoutDerivative(_WithoutBackward):
    """The same for tensors that may carry a tangent.

    A separate class, because torch.compile rejects any function that defines jvp and would hide
    the message of :class:`_WithoutBackward`.
    """

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        raise NotImplementedError(
            f"fastcam.ops.{ctx.name} has no forward-mode derivative{ctx.instead}"
        )


_PROBLEMS = _load_all()
_warned: set[str] = set()


def _warn_once(device: str, problem: str) -> None:
    if device not in _warned and problem != _REFERENCE_BY_CHOICE:
        _warned.add(device)
        warnings.warn(
            f"fastcam: the device '{device}' uses the slower PyTorch reference: {problem}",
            stacklevel=4,
        )


def operator(name: str, tensor: Tensor, *others: Tensor) -> Callable[..., Tensor]:
    """The implementation of an operator for the device of ``tensor``.

    Args:
        name: as in :mod:`fastcam.ops`.
        tensor, others: the inputs that may require a gradient.
    """
    problem = _problem(tensor.device)
    if problem is not None:
        _warn_once(tensor.device.type, problem)
        return _on_one_device(getattr(reference, name))
    if forward_ad._current_level >= 0:  # a tensor may carry a tangent
        if name == "guided_relu":
            return reference.guided_relu
        return functools.partial(_WithoutDerivative.apply, name)
    wants_gradient = tensor.requires_grad or any(other.requires_grad for other in others)
    if wants_gradient and name != "guided_relu" and torch.is_grad_enabled():
        return functools.partial(_WithoutBackward.apply, name)
    return _overload(name)


def report() -> dict[str, str]:
    """The implementation for each device type: "kernels", or "reference: " and the reason."""
    return {
        device: "kernels" if problem is None else f"reference: {problem}"
        for device, problem in _PROBLEMS.items()
    }
