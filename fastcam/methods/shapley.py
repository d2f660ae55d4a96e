"""Grad-CAM with a second derivative."""

from __future__ import annotations

import torch
from torch import Tensor

from fastcam import ops
from fastcam.engine.capture import Capture
from fastcam.methods.base import MapMethod
from fastcam.targets import Selection


class ShapleyCAM(MapMethod):
    """M = ReLU(sum_k w_k A^k), w_k = (1/Z) sum_ij (g - H A / 2)_ij, H the Hessian of S by A.

    Cai 2025, arXiv 2501.06261. Where the network is piecewise linear from the layer up, H is 0 and
    this is Grad-CAM.
    """

    name = "shapleycam"
    twice = True

    def _maps(self, record: Capture, selection: Selection, relu: bool) -> list[Tensor]:
        columns = selection.columns()
        maps: list[list[Tensor]] = [[] for _ in record.layers]
        for k, scores in enumerate(columns, start=1):
            products = record.hessian_products(scores, retain=k < len(columns))
            for layer, (gradient, product) in enumerate(products):
                weights = ops.gap(gradient) - ops.gap(product) / 2
                maps[layer].append(ops.weighted_sum(record.activations[layer], weights, relu))
        several = selection.scores.dim() == 2
        return [torch.stack(layer, 1) if several else layer[0] for layer in maps]
