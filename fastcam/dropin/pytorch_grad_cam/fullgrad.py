"""FullGrad: one map from the gradients of the input and of all biases."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from fastcam.dropin.calls import counted
from fastcam.dropin.pytorch_grad_cam.image import scale_cam_image
from fastcam.dropin.pytorch_grad_cam.maps import SCALE_EPS
from fastcam.dropin.pytorch_grad_cam.run import Array, Choose, NotServed, aside, check_served
from fastcam.methods.fullgrad import summed


def full_gradient(
    cam: Any, input_tensor: Tensor, choose: Choose, otherwise: Callable[[], Array]
) -> Array:
    """The maps of a FullGrad object, by one backward pass to the layers and the input.

    Args:
        choose: returns the targets for the outputs.
        otherwise: runs the library's code.
    """
    with counted(f"pytorch_grad_cam.{type(cam).__name__}") as call:
        try:
            images, gradients = _gradients(cam, input_tensor, choose)
        except NotServed as reason:
            call.leave_to("pytorch_grad_cam", str(reason))
            return otherwise()
        call.why = "one backward to all biases, channels summed before they are enlarged"
        size = tuple(cam.get_target_width_height(images))[::-1]
        with torch.no_grad():
            maps = summed(bias_products(cam, images, gradients), size, SCALE_EPS)
        return scale_cam_image(maps.cpu().numpy())


def _gradients(cam: Any, input_tensor: Any, choose: Choose) -> tuple[Tensor, Sequence[Tensor]]:
    """The images, and the gradients with respect to them and to the output of each layer."""
    check_served(cam, input_tensor)
    images = input_tensor.detach().to(cam.device).requires_grad_()
    edges: list[GradientEdge] = []

    def keep(module: nn.Module, args: Any, output: Tensor) -> None:
        edges.append(get_gradient_edge(output))

    with ExitStack() as during, torch.inference_mode(False), torch.enable_grad():
        during.enter_context(aside(cam))
        for layer in cam.target_layers:
            during.callback(layer.register_forward_hook(keep).remove)
        outputs = cam.model(images)
        if len(edges) != len(cam.target_layers):
            raise NotServed("a layer with a bias did not run exactly once")
        cam.outputs = outputs.detach()
        pairs = zip(choose(outputs), outputs, strict=False)
        loss: Any = sum(target(output) for target, output in pairs)
        wanted = [get_gradient_edge(images), *edges]
        gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
    if any(gradient is None for gradient in gradients):
        raise NotServed("the targets do not depend on every layer with a bias")
    return images, gradients


def bias_products(cam: Any, images: Tensor, gradients: Iterable[Tensor]) -> Iterator[Tensor]:
    """x dS/dx, then b dS/db of each layer, each (N, C, H, W), in the order of ``gradients``."""
    biases = (torch.from_numpy(b).to(images.device)[:, None, None] for b in cam.bias_data)
    for gradient, factor in zip(gradients, (images.detach(), *biases), strict=True):
        yield gradient.float() * factor
