"""Models by name, with their weights, preprocessing and class names."""

from fastcam.models.loaded import LoadedModel
from fastcam.models.loading import load, read_classes
from fastcam.models.measured import MeasuredTransform
from fastcam.models.preprocessing import Preprocessing, Transform, resized
from fastcam.models.sizes import takes_any_size, whole_picture

__all__ = [
    "LoadedModel",
    "MeasuredTransform",
    "Preprocessing",
    "Transform",
    "load",
    "read_classes",
    "resized",
    "takes_any_size",
    "whole_picture",
]
