"""Every method of pytorch-grad-cam, torchcam and captum: its own answer and the drop-in's."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import inspect
import pickle
import pkgutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import networks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pairwise import pairwise
from side_by_side import assert_same, assert_same_error, by_fastcam, installed, raised
from torch import Tensor, nn

import fastcam.compat.pytorch_grad_cam as compat
from fastcam import dropin

pgc = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is missing: nothing to compare")
torchcam = pytest.importorskip("torchcam.methods", reason="torchcam is missing: nothing to compare")
captum = pytest.importorskip("captum.attr", reason="captum is missing: nothing to compare")
models = pytest.importorskip("torchvision.models", reason="torchvision is missing: no networks")
threadpool_limits = pytest.importorskip("threadpoolctl").threadpool_limits  # with scikit-learn

from pytorch_grad_cam.ablation_layer import AblationLayerVit  # noqa: E402
from pytorch_grad_cam.base_cam import BaseCAM  # noqa: E402
from pytorch_grad_cam.utils import image as pgc_image  # noqa: E402
from pytorch_grad_cam.utils import model_targets  # noqa: E402

CLASSES = [3, 1, 4]
Layers = tuple[str, ...]


class Network(NamedTuple):
    model: nn.Module
    inputs: Tensor
    layers: Mapping[str, Layers]
    """"one" and "two" target layers, by name."""
    reshape: Callable[[Tensor], Tensor] | None = None


def grid(tokens: Tensor) -> Tensor:
    """(N, 1 + 4 * 4, C) -> (N, C, 4, 4), without the class token."""
    return tokens[:, 1:].unflatten(1, (4, 4)).movedim(-1, 1)


def _vgg() -> nn.Module:
    """vgg11_bn with a head that does not take 400 MB."""
    model = models.vgg11_bn(num_classes=20, init_weights=False)
    model.classifier = nn.Sequential(
        nn.Linear(512 * 49, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 20)
    )
    return model


def _vit() -> nn.Module:
    model = models.VisionTransformer(64, 16, 4, 2, 24, 48, num_classes=20)
    nn.init.normal_(model.heads.head.weight, std=0.3)
    return model


def _convolutions(dimensions: int, relu: type[nn.Module] = nn.ReLU) -> nn.Module:
    """Milliseconds, for methods that run the network once a channel."""
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dimensions - 1]
    pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[dimensions - 1]
    model = nn.Sequential(
        conv(3, 6, 3, stride=2),
        relu(inplace=True),
        norm(6),
        conv(6, 8, 3),
        relu(inplace=True),
        conv(8, 8, 2),
        relu(inplace=True),
        pool(1),
        nn.Flatten(),
        nn.Linear(8, 20),
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


# name -> its making, the shape of an input, one and two target layers
MADE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Layers, Layers]] = {
    "vgg11_bn": (_vgg, (3, 64, 64), ("features.24",), ("features.12", "features.28")),
    "vit_b_16": (
        _vit,
        (3, 64, 64),
        ("encoder.layers.encoder_layer_3.ln_1",),
        ("encoder.layers.encoder_layer_2.ln_1", "encoder.layers.encoder_layer_3.ln_1"),
    ),
    "tiny": (functools.partial(_convolutions, 2), (3, 28, 28), ("6",), ("1", "4")),
    "tiny 3-D": (functools.partial(_convolutions, 3), (3, 15, 17, 19), ("6",), ("1", "4")),
    "tiny 1-D": (functools.partial(_convolutions, 1), (3, 40), ("6",), ("1", "4")),
}
LAYERS: dict[str, tuple[Layers, Layers]] = {
    # bn2, features and norm5: what follows overwrites what the layer gives
    "resnet18": (("layer4",), ("layer3", "layer4.1.bn2")),
    "densenet121": (("features",), ("features.norm5", "features.denseblock3")),
    "convnext_tiny": (("features.7",), ("features.5", "features.7")),
    "r3d_18": (("layer4",), ("layer3", "layer4")),
}


@functools.cache
def network(name: str) -> Network:
    """Three inputs and a network whose gradients are far above any eps. Shared."""
    if name in MADE:
        make, shape, one, two = MADE[name]
        torch.manual_seed(0)
        inputs = torch.randn(3, *shape)
        model = networks.condition(make(), inputs)
    else:
        model, inputs = copy.deepcopy(networks.network(name))
        if inputs.dim() == 4:
            inputs = torch.randn(3, 3, 96, 96)
        one, two = LAYERS[name]
    with torch.no_grad():
        head = next(each for each in reversed(list(model.modules())) if type(each) is nn.Linear)
        head.weight *= 10 / model(inputs).std()
    return Network(model, inputs, {"one": one, "two": two}, grid if "vit" in name else None)


@pytest.fixture(autouse=True, scope="module")
def _one_thread_for_small_matrices() -> Iterator[None]:
    """Principal components of small layers take far longer where threads wait for a busy core."""
    with threadpool_limits(1, "blas"):
        yield


def modules(model: nn.Module, names: Layers) -> list[nn.Module]:
    return [model.get_submodule(name) for name in names]


def name_of(case: Mapping[str, Any]) -> str:
    """For people: the values in the order of the factors, flags by their name."""
    order = list(dict.fromkeys([*("method", "network"), *sorted(case)]))
    values = {name: case[name] for name in order if name in case}
    words = (name if value is True else str(value) for name, value in values.items() if value)
    return " ".join(words)


def parametrize(cases: list[dict[str, Any]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=name_of)


def assert_served(report: dropin.Report) -> None:
    assert by_fastcam(report), f"not by fastcam:\n{report}"


# --- pytorch-grad-cam -----------------------------------------------------------------------------


def difference_of_classes(output: Tensor) -> Tensor:
    return output[2] - 0.3 * output[5] + 0.01 * output[7] ** 2


def grad_cam_targets(form: str, batch: int) -> list[Any] | None:
    return {
        "top": None,
        "one class": [model_targets.ClassifierOutputTarget(3)] * batch,
        "mixed": [model_targets.ClassifierOutputTarget(c) for c in CLASSES[:batch]],
        "callable": [difference_of_classes] * batch,
    }[form]


def grad_cam(
    library: Any, method: str, net: Network, case: Mapping[str, Any], **options: Any
) -> Callable[[nn.Module, Tensor], Any]:
    """Maps and outputs, by the library or by fastcam.compat."""

    def script(model: nn.Module, inputs: Tensor) -> Any:
        layers = [] if method == "FullGrad" else modules(model, net.layers[case["layers"]])
        targets = grad_cam_targets(case["targets"], len(inputs))
        with getattr(library, method)(model, layers, net.reshape, **options) as cam:
            maps = cam(inputs, targets, case["aug_smooth"], case["eigen_smooth"])
            return maps, cam.outputs.detach()

    return script


CHEAP = [
    "GradCAM",
    "GradCAMPlusPlus",
    "XGradCAM",
    "HiResCAM",
    "GradCAMElementWise",
    "LayerCAM",
    "EigenCAM",
    "EigenGradCAM",
    "SegEigenCAM",
    "FEM",
    "RandomCAM",
]
COSTLY = ["ScoreCAM", "AblationCAM", "FullGrad", "KPCA_CAM", "ShapleyCAM"]
WRAPPERS = ["FinerCAM", "RefineCAM"]
NEWEST = hasattr(pgc, "SESS")
"""Whether the release is 1.5.7; otherwise it is 1.5.5."""
FLAT_ONLY = set() if NEWEST else {"GradCAMPlusPlus", "XGradCAM"}
OPTIONS: dict[str, list[Any]] = {
    "layers": ["one", "two"],
    "batch": [1, 3],
    "targets": ["top", "one class", "mixed", "callable"],
    "aug_smooth": [False, True],
    "eigen_smooth": [False, True],
}
NETWORKS = ["resnet18", "vgg11_bn", "densenet121", "convnext_tiny", "vit_b_16"]


def there(methods: list[str]) -> list[str]:
    """Those that the installed release has."""
    return [method for method in methods if hasattr(pgc, method)]


@pytest.mark.parametrize("method", [*CHEAP, *COSTLY, *WRAPPERS])
def test_has(method: str) -> None:
    if not hasattr(pgc, method):
        pytest.skip(f"the installed pytorch-grad-cam has no {method}: it is not compared")


def compare_grad_cam(net: Network, case: Mapping[str, Any], **options: Any) -> dropin.Report:
    script, without = (
        grad_cam(library, case["method"], net, case, **options) for library in (pgc, compat)
    )
    inputs = net.inputs[: case["batch"]]
    return assert_same("pytorch_grad_cam", script, net.model, inputs, without if NEWEST else None)


def run_grad_cam(case: Mapping[str, Any], **options: Any) -> None:
    net = network(case["network"])
    served = compare_grad_cam(net, case, **options)
    assert_served(served)


@parametrize(pairwise({"method": there(CHEAP), "network": NETWORKS, **OPTIONS}))
def test_grad_cam(case: Mapping[str, Any]) -> None:
    run_grad_cam(case)


@parametrize(
    pairwise(
        {
            "method": [each for each in there(CHEAP) if each not in FLAT_ONLY],
            "network": ["r3d_18"],
            **OPTIONS,
            "aug_smooth": [False],
        }
    )
)
def test_grad_cam_of_volumes(case: Mapping[str, Any]) -> None:
    run_grad_cam(case)


@parametrize(pairwise({"method": there(COSTLY), "network": ["tiny"], **OPTIONS}))
def test_costly_methods(case: Mapping[str, Any]) -> None:
    if case["method"] == "ShapleyCAM":  # the library's own fails on a second layer
        case = {**case, "layers": "one"}
    if case["method"] in ("FullGrad", "ShapleyCAM") and case["eigen_smooth"]:
        compare_grad_cam(network("tiny"), case)  # left to the library
    else:
        run_grad_cam(case)


@pytest.mark.parametrize(
    ("method", "name", "layers", "targets"),
    [
        ("KPCA_CAM", "tiny 3-D", "two", "top"),
        ("KPCA_CAM", "vit_b_16", "two", "top"),
        ("ShapleyCAM", "tiny 3-D", "one", "mixed"),
        ("ScoreCAM", "vit_b_16", "one", "mixed"),
        ("AblationCAM", "vit_b_16", "one", "mixed"),
        ("FullGrad", "resnet18", "one", "top"),
    ],
)
def test_costly_methods_of_other_networks(
    method: str, name: str, layers: str, targets: str
) -> None:
    case = {"method": method, "network": name, "layers": layers, "targets": targets, "batch": 2}
    vit = {"ablation_layer": AblationLayerVit()} if method == "AblationCAM" else {}
    run_grad_cam({**case, "aug_smooth": False, "eigen_smooth": False}, **vit)


@pytest.mark.parametrize(
    "options",
    [{"ratio_channels_to_ablate": 0.5}, {"batch_size": 3}, {"batch_size": 64}],
    ids=str,
)
def test_options_of_ablation_cam(options: dict[str, Any]) -> None:
    case = {"layers": "one", "targets": "mixed", "aug_smooth": False, "eigen_smooth": False}
    run_grad_cam({"method": "AblationCAM", "network": "tiny", "batch": 3, **case}, **options)


@parametrize(
    pairwise(
        {
            "method": ["GradCAM", "XGradCAM", "HiResCAM", "LayerCAM"],
            "network": ["resnet18", "vit_b_16", "tiny", "tiny 3-D"],
            **{name: OPTIONS[name] for name in ("layers", "batch", "targets", "eigen_smooth")},
            "alpha": [1, 0.6],
            "compared": [[1, 2, 3], [2]],
            "target_idx": [None, 5],
        }
    )
)
def test_finer_cam(case: Mapping[str, Any]) -> None:
    """``method`` is its base."""
    if case["method"] in FLAT_ONLY and case["network"] == "tiny 3-D":
        case = {**case, "method": "GradCAM"}
    net = network(case["network"])

    def script(library: Any, model: nn.Module, inputs: Tensor) -> Any:
        layers, base = modules(model, net.layers[case["layers"]]), getattr(library, case["method"])
        cam = library.FinerCAM(model, layers, net.reshape, base_method=base)
        return cam(
            inputs,
            grad_cam_targets(case["targets"], len(inputs)),
            eigen_smooth=case["eigen_smooth"],
            alpha=case["alpha"],
            comparison_categories=case["compared"],
            target_idx=case["target_idx"],
        )

    by_peer, without = (functools.partial(script, library) for library in (pgc, compat))
    inputs = net.inputs[: case["batch"]]
    served = assert_same(
        "pytorch_grad_cam", by_peer, net.model, inputs, without if NEWEST else None
    )
    assert_served(served)


@pytest.mark.parametrize("target_idx", [None, 0])
@pytest.mark.parametrize("compared", ["default", None, [1, 2, 3], [1, 7], [-1], (2,)], ids=str)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_finer_cam_of_few_classes(count: int, compared: Any, target_idx: int | None) -> None:
    """Releases differ in what they make of classes that there are not."""
    net = network("tiny")
    model = nn.Sequential(*net.model[:-1], nn.Linear(8, count)).eval()
    nn.init.normal_(model[-1].weight)
    options = {} if compared == "default" else {"comparison_categories": compared}

    def script(model: nn.Module, inputs: Tensor) -> Any:
        return pgc.FinerCAM(model, [model[6]])(inputs, target_idx=target_idx, **options)

    error = raised(script, model, net.inputs)
    model.zero_grad()
    if error is None:
        assert_served(assert_same("pytorch_grad_cam", script, model, net.inputs))
    else:
        assert_same_error("pytorch_grad_cam", script, model, net.inputs)


class Noisy(nn.Module):
    """Draws for each run, in training mode."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        return F.dropout(self.inner(images), 0.5, self.training)


