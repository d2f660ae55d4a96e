"""Modules that replace a target layer and return its activations with channels ablated."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastcam.dropin.pytorch_grad_cam.ablation import values_of_ablated
from fastcam.dropin.pytorch_grad_cam.projection import get_2d_projection
from fastcam.dropin.pytorch_grad_cam.run import Array


class AblationLayer(nn.Module):
    """Ablates a different channel in each row of activations (R, C, *S)."""

    indices: Any
    activations: Any

    def objectiveness_mask_from_svd(self, activations: Array, threshold: float = 0.01) -> Array:
        """(*S): whether the first principal component of (C, *S) exceeds a share of its range."""
        component = np.abs(get_2d_projection(activations[None])[0])
        component = component - component.min()
        mask: Array = component / component.max() > threshold
        return mask

    def activations_to_be_ablated(
        self, activations: Array, ratio_channels_to_ablate: float = 1.0
    ) -> Array:
        """The channels of (C, *S) to ablate: all, or those with the highest and lowest objectness.

        The objectness of a channel is the share of its values inside
        :meth:`objectiveness_mask_from_svd`.
        """
        if ratio_channels_to_ablate == 1.0:
            self.indices = np.arange(len(activations), dtype=np.int32)
            return self.indices
        mask = self.objectiveness_mask_from_svd(activations)
        values = np.abs(activations).reshape(len(activations), -1)
        values = values - values.min(axis=1, keepdims=True)
        values = values / values.max(axis=1, keepdims=True)
        order = np.argsort(np.float32((values * mask.ravel()).sum(1) / values.sum(1)))
        count = int(len(order) * ratio_channels_to_ablate)
        self.indices = np.int32(np.concatenate([order[::-1][:count], order[:count]]))
        return self.indices

    def set_next_batch(
        self, input_batch_index: int, activations: Any, num_channels_to_ablate: int
    ) -> None:
        """Sets the next activations: those of one image, repeated for every channel."""
        self.activations = _repeated(activations[input_batch_index], num_channels_to_ablate)

    def __call__(self, x: Any) -> Any:
        """The activations with row i's channel ``indices[i]`` ablated; ``x`` is not used."""
        ablate(self.activations, self.indices)
        return self.activations


class AblationLayerVit(AblationLayer):
    """The same for tokens (N, T, C)."""

    def __call__(self, x: Any) -> Any:
        """See :meth:`AblationLayer.__call__`."""
        ablate(self.activations.transpose(1, -1), self.indices)
        return self.activations


class AblationLayerFasterRCNN(AblationLayer):
    """The same for a feature pyramid: five levels "0" to "3" and "pool", of 256 channels each."""

    def set_next_batch(
        self, input_batch_index: int, activations: Mapping[str, Tensor], num_channels_to_ablate: int
    ) -> None:
        """See :meth:`AblationLayer.set_next_batch`."""
        self.activations = OrderedDict(
            (level, _repeated(each[input_batch_index], num_channels_to_ablate))
            for level, each in activations.items()
        )

    def __call__(self, x: Any) -> Any:
        """See :meth:`AblationLayer.__call__`."""
        levels = ("0", "1", "2", "3", "pool")
        for row in range(len(self.activations["pool"])):
            level, channel = divmod(int(self.indices[row]), 256)
            self.activations[levels[level]][row, channel] = -1000
        return self.activations


def ablate(activations: Tensor, channels: Any) -> None:
    """Ablates channel ``channels[i]`` of each row i of (R, C, *S).

    Sets it to 0 if the least of all activations is 0, otherwise far below the least. The value
    decreases from row to row, because earlier rows count among the activations.
    """
    count = len(activations)
    values = values_of_ablated(float(activations.min()) if count else 0.0, count)
    rows = torch.arange(count, device=activations.device)
    chosen = torch.as_tensor(np.asarray(channels[:count]), device=activations.device).long()
    written = torch.tensor(values, dtype=activations.dtype, device=activations.device)
    shape = (count, *[1] * (activations.dim() - 2))
    activations[rows, chosen] = written.reshape(shape).expand_as(activations[rows, chosen])


def _repeated(activations: Tensor, count: int) -> Tensor:
    return activations.unsqueeze(0).repeat(count, *[1] * activations.dim())
