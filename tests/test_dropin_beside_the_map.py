"""What scripts for pytorch-grad-cam expect of a call besides its maps, or of layers not named.

Each script runs with the library itself, with the library under the drop-in, and with
fastcam.compat in its place; all three have to end with the same.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from side_by_side import differences
from torch import Tensor, nn

import fastcam
import fastcam.compat.pytorch_grad_cam as compat
from fastcam import dropin

pgc = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is missing: nothing to compare")
captum = pytest.importorskip("captum.attr", reason="captum is missing: nothing to compare")

NEWEST = hasattr(pgc, "SESS")
"""Whether the release is 1.5.7, whose answers those of compat are."""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2), nn.ReLU())
        self.c = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.c(self.b(self.a(x))).mean((2, 3))
        scores: Tensor = self.head(pooled)
        return scores


class AsksForGradients(Net):
    """As models with a memory-saving branch for inference."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        if y.requires_grad:
            y = y * 1.5 - 0.1
        pooled = self.c(self.b(y)).mean((2, 3))
        return self.head(pooled)  # type: ignore[no-any-return]


class Listed(Net):
    """Its layers are in a plain list too, and run from there."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = [self.a, self.b, self.c]

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def made(kind: type[nn.Module] = Net) -> Any:
    torch.manual_seed(0)
    model = kind()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model.eval()


def images() -> Tensor:
    return torch.randn(2, 3, 16, 20, generator=torch.Generator().manual_seed(1))


Script = Callable[[Any], Any]


def outcome(script: Script, library: Any) -> Any:
    """What the script gives, or the type of what it raises."""
    try:
        return script(library)
    except Exception as error:
        return type(error)


def same_everywhere(script: Script) -> Any:
    expected = outcome(script, pgc)
    dropin.forget()
    with dropin.install("pytorch_grad_cam"):
        found = outcome(script, pgc)
        served = dropin.report()
    _assert_same(expected, found)
    if isinstance(expected, type):
        assert found is expected, f"got {found}, expected {expected}"
    if NEWEST:  # which may raise another type, but not give a map
        _assert_same(expected, outcome(script, compat))
    return served


def _assert_same(expected: Any, found: Any) -> None:
    assert isinstance(expected, type) == isinstance(found, type), f"{expected}, {found}"
    if not isinstance(expected, type):
        assert max(differences(expected, found), default=0.0) < 1e-4


def by_the_library(report: dropin.Report) -> bool:
    return any(call.served_by == "pytorch_grad_cam" for call in report.calls)


# --- which layers are hooked ----------------------------------------------------------------------


def _runner_of_another_layer(cam: Any, library: Any, model: Any) -> None:
    cam.activations_and_grads.release()
    runner = importlib.import_module(f"{library.__name__}.activations_and_gradients")
    cam.activations_and_grads = runner.ActivationsAndGradients(model, [model.b], None)


def _another_target_layer(cam: Any, library: Any, model: Any) -> None:
    cam.target_layers = [model.b]


def _one_more_target_layer(cam: Any, library: Any, model: Any) -> None:
    cam.target_layers.append(model.b)


def _released(cam: Any, library: Any, model: Any) -> None:
    cam.activations_and_grads.release()


def _a_hook_less(cam: Any, library: Any, model: Any) -> None:
    cam.activations_and_grads.handles[0].remove()


BENT = [
    *(_runner_of_another_layer, _another_target_layer, _one_more_target_layer),
    *(_released, _a_hook_less),
]


@pytest.mark.parametrize("bend", BENT, ids=lambda bend: bend.__name__.strip("_"))
@pytest.mark.parametrize("name", ["GradCAM", "LayerCAM", "EigenCAM", "FullGrad"])
def test_the_layers_that_are_hooked_are_explained(name: str, bend: Any) -> None:
    def script(library: Any) -> Any:
        model = made()
        cam = getattr(library, name)(model, [] if name == "FullGrad" else [model.c])
        bend(cam, library, model)
        return cam(images(), None)

    assert by_the_library(same_everywhere(script))


def test_a_subclass_that_keeps_something_else() -> None:
    """As scripts for detectors write it, with the library's names of the hooks."""

    def script(library: Any) -> Any:
        base = importlib.import_module(f"{library.__name__}.activations_and_gradients")

        class Doubled(base.ActivationsAndGradients):  # type: ignore[name-defined, misc]
            def save_activation(self, module: Any, input: Any, output: Any) -> None:
                super().save_activation(module, input, output.flip(3))

            def save_gradient(self, module: Any, input: Any, output: Any) -> None:
                super().save_gradient(module, input, output)

        model = made()
        cam = library.GradCAM(model, [model.c])
        cam.activations_and_grads.release()
        cam.activations_and_grads = Doubled(model, [model.c], None)
        return cam(images(), None)

    assert by_the_library(same_everywhere(script))