def test_finer_cam_in_training_mode() -> None:
    """One run, and not one to choose the classes and another for the map."""
    net = network("tiny")

    def script(model: nn.Module, inputs: Tensor) -> Any:
        cam = pgc.FinerCAM(model, [model.inner[6]])
        model.training = True
        maps = cam(inputs)
        model.training = False
        return maps, torch.rand(3)

    assert_same("pytorch_grad_cam", script, Noisy(net.model).eval(), net.inputs)


@pytest.mark.skipif(not NEWEST, reason="FinerCAM of 1.5.5 is no context manager")
def test_finer_cam_in_a_block() -> None:
    net = network("tiny")

    def script(model: nn.Module, inputs: Tensor) -> Any:
        with pgc.FinerCAM(model, [model[6]]) as cam:
            maps = cam(inputs)
        return maps, torch.tensor(len(model[6]._forward_hooks))

    assert_served(assert_same("pytorch_grad_cam", script, net.model, net.inputs))


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("GradCAM", "tiny"),
        ("GradCAM", "vit_b_16"),
        ("EigenCAM", "tiny"),
        ("EigenGradCAM", "vit_b_16"),
    ],
)
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_what_is_kept_before_and_after_the_end_of_a_block(method: str, name: str) -> None:
    """1.5.7 forgets it with its end, and empties the very lists that a script may hold."""
    net = network(name)

    def script(model: nn.Module, inputs: Tensor) -> Any:
        with getattr(pgc, method)(model, modules(model, net.layers["one"]), net.reshape) as cam:
            maps = cam(inputs, grad_cam_targets("mixed", 3))
            kept = cam.activations_and_grads
            lists = [kept.activations, kept.gradients, kept.handles]
            before = [each.detach() for each in (*kept.activations, *kept.gradients)]
        lists += [kept.activations, kept.gradients, kept.handles]
        cam.activations_and_grads.release()
        return maps, before, torch.tensor([len(each) for each in lists])

    assert_served(assert_same("pytorch_grad_cam", script, net.model, net.inputs))


