"""Similarities, sparseness and the sanity checks: formulas, scipy, scikit-image and Quantus."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import small, small_images
from torch import Tensor, nn

import fastcam
from fastcam import metrics
from fastcam.metrics.sanity import randomised_layers

CLASSES = torch.tensor([1, 4, 2])


@given(st.integers(0, 2**31), st.integers(1, 6))
@settings(max_examples=25, deadline=None)
def test_rank_correlation_of_scipy(seed: int, levels: int) -> None:
    """Few levels: many ties."""
    rng = np.random.default_rng(seed)
    maps, others = rng.integers(0, levels + 1, (2, 3, 5, 4)) / 7
    found = metrics.rank_correlation(torch.from_numpy(maps), torch.from_numpy(others))
    for value, first, second in zip(found, maps, others, strict=True):
        flat = [(each == each[0, 0]).all() for each in (first, second)]
        if any(flat):
            assert value.item() == all(flat)
        else:
            expected = scipy.stats.spearmanr(first.ravel(), second.ravel()).statistic
            assert value.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("size", [(11, 11), (24, 31), (14, 12, 13)])
def test_ssim_of_scikit_image(size: tuple[int, ...]) -> None:
    skimage = pytest.importorskip("skimage.metrics", reason="scikit-image is missing")
    torch.manual_seed(0)
    maps = torch.rand(3, *size)
    others = (maps + 0.3 * torch.randn_like(maps)).clamp(0, 1)
    for value, first, second in zip(metrics.ssim(maps, others), maps, others, strict=True):
        expected = skimage.structural_similarity(
            first.double().numpy(),
            second.double().numpy(),
            data_range=1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            win_size=11,
        )
        assert value.item() == pytest.approx(expected, abs=1e-6)


def test_ssim_by_hand() -> None:
    # one pixel: the window is that pixel, variances are 0
    found = metrics.ssim(torch.tensor([[[0.2]]]), torch.tensor([[[0.6]]]))
    assert found.item() == pytest.approx((2 * 0.12 + 1e-4) / (0.04 + 0.36 + 1e-4))
    maps = torch.rand(2, 6, 9)
    torch.testing.assert_close(metrics.ssim(maps, maps), torch.ones(2))
    assert metrics.ssim(torch.ones(1, 3, 3), torch.ones(1, 3, 3)).item() == pytest.approx(1)
    with pytest.raises(ValueError, match="maps, others: got shapes"):
        metrics.ssim(maps, maps[:, :5])


def test_sparseness() -> None:
    quantus = pytest.importorskip("quantus", reason="quantus is missing")
    torch.manual_seed(0)
    maps = torch.rand(4, 6, 7) ** 3
    metric = quantus.Sparseness(disable_warnings=True, abs=True, normalise=False)
    expected = metric.evaluate_batch(x_batch=maps[:, None].numpy(), a_batch=maps[:, None].numpy())
    np.testing.assert_allclose(metrics.sparseness(maps).numpy(), expected, rtol=1e-5)
    one = torch.zeros(1, 2, 2)
    one[0, 1, 0] = 5
    assert metrics.sparseness(one).item() == 0.75  # (2 n - n - 1) / n
    for width in range(1, 40):
        flat = torch.full((1, 3, width), 0.1, dtype=torch.float64)
        assert 0 <= metrics.sparseness(flat).item() < 1e-12
    assert metrics.sparseness(torch.zeros(1, 3, 5)).item() == 0


def test_coherency_of_constant_maps() -> None:
    """A mean of many equal values is not always that value."""
    for height in range(1, 40):
        maps = torch.full((1, height, 31), 0.1, dtype=torch.float64)
        others = torch.rand(1, height, 31, dtype=torch.float64)
        assert metrics.coherency(maps, others).item() == 0.5
        assert metrics.coherency(others, maps).item() == 0.5
    assert metrics.rank_correlation(maps, others).item() == 0
    assert metrics.rank_correlation(maps, 0 * maps).item() == 1


def reset(model: nn.Module, names: list[str], kept: bool) -> list[nn.Module]:
    """Copies of the network, one more layer initialized anew in each, or one alone."""
    made, random = [], copy.deepcopy(model)
    for name in names:
        copied = copy.deepcopy(model) if kept else random
        copied.get_submodule(name).reset_parameters()
        random = copied
        made.append(copy.deepcopy(copied))
    return made


@pytest.mark.parametrize("order", ["cascading", "independent"])
@pytest.mark.parametrize("method", [fastcam.GradCAM, fastcam.FinerCAM, fastcam.ScoreCAM])
def test_parameter_randomisation(method: type, order: Any) -> None:
    model, images = small(), small_images()
    before = copy.deepcopy(model.state_dict())
    explain = method(model, "features")
    state = torch.random.get_rng_state()
    found = metrics.parameter_randomisation(explain, images, CLASSES, order=order, seed=3)
    assert state.equal(torch.random.get_rng_state())
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert found.layers == ("head", "features", "norm", "conv")
    maps = explain(images, CLASSES)
    torch.manual_seed(3)
    for column, randomised in enumerate(reset(model, list(found.layers), order == "independent")):
        others = method(randomised, "features")(images, CLASSES)
        for measure in ("ssim", "rank_correlation"):
            expected = getattr(metrics, measure)(maps, others)
            torch.testing.assert_close(
                getattr(found, measure)[:, column], expected, rtol=1e-4, atol=1e-5
            )
    assert found.ssim[:, :2].min() < 0.99


def test_parameter_randomisation_of_quantus(monkeypatch: pytest.MonkeyPatch) -> None:
    quantus = pytest.importorskip("quantus", reason="quantus is missing")
    model, images = small(), small_images()
    method = fastcam.GradCAM(model, "features")
    found = metrics.parameter_randomisation(method, images, CLASSES, seed=3)

    def explain(model: nn.Module, inputs: Any, targets: Any, **_: Any) -> Any:
        maps = fastcam.GradCAM(model, "features")(torch.as_tensor(inputs), torch.as_tensor(targets))
        return maps[:, None].numpy()

    peer = quantus.MPRT(layer_order="top_down", disable_warnings=True, normalise=False, abs=False)
    torch.manual_seed(3)
    monkeypatch.setattr(torch, "manual_seed", lambda seed: None)  # it begins anew at each layer
    expected = peer(
        model=model,
        x_batch=images.numpy(),
        y_batch=CLASSES.numpy(),
        a_batch=method(images, CLASSES)[:, None].numpy(),
        explain_func=explain,
        device="cpu",
        channel_first=True,
    )
    for name, column in zip(found.layers, found.rank_correlation.T, strict=True):
        np.testing.assert_allclose(column.numpy(), expected[name], rtol=1e-4, atol=1e-5)


class Kept(nn.Module):
    """Parameters that no reset_parameters() reaches: its own, and those of weight_norm."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.utils.weight_norm(nn.Conv2d(3, 6, 3, padding=1))
        self.scale = nn.Parameter(torch.rand(6, 1, 1))
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.scale * self.body(x).relu()).mean((2, 3)))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
def test_no_parameter_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    model = Kept().eval()
    seen: list[dict[str, Tensor]] = []

    class Looks(fastcam.GradCAM):
        def __call__(self, *args: Any, **options: Any) -> Any:
            named = self.model.named_parameters()
            seen.append({name: value.detach().clone() for name, value in named})
            return super().__call__(*args, **options)

    found = metrics.parameter_randomisation(Looks(model, "body"), small_images(), 1)
    assert found.layers == ("head", "body", "")
    original, last = seen[0], seen[-1]
    for name, value in original.items():
        assert not (last[name] == value).any(), name
    assert found.rank_correlation[:, -1].max() < 0.99


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_the_model_is_left_as_found(mode: Any) -> None:
    """In any mode of autograd, and in training mode."""
    model, images = small().train(), small_images()
    method = fastcam.GradCAM(model, "features")
    before = copy.deepcopy(model.state_dict())
    with mode():
        maps = method(images, CLASSES)
        found = [
            metrics.parameter_randomisation(method, images, CLASSES).ssim,
            metrics.class_sensitivity(method, images).ssim,
            metrics.max_sensitivity(method, images, samples=2),
            metrics.self_coherency(method, images, CLASSES),
            metrics.deletion(model, images, maps, steps=2).area,
            metrics.infidelity(model, images, maps, samples=2),
            metrics.win(model, images, maps, maps),
        ]
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
    assert all(each.isfinite().all() and not each.requires_grad for each in found)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_parameter_randomisation_of_a_transformer() -> None:
    timm = pytest.importorskip("timm", reason="timm is missing")
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=9, depth=2).eval()
    layers = randomised_layers(model)
    assert layers[0] == "head" and layers[-1] == ""  # the model owns the places of the tokens
    method = fastcam.GradCAM(model, "blocks.1.norm1")
    found = metrics.parameter_randomisation(
        method, torch.randn(1, 3, 64, 64), 2, order="independent"
    )
    assert found.ssim.shape == (1, len(layers)) and found.ssim.isfinite().all()


