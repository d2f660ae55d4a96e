"""The methods, which turn a network and images into maps. :data:`METHODS` lists them by name."""

from __future__ import annotations

from fastcam.methods.activation import FEM, RandomCAM
from fastcam.methods.base import Method
from fastcam.methods.composed import SESS, FinerCAM, RefineCAM
from fastcam.methods.eigen import KPCACAM, EigenCAM, EigenGradCAM, SegEigenCAM
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
from fastcam.methods.several import Several
from fastcam.methods.shapley import ShapleyCAM
from fastcam.methods.smooth import SmoothGradCAMPlusPlus

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
    "Several",
    "ShapleyCAM",
    "SmoothGradCAMPlusPlus",
    "XGradCAM",
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
"""Every method, by the name that Python, the command line and the benchmarks use."""
