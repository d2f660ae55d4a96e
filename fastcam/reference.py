"""Every operator in plain PyTorch: the readable definition, and the fallback without kernels.

See :mod:`fastcam.ops` for the arguments and results. Half precision is computed in float32,
float64 stays float64. ``S`` stands for one to three spatial dimensions, ``positions`` for their
product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def _arithmetic(tensor: Tensor) -> Tensor:
    """The tensor in the dtype of the computation."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _operands(activations: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
    """A as (N, 1, C, positions), g as (N, K, C, positions); K = 1 for gradients (N, C, *S)."""
    spatial_dims = activations.dim() - 2
    activations = _arithmetic(activations).flatten(2).unsqueeze(1)
    gradients = _arithmetic(gradients).flatten(-spatial_dims)
    return activations, gradients if gradients.dim() == 4 else gradients.unsqueeze(1)


def _divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator, 0 where the denominator is 0."""
    zero = denominator == 0
    return (numerator / denominator.masked_fill(zero, 1)).masked_fill(zero, 0)


def _min_max(maps: Tensor, spatial_dims: int, eps: float) -> Tensor:
    if maps.numel() == 0:
        return maps
    dims = tuple(range(-spatial_dims, 0))
    low, high = maps.amin(dims, keepdim=True), maps.amax(dims, keepdim=True)
    return _divide(maps - low, high - low + eps)


def _enlarge(maps: Tensor, size: Sequence[int]) -> Tensor:
    """maps (*L, *S) interpolated to (*L, *size)."""
    mode = ("linear", "bilinear", "trilinear")[len(size) - 1]
    leading = maps.shape[: -len(size)]
    if leading.numel() == 0:
        return maps.new_empty((*leading, *size))
    flat = maps.reshape(-1, 1, *maps.shape[-len(size) :])
    enlarged = F.interpolate(flat, size=tuple(size), mode=mode, align_corners=False)
    return enlarged.reshape(*leading, *size)


def _corner(maps: Tensor, spatial_dims: int) -> Tensor:
    """Each map's first value, (*L, 1...); minus it, a constant map is exactly 0 when enlarged."""
    corner = maps.flatten(-spatial_dims)[..., :1].nan_to_num(0, 0, 0)
    return corner.reshape(*corner.shape[:-1], *[1] * spatial_dims)


def _enlarge_normalized(maps: Tensor, size: Sequence[int], eps: float) -> Tensor:
    return _min_max(_enlarge(maps - _corner(maps, len(size)), size), len(size), eps)


def _channel_sum(weights: Tensor, activations: Tensor) -> Tensor:
    """weights (N, C) or (N, K, C), activations (N, C, ...) -> (N, ...) or (N, K, ...)."""
    classes = "k" if weights.dim() == 3 else ""
    with torch.autocast(weights.device.type, enabled=False):
        return torch.einsum(f"n{classes}c,nc...->n{classes}...", weights, activations)


def _gradcam_weights(activations: Tensor, gradients: Tensor, eps: float) -> Tensor:
    return gradients.mean(-1)


def _gradcam_plus_plus_weights(activations: Tensor, gradients: Tensor, eps: float) -> Tensor:
    return _signed_weights(activations.relu(), gradients, eps)


def _signed_weights(activations: Tensor, gradients: Tensor, eps: float) -> Tensor:
    # alpha ReLU(g) = g^3 / (2 g^2 + sum(A) g^3 + eps), divided by g^3 so that no power overflows
    denominator = 2 / gradients + activations.sum(-1, keepdim=True)
    if eps:
        denominator = denominator + eps / gradients**3
    outside = (gradients <= 0) | (denominator == 0)
    return denominator.reciprocal().masked_fill(outside, 0).sum(-1)


def _xgradcam_weights(activations: Tensor, gradients: Tensor, eps: float) -> Tensor:
    return _divide((gradients * activations).sum(-1), activations.sum(-1) + eps)