@pytest.mark.parametrize("seed", range(3))
def test_grad_cam_plus_plus_of_negative_activations(seed: int) -> None:
    """By the library's own formula, with sum(A)."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Tanh()),
        *(nn.Flatten(), nn.Linear(4 * 64, 5)),
    ).eval()
    nn.init.normal_(model[6].weight)

    def script(model: nn.Module, inputs: Tensor) -> Any:
        assert (model[:2](inputs) < 0).any()
        with pgc.GradCAMPlusPlus(model, [model[1]]) as cam:
            return cam(inputs, grad_cam_targets("mixed", len(inputs)))

    assert_served(assert_same("pytorch_grad_cam", script, model, torch.randn(3, 3, 12, 12)))


@parametrize(
    [
        {"method": method, "layers": layers, "eigen_smooth": eigen}
        for method in ("GradCAMPlusPlus", "LayerCAM")
        for layers in ("one", "two")
        for eigen in (False, True)
    ]
)
def test_refine_cam(case: Mapping[str, Any]) -> None:
    if not hasattr(pgc, "RefineCAM"):
        pytest.skip("the installed pytorch-grad-cam has no RefineCAM")
    net = network("tiny")

    def script(model: nn.Module, inputs: Tensor) -> Any:
        layers = modules(model, net.layers[case["layers"]])
        cam = pgc.RefineCAM(model, layers, base_method=getattr(pgc, case["method"]))
        return cam(inputs, eigen_smooth=case["eigen_smooth"])

    assert_served(assert_same("pytorch_grad_cam", script, net.model, net.inputs))


TARGETS: dict[str, Callable[[], Any]] = {
    "class": lambda: model_targets.ClassifierOutputTarget(2),
    "softmax": lambda: model_targets.ClassifierOutputSoftmaxTarget(2),
    "ReST": lambda: model_targets.ClassifierOutputReST(2),
    "finer": lambda: model_targets.FinerWeightedTarget(2, [4, 1], 0.7),
    "function": lambda: difference_of_classes,
    "product": lambda: lambda output: output[1] * output[2].tanh(),
}


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("method", ["GradCAM", "LayerCAM", "ScoreCAM", "AblationCAM"])
def test_targets_of_grad_cam(method: str, name: str) -> None:
    net = network("tiny")

    def script(model: nn.Module, inputs: Tensor) -> Any:
        with getattr(pgc, method)(model, [model[6]]) as cam:
            return cam(inputs, [TARGETS[name]() for _ in inputs])

    assert_served(assert_same("pytorch_grad_cam", script, net.model, net.inputs))


def test_fewer_targets_than_images() -> None:
    """It leaves out the last ones without a word: their maps are those of no score."""
    net = network("tiny")

    def script(model: nn.Module, inputs: Tensor) -> Any:
        with pgc.GradCAM(model, [model[6]]) as cam:
            return cam(inputs, [model_targets.ClassifierOutputTarget(1)])

    assert_same("pytorch_grad_cam", script, net.model, net.inputs)


class Binary(nn.Module):
    """One score an image: (N, 1)."""

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images)[:, :1]


class Dense(nn.Module):
    """A score a class and pixel: (N, 8, H, W)."""

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features

    def forward(self, images: Tensor) -> Tensor:
        return F.interpolate(self.features(images), images.shape[2:], mode="bilinear")


def test_targets_of_other_outputs() -> None:
    net = network("tiny")

    def binary(model: nn.Module, inputs: Tensor) -> Any:
        with pgc.GradCAMPlusPlus(model, [model.features[4]]) as cam:
            signs = [model_targets.BinaryClassifierOutputTarget(c) for c in (0, 1, 0)]
            raw = [model_targets.RawScoresOutputTarget()] * 3
            return cam(inputs, signs), cam(inputs, raw)

    def dense(model: nn.Module, inputs: Tensor) -> Any:
        mask = np.zeros((28, 28), np.float32)
        mask[3:12, 5:20] = 1
        with pgc.GradCAM(model, [model.features[1]]) as cam:
            return cam(inputs, [model_targets.SemanticSegmentationTarget(c, mask) for c in CLASSES])

    assert_same("pytorch_grad_cam", binary, Binary(net.model), net.inputs)
    assert_same("pytorch_grad_cam", dense, Dense(net.model[:5]), net.inputs)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("category", [None, 4])
@pytest.mark.parametrize("name", ["tiny", "resnet18"])
def test_guided_backpropagation(name: str, category: int | None, batch: int) -> None:
    """A second call adds up with the first where both get the same tensor."""
    if batch == 3 and category is None:
        pytest.skip("the class is one of the whole batch's outputs: it raises IndexError by chance")
    net = network(name)

    def script(model: nn.Module, inputs: Tensor) -> Any:
        guided = pgc.GuidedBackpropReLUModel(copy.deepcopy(model), device=torch.device("cpu"))
        given = inputs.clone()
        first = guided(given, category).copy()  # a view of .grad, which the second call adds to
        return first, guided(given, category), guided(inputs.clone(), category)

    assert_same("pytorch_grad_cam", script, net.model, net.inputs[:batch])


@pytest.mark.parametrize("name", ["resnet18", "vit_b_16"])
def test_deep_feature_factorization(name: str) -> None:
    net = network(name)

    def script(model: nn.Module, inputs: Tensor) -> Any:
        layer = model.get_submodule(net.layers["two"][0])
        head = model.fc if name == "resnet18" else model.heads
        width = next(head.parameters()).shape[1]
        classifier = lambda concepts: head(F.pad(concepts, (0, width - concepts.shape[1])))  # noqa: E731
        dff = pgc.DeepFeatureFactorization(model, layer, net.reshape, classifier)
        return dff(inputs, 4)

    assert_same("pytorch_grad_cam", script, net.model, net.inputs)


# --- users' own classes ---------------------------------------------------------------------------


def assert_numpy(*arrays: Any) -> None:
    for array in arrays:
        assert type(array) is np.ndarray, f"got {type(array)}"


class WeightedByMagnitude(BaseCAM):
    def get_cam_weights(  # type: ignore[no-untyped-def]
        self, input_tensor, target_layers, targets, activations, grads
    ):
        assert_numpy(activations, grads)
        assert isinstance(input_tensor, Tensor) and isinstance(target_layers, nn.Module)
        return np.abs(grads).mean((2, 3))


class Doubled(pgc.GradCAM):
    def get_cam_weights(self, *args):  # type: ignore[no-untyped-def]
        assert_numpy(*args[-2:])
        weights = super().get_cam_weights(*args)
        assert_numpy(weights)
        return weights**3


class Squared(pgc.LayerCAM):
    def get_cam_image(  # type: ignore[no-untyped-def]
        self, input_tensor, target_layer, targets, activations, grads, eigen_smooth
    ):
        assert_numpy(activations, grads)
        image = super().get_cam_image(
            input_tensor, target_layer, targets, activations, grads, eigen_smooth
        )
        return np.maximum(image, 0) ** 2


class Largest(pgc.GradCAM):
    def aggregate_multi_layers(self, cam_per_target_layer):  # type: ignore[no-untyped-def]
        assert_numpy(*cam_per_target_layer)
        return np.concatenate(cam_per_target_layer, axis=1).max(1)


class Half(pgc.EigenCAM):
    def get_target_width_height(self, input_tensor):  # type: ignore[no-untyped-def]
        width, height = super().get_target_width_height(input_tensor)
        return width // 2, height // 2


class Untouched(pgc.XGradCAM):
    """Nothing of its own."""


class Negative(pgc.GradCAMPlusPlus):
    def forward(self, input_tensor, targets, eigen_smooth=False):  # type: ignore[no-untyped-def]
        return 1 - super().forward(input_tensor, targets, eigen_smooth)


OWN = [WeightedByMagnitude, Doubled, Squared, Largest, Half, Untouched, Negative]


@pytest.mark.parametrize("own", OWN, ids=lambda own: own.__name__)
@pytest.mark.parametrize("smooth", [False, True])
def test_users_own_class(own: type[BaseCAM], smooth: bool) -> None:
    net = network("tiny")

    def script(model: nn.Module, inputs: Tensor) -> Any:
        with own(model, [model[4], model[6]]) as cam:
            targets = grad_cam_targets("mixed", 3)
            maps = cam(inputs, targets, aug_smooth=smooth and own is not Half, eigen_smooth=smooth)
            return maps, cam.outputs.detach()

    assert_same("pytorch_grad_cam", script, net.model, net.inputs)


def test_a_method_replaced_on_the_object() -> None:
    net = network("tiny")

    def script(model: nn.Module, inputs: Tensor) -> Any:
        with pgc.GradCAM(model, [model[6]]) as cam:
            cam.get_cam_weights = lambda *args: -np.mean(args[-1], axis=(2, 3))
            return cam(inputs, grad_cam_targets("mixed", 3))

    assert_same("pytorch_grad_cam", script, net.model, net.inputs)


def test_a_base_class_alone_has_no_weights() -> None:
    net = network("tiny")
    assert_same_error(
        "pytorch_grad_cam",
        lambda model, inputs: BaseCAM(model, [model[6]])(inputs, None),
        net.model,
        net.inputs,
    )


def test_a_users_own_augmentations() -> None:
    tta = pytest.importorskip("ttach", reason="ttach is missing: it makes the augmentations")
    net = network("tiny")

    class Scaled(BaseCAM):
        get_cam_weights = pgc.GradCAM.get_cam_weights

    def script(model: nn.Module, inputs: Tensor) -> Any:
        transforms = tta.Compose([tta.Multiply(factors=[0.8, 1.3])])
        with Scaled(model, [model[6]], tta_transforms=transforms) as cam:
            return cam(inputs, grad_cam_targets("mixed", 3), aug_smooth=True)

    assert_same("pytorch_grad_cam", script, net.model, net.inputs)


def test_settings_of_the_object() -> None:
    """What scripts set and read between calls."""
    net = network("tiny")

    def script(model: nn.Module, inputs: Tensor) -> Any:
        answers = []
        for method in ("ScoreCAM", "AblationCAM", "GradCAM"):
            cam = getattr(pgc, method)(model=model, target_layers=[model[6]])
            cam.batch_size = 5
            answers.append(cam(input_tensor=inputs[:2], targets=None))
            answers.append(cam.outputs.detach())
            cam.target_layers, cam.uses_gradients, cam.device, cam.model  # noqa: B018
            answers.append(cam(inputs, targets=None))
            if method == "GradCAM":  # the others have those of masked images there
                kept = cam.activations_and_grads
                answers += [each.detach() for each in (*kept.activations, *kept.gradients)]
            cam.activations_and_grads.release()
        return answers

    assert_same("pytorch_grad_cam", script, net.model, net.inputs)


# --- what raises ----------------------------------------------------------------------------------


def out_of_range(model: nn.Module, inputs: Tensor) -> Any:
    """IndexError, which the block swallows."""
    reached = [0]
    with pgc.GradCAM(model, [model[6]]) as cam:
        cam(inputs, [model_targets.ClassifierOutputTarget(99)] * 3)
        reached = [1]
    return torch.tensor(reached)


def test_an_index_out_of_range_ends_the_block(capsys: pytest.CaptureFixture[str]) -> None:
    net = network("tiny")
    assert_same("pytorch_grad_cam", out_of_range, net.model, net.inputs)
    first, second, *rest = capsys.readouterr().out.splitlines()
    assert first == second and not rest


GRAD_CAM_ERRORS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "a signal": lambda model, inputs: pgc.GradCAM(model, [model[6]])(inputs.flatten(2), None),
    "a layer without positions": lambda model, inputs: pgc.GradCAM(model, [model[8]])(inputs, None),
    "a layer without positions, by activations": (
        lambda model, inputs: pgc.FEM(model, [model[8]])(inputs, None)
    ),
    "one module": lambda model, inputs: pgc.GradCAM(model, model[6])(inputs, None),
    "a model without parameters": lambda model, inputs: pgc.GradCAM(nn.ReLU(), [model[6]]),
    "an index out of range": lambda model, inputs: pgc.GradCAM(model, [model[6]])(
        inputs, [model_targets.ClassifierOutputTarget(99)] * 3
    ),
    "a picture above 1": lambda model, inputs: pgc_image.show_cam_on_image(
        np.full((4, 4, 3), 2.0), np.ones((4, 4))
    ),
    "a weight above 1": lambda model, inputs: pgc_image.show_cam_on_image(
        np.ones((4, 4, 3)), np.ones((4, 4)), image_weight=1.5
    ),
    "a target that raises": lambda model, inputs: pgc.GradCAM(model, [model[6]])(
        inputs, [lambda output: output[{}["missing"]]] * 3
    ),
    "inputs that the model refuses": lambda model, inputs: pgc.GradCAM(model, [model[6]])(
        inputs[:, :2], None
    ),
}


@pytest.mark.parametrize("name", GRAD_CAM_ERRORS)
def test_errors_of_grad_cam(name: str) -> None:
    net = network("tiny 1-D" if name == "a signal" else "tiny")
    assert_same_error("pytorch_grad_cam", GRAD_CAM_ERRORS[name], net.model, net.inputs)


# --- torchcam -------------------------------------------------------------------------------------


NEWEST_TORCHCAM = hasattr(torchcam, "LeGrad")
since_newest = pytest.mark.skipif(not NEWEST_TORCHCAM, reason="torchcam 0.4.1 has no such thing")


def score_of_differences(output: Tensor) -> Tensor:
    return output[2] - 0.3 * output[5] + 0.01 * output[7] ** 2


def torchcam_target(form: str, batch: int) -> dict[str, Any]:
    return {
        "class": {"class_idx": 3},
        "classes": {"class_idx": CLASSES[:batch]},
        "callable": {"targets": score_of_differences},
        "callables": {"targets": [score_of_differences, lambda output: output[1]][:batch] * 2},
    }[form]


def torch_cam(
    method: str, net: Network, case: Mapping[str, Any], **options: Any
) -> Callable[[nn.Module, Tensor], Any]:
    """Maps, fused where there are several, and the scores of the user's own forward."""

    def script(model: nn.Module, inputs: Tensor) -> Any:
        layers = list(net.layers[case["layers"]])
        target = torchcam_target(case["target"], len(inputs))
        if "targets" in target and isinstance(target["targets"], list):
            target["targets"] = (target["targets"] * 2)[: len(inputs)]
        with getattr(torchcam, method)(model, layers, **options) as cam:
            scores = model(inputs)
            maps = cam(scores=scores, normalized=case["normalized"], **target)
            signals = maps[0].dim() == 2  # which it cannot enlarge
            return maps, maps if signals else cam.fuse_cams(maps), scores.detach()

    return script


