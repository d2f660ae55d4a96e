"""What the fused CUDA kernel should take on an H200, before one has run it:

python -m benchmarks.predict

A Markdown table for `python -m benchmarks ops --device cuda` to confirm or refute. The model: a
launch costs LAUNCH; bytes come at the bandwidth of a copy, or slower where the multiprocessors that
have a block do not ask for enough of them at once (bytes in flight = bandwidth x LATENCY).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from benchmarks.ops import LAYERS
from fastcam import _C

BANDWIDTH = 4.3e12  # bytes a second that a large copy moves, read and written
LATENCY = 0.75e-6  # seconds from asking for a byte to having it, under load
LAUNCH = 2.0e-6  # seconds of a kernel in a replayed graph, beside its bytes
DEVICE = {"multiprocessors": 132, "block_memory": 232448, "multiprocessor_memory": 233472}
RESIDENT = 2  # blocks of the fused kernel that the registers of a multiprocessor hold


@dataclass
class Prediction:
    bytes: int
    launches: int
    seconds: float
    plan: str


def cam(channels: int, positions: int, images: int, element: int, across: bool) -> Prediction:
    """A Grad-CAM++ map of one class: A and g once, the map once."""
    inputs = 2 * images * channels * positions * element
    moved = inputs + images * positions * 4
    plan = _C.launch_plan(
        images=images,
        channels=channels,
        positions=positions,
        element_bytes=element,
        channels_last=across,
        **DEVICE,
    )
    if plan["tile"] == 0:
        seconds = 2 * LAUNCH + (moved + inputs / 2) / (0.85 * BANDWIDTH)
        return Prediction(moved, 2, seconds, "two steps, A twice")
    per_multiprocessor = DEVICE["multiprocessor_memory"] // (plan["shared_bytes"] + 1024)
    resident = min(RESIDENT, per_multiprocessor)
    busy = min(plan["blocks"], DEVICE["multiprocessors"] * resident)
    in_flight = busy * plan["stages"] * plan["tile"] * positions * element * 2
    reached = min(0.92, in_flight / (BANDWIDTH * LATENCY))
    launches = 1 if plan["slices"] == 1 else 2
    seconds = launches * LAUNCH + moved / (BANDWIDTH * reached)
    tiles = f"tile {plan['tile']} x {plan['stages']}"
    text = f"{tiles}, {plan['slices']} slices, {plan['blocks']} blocks"
    return Prediction(moved, launches, seconds, f"{text}, {plan['shared_bytes'] / 1024:.0f} KiB")


def main() -> None:
    print("| Grad-CAM++ map of | bytes | floor us | launches | plan | predicted us |")
    print("|---|---|---|---|---|---|")
    for layer, (channels, *extents) in LAYERS.items():
        tokens = layer == "tokens"
        for images in (1, 64):
            for element, across in ((2, False), (2, True), (4, False)):
                if tokens and not across:
                    continue
                row = cam(channels, math.prod(extents), images, element, across)
                dtype = "float16" if element == 2 else "float32"
                layout = " channels_last" if across else ""
                print(
                    f"| {images} x {layer} {dtype}{layout} | {row.bytes / 1e6:.2f} MB "
                    f"| {1e6 * row.bytes / BANDWIDTH:.1f} | {row.launches} | {row.plan} "
                    f"| {1e6 * row.seconds:.1f} |"
                )


if __name__ == "__main__":
    main()
