"""The gradients with respect to the images and all biases, in one map."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from fastcam import ops
from fastcam.engine.inputs import (
    Inputs,
)
from fastcam.errors import ArgumentError
from fastcam.methods.base import Method
from fastcam.methods.maps import Size, extents_of
from fastcam.methods.result import Result
from fastcam.targets import Targets


class FullGrad(Method):
    """M = psi(x dS/dx) + sum over biases b of psi(b dS/db), psi: magnitude, min-max, enlargement.

    Srinivas and Fleuret 2019, arXiv 1905.00780, equation 6. A bias acts at every position, so b
    dS/db is a map too: b times the gradient with respect to the sum that includes b. The biases are
    those of convolutions and of BatchNorm in evaluation mode, b - w mean / sqrt(var + eps), in
    modules and functions alike; psi applies to every channel separately.
    """

    name = "fullgrad"
    takes_layers = False
    graph = "images"

    def __call__(
        self,
        images: Inputs,
        targets: Targets = None,
        *,
        size: Size = None,
        normalize: bool = True,
    ) -> Tensor:
        """Maps (N, *size) in float32 (float64 for a float64 model), or (N, K, *size).

        Args:
            images: floating point (N, C, *S), or a tuple or mapping of the model's inputs.
            targets: see :func:`fastcam.targets.select`; None for the top class.
            size: the maps' extents, by default and for "layer" those of the images.
            normalize: whether to scale each map to [0, 1]; a constant map becomes 0.

        Raises:
            ValueError, TypeError: if targets or sizes do not fit the model and the images.
        """
        with self.calling(images):
            biases = _Biases()
            with biases:
                record, selection = self.capture_scores(images, targets)
            assert record.images is not None
            extents = record.images.shape[2:]
            if record.places != tuple(range(2, record.images.dim())):
                raise ArgumentError(
                    "images",
                    f"got {tuple(record.images.shape)} with positions along the axes "
                    f"{record.places}, but '{self.name}' takes (N, C, *S)",
                )
            found = biases.found(len(record.images), len(extents))
            places: list[GradientEdge] = [get_gradient_edge(record.images)]
            places += [edge for edge, _ in found]
            factors = [record.images.detach(), *(bias for _, bias in found)]

            def map_of(scores: Tensor, retain: bool) -> list[Tensor]:
                gradients = torch.autograd.grad(
                    scores,
                    places,
                    torch.ones_like(scores),
                    retain_graph=retain,
                    allow_unused=True,
                )
                products = (
                    _wide(gradient) * factor
                    for gradient, factor in zip(gradients, factors, strict=True)
                    if gradient is not None
                )
                return [summed(products, tuple(extents))]

            with torch.autocast(record.logits.device.type, enabled=False):
                (maps,) = selection.by_class(map_of)
                size = None if size == "layer" else size
                maps = ops.upsample(maps, extents_of(record, size), normalize)
            return self.keep(Result.of(maps, record, selection))


def summed(products: Iterable[Tensor], extents: tuple[int, ...], eps: float = 0.0) -> Tensor:
    """The sum of psi over channels and products (N, C, *S): (N, *extents).

    Enlargement is linear, so maps of the same extents S are summed before it.

    Args:
        eps: added to the range of each channel.
    """
    sums: dict[tuple[int, ...], Tensor] = {}
    for product in products:
        scaled = ops.normalize(product.abs(), len(extents), eps).sum(1)
        shape = tuple(product.shape[2:])
        sums[shape] = sums[shape] + scaled if shape in sums else scaled
    return torch.stack([ops.upsample(s, extents, normalize=False) for s in sums.values()]).sum(0)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


class _Biases(TorchFunctionMode):
    """Within the context, keeps the biases of convolutions and BatchNorm, and their graph edges."""

    def __init__(self) -> None:
        super().__init__()
        self._met: list[tuple[GradientEdge, Tensor, torch.Size]] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        read = _BIASES.get(func)
        bias = None if read is None else read(*args, **kwargs)
        if bias is not None and output.requires_grad:
            # the edge stays that of this output even if the output is overwritten later
            self._met.append((get_gradient_edge(output), bias.detach(), output.shape))
        return output

    def found(self, count: int, dims: int) -> list[tuple[GradientEdge, Tensor]]:
        """Edges and biases (C, 1, ...) of the outputs for ``count`` images with ``dims`` axes."""
        return [
            (edge, _wide(bias).reshape(-1, *[1] * dims))
            for edge, bias, shape in self._met
            if len(shape) == 2 + dims and shape[0] == count
        ]


def _of_convolution(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor | None:
    return bias


def _of_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    if training or running_mean is None or running_var is None:
        return None  # the statistics of the batch are not constant
    scale = torch.rsqrt(running_var + eps)
    scale = scale if weight is None else scale * weight
    return -running_mean * scale if bias is None else bias - running_mean * scale


_BIASES: dict[Any, Callable[..., Tensor | None]] = {
    F.batch_norm: _of_batch_norm,
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _of_convolution),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), _of_convolution),
}
