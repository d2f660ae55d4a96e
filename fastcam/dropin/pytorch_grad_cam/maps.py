"""The maps of a CAM object of pytorch-grad-cam: by a kernel, or by its own methods in numpy."""

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
"""By the name of the class: the method of :func:`fastcam.ops.cam`, and its eps."""
SCALE_EPS = 1e-7  # beside the range of a map, as in scale_cam_image

OVERRIDABLE = frozenset(
    ("get_cam_weights", "get_cam_image", "compute_cam_per_layer", "aggregate_multi_layers")
)
"""What a user's subclass may have of its own; these get numpy arrays."""


Kernel = Callable[[Any, Run, TargetFunctions], list[Tensor]]
"""From the object, its run and the targets to a map a layer, (N, *S)."""


def _weighing(method: str, eps: float) -> Kernel:
    """The kernel of one of the methods of :func:`fastcam.ops.cam`."""

    def kernel(cam: Any, run: Run, targets: TargetFunctions) -> list[Tensor]:
        gradients = run.gradients(targets)
        keep(cam, run.activations, gradients)
        pairs = zip(run.activations, gradients, strict=True)
        return [ops.cam(a, g, method, eps=eps) for a, g in pairs]

    return kernel


def _shapley_maps(cam: Any, run: Run, targets: TargetFunctions) -> list[Tensor]:
    """w_k = mean(g - H A / 2), H the Hessian of S by A."""
    products = run.hessian_products(targets)
    keep(cam, run.activations, [])  # a run with hooks keeps those of both derivatives
    maps = []
    for a, (gradient, product) in zip(run.handed_on, products, strict=True):
        weights = ops.gap(gradient) - ops.gap(product) / 2
        maps.append(ops.weighted_sum(run.reshape(a.detach()), weights))
    return maps


KERNELS: dict[str, Kernel] = {
    **{name: _weighing(*method) for name, method in METHODS.items()},
    "ShapleyCAM": _shapley_maps,
}
"""By the name of the class."""


class Formula(NamedTuple):
    """What gives the maps of a class, in the place of its own methods."""

    kernel: Kernel
    changed: Callable[[], str | None] = lambda: None
    """What makes these methods others than those that the kernel stands for; None if nothing."""


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
        choose: gives the targets.
        eigen_smooth: whether the map is a principal component; numpy computes it.
        otherwise: the library's own way.
        name: of the call, for the report.
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
    """The run, its targets, and a map a layer where the object's class has a kernel.

    Otherwise activations and gradients lie where the class looks for them.
    """
    kernel = kernel_of(cam)
    run = run_of(cam, input_tensor, second_order=kernel is not None and not cam.detach)
    cam.outputs = detached(run.outputs)
    targets = choose(run.outputs)
    if settings.fix and len(targets) != len(run.images):
        raise ValueError(
            f"targets: got {len(targets)}, expected {len(run.images)}, one for each image"
        )
    if kernel is not None and not eigen_smooth and {a.dim() for a in run.activations} <= {4, 5}:
        return run, targets, kernel(cam, run, targets)
    if not cam.detach:
        raise NotServed("it keeps the graph of the whole network")
    keep(cam, run.activations, run.gradients(targets) if cam.uses_gradients else [])
    return run, targets, None


def kernel_of(cam: Any) -> Kernel | None:
    """The kernel of an object's class, unless it or a class below overrides the formula."""
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
    """The class of the highest score, as a ``target`` for each image."""
    categories = np.argmax(outputs.detach().cpu().numpy(), axis=-1)
    return [target(category) for category in categories]


def _finished(cam: Any, images: Tensor, maps: list[Tensor]) -> Array:
    """Each map normalized, enlarged; their mean normalized again."""
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
