"""Scenes of real handwriting on clutter, with the box and the mask of every digit.

The digits are scikit-learn's `load_digits`, 8x8 pixels each; everything else is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Bools = NDArray[np.bool_]
Size = tuple[int, int]  # height, width
Box = tuple[int, int, int, int]  # left, top, right, bottom; the last two lie outside

# The file is roughly in the order of its writers, so most held-out hands are new to the model.
FIRST_HELD_OUT = 1297

TILE = 96  # side of a training scene; other sizes get as much clutter for their area
CONTRAST = 0.35  # least mean difference of a digit's colour from what is behind it
ELBOW_ROOM = 1.1  # distance of two digits over the mean of their heights


@dataclass(frozen=True)
class Handwriting:
    """Digits as written: pixels (n, 8, 8) in [0, 1], ink is 1; labels (n,)."""

    pixels: Floats
    labels: NDArray[np.int64]

    def pick(self, rng: np.random.Generator, label: int) -> Floats:
        """One (8, 8) digit of the class."""
        chosen: Floats = self.pixels[rng.choice(np.flatnonzero(self.labels == label))]
        return chosen


def handwriting(split: Literal["train", "held-out"]) -> Handwriting:
    """The digits the model learns from, or those it never sees."""
    digits = load_digits()
    part = slice(FIRST_HELD_OUT) if split == "train" else slice(FIRST_HELD_OUT, None)
    pixels = (digits.images / 16).astype(np.float32)
    return Handwriting(pixels[part], digits.target[part])


@dataclass(frozen=True)
class Pose:
    """Where a digit lies: centre and height in pixels, angle in degrees, shear as a slope."""

    x: float
    y: float
    height: float
    angle: float
    shear: float


@dataclass(frozen=True)
class Digit:
    """One digit in a picture; `visible` is the share of its ink inside the frame."""

    label: int
    box: Box
    mask: Bools  # (H, W)
    visible: float


@dataclass(frozen=True)
class Scene:
    """A picture (H, W, 3), RGB, and the digits in it."""

    image: Bytes
    digits: tuple[Digit, ...]


def scene(
    rng: np.random.Generator,
    writing: Handwriting,
    size: Size = (TILE, TILE),
    labels: Sequence[int] | None = None,
    height: tuple[float, float] = (18, 36),
) -> Scene:
    """One scene. Without `labels` it holds one to five digits of any class."""
    if labels is None:
        labels = rng.integers(10, size=rng.integers(1, 6)).tolist()
    canvas = _backdrop(rng, writing, size)
    digits = []
    for label, pose in zip(labels, _poses(rng, size, len(labels), height), strict=True):
        ink = _ink(writing.pick(rng, label), pose, size)
        _paint(canvas, ink, _colour(rng, behind=canvas[ink > 0.5].mean(axis=0)))
        digits.append(_digit(label, ink))
    canvas += _noise(rng, size)
    return Scene(_to_bytes(canvas), tuple(digits))


def moving_scene(
    rng: np.random.Generator,
    writing: Handwriting,
    frames: int,
    labels: Sequence[int],
    size: Size,
    height: tuple[float, float] = (28, 36),
    speed: tuple[float, float] = (1.0, 2.5),
) -> list[Scene]:
    """Frames of one scene in which digits cross the picture on straight lines, swaying.

    They keep clear of each other, but not of the edges: long enough, every one leaves. `speed`
    is in pixels a frame. A frame names the digits of which any ink is inside.
    """
    backdrop = _backdrop(rng, writing, size)
    noise = _noise(rng, size)
    tracks = _tracks(rng, size, frames, len(labels), height, speed)
    glyphs = [writing.pick(rng, label) for label in labels]
    colours = [_colour(rng, behind=backdrop.mean(axis=(0, 1))) for _ in labels]
    scenes = []
    for poses in zip(*tracks, strict=True):
        canvas = backdrop.copy()
        digits = []
        for label, glyph, colour, pose in zip(labels, glyphs, colours, poses, strict=True):
            ink = _ink(glyph, pose, size)
            if (ink > 0.5).any():
                _paint(canvas, ink, colour)
                digits.append(_digit(label, ink, _whole(glyph, pose)))
        scenes.append(Scene(_to_bytes(canvas + noise), tuple(digits)))
    return scenes


def _poses(
    rng: np.random.Generator, size: Size, count: int, height: tuple[float, float]
) -> list[Pose]:
    """Poses inside the picture that do not overlap; started anew where they do not all fit."""
    poses: list[Pose] = []
    tries = 0
    while len(poses) < count:
        tall = rng.uniform(*height)
        x, y = (rng.uniform(0.55 * tall, side - 0.55 * tall) for side in reversed(size))
        pose = Pose(x, y, tall, angle=rng.uniform(-15, 15), shear=rng.uniform(-0.18, 0.18))
        if not any(_collide(pose, other) for other in poses):
            poses.append(pose)
        tries += 1
        if tries % (20 * count) == 0:
            poses.clear()
    return poses


def _tracks(
    rng: np.random.Generator,
    size: Size,
    frames: int,
    count: int,
    height: tuple[float, float],
    speed: tuple[float, float],
) -> list[list[Pose]]:
    """`count` ways of `frames` poses; each is inside the picture at least once."""
    time = np.arange(frames)
    tracks: list[list[Pose]] = []
    while len(tracks) < count:
        (seen,) = _poses(rng, size, 1, height)
        heading, pace, phase = rng.uniform(0, 2 * np.pi), rng.uniform(*speed), rng.uniform(0, 6)
        way = pace * (time - rng.integers(frames))
        xs, ys = seen.x + way * np.cos(heading), seen.y + way * np.sin(heading)
        angles = 12 * np.sin(time / 12 + phase)
        track = [
            replace(seen, x=float(x), y=float(y), angle=float(angle))
            for x, y, angle in zip(xs, ys, angles, strict=True)
        ]
        if not any(_collide(a, b) for other in tracks for a, b in zip(track, other, strict=True)):
            tracks.append(track)
    return tracks


def _collide(a: Pose, b: Pose) -> bool:
    room = ELBOW_ROOM * (a.height + b.height) / 2
    return max(abs(a.x - b.x), abs(a.y - b.y)) < room


def _ink(glyph: Floats, pose: Pose, size: Size) -> Floats:
    """The glyph in its pose on an empty picture: (rows, columns) -> (H, W), opacity in [0, 1]."""
    scale = pose.height / 8
    turn = np.deg2rad(pose.angle)
    rotate = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = scale * rotate @ np.array([[1.0, pose.shear], [0.0, 1.0]])
    centre = (np.array(glyph.shape[::-1]) - 1) / 2
    shift = np.array([pose.x, pose.y]) - matrix @ centre
    affine = np.column_stack([matrix, shift])
    ink = cv2.warpAffine(glyph, affine, (size[1], size[0]), flags=cv2.INTER_CUBIC)
    # 8x8 pixels enlarged are a blur; this puts the edge of the stroke back.
    return np.asarray(np.clip(2 * ink - 0.5, 0, 1), np.float32)


def _whole(glyph: Floats, pose: Pose) -> int:
    """Pixels of ink the digit would have if nothing of it were outside the picture."""
    side = int(2 * pose.height)
    ink = _ink(glyph, replace(pose, x=side / 2, y=side / 2), (side, side))
    return int((ink > 0.5).sum())


def _digit(label: int, ink: Floats, whole: int | None = None) -> Digit:
    mask = ink > 0.5
    ys, xs = np.nonzero(mask)
    box = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
    return Digit(label, box, mask, 1.0 if whole is None else min(1.0, len(xs) / whole))


def _paint(canvas: Floats, ink: Floats, colour: Floats) -> None:
    canvas += ink[..., None] * (colour - canvas)


def _colour(rng: np.random.Generator, behind: Floats) -> Floats:
    """A random colour that stands out from the colour behind it, or the best of 64 tries."""
    colours = rng.random((64, 3), dtype=np.float32)
    contrast = np.abs(colours - behind).mean(axis=1)
    clear = contrast > CONTRAST
    best: Floats = colours[clear.argmax() if clear.any() else contrast.argmax()]
    return best


def _noise(rng: np.random.Generator, size: Size) -> Floats:
    strength = rng.uniform(0, 0.06)
    return np.float32(strength) * rng.standard_normal((*size, 3), dtype=np.float32)


def _backdrop(rng: np.random.Generator, writing: Handwriting, size: Size) -> Floats:
    """Soft colours with strokes, arcs and quarters of digits on them: (H, W, 3)."""
    height, width = size
    area = height * width / TILE**2
    coarse = rng.standard_normal((height // 32 + 2, width // 32 + 2, 3), dtype=np.float32)
    soft = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    canvas: Floats = rng.random(3, dtype=np.float32) + np.float32(rng.uniform(0, 0.2)) * soft
    for _ in range(round(area * rng.uniform(0, 5))):
        _stroke(rng, canvas)
    for _ in range(round(area * rng.uniform(0, 6))):
        glyph = writing.pixels[rng.integers(len(writing.pixels))]
        top, left = rng.integers(0, 2, size=2) * 4
        quarter = np.ascontiguousarray(glyph[top : top + 4, left : left + 4])
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        pose = Pose(x, y, rng.uniform(18, 36), rng.uniform(-15, 15), rng.uniform(-0.18, 0.18))
        _paint(canvas, _ink(quarter, pose, size), rng.random(3, dtype=np.float32))
    return canvas


def _stroke(rng: np.random.Generator, canvas: Floats) -> None:
    """One straight line or one arc, in place."""
    height, width = canvas.shape[:2]
    colour = rng.random(3).tolist()
    thick = int(rng.integers(1, 4))
    x, y = int(rng.integers(width)), int(rng.integers(height))
    reach = rng.uniform(10, 60)
    turn = rng.uniform(0, 360)
    if rng.random() < 0.5:
        end = (int(x + reach * np.cos(turn)), int(y + reach * np.sin(turn)))
        cv2.line(canvas, (x, y), end, colour, thick, cv2.LINE_AA)
    else:
        axes = (int(reach / 2), int(rng.uniform(5, 30)))
        cv2.ellipse(canvas, (x, y), axes, turn, 0, rng.uniform(60, 200), colour, thick, cv2.LINE_AA)


def _to_bytes(canvas: Floats) -> Bytes:
    return np.asarray(np.clip(255 * canvas + 0.5, 0, 255), np.uint8)
