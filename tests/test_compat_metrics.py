"""The names of pytorch-grad-cam's metrics beside the originals, with the same random numbers."""

from __future__ import annotations

import contextlib
import importlib
import inspect
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcam.compat.pytorch_grad_cam.metrics import (
    arcc,
    cam_mult_image,
    perturbation_confidence,
    road,
)
from fastcam.dropin.pytorch_grad_cam import metrics

pytest.importorskip("pytorch_grad_cam", reason="grad-cam is missing")
import pytorch_grad_cam.metrics.cam_mult_image as peer_mult
import pytorch_grad_cam.metrics.perturbation_confidence as peer_perturbation
import pytorch_grad_cam.metrics.road as peer_road
from pytorch_grad_cam.utils.model_targets import (
    ClassifierOutputSoftmaxTarget,
    ClassifierOutputTarget,
)

PAIRS = (
    (perturbation_confidence, peer_perturbation),
    (cam_mult_image, peer_mult),
    (road, peer_road),
)
peer_arcc: Any = None
with contextlib.suppress(ModuleNotFoundError):  # 1.5.5 has none
    peer_arcc = importlib.import_module("pytorch_grad_cam.metrics.arcc")
    PAIRS = (*PAIRS, (arcc, peer_arcc))


class Network(nn.Module):
    """Its scores change clearly with what is removed; it counts its runs and their rows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 5, 2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(2)
        )
        self.head = nn.Linear(8, 4)
        self.rows: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.rows.append(len(images))
        return self.head(self.layers(images).mean(2) * 30)


@pytest.fixture
def model() -> Network:
    return Network().eval()


def given(count: int = 3) -> tuple[Tensor, np.ndarray, list[Any]]:
    torch.manual_seed(1)
    images = F.interpolate(torch.randn(count, 3, 7, 8), (28, 32), mode="bilinear")
    maps = F.interpolate(torch.rand(count, 1, 4, 4), (28, 32), mode="bicubic")[:, 0].clamp(0, 1)
    targets = [ClassifierOutputSoftmaxTarget(1), ClassifierOutputTarget(3)]
    targets = (targets * count)[:count]
    return images + 0.1 * torch.randn_like(images), maps.numpy(), targets


def same(got: Any, want: Any, tolerance: float = 1e-5) -> None:
    assert type(got) is type(want) and got.dtype == want.dtype and got.shape == want.shape
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=0, atol=tolerance)


def seeded(function: Any, *arguments: Any, **options: Any) -> tuple[Any, Tensor]:
    """The result, and the next number of the generator."""
    torch.manual_seed(5)
    return function(*arguments, **options), torch.rand(1)


def test_every_name_and_signature() -> None:
    for mine, theirs in PAIRS:
        for name, original in vars(theirs).items():
            if getattr(original, "__module__", None) != theirs.__name__:
                continue
            pairs = [(getattr(mine, name), original)]
            if inspect.isclass(original):
                pairs += [
                    (getattr(pairs[0][0], method), function)
                    for method, function in vars(original).items()
                    if inspect.isfunction(function)
                ]
            for function, expected in pairs:
                here, there = (inspect.signature(f).parameters for f in (function, expected))
                assert list(here) == list(there), name
                for parameter in there:
                    default = here[parameter].default
                    default = list(default) if isinstance(default, tuple) else default
                    assert default == there[parameter].default, f"{name}({parameter})"


@pytest.mark.parametrize(
    "name", ["CamMultImageConfidenceChange", "DropInConfidence", "IncreaseInConfidence"]
)
def test_masked_images(name: str, model: Network) -> None:
    arguments = (*given(), model)
    mine, theirs = getattr(cam_mult_image, name)(), getattr(peer_mult, name)()
    want = theirs(*arguments)
    assert want.any()
    same(mine(*arguments), want)
    same(type(mine).__call__(theirs, *arguments), want)
    same(mine(*arguments, return_diff=False), theirs(*arguments, return_diff=False))
    if name == "CamMultImageConfidenceChange":
        for got, expected in zip(
            mine(*arguments, return_visualization=True),
            theirs(*arguments, return_visualization=True),
            strict=True,
        ):
            same(got, expected)


def test_fewer_targets_than_images(model: Network) -> None:
    images, maps, targets = given()
    mine, theirs = (m.CamMultImageConfidenceChange() for m in (cam_mult_image, peer_mult))
    same(mine(images, maps, targets[:2], model), theirs(images, maps, targets[:2], model))


def test_a_perturbation_of_ones_own(model: Network) -> None:
    def blurred(image: Tensor, cam: Tensor) -> Tensor:
        assert image.device.type == cam.device.type == "cpu" and image.dim() == 3
        return image * (cam > 0.5) + image.mean()

    mine, theirs = (
        m.PerturbationConfidenceMetric(blurred)
        for m in (perturbation_confidence, peer_perturbation)
    )
    same(mine(*given(), model), theirs(*given(), model))


@pytest.mark.parametrize("share", [0.1, 0.6, 0.95])
@pytest.mark.parametrize("shape", [(3, 21, 30), (1, 8, 9), (2, 1, 12)])
def test_imputer(share: float, shape: tuple[int, ...]) -> None:
    torch.manual_seed(2)
    image, mask = torch.randn(shape), (torch.rand(shape[1:]) < share).float()
    mask[0, 0], mask[-1, -1] = 0, 1
    kept = image.clone()
    for noise in (0.0, 0.3):
        mine, theirs = (m.NoisyLinearImputer(noise) for m in (road, peer_road))
        (got, after), (want, expected) = (seeded(i, image, mask) for i in (mine, theirs))
        same(got, want)
        assert got[:, mask == 1].equal(want[:, mask == 1]) and after.equal(expected)
        assert type(mine).__call__(theirs, image, mask).shape == want.shape
        assert image.equal(kept)


def test_imputer_of_everything_and_nothing() -> None:
    image = torch.randn(2, 6, 7)
    imputer = road.NoisyLinearImputer(0.0)
    assert imputer(image, torch.ones(6, 7)).equal(image)
    assert not imputer(image, torch.zeros(6, 7)).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_imputer_of_other_dtypes(dtype: torch.dtype) -> None:
    """Where the original raises an error of dtypes."""
    torch.manual_seed(2)
    image, mask = torch.randn(2, 9, 8).to(dtype), (torch.rand(9, 8) < 0.5).float()
    found = road.NoisyLinearImputer(0.0)(image, mask)
    want = road.NoisyLinearImputer(0.0)(image.float(), mask)
    assert found.dtype == dtype
    torch.testing.assert_close(found[:, mask == 0].float(), want.to(dtype)[:, mask == 0].float())


def test_sparse_system() -> None:
    torch.manual_seed(3)
    image, mask = torch.randn(3, 9, 7).numpy(), (torch.rand(9, 7) < 0.4).float().numpy()
    mine, theirs = (
        m.NoisyLinearImputer.setup_sparse_system(mask, image, m.neighbors_weights)
        for m in (road, peer_road)
    )
    assert type(mine[0]) is type(theirs[0])
    np.testing.assert_allclose(mine[0].toarray(), theirs[0].toarray(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(mine[1], theirs[1], rtol=0, atol=1e-12)
    assert dict(road.neighbors_weights) == dict(peer_road.neighbors_weights)
    for offset in dict(road.neighbors_weights):
        arguments = (np.arange(63), offset, (9, 7))
        for got, want in zip(
            road.NoisyLinearImputer.add_offset_to_indices(*arguments),
            peer_road.NoisyLinearImputer.add_offset_to_indices(*arguments),
            strict=True,
        ):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("percentile", [0, 35, 80, "auto"])
@pytest.mark.parametrize("name", ["RemoveMostRelevantFirst", "RemoveLeastRelevantFirst"])
def test_removal(name: str, percentile: float | str) -> None:
    images, maps, _ = given()
    seen: list[list[Tensor]] = [[], []]
    for module, masks in zip((perturbation_confidence, peer_perturbation), seen, strict=True):

        def imputer(image: Tensor, mask: Tensor, masks: list[Tensor] = masks) -> Tensor:
            masks.append(mask)
            return image

        removal = getattr(module, name)(percentile, imputer)
        for image, cam in zip(images, maps, strict=True):
            removal(image, torch.from_numpy(cam))
            if module is peer_perturbation:  # lent to the original
                mine = getattr(perturbation_confidence, name)
                mine.__call__(removal, image, torch.from_numpy(cam))
                assert masks.pop().equal(masks[-1])
    for got, want in zip(*seen, strict=True):
        assert got.dtype == want.dtype and got.equal(want)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ROADMostRelevantFirst", (70,)),
        ("ROADLeastRelevantFirst", ()),
        ("ROADMostRelevantFirst", ("auto",)),
        ("ROADMostRelevantFirstAverage", ([20, 50],)),
        ("ROADLeastRelevantFirstAverage", ([30, 60, 90],)),
        ("ROADCombined", ([10, 40, 80],)),
    ],
)
def test_road(name: str, arguments: tuple[Any, ...], count: int, model: Network) -> None:
    mine, theirs = (getattr(m, name)(*arguments) for m in (road, peer_road))
    operands = (*given(count), model)
    (got, after), (want, expected) = (seeded(m, *operands) for m in (mine, theirs))
    assert np.abs(want).max() > 1e-3
    same(got, want)
    assert after.equal(expected)
    got, after = seeded(type(mine).__call__, theirs, *operands)  # lent to the original
    same(got, want)
    assert after.equal(expected)


def test_percentiles_run_together(model: Network) -> None:
    images, maps, targets = given(3)
    road.ROADCombined()(images, maps, targets, model)
    assert model.rows == [3, 27, 3, 27]
    model.rows.clear()
    road.ROADMostRelevantFirstAverage([50, 90])(images[:1], maps[:1], targets, model)
    assert model.rows == [1, 2]


def test_more_rows_than_run_together(model: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_ROWS", 7)
    metric = road.ROADMostRelevantFirstAverage([20, 40, 60, 80, 90])
    got, _ = seeded(metric, *given(3), model)
    assert model.rows == [3, 6, 6, 3]
    want, _ = seeded(peer_road.ROADMostRelevantFirstAverage(metric.percentiles), *given(3), model)
    same(got, want)


def test_an_average_of_metrics_of_ones_own(model: Network) -> None:
    class Doubled(road.ROADMostRelevantFirst):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return 2 * super().__call__(*args, **kwargs)

    got, _ = seeded(
        perturbation_confidence.AveragerAcrossThresholds(Doubled, [50]), *given(), model
    )
    want, _ = seeded(peer_road.ROADMostRelevantFirstAverage([50]), *given(), model)
    same(got, 2 * want)


def test_a_model_of_other_outputs(model: Network) -> None:
    def listed(images: Tensor) -> list[Tensor]:
        return list(model(images))

    metric, original = (m.ROADMostRelevantFirstAverage([30, 60]) for m in (road, peer_road))
    (got, _), (want, _) = (seeded(m, *given(), listed) for m in (metric, original))
    same(got, want)


def test_arcc(model: Network) -> None:
    images, maps, targets = given()

    def method(input_tensor: Tensor, targets: list[Any]) -> np.ndarray:
        scores = input_tensor.abs().sum(1).numpy()
        return scores / scores.max()

    masked = method(images * torch.from_numpy(maps)[:, None], targets)
    correlation = [
        np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(masked, maps, strict=True)
    ]
    found = arcc.batch_pearson_coherency(masked, maps)
    np.testing.assert_allclose(found, correlation, rtol=0, atol=1e-5)
    complexity, coherency = maps.mean((1, 2)), (np.array(correlation) + 1) / 2
    np.testing.assert_allclose(arcc.Complexity()(maps), complexity, rtol=1e-6)
    found = arcc.Coherency()(images, maps, targets, model, method)
    np.testing.assert_allclose(found, coherency, rtol=0, atol=1e-5)
    removal, _ = seeded(peer_road.ROADCombined([20, 40, 60, 80]), images, maps, targets, model)
    faithful = (2 * removal).clip(0, 1) + 1e-8
    expected = 3 / (1 / coherency + 1 / (1 - complexity) + 1 / faithful)
    found, _ = seeded(arcc.ARCC(method), images, maps, targets, model)
    assert found.max() > 0.01
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    if peer_arcc is not None:
        same(arcc.Complexity()(maps), peer_arcc.Complexity()(maps))
        arguments = (images, maps, targets, model, method)
        same(arcc.Coherency()(*arguments), peer_arcc.Coherency()(*arguments))
        want, _ = seeded(peer_arcc.ARCC(method), images, maps, targets, model)
        same(found, want)
