"""Timing, peak memory and what is written down: shared by all suites."""

from __future__ import annotations

import ctypes
import json
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

_LIBRARIES = ("torch", "torchvision", "numpy", "fastcam", "grad-cam", "torchcam")


@dataclass
class Result:
    """One implementation's figures for one case; times in seconds, memory in bytes."""

    suite: str
    case: str
    shape: list[int]
    dtype: str
    layout: str
    device: str
    implementation: str
    median: float
    min: float
    spread: float
    """The distance between the quartiles."""
    bytes: int | None = None
    """What must move at least, where a case knows it."""
    peak_memory: int | None = None
    """Beyond what was held before the first call."""
    versions: dict[str, str] = field(default_factory=lambda: versions())
    commit: str = field(default_factory=lambda: commit())


def interleaved(
    implementations: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    warmup: int = 2,
    repetitions: int = 11,
) -> dict[str, list[float]]:
    """Seconds of each repetition; the implementations take turns in changing order.

    So all share the machine's other load, and none always runs in the wake of the same other.
    """
    turns = random.Random(0)

    def seconds(call: Callable[[], object]) -> float:
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        return time.perf_counter() - start

    times: dict[str, list[float]] = {name: [] for name in implementations}
    for repetition in range(warmup + repetitions):
        for name in turns.sample(list(implementations), len(implementations)):
            taken = seconds(implementations[name])
            if repetition >= warmup:
                times[name].append(taken)
    return times


def summary(times: list[float]) -> dict[str, float]:
    """median, min and spread of some seconds."""
    low, median, high = statistics.quantiles(times, n=4)
    return {"median": median, "min": min(times), "spread": high - low}


def peak_memory(call: Callable[[], object], device: torch.device) -> int:
    """Bytes that calls take at their peak beyond what is held now; once a process on a CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    else:
        # what loading the model left behind goes back, and the high-water mark starts from here
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _high_water()
    for _ in range(3):
        call()
    synchronize(device)
    after = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _high_water()
    return after - before


def _high_water() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return f"{next(names, platform.processor())}, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The checkout's commit, with a + where files differ from it."""
    root = Path(__file__).parent
    described = subprocess.run(
        ["git", "describe", "--always", "--abbrev=12", "--dirty=+"],
        cwd=root, capture_output=True, text=True,
    )  # fmt: skip
    return described.stdout.strip()


def show(results: list[Result], baseline: str) -> None:
    """One table a case, times and memory also as multiples of the baseline implementation's."""
    console = Console()
    for case in dict.fromkeys(result.case for result in results):
        rows = [result for result in results if result.case == case]
        base = next(row for row in rows if row.implementation == baseline)
        table = Table(title=f"{case}, {rows[0].shape}, {rows[0].dtype}, {rows[0].device}")
        for column in (
            "",
            "median ms",
            "min",
            "spread",
            f"x {baseline}",
            "peak MiB",
            f"x {baseline}",
        ):
            table.add_column(column, justify="right" if column else "left")
        for row in rows:
            times = [f"{1e3 * seconds:.1f}" for seconds in (row.median, row.min, row.spread)]
            memory = ["", ""]
            if row.peak_memory is not None and base.peak_memory:
                share = row.peak_memory / base.peak_memory
                memory = [f"{row.peak_memory / 2**20:.0f}", f"{share:.2f}"]
            table.add_row(row.implementation, *times, f"{row.median / base.median:.2f}", *memory)
        console.print(table)


def write(results: list[Result], path: Path) -> None:
    """One JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(asdict(result)) + "\n" for result in results))
