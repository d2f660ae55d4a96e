"""A clip from file to file: the stages alone, all together, memory, flicker, and a peer's loop.

Times are seconds a frame. "stages over cores" is the CPU time of all stages run alone over the
number of cores: what end to end cannot beat. In the cases "flicker" the figure is no time but the
mean absolute change of the map in [0, 1] from frame to frame.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import harness, implementations
from benchmarks.harness import Call, Result
from fastcam import demo, models, pictures, video
from fastcam.engine.cores import single_threaded
from fastcam.explainer import Explainer
from fastcam.explainer.threads import Ahead, Clock
from fastcam.targets import TopClasses
from fastcam.video import Frame
from fastcam.video.drawing import Drawing
from fastcam.video.network import Network
from fastcam.video.sources import Clip
from fastcam.video.writer import Writer

SIZES = {"360p": (360, 640), "1080p": (1080, 1920)}
NETWORKS = ("resnet18", "resnet50", "mobilenet_v3_small")
METHOD = "gradcam"
RATE = 30
FRAMES = 60
SHORT, LONG = 10 * RATE, 600 * RATE  # frames of the clips whose memory is compared
DIGITS = (2, 5, 7, 8)  # those that come or go in the clip that ships


def moving(size: tuple[int, int], count: int) -> Iterator[pictures.Picture]:
    """A camera that pans over a photograph, with noise."""
    import cv2

    height, width = size
    photo = pictures.read(demo.asset("photo.jpg"))
    large = cv2.resize(photo, (width * 5 // 4, height * 5 // 4), interpolation=cv2.INTER_CUBIC)
    random = np.random.default_rng(0)
    noise = random.integers(-6, 7, (8, height, width, 1), dtype=np.int16)
    for index in range(count):
        x = round(width / 8 * (1 + np.sin(index / 40)))
        y = round(height / 8 * (1 + np.cos(index / 55)))
        shown = large[y : y + height, x : x + width] + noise[index % 8]
        yield np.clip(shown, 0, 255).astype(np.uint8)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


@functools.cache
def clip(size: str) -> Path:
    path = Path(_folder().name) / f"{size}.mp4"
    with Writer(path, Fraction(RATE)) as writer:
        for index, picture in enumerate(moving(SIZES[size], FRAMES)):
            writer.write(Frame(picture, index, Fraction(1, RATE)))
    return path


def _explainer(name: str, device: torch.device, fast: bool = False) -> Explainer:
    return Explainer(models.load(name, "none", device), METHOD, fast=fast)


def _stages(source: Path, sink: Path, explainer: Explainer, batch: int) -> dict[str, Call]:
    """Each stage alone, on FRAMES frames."""
    network = Network(explainer, batch, 1, Clock())
    drawing = Drawing(explainer.model.preprocessing)
    options = {"target": "top1", "batch": batch}
    with Clip(source) as opened:
        fitted = list(network.fitted(opened))
    explained = list(video.explain(source, None, explainer, **options))
    drawn = [each.picture for each in explained]

    def decode() -> None:
        with Clip(source) as opened:
            for _ in network.fitted(opened):
                pass

    def explain() -> None:
        with closing(Ahead(fitted, batch, "fastcam-decode")) as ahead:
            for _ in network.maps(ahead, TopClasses(1)):
                pass

    def draw() -> None:
        for each in explained:
            with single_threaded():
                drawing(each)

    def encode() -> None:
        with Writer(sink, Fraction(RATE)) as writer:
            for index, picture in enumerate(drawn):
                writer.write(Frame(picture, index, Fraction(1, RATE)))

    return {"decode": decode, "network": explain, "draw": draw, "encode": encode}


def _peer_loop(
    source: Path, sink: Path, model: nn.Module, layer: str, device: torch.device
) -> None:
    """What the documentation of pytorch-grad-cam leads to: frame by frame, with OpenCV."""
    import cv2
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.image import preprocess_image, show_cam_on_image

    capture = cv2.VideoCapture(str(source))
    size = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    code = cv2.VideoWriter.fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(sink), code, capture.get(cv2.CAP_PROP_FPS), size)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    with GradCAM(model, [model.get_submodule(layer)]) as cam:
        while True:
            found, frame = capture.read()
            if not found:
                break
            rgb = np.float32(frame[..., ::-1]) / 255
            inputs = preprocess_image(cv2.resize(rgb, (224, 224)), mean, std).to(device)
            heat = cv2.resize(cam(inputs, None)[0], size)
            shown = show_cam_on_image(rgb, heat, use_rgb=True)
            writer.write(np.ascontiguousarray(shown[..., ::-1]))
    capture.release()
    writer.release()


def measure(size: str, name: str, device: torch.device) -> list[Result]:
    explainer = _explainer(name, device)
    batch = 4 if device.type == "cpu" else 32
    source, sink = clip(size), Path(_folder().name) / "out.mp4"
    cpu: dict[str, list[float]] = {}

    def timer(implementation: str, call: Call) -> harness.Timer:
        def run() -> float:
            start, cpu_start = time.perf_counter(), time.process_time()
            call()
            harness.synchronize(device)
            cpu.setdefault(implementation, []).append(time.process_time() - cpu_start)
            return (time.perf_counter() - start) / FRAMES

        return run

    stages = _stages(source, sink, explainer, batch)
    fast = _explainer(name, device, fast=True)
    calls: dict[str, Call] = {
        "fastcam": lambda: video.explain(source, sink, explainer, target="top1", batch=batch),
        "fastcam_fast": lambda: video.explain(source, sink, fast, target="top1", batch=batch),
        **stages,
    }
    if implementations.installed("pytorch_grad_cam") and explainer.layers:
        (layer,) = explainer.layers
        module = explainer.model.module
        other = sink.with_name("peer.mp4")
        calls["pytorch_grad_cam"] = lambda: _peer_loop(source, other, module, layer, device)
    times = harness.interleaved(
        {each: timer(each, call) for each, call in calls.items()}, warmup=1, repetitions=3
    )
    cores = len(os.sched_getaffinity(0))
    times["stages over cores"] = [
        sum(turn) / FRAMES / cores for turn in zip(*(cpu[stage] for stage in stages), strict=True)
    ]
    return [
        _result(f"{name} {size}", [FRAMES, *SIZES[size], 3], device, each, seconds)
        for each, seconds in times.items()
    ]


def _result(
    case: str,
    shape: list[int],
    device: torch.device,
    implementation: str,
    figures: list[float],
    peak_memory: int | None = None,
) -> Result:
    return Result(
        suite="video",
        case=case,
        shape=shape,
        dtype="float32",
        layout="contiguous",
        device=harness.machine(device),
        implementation=implementation,
        **harness.summary(figures * 2 if len(figures) == 1 else figures),
        peak_memory=peak_memory,
    )


class _Cheap(nn.Module):
    """A network that costs next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 8, 16, stride=16)

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images).mean((2, 3))


