"""The maps of a CAM object of pytorch-grad-cam, by a kernel or by its own methods in numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastcam import ops
from fastcam.dropin.calls import counted
from fastcam.dropin.pytorch_grad_cam.image import scale_cam_image
from fastcam.dropin.pytorch_grad_cam.run import (
    Array,
    Choose,
    NotServed,
    Run,
    TargetFunctions,
    detached,
    keep,
    run_of,
)
from fastcam.dropin.settings import settings

METHODS = {
    "GradCAM": ("gradcam", 0.0),
    "GradCAMPlusPlus": ("gradcam++-signed", 1e-6),
    "XGradCAM": ("xgradcam", 1e-7),
    "HiResCAM": ("hirescam", 0.0),
    "GradCAMElementWise": ("gradcam-elementwise", 0.0),
    "LayerCAM": ("layercam", 0.0),
}
"""By class name, the method of :func:`fastcam.ops.cam` and its eps."""
SCALE_EPS = 1e-7  # added to the range of a map, as in scale_cam_image

OVERRIDABLE = frozenset(
    ("get_cam_weights", "get_cam_image", "compute_cam_per_layer", "aggregate_multi_layers")
)
"""The methods that a user's subclass may override; they take numpy arrays."""


Kernel = Callable[[Any, Run, TargetFunctions], list[Tensor]]
"""From the object, its run and the targets to one map (N, *S) per layer."""


def _weighing(method: str, eps: float) -> Kernel:
    """The kernel of a method of :func:`fastcam.ops.cam`."""

    def kernel(cam: Any, run: Run, targets: TargetFunctions) -> list[Tensor]:
        gradients = run.gradients(targets)
        keep(cam, run.activations, gradients)
        pairs = zip(run.activations, gradients, strict=True)
        return [ops.cam(a, g, method, eps=eps) for a, g in pairs]

    return kernel


def _shapley_maps(cam: Any, run: Run, targets: TargetFunctions) -> list[Tensor]:
    """w_k = mean(g - H A / 2), H the Hessian of S with respect to A."""
    products = run.hessian_products(targets)
    keep(cam, run.activations, [])  # pytorch-grad-cam's hooks keep gradients of both orders
    maps = []
    for a, (gradient, product) in zip(run.handed_on, products, strict=True):
        weights = ops.gap(gradient) - ops.gap(product) / 2
        maps.append(ops.weighted_sum(run.reshape(a.detach()), weights))
    return maps


KERNELS: dict[str, Kernel] = {
    **{name: _weighing(*method) for name, method in METHODS.items()},
    "ShapleyCAM": _shapley_maps,
}
"""By class name."""


class Formula(NamedTuple):
    """The kernel that replaces the methods of a class."""

    kernel: Kernel
    changed: Callable[[], str | None] = lambda: None
    """Which change to these methods rules out the kernel, or None if there is none."""


FORMULAS: dict[type, Formula] = {}


def explain(
    cam: Any,
    input_tensor: Any,
    choose: Choose,
    eigen_smooth: bool,
    otherwise: Callable[[], Any],
    name: str,
) -> Any:
    """The maps (N, *S) of a CAM object, as a float32 array.

    Args:
        cam: the object.
        choose: returns the targets for the outputs.
        eigen_smooth: whether the map is a principal component; numpy computes it.
        otherwise: runs the library's code.
        name: the name of the call in the report.
    """
    with counted(name) as call:
        try:
            run, targets, maps = _maps(cam, input_tensor, choose, eigen_smooth)
        except NotServed as reason:
            call.leave_to("pytorch_grad_cam", str(reason))
            return otherwise()
        if maps is not None:
            call.why = "network recorded above the layer, maps by fused kernels"
            return _finished(cam, run.images, maps)
        call.why = "network recorded above the layer, maps in numpy"
        per_layer = cam.compute_cam_per_layer(run.images, targets, eigen_smooth)
        return cam.aggregate_multi_layers(per_layer)


def _maps(
    cam: Any, input_tensor: Any, choose: Choose, eigen_smooth: bool
) -> tuple[Run, TargetFunctions, list[Tensor] | None]:
    """The run, its targets, and one map per layer if the object's class has a kernel.

    Otherwise stores activations and gradients on the object, for the methods of its class.
    """
    kernel = kernel_of(cam)
    run = run_of(cam, input_tensor, second_order=kernel is not None and not cam.detach)
    cam.outputs = detached(run.outputs)
    targets = choose(run.outputs)
    if settings.fix and len(targets) != len(run.images):
        raise ValueError(f"targets: got {len(targets)}, expected {len(run.images)}, one per image")
    if kernel is not None and not eigen_smooth and {a.dim() for a in run.activations} <= {4, 5}:
        return run, targets, kernel(cam, run, targets)
    if not cam.detach:
        raise NotServed("it keeps the graph of the whole network")
    keep(cam, run.activations, run.gradients(targets) if cam.uses_gradients else [])
    return run, targets, None


def kernel_of(cam: Any) -> Kernel | None:
    """The kernel of an object's class, unless the object or a subclass overrides the formula."""
    if OVERRIDABLE & vars(cam).keys():
        return None
    for each in type(cam).__mro__:
        if each in FORMULAS:
            formula = FORMULAS[each]
            return None if formula.changed() else formula.kernel
        if OVERRIDABLE & vars(each).keys():
            return None
    return None


def top_classes(outputs: Tensor, target: Any) -> TargetFunctions:
    """One ``target`` per image, for the class with the highest score."""
    categories = np.argmax(outputs.detach().cpu().numpy(), axis=-1)
    return [target(category) for category in categories]


def _finished(cam: Any, images: Tensor, maps: list[Tensor]) -> Array:
    """Normalizes and enlarges each layer's map, then normalizes the mean over layers."""
    size = tuple(cam.get_target_width_height(images))[::-1]
    if len(size) != 2:
        arrays = [scale_cam_image(m.float().cpu().numpy(), size[::-1]) for m in maps]
        finished: Array = cam.aggregate_multi_layers([each[:, None] for each in arrays])
        return finished
    scaled = [ops.normalize(m, eps=SCALE_EPS) for m in maps]
    if len(scaled) == 1:
        result = ops.upsample(scaled[0], size, eps=SCALE_EPS)
    else:
        enlarged = [ops.upsample(each, size, normalize=False) for each in scaled]
        result = ops.normalize(torch.stack(enlarged).mean(0), eps=SCALE_EPS)
    return result.float().cpu().numpy()
