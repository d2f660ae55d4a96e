"""captum's own answers, and the same calls with fastcam in its place."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import Signal
from torch import Tensor, nn

import fastcam
from fastcam import dropin

attr = pytest.importorskip("captum.attr", reason="captum is missing")

CLASSES = [1, 4, 2]
Script = Callable[[], Any]


class Net(nn.Module):
    """ReLU modules, one of them used twice, in place or not, and one function."""

    def __init__(self, inplace: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2)
        self.relu = nn.ReLU(inplace)
        self.block = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.features = nn.Conv2d(6, 8, 2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor, scale: Any = 1, shift: Any = 0) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + self.relu(self.block(x))
        return self.head(self.relu(self.features(x)).mean((2, 3))) * scale + shift


class Branches(nn.Module):
    """What goes into its ReLU is read elsewhere too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.head = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.head((self.relu(x) - 0.5 * x.tanh()).mean((2, 3)))


class Pair(nn.Module):
    """Two inputs, a layer with two outputs, and scores (N, 5, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Linear(7, 4)
        self.relu = nn.ReLU()
        self.both = Two()
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a, b = self.both(self.relu(self.first(x)), self.relu(self.second(y)))
        return self.head(torch.cat([a.mean((2, 3)), b], 1)).unflatten(1, (5, 2))


class Two(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return a * 2, b * b


def made(kind: Callable[[], nn.Module]) -> Any:
    torch.manual_seed(3)
    model = kind()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model.eval()


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 14, 17, generator=torch.Generator().manual_seed(5))


def compare(script: Script, *, by: str | None = "fastcam", atol: float = 1e-5) -> Any:
    """Runs a script as it is, and taken over; both have to give the same, but for the graph."""
    expected = script()
    with dropin.install("captum"):
        found = script()
    assert_same(found, expected, atol)
    if by is not None:
        assert {call.served_by for call in dropin.report().calls} == {by}, dropin.report()
    return found


def assert_same(found: Any, expected: Any, atol: float = 1e-5) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other, atol)
    else:
        expected = expected.detach()
        scale = float(expected.abs().max()) if expected.numel() else 0.0
        torch.testing.assert_close(found.detach(), expected, rtol=0, atol=atol * scale + 1e-30)


TARGETS: dict[str, Any] = {
    "int": 2,
    "list": CLASSES,
    "tensor": torch.tensor(CLASSES),
    "one tensor": torch.tensor(3),
    "tuple": (1,),
    "tuples": [(1,), (4,), (2,)],
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("layer", ["features", "relu", "block.1", "block"])
def test_layer_grad_cam(layer: str, target: str) -> None:
    model, x = made(Net), images()
    chosen = TARGETS[target]

    def script() -> list[Tensor]:
        cam = attr.LayerGradCam(model, model.get_submodule(layer))
        return [
            cam.attribute(x, chosen),
            cam.attribute(x, chosen, relu_attributions=True),
            cam.attribute(x, chosen, attr_dim_summation=False, relu_attributions=True),
            cam.attribute((x,), chosen, additional_forward_args=(torch.tensor(2.0), 1)),
            cam.attribute(x, chosen, additional_forward_args=3),
        ]

    maps = compare(script)
    assert maps[0].shape[1] == 1 and not maps[0].requires_grad


def test_layer_grad_cam_of_functions_and_modes() -> None:
    model, x = made(Net), images()
    two = made(Pair)
    y = torch.randn(3, 7, generator=torch.Generator().manual_seed(1))

    def script() -> list[Any]:
        found: list[Any] = []
        for forward in (lambda z: model(z).log_softmax(1), model.forward, lambda: model(x)):
            found.append(attr.LayerGradCam(forward, model.features).attribute(x, 1))
        found.append(attr.LayerGradCam(lambda z: model(z)[:, :1], model.features).attribute(x))
        with torch.no_grad():
            found.append(attr.LayerGradCam(model, model.features).attribute(x.double().float(), 1))
        cam = attr.LayerGradCam(two, two.both)
        for target in ((1, 0), [(0, 1), (4, 0), (2, 1)]):
            found.append(cam.attribute((x, y), target))
            found.append(attr.LayerGradCam(two, two.second).attribute((x, y), target))
        frozen = copy.deepcopy(model).requires_grad_(False)
        found.append(attr.LayerGradCam(frozen, frozen.features).attribute(x, 1))
        return found

    compare(script)


def test_layer_grad_cam_in_training_mode_goes_to_captum() -> None:
    model, x = made(Net), images()

    def script() -> list[Any]:
        training = copy.deepcopy(model).train()
        found = [attr.LayerGradCam(training, training.features).attribute(x, 1)]
        return found + [b.clone().float() for b in training.buffers()]

    compare(script, by="captum")


def test_a_layer_in_place_whose_input_is_read() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.act = made(Net), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.inner.features(F.relu(self.inner.stem(x)))
            self.act(x)
            return self.inner.head(x.mean((2, 3)))

    model, x = Reads().eval(), images()
    compare(lambda: attr.LayerGradCam(model, model.act).attribute(x, 1))


def test_layer_grad_cam_of_other_dimensions() -> None:
    torch.manual_seed(0)
    model, x = Signal().eval(), torch.randn(2, 2, 64)

    def script() -> list[Tensor]:
        found = [attr.LayerGradCam(model, model.features).attribute(x, 1)]
        return [*found, attr.LayerGradCam(model.double(), model.features).attribute(x.double(), 1)]

    def run() -> list[Tensor]:
        try:
            return script()
        finally:
            model.float()

    compare(run)


def test_what_captum_has_to_do_itself() -> None:
    model, x = made(Net), images()

    def script() -> list[Any]:
        cam = attr.LayerGradCam(model, model.features)
        found = [cam.attribute(x, 1, attribute_to_layer_input=True)]
        found.append(cam.attribute(x, 1, grad_kwargs={"create_graph": True}))
        guided = attr.GuidedGradCam(model, model.features)
        found.append(guided.attribute(x, 1, attribute_to_layer_input=True))
        parallel = nn.DataParallel(model)
        found.append(attr.LayerGradCam(parallel, model.features).attribute(x, 1))

        def around(z: Tensor) -> Tensor:
            with torch.enable_grad():
                z = model.features(model.relu(model.stem(z)))
            return model.head(z.mean((2, 3)))

        found.append(attr.LayerGradCam(around, model.features).attribute(x, 1))
        return found

    compare(script, by="captum")


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("kind", ["Net", "Branches"])
@pytest.mark.parametrize("name", ["GuidedBackprop", "Deconvolution"])
def test_guided(name: str, kind: str, inplace: bool) -> None:
    model, x = made(lambda: Net(inplace) if kind == "Net" else Branches()), images()

    def script() -> list[Any]:
        guided = getattr(attr, name)(model)
        found = [guided.attribute(x, target) for target in (1, CLASSES)]
        found.append(guided.attribute((x.clone().requires_grad_(),), 3))
        if kind == "Net":
            found.append(guided.attribute(x, 1, (torch.tensor(2.0), 1)))
        return found

    compare(script)
    assert model.relu.inplace == (inplace and kind == "Net")


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("layer", ["features", "relu", "block"])
def test_guided_grad_cam(layer: str, mode: str) -> None:
    model, x = made(Net), images()
    forwards = []
    model.register_forward_hook(lambda *_: forwards.append(1))

    def script() -> list[Any]:
        guided = attr.GuidedGradCam(model, model.get_submodule(layer))
        found = [guided.attribute(x, t, interpolate_mode=mode) for t in (1, CLASSES)]
        return [*found, guided.attribute((x,), 2, (0.5, 1), interpolate_mode=mode)]

    maps = compare(script)
    assert len(forwards) == 3 * 2 + 3
    assert not maps[0].requires_grad and model.relu.inplace


def test_guided_grad_cam_of_two_inputs() -> None:
    model, x = made(Pair), images()
    y = torch.randn(3, 7, generator=torch.Generator().manual_seed(1))

    def script() -> list[Any]:
        guided = attr.GuidedGradCam(model, model.first)
        return [
            guided.attribute((x, y), (1, 0)),
            guided.attribute((x, y), [(0, 1), (4, 0), (2, 1)]),
        ]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (products, empty), _ = compare(script)
    assert products.shape == x.shape and empty.numel() == 0
    assert sum("empty tensor" in str(w.message) for w in caught) == 4


def test_training_mode_and_odd_relus_go_to_captum() -> None:
    class Leaky(nn.ReLU):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + 0.1 * input

    model, x = made(Net), images()
    odd = made(Net)
    odd.relu = Leaky()

    def script() -> list[Any]:
        training = copy.deepcopy(model).train()
        found = [attr.GuidedGradCam(training, training.features).attribute(x, 1)]
        found += [b.clone().float() for b in training.buffers()]
        return [*found, attr.GuidedGradCam(odd, odd.features).attribute(x, 1)]

    compare(script, by="captum")

    def guided() -> list[Any]:
        return [attr.GuidedBackprop(odd).attribute(x, 1), attr.Deconvolution(odd).attribute(x, 1)]

    compare(guided, by=None)


def test_warnings_stay() -> None:
    model, x = made(Net), images()

    def script(call: Callable[[], Any]) -> list[tuple[type, str]]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
        return [(w.category, str(w.message)) for w in caught]

    for call in (
        lambda: attr.GuidedBackprop(model).attribute(x, 1),
        lambda: attr.GuidedGradCam(model, model.features).attribute(x, 1),
        lambda: attr.LayerGradCam(model, model.features).attribute(x, 1),
    ):
        expected = script(call)
        with dropin.install("captum"):
            assert script(call) == expected


@pytest.mark.parametrize(
    ("size", "mode"),
    [((20, 31), "bilinear"), (12, "bilinear"), ((20, 31), "nearest"), ((20, 31), "bicubic")],
)
def test_interpolate(size: Any, mode: str) -> None:
    maps = torch.randn(2, 3, 7, 5)

    def script() -> list[Tensor]:
        found = [attr.LayerAttribution.interpolate(maps, size, mode)]
        return [*found, attr.LayerGradCam.interpolate(maps.double(), size, interpolate_mode=mode)]

    found = compare(script, by="fastcam" if mode == "bilinear" else "captum")
    assert found[0].dtype == torch.float32
    graph = maps.clone().requires_grad_()
    with dropin.install("captum"):
        attr.LayerAttribution.interpolate(graph, (9, 9), "bilinear").sum().backward()
    assert graph.grad is not None


def test_other_dimensions_are_interpolated() -> None:
    def script() -> list[Tensor]:
        interpolate = attr.LayerAttribution.interpolate
        return [
            interpolate(torch.arange(12.0).view(2, 2, 3), 7, "linear"),
            interpolate(torch.arange(48.0).view(2, 2, 3, 2, 2), (5, 4, 3), "trilinear"),
        ]

    compare(script)


def test_errors_are_captums() -> None:
    model, x = made(Net), images()
    unused = nn.Conv2d(3, 3, 3)
    cases: list[Callable[[], Any]] = [
        lambda: attr.LayerGradCam(model, model.features).attribute(x),
        lambda: attr.LayerGradCam(model, model.features).attribute(x, 9),
        lambda: attr.LayerGradCam(model, model.features).attribute(x, [1, 2]),
        lambda: attr.LayerGradCam(model, unused).attribute(x, 1),
        lambda: attr.LayerGradCam(model, model.features).attribute("x", 1),
        lambda: attr.LayerGradCam(model, model.features).attribute(x[:, :2], 1),
        lambda: attr.LayerGradCam(lambda z: model(z).detach(), model.features).attribute(x, 1),
        lambda: attr.GuidedBackprop(lambda z: z),
        lambda: attr.GuidedBackprop(model).attribute(x),
        lambda: attr.GuidedBackprop(model).attribute(x[:, :2], 1),
        lambda: attr.GuidedBackprop(model).attribute(x.long(), 1),
        lambda: attr.GuidedGradCam(model, model.features).attribute(x),
        lambda: attr.GuidedGradCam(model, model.features).attribute(x, 7),
        lambda: attr.GuidedGradCam(model, unused).attribute(x, 1),
        lambda: attr.LayerAttribution.interpolate(x, (3, 4, 5), "bilinear"),
        lambda: attr.LayerAttribution.interpolate(x, 5, "trilinear"),
    ]

    def outcome(case: Callable[[], Any]) -> Any:
        try:
            return case()
        except Exception as error:
            return type(error), str(error)

    expected = [outcome(case) for case in cases]
    x = images()  # captum leaves what it has set where it fails
    with dropin.install("captum"):
        found = [outcome(case) for case in cases]
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, tuple)
        assert one == other
    assert not x.requires_grad and torch.is_grad_enabled() and model.relu.inplace
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_model_and_the_inputs_are_left_as_found() -> None:
    model, x = made(Net), images()
    state = copy.deepcopy(model.state_dict())
    old = attr.GuidedGradCam(model, model.features)
    dropin.install("captum")
    for _ in range(2):
        old.attribute(x, 1)
        old.guided_backprop.attribute(x, 1)
        old.grad_cam.attribute(x, 1)
    assert not old.guided_backprop.backward_hooks
    assert old.guided_backprop.gradient_func is attr.GuidedBackprop(model).gradient_func
    assert isinstance(old.grad_cam, attr.LayerGradCam)
    assert not x.requires_grad and x.grad is None and x._version == 0
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    again = pickle.loads(pickle.dumps(old))
    assert_same(again.attribute(x, 1), old.attribute(x, 1))


def test_identity_layers_do_not_touch_the_users_images() -> None:
    model, x = made(lambda: nn.Sequential(nn.Identity(), Net())), images()

    def script() -> Tensor:
        return attr.LayerGradCam(model, model[0]).attribute(x.clone(), 1)

    compare(script)
    with dropin.install("captum"):
        attr.LayerGradCam(model, model[0]).attribute(x, 1)
    assert not x.requires_grad and x._version == 0


def test_uninstall_restores_everything() -> None:
    owners = (attr.LayerGradCam, attr.GuidedBackprop, attr.Deconvolution, attr.GuidedGradCam)
    before = [dict(vars(owner)) for owner in (*owners, attr.LayerAttribution)]
    with dropin.install("captum"):
        assert [dict(vars(owner)) for owner in (*owners, attr.LayerAttribution)] != before
        assert "interpolate_mode" in str(__import__("inspect").signature(owners[3].attribute))
    assert [dict(vars(owner)) for owner in (*owners, attr.LayerAttribution)] == before


def test_fix_meets_relus_that_are_functions() -> None:
    model, x = made(Net), images()
    with dropin.install("captum", fix=True):
        guided = attr.GuidedBackprop(model).attribute(x, 1)
        deconvolved = attr.Deconvolution(model).attribute(x, 1)
        product = attr.GuidedGradCam(model, model.features).attribute(
            x, 1, interpolate_mode="bilinear"
        )
        maps = attr.LayerGradCam(model, model.features).attribute(x, 1, relu_attributions=True)
    expected = fastcam.GuidedBackprop(model)(x, 1)
    assert_same(guided, expected)
    assert_same(deconvolved, fastcam.Deconvnet(model)(x, 1))
    assert_same(product, expected * F.interpolate(maps, x.shape[2:], mode="bilinear"))
    assert not torch.allclose(attr.GuidedBackprop(model).attribute(x, 1), guided)
    assert not x.requires_grad


def test_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    made_of = []

    class Copy:
        """In the place of the copy, which takes seconds to compile."""

        is_stale = False

        def __init__(self, model: nn.Module, inputs: Any, layers: Any, *_: Any) -> None:
            made_of.append((len(inputs), layers))
            self.source = model
            self.model = copy.deepcopy(model)
            self.model.register_forward_hook(lambda *_: ran.append(1))

        def prepared(self, inputs: Any) -> Any:
            return inputs

    monkeypatch.setattr("fastcam.engine.fast.model.FastModel", Copy)
    model, x = made(Net), images()
    cam = attr.LayerGradCam(model, model.features)
    expected = cam.attribute(x, 1, (2.0,))
    ran: list[int] = []
    with dropin.install("captum", fast=True):
        assert_same(cam.attribute(x, 1, (2.0,)), expected)
        assert_same(cam.attribute(x, 1, (2.0,)), expected)
        attr.LayerGradCam(model.train(), model.features).attribute(x, 1)
    assert made_of == [(2, ["features"])] and ran == [1] * 2


class Levels(nn.Module):
    """A layer of two maps, of which the head reads some."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fine, self.coarse = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 5, 3, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.fine(x).relu(), self.coarse(x).relu()

    def __init__(self, read: tuple[int, ...] = (0, 1)) -> None:
        super().__init__()
        self.layer, self.read = self.Two(), read
        self.heads = nn.ModuleList([nn.Linear(4, 5), nn.Linear(5, 5)])

    def forward(self, x: Tensor) -> Tensor:
        maps = self.layer(x)
        return torch.stack([self.heads[i](maps[i].mean((2, 3))) for i in self.read]).sum(0)


