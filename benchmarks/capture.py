"""An explanation against plain inference and against other libraries: resnet50, batch 8."""

from __future__ import annotations

import functools
import importlib.util
import os
import statistics
import subprocess
import sys
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor, nn

import fastcam
from benchmarks import harness
from benchmarks.harness import Result

SHAPE = [8, 3, 224, 224]
Call = Callable[[], Tensor]


@functools.cache
def _network(device: torch.device) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = torchvision.models.resnet50()
    images = torch.randn(SHAPE)
    for module in model.modules():  # statistics near those of the images: maps worth comparing
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model(images)
    return model.eval().to(device), images.to(device)


def _inference(device: torch.device) -> Call:
    model, images = _network(device)

    def call() -> Tensor:
        with torch.no_grad():
            return model(images)

    return call


def _fastcam(device: torch.device, method: str = "gradcam") -> Call:
    model, images = _network(device)
    cam = fastcam.METHODS[method](model, "layer4")
    return lambda: cam(images)


def _fastcam_every_class(device: torch.device, method: str = "gradcam") -> Call:
    model, images = _network(device)
    cam = fastcam.METHODS[method](model, "layer4")
    every = torch.arange(1000, device=device).expand(SHAPE[0], -1)
    return lambda: cam(images, every, size="layer")


def _pytorch_grad_cam(device: torch.device) -> Call:
    from pytorch_grad_cam import GradCAM

    model, images = _network(device)
    cam = GradCAM(model, [model.layer4])
    return lambda: torch.from_numpy(cam(images, None))


def _torchcam(device: torch.device) -> Call:
    from torchcam.methods import GradCAM

    model, images = _network(device)
    cam = GradCAM(model, "layer4")

    def call() -> Tensor:
        logits = model(images)
        (maps,) = cam(logits.argmax(1).tolist(), logits)  # at the layer's resolution
        return maps.detach()

    return call


GRADCAM = "GradCAM"
EVERY_CLASS = "GradCAM of all 1000 classes, at the layer's resolution"
EVERY_CLASS_PLUS_PLUS = "GradCAM++ of all 1000 classes, at the layer's resolution"
CASES: dict[str, dict[str, Callable[[torch.device], Call]]] = {
    GRADCAM: {
        "inference": _inference,
        "fastcam": _fastcam,
        "pytorch-grad-cam": _pytorch_grad_cam,
        "torchcam": _torchcam,
    },
    EVERY_CLASS: {"inference": _inference, "fastcam": _fastcam_every_class},
    EVERY_CLASS_PLUS_PLUS: {
        "inference": _inference,
        "fastcam": functools.partial(_fastcam_every_class, method="gradcam++"),
    },
}
_MODULES = {"pytorch-grad-cam": "pytorch_grad_cam", "torchcam": "torchcam"}


def _check(device: torch.device) -> None:
    """The same maps from all, before anything is timed."""
    model, images = _network(device)
    with fastcam.GradCAM(model, "layer4") as cam:
        small = cam(images, size="layer")
        expected = {"pytorch-grad-cam": cam(images), "torchcam": small}
        ids = torch.arange(1000, device=device).expand(SHAPE[0], -1)
        top = ids == cam.class_ids[:, None]
    for name, maps in expected.items():
        if _installed(name):
            found = CASES[GRADCAM][name](device)().to(device)
            torch.testing.assert_close(found, maps, rtol=0, atol=1e-4)
    torch.testing.assert_close(_fastcam_every_class(device)()[top], small, rtol=0, atol=1e-4)


def _installed(name: str) -> bool:
    return name not in _MODULES or importlib.util.find_spec(_MODULES[name]) is not None


def _peak(case: str, name: str, device: torch.device) -> int:
    """The median of three fresh processes."""
    command = [sys.executable, "-m", "benchmarks.capture", case, name, str(device)]
    # a mapping of its own for every large tensor: how the heap happens to be cut up is not measured
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    start = functools.partial(subprocess.run, check=True, capture_output=True, text=True)
    runs = [start(command, env=environment) for _ in range(3)]
    return int(statistics.median(int(run.stdout) for run in runs))


def run() -> list[Result]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name in _MODULES:
        if not _installed(name):
            print(f"{name} is not installed: left out")
    _check(device)
    results = []
    for case, implementations in CASES.items():
        makers = {name: make for name, make in implementations.items() if _installed(name)}
        times = harness.interleaved({name: make(device) for name, make in makers.items()}, device)
        for name, seconds in times.items():
            results.append(
                Result(
                    suite="capture",
                    case=case,
                    shape=SHAPE,
                    dtype="float32",
                    layout="contiguous",
                    device=harness.machine(device),
                    implementation=name,
                    **harness.summary(seconds),
                    peak_memory=_peak(case, name, device),
                )
            )
    return results


if __name__ == "__main__":  # one implementation's peak memory, for _peak
    _case, _name, _device = sys.argv[1:]
    print(harness.peak_memory(CASES[_case][_name](torch.device(_device)), torch.device(_device)))
