"""Trains the digits detector and records how well it finds digits that it never saw.

    python -m benchmarks.digits.detector

Writes `fastcam/demo/assets/digits-detector.safetensors` and, beside this file,
`digits-detector.json`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou

import fastcam
from benchmarks.digits.scenes import Scene
from benchmarks.digits.training import (
    Training,
    as_input,
    begin_with,
    held_out,
    parser,
    points_at,
)
from fastcam import demo
from fastcam.demo.detector import SHORT_SIDE, detector
from fastcam.targets import Boxes


def truth(scene: Scene) -> dict[str, Tensor]:
    """Boxes (B, 4) and labels (B,) as torchvision's detectors are trained with."""
    return {
        "boxes": torch.tensor([digit.box for digit in scene.digits], dtype=torch.float32),
        "labels": torch.tensor([digit.label for digit in scene.digits]),
    }


@torch.inference_mode()
def evaluate(model: Any, scenes: Sequence[Scene], threshold: float = 0.5) -> dict[str, float]:
    """The share of digits found (recall), and of detections that are right (precision).

    A detection above the threshold is right if its label is a digit's and their IoU is 0.5.
    """
    found = right = there = 0
    for scene in scenes:
        known = truth(scene)
        (seen,) = model(list(as_input(scene)))
        sure = seen["scores"] >= threshold
        overlap = box_iou(known["boxes"], seen["boxes"][sure])
        overlap = overlap * (known["labels"][:, None] == seen["labels"][sure])
        there += len(known["labels"])
        right += int((overlap >= 0.5).any(1).sum())
        found += int(sure.sum())
    return {"recall": right / there, "precision": right / max(found, 1)}


def pointing(model: Any, scenes: Sequence[Scene]) -> dict[str, float]:
    """By method, the share of detections whose map has its maximum in the box."""
    figures = {}
    for name, cam in (("layercam", fastcam.LayerCAM(model)), ("gradcam", fastcam.GradCAM(model))):
        hits = []
        for scene in scenes:
            images = [as_input(scene)[0]]
            with torch.no_grad():
                (seen,) = model(images)
            sure = seen["scores"] >= 0.5
            if not sure.any():
                continue
            boxes = seen["boxes"][sure]
            (maps,) = cam(images, Boxes(boxes, seen["labels"][sure]))
            hits += [points_at(heat, [box]) for heat, box in zip(maps, boxes.tolist(), strict=True)]
        figures[f"pointing_{name}"] = sum(hits) / len(hits)
    return figures


def main() -> None:
    """The command line."""
    options = parser(__doc__)
    options.add_argument("--scenes", type=int, default=4_000)
    options.add_argument("--epochs", type=int, default=3)
    args = options.parse_args()

    training = Training("digits-detector", args.seed)
    model = demo.digits_detector() if args.score else trained(training, args)
    scenes = held_out(300)
    training.score(**evaluate(model, scenes), **pointing(model, scenes[:100]))


def trained(training: Training, args: argparse.Namespace) -> Any:
    """The detector after its training; writes its weights."""
    model = detector()
    # the classifier's edges and strokes, which stay; the rest is learned
    begin_with(model.backbone, {"stem": "stem", "stages.0": "stages.0", "stages.1": "stages.1"})
    for part in (model.backbone.stem, model.backbone.stages[0]):
        part.requires_grad_(False)
    scenes = training.scenes(args.scenes)
    known = [truth(scene) for scene in scenes]

    def loss_of(images: Tensor, rows: list[int]) -> Tensor:
        losses = model(list(images), [dict(known[row]) for row in rows])
        return torch.stack(list(losses.values())).sum()

    model.transform.min_size = (96,)  # the scenes' own
    training.fit(model, scenes, loss_of, args.epochs, rate=3e-3)
    model.transform.min_size = (SHORT_SIDE,)
    training.save(model)
    return model


if __name__ == "__main__":
    main()
