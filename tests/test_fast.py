"""The fast mode gives the maps of exact mode, and says what it could not do."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from networks import ARCHITECTURES, network
from test_methods import near
from torch import Tensor, nn
from torch.nn.utils import prune

import fastcam
from fastcam import demo, models
from fastcam.engine.fast import cuda_graphs
from fastcam.engine.fast.batch_sizes import BatchSizes
from fastcam.engine.fast.cuda_graphs import CudaGraphs
from fastcam.engine.fast.model import FastModel
from fastcam.engine.fast.options import Options, is_emulated, preferred_dtype
from fastcam.explainer import Explainer
from fastcam.methods.maps import MapMethod
from fastcam.models import Preprocessing

pytestmark = pytest.mark.filterwarnings("ignore:dtype. this processor has no instructions")
METHODS = ["gradcam", "gradcam++", "layercam"]


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but the compiler, which takes a minute for a network."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


def fast(model: nn.Module, layer: str | list[str] | None = None, **options: Any) -> fastcam.GradCAM:
    cam = fastcam.GradCAM(model, layer)
    cam.compile(**options)
    return cam


class Block(nn.Module):
    """Convolutions and BatchNorms in every position to each other."""

    def __init__(self, twice: bool = False) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.second_norm = nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.third, self.third_norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8, affine=False)
        self.head = nn.Linear(8, 5)
        self.twice = twice

    def forward(self, images: Tensor) -> Tensor:
        first = self.first(images)
        value = self.first_norm(first).relu_()
        if self.twice:  # what the convolution returns is read here too
            value = value + first
        value = self.second_norm(self.second(value)).relu_()
        value = self.third_norm(self.third(value)).relu_()
        return self.head(value.mean((2, 3)))


def block(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    model = Block(**options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, -2, 2)
                nn.init.normal_(module.bias)
    return model


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_maps_of_exact_mode(name: str, device: torch.device) -> None:
    model, images = network(name)
    model, images = copy.deepcopy(model).to(device), images.to(device)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for method in METHODS:
        exact, quick = (fastcam.METHODS[method](model) for _ in range(2))
        quick.compile(check=True)
        raw = {"size": "layer", "normalize": False}
        near(quick(images, **raw), exact(images, **raw), 2e-3)
        near(quick(images), exact(images), 5e-3)
        assert torch.equal(quick.class_ids, exact.class_ids)
        near(quick.scores, exact.scores, 1e-3)
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all("forward" not in module.__dict__ for module in model.modules())
    report = quick.compiled
    norms = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    if name in ("resnet18", "mobilenet_v3_small", "efficientnet_b0", "r3d_18", "googlenet"):
        assert report["BatchNorm"].endswith(" folded")
    if name in ("resnet18", "r3d_18", "mobilenet_v3_small", "timm/resnet10t"):
        assert report["BatchNorm"] == f"{norms} folded"
    units = report.keys() - {"BatchNorm", "CUDA graph"}
    states = {report[unit] for unit in units}  # the layer may be an activation
    assert "compiled" in states <= {"compiled", "not compiled: it has no parameters"}
    covered = " ".join(units)
    assert ARCHITECTURES[name] in units or f"to {ARCHITECTURES[name]}" in covered


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    "name", [name for name, method in fastcam.METHODS.items() if issubclass(method, MapMethod)]
)
def test_every_method_that_gives_maps(name: str) -> None:
    model, images = block(), torch.randn(3, 3, 9, 9)
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)  # some draw noise
        cam: Any = fastcam.METHODS[name](model, "third_norm")
        if compiled:
            cam.compile()
        found += [cam(images)]
    near(found[1], found[0], 1e-3)
    assert cam.compiled


@pytest.mark.usefixtures("uncompiled")
def test_folding_is_exact() -> None:
    model, images = block().double(), torch.randn(2, 3, 9, 9, dtype=torch.float64)
    cam = fast(model, "third_norm")
    near(
        cam(images, size="layer"), fastcam.GradCAM(model, "third_norm")(images, size="layer"), 1e-12
    )
    assert cam.compiled["BatchNorm"] == "2 folded, 1 not: a target layer"


@pytest.mark.usefixtures("uncompiled")
def test_a_convolution_that_is_the_target_layer_keeps_its_values() -> None:
    model, images = block(), torch.randn(2, 3, 9, 9)
    cam = fast(model, "second")
    near(cam(images, size="layer"), fastcam.GradCAM(model, "second")(images, size="layer"))
    assert cam.compiled["BatchNorm"] == "1 folded"


@pytest.mark.usefixtures("uncompiled")
def test_what_is_read_elsewhere_is_not_folded() -> None:
    model, images = block(twice=True), torch.randn(2, 3, 9, 9)
    cam = fast(model, "third_norm")
    near(cam(images), fastcam.GradCAM(model, "third_norm")(images))
    assert "something else reads the convolution's output" in cam.compiled["BatchNorm"]


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    "compute",
    [
        nn.utils.weight_norm,
        nn.utils.parametrizations.weight_norm,
        nn.utils.spectral_norm,
        lambda conv: prune.l1_unstructured(conv, "weight", 0.5),
    ],
    ids=["weight norm", "parametrized", "spectral norm", "pruned"],
)
def test_a_weight_that_is_computed_is_not_folded_into(
    compute: Callable[[nn.Module], nn.Module],
) -> None:
    model, images = block(), torch.randn(2, 3, 9, 9)
    compute(model.get_submodule("second"))
    cam = fast(model, "third_norm")
    near(cam(images), fastcam.GradCAM(model, "third_norm")(images))
    assert cam.compiled["BatchNorm"] == (
        "1 folded, 1 not: the convolution's weight is computed, 1 not: a target layer"
    )


@pytest.mark.usefixtures("uncompiled")
def test_several_layers() -> None:
    model, images = network("resnet18")
    layers = ["layer4", "layer3.1", "layer4.1"]
    near(fast(model, layers)(images), fastcam.GradCAM(model, layers)(images), 5e-3)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("name", ["resnet18", "densenet121", "vit_b_16", "convnext_tiny"])
def test_a_lower_precision_is_below_the_layer_alone(name: str) -> None:
    model, images = network(name)
    cam = fast(model, dtype=torch.bfloat16)
    maps = cam(images)
    assert maps.dtype == torch.float32 and cam.outputs.dtype == torch.float32
    near(cam.outputs, model(images).detach(), 0.3)
    assert "precision" not in cam.compiled
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("method", "dtype"),
    [("gradcam", torch.bfloat16), ("gradcam++", torch.bfloat16), ("layercam", torch.float16)],
)
def test_the_trained_network_in_low_precision(method: str, dtype: torch.dtype) -> None:
    """On its own pictures: random deep networks amplify the noise and would prove nothing."""
    from fastcam import pictures

    scene = torch.from_numpy(pictures.read(demo.asset("scene.png"))).movedim(-1, 0).float() / 255
    tiles = scene.unfold(1, 96, 32).unfold(2, 96, 32).movedim(0, 2).reshape(-1, 3, 96, 96)
    tiles = tiles[: len(tiles) // 8 * 8]
    model = demo.digits()
    cam = fastcam.METHODS[method](model, demo.TARGET_LAYER)
    cam.compile(dtype=dtype, check=True)
    cam(tiles)
    assert "precision" not in cam.compiled


@pytest.mark.usefixtures("uncompiled")
def test_a_check_that_fails() -> None:
    class Cancels(nn.Module):
        """The small difference of large numbers, which bfloat16 has not got."""

        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Conv2d(3, 4, 3)
            self.head = nn.Linear(4, 3)
            nn.init.constant_(self.features.bias, 1e4)

        def forward(self, images: Tensor) -> Tensor:
            return self.head((self.features(images) - 1e4).mean((2, 3)))

    torch.manual_seed(0)
    cam = fast(Cancels(), "features", dtype=torch.bfloat16, check=True)
    with pytest.raises(RuntimeError, match=r"correlate with those of exact mode by 0\.\d"):
        cam(torch.randn(4, 3, 8, 8))


@pytest.mark.usefixtures("uncompiled")
def test_a_part_that_needs_its_own_precision() -> None:
    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Conv2d(3, 4, 3)
            self.head = nn.Linear(4, 3)

        def forward(self, images: Tensor) -> Tensor:
            features = self.features(images)
            if self.features.weight.dtype != torch.float32:
                raise TypeError("expected single precision")
            return self.head(features.mean((2, 3)))

    model, images = Picky(), torch.randn(2, 3, 8, 8)
    cam = fast(model, "features", dtype=torch.bfloat16)
    near(cam(images), fastcam.GradCAM(model, "features")(images))
    assert cam.compiled["precision"] == "the network's own: expected single precision"


@pytest.mark.usefixtures("uncompiled")
def test_the_layer_answers_in_the_precision_of_the_network() -> None:
    model, images = network("resnet18")
    options = Options(torch.bfloat16, compile=False)
    copied = FastModel(model, images, ["layer4"], options).model
    found: list[Tensor] = []
    copied.layer4.register_forward_hook(lambda module, args, output: found.append(output))
    copied(images)
    assert copied.layer4[0].conv1.weight.dtype == torch.bfloat16
    assert found[0].dtype == torch.float32


def test_shared_modules_stay_in_their_precision() -> None:
    class Shared(nn.Module):
        """One convolution below and above the layer, one that only comes twice."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.shared = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
            self.features, self.head = nn.Conv2d(4, 4, 1), nn.Linear(4, 3)

        def forward(self, images: Tensor) -> Tensor:
            value = self.features(self.shared(self.stem(images)))
            return self.head(self.shared(value).mean((2, 3)))

    model, images = Shared(), torch.randn(2, 3, 8, 8)
    cam = fast(model, "features", dtype=torch.bfloat16)
    near(cam(images), fastcam.GradCAM(model, "features")(images), 0.05)
    assert cam.compiled.keys() == {"BatchNorm", "stem", "features"}