def test_two_objects_on_one_model_are_served() -> None:
    def script(library: Any) -> Any:
        model = made()
        first, second = (library.GradCAM(model, [layer]) for layer in (model.c, model.b))
        maps = [first(images(), None), second(images(), None), first(images(), None)]
        return [*maps, np.array([len(layer._forward_hooks) > 0 for layer in (model.c, model.b)])]

    assert not by_the_library(same_everywhere(script))


# --- hooks and gradients of the user's ------------------------------------------------------------


def _backward_hook(model: Any, calls: list[int]) -> None:
    model.a.register_full_backward_hook(lambda *args: calls.append(1))


def _backward_pre_hook(model: Any, calls: list[int]) -> None:
    model.c.register_full_backward_pre_hook(lambda *args: calls.append(1))


def _parameter_hook(model: Any, calls: list[int]) -> None:
    model.a[0].weight.register_hook(lambda gradient: calls.append(1))


def _accumulated(model: Any, calls: list[int]) -> None:
    model.a[0].weight.register_post_accumulate_grad_hook(lambda parameter: calls.append(1))


def _tensor_hook(model: Any, calls: list[int]) -> None:
    def hang(module: Any, args: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: calls.append(1))

    model.a.register_forward_hook(hang)


@pytest.mark.parametrize(
    "hook",
    [_backward_hook, _backward_pre_hook, _parameter_hook, _accumulated, _tensor_hook],
    ids=lambda hook: hook.__name__.strip("_"),
)
@pytest.mark.parametrize("name", ["GradCAM", "FullGrad"])
def test_hooks_below_the_layer_are_called(name: str, hook: Any) -> None:
    def script(library: Any) -> Any:
        model, calls = made(), []  # type: ignore[var-annotated]
        hook(model, calls)
        with getattr(library, name)(model, [] if name == "FullGrad" else [model.c]) as cam:
            return [cam(images(), None), np.array([len(calls)])]

    assert by_the_library(same_everywhere(script))


def test_the_inputs_gradient_is_filled() -> None:
    def script(library: Any) -> Any:
        model, given = made(), images().requires_grad_()
        with library.GradCAM(model, [model.c]) as cam:
            maps = cam(given, None)
        return [maps, given.grad]

    assert by_the_library(same_everywhere(script))


# --- models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["GradCAM", "LayerCAM", "EigenGradCAM"])
def test_a_model_that_asks_whether_a_graph_is_recorded(name: str) -> None:
    def script(library: Any) -> Any:
        model = made(AsksForGradients)
        with getattr(library, name)(model, [model.c]) as cam:
            return cam(images(), None)

    same_everywhere(script)


def test_captums_answer_for_such_a_model() -> None:
    model = made(AsksForGradients)

    def script() -> Tensor:
        maps: Tensor = captum.LayerGradCam(model, model.c).attribute(images(), 1)
        return maps.detach()

    expected = script()
    with dropin.install("captum"):
        torch.testing.assert_close(script(), expected)


def test_our_own_map_of_such_a_model() -> None:
    model = made(AsksForGradients)
    kept: list[Tensor] = []
    handle = model.c.register_forward_hook(lambda module, args, output: kept.append(output))
    scores = model(images())
    handle.remove()
    (gradient,) = torch.autograd.grad(scores[:, 1].sum(), kept)
    expected = (gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1).relu().detach()
    found = fastcam.GradCAM(model, "c")(images(), 1, size="layer", normalize=False)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("layers", ["one", "two"])
@pytest.mark.parametrize("kind", [Net, Listed])
def test_layers_that_ablation_cannot_replace(kind: type[nn.Module], layers: str) -> None:
    def script(library: Any) -> Any:
        model = made(kind)
        with library.AblationCAM(model, [model.c, model.b][: 1 + (layers == "two")]) as cam:
            return cam(images(), None)

    alone = kind is Listed or layers == "two"  # which are not in the order of their runs
    assert by_the_library(same_everywhere(script)) == alone


def test_full_grad_with_a_layer_that_does_not_run() -> None:
    def script(library: Any) -> Any:
        model = made()
        model.unused = nn.Conv2d(3, 3, 1)
        return library.FullGrad(model, [])(images(), None)

    assert by_the_library(same_everywhere(script))


def test_a_target_without_a_score() -> None:
    def script(library: Any) -> Any:
        targets = importlib.import_module(f"{library.__name__}.utils.model_targets")
        model = made()
        with library.GradCAM(model, [model.c]) as cam:
            return cam(images(), [targets.RawScoresOutputTarget()] * 2)

    assert by_the_library(same_everywhere(script))


