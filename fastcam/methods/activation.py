"""Maps of the activations alone: no gradient, and no class that plays a part."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from fastcam import ops
from fastcam.engine.capture import Capture
from fastcam.engine.layers import Layers
from fastcam.methods.base import Reading
from fastcam.methods.maps import MapMethod, for_every_class
from fastcam.targets import Selection


class FEM(MapMethod):
    """M = ReLU(sum_k w_k A^k), w_k the share of positions with A > mean(A^k) + k std(A^k).

    Fuad et al. 2020, Features Understanding in 3D CNNs for Actions Recognition in Video, IPTA; std
    is the population's. All K classes get the same map.
    """

    name = "fem"
    graph = None

    def __init__(
        self,
        model: nn.Module,
        target_layers: Layers | None = None,
        *,
        k: float = 2.0,
        **reading: Unpack[Reading],
    ) -> None:
        """As for the other methods.

        Args:
            k: how many standard deviations above the mean an activation is rare.
        """
        super().__init__(model, target_layers, **reading)
        self.k = k

    def layer_maps(self, record: Capture, selection: Selection, relu: bool) -> list[Tensor]:
        maps = []
        for activations in record.activations:
            weights = rare_shares(activations, self.k)
            maps.append(for_every_class(ops.weighted_sum(activations, weights, relu), selection))
        return maps


def rare_shares(activations: Tensor, k: float) -> Tensor:
    """FEM's weights (N, C), of activations (N, C, *S); NaN if a channel is not finite."""
    a = activations if activations.dtype == torch.float64 else activations.float()
    a = a.flatten(2)
    mean = a.mean(2, keepdim=True)
    deviation = (a - mean).square().mean(2, keepdim=True).sqrt()
    shares = (a > mean + k * deviation).to(a.dtype).mean(2)
    return shares.where(mean.squeeze(2).isfinite(), torch.nan)


class RandomCAM(MapMethod):
    """M = ReLU(sum_k w_k A^k), w_k uniform in [-1, 1]: what any other method should beat.

    All K classes get the same map.
    """

    name = "randomcam"
    graph = None

    def __init__(
        self,
        model: nn.Module,
        target_layers: Layers | None = None,
        *,
        seed: int = 0,
        **reading: Unpack[Reading],
    ) -> None:
        """As for the other methods.

        Args:
            seed: of the weights; every call draws the same ones.
        """
        super().__init__(model, target_layers, **reading)
        self.seed = seed

    def layer_maps(self, record: Capture, selection: Selection, relu: bool) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        maps = []
        for activations in record.activations:
            dtype = torch.promote_types(activations.dtype, torch.float32)
            weights = torch.empty(activations.shape[:2], dtype=dtype)
            weights.uniform_(-1, 1, generator=generator)
            weights = weights.to(activations.device)
            maps.append(for_every_class(ops.weighted_sum(activations, weights, relu), selection))
        return maps
