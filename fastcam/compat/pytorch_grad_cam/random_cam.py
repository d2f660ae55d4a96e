"""RandomCAM: channels with random weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastcam.compat.pytorch_grad_cam.formulas import OfGradients
from fastcam.dropin.pytorch_grad_cam.run import Array


class RandomCAM(OfGradients):
    """w_k uniform in [-1, 1], from numpy's global generator."""

    def get_cam_weights(
        self,
        input_tensor: Any,
        target_layer: Any,
        target_category: Any,
        activations: Any,
        grads: Array,
    ) -> Array:
        """(N, C)."""
        return np.random.uniform(-1, 1, size=grads.shape[:2])
