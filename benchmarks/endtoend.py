"""From images to enlarged maps: fastcam, other libraries, and the forward alone as the floor."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import torch

import fastcam
from benchmarks import harness, implementations
from benchmarks.harness import Result
from fastcam import reference

NETWORKS = ("resnet50", "vgg16", "convnext_tiny", "vit_b_16")
METHODS = tuple(name for name in reference.METHODS if name in fastcam.METHODS)


def measure(name: str, batch: int, method: str, device: torch.device) -> list[Result]:
    net = implementations.network(name, batch, device)
    calls = implementations.calls(net, method)
    implementations.check(net, method, calls)
    peaks = {}
    for implementation, call in calls.items():
        peaks[implementation] = harness.peak_memory(call, device, calls=1)
        net.model.zero_grad()  # the parameters' gradients, where an implementation left them
    times = harness.interleaved(
        {key: harness.call_timer(call, device) for key, call in calls.items()},
        warmup=1 if device.type == "cpu" else 3,
        repetitions=5 if device.type == "cpu" else 11,
    )
    return implementations.results("endtoend", _name(name, batch, method), net, times, peaks)


def _name(network: str, batch: int, method: str) -> str:
    return f"{network} {method} batch {batch}"


def cases(device: torch.device, full: bool) -> dict[str, Callable[[], list[Result]]]:
    batches = (1, 8, 64) if full or device.type == "cuda" else (1, 8)
    methods = METHODS if full else METHODS[:2]
    return {
        _name(name, batch, method): functools.partial(measure, name, batch, method, device)
        for name, batch, method in itertools.product(NETWORKS, batches, methods)
    }