@pytest.mark.usefixtures("uncompiled")
def test_a_layer_that_runs_several_times() -> None:
    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.features, self.head = (
                nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3),
            )  # fmt: skip

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.features(self.features(self.stem(images))).mean((2, 3)))

    model, images = Again(), torch.randn(2, 3, 8, 8)
    cam = fast(model, "features")
    near(cam(images), fastcam.GradCAM(model, "features")(images))
    assert cam.compiled == {"BatchNorm": "0 folded", "stem": "compiled", "features": "compiled"}
    first = fastcam.GradCAM(model, "features", run=0)
    first.compile()
    near(first(images), fastcam.GradCAM(model, "features", run=0)(images))
    assert first.compiled == {"features": "runs several times: nothing below it was changed"}


class OneActivation(nn.Module):
    """Two residual blocks, and one ReLU everywhere."""

    def __init__(self, inplace: bool, ends: str = "relu") -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace)
        self.convs = nn.ModuleList(nn.Conv2d(3 if i == 0 else 6, 6, 3, padding=1) for i in range(5))
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) for _ in range(5))
        self.head = nn.Linear(6, 4)
        self.ends = ends

    def forward(self, images: Tensor) -> Tensor:
        value = self.relu(self.norms[0](self.convs[0](images)))
        for i in (1, 3):
            inner = self.relu(self.norms[i](self.convs[i](value)))
            value = self.relu(value + self.norms[i + 1](self.convs[i + 1](inner)))
        pooled = value.mean((2, 3))
        return self.head(self.relu(pooled) if self.ends == "head" else pooled)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "layercam", "scorecam", "eigencam"])
