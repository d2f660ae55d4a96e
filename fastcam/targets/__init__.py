"""Turns targets (class ids, or what else to explain) into the scores to explain."""

from fastcam.targets.boxes import Boxes
from fastcam.targets.outputs import Margin, Negative, Segmentation, Similarity, watched
from fastcam.targets.selection import (
    ClassChoice,
    ModelTarget,
    OutputTarget,
    Selection,
    Target,
    Targets,
    TopClasses,
    Watch,
    class_ids,
    look_like_probabilities,
    name_classes,
    probabilities,
    select,
    shares,
)

__all__ = [
    "Boxes",
    "ClassChoice",
    "Margin",
    "ModelTarget",
    "Negative",
    "OutputTarget",
    "Segmentation",
    "Selection",
    "Similarity",
    "Target",
    "Targets",
    "TopClasses",
    "Watch",
    "class_ids",
    "look_like_probabilities",
    "name_classes",
    "probabilities",
    "select",
    "shares",
    "watched",
]
