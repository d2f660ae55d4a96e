"""Maps with boxes and masks of what they should find, made from a few numbers each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FILE = Path(__file__).parent / "data" / "localisation.json"
SIZE = 120, 160


def saved() -> dict[str, object]:
    """The numbers of the scenes, and what wsolevaluation and TorchRay make of them.

    wsolevaluation at 96f4b88 (BoxEvaluator with several contours, MaskEvaluator), TorchRay at
    6a198ee (PointingGame.evaluate at the maximum). Their boxes end in the last pixel: they were
    given x1 - 1 and y1 - 1.
    """
    return json.loads(FILE.read_text())


def drawn(scene: list[dict[str, float]]) -> tuple[Tensor, Tensor, Tensor]:
    """A map (H, W) of 256 levels in [0, 1], boxes (B, 4) and elliptic masks (B, H, W)."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    heat, masks, boxes = np.zeros(SIZE), [], []
    for spot in scene:
        box = np.array(spot["box"])
        (cx, cy), (w, h) = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
        dx, dy, sx, sy, peak = spot["heat"]
        heat += peak * np.exp(-(((x - cx - dx) / (w * sx)) ** 2) - ((y - cy - dy) / (h * sy)) ** 2)
        masks.append(((x - cx) / w) ** 2 + ((y - cy) / h) ** 2 <= 0.25)
        boxes.append(box)
    heat = (heat - heat.min()) / (heat.max() - heat.min())
    levels = torch.from_numpy(np.round(heat * 255)).double() / 255
    return levels, torch.from_numpy(np.stack(boxes)), torch.from_numpy(np.stack(masks))