def test_one_activation_for_all(inplace: bool, method: str) -> None:
    torch.manual_seed(0)
    model, images = OneActivation(inplace), torch.randn(3, 3, 12, 12)
    for norm in model.norms:
        nn.init.normal_(norm.bias)
    exact, quick = (fastcam.METHODS[method](model, "relu") for _ in range(2))
    quick.compile()
    for part in (images, images[:1], images.flip(3)):
        near(quick(part), exact(part), 1e-3)
        near(quick.scores, exact.scores, 1e-3)
    assert quick.compiled["BatchNorm"] == "5 folded"
    assert [quick.compiled[f"convs.{i}"] for i in range(5)] == ["compiled"] * 5
    assert quick.verify(images).gradient_error is None or quick.verify(images).gradient_error < 1e-3


@pytest.mark.usefixtures("uncompiled")
def test_a_fast_mode_that_does_nothing_says_so_once() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.features(images).mean((2, 3)))

    hooked = Plain()
    hooked.head.register_forward_hook(lambda *_: None)
    looped = nn.Sequential(
        nn.AvgPool2d(2), nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    for module, layer, reason in (
        (hooked, "features", "model: the model itself runs: its hooks are functions"),
        (looped, "0", "not compiled: it has no parameters"),
    ):
        explainer = Explainer(
            models.LoadedModel(module.eval(), Preprocessing()), "gradcam", layer, True
        )
        with pytest.warns(
            UserWarning, match=f"fast: it saves no time here .*{reason}.* A later layer"
        ):
            explainer(torch.rand(1, 3, 16, 16))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            explainer(torch.rand(1, 3, 16, 16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = models.LoadedModel(Plain().eval(), Preprocessing())
        Explainer(model, "gradcam", "features", True)(torch.rand(1, 3, 16, 16))


@pytest.mark.usefixtures("uncompiled")
def test_the_number_of_runs_changes() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.relu, self.head = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Linear(4, 3)

        def forward(self, images: Tensor) -> Tensor:
            value = self.stem(images)
            for _ in range(images.shape[-1] // 4):
                value = self.relu(value - 0.1)
            return self.head(value.mean((2, 3)))

    model = Loop()
    cam = fast(model, "relu")
    near(cam(torch.ones(1, 3, 8, 8)), fastcam.GradCAM(model, "relu")(torch.ones(1, 3, 8, 8)))
    with pytest.raises(
        ValueError, match="ran 3 times, but 2 times when the fast mode was prepared"
    ):
        cam(torch.ones(1, 3, 12, 12))


@pytest.mark.usefixtures("uncompiled")
def test_weights_that_change_are_seen() -> None:
    model, images = block(), torch.randn(2, 3, 9, 9)
    cam = fast(model, "third_norm")
    cam(images)
    with torch.no_grad():
        model.first.weight.mul_(-1)
    near(cam(images), fastcam.GradCAM(model, "third_norm")(images))


class Tuned(nn.Module):
    """What it answers depends on attributes that are no parameters; it counts its runs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.heads = nn.ModuleList([nn.Linear(6, 5) for _ in range(2)])
        self.task, self.gain, self.config = 0, torch.ones(6), {"scales": [1.0, 1.0]}
        self.options = SimpleNamespace(sign=1)
        self.runs, self.seen = 0, {}

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        self.seen[x.shape] = self.runs
        pooled = self.body(x).mean((2, 3)) * self.gain * self.config["scales"][0]
        return self.heads[self.task](pooled * self.options.sign)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model, "task", 1),
        lambda model: setattr(model, "gain", torch.linspace(-2, 2, 6)),
        lambda model: model.gain.copy_(torch.linspace(-2, 2, 6)),
        lambda model: setattr(model.gain, "data", torch.linspace(-2, 2, 6)),
        lambda model: model.config["scales"].__setitem__(0, -2.0),
        lambda model: setattr(model.options, "sign", -1),
    ],
)
def test_attributes_that_change_are_seen(change: Callable[[nn.Module], None]) -> None:
    model, images = Tuned().eval(), torch.randn(2, 3, 9, 9)
    cam, raw = fast(model, "body"), {"size": "layer", "normalize": False, "relu": False}
    before = cam(images, 1, **raw)
    change(model)
    maps = cam(images, 1, **raw)
    assert not torch.allclose(maps, before)
    near(maps, fastcam.GradCAM(model, "body")(images, 1, **raw))


@pytest.mark.usefixtures("uncompiled")
def test_what_the_network_writes_itself_makes_no_new_copy() -> None:
    model, images = Tuned().eval(), torch.randn(2, 3, 9, 9)
    cam = fast(model, "body")
    cam(images)
    made = cam.networks[-1]
    for _ in range(3):
        model(images)
        cam(images)
    assert cam.networks[-1] is made


@pytest.mark.usefixtures("uncompiled")
def test_exact_mode_again() -> None:
    model, images = block(), torch.randn(2, 3, 9, 9)
    cam = fast(model, "third_norm")
    cam(images)
    assert cam.compiled
    assert fastcam.GradCAM(model, "third_norm").compiled == {}


@pytest.mark.usefixtures("uncompiled")
def test_a_model_that_keeps_a_result_with_its_graph() -> None:
    model, images = block(), torch.randn(2, 3, 9, 9)
    model.kept = kept = torch.ones(2, requires_grad=True) * 2
    near(fast(model, "third_norm")(images), fastcam.GradCAM(model, "third_norm")(images))
    assert model.kept is kept


def test_a_model_that_cannot_be_copied() -> None:
    model = block()
    model.lock = threading.Lock()
    with pytest.raises(ValueError, match=r"model: .* cannot be copied \(.*without compile\(\)"):
        fast(model, "third_norm")(torch.randn(2, 3, 9, 9))


def test_arguments() -> None:
    cam = fastcam.GradCAM(block(), "third_norm")
    with pytest.raises(ValueError, match=r"dtype: got torch.int8, expected None or one of"):
        cam.compile(dtype=torch.int8)
    cam.compile(cuda_graph=True)
    with pytest.raises(RuntimeError, match="but the images are not a tensor on"):
        cam(torch.randn(2, 3, 9, 9))


def test_precisions_that_a_processor_has_not_got(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    has = {"architecture": "x86_64", "avx512_bf16": True, "amx_fp16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    assert is_emulated(torch.float16, cpu) and not is_emulated(torch.bfloat16, cpu)
    assert not is_emulated(None, cpu) and not is_emulated(torch.float16, torch.device("cuda"))
    assert preferred_dtype(cpu) == torch.bfloat16
    monkeypatch.setitem(has, "avx512_bf16", False)
    assert preferred_dtype(cpu) is None


# ---- the compiler ----


def test_compiled_parts() -> None:
    """With the compiler itself: one size, a shorter batch, a size that comes again."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    exact, quick = (fastcam.GradCAM(model, "4") for _ in range(2))
    quick.compile()
    for count in (4, 3, 1, 1, 4):
        images = torch.randn(count, 3, 12, 12)
        near(quick(images), exact(images), 1e-4)
        near(quick.outputs, exact.outputs, 1e-4)
    assert quick.compiled == {
        "BatchNorm": "1 folded", "0 to 3": "compiled", "4": "not compiled: it has no parameters",
    }  # fmt: skip


def refuse(ways: list[bool]) -> Callable[..., Any]:
    def compile(function: Callable[..., Any], *, fullgraph: bool, **_: Any) -> Callable[..., Any]:
        def compiled(*args: Any) -> Any:
            if fullgraph in ways:
                raise RuntimeError("no compiler\nand more")
            return function(*args)

        return compiled

    return compile


@pytest.mark.parametrize(
    ("ways", "state"),
    [
        ([True, False], "not compiled: no compiler"),
        ([True], "compiled in parts: no compiler"),
    ],
)
def test_parts_that_do_not_compile(
    ways: list[bool], state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", refuse(ways))
    model, images = block(), torch.randn(2, 3, 9, 9)
    cam = fast(model, "third_norm")
    for _ in range(2):
        near(cam(images), fastcam.GradCAM(model, "third_norm")(images))
        assert cam.compiled["first"] == state


def test_batch_sizes() -> None:
    sizes = BatchSizes()
    assert [sizes.choose(n) for n in (8, 8, 5, 4, 4, 3, 16, 16, 9, 1)] == [
        8, 8, 8, None, 4, 4, None, 16, 16, None,
    ]  # fmt: skip


# ---- CUDA graphs, replayed on a CPU ----


def recorded(call: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """Like a graph: computes again from the same buffers into the same results."""
    results = call()

    def replay() -> Any:
        for old, new in zip(results, call(), strict=True):
            old.copy_(new)
        return results

    return replay


def test_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "record", recorded)
    calls = []

    def step(images: Tensor, ids: Tensor | None) -> Any:
        calls.append(len(images))
        rows = images.sum(1) if ids is None else images.gather(1, ids[:, None])[:, 0]
        return rows, rows.sum()

    graphs = CudaGraphs()
    batches = [torch.randn(n, 6) for n in (4, 4, 3, 4)]
    found = [graphs(step, images, None, "a") for images in batches]
    for images, (rows, _) in zip(batches, found, strict=True):  # none was overwritten
        assert torch.equal(rows, images.sum(1))
    assert torch.equal(found[1][1], batches[1].sum(1).sum())
    assert set(calls) == {4}, "a shorter batch is filled up"
    ids = torch.tensor([2, 0, 5, 1])
    rows, _ = graphs(step, batches[0], ids, "a")
    assert torch.equal(rows, batches[0][torch.arange(4), ids])
    rows, _ = graphs(step, batches[0], ids.flip(0), "a")
    assert torch.equal(rows, batches[0][torch.arange(4), ids.flip(0)])
    assert graphs.state == "2 recorded"
    assert graphs(step, torch.empty(0, 6), None, "a")[0].shape == (0,)


def test_a_step_that_cannot_be_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(call: Callable[[], Any], device: torch.device) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(cuda_graphs, "record", fail)
    images = torch.randn(4, 6)
    graphs = CudaGraphs()
    assert torch.equal(graphs(lambda i, _: (i.sum(1),), images, None, "a")[0], images.sum(1))
    assert graphs.state == "not recorded: operation not permitted when stream is capturing"
    with pytest.raises(RuntimeError, match="cuda_graph: this call is not recorded: operation"):
        CudaGraphs(required=True)(lambda i, _: (i,), images, None, "a")


def test_ablation_after_an_exact_call() -> None:
    """The run that is watched operator by operator is not one of compiled code."""
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
    second = nn.Sequential(nn.Conv2d(6, 8, 3), nn.ReLU())
    model = nn.Sequential(first, second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    images, cam = torch.randn(2, 3, 12, 12), fastcam.AblationCAM(model.eval(), "0")
    exact = cam(images, 1, normalize=False)
    cam.compile()
    for _ in range(2):
        torch.testing.assert_close(cam(images, 1, normalize=False), exact, atol=1e-4, rtol=1e-3)


def test_values_written_through_data_are_noticed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    )
    images, cam = torch.randn(2, 3, 12, 12), fastcam.GradCAM(model.eval(), "0")
    cam.compile()
    cam(images, 1)
    for parameter in model.parameters():
        parameter.data.mul_(-0.5)
        cam(images, 1)
        torch.testing.assert_close(cam.outputs, model(images).detach())