def run_torch_cam(case: Mapping[str, Any], **options: Any) -> None:
    if not NEWEST_TORCHCAM and "callable" in case["target"]:
        pytest.skip("torchcam 0.4.1 takes classes alone")
    if not NEWEST_TORCHCAM and case["method"] in MASKING and case["layers"] == "two":
        pytest.skip("torchcam 0.4.1 masks by layers with as many channels alone")
    net = network(case["network"])
    script = torch_cam(case["method"], net, case, **options)
    served = assert_same("torchcam", script, net.model, net.inputs[: case["batch"]])
    if case["method"] != "SmoothGradCAMpp" or "class" in case["target"]:  # else left to torchcam
        assert_served(served)


GRADIENT = ["GradCAM", "GradCAMpp", "SmoothGradCAMpp", "XGradCAM", "LayerCAM"]
MASKING = ["ScoreCAM", "SSCAM", "ISCAM"]
CALLS: dict[str, list[Any]] = {
    "layers": ["one", "two"],
    "batch": [1, 3],
    "target": ["class", "classes", "callable", "callables"],
    "normalized": [True, False],
}


@parametrize(
    pairwise(
        {
            "method": GRADIENT,
            "network": ["resnet18", "densenet121", "r3d_18", "tiny 1-D"],
            **CALLS,
        }
    )
)
def test_torchcam(case: Mapping[str, Any]) -> None:
    run_torch_cam(case)


