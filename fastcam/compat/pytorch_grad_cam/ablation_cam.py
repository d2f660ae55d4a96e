"""Ablation-CAM: channels weighted by the drop of the score when they are ablated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastcam.compat.pytorch_grad_cam.ablation_layer import AblationLayer
from fastcam.compat.pytorch_grad_cam.base_cam import BaseCAM
from fastcam.compat.pytorch_grad_cam.utils.find_layers import replace_layer_recursive
from fastcam.dropin.pytorch_grad_cam.ablation import ablation_weights, float32
from fastcam.dropin.pytorch_grad_cam.run import Array, TargetFunctions, aside


class AblationCAM(BaseCAM):
    """w_k = (S - S_k) / S, S_k the score without channel k.

    Desai and Ramaswamy 2020, Ablation-CAM, WACV. An ablated channel is set to 0 if the least
    activation is 0, otherwise to a value far below the least.

    Args:
        ablation_layer: the module that replaces the layer meanwhile.
        batch_size: the number of ablated activations per run.
        ratio_channels_to_ablate: the share of channels to ablate, see
            :meth:`AblationLayer.activations_to_be_ablated`; S_k = S for the others.
    """

    activations: Any

    def __init__(
        self,
        model: nn.Module,
        target_layers: list[nn.Module],
        reshape_transform: Callable[[Any], Tensor] | None = None,
        ablation_layer: nn.Module | None = None,
        batch_size: int = 32,
        ratio_channels_to_ablate: float = 1.0,
    ) -> None:
        super().__init__(model, target_layers, reshape_transform, uses_gradients=False)
        self.batch_size = batch_size
        self.ablation_layer: Any = AblationLayer() if ablation_layer is None else ablation_layer
        self.ratio_channels_to_ablate = ratio_channels_to_ablate

    def save_activation(self, module: nn.Module, args: Any, output: Any) -> None:
        """A forward hook that saves the output of the target layer."""
        self.activations = output

    def assemble_ablation_scores(
        self,
        new_scores: Any,
        original_score: Any,
        ablated_channels: Array,
        number_of_channels: int,
    ) -> list[Any]:
        """S_k of every channel: the new score if it was ablated, else the original score."""
        order = np.argsort(ablated_channels)
        waiting = list(zip(ablated_channels[order], float32(new_scores)[order], strict=True))
        scores = []
        for channel in range(number_of_channels):
            ablated = bool(waiting) and waiting[0][0] == channel
            scores.append(waiting.pop(0)[1] if ablated else original_score)
        return scores

    def get_cam_weights(
        self,
        input_tensor: Tensor,
        target_layers: Any,
        targets: TargetFunctions,
        activations: Array,
        grads: Any,
    ) -> Array:
        """(N, C)."""
        return ablation_weights(
            self,
            input_tensor,
            target_layers,
            targets,
            activations,
            lambda: self._by_replacing(input_tensor, target_layers, targets, activations),
        )

    def _by_replacing(
        self,
        input_tensor: Tensor,
        layer: nn.Module,
        targets: TargetFunctions,
        activations: Array,
    ) -> Array:
        """The weights by runs of the whole network with :attr:`ablation_layer` as the layer."""
        stand_in = self.ablation_layer
        with torch.no_grad(), aside(self):
            handle = layer.register_forward_hook(self.save_activation)
            try:
                outputs = self.model(input_tensor)
            finally:
                handle.remove()
            pairs = zip(targets, outputs, strict=False)
            original = float32([target(output).item() for target, output in pairs])
            replace_layer_recursive(self.model, layer, stand_in)
            try:
                scores = [
                    self._scores_of(image, i, target, activations[i], original[i])
                    for i, (target, image) in enumerate(zip(targets, input_tensor, strict=False))
                ]
            finally:
                replace_layer_recursive(self.model, stand_in, layer)
        left = float32(scores).reshape(activations.shape[:2])
        return (original[:, None] - left) / original[:, None]

    def _scores_of(
        self, image: Tensor, index: int, target: Any, activations: Array, original: Any
    ) -> list[Any]:
        stand_in = self.ablation_layer
        channels = stand_in.activations_to_be_ablated(activations, self.ratio_channels_to_ablate)
        found: list[float] = []
        for start in range(0, len(channels), self.batch_size):
            count = min(self.batch_size, len(channels) - start)
            stand_in.set_next_batch(
                input_batch_index=index,
                activations=self.activations,
                num_channels_to_ablate=count,
            )
            batch = image.repeat(count, *[1] * image.dim())
            found += [target(output).item() for output in self.model(batch)]
            stand_in.indices = stand_in.indices[count:]
        return self.assemble_ablation_scores(found, original, channels, len(activations))
