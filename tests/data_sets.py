"""Small data sets of digits for the tests of ``fastcam dataset``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from fastcam import demo, pictures

ROOT = Path(__file__).parent.parent
SCENE = pictures.read(demo.asset("scene.png"))


def cut(seed: int, height: int = 48, width: int = 48) -> pictures.Picture:
    """A part of the shipped scene."""
    random = np.random.default_rng(seed)
    top = random.integers(0, SCENE.shape[0] - height + 1)
    left = random.integers(0, SCENE.shape[1] - width + 1)
    return np.ascontiguousarray(SCENE[top : top + height, left : left + width])


def make(folder: Path, count: int, sizes: tuple[tuple[int, int], ...] = ((48, 48),)) -> Path:
    """``count`` pictures, of the sizes in turn."""
    for number in range(count):
        pictures.write(folder / f"{number:05d}.png", cut(number, *sizes[number % len(sizes)]))
    return folder


def start(*words: object, **environment: str) -> subprocess.Popen[str]:
    """``python -m WORDS`` in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def contents(out: Path) -> dict[str, bytes]:
    """All files of maps and manifests."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }
