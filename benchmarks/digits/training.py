"""What the trainings of the detector, the U-Net and the transformer have in common."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from benchmarks.digits.scenes import Box, Scene, Size, handwriting, scene
from benchmarks.digits.train import WEIGHTS, augment, in_half, peak_inside, write

ASSETS = WEIGHTS.parent
SCORES = Path(__file__).parent
HELD_OUT_SEED = 3_000_003
MOST_DIGITS = 4


@dataclass
class Training:
    """One training: its seeds, its clock and its files."""

    name: str
    seed: int = 0

    def __post_init__(self) -> None:
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        torch.manual_seed(self.seed)
        self.generator = torch.Generator().manual_seed(self.seed)
        self.rng = np.random.default_rng(self.seed)
        self._began = time.monotonic()

    def report(self, line: str) -> None:
        print(f"{time.monotonic() - self._began:6.0f} s  {line}", flush=True)

    def scenes(self, count: int, height: tuple[float, float] = (18, 40)) -> list[Scene]:
        """Scenes 96x96 with one to four digits."""
        found = several(self.rng, "train", count, (96, 96), height)
        self.report(f"{count} scenes drawn")
        return found

    def fit(
        self,
        model: nn.Module,
        scenes: Sequence[Scene],
        loss_of: Callable[[Tensor, list[int]], Tensor],
        epochs: int,
        rate: float,
        batch: int = 16,
    ) -> None:
        """AdamW with one cycle of the learning rate.

        Args:
            model: its frozen BatchNorms stay in evaluation mode.
            scenes: of one size.
            loss_of: takes images (N, 3, H, W) in [0, 1] and the numbers of their scenes.
            epochs: how often each scene is seen.
            rate: the highest learning rate.
            batch: N.
        """
        images = torch.from_numpy(np.stack([s.image for s in scenes])).permute(0, 3, 1, 2)
        images = images.contiguous(memory_format=torch.channels_last)
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(weights, rate, weight_decay=0.02)
        steps = epochs * (len(scenes) // batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
        model.train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad:
                module.eval()
        for epoch in range(epochs):
            losses = []
            for rows in torch.randperm(len(scenes), generator=self.generator).split(batch):
                if len(rows) < batch:
                    continue
                loss = loss_of(augment(images[rows], self.generator), rows.tolist())
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(weights, 5.0)
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
                if len(losses) % 100 == 0:
                    self.report(f"  step {len(losses)}: loss {np.mean(losses[-100:]):.3f}")
            self.report(f"epoch {epoch + 1} of {epochs}: loss {np.mean(losses):.3f}")
        model.eval()

    def save(self, model: nn.Module) -> None:
        """Writes the weights in float16, and leaves the model with those."""
        weights = in_half(model)
        write(ASSETS / f"{self.name}.safetensors", save(weights))
        model.load_state_dict(weights)

    def score(self, **figures: float) -> None:
        """Writes and prints the score."""
        rounded = {name: round(value, 4) for name, value in figures.items()}
        self.report(", ".join(f"{name} {value}" for name, value in rounded.items()))
        record = {"seed": self.seed, **rounded}
        write(SCORES / f"{self.name}.json", (json.dumps(record, indent=2) + "\n").encode())


def parser(description: str | None) -> argparse.ArgumentParser:
    """The command line that all trainings have."""
    made = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--score", action="store_true", help="only score the weights that are there")
    return made


def points_at(heat: Tensor, boxes: Sequence[Box]) -> bool:
    """Whether the maximum of a map (H, W) lies inside one of the boxes."""
    return peak_inside(heat.numpy(), boxes)


def boxes_of(scene: Scene, label: int) -> list[Box]:
    """The boxes of all digits of a class."""
    return [digit.box for digit in scene.digits if digit.label == label]


def as_input(scene: Scene) -> Tensor:
    """The picture as the networks take it, (1, 3, H, W)."""
    return torch.from_numpy(scene.image).permute(2, 0, 1)[None] / 255


def several(
    rng: np.random.Generator,
    split: str,
    count: int,
    size: Size,
    height: tuple[float, float] = (18, 36),
) -> list[Scene]:
    """Scenes with one to four digits each."""
    writing = handwriting(split)  # type: ignore[arg-type]
    return [
        scene(rng, writing, size, rng.integers(10, size=rng.integers(1, 1 + MOST_DIGITS)), height)
        for _ in range(count)
    ]


def held_out(count: int, size: Size = (160, 160)) -> list[Scene]:
    """Scenes of handwriting that no training saw."""
    return several(np.random.default_rng(HELD_OUT_SEED), "held-out", count, size)


def begin_with(module: nn.Module, names: dict[str, str]) -> None:
    """Copies parts of the classifier's trained weights, by their names there and here."""
    trained = load_file(WEIGHTS)
    module.load_state_dict(
        {
            name.replace(theirs, ours, 1): value
            for theirs, ours in names.items()
            for name, value in trained.items()
            if name.startswith(theirs + ".")
        },
        strict=False,
    )
