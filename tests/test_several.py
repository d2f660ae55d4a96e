"""Several methods from one forward give the maps of each method by itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import fastcam
from fastcam import demo
from fastcam.methods.maps import MapMethod

SHARED = [name for name, method in fastcam.METHODS.items() if issubclass(method, MapMethod)]
IMAGES = torch.rand(2, 3, 40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return demo.digits().double()


class Convolutional(nn.Module):
    """A head that is not global average pooling, so that every class needs a backward."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.GELU())
        self.head = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Softplus(), nn.Flatten(), nn.LazyLinear(5))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images))


@pytest.fixture(scope="module")
def convolutional() -> nn.Module:
    torch.manual_seed(0)
    model = Convolutional().double().eval()
    model(IMAGES)
    return model


def made(name: str, model: nn.Module, layer: str | None = None) -> MapMethod:
    quick = {"sess": {"scales": 2}, "sscam": {"samples": 2}, "iscam": {"samples": 2}}
    return fastcam.METHODS[name](model, layer, **quick.get(name, {}))


@pytest.mark.parametrize("targets", [None, [3, 1], fastcam.TopClasses(3)], ids=str)
@pytest.mark.parametrize("options", [{}, {"size": "layer", "normalize": False}], ids=str)
def test_maps_are_those_of_each_method(network, targets, options):
    several = fastcam.Several([made(name, network) for name in SHARED])
    found = several(IMAGES, targets, **options)
    assert list(found) == SHARED
    for name in SHARED:
        alone = made(name, network)
        torch.testing.assert_close(found[name], alone(IMAGES, targets, **options), msg=name)
        torch.testing.assert_close(several.scores, alone.scores)
        assert several.class_ids.equal(alone.class_ids)


def test_maps_are_those_of_each_method_behind_any_head(convolutional):
    names = [name for name in SHARED if name != "cam"]
    several = fastcam.Several([made(name, convolutional) for name in names])
    for targets in (fastcam.TopClasses(3), None):
        found = several(IMAGES, targets)
        for name in names:
            torch.testing.assert_close(
                found[name], made(name, convolutional)(IMAGES, targets), msg=name
            )


@pytest.fixture
def backwards(monkeypatch) -> Iterator[list[int]]:
    """Has an entry for each call of autograd."""
    calls: list[int] = []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: calls.append(1) or grad(*a, **k))
    return calls


def test_one_forward_and_one_backward_per_class(convolutional, backwards):
    names = ["gradcam", "gradcam++", "xgradcam", "hirescam", "layercam", "eigengradcam", "fem"]
    several = fastcam.Several([made(name, convolutional) for name in names])
    several(IMAGES)
    forwards: list[int] = []
    backwards.clear()
    with convolutional.register_forward_hook(lambda *_: forwards.append(1)):
        several(IMAGES, fastcam.TopClasses(4))
    assert (len(forwards), len(backwards)) == (1, 4)


def test_gradients_beyond_the_limit_are_computed_again(convolutional, backwards, monkeypatch):
    names = ["gradcam", "layercam"]
    several = fastcam.Several([made(name, convolutional) for name in names])
    expected = several(IMAGES, fastcam.TopClasses(3))
    monkeypatch.setattr("fastcam.engine.capture._ROOM", 0)
    backwards.clear()
    found = several(IMAGES, fastcam.TopClasses(3))
    assert len(backwards) == 6
    assert all(found[name].equal(expected[name]) for name in names)


def test_second_derivatives_leave_the_graph_to_others(convolutional):
    """Also those of attention, whose fused kernels have none."""
    names = ["shapleycam", "finercam", "gradcam"]
    cases = ((convolutional, "features"), (demo.digits_vit().double(), "blocks.2"))
    for model, layer in cases:
        made_at = [fastcam.METHODS[name](model, layer) for name in names]
        found = fastcam.Several(made_at)(IMAGES, fastcam.TopClasses(2))
        for name in names:
            expected = fastcam.METHODS[name](model, layer)(IMAGES, fastcam.TopClasses(2))
            torch.testing.assert_close(found[name], expected, msg=name)


class Counting(Convolutional):
    """Its answer depends on how often it has run, and it keeps what it returned elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        features = self.features(images)
        KEPT.append(features)
        return self.head(features * (1 + self.runs / 10))


KEPT: list[torch.Tensor] = []


def counting() -> nn.Module:
    torch.manual_seed(0)
    model = Counting().double().eval()
    model(IMAGES)
    return model


def test_every_further_run_begins_with_the_state_before_the_first():
    model = counting()
    several = fastcam.Several([made(name, model, "features") for name in ("gradcam", "sess")])
    alone = made("sess", counting(), "features")
    torch.testing.assert_close(several(IMAGES)["sess"], alone(IMAGES))


def test_no_tensor_of_the_model_keeps_a_graph():
    model = counting()
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    names = ("gradcam", "sess", "smoothgradcam++")
    several = fastcam.Several([made(name, model, "features") for name in names])
    several(IMAGES)
    KEPT.clear()
    several(IMAGES)
    assert KEPT and not any(each.requires_grad for each in KEPT)
    assert all(each.equal(before[name]) for name, each in model.named_parameters())


def test_verified(network):
    several = fastcam.Several([made(name, network) for name in ("gradcam", "eigencam")])
    assert several.verify(IMAGES).map_error < 1e-9


def test_the_fast_mode_prepares_one_copy(network):
    several = fastcam.Several([made(name, network) for name in ("gradcam", "scorecam")])
    expected = several(IMAGES)
    several.compile()
    found = several(IMAGES)
    for name, maps in expected.items():
        torch.testing.assert_close(found[name], maps)


def test_what_does_not_fit_is_an_error(network, convolutional):
    first = fastcam.GradCAM(network, "stages.1")
    with pytest.raises(ValueError, match="methods: got none"):
        fastcam.Several([])
    with pytest.raises(ValueError, match="methods: got gradcam, gradcam, expected different"):
        fastcam.Several([first, fastcam.GradCAM(network)])
    with pytest.raises(ValueError, match="methods: got another model for 'layercam'"):
        fastcam.Several([first, fastcam.LayerCAM(convolutional)])
    with pytest.raises(ValueError, match="methods: 'layercam' has other target_layers"):
        fastcam.Several([first, fastcam.LayerCAM(network, "stages.2")])
    with pytest.raises(ValueError, match="methods: got 'fullgrad', expected methods whose maps"):
        fastcam.Several([first, fastcam.FullGrad(network)])
    with pytest.raises(ValueError, match=r"Boxes needs a method that returns maps of one run"):
        fastcam.Several([first])(IMAGES, fastcam.targets.Boxes([[0, 0, 9, 9]], [1]))


def test_the_layer_of_the_first_method_is_that_of_all(network):
    several = fastcam.Several([fastcam.GradCAM(network, "stages.1"), fastcam.LayerCAM(network)])
    found = several(IMAGES, size="layer")
    assert several.layers == ("stages.1",)
    expected = fastcam.LayerCAM(network, "stages.1")(IMAGES, size="layer")
    torch.testing.assert_close(found["layercam"], expected)
