"""The methods: a network and images in, maps out. One table of names, :data:`METHODS`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from fastcam.engine.inputs import (
    Argument,
    Inputs,
)
from fastcam.engine.layers import Layers
from fastcam.engine.outputs import (
    Output,
)
from fastcam.engine.shapes import Reshape
from fastcam.methods.activation import FEM, RandomCAM
from fastcam.methods.base import Method
from fastcam.methods.composed import SESS, FinerCAM, RefineCAM
from fastcam.methods.eigen import KPCACAM, EigenCAM, EigenGradCAM, SegEigenCAM
from fastcam.methods.explanation import Explanation
from fastcam.methods.fullgrad import FullGrad
from fastcam.methods.gradient import (
    CAM,
    GradCAM,
    GradCAMElementWise,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    XGradCAM,
)
from fastcam.methods.guided import Deconvnet, GuidedBackprop, GuidedGradCAM
from fastcam.methods.legrad import LeGrad
from fastcam.methods.masking import ISCAM, SSCAM, AblationCAM, ScoreCAM
from fastcam.methods.shapley import ShapleyCAM
from fastcam.methods.smooth import SmoothGradCAMPlusPlus
from fastcam.targets import Targets

__all__ = [
    "CAM",
    "FEM",
    "ISCAM",
    "KPCACAM",
    "METHODS",
    "SESS",
    "SSCAM",
    "AblationCAM",
    "Deconvnet",
    "EigenCAM",
    "EigenGradCAM",
    "Explanation",
    "FinerCAM",
    "FullGrad",
    "GradCAM",
    "GradCAMElementWise",
    "GradCAMPlusPlus",
    "GuidedBackprop",
    "GuidedGradCAM",
    "HiResCAM",
    "LayerCAM",
    "LeGrad",
    "RandomCAM",
    "RefineCAM",
    "ScoreCAM",
    "SegEigenCAM",
    "ShapleyCAM",
    "SmoothGradCAMPlusPlus",
    "XGradCAM",
    "explain",
]

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        CAM,
        GradCAM,
        GradCAMPlusPlus,
        XGradCAM,
        HiResCAM,
        LayerCAM,
        GradCAMElementWise,
        ShapleyCAM,
        SmoothGradCAMPlusPlus,
        FinerCAM,
        RefineCAM,
        SESS,
        EigenCAM,
        EigenGradCAM,
        SegEigenCAM,
        KPCACAM,
        FEM,
        RandomCAM,
        ScoreCAM,
        SSCAM,
        ISCAM,
        AblationCAM,
        LeGrad,
        FullGrad,
        GuidedBackprop,
        Deconvnet,
        GuidedGradCAM,
    )
}
"""Every method by the name that Python, command line and benchmarks use."""


def explain(
    model: nn.Module,
    images: Inputs,
    method: str = "gradcam++",
    target_layers: Layers | None = None,
    targets: Targets = None,
    *,
    reshape: Reshape | None = None,
    output: Output | None = None,
    per_image: Collection[Argument] | None = None,
    run: int | None = None,
    **options: Any,
) -> Explanation:
    """One explanation in one call: maps, class ids, scores and outputs from one forward.

    Args:
        model, target_layers, reshape, output, per_image, run: as the methods' constructors take
            them.
        images, targets: as the methods' calls take them.
        method: a name of :data:`METHODS`.
        options: the call's ``size``, ``normalize`` and ``relu``.

    Raises:
        ValueError, TypeError: as the method does, and for a name that is not in the table.
    """
    if method not in METHODS:
        raise ValueError(f"method: got '{method}', expected one of {', '.join(METHODS)}")
    cam: Any = METHODS[method](
        model, target_layers, reshape=reshape, output=output, per_image=per_image, run=run
    )
    maps = cam(images, targets, **options)
    return Explanation(maps, cam.class_ids, cam.scores, cam.outputs)
