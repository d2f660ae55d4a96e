"""Trains the digits U-Net and records how well it segments digits that it never saw.

    python -m benchmarks.digits.unet

Writes `fastcam/demo/assets/digits-unet.safetensors` and, beside this file, `digits-unet.json`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import fastcam
from benchmarks.digits.scenes import Scene
from benchmarks.digits.training import (
    Training,
    as_input,
    begin_with,
    boxes_of,
    held_out,
    parser,
    points_at,
)
from fastcam import demo
from fastcam.demo.unet import DigitsUNet
from fastcam.targets import Segmentation

BACKGROUND = 10


def truth(scene: Scene) -> Tensor:
    """The class of each pixel, (H, W)."""
    classes = np.full(scene.image.shape[:2], BACKGROUND)
    for digit in scene.digits:
        classes[digit.mask] = digit.label
    return torch.from_numpy(classes)


@torch.inference_mode()
def evaluate(model: DigitsUNet, scenes: Sequence[Scene]) -> dict[str, float]:
    """The intersection over union of the ten digits' pixels, each over all scenes, and the mean."""
    both, either = torch.zeros(10), torch.zeros(10)
    for scene in scenes:
        known = truth(scene)
        seen = model(as_input(scene))[0].argmax(0)
        for label in range(10):
            both[label] += ((known == label) & (seen == label)).sum()
            either[label] += ((known == label) | (seen == label)).sum()
    return {"mean_iou": float((both / either).mean())}


def pointing(model: DigitsUNet, scenes: Sequence[Scene]) -> dict[str, float]:
    """The share of digits that it sees whose Grad-CAM has its maximum in a box of theirs."""
    cam, hits = fastcam.GradCAM(model), []
    for scene in scenes:
        seen = model(as_input(scene))[0].argmax(0)
        for label in sorted({digit.label for digit in scene.digits}):
            if (seen == label).any():
                heat = cam(as_input(scene), Segmentation(label))[0]
                hits.append(points_at(heat, boxes_of(scene, label)))
    return {"pointing_gradcam": sum(hits) / len(hits)}


def main() -> None:
    """The command line."""
    options = parser(__doc__)
    options.add_argument("--scenes", type=int, default=6_000)
    options.add_argument("--epochs", type=int, default=4)
    args = options.parse_args()

    training = Training("digits-unet", args.seed)
    model = demo.digits_unet() if args.score else trained(training, args)
    scenes = held_out(300)
    training.score(**evaluate(model, scenes), **pointing(model, scenes[:100]))


def trained(training: Training, args: argparse.Namespace) -> DigitsUNet:
    """The U-Net after its training; writes its weights."""
    model = DigitsUNet()
    begin_with(model, {"stem": "stem", "stages.0": "down.0"})
    scenes = training.scenes(args.scenes)
    known = torch.stack([truth(scene) for scene in scenes])
    weight = torch.ones(11)
    weight[BACKGROUND] = 0.2  # most pixels are background

    def loss_of(images: Tensor, rows: list[int]) -> Tensor:
        return F.cross_entropy(model(images), known[rows], weight)

    training.fit(model, scenes, loss_of, args.epochs, rate=4e-3)
    training.save(model)
    return model


if __name__ == "__main__":
    main()