_CHANNEL_WEIGHTS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "gradcam": _gradcam_weights,
    "gradcam++": _gradcam_plus_plus_weights,
    "gradcam++-signed": _signed_weights,
    "xgradcam": _xgradcam_weights,
}
_ELEMENTWISE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "hirescam": lambda activations, gradients: gradients * activations,
    "layercam": lambda activations, gradients: gradients.relu() * activations,
    "gradcam-elementwise": lambda activations, gradients: (gradients * activations).relu(),
}

METHODS = (*_CHANNEL_WEIGHTS, *_ELEMENTWISE)
"""The methods of :func:`cam`."""


def gap(gradients: Tensor, spatial_dims: int | None = None) -> Tensor:
    dims = gradients.dim() - 2 if spatial_dims is None else spatial_dims
    return _arithmetic(gradients).flatten(-dims).mean(-1)


def gradcam_plus_plus_weights(activations: Tensor, gradients: Tensor, eps: float = 0.0) -> Tensor:
    return channel_weights(activations, gradients, "gradcam++", eps)


def channel_weights(
    activations: Tensor, gradients: Tensor, method: str, eps: float = 0.0
) -> Tensor:
    """The channel weights w_k of a method of :func:`fastcam.ops.cam`.

    Args:
        activations: (N, C, *S).
        gradients: (N, C, *S) or (N, K, C, *S).
        method: ``gradcam``, ``gradcam++``, ``gradcam++-signed`` or ``xgradcam``.
        eps: as for :func:`fastcam.ops.cam`.

    Returns:
        (N, C) or (N, K, C).
    """
    weights = _CHANNEL_WEIGHTS[method](*_operands(activations, gradients), eps)
    return weights if gradients.dim() > activations.dim() else weights.squeeze(1)


def weighted_sum(activations: Tensor, weights: Tensor, relu: bool = True) -> Tensor:
    maps = _channel_sum(_arithmetic(weights), _arithmetic(activations))
    return maps.relu() if relu else maps


def cam(
    activations: Tensor, gradients: Tensor, method: str, relu: bool = True, eps: float = 0.0
) -> Tensor:
    a, g = _operands(activations, gradients)
    if method in _CHANNEL_WEIGHTS:
        maps = _channel_sum(_CHANNEL_WEIGHTS[method](a, g, eps), a.squeeze(1))
    elif method in _ELEMENTWISE:
        maps = _ELEMENTWISE[method](a, g).sum(2)
    else:
        raise RuntimeError(f"method: got '{method}', expected one of {', '.join(METHODS)}")
    maps = maps.relu() if relu else maps
    maps = maps if gradients.dim() > activations.dim() else maps.squeeze(1)
    return maps.unflatten(-1, activations.shape[2:])


def saliency(
    activations: Tensor,
    gradients: Tensor,
    method: str,
    size: Sequence[int],
    relu: bool = True,
    normalize: bool = True,
    eps: float = 0.0,
) -> Tensor:
    if len(size) != activations.dim() - 2:
        raise RuntimeError(
            f"size: got {tuple(size)}, expected {activations.dim() - 2} extents, one for each "
            "spatial dimension of the activations"
        )
    return upsample(cam(activations, gradients, method, relu, eps), size, normalize)


def normalize(maps: Tensor, spatial_dims: int = 2, eps: float = 0.0) -> Tensor:
    return _min_max(_arithmetic(maps), spatial_dims, eps)


def upsample(maps: Tensor, size: Sequence[int], normalize: bool = True, eps: float = 0.0) -> Tensor:
    maps = _arithmetic(maps)
    if normalize:
        return _enlarge_normalized(maps, size, eps)
    corner = _corner(maps, len(size))
    return _enlarge(maps - corner, size) + corner


