"""Takes over captum 0.8 and 0.9 in place: layer Grad-CAM and the guided methods.

captum runs the network itself and records it from the input up. Here layer Grad-CAM records from
the layer up, guided Grad-CAM runs the network once, and the hooks of ReLUs do not copy their input.
"""

from __future__ import annotations

import importlib
from typing import Any

from fastcam.dropin.captum import guided, guided_grad_cam, interpolate, layer_grad_cam
from fastcam.dropin.captum.peer import Peer
from fastcam.dropin.takeover import Takeover


def take_over(takeover: Takeover) -> None:
    """Replaces the methods that fastcam implements."""
    attr: Any = importlib.import_module("captum.attr")
    run = ("captum._utils.common", "captum._utils.gradient")
    Peer.common, Peer.gradient = map(importlib.import_module, run)
    parts = (attr.LayerGradCam.__module__, attr.GuidedBackprop.__module__)
    takeover.method(attr.LayerGradCam, "attribute", layer_grad_cam.layer_grad_cam, *run)
    takeover.method(attr.LayerAttribution, "interpolate", interpolate.interpolate)
    for owner in (attr.GuidedBackprop, attr.Deconvolution):
        takeover.method(owner, "attribute", guided.guided, *run)
        takeover.method(owner, "_register_hooks", guided.register_hooks, *run)
    takeover.method(attr.GuidedGradCam, "attribute", guided_grad_cam.guided_grad_cam, *run, *parts)
