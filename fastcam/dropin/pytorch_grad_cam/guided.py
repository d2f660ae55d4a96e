"""Guided backpropagation of the first image."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from fastcam.dropin.calls import counted
from fastcam.dropin.pytorch_grad_cam.run import Array
from fastcam.dropin.settings import settings


def guided_gradient(guided: Any, input_img: Tensor, target_category: int | None) -> Array:
    """The result (H, W, C) of a GuidedBackpropReLUModel object."""
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
        call.why = "hooks on the ReLUs, which are not replaced"
    first: Array = gradient[0].movedim(0, -1).cpu().numpy()
    return first


def _guide(module: nn.Module, args: Any, output: Tensor) -> None:
    """Keeps only positive gradients; ReLU's backward then keeps those at positive inputs."""
    if output.requires_grad:
        output.register_hook(torch.relu)
