"""Score-CAM's weights: the scores of images masked by the activations of one channel."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcam.dropin.copies import for_many_runs
from fastcam.dropin.pytorch_grad_cam.run import Array, TargetFunctions, aside
from fastcam.engine.running import unwrap
from fastcam.methods.masked_runs import masked_runs

BATCH_SIZE = 16


def score_weights(
    cam: Any, input_tensor: Tensor, targets: TargetFunctions, activations: Array
) -> Array:
    """The weights (N, C) of a ScoreCAM object; masks are created batch by batch."""
    size = input_tensor.shape[2:]
    mode = "bilinear" if len(size) == 2 else "trilinear"
    maps = torch.from_numpy(activations)
    if len(targets) < len(maps):
        raise RuntimeError(f"targets: got {len(targets)}, expected {len(maps)}, one per image")
    runs = masked_runs(maps)
    scores = []
    with torch.no_grad(), aside(cam):
        model = for_many_runs(cam, unwrap(cam.model), input_tensor[:1])
        batch_size = getattr(cam, "batch_size", BATCH_SIZE)
        for some in torch.arange(len(runs.rows)).split(batch_size):
            rows, images = runs.rows[some], runs.images[some]
            chosen = maps.flatten(0, 1)[rows].to(cam.device).unsqueeze(1)
            masks = F.interpolate(chosen, size, mode=mode, align_corners=True)
            dims = tuple(range(1, masks.dim()))
            low, high = masks.amin(dims, True), masks.amax(dims, True)
            masked = input_tensor[images] * ((masks - low) / (high - low + 1e-8))
            for image, output in zip(images.tolist(), model(masked), strict=True):
                scores.append(targets[image](output).reshape(()))
    weights: Array = runs.spread(torch.stack(scores).float().cpu()).softmax(1).numpy()
    return weights
