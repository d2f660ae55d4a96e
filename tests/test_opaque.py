"""Networks that hooks and autograd do not see into: one sentence says so, or the map is right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import Small, small, small_images
from torch import Tensor, nn

import fastcam

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.(jit|ao|export)", "ignore:.*quantiz", "ignore::DeprecationWarning"
)
CLASSES = torch.tensor([1, 4, 2])


class Body(nn.Module):
    """A body and a head: either may be replaced by what is made of it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def scripted(module: nn.Module, example: Tensor) -> nn.Module:
    return torch.jit.script(module)


def traced(module: nn.Module, example: Tensor) -> nn.Module:
    return torch.jit.trace(module, example)


def exported(module: nn.Module, example: Tensor) -> nn.Module:
    shapes = ({0: torch.export.Dim("n")},)
    return torch.export.export(module, (example,), dynamic_shapes=shapes).module()


KINDS = [(scripted, "TorchScript"), (traced, "TorchScript"), (exported, "torch.export")]


@pytest.mark.parametrize("method", ["gradcam", "eigencam", "guided-gradcam"])
@pytest.mark.parametrize(("make", "name"), KINDS)
def test_a_layer_inside(make: Any, name: str, method: str) -> None:
    images, whole, part = small_images(), make(Body().eval(), small_images()), Body().eval()
    part.body = make(part.body, images)
    for model, layer in ((whole, "body.2"), (whole, "body"), (part, "body.0")):
        with pytest.raises(ValueError, match=f"^target_layers: '{layer}' cannot .* {name}"):
            fastcam.METHODS[method](model, layer)
    with pytest.raises(ValueError, match=rf"(?s)^(target_layers|model): .*({name}|TorchScript)"):
        fastcam.METHODS[method](whole)(images)


@pytest.mark.parametrize("make", [scripted, traced, exported])
def test_a_layer_elsewhere(make: Any) -> None:
    images = small_images()
    for part, layer in (("head", "body.2"), ("body", "head.0")):
        model = Body().eval()
        layer = "body.2" if part == "head" else layer
        if part == "body":
            model.head.insert(0, nn.Conv2d(8, 8, 3))
        expected = fastcam.GradCAM(model, layer)(images, CLASSES)
        example = images if part == "body" else model.body(images).detach()
        setattr(model, part, make(getattr(model, part), example))
        torch.testing.assert_close(fastcam.GradCAM(model, layer)(images, CLASSES), expected)
        torch.testing.assert_close(fastcam.GradCAM(model)(images, CLASSES), expected)


@pytest.mark.parametrize("make", [scripted, traced])
def test_relus_inside_of_torchscript(make: Any) -> None:
    images, model = small_images(), Body().eval()
    expected = fastcam.GuidedBackprop(model)(images, CLASSES)
    model.head = make(model.head, model.body(images).detach())  # without a ReLU
    torch.testing.assert_close(fastcam.GuidedBackprop(model)(images, CLASSES), expected)
    model.body = make(model.body, images)
    for method in ("guided-backprop", "deconvnet", "guided-gradcam"):
        with pytest.raises(ValueError, match=r"^model: .* TorchScript module, such as 'body'"):
            layers = ["head"] if method == "guided-gradcam" and make is traced else []
            fastcam.METHODS[method](model, *layers)(images, CLASSES)


class Rectified(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 4, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x)).mean((2, 3))


@pytest.mark.parametrize(
    ("function", "refused"),
    [
        (torch.relu, True),
        (nn.functional.relu6, True),
        (nn.ReLU(inplace=True), True),
        (nn.Hardtanh(0.0, 4.0), True),
        (lambda x: x.clamp(min=0), True),
        (lambda x: x.clamp(min=-1), False),
        (nn.LeakyReLU(), False),
        (nn.Hardtanh(), False),
        (nn.GELU(), False),
    ],
)
@pytest.mark.filterwarnings("ignore:guided backpropagation met no ReLU")
def test_which_functions_are_relus_in_torchscript(function: Any, refused: bool) -> None:
    model = traced(Rectified(function).eval(), small_images())
    if refused:
        with pytest.raises(ValueError, match=r"^model: .* TorchScript module, such as this one"):
            fastcam.GuidedBackprop(model)(small_images(), 1)
    else:
        assert fastcam.GuidedBackprop(model)(small_images(), 1).any()


@pytest.mark.parametrize("method", ["guided-backprop", "deconvnet"])
@pytest.mark.parametrize(
    "function", [torch.relu, nn.ReLU(inplace=True), nn.ReLU6(), lambda x: x.clamp(min=0)]
)
def test_guided_backpropagation_of_exported_programs(function: Any, method: str) -> None:
    torch.manual_seed(0)
    model, images = Rectified(function).eval(), small_images()
    expected = fastcam.METHODS[method](model)(images, CLASSES % 4)
    program = exported(model, images)
    torch.testing.assert_close(fastcam.METHODS[method](program)(images, CLASSES % 4), expected)


class Quantizable(Body):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = (
            torch.ao.quantization.QuantStub(),
            torch.ao.quantization.DeQuantStub(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.dequant(super().forward(self.quant(x)))


@pytest.fixture
def engine() -> Any:
    before = torch.backends.quantized.engine
    engines = [e for e in torch.backends.quantized.supported_engines if e != "none"]
    if not engines:
        pytest.skip("this build of torch has no quantized operators")
    torch.backends.quantized.engine = engines[-1]
    yield
    torch.backends.quantized.engine = before


@pytest.mark.parametrize("method", ["gradcam", "eigencam", "guided-backprop", "guided-gradcam"])
def test_quantized_models(engine: None, method: str) -> None:
    model = Quantizable().eval()
    model.qconfig = torch.ao.quantization.default_qconfig
    prepared = torch.ao.quantization.prepare(model)
    prepared(small_images())
    model = torch.ao.quantization.convert(prepared)
    layers = [] if method == "guided-backprop" else ["body.2"]
    for given in ([], layers):
        with pytest.raises(
            ValueError, match=r"^(model|target_layers): .* before its quantization$"
        ):
            fastcam.METHODS[method](model, *given)(small_images(), CLASSES)


def test_dynamically_quantized_heads(engine: None) -> None:
    """Only what derives the score by a layer below the head is in want of a derivative."""
    images = small_images()
    model = torch.ao.quantization.quantize_dynamic(small(), {nn.Linear})
    for method in ("gradcam", "ablationcam", "guided-backprop"):
        with pytest.raises(ValueError, match=r"^model: 'head' is quantized: .* before its quanti"):
            fastcam.METHODS[method](model)(images, CLASSES)
    expected = fastcam.EigenCAM(small(), "features")(images)
    assert fastcam.EigenCAM(model, "features")(images).equal(expected)
    assert fastcam.ScoreCAM(model, "features")(images, CLASSES).any()
    assert isinstance(model, Small)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_scripted_parts_run_in_evaluation_mode() -> None:
    torch.manual_seed(0)
    inside = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
    layers = torch.jit.script(inside), nn.Conv2d(6, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    model, images = nn.Sequential(*layers, nn.Linear(6, 4)).train(), torch.randn(2, 3, 9, 9)
    before = model[0][1].running_mean.clone()
    maps = fastcam.GradCAM(model, "1")(images, 1)
    assert torch.equal(model[0][1].running_mean, before) and model[0].training
    assert torch.equal(maps, fastcam.GradCAM(model.eval(), "1")(images, 1))
