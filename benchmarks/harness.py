"""Timing, bandwidth, peak memory and what is written down: shared by all suites."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

_LIBRARIES = (
    *("torch", "torchvision", "numpy", "opencv-python-headless", "av"),
    *("fastcam", "grad-cam", "torchcam", "captum"),
)
_LARGE_COPY = {"cpu": 2**28, "cuda": 2**32}  # bytes read plus bytes written
_SHORTEST = 2e-3  # seconds that a repetition on a CPU takes at least

Call = Callable[[], object]
Timer = Callable[[], float]
"""One repetition; returns the seconds that a call took in it."""


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
    """What must move at least: every input read once, every output written once."""
    gigabytes_per_second: float | None = None
    """Those bytes over the median."""
    fraction_of_copy: float | None = None
    """... over the rate of a copy that moves as many bytes, read and written, in the same run."""
    fraction_of_large_copy: float | None = None
    """... over the rate of one large copy."""
    peak_memory: int | None = None
    """Beyond what was held before the first call."""
    versions: dict[str, str] = field(default_factory=lambda: versions())
    commit: str = field(default_factory=lambda: commit())


def interleaved(
    timers: Mapping[str, Timer], *, warmup: int = 2, repetitions: int = 11
) -> dict[str, list[float]]:
    """Seconds of each repetition; the implementations take turns in changing order.

    So all share the machine's other load, and none always runs in the wake of the same other.
    """
    turns = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in timers}
    for repetition in range(warmup + repetitions):
        for name in turns.sample(list(timers), len(timers)):
            seconds = timers[name]()
            if repetition >= warmup:
                times[name].append(seconds)
    return times


def summary(times: Sequence[float]) -> dict[str, float]:
    """median, min and spread of some seconds."""
    low, median, high = statistics.quantiles(times, n=4)
    return {"median": median, "min": min(times), "spread": high - low}


def call_timer(call: Call, device: torch.device) -> Timer:
    """Single calls: by CUDA events, which also enclose what a call does on the host."""

    def on_cpu() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def on_gpu() -> float:
        torch.cuda.synchronize(device)
        return _between_events(call)

    return on_gpu if device.type == "cuda" else on_cpu


def batch_timer(call: Call) -> Timer:
    """Calls in a row on a CPU, as many as make a time that can be measured."""
    first = []
    for _ in range(5):
        start = time.perf_counter()
        call()
        first.append(time.perf_counter() - start)
    count = max(1, round(_SHORTEST / min(first)))

    def timer() -> float:
        start = time.perf_counter()
        for _ in range(count):
            call()
        return (time.perf_counter() - start) / count

    return timer


def graph_timer(calls: Sequence[Call], outputs: int) -> Timer:
    """Replays of one CUDA graph that makes every call once: no gaps between launches.

    Args:
        calls: the same work on changing buffers.
        outputs: how many results are held at a time, so that these change their place too.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls[:3]:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    held: list[object] = [None] * outputs
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i, call in enumerate(calls):
            held[i % outputs] = call()

    def timer() -> float:
        graph.replay()  # the next one is launched behind it, so that its own launch is not timed
        return _between_events(graph.replay) / len(calls)

    return timer


def _between_events(call: Call) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def copy_call(moved: int, device: torch.device) -> Call:
    """A copy that reads and writes ``moved`` bytes in all."""
    source = torch.ones(max(moved // 2, 1), dtype=torch.uint8, device=device)
    return functools.partial(torch.empty_like(source).copy_, source)


def read_call(tensor: Tensor) -> Call:
    """A read of every byte of a dense tensor, in whatever order it lies in memory."""
    flat = tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)
    whole = flat[: flat.numel() // 4 * 4].view(torch.float32)
    return functools.partial(torch.sum, whole)


@functools.cache
def large_copy_rate(device: torch.device) -> float:
    """Bytes a second, read plus written."""
    moved = _LARGE_COPY[device.type]
    timer = call_timer(copy_call(moved, device), device)
    return moved / statistics.median(interleaved({"copy": timer})["copy"])


def bandwidth(moved: int, median: float, copy: float, device: torch.device) -> dict[str, float]:
    """The fields of a result that tell of bytes; ``copy`` is the time of a copy of as many."""
    rate = moved / median
    return {
        "bytes": moved,
        "gigabytes_per_second": rate / 1e9,
        "fraction_of_copy": copy / median,
        "fraction_of_large_copy": rate / large_copy_rate(device),
    }


def peak_memory(call: Call, device: torch.device, calls: int = 3) -> int:
    """Bytes that calls take at their peak beyond what is held now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    else:
        # what earlier work left behind goes back, and the high-water mark starts from here
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = high_water()
    for _ in range(calls):
        call()
    synchronize(device)
    after = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else high_water()
    return after - before


def high_water() -> int:
    """The most memory that this process has held, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def check_equal(name: str, got: Tensor, want: Tensor, tolerance: float) -> None:
    """Raises AssertionError where they differ by more than a share of the largest value."""
    assert got.shape == want.shape, f"{name}: got shape {tuple(got.shape)}, not {tuple(want.shape)}"
    error = (got.double() - want.double()).abs().max()
    limit = tolerance * want.double().abs().max()
    assert error <= limit, f"{name}: differs by {error:.3g}, allowed is {limit:.3g}"


@functools.cache
def machine(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return f"{next(names, platform.processor())}, {torch.get_num_threads()} threads"


@functools.cache
def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def commit() -> str:
    """The checkout's commit, with a + where files differ from it.

    FASTCAM_COMMIT names it where the files came without their history.
    """
    if given := os.environ.get("FASTCAM_COMMIT"):
        return given
    described = subprocess.run(
        ["git", "describe", "--always", "--abbrev=12", "--dirty=+"],
        cwd=Path(__file__).parent, capture_output=True, text=True,
    )  # fmt: skip
    return described.stdout.strip()
