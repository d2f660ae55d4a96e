"""Metrics of localisation: by hand, in loops, beside wsolevaluation, TorchRay and Quantus."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import SIZE, drawn, saved
from torch import Tensor

from fastcam import metrics

SAVED: dict[str, Any] = saved()
DRAWN = [drawn(scene) for scene in SAVED["scenes"]]
MAPS = torch.stack([each[0] for each in DRAWN])
BOXES = [each[1] for each in DRAWN]
MASKS = [each[2] for each in DRAWN]
THRESHOLDS = 16


# --- beside other libraries -----------------------------------------------------------------------


def test_px_ap_of_wsolevaluation() -> None:
    found = metrics.pixel_histograms(MAPS, masks=MASKS, thresholds=THRESHOLDS)
    assert 100 * metrics.px_ap(found).item() == pytest.approx(SAVED["px_ap"], abs=1e-9)
    top = torch.zeros(SIZE, dtype=torch.bool)
    top[: SIZE[0] // 3] = True
    found = metrics.pixel_histograms(
        MAPS, masks=MASKS, ignored=[top] * len(MAPS), thresholds=THRESHOLDS
    )
    assert 100 * metrics.px_ap(found).item() == pytest.approx(SAVED["px_ap_ignored"], abs=1e-9)


def test_max_box_acc_v2_of_wsolevaluation() -> None:
    """Its boxes are a pixel larger, so that an IoU near a level may be on its other side."""
    found = metrics.box_ious(MAPS, BOXES, thresholds=THRESHOLDS)
    expected = torch.tensor(SAVED["best_ious"], dtype=torch.float64)
    differences = (found - expected).abs()[:, 1:]  # from 0 on, it leaves out the pixels of 0
    assert differences.max() < 0.06 and differences.mean() < 0.02
    for level, accuracy in zip((0.3, 0.5, 0.7), SAVED["max_box_acc"], strict=True):
        ours = 100 * metrics.max_box_acc_v2(found, [level]).item()
        assert abs(ours - accuracy) <= 2 * 100 / len(MAPS) + 1e-6
        theirs = metrics.max_box_acc_v2(expected, [level]).item()
        assert 100 * theirs == pytest.approx(accuracy)
    mean = 100 * metrics.max_box_acc_v2(expected).item()
    assert mean == pytest.approx(np.mean(SAVED["max_box_acc"]))


def test_boxes_of_wsolevaluation() -> None:
    """An IoU of 1 with each of its boxes: all but those of holes are boxes of components."""
    height, width = SIZE
    seen = 0
    for heat, by_threshold in zip(MAPS, SAVED["boxes"], strict=False):
        for t, boxes in list(enumerate(by_threshold))[1:]:
            # it cuts a far edge by a pixel at the image's edge alone
            whole = [
                [x0, y0, x1 + (x1 == width - 1), y1 + (y1 == height - 1)]
                for x0, y0, x1, y1 in boxes
                if x1 - x0 and y1 - y0
            ]
            found = [
                metrics.box_ious(heat[None], [[box]], thresholds=THRESHOLDS)[0, t].item()
                for box in whole
            ]
            assert max(found) == 1
            seen += found.count(1)
            if len(found) == 1:
                continue
            areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in whole]
            largest = areas.index(max(areas))
            assert found[largest] == 1
    assert seen > 80


@pytest.mark.parametrize("tolerance", [4, 15])
def test_pointing_game_of_torchray(tolerance: int) -> None:
    masks = [each[0] for each in MASKS]
    maps = MAPS.clone()
    for heat in maps:  # of several maxima, TorchRay takes the first
        heat.view(-1)[heat.argmax()] = 2
    found = metrics.pointing_game(maps, masks=masks, tolerance=tolerance)
    expected = torch.tensor(SAVED[f"hits_{tolerance}"]) == 1
    assert 0 < expected.sum() < len(MAPS) and (found == expected).all()
    metric = metrics.PointingGame(tolerance=tolerance)
    metric.update(maps, masks=masks, targets=torch.arange(len(maps)) % 2)
    assert metric.compute().item() == pytest.approx(SAVED[f"accuracy_{tolerance}"])


def test_pointing_and_energy_of_quantus() -> None:
    quantus = pytest.importorskip("quantus", reason="quantus is missing")
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(5, 12, 15, generator=generator)
    masks = [torch.rand(12, 15, generator=generator) < 0.4 for _ in maps]
    arguments: dict[str, Any] = {
        "x_batch": np.zeros((5, 1, 12, 15)),
        "a_batch": maps[:, None].numpy(),
        "s_batch": torch.stack(masks)[:, None].numpy(),
    }
    for peer, found in (
        (quantus.metrics.localisation.PointingGame, metrics.pointing_game(maps, masks=masks)),
        (
            quantus.metrics.localisation.RelevanceMassAccuracy,
            metrics.energy_pointing_game(maps, masks=masks),
        ),
    ):
        game = peer(abs=False, normalise=False, disable_warnings=True)
        expected = game.evaluate_batch(**arguments)
        np.testing.assert_allclose(found.numpy(), np.asarray(expected, float), rtol=1e-5)


# --- by hand --------------------------------------------------------------------------------------

CROSS = torch.tensor(
    [
        [0.0, 0.0, 0.2, 0.0],
        [0.0, 0.4, 1.0, 0.4],
        [0.0, 0.0, 0.2, 0.0],
    ]
)[None]


def test_pointing_game_by_hand() -> None:
    def game(box: list[float], tolerance: float = 0) -> float:
        return metrics.pointing_game(CROSS, [[box]], tolerance=tolerance).item()

    assert game([2, 1, 3, 2]) == 1  # the pixel (2, 1) itself
    assert game([0, 0, 2, 3]) == 0 and game([3, 0, 4, 3]) == 0
    assert game([0, 0, 1, 1], 2) == 0 and game([0, 0, 1, 1], 2.3) == 1  # sqrt(5) away
    assert game([1, 1, 2, 2], 1) == 0 and game([1, 1, 2, 2], 1.01) == 1
    corner = torch.zeros(1, 6, 6)
    corner[0, 0, 0] = 1
    for tolerance, hit in ((5, 0), (5.01, 1)):  # 3 and 4 pixels: 5 away
        assert metrics.pointing_game(corner, [[[3, 4, 4, 5]]], tolerance=tolerance).item() == hit
    # a constant map: the share of the area
    flat = torch.zeros(1, 3, 4)
    assert metrics.pointing_game(flat, [[[0, 0, 2, 3]]]).item() == 0.5
    # no instance: no value
    assert metrics.pointing_game(CROSS, [[]]).isnan().all()
    assert metrics.pointing_game(CROSS, masks=[torch.zeros(0, 3, 4)]).isnan().all()


def test_energy_by_hand() -> None:
    assert metrics.energy_pointing_game(CROSS, [[[2, 1, 3, 2]]]).item() == pytest.approx(1 / 2.2)
    two = [[[0, 1, 2, 2], [2, 0, 4, 1]]]
    assert metrics.energy_pointing_game(CROSS, two).item() == pytest.approx(0.6 / 2.2)
    # overlapping instances count once, negative values as 0, nothing as nothing
    twice = [[[2, 1, 3, 2], [2, 1, 3, 2]]]
    assert metrics.energy_pointing_game(CROSS, twice).item() == pytest.approx(1 / 2.2)
    assert metrics.energy_pointing_game(CROSS - 0.4, twice).item() == pytest.approx(1)
    assert metrics.energy_pointing_game(0 * CROSS, twice).item() == 0


def test_iou_recall_and_confusion_by_hand() -> None:
    box = [[[1, 1, 3, 2]]]  # the pixels of 0.4 and 1
    found = metrics.iou(CROSS, box, thresholds=(0, 0.3, 0.5))
    torch.testing.assert_close(found, torch.tensor([[2 / 12, 2 / 3, 1 / 2]]))
    two = [[[0, 1, 2, 2], [3, 0, 4, 1]]]
    assert metrics.instance_recall(CROSS, two, threshold=0.4).item() == 0.5
    assert metrics.instance_recall(CROSS, two, threshold=0.5).item() == 0
    own, others = [[[2, 1, 3, 2]]], [[[1, 1, 3, 2], [2, 0, 3, 1]]]
    found = metrics.class_confusion(CROSS, own, other_boxes=others, threshold=0.2)
    assert found.item() == pytest.approx(2 / 5)  # hot: 5 pixels; (1, 1) and (2, 0) are others'
    assert metrics.class_confusion(CROSS, own, other_boxes=[[]]).item() == 0
    # constant maps are hot everywhere
    flat = torch.full((1, 3, 4), 0.3)
    assert metrics.iou(flat, box)[0].tolist() == pytest.approx([2 / 12] * 3)
    assert metrics.iou(CROSS, [[]]).isnan().all()
    assert metrics.instance_recall(CROSS, [[]]).isnan().all()


def test_box_ious_by_hand() -> None:
    heat = torch.zeros(1, 8, 9)
    heat[0, 1:4, 2:5] = 1
    heat[0, 6, 6:8] = 0.5
    boxes = [[[2, 1, 5, 4], [6, 6, 8, 8]]]
    found = metrics.box_ious(heat, boxes, thresholds=4)
    # from 0 on: all 72 pixels and the box of 9; from 1/4 on: both parts, the first one exactly
    assert found.tolist() == [[pytest.approx(9 / 72), 1, 1, 1]]
    assert metrics.box_ious(heat, [[[6, 6, 8, 8]]], thresholds=4)[0].tolist() == pytest.approx(
        [4 / 72, 0.5, 0.5, 0]
    )
    # parts that touch at a corner are one
    corner = torch.eye(3)[None]
    assert metrics.box_ious(corner, [[[0, 0, 3, 3]]], thresholds=2)[0, 1] == 1
    ious = torch.tensor([[0.2, 0.6], [0.4, 0.1], [0.8, 0.35]])
    # 0.3: 2/3 at either threshold; 0.5: 1/3; 0.7: 1/3 at the first
    assert metrics.max_box_acc_v2(ious).item() == pytest.approx((2 / 3 + 1 / 3 + 1 / 3) / 3)
    flat = metrics.box_ious(torch.ones(1, 3, 4), [[[0, 0, 4, 3]]], thresholds=3)
    assert flat.tolist() == [[1, 0, 0]]  # a constant map becomes 0
    assert metrics.box_ious(heat, [[]], thresholds=3).isnan().all()


def test_px_ap_by_hand() -> None:
    """Values 1, 0.5, 0.5, 0, of which the first and the second are inside."""
    heat = torch.tensor([[[1.0, 0.5], [0.5, 0.0]]])
    mask = torch.tensor([[True, True], [False, False]])
    found = metrics.pixel_histograms(heat, masks=[mask], thresholds=2)
    assert found.tolist() == [[[0, 1, 1], [1, 1, 0]]]
    # recall 1/2 at precision 1, then recall 1 at precision 2/3
    assert metrics.px_ap(found).item() == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    ignored = torch.tensor([[True, False], [True, False]])  # an instance's pixel counts anyway
    found = metrics.pixel_histograms(heat, masks=[mask], ignored=[ignored], thresholds=2)
    assert found.tolist() == [[[0, 1, 1], [1, 0, 0]]]
    assert metrics.px_ap(0 * found).isnan()


@given(st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_boxes_and_masks_in_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(2, 9, 2)
    maps = torch.from_numpy(rng.integers(0, 5, (2, height, width)) / 4)
    boxes, masks = [], []
    for _ in maps:
        count = int(rng.integers(1, 4))
        corner = np.sort(rng.uniform(0, 1, (count, 2, 2)), 1) * [width, height]
        corner[:, 1] += 1e-3
        corner = corner.clip(max=[width, height])
        boxes.append(torch.from_numpy(corner.reshape(count, 4)))
        mask = torch.zeros(count, height, width, dtype=torch.bool)
        for n, ((x0, y0), (x1, y1)) in enumerate(corner):
            for y, x in np.ndindex(height, width):  # whether the pixel and the box overlap
                mask[n, y, x] = bool(x < x1 and x + 1 > x0 and y < y1 and y + 1 > y0)
        masks.append(mask)
    assert all(mask.flatten(1).any(1).all() for mask in masks)
    tolerance = float(rng.uniform(0, 5))
    for n, (heat, instances) in enumerate(zip(maps.numpy(), masks, strict=True)):
        union = instances.any(0).numpy()
        points = np.argwhere(heat == heat.max())
        near = [
            any(
                ((point - other) ** 2).sum() < max(tolerance**2, 1e-9)
                for other in np.argwhere(union)
            )
            for point in points
        ]
        game = metrics.pointing_game(maps, boxes, tolerance=tolerance)
        assert game[n].item() == pytest.approx(np.mean(near))
        hot = heat >= 0.5 * heat.max()
        assert metrics.iou(maps, boxes, thresholds=[0.5])[n].item() == pytest.approx(
            (hot & union).sum() / (hot | union).sum()
        )
        recalled = [bool((hot & each.numpy()).any()) for each in instances]
        assert metrics.instance_recall(maps, boxes)[n].item() == pytest.approx(np.mean(recalled))
    for measure in (metrics.pointing_game, metrics.energy_pointing_game, metrics.iou):
        assert measure(maps, boxes).equal(measure(maps, masks=masks))
        # both: the masks count
        assert measure(maps, boxes, [m[:1] for m in masks]).equal(
            measure(maps, masks=[m[:1] for m in masks])
        )


def test_masks_of_signals_and_volumes() -> None:
    signal = torch.tensor([[0.0, 1.0, 0.5]])
    assert metrics.energy_pointing_game(signal, masks=[[0, 1, 0]]).item() == pytest.approx(2 / 3)
    assert metrics.pointing_game(signal, masks=[[0, 0, 1]], tolerance=1.5).item() == 1
    volume = torch.rand(2, 3, 4, 5)
    masks = [torch.ones(3, 4, 5)] * 2
    assert (metrics.pointing_game(volume, masks=masks, tolerance=2) == 1).all()
    with pytest.raises(ValueError, match="boxes need 2-D maps"):
        metrics.pointing_game(signal, [[[0, 0, 1, 1]]])


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (None, "boxes: got None"),
        ([], "boxes: got 0 for 1 maps"),
        ([[1, 2, 3, 4]], r"boxes: got shape \(4,\) for image 0, expected \(B, 4\)"),
        ([[[1, 1, 1, 1]]], r"boxes: image 0 has an empty box .* the pixel \(x, y\)"),
        ([[[0, 0, 9, 3]]], "boxes: image 0 has a box outside of its map of 4 x 3"),
        ([[[4, 0, 5, 3]]], "boxes: image 0 has a box outside"),
        ([[[0, float("nan"), 1, 3]]], "boxes: image 0 has an empty box"),
    ],
)
def test_boxes_that_do_not_fit(boxes: Any, message: str) -> None:
    for measure in (metrics.pointing_game, metrics.iou, metrics.box_ious):
        with pytest.raises(ValueError, match=message):
            measure(CROSS, boxes)


def test_arguments_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"masks: got shape \(2, 3, 3\) for image 0"):
        metrics.pointing_game(CROSS, masks=[torch.ones(2, 3, 3)])
    with pytest.raises(ValueError, match="masks: got 2 for 1 maps"):
        metrics.pointing_game(CROSS, masks=[torch.ones(3, 4)] * 2)
    with pytest.raises(TypeError, match=r"maps: got torch.uint8, expected floating-point"):
        metrics.iou((CROSS * 255).byte(), [[[1, 1, 3, 2]]])
    with pytest.raises(ValueError, match="tolerance: got -1, expected 0 or more"):
        metrics.pointing_game(CROSS, [[]], tolerance=-1)
    with pytest.raises(ValueError, match="thresholds: got 0, expected at least 1"):
        metrics.box_ious(CROSS, [[]], thresholds=0)


def test_empty_batches_and_half_precision() -> None:
    none = torch.zeros(0, 3, 4)
    for measure in (
        metrics.pointing_game,
        metrics.energy_pointing_game,
        metrics.iou,
        metrics.instance_recall,
        metrics.box_ious,
        metrics.pixel_histograms,
    ):
        assert len(measure(none, [])) == 0
        levels = (CROSS * 8).round() / 8
        half: Tensor = measure(levels.half(), [[[1, 1, 3, 2]]])
        torch.testing.assert_close(
            half.double(), measure(levels, [[[1, 1, 3, 2]]]).double(), rtol=0, atol=2e-3
        )


def test_what_localisation_cannot_be_asked() -> None:
    maps = torch.rand(1, 4, 5)
    with pytest.raises(ValueError, match=r"^thresholds: got none"):
        metrics.iou(maps, [[[0, 0, 2, 2]]], thresholds=())
    soft = torch.rand(1, 1, 4, 5)
    with pytest.raises(ValueError, match=r"^masks: got floating-point values other than 0 and 1"):
        metrics.pointing_game(maps, masks=soft)
    hard = (soft > 0.5).float()
    assert metrics.pointing_game(maps, masks=hard).equal(
        metrics.pointing_game(maps, masks=hard.bool())
    )