class _GuidedReLU(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor) -> Tensor:
        return input.relu()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        return guided_relu_backward(grad_output, *ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        raise NotImplementedError(
            "fastcam.ops.guided_relu has no forward-mode derivative: its backward is not the "
            "derivative of a function"
        )


def guided_relu(input: Tensor) -> Tensor:
    return _GuidedReLU.apply(input)


def guided_relu_backward(grad_output: Tensor, input: Tensor) -> Tensor:
    return grad_output.relu().masked_fill(input <= 0, 0)


def guided_product(maps: Tensor, guided: Tensor, spatial_dims: int = 2, eps: float = 0.0) -> Tensor:
    heat = _enlarge_normalized(_arithmetic(maps), guided.shape[-spatial_dims:], eps)
    return (heat.unsqueeze(-spatial_dims - 1) * _arithmetic(guided)).to(guided.dtype)


def overlay(images: Tensor, maps: Tensor, colormap: Tensor, alpha: float = 0.5) -> Tensor:
    channels_last = images.shape[-1] == 3
    height_width = images.shape[1:3] if channels_last else images.shape[2:4]
    heat = _enlarge(maps.float(), height_width).nan_to_num(0).clamp(0, 1)
    colors = colormap[(heat * 255 + 0.5).long()].float()  # (N, H, W, 3)
    if not channels_last:
        colors = colors.movedim(-1, 1)
    levels = images.float() if images.dtype == torch.uint8 else images.float().clamp(0, 1) * 255
    return (alpha * colors + (1 - alpha) * levels + 0.5).floor().to(torch.uint8)


def impute(images: Tensor, known: Tensor) -> Tensor:
    if images.dim() != 4:
        raise RuntimeError(f"images: got shape {tuple(images.shape)}, expected (N, C, H, W)")
    if known.shape != (len(images), *images.shape[2:]):
        raise RuntimeError(
            f"known: got shape {tuple(known.shape)}, expected (N, H, W) for images of shape "
            f"{tuple(images.shape)}"
        )
    if images.numel() == 0:
        return torch.empty_like(images, memory_format=torch.contiguous_format)
    known = known.unsqueeze(1)
    values = images.double().where(known, 0.0)
    scale = values.abs().amax((2, 3), keepdim=True)
    values = values / scale.where(scale > 0, 1.0)
    total = _neighbours(torch.ones_like(values[:1, :1]))  # below 1 at the border
    filled = _solved(values, total, ~known & known.any((2, 3), keepdim=True))
    return (filled * scale).to(images.dtype).where(~known, images).contiguous()


def _neighbours(values: Tensor) -> Tensor:
    """The weighted sum of the eight neighbours."""
    height, width = values.shape[2:]
    framed = F.pad(values, (1, 1, 1, 1))
    rows = framed[:, :, :height] + 2 * framed[:, :, 1:-1] + framed[:, :, 2:]
    sums = rows[..., :width] + 2 * rows[..., 1:-1] + rows[..., 2:]
    return (sums - 4 * values) / 12


def _solved(values: Tensor, total: Tensor, missing: Tensor) -> Tensor:
    """Solves total x = _neighbours(x) at the missing pixels by conjugate gradients."""

    def dot(first: Tensor, second: Tensor) -> Tensor:
        return (first * second).sum((2, 3), keepdim=True)

    inverse = missing / total.clamp(min=1 / 12)  # a single pixel has no neighbour
    residual = (_neighbours(values) - total * values) * missing
    direction = residual * inverse
    energy = dot(residual, direction)
    for step in range(10_000):
        if step % 16 == 0 and not (residual.abs() > 1e-13).any():
            return values
        product = (total * direction - _neighbours(direction)) * missing
        length = _divide(energy, dot(direction, product))
        values = values + length * direction
        residual = residual - length * product
        before, energy = energy, dot(residual, residual * inverse)
        direction = residual * inverse + _divide(energy, before) * direction
    raise RuntimeError("known: the equations were not solved within 10000 iterations")
