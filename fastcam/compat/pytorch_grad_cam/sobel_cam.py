"""An edge map of a picture."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray


def sobel_cam(img: NDArray[Any]) -> NDArray[np.uint8]:
    """The mean magnitude of the Sobel gradients of an RGB picture (H, W, 3), as uint8 (H, W)."""
    gray = cv2.cvtColor(img, cv2.COLOR_RGB2GRAY)
    across, down = (
        cv2.convertScaleAbs(cv2.Sobel(gray, cv2.CV_64F, dx, dy, ksize=3))
        for dx, dy in ((1, 0), (0, 1))
    )
    return np.asarray(cv2.addWeighted(across, 0.5, down, 0.5, 0), np.uint8)