@parametrize(pairwise({"method": MASKING, "network": ["tiny", "tiny 3-D"], **CALLS}))
def test_masking_methods_of_torchcam(case: Mapping[str, Any]) -> None:
    samples = {} if case["method"] == "ScoreCAM" else {"num_samples": 2}
    run_torch_cam(case, batch_size=5, **samples)


@parametrize(
    pairwise(
        {
            "method": ["CAM"],
            "network": ["resnet18", "densenet121", "r3d_18"],
            **CALLS,
            "layers": ["one"],
            "target": ["class", "classes"],
        }
    )
)
def test_cam_of_torchcam(case: Mapping[str, Any]) -> None:
    run_torch_cam(case)


@since_newest
@parametrize(
    pairwise(
        {
            "method": ["GradCAM", "GradCAMpp", "LayerCAM"],
            "network": ["resnet18", "tiny", "tiny 3-D"],
            **CALLS,
            "target": ["class", "classes"],
            "compared": [None, 5, [5, 7], "a row an image"],
            "gamma": [0.6, 1.0],
        }
    )
)
def test_finer_cam_of_torchcam(case: Mapping[str, Any]) -> None:
    """``method`` is its base."""
    net = network(case["network"])

    def script(model: nn.Module, inputs: Tensor) -> Any:
        base = getattr(torchcam, case["method"])
        rows = [[5, 7], [8, 9], [0, 2]][: len(inputs)]
        compared = rows if case["compared"] == "a row an image" else case["compared"]
        layers = list(net.layers[case["layers"]])
        with torchcam.FinerCAM(model, layers, base_method=base, gamma=case["gamma"]) as cam:
            scores = model(inputs)
            (class_idx,) = torchcam_target(case["target"], len(inputs)).values()
            maps = cam(class_idx, scores, compared, case["normalized"])
            return maps, cam.fuse_cams(maps), scores.detach()

    assert_served(assert_same("torchcam", script, net.model, net.inputs[: case["batch"]]))


@since_newest
@parametrize(
    pairwise(
        {
            "method": ["GradCAM", "GradCAMpp", "LayerCAM", "ScoreCAM"],
            "network": ["tiny", "tiny 3-D"],
            **CALLS,
            "layers": ["two"],
            "target_shape": [None, (9, 7)],
        }
    )
)
def test_refine_cam_of_torchcam(case: Mapping[str, Any]) -> None:
    """``method`` is its base."""
    net = network(case["network"])

    def script(model: nn.Module, inputs: Tensor) -> Any:
        base = getattr(torchcam, case["method"])
        with torchcam.RefineCAM(model, list(net.layers["two"]), base_method=base) as cam:
            scores = model(inputs)
            target = torchcam_target(case["target"], len(inputs))
            if isinstance(target.get("targets"), list):
                target["targets"] = (target["targets"] * 2)[: len(inputs)]
            shape = case["target_shape"] if inputs.dim() == 4 else None
            return cam(scores=scores, normalized=case["normalized"], target_shape=shape, **target)

    assert_served(assert_same("torchcam", script, net.model, net.inputs[: case["batch"]]))


@since_newest
@parametrize(
    pairwise(
        {
            "method": ["LeGrad"],
            "network": ["vit_b_16"],
            "blocks": [[3], [1, 2, 3], [0, 1, 2, 3]],
            **{name: CALLS[name] for name in ("batch", "normalized")},
            "target": ["class", "classes"],
            "grid_shape": [None, (4, 4)],
        }
    )
)
def test_legrad_of_torchcam(case: Mapping[str, Any]) -> None:
    net = network("vit_b_16")

    def script(model: nn.Module, inputs: Tensor) -> Any:
        blocks = [model.encoder.layers[index] for index in case["blocks"]]
        with torchcam.LeGrad(model, blocks, grid_shape=case["grid_shape"]) as cam:
            scores = model(inputs)
            (class_idx,) = torchcam_target(case["target"], len(inputs)).values()
            return cam(class_idx, normalized=case["normalized"]), scores.detach()

    assert_served(assert_same("torchcam", script, net.model, net.inputs[: case["batch"]]))


@since_newest
def test_torchcam_of_tokens() -> None:
    net = network("vit_b_16")

    def script(model: nn.Module, inputs: Tensor) -> Any:
        layer = net.layers["one"][0]
        maps = []
        for method in ("GradCAM", "LayerCAM", "XGradCAM"):
            with getattr(torchcam, method)(model, layer, reshape_transform=grid) as cam:
                maps.append(cam(CLASSES, model(inputs)))
        return maps

    assert_served(assert_same("torchcam", script, net.model, net.inputs))


def test_several_classes_from_one_forward() -> None:
    """And the attributes that torchcam leaves on the object; the layer is found by itself."""
    net = network("resnet18")

    def script(model: nn.Module, inputs: Tensor) -> Any:
        with torchcam.GradCAM(model) as cam:
            scores = model(inputs)
            first = cam(1, scores, retain_graph=True)
            second = cam(CLASSES, scores, retain_graph=True)
            third = cam(2, scores)
            answers = [*first, *second, *third, *cam.hook_a, *cam.hook_g]
            cam.disable_hooks()
            model(inputs[:1])
            cam.enable_hooks()
            assert cam.target_names == ["layer4"]
            return answers, repr(cam) == "GradCAM(target_layer=['layer4'])"

    assert_same("torchcam", script, net.model, net.inputs)


def test_scores_are_still_the_users_own() -> None:
    """A loss of the same forward reaches the parameters where a training step asks for it."""
    net = network("tiny")

    def script(model: nn.Module, inputs: Tensor) -> Any:
        model = copy.deepcopy(model)
        given = inputs.clone().requires_grad_()
        with torchcam.GradCAM(model, "6") as cam:
            scores = model(given)
            maps = cam(1, scores, retain_graph=True)
            F.cross_entropy(scores, torch.tensor(CLASSES)).backward()
            return maps, [parameter.grad for parameter in model.parameters()], given.grad

    assert_same("torchcam", script, net.model, net.inputs)


@pytest.mark.parametrize("training", [True, False])
def test_a_loss_after_the_map_reaches_the_parameters(training: bool) -> None:
    """All of them in training mode; in evaluation mode those above the layer, see the documents."""
    net = network("tiny")

    def script(model: nn.Module, inputs: Tensor) -> Any:
        model = copy.deepcopy(model).train(training)
        with torchcam.GradCAM(model, "4") as cam:
            scores = model(inputs)
            maps = cam(1, scores, retain_graph=True)
            F.cross_entropy(scores, torch.tensor(CLASSES)).backward()
            reached = model if training else model[5:]
            return maps, [parameter.grad for parameter in reached.parameters()]

    assert_same("torchcam", script, net.model, net.inputs)


