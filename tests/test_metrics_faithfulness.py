"""Deletion, insertion, win, infidelity and max-sensitivity: loops, and other libraries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import network, small, small_images
from torch import Tensor, nn

import fastcam
from fastcam import metrics
from fastcam.metrics.imputation import impute

CLASSES = torch.tensor([1, 4, 2])


def sharp() -> tuple[nn.Module, Tensor, Tensor]:
    model, images = small(), small_images()
    with torch.no_grad():
        model.head.weight *= 20
    return model, images, fastcam.GradCAM(model)(images, CLASSES)


def probability(model: nn.Module, image: Tensor, class_id: int) -> float:
    with torch.no_grad():
        return model(image[None]).softmax(1)[0, class_id].item()


def blurred(image: Tensor) -> Tensor:
    """Every pixel the weighted mean of 11 x 11, the image continued by its edge."""
    padded = np.pad(image.double().numpy(), ((0, 0), (5, 5), (5, 5)), mode="edge")
    height, width = image.shape[1:]
    total, weights = np.zeros(image.shape), 0.0
    for dy, dx in np.ndindex(11, 11):
        weight = np.exp(-((dy - 5) ** 2 + (dx - 5) ** 2) / 50)
        total += weight * padded[:, dy : dy + height, dx : dx + width]
        weights += weight
    return torch.from_numpy(total / weights).float()


def stood_in(image: Tensor, gone: Tensor, baseline: Any) -> Tensor:
    """One image without some pixels."""
    if baseline == "impute" and not gone.all():
        return impute(image[None], ~gone[None])[0]
    if baseline == "blur":
        values = blurred(image)
    elif isinstance(baseline, float):
        values = torch.full_like(image, baseline)
    else:
        values = torch.stack([torch.full_like(channel, channel.mean()) for channel in image])
    result = image.clone()
    for y, x in gone.nonzero().tolist():
        result[:, y, x] = values[:, y, x]
    return result


@pytest.mark.parametrize("baseline", ["mean", "blur", "impute", 0.25])
@pytest.mark.parametrize("steps", [3, 7])
def test_curves(baseline: Any, steps: int) -> None:
    model, images, maps = sharp()
    given_baseline = baseline if isinstance(baseline, str) else torch.tensor(baseline)
    options: Any = {"baseline": given_baseline, "steps": steps, "batch_size": 4}
    deleted = metrics.deletion(model, images, maps, CLASSES, **options)
    inserted = metrics.insertion(model, images, maps, CLASSES, **options)
    total = maps[0].numel()
    counts = [round(i * total / steps + 1e-9) for i in range(steps + 1)]
    torch.testing.assert_close(deleted.shares, torch.tensor(counts).double() / total)
    for n, image in enumerate(images):
        order = np.argsort(-maps[n].flatten().numpy(), kind="stable")
        for column, count in enumerate(counts):
            first = torch.zeros(total, dtype=torch.bool)
            first[order[:count]] = True
            first = first.view(maps[n].shape)
            for found, gone in ((deleted, first), (inserted, ~first)):
                changed = stood_in(image, gone, baseline)
                expected = probability(model, changed, int(CLASSES[n]))
                assert found.scores[n, column].item() == pytest.approx(expected, abs=2e-5)
    shares = deleted.shares.numpy()
    expected_areas = [np.trapezoid(row, shares) for row in deleted.scores.double().numpy()]
    torch.testing.assert_close(deleted.area.double(), torch.tensor(expected_areas))
    difference = metrics.insertion_minus_deletion(
        model, images, maps, CLASSES, deleted=given_baseline, inserted=given_baseline, steps=steps
    )
    torch.testing.assert_close(difference, inserted.area - deleted.area, rtol=1e-4, atol=1e-5)


def test_curves_by_hand() -> None:
    """f(x) = sum x of four pixels worth 4, 3, 2, 1: deletion to 0 in the order of the map."""

    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).sum(1, keepdim=True)

    images = torch.tensor([[[[4.0, 3.0], [2.0, 1.0]]]])
    options: Any = {"baseline": torch.zeros(()), "probabilities": False, "steps": 4}
    found = metrics.deletion(Sum(), images, images[:, 0] / 4, 0, **options)
    assert found.scores.tolist() == [[10, 6, 3, 1, 0]]
    assert found.area.item() == pytest.approx((5 + 6 + 3 + 1) / 4)
    back = metrics.insertion(Sum(), images, images[:, 0] / 4, 0, **options)
    assert back.scores.tolist() == [[0, 4, 7, 9, 10]]
    # more steps than pixels: one pixel at a time
    fine = metrics.deletion(Sum(), images, images[:, 0] / 4, 0, **{**options, "steps": 100})
    assert fine.scores.equal(found.scores)
    # equals in their order, from the first on
    same = metrics.deletion(Sum(), images, torch.ones(1, 2, 2), 0, **options)
    assert same.scores.equal(found.scores)


def test_curves_of_torchcam() -> None:
    peer = pytest.importorskip("torchcam.metrics", reason="torchcam is missing")
    from torchcam.methods import GradCAM

    model, images = network("resnet18")
    classes = CLASSES
    with GradCAM(model, "layer4") as cam:
        # steps that divide the pixels: torchcam rounds the number of pixels in a step
        metric = peer.DeletionInsertionMetric(cam, steps=16)
        metric.update(images, classes.tolist())
        expected = metric.summary()
        # the same map to the bit, for the same order
        (raw,) = cam(classes.tolist(), model(images))
    maps = F.interpolate(raw[:, None], (64, 64), mode="bilinear")[:, 0]
    options: Any = {"baseline": torch.zeros(()), "steps": 16, "probabilities": False}
    found = metrics.deletion(model, images, maps, classes, **options).area.mean().item()
    assert found == pytest.approx(expected["deletion_auc"], abs=1e-4)
    found = metrics.insertion(model, images, maps, classes, **options).area.mean().item()
    assert found == pytest.approx(expected["insertion_auc"], abs=1e-4)


def test_clips_are_masked_over_time() -> None:
    """(N, T, C, H, W): the axis of channels comes third."""

    class Frames(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = small()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1)

    model, clips, maps = Frames().eval(), torch.randn(2, 4, 3, 8, 9), torch.rand(2, 4, 8, 9)
    found = metrics.confidence(model, clips, maps, 1, probabilities=False)
    torch.testing.assert_close(found.after, model(clips * maps[:, :, None])[:, 1].detach())
    options: Any = {"baseline": torch.zeros(()), "steps": 2, "probabilities": False}
    curve = metrics.deletion(model, clips, maps, 1, **options)
    kept = maps <= maps.flatten(1).median(1).values.view(-1, 1, 1, 1)  # the lower half
    expected = model(clips * kept[:, :, None])[:, 1].detach()
    torch.testing.assert_close(curve.scores[:, 1], expected)


def test_curves_of_signals() -> None:
    signal, samples = network("signal")
    found = metrics.insertion(signal, samples, torch.rand(3, 64), steps=5)
    assert found.scores.shape == (3, 6) and found.scores.isfinite().all()
    with pytest.raises(ValueError, match='baseline: got "impute" for images'):
        metrics.deletion(signal, samples, torch.rand(3, 64), baseline="impute")


@given(st.integers(1, 3), st.integers(1, 9), st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_curves_do_not_depend_on_the_batch(count: int, batch_size: int, seed: int) -> None:
    model, _, _ = sharp()
    torch.manual_seed(seed)
    images, maps = torch.randn(count, 3, 16, 20), torch.rand(count, 16, 20)
    found = metrics.deletion(model, images, maps, steps=6, batch_size=batch_size)
    assert found.scores.shape == (count, 7)
    for n in range(count):
        alone = metrics.deletion(model, images[n : n + 1], maps[n : n + 1], steps=6)
        torch.testing.assert_close(found.scores[n : n + 1], alone.scores, rtol=1e-4, atol=1e-6)


def test_win() -> None:
    model, images, maps = sharp()
    others = torch.rand(maps.shape, generator=torch.Generator().manual_seed(0))
    after = [
        metrics.confidence(model, images, each, CLASSES).after.double() for each in (maps, others)
    ]
    found = metrics.win(model, images, maps, others, CLASSES)
    assert found.tolist() == (after[0] > after[1]).double().tolist()
    assert (found + metrics.win(model, images, others, maps, CLASSES) == 1).all()
    assert not metrics.win(model, images, maps, maps, CLASSES).any()


def test_drops_of_scores_of_zero_and_below() -> None:
    class First(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :1]

    images = torch.tensor([0.0, 2.0]).view(2, 1, 1, 1)
    maps = torch.full((2, 1, 1), 0.5)
    found = metrics.confidence(First(), images, maps, 0, probabilities=False)
    assert found.relative_drop.tolist() == [0, 0.5]
    below = metrics.confidence(First(), -images, maps, 0, probabilities=False)
    with pytest.raises(ValueError, match=r"targets: got a score of -2, .* at least 0"):
        _ = below.relative_drop


def test_nan_in_a_map_is_nan_for_its_image_alone() -> None:
    model, images, maps = sharp()
    broken = maps.clone()
    broken[1, 3, 4] = torch.nan
    boxes = [[[1, 2, 8, 9]]] * 3
    for measure in (
        lambda m: metrics.confidence(model, images, m, CLASSES).relative_drop,
        lambda m: metrics.win(model, images, m, maps, CLASSES),
        lambda m: metrics.deletion(model, images, m, CLASSES, steps=4).area,
        lambda m: metrics.insertion(model, images, m, CLASSES, steps=4).area,
        lambda m: metrics.road(model, images, m, CLASSES, percentiles=(50,)).combined,
        lambda m: metrics.infidelity(model, images, m, CLASSES, samples=3),
        lambda m: metrics.pointing_game(m, boxes),
        lambda m: metrics.energy_pointing_game(m, boxes),
        lambda m: metrics.iou(m, boxes)[:, 0],
        lambda m: metrics.instance_recall(m, boxes),
        lambda m: metrics.class_confusion(m, boxes, other_boxes=boxes),
        lambda m: metrics.box_ious(m, boxes, thresholds=3)[:, 1],
        lambda m: metrics.pixel_histograms(m, boxes, thresholds=3)[:, 0, 0],
        lambda m: metrics.ssim(m, maps),
        lambda m: metrics.rank_correlation(m, maps),
        metrics.complexity,
        metrics.sparseness,
    ):
        found, whole = measure(broken), measure(maps)
        assert found.isnan().tolist() == [False, True, False]
        assert not whole.isnan().any()
        torch.testing.assert_close(found[::2], whole[::2])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype) -> None:
    model, images, maps = sharp()
    reference = metrics.deletion(model, images, maps, CLASSES, steps=5).area
    found = metrics.deletion(model.to(dtype), images.to(dtype), maps, CLASSES, steps=5).area
    torch.testing.assert_close(found.float(), reference, rtol=0, atol=0.05)
    for measure in (metrics.infidelity, metrics.insertion_minus_deletion):
        assert measure(model, images.to(dtype), maps, CLASSES).isfinite().all()


def test_empty_batches() -> None:
    model, images, maps = sharp()
    nothing, none = images[:0], maps[:0]
    assert metrics.confidence(model, nothing, none, CLASSES[:0]).change.shape == (0,)
    assert metrics.deletion(model, nothing, none, CLASSES[:0], steps=4).area.shape == (0,)
    assert metrics.road(model, nothing, none, CLASSES[:0]).combined.shape == (0,)
    assert metrics.infidelity(model, nothing, none, CLASSES[:0]).shape == (0,)


@pytest.mark.parametrize("scaled", [True, False])
def test_infidelity_of_captum(scaled: bool) -> None:
    peer = pytest.importorskip("captum.metrics", reason="captum is missing")
    model, images, maps = sharp()
    samples = 6
    generator = torch.Generator().manual_seed(0)
    changes = torch.randn(len(images) * samples, *images.shape[1:], generator=generator) / 5
    found = metrics.infidelity(
        model,
        images,
        maps,
        CLASSES,
        perturb=lambda x, _: changes,
        samples=samples,
        scaled=scaled,
        batch_size=100,
    )
    expected = peer.infidelity(
        lambda x: model(x).softmax(1),
        lambda x: (changes, x - changes),
        images,
        maps[:, None].expand_as(images),
        target=CLASSES,
        n_perturb_samples=samples,
        normalize=scaled,
    )
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_infidelity_of_a_linear_function_is_zero() -> None:
    """Of f(x) = sum(w x), w alike in all channels, the map w is faithful, and no other one."""

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(6, 7, generator=torch.Generator().manual_seed(0)))

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.weight).flatten(1).sum(1, keepdim=True)

    model, images = Linear(), torch.rand(2, 3, 6, 7)
    right = model.weight.detach().expand(2, 6, 7)
    options: Any = {"probabilities": False, "batch_size": 7}
    exact = metrics.infidelity(model, images, right, 0, scaled=False, **options)
    assert exact.max() < 1e-9
    # the scale of a map is arbitrary
    assert metrics.infidelity(model, images, right / 9, 0, **options).max() < 1e-9
    assert metrics.infidelity(model, images, right / 9, 0, scaled=False, **options).min() > 1e-3
    assert metrics.infidelity(model, images, 1 - right, 0, **options).min() > 1e-3
    # a map of zeros: what is left is the mean square of the change of the score
    assert metrics.infidelity(model, images, right * 0, 0, **options).min() > 1e-3


def test_infidelity_removes_boxes() -> None:
    seen: list[Tensor] = []

    class Sees(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x.flatten(1).sum(1, keepdim=True)

    metrics.infidelity(Sees(), torch.ones(2, 3, 9, 12), torch.ones(2, 9, 12), 0, samples=40)
    copies = torch.cat([x for x in seen if len(x) > 2])
    sizes = set()
    for gone in copies == 0:
        assert gone.equal(gone[:1].expand_as(gone)) and gone.any()
        rows, columns = gone[0].any(1), gone[0].any(0)
        assert gone[0].sum() == rows.sum() * columns.sum()
        assert rows.sum() == columns.sum()
        sizes.add(int(rows.sum()))
    assert sizes == {1, 2, 3, 4}
    removed = (copies == 0).any(0)[0]  # in one copy or another
    assert removed[[0, -1]].any(1).all() and removed[:, [0, -1]].any(0).all()


def test_max_sensitivity_of_captum() -> None:
    peer = pytest.importorskip("captum.metrics", reason="captum is missing")
    model, images, maps = sharp()
    method = fastcam.GradCAM(model)
    generator = torch.Generator().manual_seed(5)
    changes = torch.stack(
        [torch.empty_like(images).uniform_(-0.3, 0.3, generator=generator) for _ in range(4)], 1
    )
    found, relative = (
        metrics.max_sensitivity(method, images, CLASSES, radius=0.3, samples=4, seed=5, **options)
        for options in ({}, {"relative": True})
    )

    def explain(inputs: Any) -> tuple[Tensor]:
        (x,) = inputs if isinstance(inputs, tuple) else (inputs,)
        return (method(x, CLASSES.repeat_interleave(len(x) // 3)),)

    expected = peer.sensitivity_max(
        explain,
        images,
        perturb_func=lambda x: x + changes.flatten(0, 1),
        n_perturb_samples=4,
        norm_ord=2,
    )
    torch.testing.assert_close(relative, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, expected * maps.flatten(1).norm(dim=1), rtol=1e-4, atol=1e-5)
    assert metrics.max_sensitivity(method, images, radius=0.0).max() < 1e-5


def test_what_does_not_fit_is_named() -> None:
    model, images, maps = sharp()
    for options, message in (
        ({"baseline": "grey"}, 'baseline: got "grey", expected "mean", "blur", "impute"'),
        ({"baseline": torch.zeros(2, 2)}, r"baseline: got shape \(2, 2\), expected one that"),
        ({"steps": 0}, "steps: got 0, expected at least 1"),
        ({"batch_size": 0}, "batch_size: got 0, expected at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            metrics.deletion(model, images, maps, **options)
    with pytest.raises(ValueError, match=r"maps: got shape \(3, 2, 2\), expected \(3, 16, 20\)"):
        metrics.insertion(model, images, maps[:, :2, :2])
    with pytest.raises(ValueError, match=r"perturb: the function returned \(6, 3, 16\)"):
        metrics.infidelity(model, images, maps, samples=2, perturb=lambda x, _: x[..., 0])
    with pytest.raises(ValueError, match="targets: got 2 classes per image, expected 1"):
        metrics.max_sensitivity(fastcam.GradCAM(model), images, CLASSES[:, None].repeat(1, 2))
