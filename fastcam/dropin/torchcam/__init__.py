"""Takes torchcam over in place: maps by fastcam's kernels, graphs no larger than needed.

With torchcam, users run the network themselves, with its hooks registered. fastcam changes that
run, which records only from the first target layer up (:class:`~.forward.Forward`), and the
computation of the maps. torchcam's objects and their attributes stay the same.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any

from fastcam.dropin.imports import no_longer, when_imported
from fastcam.dropin.takeover import Takeover
from fastcam.dropin.torchcam import forward, fuse, maps, overlay, score, smooth
from fastcam.dropin.torchcam.peer import Peer
from fastcam.engine.trials import raise_out_of_memory
from fastcam.errors import first_line


def take_over(takeover: Takeover) -> None:
    """Replaces the methods that fastcam implements; torchcam.utils and explain once imported."""
    Peer.active = True
    takeover.on_undo(Peer.leave)
    _take_methods(takeover)
    _take_metrics(takeover)
    for name, take in (("torchcam.utils", _take_utils), ("torchcam.explain", _take_explain)):
        when_imported(name, functools.partial(_take_late, name, take, takeover))
        takeover.on_undo(functools.partial(no_longer, name))


def _take_late(name: str, take: Callable[[Takeover], None], takeover: Takeover) -> None:
    try:
        take(takeover)
        takeover.finish()
    except Exception as error:  # an unknown release must not break the user's import
        raise_out_of_memory(error)
        warnings.warn(f"fastcam.dropin: {name} is unchanged ({first_line(error)})", stacklevel=2)


def _take_methods(takeover: Takeover) -> None:
    for name in ("core", "activation", "gradient"):
        setattr(Peer, name, importlib.import_module(f"torchcam.methods.{name}"))
    core, activation, gradient = Peer.core, Peer.activation, Peer.gradient
    run = (core.__name__, gradient.__name__)
    Peer.run = takeover.guard("the recorded run", *run)
    takeover.method(gradient._GradCAM, "__init__", forward.begin_recording, *run)
    takeover.function(core._CAM._hook_a, forward.hook_a, *run)
    takeover.method(core._CAM, "compute_cams", maps.compute_cams)
    takeover.method(core._CAM, "_normalize", maps.normalize)
    takeover.method(core._CAM, "_fuse_cams", fuse.fuse_cams)
    for method, variations in (("ScoreCAM", score.once), ("SSCAM", None), ("ISCAM", score.growing)):
        owner = getattr(activation, method)
        make = functools.partial(score.score_weights, variations=variations)
        takeover.method(owner, "_get_score_weights", make, core.__name__)
    if hasattr(gradient.SmoothGradCAMpp, "_compute_smoothgrad_weights"):
        owner, name = gradient.SmoothGradCAMpp, "_compute_smoothgrad_weights"
        takeover.method(owner, name, smooth.smooth, *run)
    else:  # 0.4.1
        takeover.method(gradient.SmoothGradCAMpp, "_get_weights", smooth.smooth_in_one, *run)
        takeover.method(gradient._GradCAM, "_backprop", forward.backward_for_maps, *run)
    if hasattr(gradient, "LeGrad"):  # since 0.5.0, as are RefineCAM and FinerCAM
        takeover.method(gradient.LeGrad, "__init__", forward.begin_recording, *run)
        takeover.function(gradient.LeGrad._prepare_attention, forward.prepare_attention, *run)
        takeover.method(gradient.LeGrad, "compute_cams", maps.compute_legrad)
        takeover.method(gradient.RefineCAM, "fuse_cams", fuse.refine)
        for owner in (gradient.RefineCAM, gradient.FinerCAM):
            for name in ("__call__", "compute_cams"):
                takeover.method(owner, name, maps.as_one_call)
    maps.FORMULAS.clear()
    if takeover.guard("the formulas", *run) is not None:
        for method, formula in maps.BY_METHOD.items():
            maps.FORMULAS[getattr(gradient, method)._get_weights] = formula


def _take_metrics(takeover: Takeover) -> None:
    metrics: Any = importlib.import_module("torchcam.metrics")
    for name in ("ClassificationMetric", "DeletionInsertionMetric"):  # the second since 0.5.0
        if hasattr(metrics, name):
            takeover.method(getattr(metrics, name), "update", forward.as_own_forward)


def _take_explain(takeover: Takeover) -> None:
    takeover.function(importlib.import_module("torchcam.explain").explain, forward.explain)


def _take_utils(takeover: Takeover) -> None:
    utils: Any = importlib.import_module("torchcam.utils")
    how = overlay.BY_PILLOW if hasattr(utils, "blend") else overlay.IN_FLOAT64
    takeover.function(utils.overlay_mask, functools.partial(overlay.overlay_mask, how=how))
