"""Score-CAM: channels weighted by the scores of images masked by their activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fastcam.compat.pytorch_grad_cam.base_cam import BaseCAM
from fastcam.dropin.pytorch_grad_cam.run import Array, TargetFunctions
from fastcam.dropin.pytorch_grad_cam.score import score_weights


class ScoreCAM(BaseCAM):
    """w = softmax over k of S(x H_k), H_k the enlarged A^k scaled to [0, 1].

    Wang et al. 2020, arXiv 1910.01279. The attribute ``batch_size`` sets the number of masked
    images per run.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: list[nn.Module],
        reshape_transform: Callable[[Any], Tensor] | None = None,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform, uses_gradients=False)

    def get_cam_weights(
        self,
        input_tensor: Tensor,
        target_layers: Any,
        targets: TargetFunctions,
        activations: Array,
        grads: Any,
    ) -> Array:
        """(N, C)."""
        return score_weights(self, input_tensor, targets, activations)
