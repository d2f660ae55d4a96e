"""Grad-CAM++ with gradients averaged over noisy copies of the images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from fastcam import ops
from fastcam.engine.capture import Capture
from fastcam.engine.layers import Layers
from fastcam.errors import ArgumentError, check_positive
from fastcam.methods.base import Reading
from fastcam.methods.maps import MapMethod
from fastcam.targets import Selection


class SmoothGradCAMPlusPlus(MapMethod):
    """M = ReLU(sum_k w_k A^k), w_k = sum_ij alpha_ij ReLU(E[g_ij]), E the mean over noisy images.

    alpha_ij = E[g_ij^2] / (2 E[g_ij^2] + sum_ab ReLU(A_ab) E[g_ij^3]), or 0 if the denominator is
    0: Omeiza et al. 2019, arXiv 1908.01224, with E[g^2] for E[g] in the numerator and ReLU(A) for
    A, as in Grad-CAM++ of one image. A is that of the images without noise.
    """

    name = "smoothgradcam++"
    graph = None
    differentiates = True
    captures = True

    def __init__(
        self,
        model: nn.Module,
        target_layers: Layers | None = None,
        *,
        samples: int = 4,
        std: float = 0.3,
        seed: int = 0,
        **reading: Unpack[Reading],
    ) -> None:
        """As for the other methods.

        Args:
            samples: the number of noisy copies per image; they run as one batch.
            std: the standard deviation of the noise, in units of the model's input.
            seed: the seed of the noise; every call draws the same noise.
        """
        super().__init__(model, target_layers, **reading)
        check_positive(samples=samples)
        self.samples, self.std, self.seed = samples, std, seed

    def layer_maps(self, record: Capture, selection: Selection, relu: bool) -> list[Tensor]:
        images = record.images
        if images is None or not images.is_floating_point():
            raise ArgumentError(
                "images", "got no floating-point tensor (N, C, *S), but this method adds noise"
            )
        count = len(images)
        rows = torch.arange(count, device=images.device).repeat(self.samples)
        generator = torch.Generator(images.device).manual_seed(self.seed)
        noise = self.std * torch.randn(
            (len(rows), *images.shape[1:]),
            generator=generator,
            dtype=images.dtype,
            device=images.device,
        )
        inputs = record.inputs(rows, images[rows] + noise)
        with record.autocast():
            noisy = self.capture(inputs, exact=record.exact, gradients=True)
        with torch.enable_grad():
            scores = Selection(selection.of(noisy.logits, rows), None)

        def maps_of(column: Tensor, retain: bool) -> list[Tensor]:
            maps = []
            gradients = noisy.gradients(column, retain=retain)
            for activations, gradient in zip(record.activations, gradients, strict=True):
                samples = gradient.unflatten(0, (self.samples, count))
                total = ops.gap(activations.relu()) * activations.shape[2:].numel()
                maps.append(ops.weighted_sum(activations, smooth_weights(total, samples), relu))
            return maps

        return scores.by_class(maps_of)


def smooth_weights(total: Tensor, gradients: Tensor) -> Tensor:
    """Channel weights (N, C) from the gradients of noisy images.

    Args:
        total: the sum in the denominator, (N, C).
        gradients: (samples, N, C, *S).
    """
    g = gradients if gradients.dtype == torch.float64 else gradients.float()
    g = g.flatten(3)
    # alpha does not change if g is scaled and sum(A) inversely, which keeps the powers from
    # underflow and overflow
    scale = g.abs().amax((0, 3))
    g = g / scale.where(scale > 0, 1.0)[:, :, None]
    second, third = g.square().mean(0), (g * g.square()).mean(0)
    denominator = 2 * second + (total * scale)[:, :, None] * third
    alpha = torch.where(denominator == 0, 0.0, second / denominator)
    return (alpha * (g.mean(0) * scale[:, :, None]).relu()).sum(2)
