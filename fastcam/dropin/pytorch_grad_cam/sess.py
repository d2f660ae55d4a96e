"""SESS: one map of the image from the maps of windows, weighted by their scores."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastcam.dropin.pytorch_grad_cam.run import Array


def map_of_windows(
    sess: Any, owner: type, input_tensor: Tensor, target: Any, eigen_smooth: bool = False
) -> Array:
    """The map (H, W) of an image (1, C, H, W) by a SESS object, before normalization.

    One run gives both the map and the score of a window.

    Args:
        owner: the class that defines the object's methods, to detect overrides.
        target: computes the score; None for the class with the highest score.
        eigen_smooth: passed to the base method.
    """
    height, width = input_tensor.shape[-2:]
    window = min(height, width) if sess.window_size is None else sess.window_size
    step = window if sess.step_size is None else sess.step_size
    target = sess.get_target(input_tensor) if target is None else target
    windows, coordinates = sess.collect_patches(input_tensor, window, step)
    maps: list[Array] = []
    scores: list[Array] = []
    overridden = getattr(sess.get_scores, "__func__", None) is not vars(owner)["get_scores"]
    for start in range(0, len(windows), sess.batch_size):
        batch = torch.cat(windows[start : start + sess.batch_size])
        maps += list(sess.base_cam(batch, [target] * len(batch), eigen_smooth=eigen_smooth))
        outputs = vars(sess.base_cam).get("outputs")
        if isinstance(outputs, Tensor) and len(outputs) == len(batch):
            outputs = outputs.softmax(-1) if sess.use_softmax_scores else outputs
            scores.append(target(outputs.detach()).cpu().numpy())
    if overridden or sum(map(len, scores)) < len(windows):
        of_windows = sess.get_scores(windows, target)
    else:
        of_windows = np.maximum(np.concatenate(scores), 0)
    order = np.argsort(of_windows)[int(len(of_windows) * sess.pre_filter_ratio) :]
    highest = of_windows[order[-1]]
    weights = of_windows / highest if highest > 0 else np.ones_like(of_windows)
    total: NDArray[np.float32] = np.zeros((height, width), np.float32)
    counts: NDArray[np.float32] = np.zeros((height, width), np.float32)
    for index in order:
        placed = sess.paste_cam(maps[index] * weights[index], coordinates[index], (height, width))
        if sess.pool == "max":
            np.maximum(total, placed, out=total)
        else:
            counted = placed > sess.theta
            total[counted] += placed[counted]
            counts += counted
    if sess.pool == "mean":
        np.divide(total, counts, out=total, where=counts > 0)  # elsewhere both are 0
    if sess.smooth:
        cv2.GaussianBlur(total, (11, 11), sigmaX=5.0, dst=total)
    return total
