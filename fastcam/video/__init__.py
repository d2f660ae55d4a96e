"""Explains every frame of a clip and keeps timestamps, orientation and sound.

    from fastcam import models, video
    from fastcam.explainer import Explainer

    explainer = Explainer(models.load("resnet50"), "gradcam++")
    video.explain("in.mp4", "out.mp4", explainer)

``sources`` reads frames, ``network`` computes raw maps, ``temporal`` smooths and normalizes them
over time, ``drawing`` draws them, ``sinks`` writes the result, and ``pipeline`` runs these stages
in threads.
"""

from fastcam.video.drawing import ExplainedFrame
from fastcam.video.frame import Frame
from fastcam.video.pipeline import CHOICES, Report, check, explain
from fastcam.video.sinks import Sink, existing_files, open_sink
from fastcam.video.sources import Source, open_source

__all__ = [
    "CHOICES",
    "ExplainedFrame",
    "Frame",
    "Report",
    "Sink",
    "Source",
    "check",
    "existing_files",
    "explain",
    "open_sink",
    "open_source",
]
