"""The study's scenes: one to four instances of a digit, and one digit of another class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.digits.scenes import Box, handwriting, scene
from benchmarks.digits.train import CLASSES

SEED = 4_000_003
MOST = 4  # instances of a digit


@dataclass(frozen=True)
class Scenes:
    """N scenes of held-out handwriting as a batch."""

    images: Tensor
    """(N, 3, 96, 96) in [0, 1]."""
    own: tuple[tuple[Box, ...], ...]
    """The boxes of the explained class's instances, one to four for each scene."""
    others: tuple[tuple[Box, ...], ...]
    """The box of the digit of another class."""
    class_ids: Tensor
    """(N,), the explained class."""
    other_ids: Tensor
    """(N,), the other digit's class."""

    @property
    def counts(self) -> np.ndarray:
        """(N,), the number of the explained class's instances."""
        return np.array([len(boxes) for boxes in self.own])

    def first(self, count: int) -> Scenes:
        """The first scenes."""
        return Scenes(
            self.images[:count],
            self.own[:count],
            self.others[:count],
            self.class_ids[:count],
            self.other_ids[:count],
        )


def draw(count: int) -> Scenes:
    """The first scenes of the study; scene i has 1 + i mod 4 instances."""
    rng = np.random.default_rng(SEED)
    writing = handwriting("held-out")
    drawn, classes = [], []
    for i in range(count):
        own, other = rng.choice(CLASSES, size=2, replace=False).tolist()
        classes.append((own, other))
        # in random order: the digits that are placed last get what room is left at the border
        labels = rng.permutation([own] * (1 + i % MOST) + [other]).tolist()
        drawn.append(scene(rng, writing, labels=labels))
    images = torch.from_numpy(np.stack([each.image for each in drawn])).permute(0, 3, 1, 2)
    own, others = (
        tuple(
            tuple(digit.box for digit in each.digits if digit.label == pair[place])
            for each, pair in zip(drawn, classes, strict=True)
        )
        for place in (0, 1)
    )
    class_ids, other_ids = torch.tensor(classes).T
    return Scenes(images / 255, own, others, class_ids, other_ids)