class OwnTorchCam(torchcam.GradCAM):
    """Weights of its own, from what torchcam leaves on the object."""

    def _get_weights(self, class_idx, scores, **kwargs):  # type: ignore[no-untyped-def]
        self._backprop(scores, class_idx, **kwargs)
        return [gradient.flatten(2).abs().amax(-1) for gradient in self.hook_g]


def test_a_users_own_class_of_torchcam() -> None:
    net = network("tiny")

    def script(model: nn.Module, inputs: Tensor) -> Any:
        with OwnTorchCam(model, ["4", "6"]) as cam:
            return cam(CLASSES, model(inputs))

    assert_same("torchcam", script, net.model, net.inputs)


def _torchcam_call(method: str, *layers: Any, **init: Any) -> Callable[..., Any]:
    """A script that makes an object, runs the model and calls the object with what is given."""

    def with_arguments(call: Callable[[Any, Tensor], Any], forward: bool = True) -> Any:
        def script(model: nn.Module, inputs: Tensor) -> Any:
            with getattr(torchcam, method)(model, *layers, **init) as cam:
                return call(cam, model(inputs) if forward else torch.zeros(3, 20))

        return script

    return with_arguments


_of_six = _torchcam_call("GradCAM", "6")
_of_finer = _torchcam_call("FinerCAM", "6")


def _without_graph(model: nn.Module, inputs: Tensor) -> Any:
    with torchcam.GradCAM(model, "6") as cam:
        with torch.no_grad():
            scores = model(inputs)
        return cam(1, scores)


TORCHCAM_ERRORS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "neither class nor target": _of_six(lambda cam, scores: cam(scores=scores)),
    "both": _of_six(lambda cam, scores: cam(1, scores, targets=difference_of_classes)),
    "no forward": _of_six(lambda cam, scores: cam(1, scores), forward=False),
    "too few classes": _of_six(lambda cam, scores: cam([1, 2], scores)),
    "a class below 0": _of_six(lambda cam, scores: cam(-1, scores)),
    "one of the classes below 0": _of_six(lambda cam, scores: cam([1, -1, 2], scores)),
    "a class out of range": _of_six(lambda cam, scores: cam(20, scores)),
    "no scores": _of_six(lambda cam, scores: cam(1)),
    "scores that are no tensor": _of_six(lambda cam, scores: cam(1, [scores])),
    "scores without a graph": _without_graph,
    "too few targets": _of_six(
        lambda cam, scores: cam(scores=scores, targets=[difference_of_classes] * 2)
    ),
    "targets that are no functions": _of_six(
        lambda cam, scores: cam(scores=scores, targets=[1, 2, 3])
    ),
    "a target that gives several": _of_six(
        lambda cam, scores: cam(scores=scores, targets=lambda output: output[:2])
    ),
    "a target that gives no tensor": _of_six(
        lambda cam, scores: cam(scores=scores, targets=lambda output: 1.0)
    ),
    "maps that are no list": _of_six(lambda cam, scores: cam.fuse_cams(scores)),
    "no maps": _of_six(lambda cam, scores: cam.fuse_cams([])),
    "an unknown layer": _torchcam_call("GradCAM", "layer9")(None),
    "a layer that is no layer": _torchcam_call("GradCAM", 3)(None),
    "one of the layers is no layer": _torchcam_call("GradCAM", ["6", 3])(None),
    "a layer of another model": _torchcam_call("GradCAM", nn.ReLU())(None),
    "reshape that is no function": _torchcam_call("GradCAM", "6", reshape_transform=3)(None),
    "reshape without a layer": _torchcam_call("GradCAM", reshape_transform=grid)(None),
    "CAM of two layers": _torchcam_call("CAM", ["4", "6"])(None),
    "CAM of targets": _torchcam_call("CAM", "6")(
        lambda cam, scores: cam(scores=scores, targets=difference_of_classes)
    ),
    "CAM of an unknown head": lambda model, inputs: torchcam.CAM(
        copy.deepcopy(model), "6", 3
    ),  # it leaves a hook behind
    "refined from one layer": _torchcam_call("RefineCAM", ["6"])(None),
    "refined by no class": _torchcam_call("RefineCAM", ["4", "6"], base_method=3)(None),
    "finer by another base": _torchcam_call("FinerCAM", "6", base_method=torchcam.XGradCAM)(None),
    "finer by less than nothing": _torchcam_call("FinerCAM", "6", gamma=-1)(None),
    "finer by no number": _torchcam_call("FinerCAM", "6", gamma="1")(None),
    "finer by no reference": _torchcam_call("FinerCAM", "6", num_references=0)(None),
    "finer of targets": _of_finer(
        lambda cam, scores: cam(1, scores, targets=difference_of_classes)
    ),
    "finer without scores": _of_finer(lambda cam, scores: cam(1)),
    "finer beside itself": _of_finer(lambda cam, scores: cam(1, scores, [1, 2])),
    "finer beside a class twice": _of_finer(lambda cam, scores: cam(1, scores, [2, 2])),
    "LeGrad without blocks": _torchcam_call("LeGrad", [])(None),
    "LeGrad of a network without attention": _torchcam_call("LeGrad", "6")(None),
    "ScoreCAM without a forward": _torchcam_call("ScoreCAM", "6")(
        lambda cam, scores: cam(1), forward=False
    ),
}


ERRORS_OF_BOTH = [
    name
    for name in TORCHCAM_ERRORS
    if not any(word in name for word in ("target", "finer", "refined", "LeGrad", "reshape", "both"))
]


@pytest.mark.parametrize("name", TORCHCAM_ERRORS)
def test_errors_of_torchcam(name: str) -> None:
    if not NEWEST_TORCHCAM and name not in ERRORS_OF_BOTH:
        pytest.skip("torchcam 0.4.1 has no such thing")
    net = network("tiny")
    assert_same_error("torchcam", TORCHCAM_ERRORS[name], net.model, net.inputs)


# --- captum ---------------------------------------------------------------------------------------


def captum_target(form: str, batch: int) -> Any:
    return {
        "class": 3,
        "classes": CLASSES[:batch],
        "tensor": torch.tensor(CLASSES[:batch]),
        "tensor of one": torch.tensor([4]),
        "scalar tensor": torch.tensor(4),
        "tuple": (1, 4),
        "tuples": [(1, 4), (0, 2), (1, 1)][:batch],
        "none": None,
    }[form]


class Reshaped(nn.Module):
    """(N, 20) as (N, 2, 10), or a score an image."""

    def __init__(self, inner: nn.Module, form: str) -> None:
        super().__init__()
        self.inner, self.form = inner, form

    def forward(self, images: Tensor) -> Tensor:
        outputs = self.inner(images)
        return outputs.unflatten(1, (2, 10)) if "tuple" in self.form else outputs[:, 2]


TARGET_FORMS = [
    *("class", "classes", "tensor", "tensor of one", "scalar tensor", "tuple", "tuples", "none"),
]


def captum_model(case: Mapping[str, Any]) -> tuple[nn.Module, Tensor, str]:
    """A model whose outputs fit the target's form, inputs, and the prefix of layers' names."""
    net = network(case["network"])
    inputs = net.inputs[: case["batch"]]
    if case["target"] in ("tuple", "tuples", "none"):
        return Reshaped(net.model, case["target"]), inputs, "inner."
    return net.model, inputs, ""


