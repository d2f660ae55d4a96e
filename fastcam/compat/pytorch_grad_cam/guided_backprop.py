"""Guided backpropagation of the first image."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from fastcam.compat.pytorch_grad_cam.run import Array
from fastcam.dropin.calls import counted
from fastcam.dropin.settings import settings


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


def guided_gradient(guided: Any, input_img: Tensor, target_category: int | None) -> Array:
    """The answer of a GuidedBackpropReLUModel object."""
    given = input_img.to(guided.device)
    rows = given.detach() if target_category is None and not settings.fix else given.detach()[:1]
    images = rows.clone().requires_grad_()
    with ExitStack() as during, torch.inference_mode(False), torch.enable_grad():
        for module in guided.model.modules():
            if isinstance(module, nn.ReLU):
                during.callback(module.register_forward_hook(_guide).remove)
        output = guided.forward(images)
        if target_category is None:
            target_category = int(output.argmax())
        (gradient,) = torch.autograd.grad(output[0, target_category], images)
    if not settings.fix:
        whole = torch.zeros_like(given)
        whole[: len(gradient)] = gradient
        earlier = given.grad if given.is_leaf else None
        given.requires_grad_()
        given.grad = gradient = whole if earlier is None else earlier + whole
    with counted("pytorch_grad_cam.GuidedBackpropReLUModel") as call:
        call.why = "the model's modules stay in their places"
    first: Array = gradient[0].movedim(0, -1).cpu().numpy()
    return first


def _guide(module: nn.Module, args: Any, output: Tensor) -> None:
    """ReLU's own backward passes gradients at positive inputs; this, the positive ones of them."""
    if output.requires_grad:
        output.register_hook(torch.relu)
