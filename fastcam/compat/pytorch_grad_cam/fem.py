"""FEM: channels weighted by their share of unusually high activations."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastcam import ops
from fastcam.compat.pytorch_grad_cam.base_cam import BaseCAM
from fastcam.compat.pytorch_grad_cam.formulas import Reshape
from fastcam.dropin.pytorch_grad_cam.run import Array
from fastcam.methods.activation import rare_shares


class FEM(BaseCAM):
    """w_k = the share of positions with A > mean + k std; Fuad et al. 2020, IPTA.

    Args:
        k: the threshold, in standard deviations above the mean.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: list[nn.Module],
        reshape_transform: Reshape = None,
        k: float = 2,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform, uses_gradients=False)
        self.k = k

    def get_cam_image(
        self,
        input_tensor: Any,
        target_layer: Any,
        target_category: Any,
        activations: Array,
        grads: Any,
        eigen_smooth: bool = False,
    ) -> Array:
        """(N, *S)."""
        a = torch.from_numpy(activations)
        return ops.weighted_sum(a, rare_shares(a, self.k), relu=False).numpy()