@parametrize(
    pairwise(
        {
            "method": ["LayerGradCam"],
            "network": ["resnet18", "densenet121", "tiny", "tiny 1-D", "tiny 3-D"],
            "layer": [0, 1],
            "batch": [1, 3],
            "target": TARGET_FORMS,
            "attribute_to_layer_input": [False, True],
            "relu_attributions": [False, True],
            "attr_dim_summation": [True, False],
        }
    )
)
def test_layer_grad_cam_of_captum(case: Mapping[str, Any]) -> None:
    """``layer`` 1 is overwritten by what follows it."""
    model, inputs, prefix = captum_model(case)
    options = ("attribute_to_layer_input", "relu_attributions", "attr_dim_summation")
    name = prefix + network(case["network"]).layers["two"][case["layer"]]

    def script(model: nn.Module, inputs: Tensor) -> Any:
        cam = captum.LayerGradCam(model, model.get_submodule(name))
        return cam.attribute(
            inputs,
            captum_target(case["target"], len(inputs)),
            **{option: case[option] for option in options},
        ).detach()

    assert_same("captum", script, model, inputs)


@parametrize(
    pairwise(
        {
            "method": ["GuidedBackprop", "Deconvolution", "GuidedGradCam"],
            "network": ["resnet18", "tiny", "tiny 1-D", "tiny 3-D"],
            "batch": [1, 3],
            "target": TARGET_FORMS,
            "attribute_to_layer_input": [False, True],
            "interpolate_mode": ["nearest", "nearest-exact", "area"],
        }
    )
)
@pytest.mark.filterwarnings("ignore:Setting")
def test_guided_methods_of_captum(case: Mapping[str, Any]) -> None:
    model, inputs, prefix = captum_model(case)
    name = prefix + network(case["network"]).layers["one"][0]

    def script(model: nn.Module, inputs: Tensor) -> Any:
        target = captum_target(case["target"], len(inputs))
        method = getattr(captum, case["method"])
        if case["method"] != "GuidedGradCam":
            return method(model).attribute(inputs, target).detach()
        return (
            method(model, model.get_submodule(name))
            .attribute(
                inputs,
                target,
                interpolate_mode=case["interpolate_mode"],
                attribute_to_layer_input=case["attribute_to_layer_input"],
            )
            .detach()
        )

    assert_same("captum", script, model, inputs)


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("graph", [False, True])
def test_interpolation_of_captum(mode: str, graph: bool) -> None:
    def script(model: nn.Module, inputs: Tensor) -> Any:
        attributions = inputs.detach().clone().requires_grad_(graph)
        interpolate = captum.LayerAttribution.interpolate
        return interpolate(attributions, (9, 40), mode), interpolate(attributions, 17, mode)

    net = network("tiny")
    assert_same("captum", script, net.model, net.inputs)


class Scaled(nn.Module):
    """More than one argument, and two tensors at once."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor, more: Tensor, factor: float = 1.0) -> Tensor:
        return self.inner(images + factor * more)


@pytest.mark.filterwarnings("ignore:Setting")
def test_captum_with_more_arguments() -> None:
    net = network("tiny")

    def script(model: nn.Module, inputs: Tensor) -> Any:
        layer = model.inner[6]
        both = (inputs, inputs.flip(2))
        grad_cam = captum.LayerGradCam(model, layer)
        guided = captum.GuidedGradCam(model, layer)
        return [
            each.detach()
            for each in (
                grad_cam.attribute(both, 3, additional_forward_args=0.5),
                grad_cam.attribute(inputs, 3, additional_forward_args=(inputs.flip(3), 0.5)),
                *guided.attribute(both, 3, additional_forward_args=0.5),
                *captum.GuidedBackprop(model).attribute(both, CLASSES, 0.5),
            )
        ]

    assert_same("captum", script, Scaled(net.model), net.inputs)


def test_captum_of_a_function() -> None:
    """The forward is any function, and gradients are off around it."""
    net = network("tiny")

    def script(model: nn.Module, inputs: Tensor) -> Any:
        cam = captum.LayerGradCam(lambda images: model(images).softmax(1), model[6])
        with torch.no_grad():
            return cam.attribute(inputs, CLASSES).detach()

    assert_same("captum", script, net.model, net.inputs)


CAPTUM_ERRORS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "no target": lambda model, inputs: captum.LayerGradCam(model, model[6]).attribute(inputs),
    "too few targets": lambda model, inputs: captum.LayerGradCam(model, model[6]).attribute(
        inputs, [1, 2]
    ),
    "too few targets in a tensor": lambda model, inputs: captum.LayerGradCam(
        model, model[6]
    ).attribute(inputs, torch.tensor([1, 2])),
    "a target of no known type": lambda model, inputs: captum.LayerGradCam(
        model, model[6]
    ).attribute(inputs, "dog"),
    "a target out of range": lambda model, inputs: captum.LayerGradCam(model, model[6]).attribute(
        inputs, 20
    ),
    "a tuple for a class": lambda model, inputs: captum.LayerGradCam(model, model[6]).attribute(
        inputs, (1, 2)
    ),
    "a layer that does not run": lambda model, inputs: captum.LayerGradCam(
        model, nn.ReLU()
    ).attribute(inputs, 1),
    "guided, no target": lambda model, inputs: captum.GuidedBackprop(model).attribute(inputs),
    "guided, a target out of range": lambda model, inputs: captum.GuidedBackprop(model).attribute(
        inputs, 20
    ),
    "guided, of a function": lambda model, inputs: captum.GuidedBackprop(
        lambda images: model(images)
    ).attribute(inputs, 1),
    "guided Grad-CAM, no target": lambda model, inputs: captum.GuidedGradCam(
        model, model[6]
    ).attribute(inputs),
    "an unknown interpolation": lambda model, inputs: captum.LayerAttribution.interpolate(
        inputs, (3, 3), "cubist"
    ),
}


@pytest.mark.filterwarnings("ignore:Setting")
@pytest.mark.parametrize("name", CAPTUM_ERRORS)
def test_errors_of_captum(name: str) -> None:
    net = network("tiny")
    assert_same_error("captum", CAPTUM_ERRORS[name], net.model, net.inputs)


# --- what is taken over, and put back -------------------------------------------------------------

LIBRARIES = ("pytorch_grad_cam", "torchcam", "captum")


def submodules(name: str) -> list[ModuleType]:
    """The library with all that can be imported of it; of captum, what its attributions import."""
    library = importlib.import_module(name)
    if name != "captum":
        for found in pkgutil.walk_packages(library.__path__, f"{name}."):
            with contextlib.suppress(ImportError):
                importlib.import_module(found.name)
    return [
        module
        for key, module in sorted(sys.modules.items())
        if key.partition(".")[0] == name and module is not None
    ]


def members(name: str) -> dict[str, Any]:
    """The library's own classes and functions."""
    found = {}
    for module in submodules(name):
        for key, value in vars(module).items():
            own = getattr(value, "__module__", None) == module.__name__
            if own and isinstance(value, (type, FunctionType)):
                found[f"{module.__name__}.{key}"] = value
    return found


def contents(name: str) -> dict[str, Any]:
    """Every object that could be replaced: of modules, of classes, of functions."""
    found: dict[str, Any] = {}
    for module in submodules(name):
        if module.__name__ == name or module.__name__ not in sys.modules:
            continue
        found |= {f"{module.__name__}.{key}": value for key, value in vars(module).items()}
    for path, member in members(name).items():
        inner = dict(vars(member)) if isinstance(member, type) else {"": member}
        for key, value in inner.items():
            found[f"{path}.{key}"] = value
            function = getattr(value, "__func__", value)
            if isinstance(function, FunctionType):
                for each in ("__code__", "__globals__", "__doc__", "__name__", "__qualname__"):
                    found[f"{path}.{key}.{each}"] = getattr(function, each)
                for each in ("__defaults__", "__kwdefaults__", "__dict__", "__closure__"):
                    found[f"{path}.{key}.{each}"] = repr(getattr(function, each))
    return found


