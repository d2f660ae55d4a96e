"""Ranges, smoothing, the class that is held and frames between, on raw maps alone."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastcam.video.temporal import (
    FORGETTING,
    LEAD,
    LEAD_SECONDS,
    WEAK,
    WEAK_SECONDS,
    Lock,
    Norm,
    RawMap,
    Smoothing,
    _Cuts,
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


RATES = [10, 25, 60]


def locked(
    *parts: tuple[float, list[float]], rate: float = 25, cuts: bool = False, batch: int = 4
) -> list[int]:
    """The class of each frame, for probabilities that hold for so many seconds each.

    Args:
        cuts: whether the picture is another one in each part.
    """
    rows = [row for seconds, row in parts for _ in range(round(seconds * rate))]
    shades = [
        i * cuts for i, (seconds, _) in enumerate(parts) for _ in range(round(seconds * rate))
    ]
    lock, found = Lock(lambda logits: logits), []
    for start in range(0, len(rows), batch):
        indices = range(start, min(start + batch, len(rows)))
        lock.show(
            [(i / rate, torch.full((3, 16, 16), 100 * (cuts and shades[i] % 2))) for i in indices]
        )
        found += lock.ids(torch.tensor(rows[start : start + batch]))[:, 0].tolist()
    return found


def stretches(ids: list[int], rate: float) -> list[tuple[int, float]]:
    """The classes in turn, and for how many seconds each is shown."""
    found: list[tuple[int, float]] = []
    for class_id, group in itertools.groupby(ids):
        found.append((class_id, len(list(group)) / rate))
    return found


FIRST, LEADS, NEAR = [0.5, 0.4], [0.4, 0.4 + LEAD + 0.01], [0.5, 0.5 + LEAD - 0.01]


@pytest.mark.parametrize("rate", RATES)
def test_lock_counts_in_seconds(rate: int) -> None:
    (first, before), (second, _) = stretches(locked((2, FIRST), (2, LEADS), rate=rate), rate)
    assert (first, second) == (0, 1)
    assert before - 2 == pytest.approx(LEAD_SECONDS, abs=1.01 / rate)
    assert set(locked((1, FIRST), (10, NEAR), rate=rate)) == {0}, "a small lead never counts"
    short = [(0.2, LEADS), (0.2, FIRST)] * 5
    assert set(locked((1, FIRST), *short, rate=rate)) == {0}, "nor does a short one"


@pytest.mark.parametrize("rate", [0.5, 1, 2])
def test_lock_with_frames_that_are_far_apart(rate: float) -> None:
    """As with a stride: one frame lasts longer than a lead has to."""
    found = locked((4, FIRST), (4, LEADS), rate=rate)
    assert found == [0] * round(4 * rate) + [1] * round(4 * rate)


def test_lock_where_several_classes_are_sure() -> None:
    """Those above it may take turns; it is enough that it is led."""
    turns = [(0.04, [0.0, 0.9, 1.0]), (0.04, [0.0, 1.0, 0.9])] * 8
    assert locked((0.04, [1.0, 0.9, 0.9]), *turns)[-1] != 0


@pytest.mark.parametrize("rate", RATES)
def test_a_weak_class_is_not_shown_for_long(rate: int) -> None:
    """Another one is on top, though not by the lead."""
    weak = [0.01, 0.06]
    found = stretches(locked((1, FIRST), (5, weak), rate=rate), rate)
    assert [class_id for class_id, _ in found] == [0, 1]
    assert 1.5 < found[0][1] <= 1 + WEAK_SECONDS
    below = [(0.4, [0.01, 0.06]), (0.4, [0.06, 0.07])] * 5
    assert set(locked((1, FIRST), *below, rate=rate)) == {0}, "not below for long"


@pytest.mark.parametrize("rate", [*RATES, 1.5])
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_no_weak_class_is_shown_for_more_than_a_second(rate: float, data: st.DataObject) -> None:
    shares = st.lists(st.floats(0, 0.3), min_size=4, max_size=4)
    parts = data.draw(st.lists(st.tuples(st.floats(0.1, 3), shares), min_size=1, max_size=8))
    rows = [row for seconds, row in parts for _ in range(round(seconds * rate))]
    longest = since = 0
    for row, shown in zip(rows, locked(*parts, rate=rate), strict=True):
        since = since + 1 if row[shown] < min(WEAK, max(row)) else 0
        longest = max(longest, since)
    assert longest / rate <= WEAK_SECONDS + 1e-6


def test_where_all_classes_are_weak_the_top_one_is_shown() -> None:
    found = locked((1, [*FIRST, 0.0]), (3, [0.01, 0.03, 0.02]))
    assert found[-1] == 1


@pytest.mark.parametrize("rate", RATES)
def test_a_cut_lets_go(rate: int) -> None:
    """Even of a class that is not led by much."""
    parts = (2, FIRST), (2, NEAR)
    assert stretches(locked(*parts, rate=rate, cuts=True), rate) == [(0, 2), (1, 2)]
    assert set(locked(*parts, rate=rate)) == {0}


def test_what_counts_as_a_cut() -> None:
    random = torch.Generator().manual_seed(0)
    scene = torch.randint(0, 256, (3, 64, 96), generator=random, dtype=torch.uint8)
    cuts = _Cuts()
    found = [cuts.next(scene.roll(2 * index, 2)) for index in range(20)]
    found += [cuts.next((scene.roll(40, 2) * 0.9).byte())]  # darker
    assert not any(found)
    assert cuts.next(255 - scene // 2)
    assert not cuts.next(255 - scene // 2)


def test_a_picture_that_always_changes_has_no_cuts() -> None:
    """A slow wave of light and a flicker; neither jumps by more than its usual change."""
    for levels in ([0, 60, 120, 180, 240, 180, 120, 60], [0, 120]):
        cuts = _Cuts()
        shown = [torch.full((3, 8, 8), levels[i % len(levels)]) for i in range(50)]
        assert sum([cuts.next(picture) for picture in shown][25:]) == 0


def test_lock_goes_on_from_batch_to_batch() -> None:
    parts = (0.2, FIRST), (1, LEADS)
    assert len({tuple(locked(*parts, batch=batch)) for batch in (1, 3, 7, 100)}) == 1


def test_between() -> None:
    left, right = raw(0.0, 2.0), replace(raw(4.0, 2.0), probability=1.0)
    middle = between(left, right, 0.25)
    assert middle.map.tolist() == [[1, 2]]
    assert middle.probability == 0.625
    assert between(left, None, 0.5) is left
    assert between(left, replace(right, class_id=1), 0.5) is left
