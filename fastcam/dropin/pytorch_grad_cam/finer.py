"""Finer-CAM's targets: the score of a class minus those of the classes closest to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fastcam.dropin.pytorch_grad_cam.maps import explain
from fastcam.dropin.pytorch_grad_cam.run import Array, Choose, TargetFunctions


def finer_map(
    finer: Any,
    input_tensor: Any,
    choose: Choose,
    eigen_smooth: bool,
    otherwise: Callable[[], Array],
) -> Array:
    """The maps of a FinerCAM object; arguments as for :func:`explain`."""
    name = f"pytorch_grad_cam.{type(finer).__name__}"
    maps: Array = explain(finer.base_cam, input_tensor, choose, eigen_smooth, otherwise, name)
    return maps


def ranks_there(ranks: Sequence[int] | None, outputs: Tensor) -> list[int]:
    """The ranks below the number of classes; by default out of 1, 2 and 3."""
    return [rank for rank in ((1, 2, 3) if ranks is None else ranks) if rank < outputs.shape[-1]]


def finer_targets(
    outputs: Tensor, alpha: float, ranks: Sequence[int], class_id: int | None, target: Any
) -> TargetFunctions:
    """One ``target`` per image: its class, and the classes of the given ranks by score distance."""
    scores = outputs.detach().cpu().numpy()
    of_class = scores.max(axis=-1) if class_id is None else scores[:, class_id]
    nearest = np.argsort(np.abs(scores - of_class[:, None]), axis=-1)
    return [target(int(row[0]), [int(row[rank]) for rank in ranks], alpha) for row in nearest]
