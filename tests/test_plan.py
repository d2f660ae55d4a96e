"""How the fused CUDA kernel would be launched: a pure function of shapes and of the device."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

_C = pytest.importorskip("fastcam._C", reason="fastcam was not built")

KIB = 1024
# multiprocessors, and bytes of shared memory a block and a multiprocessor
DEVICES = {
    "A100": {"multiprocessors": 108, "block_memory": 163 * KIB, "multiprocessor_memory": 164 * KIB},
    "H200": {"multiprocessors": 132, "block_memory": 227 * KIB, "multiprocessor_memory": 228 * KIB},
    "99 KiB": {"multiprocessors": 70, "block_memory": 99 * KIB, "multiprocessor_memory": 100 * KIB},
}
# (channels, positions)
LAYERS = {
    "2048x7x7": (2048, 49),
    "1024x14x14": (1024, 196),
    "512x28x28": (512, 784),
    "256x56x56": (256, 3136),
    "64x112x112": (64, 12544),
    "tokens": (1024, 197),
    "512x8x7x7": (512, 392),
    "odd": (37, 1001),
    "one": (1, 1),
}


def plans(**fixed: Any) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Every combination of sizes, and what is planned for it."""
    factors = {
        "device": list(DEVICES),
        "layer": list(LAYERS),
        "images": [1, 3, 64, 1000],
        "classes": [1, 5, 100],
        "element_bytes": [2, 4],
        "channels_last": [False, True],
        "method": ["weights", "elementwise", "given"],
    }
    factors.update({name: [value] for name, value in fixed.items()})
    found = []
    for values in itertools.product(*factors.values()):
        case = dict(zip(factors, values, strict=True))
        channels, positions = LAYERS[case["layer"]]
        sizes = {name: case[name] for name in ("images", "classes", "element_bytes")}
        plan = _C.launch_plan(
            channels=channels,
            positions=positions,
            channels_last=case["channels_last"],
            gradients=case["method"] != "given",
            whole_channels=case["method"] == "weights",
            **sizes,
            **DEVICES[case["device"]],
        )
        found.append((case, plan))
    return found


def test_a_plan_fits_its_device():
    for case, plan in plans():
        if plan["tile"] == 0:
            assert case["method"] == "weights", case  # the others take windows of positions
            continue
        channels, positions = LAYERS[case["layer"]]
        device = DEVICES[case["device"]]
        tile = plan["tile"]
        assert plan["shared_bytes"] <= device["block_memory"], case
        assert tile & (tile - 1) == 0 and 1 <= plan["stages"] <= 2, case
        assert 1 <= plan["slices"] <= -(-channels // tile), case
        assert 1 <= plan["classes"] <= min(8, case["classes"]), case
        run = tile if case["channels_last"] else tile * positions
        assert run * case["element_bytes"] % 16 == 0, case
        windows = -(-positions // plan["window"])
        assert windows == 1 or case["method"] != "weights", case
        maps = case["images"] * windows * -(-case["classes"] // plan["classes"])
        assert plan["blocks"] == maps * plan["slices"], case


def two_steps(device: str) -> set[tuple[str, bool, int]]:
    """(layer, channels_last, bytes an element) whose channels do not fit a block."""
    return {
        (case["layer"], case["channels_last"], case["element_bytes"])
        for case, plan in plans(device=device, method="weights")
        if plan["tile"] == 0
    }


def test_where_activations_are_read_once():
    last = {("64x112x112", True, 2), ("64x112x112", True, 4)}
    assert two_steps("H200") == two_steps("A100") == last
    middle = {("256x56x56", True, 2), ("256x56x56", True, 4)}
    assert two_steps("99 KiB") == last | middle | {("64x112x112", False, 4)}


def test_one_launch_for_many_images():
    for case, plan in plans(images=1000, classes=1):
        assert plan["tile"] == 0 or plan["slices"] == 1, case


def test_few_images_fill_the_device():
    for case, plan in plans(images=1, classes=1, layer="2048x7x7"):
        assert plan["blocks"] >= 0.9 * DEVICES[case["device"]]["multiprocessors"], case
