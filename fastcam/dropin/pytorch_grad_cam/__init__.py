"""Takes pytorch-grad-cam over in place."""

from __future__ import annotations

import functools
import importlib
import inspect
from typing import Any

from fastcam.dropin.calls import counted
from fastcam.dropin.pytorch_grad_cam import factorization, image, metrics, projection
from fastcam.dropin.pytorch_grad_cam.ablation import ablation_weights
from fastcam.dropin.pytorch_grad_cam.finer import finer_map, finer_targets, ranks_there
from fastcam.dropin.pytorch_grad_cam.fullgrad import full_gradient
from fastcam.dropin.pytorch_grad_cam.guided import guided_gradient
from fastcam.dropin.pytorch_grad_cam.maps import FORMULAS, KERNELS, Formula, explain, top_classes
from fastcam.dropin.pytorch_grad_cam.refine import product_of_maps
from fastcam.dropin.pytorch_grad_cam.run import RUNNERS, Choose, OnTheCPU, clear
from fastcam.dropin.pytorch_grad_cam.score import score_weights
from fastcam.dropin.pytorch_grad_cam.sess import map_of_windows
from fastcam.dropin.takeover import Replacement, Takeover

_RUN = tuple(
    f"pytorch_grad_cam.{name}"
    for name in ("activations_and_gradients", "base_cam", "utils.image", "utils.model_targets")
)
"""The modules whose code a run with its maps replaces."""

_FUNCTIONS: tuple[tuple[str, Replacement], ...] = (
    ("utils.image.deprocess_image", image.deprocess_image),
    ("utils.image.scale_accross_batch_and_channels", image.scale_accross_batch_and_channels),
    ("utils.image.scale_cam_image", image.scale_cam_image),
    ("utils.image.show_cam_on_image", image.show_cam_on_image),
    ("utils.image.show_factorization_on_image", image.show_factorization_on_image),
    ("utils.svd_on_activations.get_2d_projection", projection.get_2d_projection),
    ("utils.svd_on_activations.get_2d_projection_kernel", projection.get_2d_projection_kernel),
    (
        "utils.svd_on_activations.get_2d_projection_with_sign_correction",
        projection.get_2d_projection_with_sign_correction,
    ),
)
_CALLS: tuple[tuple[str, Replacement], ...] = (
    ("metrics.perturbation_confidence.PerturbationConfidenceMetric", metrics.confidence_change),
    ("metrics.perturbation_confidence.AveragerAcrossThresholds", metrics.mean_change),
    ("metrics.perturbation_confidence.RemoveMostRelevantFirst", metrics.without_most_relevant),
    ("metrics.perturbation_confidence.RemoveLeastRelevantFirst", metrics.without_least_relevant),
    ("metrics.road.NoisyLinearImputer", metrics.impute),
    (
        "feature_factorization.deep_feature_factorization.DeepFeatureFactorization",
        factorization.factorized,
    ),
)
"""Classes, and the replacement of their ``__call__``."""


def _counting(name: str, ours: Replacement, present: Replacement) -> Replacement:
    """Wraps fastcam's function to count its calls."""

    def replacement(*args: Any, **kwargs: Any) -> Any:
        with counted(f"pytorch_grad_cam.{name}"):
            return ours(*args, **kwargs)

    return replacement


def _of_library(name: str) -> Any:
    """The library's object of this name, or None if the release lacks it."""
    path, _, last = name.rpartition(".")
    return getattr(importlib.import_module(f"pytorch_grad_cam.{path}"), last, None)


def take_over(takeover: Takeover) -> None:
    """Replaces the functions and methods that fastcam implements."""
    peer = importlib.import_module("pytorch_grad_cam")
    base = importlib.import_module("pytorch_grad_cam.base_cam")
    model_targets = importlib.import_module("pytorch_grad_cam.utils.model_targets")

    def chosen(targets: Any) -> Choose:
        def choose(outputs: Any) -> Any:
            if targets is None:
                return top_classes(outputs, model_targets.ClassifierOutputTarget)
            return targets

        return choose

    def forward(present: Replacement) -> Replacement:
        def replacement(
            cam: Any, input_tensor: Any, targets: Any, eigen_smooth: Any = False
        ) -> Any:
            return explain(
                cam,
                input_tensor,
                chosen(targets),
                eigen_smooth,
                lambda: present(cam, input_tensor, targets, eigen_smooth),
                f"pytorch_grad_cam.{type(cam).__name__}",
            )

        return replacement

    def full_gradient_forward(present: Replacement) -> Replacement:
        def replacement(
            cam: Any, input_tensor: Any, targets: Any, eigen_smooth: Any = False
        ) -> Any:
            def otherwise() -> Any:
                return present(cam, input_tensor, targets, eigen_smooth)

            if eigen_smooth:
                return otherwise()
            return full_gradient(cam, input_tensor, chosen(targets), otherwise)

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
                if default is None:  # a release that drops ranks beyond the number of classes
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

    def score(present: Replacement) -> Replacement:
        def replacement(
            cam: Any, input_tensor: Any, layer: Any, targets: Any, activations: Any, grads: Any
        ) -> Any:
            return score_weights(cam, input_tensor, targets, activations)

        return replacement

    def refine(present: Replacement) -> Replacement:
        def replacement(*args: Any, **kwargs: Any) -> Any:
            return product_of_maps(*args, **kwargs)

        return replacement

    def sess(present: Replacement) -> Replacement:
        def replacement(sess: Any, *args: Any, **kwargs: Any) -> Any:
            return map_of_windows(sess, peer.SESS, *args, **kwargs)

        return replacement

    def clearing(present: Replacement) -> Replacement:
        def replacement(kept: Any) -> None:
            (clear if type(kept) in RUNNERS else present)(kept)

        return replacement

    for name, ours in _FUNCTIONS:
        function = _of_library(name)
        if function is not None:
            takeover.function(function, functools.partial(_counting, name, ours))
    for name, ours in _CALLS:
        takeover.method(_of_library(name), "__call__", functools.partial(_counting, name, ours))
    for name, kernel in KERNELS.items():
        there = getattr(peer, name)
        guard = takeover.guard(name, there.__module__, *_RUN)
        if guard is not None:
            takeover.on_undo(functools.partial(FORMULAS.pop, there, None))
            FORMULAS[there] = Formula(kernel, guard.changed)
    if takeover.guard("ActivationsAndGradients", *_RUN):
        takeover.on_undo(lambda: RUNNERS.discard(peer.ActivationsAndGradients))
        RUNNERS.add(peer.ActivationsAndGradients)
        for name in ("activations", "gradients"):
            takeover.attribute(peer.ActivationsAndGradients, name, OnTheCPU(name))
    if hasattr(peer.ActivationsAndGradients, "clear"):  # not in every release
        takeover.method(peer.ActivationsAndGradients, "clear", clearing)
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
        takeover.method(peer.RefineCAM, "forward", refine, *_RUN)
    if hasattr(peer, "SESS"):
        takeover.method(peer.SESS, "forward_single_image", sess, *_RUN)
    takeover.method(peer.ScoreCAM, "get_cam_weights", score)
