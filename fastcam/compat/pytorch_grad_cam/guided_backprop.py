"""Guided backpropagation of the first image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastcam import ops
from fastcam.dropin.pytorch_grad_cam.guided import guided_gradient
from fastcam.dropin.pytorch_grad_cam.run import Array


class GuidedBackpropReLU:
    """ReLU whose backward lets positive gradients at positive inputs pass."""

    apply = staticmethod(ops.guided_relu)


class GuidedBackpropReLUasModule(nn.Module):
    """:class:`GuidedBackpropReLU` in the place of an ``nn.ReLU``."""

    def forward(self, input_img: Tensor) -> Tensor:
        """The rectified input."""
        return ops.guided_relu(input_img)


class GuidedBackpropReLUModel:
    """The input's gradient, where every nn.ReLU lets positive gradients at positive inputs pass.

    Springenberg et al. 2015, arXiv 1412.6806. Other activations, functions among them, stay as they
    are.

    Args:
        model: the network; it is put into evaluation mode.
        device: moves the model there; None leaves it where it is.
    """

    def __init__(self, model: nn.Module, device: Any = None) -> None:
        self.model = model.eval()
        if device is None:
            self.device = next(self.model.parameters()).device
        else:
            self.device = torch.device(device)
            self.model = self.model.to(self.device)

    def forward(self, input_img: Tensor) -> Any:
        """What the model returns."""
        return self.model(input_img)

    def __call__(self, input_img: Tensor, target_category: int | None = None) -> Array:
        """(H, W, C) of the first image, for a class or the one with the highest score.

        As pytorch-grad-cam does, the gradient is added to ``input_img.grad``, and the sum is the
        answer; and the highest score is that of all images. With :attr:`Settings.fix` neither is.
        """
        return guided_gradient(self, input_img, target_category)
