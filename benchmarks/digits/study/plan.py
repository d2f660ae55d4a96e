"""What was decided before the run: methods, metrics, comparisons, amounts, the default's rule."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.digits.networks import ARCHITECTURES, LAYERS
from benchmarks.digits.train import Recipe

CONTROLS = ("random-map", "centre-prior", "edges", "mean-activation", "gradcam-relu-g")
"""Maps that a method has to beat: see :mod:`benchmarks.digits.study.controls`."""

FAST = (
    "cam",
    "gradcam",
    "gradcam++",
    "xgradcam",
    "hirescam",
    "layercam",
    "gradcam-elementwise",
    "shapleycam",
    "smoothgradcam++",
    "finercam",
    "refinecam",
    "eigencam",
    "eigengradcam",
    "segeigencam",
    "kpcacam",
    "fem",
    "randomcam",
    "fullgrad",
)
"""Methods that explain all scenes, for all training seeds."""

SLOW = ("scorecam", "ablationcam", "sess", "iscam", "sscam")
"""Methods with many runs per map: they explain the first scenes, for the first training seed."""

LEFT_OUT = {
    "legrad": "it explains transformers",
    "guided-backprop": "its signed gradients are not a map of a class",
    "deconvnet": "its signed gradients are not a map of a class",
    "guided-gradcam": "its signed gradients are not a map of a class",
}
"""The other methods of fastcam, and why they do not take part."""

CANDIDATES = (
    "gradcam",
    "gradcam++",
    "xgradcam",
    "hirescam",
    "layercam",
    "gradcam-elementwise",
    "shapleycam",
    "smoothgradcam++",
    "finercam",
    "eigengradcam",
    "segeigencam",
)
"""Methods that can be the command line's default: fast, for any head, with one layer, and with maps
that depend on the class."""

RECALL_MARGIN = 0.02

LOCALISATION = {
    "auc": "high",
    "recall": "high",
    "other_hits": "low",
    "confusion": "low",
    "pointing": "high",
    "energy": "high",
    "iou": "high",
    "px_ap": "high",
    "max_box_acc_v2": "high",
    "complexity": "low",
    "sparseness": "high",
}
"""The metrics of all scenes, and which end is good."""

FAITHFULNESS = {
    "relative_drop": "low",
    "increase": "high",
    "insertion_minus_deletion": "high",
    "road": "high",
    "infidelity": "low",
    "max_sensitivity": "low",
    "coherency": "high",
    "adcc": "high",
    "arcc": "high",
    "class_sensitivity": "low",
    "parameter_randomisation": "low",
}
"""The metrics of the first scenes."""

BY_COUNT = ("auc", "recall", "other_hits")
"""The metrics that are also given for each number of instances."""


@dataclass(frozen=True)
class Comparison:
    """A difference between two methods, tested on the scenes with two or more instances."""

    network: str
    layer: str
    method: str
    other: str
    metric: str


PAIRS = (
    # Does Grad-CAM++ find more of several instances, as it was made to, and at what price?
    ("gradcam++", "gradcam", "recall"),
    ("gradcam++", "gradcam", "other_hits"),
    ("gradcam++", "gradcam", "auc"),
    # Is it alpha that finds them, or that negative gradients are left out?
    ("gradcam++", "gradcam-relu-g", "recall"),
    ("gradcam++", "gradcam-relu-g", "auc"),
    # Is another method of the same price better?
    ("gradcam++", "layercam", "recall"),
    ("gradcam++", "layercam", "auc"),
    ("layercam", "gradcam", "auc"),
    # Does the class count at all?
    ("gradcam", "mean-activation", "auc"),
    ("gradcam++", "mean-activation", "auc"),
)
COMPARISONS = tuple(
    Comparison(network, layer, *pair)
    for network, layer, pair in itertools.product(ARCHITECTURES, LAYERS, PAIRS)
)
"""All tests of the study; Holm's correction is over all of them."""


FULL_TRAINING = Recipe()


@dataclass(frozen=True)
class Settings:
    """The amounts of a run."""

    seeds: int = 5
    """Trainings of each network, with the seeds from 0 on."""
    recipe: Recipe = FULL_TRAINING
    scenes: int = 240
    """Scenes with 1, 2, 3, 4, 1, ... instances of a digit, and one other digit."""
    first_scenes: int = 12
    """How many of these are for slow methods and for metrics of faithfulness."""
    held_out: int = 1_000
    """Scenes of any digits for the networks' own score."""
    fast: tuple[str, ...] = FAST
    slow: tuple[str, ...] = SLOW
    faithful: tuple[str, ...] = CONTROLS + FAST
    """Those with metrics of faithfulness."""
    curve_steps: int = 28
    """Steps of deletion and of insertion."""
    samples: int = 50
    """Perturbations for infidelity."""
    moves: int = 10
    """Perturbations for max-sensitivity."""
    draws: int = 10_000
    """Draws of the bootstrap."""

    @property
    def methods(self) -> tuple[str, ...]:
        """The controls and all methods."""
        return CONTROLS + self.fast + self.slow


FULL = Settings()
SMOKE = Settings(
    seeds=1,
    recipe=Recipe(crops=64, scenes=64, crop_epochs=1, scene_epochs=1),
    scenes=50,
    first_scenes=1,
    held_out=50,
    fast=("cam", "gradcam", "gradcam++", "layercam", "refinecam", "fullgrad"),
    slow=("ablationcam",),
    faithful=("edges",),
    curve_steps=4,
    samples=4,
    moves=2,
    draws=200,
)


def takes_part(method: str, network: str, layer: str) -> bool:
    """Whether a method has maps of this network at this layer."""
    if method == "cam":  # it needs average pooling and one linear layer right after
        return (network, layer) == ("pooled", "last")
    # FullGrad takes the whole network, RefineCAM all layers up to this one
    return layer == "last" or method not in ("fullgrad", "refinecam")


def default_method(auc: Mapping[str, float], recall: Mapping[str, float]) -> str:
    """The command line's default: the best AUC among those with nearly the best recall.

    Args:
        auc, recall: of the candidates, at the last layer, the means over networks, training seeds
            and scenes. A recall counts as the best if it is within :data:`RECALL_MARGIN` of it.
    """
    least = max(recall.values()) - RECALL_MARGIN
    good = [method for method in auc if recall[method] >= least]
    return max(good, key=lambda method: auc[method])
