"""Ranges, smoothing, the class that is held and frames between, on raw maps alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastcam.video.temporal import (
    FORGETTING,
    LEAD,
    LEAD_FRAMES,
    Lock,
    Norm,
    RawMap,
    Smoothing,
    between,
    scaled,
)


def raw(*values: float, class_id: int = 0, standing: float = 1.0) -> RawMap:
    return RawMap(torch.tensor([values]), class_id, 1.0, 0.5, standing)


def peaks(norm: str, raws: list[RawMap]) -> list[float]:
    ranges = Norm(norm).ranges(raws)
    return [scaled(each.map, ranges(each)).max().item() for each in raws]


CLIP = [raw(0, 2), raw(0, 4), raw(0, 1)]


def test_ranges() -> None:
    assert peaks("frame", CLIP) == [1, 1, 1]
    assert peaks("clip", CLIP) == [0.5, 1, 0.25]
    assert peaks("fixed:0,8", CLIP) == [0.25, 0.5, 0.125]
    assert peaks("fixed:0,2", CLIP) == [1, 1, 0.5], "what lies outside is cut"
    running = peaks("running", CLIP)
    assert running[:2] == [1, 1], "nothing larger was known"
    assert running[2] == pytest.approx(0.25, rel=0.01)


def test_the_running_range_forgets() -> None:
    ranges = Norm("running").ranges()
    ranges(raw(0, 100))
    for _ in range(round(3 / FORGETTING)):
        low, high = ranges(raw(0, 1))
    assert low == 0
    assert 1 < high < 10


def test_a_class_that_has_not_appeared_yet_is_cold() -> None:
    raws = [raw(0, 1, standing=0.1), raw(0, 2, standing=0.05), raw(0, 8, standing=1)]
    assert peaks("running", [*raws, raw(0, 4, standing=0.1)]) == pytest.approx(
        [0.1, 0.1, 1, 0.5], rel=0.01
    )


@pytest.mark.parametrize("norm", ["frame", "running", "clip", "fixed:0,1"])
def test_maps_without_a_range(norm: str) -> None:
    nan = float("nan")
    raws = [raw(nan, nan), raw(1, 1), raw(nan, 1), raw(0, 2)]
    ranges = Norm(norm).ranges(raws)
    found = [scaled(each.map, ranges(each)) for each in raws]
    assert found[3].tolist() == [[0, 1]], "what was not finite is forgotten"
    if norm != "fixed:0,1":
        assert Norm(norm).ranges(raws[:1])(raws[0]) == (0, 0)


def smoothed(text: str, raws: list[RawMap]) -> Tensor:
    return torch.cat([each.map[0] for each in Smoothing(text).all(raws)])


def test_ema() -> None:
    raws = [raw(0.0), raw(8.0), raw(8.0), raw(4.0, class_id=1), raw(0.0, class_id=1)]
    assert smoothed("ema:.5", raws).tolist() == [0, 4, 6, 4, 2], "not across classes"
    assert smoothed("ema:1", raws).tolist() == [0, 8, 8, 4, 0]


def test_gauss() -> None:
    step = [raw(0.0)] * 10 + [raw(1.0)] * 10
    smooth = smoothed("gauss:2", step)
    assert (smooth.diff() >= -1e-6).all()
    torch.testing.assert_close(smooth, 1 - smooth.flip(0))
    # at the last zero, 6 of the 13 weights are those of ones
    weights = torch.exp(-(torch.arange(-6, 7) ** 2) / 8)
    torch.testing.assert_close(smooth[9], weights[7:].sum() / weights.sum())
    other = [replace(each, class_id=int(each.map.item())) for each in step]
    assert smoothed("gauss:2", other).tolist() == pytest.approx([0.0] * 10 + [1.0] * 10)


@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=40), st.floats(0.1, 5))
def test_gauss_stays_within_the_values_and_keeps_constants(values: list[float], s: float) -> None:
    smooth = smoothed(f"gauss:{s}", [raw(value) for value in values])
    assert smooth.min() >= min(values) - 1e-5 and smooth.max() <= max(values) + 1e-5
    same = smoothed(f"gauss:{s}", [raw(values[0])] * len(values))
    torch.testing.assert_close(same, torch.full_like(same, values[0]), atol=1e-5, rtol=1e-5)


def locked(*rows: list[float]) -> list[int]:
    return Lock(lambda logits: logits).ids(torch.tensor(rows))[:, 0].tolist()


def test_lock() -> None:
    first, lead, near = [0.5, 0.4], [0.4, 0.4 + LEAD + 0.01], [0.5, 0.5 + LEAD - 0.01]
    assert locked(first, *[lead] * (LEAD_FRAMES + 1))[-3:] == [0, 1, 1]
    assert locked(first, *[near] * 50)[-1] == 0, "a small lead never counts"
    broken_row = [lead] * (LEAD_FRAMES - 1) + [first]
    assert locked(first, *broken_row * 5)[-1] == 0


def test_lock_where_several_classes_are_sure() -> None:
    """Those above it may take turns; it is enough that it is led."""
    first, rest = [1.0, 0.9, 0.9], [[0.0, 0.9, 1.0], [0.0, 1.0, 0.9]] * LEAD_FRAMES
    assert locked(first, *rest)[-1] != 0


def test_lock_goes_on_from_batch_to_batch() -> None:
    lock = Lock(lambda logits: logits)
    rows = torch.tensor([[0.9, 0.1]] + [[0.1, 0.9]] * (LEAD_FRAMES + 2))
    found = torch.cat([lock.ids(part) for part in rows.split(3)])[:, 0].tolist()
    assert found == [0] * LEAD_FRAMES + [1] * 3


def test_between() -> None:
    left, right = raw(0.0, 2.0), replace(raw(4.0, 2.0), probability=1.0)
    middle = between(left, right, 0.25)
    assert middle.map.tolist() == [[1, 2]]
    assert middle.probability == 0.625
    assert between(left, None, 0.5) is left
    assert between(left, replace(right, class_id=1), 0.5) is left
