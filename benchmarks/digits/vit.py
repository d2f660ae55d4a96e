"""Trains the digits transformer and records how well it knows digits that it never saw.

    python -m benchmarks.digits.vit
    python -m benchmarks.digits.vit --more --seed 1 --epochs 3

Writes `fastcam/demo/assets/digits-vit.safetensors` and, beside this file, `digits-vit.json`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.nn import functional as F

import fastcam
from benchmarks.digits.scenes import Scene, handwriting, scene
from benchmarks.digits.train import stack
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
from fastcam.demo.vit import DigitsViT


@torch.inference_mode()
def evaluate(model: DigitsViT, scenes: Sequence[Scene]) -> dict[str, float]:
    """Mean average precision over the classes."""
    images, present = stack(scenes)
    logits = torch.cat([model(part.float() / 255) for part in images.split(32)])
    precision = average_precision_score(present.numpy(), logits.numpy(), average="macro")
    return {"mean_average_precision": float(precision)}


def pointing(model: DigitsViT, scenes: Sequence[Scene]) -> dict[str, float]:
    """By method, the share of digits that it knows whose map has its maximum in a box of theirs."""
    figures = {}
    for name, cam in (("layercam", fastcam.LayerCAM(model)), ("gradcam", fastcam.GradCAM(model))):
        hits = []
        for each in scenes:
            known = model(as_input(each))[0] > 0
            for label in sorted({digit.label for digit in each.digits}):
                if known[label]:
                    heat = cam(as_input(each), label)[0]
                    hits.append(points_at(heat, boxes_of(each, label)))
        figures[f"pointing_{name}"] = sum(hits) / len(hits)
    return figures


def main() -> None:
    """The command line."""
    options = parser(__doc__)
    options.add_argument("--crops", type=int, default=8_000)
    options.add_argument("--crop-epochs", type=int, default=3)
    options.add_argument("--scenes", type=int, default=6_000)
    options.add_argument("--epochs", type=int, default=4)
    options.add_argument(
        "--more", action="store_true", help="go on with the weights that are there, on new scenes"
    )
    args = options.parse_args()

    training = Training("digits-vit", args.seed)
    if args.score:
        model = demo.digits_vit()
    else:
        model = further(training, args) if args.more else trained(training, args)
    scenes = held_out(500)
    training.score(**evaluate(model, scenes), **pointing(model, scenes[:100]))


def trained(training: Training, args: argparse.Namespace) -> DigitsViT:
    """The transformer after its training; writes its weights."""
    model = DigitsViT()
    begin_with(model, {"stem": "stem.0", "stages.0": "stem.1"})
    nn.init.constant_(model.head.bias, -2)

    train = handwriting("train")
    crops = [
        scene(training.rng, train, (40, 40), [i % 10], height=(18, 36)) for i in range(args.crops)
    ]
    fit(training, model, crops, args.crop_epochs, 1.5e-3)
    fit(training, model, training.scenes(args.scenes), args.epochs, 1e-3)
    training.save(model)
    return model


def further(training: Training, args: argparse.Namespace) -> DigitsViT:
    """The shipped transformer after more training; writes its weights."""
    model = demo.digits_vit()
    fit(training, model, training.scenes(args.scenes), args.epochs, 1e-3)
    training.save(model)
    return model


def fit(
    training: Training, model: DigitsViT, scenes: Sequence[Scene], epochs: int, rate: float
) -> None:
    """Multi-label training."""
    _, present = stack(scenes)

    def loss_of(images: Tensor, rows: list[int]) -> Tensor:
        return F.binary_cross_entropy_with_logits(model(images), present[rows])

    training.fit(model, scenes, loss_of, epochs, rate, batch=32)


if __name__ == "__main__":
    main()