@pytest.mark.parametrize("library", LIBRARIES)
def test_everything_is_put_back(library: str) -> None:
    before = contents(library)
    for _ in range(2):
        with installed(library):
            during = contents(library)
        after = contents(library)
        assert after.keys() == before.keys()
        other = [key for key, value in before.items() if not _is(value, after[key])]
        assert not other, f"not put back: {other}"
        assert any(not _is(value, during.get(key)) for key, value in before.items())


def _is(one: Any, other: Any) -> bool:
    return one == other if isinstance(one, str) else one is other


@pytest.mark.parametrize("library", LIBRARIES)
def test_put_back_after_an_exception(library: str) -> None:
    before = contents(library)
    with pytest.raises(KeyError), installed(library):
        raise KeyError
    after = contents(library)
    assert all(_is(value, after[key]) for key, value in before.items())


@pytest.mark.parametrize("library", LIBRARIES)
def test_looks_the_same(library: str) -> None:
    """Signatures, help, identity and pickles, of classes, methods and functions."""
    before = {path: looks(member) for path, member in members(library).items()}
    objects = members(library)
    with installed(library):
        during = members(library)
        assert during.keys() == objects.keys()
        for path, member in during.items():
            assert member is objects[path], path
            assert looks(member) == before[path], path
            if path.rpartition(".")[2] == member.__name__:
                assert pickle.loads(pickle.dumps(member)) is member, path


def looks(member: Any) -> list[tuple[str, ...]]:
    """What help() and an editor show of a class or function."""
    inner = [("", member)]
    if isinstance(member, type):
        inner += [(name, value) for name, value in inspect.getmembers(member) if callable(value)]
    shown = []
    for name, value in inner:
        if name.startswith("__") and name not in ("__init__", "__call__"):
            continue
        try:
            signature = str(inspect.signature(value))
        except (ValueError, TypeError):
            signature = ""
        words = [getattr(value, each, "") for each in ("__name__", "__qualname__", "__module__")]
        shown.append((name, signature, str(inspect.getdoc(value)), *map(str, words)))
    return shown


def test_inside_each_other() -> None:
    """What was taken over before a block stays so after it."""
    own = vars(BaseCAM)["forward"]
    with installed("pytorch_grad_cam"):
        taken = vars(BaseCAM)["forward"]
        assert taken is not own
        with dropin.install():
            assert vars(BaseCAM)["forward"] is taken
        assert vars(BaseCAM)["forward"] is taken
    assert vars(BaseCAM)["forward"] is own


def test_objects_that_are_older_or_younger() -> None:
    """An object that was made before gets the new code, one that was made under it the old one."""
    net = network("tiny")
    inputs = net.inputs.detach()  # the library leaves those of some methods with a gradient
    targets = grad_cam_targets("mixed", 3)
    older = pgc.GradCAM(net.model, [net.model[6]])
    own = older(inputs, targets)
    with installed("pytorch_grad_cam"):
        found = older(inputs, targets)
        assert_served(dropin.report())
        younger = pgc.GradCAM(net.model, [net.model[6]])
        assert isinstance(younger, pgc.GradCAM) and isinstance(younger, BaseCAM)
        assert np.abs(younger(inputs, targets) - own).max() <= 1e-4
    dropin.forget()
    assert np.abs(found - own).max() <= 1e-4
    np.testing.assert_array_equal(younger(inputs, targets), own)
    np.testing.assert_array_equal(older(inputs, targets), own)
    assert not dropin.report().calls
    for cam in (older, younger):
        cam.activations_and_grads.release()
    net.model.zero_grad()


def test_torchcam_objects_that_are_older_or_younger() -> None:
    net = network("tiny")

    def maps(cam: Any) -> Tensor:
        (found,) = cam(CLASSES, net.model(net.inputs))
        return found.detach()

    older = torchcam.GradCAM(net.model, "6")
    own = maps(older)
    with installed("torchcam"):
        torch.testing.assert_close(maps(older), own, rtol=0, atol=1e-5)
        older.remove_hooks()
        younger = torchcam.GradCAM(net.model, "6")
        torch.testing.assert_close(maps(younger), own, rtol=0, atol=1e-5)
    torch.testing.assert_close(maps(younger), own, rtol=0, atol=0)
    younger.remove_hooks()


BEFORE_THE_IMPORT = """
import sys, torch
import fastcam.dropin
fastcam.dropin.install()
assert not {"pytorch_grad_cam", "torchcam", "captum"} & set(sys.modules), "it imports them"
import captum.attr, pytorch_grad_cam, torchcam.methods
from torchcam.methods import LayerCAM
torch.manual_seed(0)
model = torch.nn.Sequential(
    torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
    torch.nn.Linear(4, 5),
).eval()
images = torch.randn(2, 3, 12, 12)
with pytorch_grad_cam.GradCAM(model, [model[1]]) as cam:
    cam(images, None)
with LayerCAM(model, "1") as cam:
    cam(1, model(images))
captum.attr.LayerGradCam(model, model[1]).attribute(images, 1)
print(sorted((call.name, call.served_by) for call in fastcam.dropin.report().calls))
taken = pytorch_grad_cam.base_cam.BaseCAM.forward
fastcam.dropin.uninstall()
assert pytorch_grad_cam.base_cam.BaseCAM.forward is not taken
assert pytorch_grad_cam.base_cam.BaseCAM.forward.__module__ == "pytorch_grad_cam.base_cam"
"""


def test_installed_before_the_import() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:fastcam", "-c", BEFORE_THE_IMPORT],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    expected = [
        ("captum.LayerGradCam", "fastcam"),
        ("pytorch_grad_cam.GradCAM", "fastcam"),
        ("torchcam.LayerCAM", "fastcam"),
    ]
    assert done.stdout.strip() == str(expected)


NORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight": nn.utils.parametrizations.weight_norm,
    "spectral": nn.utils.parametrizations.spectral_norm,
    "orthogonal": nn.utils.parametrizations.orthogonal,
    "weight, by a hook": nn.utils.weight_norm,
    "spectral, by a hook": nn.utils.spectral_norm,
}
NORMED: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "pytorch_grad_cam.ScoreCAM": lambda m, x: pgc.ScoreCAM(m, [m.get_submodule("5")])(x, None),
    "pytorch_grad_cam.GradCAM": lambda m, x: pgc.GradCAM(m, [m.get_submodule("5")])(x, None),
    "torchcam.ScoreCAM": lambda m, x: _torchcam_scores(m, x),
}


def _torchcam_scores(model: nn.Module, images: Tensor) -> Any:
    with torchcam.ScoreCAM(model, "5") as extractor:
        return extractor([1, 2], model(images))


@pytest.mark.parametrize("script", NORMED)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.filterwarnings("ignore:.*is deprecated in favor of.*:FutureWarning")
def test_convolutions_whose_weights_are_computed(norm: str, script: str) -> None:
    """BatchNorm cannot be folded into them, and stays as it is in the copy that runs."""
    torch.manual_seed(0)
    normed = NORMS[norm]
    model = nn.Sequential(
        *(normed(nn.Conv2d(3, 6, 3)), nn.BatchNorm2d(6), nn.ReLU()),
        *(normed(nn.Conv2d(6, 8, 3, bias=False)), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    )
    images = torch.randn(2, 3, 20, 20)
    model(images)  # statistics of its own
    served = assert_same(script.partition(".")[0], NORMED[script], model.eval(), images)
    assert by_fastcam(served)
