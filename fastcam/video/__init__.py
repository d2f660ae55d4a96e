"""Clips in and out: every frame explained, with its own time, upright, and the sound beside it.

    from fastcam import models, video
    from fastcam.explainer import Explainer

    explainer = Explainer(models.load("resnet50"), "gradcam++")
    video.explain("in.mp4", "out.mp4", explainer)

frame, sources, drawing and sinks say what goes in and out, network makes raw maps, temporal acts on
them over time, and pipeline puts all that into threads.
"""

from fastcam.video.drawing import ExplainedFrame
from fastcam.video.frame import Frame
from fastcam.video.pipeline import Report, explain
from fastcam.video.sinks import Sink, open_sink
from fastcam.video.sources import Source, open_source

__all__ = [
    "ExplainedFrame",
    "Frame",
    "Report",
    "Sink",
    "Source",
    "explain",
    "open_sink",
    "open_source",
]
