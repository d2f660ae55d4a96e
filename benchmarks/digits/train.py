"""Trains the demo network and records how well it does on handwriting it never saw.

    python -m benchmarks.digits.train

Writes `fastcam/demo/assets/digits.safetensors` and, beside this file, `score.json`. The same seed
on the same machine gives the same weights. `trained` is the training of any network.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import save
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.digits.networks import ARCHITECTURES, CLASSES, Architecture, Classifier
from benchmarks.digits.scenes import Box, Floats, Handwriting, Scene, Size, handwriting, scene
from fastcam.demo.network import DigitsNet

WEIGHTS = Path(__file__).parents[2] / "fastcam" / "demo" / "assets" / "digits.safetensors"
SCORE = Path(__file__).parent / "score.json"

BATCH = 32
RATE = 2e-3
# A price on the activity of the last map keeps it quiet where no digit is and narrow where one is.
# The labels stay what they were: the network is never told where a digit lies.
SPARSITY = 0.2
# From a training scene to the largest picture the network is shown with.
CALIBRATION_SIZES: tuple[Size, ...] = ((96, 96), (120, 160), (160, 224), (192, 256))
CALIBRATION_SEED = 2_000_003
HELD_OUT_SEED = 1_000_003


Report = Callable[[str], None]


@dataclass(frozen=True)
class Recipe:
    """How much a training sees, and how often."""

    crops: int = 10_000
    """Pictures 40x40 of one digit each."""
    scenes: int = 10_000
    """Pictures 96x96 of one to five digits."""
    crop_epochs: int = 3
    scene_epochs: int = 8


def stack(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """Images (N, 3, H, W) uint8 and which classes each holds, (N, 10) float."""
    images = torch.from_numpy(np.stack([s.image for s in scenes])).permute(0, 3, 1, 2)
    present = torch.zeros(len(scenes), CLASSES)
    for row, s in zip(present, scenes, strict=True):
        row[[digit.label for digit in s.digits]] = 1
    return images.contiguous(memory_format=torch.channels_last), present


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shuffles the channels, inverts, changes the contrast: (N, 3, H, W) uint8 -> float."""
    n = len(images)
    order = torch.rand(n, 3, generator=generator).argsort(1)
    invert = torch.rand(n, 1, 1, 1, generator=generator) < 0.5
    contrast = 0.7 + 0.5 * torch.rand(n, 1, 1, 1, generator=generator)
    x = images[torch.arange(n)[:, None], order].float() / 255
    x = torch.where(invert, 1 - x, x)
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    x = mean + (x - mean) * contrast
    return x.contiguous(memory_format=torch.channels_last)


