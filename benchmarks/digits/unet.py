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

from benchmarks.digits.scenes import Scene
from benchmarks.digits.training import Training, begin_with, held_out
from fastcam.demo.unet import DigitsUNet

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
        seen = model(torch.from_numpy(scene.image).permute(2, 0, 1)[None] / 255)[0].argmax(0)
        for label in range(10):
            both[label] += ((known == label) & (seen == label)).sum()
            either[label] += ((known == label) | (seen == label)).sum()
    return {"mean_iou": float((both / either).mean())}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=6_000)
    parser.add_argument("--epochs", type=int, default=4)
    args = parser.parse_args()

    training = Training("digits-unet", args.seed)
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
    training.score(**evaluate(model, held_out(300)))


if __name__ == "__main__":
    main()