def test_parameter_randomisation_of_a_compiled_method() -> None:
    method = fastcam.GradCAM(small(), "features")
    expected = metrics.parameter_randomisation(method, small_images(), 1)
    method.compile()
    method(small_images(), 1)
    found = metrics.parameter_randomisation(method, small_images(), 1)
    assert found.ssim.equal(expected.ssim) and method.compiled
    with pytest.raises(ValueError, match="order: got 'both', expected \"cascading\""):
        metrics.parameter_randomisation(method, small_images(), order="both")


def test_class_sensitivity() -> None:
    model, images = small(), small_images()
    method = fastcam.GradCAM(model)
    logits = model(images).detach()
    top, low = method(images, logits.argmax(1)), method(images, logits.argmin(1))
    found = metrics.class_sensitivity(method, images)
    torch.testing.assert_close(found.ssim, metrics.ssim(top, low))
    torch.testing.assert_close(found.rank_correlation, metrics.rank_correlation(top, low))
    found = metrics.class_sensitivity(method, images, CLASSES, others=CLASSES)
    assert (found.ssim > 0.999).all() and (found.rank_correlation > 0.999).all()
    blind = metrics.class_sensitivity(fastcam.EigenCAM(model), images)
    assert (blind.ssim > 0.999).all()
    with pytest.raises(ValueError, match="others: got None, but only class ids"):
        metrics.class_sensitivity(method, images, lambda row: row[0])


def test_class_sensitivity_of_quantus() -> None:
    quantus = pytest.importorskip("quantus", reason="quantus is missing")
    model, images = small(), small_images()
    method = fastcam.GradCAM(model)
    others: list[Any] = []

    def explain(model: nn.Module, inputs: Any, targets: Any, **_: Any) -> Any:
        others.append(torch.as_tensor(targets))
        return method(torch.as_tensor(inputs), others[-1])[:, None].numpy()

    peer = quantus.RandomLogit(
        num_classes=5,
        similarity_func=quantus.correlation_spearman,
        disable_warnings=True,
        normalise=False,
        abs=False,
    )
    expected = peer(
        model=model,
        x_batch=images.numpy(),
        y_batch=CLASSES.numpy(),
        a_batch=method(images, CLASSES)[:, None].numpy(),
        explain_func=explain,
        device="cpu",
        channel_first=True,
    )
    found = metrics.class_sensitivity(method, images, CLASSES, others=others[-1])
    np.testing.assert_allclose(found.rank_correlation.numpy(), expected, rtol=1e-4, atol=1e-5)