def _peak_of(count: int) -> list[float]:
    """Seconds a frame and peak memory in bytes of a new process that explains so many frames."""
    command = [sys.executable, "-m", "benchmarks.video", str(count)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return [float(each) for each in done.stdout.split()[-2:]]


def memory(device: torch.device) -> list[Result]:
    """The peak of a process that explains a long clip beside that of a short one, in 360p."""
    size = [*SIZES["360p"], 3]
    results = []
    for name, count in (("10-second clip", SHORT), ("fastcam", LONG)):
        seconds, peak = _peak_of(count)
        shape = [count, *size]
        results.append(_result("memory of 10 minutes", shape, device, name, [seconds], int(peak)))
    return results


def flicker(digit: int, device: torch.device) -> list[Result]:
    """Over the frames of the clip that ships in which the digit is absent."""
    about = json.loads(demo.asset("clip.json").read_text())
    absent = np.array([all(each["class"] != digit for each in boxes) for boxes in about["frames"]])
    explainer = Explainer(models.load("digits", device=device), METHOD)
    results = []
    for name, norm in (("fastcam", "running"), ("frame by frame", "frame")):
        options = {"target": str(digit), "norm": norm}
        explained = video.explain(demo.asset("clip.mp4"), None, explainer, **options)
        maps = torch.stack([each.map for each in explained])
        changes = (maps[1:] - maps[:-1]).abs().mean((1, 2))
        figure = changes[torch.from_numpy(absent[1:] & absent[:-1])].mean().item()
        shape = [len(maps), about["height"], about["width"], 3]
        results.append(_result(f"flicker of an absent {digit}", shape, device, name, [figure]))
    return results


def cases(device: torch.device, full: bool) -> dict[str, Callable[[], list[Result]]]:
    return {
        **{
            f"{name} {size}": functools.partial(measure, size, name, device)
            for size, name in itertools.product(SIZES, NETWORKS)
        },
        "memory of 10 minutes": functools.partial(memory, device),
        **{
            f"flicker of an absent {digit}": functools.partial(flicker, digit, device)
            for digit in DIGITS
        },
    }


if __name__ == "__main__":  # one clip of as many frames, for _peak_of
    _count = int(sys.argv[1])
    _shown = list(moving(SIZES["360p"], RATE))
    _endless = (Frame(_shown[index % RATE], index, Fraction(1, RATE)) for index in range(_count))
    _report = video.explain(
        _endless,
        Path(_folder().name) / "out.mp4",
        Explainer(models.LoadedModel(_Cheap().eval()), METHOD),
    )
    print(_report.seconds / _count, harness.high_water())  # ru_maxrss begins with the parent's
