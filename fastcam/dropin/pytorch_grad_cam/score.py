"""Score-CAM's weights: what images score that show only where a channel is active."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcam.dropin.pytorch_grad_cam.run import Array, TargetFunctions, aside
from fastcam.engine.running import unwrap
from fastcam.fast import folded

BATCH_SIZE = 16


def score_weights(
    cam: Any, input_tensor: Tensor, targets: TargetFunctions, activations: Array
) -> Array:
    """The weights of a ScoreCAM object (N, C).

    Each image's masks are made as they are needed, all constant ones run once.
    """
    scores = []
    size = input_tensor.shape[2:]
    mode = "bilinear" if len(size) == 2 else "trilinear"
    with torch.no_grad(), aside(cam):
        model = folded(unwrap(cam.model), input_tensor[:1])
        for image, target, maps in zip(
            input_tensor, targets, torch.from_numpy(activations), strict=False
        ):
            low, high = maps.flatten(1).aminmax(dim=1)
            constant = low == high
            # constant ones come first: one run will do for all of them
            order = constant.int().argsort(descending=True, stable=True)
            count = int(constant.sum())
            rows = order[max(0, count - 1) :]
            found = []
            for some in rows.split(getattr(cam, "batch_size", BATCH_SIZE)):
                chosen = maps[some].to(cam.device).unsqueeze(1)
                masks = F.interpolate(chosen, size, mode=mode, align_corners=True)
                dims = tuple(range(1, masks.dim()))
                low, high = masks.amin(dims, True), masks.amax(dims, True)
                masked = image * ((masks - low) / (high - low + 1e-8))
                found += [target(output).reshape(()) for output in model(masked)]
            of_rows = torch.stack(found).float().cpu()
            of_maps = of_rows[:1].repeat(len(maps))
            of_maps[rows] = of_rows
            scores.append(of_maps)
    weights: Array = torch.stack(scores).softmax(1).numpy()
    return weights
