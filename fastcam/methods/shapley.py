"""Grad-CAM with a second derivative."""

from __future__ import annotations

from torch import Tensor

from fastcam import ops
from fastcam.engine.capture import Capture
from fastcam.methods.maps import MapMethod
from fastcam.targets import Selection


class ShapleyCAM(MapMethod):
    """M = ReLU(sum_k w_k A^k), w_k = (1/Z) sum_ij (g - H A / 2)_ij, H the Hessian of S by A.

    Cai 2025, arXiv 2501.06261. Where the network is piecewise linear from the layer up, H is 0 and
    this is Grad-CAM.
    """

    name = "shapleycam"
    twice = True

    def layer_maps(self, record: Capture, selection: Selection, relu: bool) -> list[Tensor]:
        def maps_of(scores: Tensor, retain: bool) -> list[Tensor]:
            products = record.hessian_products(scores, retain=retain)
            weights = [ops.gap(gradient) - ops.gap(product) / 2 for gradient, product in products]
            return [
                ops.weighted_sum(activations, w, relu)
                for activations, w in zip(record.activations, weights, strict=True)
            ]

        return selection.by_class(maps_of)
