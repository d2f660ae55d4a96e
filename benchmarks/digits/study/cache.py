"""Weights and rows that are kept between runs, as long as what makes them does not change."""

from __future__ import annotations

import hashlib
import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file, save

from benchmarks.digits.networks import ARCHITECTURES, Classifier
from benchmarks.digits.study.measured import Rows
from benchmarks.digits.study.plan import Settings
from benchmarks.digits.train import Report, trained, write

ROOT = Path(__file__).parents[3]
MAKES_WEIGHTS = (
    *("benchmarks/digits/networks.py", "benchmarks/digits/scenes.py", "benchmarks/digits/train.py"),
    "fastcam/demo/network.py",
)
MAKES_ROWS = (
    *MAKES_WEIGHTS,
    *(f"benchmarks/digits/study/{name}.py" for name in ("controls", "measured", "scenes")),
    *("fastcam/ops.py", "fastcam/reference.py", "fastcam/_kernels.py"),
    *("fastcam/engine", "fastcam/methods", "fastcam/metrics", "fastcam/targets", "csrc"),
)
NOT_IN_ROWS = ("seeds", "fast", "draws")


class Cache:
    """The files of one run below a folder; changed sources or amounts lead to other files."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.settings = settings
        amounts = asdict(settings)
        weights = digest(MAKES_WEIGHTS, amounts["recipe"])
        rows = digest(MAKES_ROWS, {k: v for k, v in amounts.items() if k not in NOT_IN_ROWS})
        self._weights, self._rows = folder / f"weights-{weights}", folder / f"rows-{rows}"

    def network(self, name: str, seed: int, report: Report) -> Classifier:
        """A trained network in evaluation mode; it is trained if its weights are not there."""
        architecture = ARCHITECTURES[name]
        path = self._weights / f"{name}-{seed}.safetensors"
        if path.exists():
            network = architecture.new()
            network.load_state_dict(load_file(path))
        else:
            network = trained(architecture, seed, self.settings.recipe, report)
            weights = {name: value.contiguous() for name, value in network.state_dict().items()}
            write(path, save(weights))
        return network.eval()

    def path(self, *names: object) -> Path:
        """Where the rows of a network, a seed and perhaps a layer and a method are."""
        return self._rows / ("-".join(map(str, names)) + ".npz")

    def store(self, path: Path, rows: Rows) -> None:
        """Writes rows."""
        file = io.BytesIO()
        np.savez_compressed(file, **rows)
        write(path, file.getvalue())

    def load(self, path: Path, metric: str) -> NDArray[Any]:
        """Reads the rows of one metric."""
        with np.load(path) as file:
            found: NDArray[Any] = file[metric]
        return found


def digest(sources: tuple[str, ...], amounts: object) -> str:
    """A name for what sources, files or folders, and amounts make."""
    found = hashlib.sha256(repr(amounts).encode())
    for source in sources:
        path = ROOT / source
        files = [path] if path.is_file() else sorted(f for f in path.rglob("*.*") if f.is_file())
        for file in files:
            if file.suffix != ".pyc":
                found.update(file.read_bytes())
    return found.hexdigest()[:12]
