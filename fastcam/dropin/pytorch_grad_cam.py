"""pytorch-grad-cam, taken over in place by :mod:`fastcam.compat.pytorch_grad_cam`."""

from __future__ import annotations

import functools
import importlib
import inspect
from typing import Any

from fastcam.compat import pytorch_grad_cam as ours
from fastcam.compat.pytorch_grad_cam.ablation_cam import ablation_weights
from fastcam.compat.pytorch_grad_cam.finer_cam import finer_map, finer_targets, ranks_there
from fastcam.compat.pytorch_grad_cam.fullgrad_cam import full_gradient
from fastcam.compat.pytorch_grad_cam.guided_backprop import guided_gradient
from fastcam.compat.pytorch_grad_cam.run import FORMULAS, RUNNERS, Formula, explain, top_classes
from fastcam.dropin.calls import counted
from fastcam.dropin.takeover import Replacement, Takeover

_FUSED = (
    "GradCAM",
    "GradCAMPlusPlus",
    "XGradCAM",
    "HiResCAM",
    "GradCAMElementWise",
    "LayerCAM",
    "ShapleyCAM",
)

_RUN = tuple(
    f"pytorch_grad_cam.{name}"
    for name in ("activations_and_gradients", "base_cam", "utils.image", "utils.model_targets")
)
"""Where that lies which a run with its maps stands for."""

_FUNCTIONS = {
    "utils.image": (
        "deprocess_image",
        "scale_accross_batch_and_channels",
        "scale_cam_image",
        "show_cam_on_image",
        "show_factorization_on_image",
    ),
    "utils.svd_on_activations": (
        "get_2d_projection",
        "get_2d_projection_kernel",
        "get_2d_projection_with_sign_correction",
    ),
}
_METHODS = {
    "metrics.perturbation_confidence": (
        "AveragerAcrossThresholds",
        "PerturbationConfidenceMetric",
        "RemoveLeastRelevantFirst",
        "RemoveMostRelevantFirst",
    ),
    "metrics.road": ("NoisyLinearImputer",),
    "feature_factorization.deep_feature_factorization": ("DeepFeatureFactorization",),
}


def _lent(path: str, name: str, present: Replacement) -> Replacement:
    """Our function or method of the same name, each call of it counted."""
    ours: Any = importlib.import_module(f"fastcam.compat.pytorch_grad_cam.{path}")
    for part in name.split("."):
        ours = getattr(ours, part)
    shown = f"pytorch_grad_cam.{path}.{name.removesuffix('.__call__')}"

    def replacement(*args: Any, **kwargs: Any) -> Any:
        with counted(shown):
            return ours(*args, **kwargs)

    return replacement


def take_over(takeover: Takeover) -> None:
    """Replaces what fastcam has."""
    peer = importlib.import_module("pytorch_grad_cam")
    base = importlib.import_module("pytorch_grad_cam.base_cam")
    model_targets = importlib.import_module("pytorch_grad_cam.utils.model_targets")

    def forward(present: Replacement) -> Replacement:
        def replacement(
            cam: Any, input_tensor: Any, targets: Any, eigen_smooth: Any = False
        ) -> Any:
            def choose(outputs: Any) -> Any:
                if targets is None:
                    return top_classes(outputs, model_targets.ClassifierOutputTarget)
                return targets

            return explain(
                cam,
                input_tensor,
                choose,
                eigen_smooth,
                lambda: present(cam, input_tensor, targets, eigen_smooth),
                f"pytorch_grad_cam.{type(cam).__name__}",
            )

        return replacement

    def full_gradient_forward(present: Replacement) -> Replacement:
        def replacement(
            cam: Any, input_tensor: Any, targets: Any, eigen_smooth: Any = False
        ) -> Any:
            if eigen_smooth:
                return present(cam, input_tensor, targets, eigen_smooth)
            return full_gradient(cam, input_tensor, targets)

        return replacement

    def finer_forward(present: Replacement) -> Replacement:
        default = inspect.signature(present).parameters["comparison_categories"].default

        def replacement(
            cam: Any,
            input_tensor: Any,
            targets: Any = None,
            eigen_smooth: bool = False,
            alpha: float = 1,
            comparison_categories: Any = default,
            target_idx: int | None = None,
        ) -> Any:
            def choose(outputs: Any) -> Any:
                if targets is not None:
                    return targets
                ranks = comparison_categories
                if default is None:  # a release that leaves out what there is not
                    ranks = ranks_there(ranks, outputs)
                target = model_targets.FinerWeightedTarget
                return finer_targets(outputs, alpha, ranks, target_idx, target)

            def otherwise() -> Any:
                return present(
                    cam,
                    input_tensor,
                    targets,
                    eigen_smooth,
                    alpha,
                    comparison_categories,
                    target_idx,
                )

            return finer_map(cam, input_tensor, choose, eigen_smooth, otherwise)

        return replacement

    def ablation(present: Replacement) -> Replacement:
        def replacement(
            cam: Any, input_tensor: Any, layer: Any, targets: Any, activations: Any, grads: Any
        ) -> Any:
            return ablation_weights(
                cam,
                input_tensor,
                layer,
                targets,
                activations,
                lambda: present(cam, input_tensor, layer, targets, activations, grads),
            )

        return replacement

    def guided(present: Replacement) -> Replacement:
        def replacement(model: Any, input_img: Any, target_category: Any = None) -> Any:
            return guided_gradient(model, input_img, target_category)

        return replacement

    def clear(present: Replacement) -> Replacement:
        def replacement(kept: Any) -> None:
            """Without bringing tensors to the CPU to forget them."""
            own = type(kept) in RUNNERS
            (ours.ActivationsAndGradients.clear if own else present)(kept)

        return replacement

    for path, names in _FUNCTIONS.items():
        module = importlib.import_module(f"pytorch_grad_cam.{path}")
        for name in names:
            if hasattr(module, name):  # not in every release
                function = getattr(module, name)
                takeover.function(function, functools.partial(_lent, path, name))
    for path, owners in _METHODS.items():
        for owner in owners:
            there = getattr(importlib.import_module(f"pytorch_grad_cam.{path}"), owner)
            takeover.method(there, "__call__", functools.partial(_lent, path, f"{owner}.__call__"))
    for name in _FUSED:
        there = getattr(peer, name)
        guard = takeover.guard(name, there.__module__, *_RUN)
        if guard is not None:
            kernel = FORMULAS[getattr(ours, name)].kernel
            takeover.on_undo(functools.partial(FORMULAS.pop, there, None))
            FORMULAS[there] = Formula(kernel, guard.changed)
    if takeover.guard("ActivationsAndGradients", *_RUN):
        takeover.on_undo(lambda: RUNNERS.discard(peer.ActivationsAndGradients))
        RUNNERS.add(peer.ActivationsAndGradients)
        for name in ("activations", "gradients"):
            lent = vars(ours.ActivationsAndGradients)[name]
            takeover.attribute(peer.ActivationsAndGradients, name, lent)
    if hasattr(peer.ActivationsAndGradients, "clear"):  # not in every release
        takeover.method(peer.ActivationsAndGradients, "clear", clear)
    find_layers = "pytorch_grad_cam.utils.find_layers"
    takeover.method(base.BaseCAM, "forward", forward, *_RUN)
    takeover.method(peer.FullGrad, "forward", full_gradient_forward, *_RUN)
    takeover.method(peer.FinerCAM, "forward", finer_forward, *_RUN)
    takeover.method(
        peer.AblationCAM,
        "get_cam_weights",
        ablation,
        "pytorch_grad_cam.ablation_layer",
        find_layers,
    )
    takeover.method(peer.GuidedBackpropReLUModel, "__call__", guided, find_layers)
    if hasattr(peer, "RefineCAM"):  # not in every release
        takeover.method(peer.RefineCAM, "forward", lambda present: ours.RefineCAM.forward, *_RUN)
    takeover.method(peer.ScoreCAM, "get_cam_weights", lambda present: ours.ScoreCAM.get_cam_weights)
