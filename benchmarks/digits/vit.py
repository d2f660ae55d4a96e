"""Trains the digits transformer and records how well it knows digits that it never saw.

    python -m benchmarks.digits.vit

Writes `fastcam/demo/assets/digits-vit.safetensors` and, beside this file, `digits-vit.json`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.digits.scenes import Scene, handwriting, scene
from benchmarks.digits.train import stack
from benchmarks.digits.training import Training, begin_with, held_out
from fastcam.demo.vit import DigitsViT


@torch.inference_mode()
def evaluate(model: DigitsViT, scenes: Sequence[Scene]) -> dict[str, float]:
    """Mean average precision over the classes."""
    images, present = stack(scenes)
    logits = torch.cat([model(part.float() / 255) for part in images.split(32)])
    precision = average_precision_score(present.numpy(), logits.numpy(), average="macro")
    return {"mean_average_precision": float(precision)}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--crops", type=int, default=8_000)
    parser.add_argument("--crop-epochs", type=int, default=3)
    parser.add_argument("--scenes", type=int, default=8_000)
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()

    training = Training("digits-vit", args.seed)
    model = DigitsViT()
    begin_with(model, {"stem": "stem.0", "stages.0": "stem.1"})
    nn.init.constant_(model.head.bias, -2)

    def loss_on(scenes: Sequence[Scene], batch: int, epochs: int, rate: float) -> None:
        _, present = stack(scenes)

        def loss_of(images: Tensor, rows: list[int]) -> Tensor:
            return F.binary_cross_entropy_with_logits(model(images), present[rows])

        training.fit(model, scenes, loss_of, epochs, rate, batch)

    train = handwriting("train")
    crops = [
        scene(training.rng, train, (40, 40), [i % 10], height=(18, 36)) for i in range(args.crops)
    ]
    loss_on(crops, 32, args.crop_epochs, 1.5e-3)
    loss_on(training.scenes(args.scenes), 32, args.epochs, 1e-3)
    training.save(model)
    training.score(**evaluate(model, held_out(500)))


if __name__ == "__main__":
    main()