def batches(
    images: Tensor, present: Tensor, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch in random order, augmented; the last, smaller batch is left out."""
    order = torch.randperm(len(images), generator=generator)
    for rows in torch.split(order, BATCH):
        if len(rows) == BATCH:
            yield augment(images[rows], generator), present[rows]


def fit(
    model: Classifier,
    images: Tensor,
    present: Tensor,
    epochs: int,
    sparsity: float,
    generator: torch.Generator,
    report: Report,
) -> None:
    """Multi-label training: AdamW, one cycle of the learning rate, bfloat16 arithmetic."""
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.02)
    steps = epochs * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    model.train()
    for epoch in range(epochs):
        losses = []
        for x, y in batches(images, present, generator):
            with torch.autocast("cpu", torch.bfloat16):
                features = model.features(x)
                logits = model.classify(features)
            loss = F.binary_cross_entropy_with_logits(logits.float(), y)
            loss = loss + sparsity * features.float().mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        report(f"epoch {epoch + 1} of {epochs}: loss {np.mean(losses):.3f}")


def trained(
    architecture: Architecture,
    seed: int,
    recipe: Recipe,
    report: Report,
) -> Classifier:
    """A trained network; the same seed on the same machine gives the same weights.

    Shapes first, from crops that one digit fills: in a scene average pooling dilutes what one digit
    adds to its logit so far that a fresh network learns nothing for many epochs.

    Args:
        architecture: of the network.
        seed: of the weights, the pictures and their order.
        recipe: how long.
        report: takes lines of progress.
    """
    cv2.setNumThreads(1)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    writing = handwriting("train")
    model = architecture.of_crops()
    crops = [
        scene(rng, writing, (40, 40), [i % CLASSES], height=(20, 36)) for i in range(recipe.crops)
    ]
    report(f"{recipe.crops} crops drawn")
    fit(model, *stack(crops), recipe.crop_epochs, 0.0, generator, report)
    model = architecture.of_scenes(model)
    scenes = [scene(rng, writing) for _ in range(recipe.scenes)]
    report(f"{recipe.scenes} scenes drawn")
    fit(model, *stack(scenes), recipe.scene_epochs, SPARSITY, generator, report)
    return model


@torch.inference_mode()
def calibrate(model: DigitsNet, writing: Handwriting, count: int) -> None:
    """Makes the probabilities sure on pictures of any of the sizes, in place.

    Average pooling dilutes what a digit adds to its logit with the area of the picture, so a
    network trained on small scenes doubts what it sees in large ones. Two numbers for all classes,
    a factor on the weights of the head and its bias, are fitted to `count` scenes of each size
    (Platt scaling). They change neither how a class ranks pictures nor, but for scale, the maps.
    """
    model.eval()
    rng = np.random.default_rng(CALIBRATION_SEED)
    evidence, truth = [], []
    for size in CALIBRATION_SIZES:
        for _ in range(count):
            image, present = stack([scene(rng, writing, size)])
            features = model.features(image.float() / 255)
            evidence.append(features.mean(dim=(2, 3)) @ model.head.weight.T)
            truth.append(present)
    fitted = LogisticRegression(C=1e6)  # in effect without a penalty
    fitted.fit(torch.cat(evidence).reshape(-1, 1).numpy(), torch.cat(truth).flatten().numpy())
    model.head.weight *= float(fitted.coef_[0, 0])
    model.head.bias.fill_(float(fitted.intercept_[0]))


def gradcam(features: Tensor, weight: Tensor, size: Sequence[int]) -> Tensor:
    """Grad-CAM of a pooled linear head, which needs no backward pass.

    Features (N, C, h, w) and weight (K, C) -> maps (N, K, *size), not normalised.
    """
    maps = torch.einsum("nchw,kc->nkhw", features, weight).relu()
    return F.interpolate(maps, list(size), mode="bilinear")


@torch.inference_mode()
def evaluate(model: DigitsNet, scenes: Sequence[Scene]) -> dict[str, float]:
    """Mean average precision, macro F1 at logit 0, and the pointing game of Grad-CAM.

    Pointing: over every class of every scene, the share of maps whose maximum lies inside the box
    of a digit of that class.
    """
    model.eval()
    images, present = stack(scenes)
    logits, hits = [], []
    for start in range(0, len(scenes), BATCH):
        part = slice(start, start + BATCH)
        features = model.features(images[part].float() / 255)
        logits.append(model.head(features.mean(dim=(2, 3))))
        maps = gradcam(features, model.head.weight, images.shape[-2:]).numpy()
        for s, of_classes in zip(scenes[part], maps, strict=True):
            for label in {digit.label for digit in s.digits}:
                boxes = [digit.box for digit in s.digits if digit.label == label]
                hits.append(peak_inside(of_classes[label], boxes))
    score, truth = torch.cat(logits).numpy(), present.numpy()
    return {
        "mean_average_precision": float(average_precision_score(truth, score, average="macro")),
        "macro_f1": float(f1_score(truth, score > 0, average="macro")),
        "pointing": float(np.mean(hits)),
    }


def peak_inside(heat: Floats, boxes: Sequence[Box]) -> bool:
    """Whether the maximum of a map (H, W) lies inside one of the boxes."""
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    return any(left <= x < right and top <= y < bottom for left, top, right, bottom in boxes)


def in_half(model: nn.Module) -> dict[str, Tensor]:
    """The weights with float16 for float32, half the file."""
    return {
        name: value.half().contiguous() if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }


def write(path: Path, content: bytes) -> None:
    """Writes under a temporary name and renames, so that the file is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.write_bytes(content)
    partial.replace(path)


def since(began: float) -> Report:
    """Prints lines with the seconds since a time of the monotonic clock."""

    def report(line: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {line}", flush=True)

    return report


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    parser.add_argument("--crops", type=int, default=10_000, help="40x40, one digit each")
    parser.add_argument("--scenes", type=int, default=10_000, help="96x96, one to five digits")
    parser.add_argument("--crop-epochs", type=int, default=3)
    parser.add_argument("--scene-epochs", type=int, default=8)
    parser.add_argument("--calibration", type=int, default=200, help="scenes of each size")
    parser.add_argument("--held-out", type=int, default=2_000, help="scenes for the score")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    recipe = Recipe(args.crops, args.scenes, args.crop_epochs, args.scene_epochs)
    model = trained(ARCHITECTURES["pooled"], args.seed, recipe, since(time.monotonic()))

    shipped = DigitsNet()
    shipped.load_state_dict(in_half(model))
    calibrate(shipped, handwriting("train"), args.calibration)
    weights = in_half(shipped)
    shipped.load_state_dict(weights)
    score = evaluate(shipped, held_out(args.held_out))
    print(", ".join(f"{name} {value:.4f}" for name, value in score.items()))
    write(WEIGHTS, save(weights))
    record = {
        "seed": args.seed,
        "held_out_scenes": args.held_out,
        **{name: round(value, 4) for name, value in score.items()},
    }
    write(SCORE, (json.dumps(record, indent=2) + "\n").encode())


def held_out(count: int, seed: int = HELD_OUT_SEED) -> list[Scene]:
    """Scenes of handwriting that the training never saw."""
    rng = np.random.default_rng(seed)
    writing = handwriting("held-out")
    return [scene(rng, writing) for _ in range(count)]


if __name__ == "__main__":
    main()