class Recurrent(nn.Module):
    """Outputs and last state of a GRU, or outputs and weights of an attention."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        attends = isinstance(self.layer, nn.MultiheadAttention)
        outputs, second = self.layer(x, x, x) if attends else self.layer(x)
        first = self.head(outputs.mean(1))
        return first * second.mean() if attends else first + self.head(second[-1])


@pytest.mark.parametrize("kind", ["two maps", "GRU", "attention"])
def test_layers_of_several_tensors(kind: str) -> None:
    torch.manual_seed(0)
    model: nn.Module
    x = torch.randn(3, 7, 8)
    if kind == "GRU":
        model = Recurrent(nn.GRU(8, 8, batch_first=True))
    elif kind == "attention":
        model = Recurrent(nn.MultiheadAttention(8, 2, batch_first=True))
    else:
        model, x = Levels(), images()
    model.eval()

    def script() -> Any:
        return attr.LayerGradCam(model, model.layer).attribute(x, CLASSES)

    assert len(compare(script)) == 2


@pytest.mark.parametrize("read", [(0,), (1,)])
def test_a_tensor_of_the_layer_that_nothing_reads(read: tuple[int, ...]) -> None:
    """captum has an error for it, and so it is."""
    model = Levels(read).eval()
    with dropin.install("captum"), pytest.raises(RuntimeError, match="not have been used"):
        attr.LayerGradCam(model, model.layer).attribute(images(), 1)