@pytest.mark.parametrize("name", ["GradCAM", "HiResCAM"])
def test_a_traced_model(name: str) -> None:
    def script(library: Any) -> Any:
        model = torch.jit.trace(made(), images())
        with getattr(library, name)(model, [model.c]) as cam:
            return cam(images(), None)

    same_everywhere(script)


# --- metrics --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["maps", "channel", "too few"])
@pytest.mark.parametrize(
    "name",
    ["CamMultImageConfidenceChange", "DropInConfidence", "IncreaseInConfidence"],
)
def test_maps_of_other_shapes(name: str, shape: str) -> None:
    def script(library: Any) -> Any:
        metrics = importlib.import_module(f"{library.__name__}.metrics.cam_mult_image")
        targets = importlib.import_module(f"{library.__name__}.utils.model_targets")
        heat = np.random.default_rng(0).random((2, 16, 20), dtype=np.float32)
        maps = {"maps": heat, "channel": heat[:, None], "too few": heat[:1]}[shape]
        chosen = [targets.ClassifierOutputSoftmaxTarget(1)] * 2
        return np.asarray(getattr(metrics, name)()(images(), maps, chosen, made()))

    same_everywhere(script)


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.skipif(not NEWEST, reason="compat has the names of 1.5.7")
def test_compat_has_the_librarys_modules() -> None:
    """Of all but ablation_cam_multilayer, which cannot run there."""
    for found in pkgutil.walk_packages(pgc.__path__, "pytorch_grad_cam."):
        if found.name.endswith("ablation_cam_multilayer"):
            continue
        theirs = importlib.import_module(found.name)
        ours = importlib.import_module(f"fastcam.compat.{found.name}")
        for name, value in vars(theirs).items():
            own = getattr(value, "__module__", "") == found.name
            if own and callable(value) and not name.startswith("_"):
                assert hasattr(ours, name), f"{found.name}.{name}"


@pytest.mark.skipif(not NEWEST, reason="compat has the names of 1.5.7")
@pytest.mark.parametrize("method", ["get_cam_weights", "get_cam_image"])
def test_compat_names_arguments_as_the_library(method: str) -> None:
    for name in compat.__all__:
        theirs, ours = getattr(pgc, name, None), getattr(compat, name)
        if isinstance(theirs, type) and method in vars(theirs) and name != "FullGrad":
            expected, found = (
                [each.rstrip("s") for each in inspect.signature(getattr(c, method)).parameters]
                for c in (theirs, ours)
            )
            assert found == expected, name


def test_guided_relus_as_modules() -> None:
    theirs = importlib.import_module("pytorch_grad_cam.guided_backprop")
    ours = importlib.import_module("fastcam.compat.pytorch_grad_cam.guided_backprop")
    given = images()
    found = []
    for module in (theirs, ours):
        for relu in (module.GuidedBackpropReLU.apply, module.GuidedBackpropReLUasModule()):
            x = given.clone().requires_grad_()
            y = relu(x)
            (y * given.flip(0)).sum().backward()
            found.append((y.detach(), x.grad))
    for answer, gradient in found[1:]:
        assert torch.equal(answer, found[0][0]) and torch.equal(gradient, found[0][1])


# --- the fast mode --------------------------------------------------------------------------------


def test_masked_runs_in_the_fast_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Score-CAM's masked images run through the fast copy, which is made once an object."""
    ran: list[int] = []

    class Copy:
        """In the place of the copy, which takes seconds to compile."""

        is_stale = False

        def __init__(self, model: Any, inputs: Tensor, layers: Any, *others: Any) -> None:
            assert not any(m._forward_hooks for m in model.modules())
            self.source = model
            self.model = copy.deepcopy(model)
            ran.append(0)

        def prepared(self, inputs: Tensor) -> Tensor:
            ran.append(len(inputs))
            return inputs

    run = importlib.import_module("fastcam.dropin.pytorch_grad_cam.run")
    model, given = made(), images()
    with pgc.ScoreCAM(model, [model.c]) as cam:
        expected = cam(given, None)
        monkeypatch.setattr("fastcam.engine.fast.model.FastModel", Copy)
        monkeypatch.setattr(run, "_network", lambda cam, images, names, start: (model, images))
        with dropin.install("pytorch_grad_cam", fast=True):
            for _ in range(2):
                assert max(differences(expected, cam(given, None))) < 1e-4
        assert len(model.c._forward_hooks) > 0
    assert ran.count(0) == 1 and sum(ran) <= 2 * 2 * 8
