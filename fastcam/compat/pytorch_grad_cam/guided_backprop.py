"""Guided backpropagation of the first image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastcam import ops
from fastcam.dropin.pytorch_grad_cam.guided import guided_gradient
from fastcam.dropin.pytorch_grad_cam.run import Array


class GuidedBackpropReLU:
    """ReLU whose backward passes only positive gradients at positive inputs."""

    apply = staticmethod(ops.guided_relu)


class GuidedBackpropReLUasModule(nn.Module):
    """:class:`GuidedBackpropReLU` as a module, to replace ``nn.ReLU``."""

    def forward(self, input_img: Tensor) -> Tensor:
        """The rectified input."""
        return ops.guided_relu(input_img)


class GuidedBackpropReLUModel:
    """The gradient of the input with every nn.ReLU as in :class:`GuidedBackpropReLU`.

    Springenberg et al. 2015, arXiv 1412.6806. Other activations, including ReLU functions, are
    unchanged.

    Args:
        model: the network; it is set to evaluation mode.
        device: the device to move the model to; None to leave it on its device.
    """

    def __init__(self, model: nn.Module, device: Any = None) -> None:
        self.model = model.eval()
        if device is None:
            self.device = next(self.model.parameters()).device
        else:
            self.device = torch.device(device)
            self.model = self.model.to(self.device)

    def forward(self, input_img: Tensor) -> Any:
        """The output of the model."""
        return self.model(input_img)

    def __call__(self, input_img: Tensor, target_category: int | None = None) -> Array:
        """(H, W, C) of the first image, for a class or the one with the highest score.

        As in pytorch-grad-cam, the gradient is added to ``input_img.grad`` and the sum is returned,
        and the highest score is that of all images. With :attr:`Settings.fix` it is the gradient
        and the highest score of the first image alone.
        """
        return guided_gradient(self, input_img, target_category)
