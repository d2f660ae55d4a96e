"""Metrics of the quality of maps: faithfulness, localisation and sanity, on the images' device.

Maps are (N, *S) in [0, 1] at the images' size, as the methods return them, and targets are as for
the methods. For class ids, confidence is the softmax probability of the class (with
``probabilities=False``, the logit); for target functions, it is their result. The functions return
one value per image; a NaN in a map gives NaN for its image.

The classes are the same metrics over any number of batches and processes. They are those of
torchmetrics: ``update``, ``compute``, ``reset``, ``higher_is_better``; ``values`` has one row per
image. They need ``pip install "fastcam[metrics]"``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastcam.metrics.box_accuracy import box_ious, max_box_acc_v2
from fastcam.metrics.confidence import Confidence, confidence, win
from fastcam.metrics.curves import Curve, deletion, insertion, insertion_minus_deletion
from fastcam.metrics.overlap import class_confusion, instance_recall, iou
from fastcam.metrics.pixel_precision import pixel_histograms, px_ap
from fastcam.metrics.pointing import energy_pointing_game, pointing_game
from fastcam.metrics.quality import (
    Quality,
    adcc,
    arcc,
    coherency,
    complexity,
    self_coherency,
    sparseness,
)
from fastcam.metrics.road import PERCENTILES, Road, road
from fastcam.metrics.sanity import Randomisation, class_sensitivity, parameter_randomisation
from fastcam.metrics.similarity import Similarity, rank_correlation, ssim
from fastcam.metrics.stability import infidelity, max_sensitivity

if TYPE_CHECKING:
    from fastcam.metrics.classes.base import *  # noqa: F403
    from fastcam.metrics.classes.of_maps import *  # noqa: F403
    from fastcam.metrics.classes.of_methods import *  # noqa: F403
    from fastcam.metrics.classes.of_scores import *  # noqa: F403

CLASSES = {
    "ADCC": "of_methods",
    "ARCC": "of_methods",
    "AverageDrop": "of_scores",
    "ClassConfusion": "of_maps",
    "ClassSensitivity": "of_methods",
    "ClassificationMetric": "of_methods",
    "Coherency": "of_methods",
    "Complexity": "of_maps",
    "Deletion": "of_scores",
    "EnergyPointingGame": "of_maps",
    "IncreaseInConfidence": "of_scores",
    "Infidelity": "of_scores",
    "Insertion": "of_scores",
    "InsertionMinusDeletion": "of_scores",
    "InstanceRecall": "of_maps",
    "IoU": "of_maps",
    "MapMetric": "base",
    "MaxBoxAccV2": "of_maps",
    "MaxSensitivity": "of_methods",
    "ParameterRandomisation": "of_methods",
    "PointingGame": "of_maps",
    "PxAP": "of_maps",
    "ROAD": "of_scores",
    "Sparseness": "of_maps",
    "Win": "of_scores",
}
"""The classes, which need torchmetrics, and their modules in fastcam/metrics/classes."""

__all__ = [
    "CLASSES",
    "PERCENTILES",
    "Confidence",
    "Curve",
    "Quality",
    "Randomisation",
    "Road",
    "Similarity",
    "adcc",
    "arcc",
    "box_ious",
    "class_confusion",
    "class_sensitivity",
    "coherency",
    "complexity",
    "confidence",
    "deletion",
    "energy_pointing_game",
    "infidelity",
    "insertion",
    "insertion_minus_deletion",
    "instance_recall",
    "iou",
    "max_box_acc_v2",
    "max_sensitivity",
    "parameter_randomisation",
    "pixel_histograms",
    "pointing_game",
    "px_ap",
    "rank_correlation",
    "road",
    "self_coherency",
    "sparseness",
    "ssim",
    "win",
]


def __getattr__(name: str) -> Any:
    """Imports a class on first use: the functions need no torchmetrics."""
    if name not in CLASSES:
        raise AttributeError(f"module 'fastcam.metrics' has no attribute '{name}'")
    try:
        module = importlib.import_module(f"fastcam.metrics.classes.{CLASSES[name]}")
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("torchmetrics"):
            raise
        raise ModuleNotFoundError(
            f'metrics.{name} requires torchmetrics: pip install "fastcam[metrics]"', name=error.name
        ) from None
    found = getattr(module, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *CLASSES})
