"""What an explanation takes beside plain inference, in time and memory, batch 8.

Of several networks with the layer that is found, and of whole stages that are named.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch

import fastcam
from benchmarks import harness, implementations
from benchmarks.harness import Result
from benchmarks.implementations import Call, Network

BATCH = 8
NETWORKS = ("densenet121", "efficientnet_b0", "mobilenet_v3_small", "vit_b_16")
STAGES = {"densenet121": "features", "efficientnet_b0": "features", "resnet50": "layer3"}


def _every_class(net: Network, method: str) -> Call:
    cam = fastcam.METHODS[method](net.model, net.layer)
    classes = torch.arange(1000, device=net.device).expand(BATCH, -1)
    return functools.partial(cam, net.images, classes, size="layer")


def _one_class(method: str, net: Network) -> dict[str, Call]:
    calls = implementations.calls(net, method)
    return {name: call for name, call in calls.items() if not name.startswith("fastcam_fast")}


def _all_classes(method: str, net: Network) -> dict[str, Call]:
    return {
        "inference": implementations.inference(net, method),
        "fastcam": _every_class(net, method),
    }


def _itself(method: str, net: Network) -> dict[str, Call]:
    return {
        "inference": implementations.inference(net, method),
        "fastcam": implementations.fastcam_maps(net, method),
    }


class Case(NamedTuple):
    method: str
    calls: Callable[[str, Network], dict[str, Call]]
    network: str = "resnet50"
    stage: str | None = None
    """The layer; None for the one that is found."""


CASES = {
    "gradcam": Case("gradcam", _one_class),
    "gradcam of 1000 classes": Case("gradcam", _all_classes),
    "gradcam++ of 1000 classes": Case("gradcam++", _all_classes),
    **{f"gradcam, {name}": Case("gradcam", _itself, name) for name in NETWORKS},
    **{
        f"gradcam at {stage}, {name}": Case("gradcam", _itself, name, stage)
        for name, stage in STAGES.items()
    },
}


def _network(case: str, device: torch.device) -> Network:
    net = implementations.network(CASES[case].network, BATCH, device)
    stage = CASES[case].stage
    return net if stage is None else dataclasses.replace(net, layer=stage)


def _calls(case: str, net: Network) -> dict[str, Call]:
    return CASES[case].calls(CASES[case].method, net)


def _check(case: str, net: Network, calls: dict[str, Call]) -> None:
    """The same maps from all; of all classes, that of the top class."""
    method, make = CASES[case][:2]
    if make is not _all_classes:
        implementations.check(net, method, calls)
        return
    cam = fastcam.METHODS[method](net.model, net.layer)
    want = cam(net.images, size="layer")
    top = torch.arange(1000, device=net.device) == cam.class_ids[:, None]
    harness.check_equal(case, calls["fastcam"]()[top], want, implementations.TOLERANCE)


def _peak(case: str, name: str, device: torch.device) -> int:
    """The median of three fresh processes: on a CPU, earlier work changes what a call takes."""
    command = [sys.executable, "-m", "benchmarks.capture", case, name, str(device)]
    # a mapping of its own for every large tensor: how the heap happens to be cut up is not measured
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    start = functools.partial(subprocess.run, check=True, stdout=subprocess.PIPE, text=True)
    runs = [start(command, env=environment) for _ in range(3)]
    return int(statistics.median(int(run.stdout.split()[-1]) for run in runs))


def measure(case: str, device: torch.device) -> list[Result]:
    net = _network(case, device)
    calls = _calls(case, net)
    _check(case, net, calls)
    peaks = {
        name: _peak(case, name, device)
        if device.type == "cpu"
        else harness.peak_memory(call, device)
        for name, call in calls.items()
    }
    times = harness.interleaved(
        {name: harness.call_timer(call, device) for name, call in calls.items()}
    )
    return implementations.results("capture", case, net, times, peaks)


def cases(device: torch.device, full: bool) -> dict[str, Callable[[], list[Result]]]:
    return {case: functools.partial(measure, case, device) for case in CASES}


if __name__ == "__main__":  # one implementation's peak memory, for _peak
    _case, _name, _device = sys.argv[1], sys.argv[2], torch.device(sys.argv[3])
    _call = _calls(_case, _network(_case, _device))[_name]
    if "first" not in sys.argv[4:]:  # the first call also finds out about the network
        _call()
    print(harness.peak_memory(_call, _device))
