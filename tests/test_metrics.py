"""Metrics by their formulas in plain loops, and beside other libraries."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from networks import network, small, small_images
from torch import Tensor, nn

import fastcam
from fastcam import demo, metrics
from fastcam.metrics.imputation import impute

CLASSES = torch.tensor([1, 4, 2])


def filled(image: Tensor, known: Tensor) -> Tensor:
    """Every missing pixel the weighted mean of its neighbours, by one dense system."""
    height, width = known.shape
    matrix, right = torch.eye(height * width).double(), image.flatten(1).T.clone()
    for y, x in np.ndindex(height, width):
        if known[y, x]:
            continue
        row = y * width + x
        matrix[row], right[row] = 0, 0
        for dy, dx in ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)):
            if 0 <= y + dy < height and 0 <= x + dx < width:
                weight = 1 / 6 if dy == 0 or dx == 0 else 1 / 12
                matrix[row, row] += weight
                matrix[row, row + dy * width + dx] -= weight
    return torch.linalg.solve(matrix, right).T.view_as(image)


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (2, 2), (5, 7), (16, 20), (21, 13)])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_imputation_solves_the_system(size: tuple[int, int], share: float) -> None:
    torch.manual_seed(0)
    images = torch.randn(4, 3, *size, dtype=torch.float64)
    known = torch.rand(4, *size) < share
    known[:, -1, -1] = True
    found = impute(images, known)
    for image, kept, result in zip(images, known, found, strict=True):
        torch.testing.assert_close(result, filled(image, kept), rtol=0, atol=1e-9)


def test_imputation_of_blocks_leaves_a_small_residual() -> None:
    torch.manual_seed(0)
    images, known = torch.randn(2, 3, 70, 53, dtype=torch.float64), torch.ones(2, 70, 53).bool()
    known[0, 5:60, 3:50] = False
    known[1] = False
    known[1, 30, 20] = True
    found = impute(images, known)
    kernel = torch.tensor([[1, 2, 1], [2, 0, 2], [1, 2, 1]], dtype=torch.float64)[None, None] / 12
    sums = torch.conv2d(found.flatten(0, 1)[:, None], kernel, padding=1).view_as(found)
    total = torch.conv2d(torch.ones(1, 1, 70, 53).double(), kernel, padding=1)[0]
    residual = (sums - total * found) * ~known[:, None]
    assert residual.abs().max() < 1e-9
    assert (found - images)[known[:, None].expand_as(images)].abs().max() == 0
    spread = found[1].flatten(1)
    torch.testing.assert_close(spread, images[1, :, 30, 20, None].expand_as(spread))


def test_imputation_of_nothing_known_and_of_everything() -> None:
    images = torch.randn(2, 3, 9, 9)
    known = torch.tensor([True, False]).view(2, 1, 1).expand(2, 9, 9)
    found = impute(images, known)
    assert found[0].equal(images[0]) and not found[1].any() and found.dtype == torch.float32
    assert impute(images[:0], known[:0]).shape == (0, 3, 9, 9)
    noise = torch.randn_like(images)
    noisy = impute(images, known, noise)
    assert noisy[0].equal(images[0]) and noisy[1].equal(noise[1])
    with pytest.raises(ValueError, match="expected \\(N, C, H, W\\) and \\(N, H, W\\)"):
        impute(images, known[:, :5])


def test_imputation_of_the_peer() -> None:
    road = pytest.importorskip("pytorch_grad_cam.metrics.road", reason="grad-cam is missing")
    torch.manual_seed(0)
    images, known = torch.randn(2, 3, 33, 26), torch.rand(2, 33, 26) < 0.3
    found = impute(images, known)
    for image, kept, result in zip(images, known, found, strict=True):
        expected = road.NoisyLinearImputer(noise=0.0)(image, kept.float())
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


def given() -> tuple[nn.Module, Tensor, Tensor]:
    model, images = small(), small_images()
    with torch.no_grad():
        model.head.weight *= 20
    return model, images, fastcam.GradCAM(model)(images, CLASSES)


def probability(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images).softmax(1).gather(1, CLASSES[:, None])[:, 0]


def test_confidence() -> None:
    model, images, maps = given()
    found = metrics.confidence(model, images, maps, CLASSES)
    before = probability(model, images)
    after = torch.cat(
        [probability(model, images * maps[n, None, None])[n : n + 1] for n in range(3)]
    )
    torch.testing.assert_close(found.before, before)
    torch.testing.assert_close(found.after, after)
    torch.testing.assert_close(found.drop, (before - after).clamp(min=0))
    torch.testing.assert_close(found.relative_drop, (before - after).clamp(min=0) / before)
    assert found.increase.equal(after > before) and found.change.equal(found.after - found.before)
    logits = metrics.confidence(model, images, maps, CLASSES, probabilities=False)
    torch.testing.assert_close(
        logits.before, model(images).gather(1, CLASSES[:, None])[:, 0].detach()
    )
    functions = metrics.confidence(model, images, maps, lambda row: row[1] - row[0])
    torch.testing.assert_close(
        functions.before, (model(images)[:, 1] - model(images)[:, 0]).detach()
    )


def test_confidence_of_the_peers() -> None:
    peer = pytest.importorskip(
        "pytorch_grad_cam.metrics.cam_mult_image", reason="grad-cam is missing"
    )
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    model, images, maps = given()
    found = metrics.confidence(model, images, maps, CLASSES)
    targets = [ClassifierOutputSoftmaxTarget(int(c)) for c in CLASSES]
    for metric, value in (
        (peer.CamMultImageConfidenceChange(), found.change),
        (peer.DropInConfidence(), found.drop),
        (peer.IncreaseInConfidence(), found.increase.float()),
    ):
        expected = torch.from_numpy(metric(images, maps.numpy(), targets, model))
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)


def test_classification_metric_of_torchcam() -> None:
    pytest.importorskip("torchcam", reason="torchcam is missing")
    from torchcam.methods import GradCAM
    from torchcam.metrics import ClassificationMetric

    model, images = copy.deepcopy(network("resnet18"))
    with torch.no_grad():
        classes = model(images).topk(2).indices[:, 1]
        assert (model(images).gather(1, classes[:, None]) > 0).all()
    with GradCAM(model, "layer4") as cam:
        peer = ClassificationMetric(cam)  # with softmax it would explain that too
        peer.update(images, classes.tolist())
        expected = peer.summary()

    class Peer(fastcam.GradCAM):
        """It normalizes before it enlarges, and not again."""

        def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
            maps = super().__call__(images, targets, size="layer")
            return fastcam.ops.upsample(maps, (64, 64), normalize=False)

    metric = metrics.ClassificationMetric(Peer(model, "layer4"), probabilities=False)
    with pytest.raises(ValueError, match="update"):
        metric.summary()
    metric.update(images[:2], classes[:2])
    metric.update(images[2:], classes[2:])
    found = metric.summary()
    assert found["average_drop"] == pytest.approx(expected["avg_drop"], abs=1e-4)
    assert found["increase"] == expected["conf_increase"]


def test_road() -> None:
    model, images, maps = given()
    percentiles = (15, 40, 75)
    found = metrics.road(model, images, maps, CLASSES, percentiles=percentiles, noise=0)
    for relevance, changes in (
        (maps, found.most_relevant_first),
        (1 - maps, found.least_relevant_first),
    ):
        for k, percentile in enumerate(percentiles):
            filled_in = [
                filled(image.double(), torch.from_numpy(m < np.percentile(m, percentile))).float()
                for image, m in zip(images, relevance.numpy(), strict=True)
            ]
            expected = probability(model, torch.stack(filled_in)) - probability(model, images)
            torch.testing.assert_close(changes[:, k], expected, rtol=1e-4, atol=1e-5)
    expected = (found.least_relevant_first - found.most_relevant_first).mean(1) / 2
    assert found.combined.equal(expected)
    small_batches = metrics.road(
        model, images, maps, CLASSES, percentiles=percentiles, noise=0, batch_size=2
    )
    torch.testing.assert_close(small_batches.combined, found.combined, rtol=1e-4, atol=1e-6)


def test_road_of_the_peer() -> None:
    peer = pytest.importorskip("pytorch_grad_cam.metrics.road", reason="grad-cam is missing")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    model, images, maps = given()
    targets = [ClassifierOutputSoftmaxTarget(int(c)) for c in CLASSES]
    expected = peer.ROADCombined([20, 50, 80])(images, maps.numpy(), targets, model)
    found = metrics.road(model, images, maps, CLASSES, percentiles=[20, 50, 80])
    # each adds noise of its own, of 0.01
    torch.testing.assert_close(found.combined, torch.from_numpy(expected), rtol=0, atol=5e-3)
    assert found.combined.abs().max() > 2e-2


def test_road_is_repeated_by_its_seed() -> None:
    model, images, maps = given()
    first, again, other = (
        metrics.road(model, images, maps, CLASSES, percentiles=[50], noise=0.5, seed=seed).combined
        for seed in (0, 0, 1)
    )
    assert first.equal(again) and not first.equal(other)


def test_coherency_and_complexity() -> None:
    torch.manual_seed(0)
    maps, others = torch.rand(3, 7, 9), torch.rand(3, 7, 9)
    for n, value in enumerate(metrics.coherency(maps, others)):
        r = np.corrcoef(maps[n].flatten().numpy(), others[n].flatten().numpy())[0, 1]
        assert value.item() == pytest.approx((1 + r) / 2, abs=1e-6)
    torch.testing.assert_close(metrics.coherency(maps, 1 - maps), torch.zeros(3))
    assert (metrics.coherency(maps, torch.ones(3, 7, 9)) == 0.5).all()
    torch.testing.assert_close(metrics.complexity(maps), maps.mean((1, 2)))


def test_adcc_and_arcc() -> None:
    model, images, maps = given()
    method = fastcam.GradCAM(model)
    coherency = metrics.coherency(maps, method(images * maps[:, None], CLASSES))
    complexity = maps.mean((1, 2))
    drop = metrics.confidence(model, images, maps, CLASSES).relative_drop
    road = metrics.road(model, images, maps, CLASSES, percentiles=(20, 40, 60, 80)).combined
    for found, faithful in (
        (metrics.adcc(method, images, CLASSES), 1 - drop),
        (metrics.arcc(method, images, CLASSES), (2 * road).clamp(0, 1)),
    ):
        torch.testing.assert_close(found.coherency, coherency)
        torch.testing.assert_close(found.complexity, complexity)
        torch.testing.assert_close(found.faithfulness, faithful)
        expected = 3 / (1 / coherency + 1 / (1 - complexity) + 1 / faithful)
        torch.testing.assert_close(found.score, expected)
    top = metrics.adcc(method, images)
    assert method.class_ids.equal(model(images).argmax(1)) and top.score.isfinite().all()


def test_the_model_is_left_as_found() -> None:
    model, images, maps = given()
    model.train()
    before = copy.deepcopy(model.state_dict())
    with torch.inference_mode():
        metrics.road(model, images, maps, CLASSES, percentiles=[50])
        metrics.confidence(model, images, maps)
        assert torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()
    assert all(module.training for module in model.modules())
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


def test_what_does_not_fit_is_named() -> None:
    model, images, maps = given()
    with pytest.raises(ValueError, match=r"maps: got shape \(3, 2, 2\), expected \(3, 16, 20\)"):
        metrics.confidence(model, images, maps[:, :2, :2])
    with pytest.raises(ValueError, match="targets: got 2 classes per image, expected 1"):
        metrics.confidence(model, images, maps, CLASSES[:, None].repeat(1, 2))
    signal, samples = network("signal")
    with pytest.raises(ValueError, match="expected 2-D images"):
        metrics.road(signal, samples, torch.rand(3, 64))
    assert metrics.confidence(signal, samples, torch.rand(3, 64)).before.shape == (3,)


def test_percentiles_outside_of_their_range() -> None:
    images = torch.rand(1, 3, 16, 16)
    with pytest.raises(ValueError, match=r"^percentiles: got 150, expected 0 to 100"):
        metrics.road(demo.digits(), images, torch.rand(1, 16, 16), percentiles=(50, 150))
