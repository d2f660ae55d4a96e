"""Scripts that bend a library: the drop-in gives what the bent library gives, or steps aside."""

from __future__ import annotations

import copy
import importlib
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from side_by_side import by_fastcam, differences
from torch import Tensor, nn

from fastcam import dropin
from fastcam.dropin.known import fingerprint, known

pgc = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is missing: nothing to compare")
torchcam = pytest.importorskip("torchcam.methods", reason="torchcam is missing: nothing to compare")
captum = pytest.importorskip("captum.attr", reason="captum is missing: nothing to compare")

from pytorch_grad_cam import base_cam  # noqa: E402
from pytorch_grad_cam.activations_and_gradients import ActivationsAndGradients  # noqa: E402
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget  # noqa: E402

TARGETS = [ClassifierOutputTarget(1), ClassifierOutputTarget(2)]


class Net(nn.Module):
    """Two heads, as a detector has boxes and scores."""

    def __init__(self, two: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU())
        self.head, self.boxes, self.two = nn.Linear(8, 5), nn.Linear(8, 5), two

    def forward(self, x: Tensor) -> Any:
        pooled = self.body(x).mean((2, 3))
        return (self.boxes(pooled), self.head(pooled)) if self.two else self.head(pooled)


def network(two: bool = False) -> Net:
    torch.manual_seed(0)
    return Net(two).eval()


def images() -> Tensor:
    return torch.randn(2, 3, 14, 12, generator=torch.Generator().manual_seed(1))


def same(expected: Any, found: Any) -> bool:
    return max(differences(expected, found), default=0.0) < 1e-4


# an object's own way to run the model


class Picks(ActivationsAndGradients):  # type: ignore[misc]
    """A subclass that explains the second of two outputs."""

    def __call__(self, x: Tensor) -> Any:
        return super().__call__(x)[1]


class Unrelated:
    """A class of the script's own, as scripts for detectors have it."""

    def __init__(self, model: nn.Module, layers: list[nn.Module], reshape: Any) -> None:
        self.model, self.gradients, self.activations = model, [], []
        self.handles = [layer.register_forward_hook(self._keep) for layer in layers]

    def _keep(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.activations.append(output.detach())
        output.register_hook(self._keep_gradient)

    def _keep_gradient(self, gradient: Tensor) -> None:
        self.gradients = [gradient.detach(), *self.gradients]

    def __call__(self, x: Tensor) -> Any:
        self.gradients, self.activations = [], []
        boxes, scores = self.model(x)
        return scores * 2 + boxes

    def release(self) -> None:
        for handle in self.handles:
            handle.remove()


def _subclass(cam: Any) -> None:
    cam.activations_and_grads.release()
    cam.activations_and_grads = Picks(cam.model, cam.target_layers, None)


def _unrelated(cam: Any) -> None:
    cam.activations_and_grads.release()
    cam.activations_and_grads = Unrelated(cam.model, cam.target_layers, None)


def _another_class(cam: Any) -> None:
    cam.activations_and_grads.__class__ = Picks


def _another_model(cam: Any) -> None:
    body, model = cam.model.body, copy.deepcopy(cam.model)
    model.body, model.two = body, False
    cam.activations_and_grads.model = model


@pytest.mark.parametrize("bend", [_subclass, _unrelated, _another_class, _another_model])
@pytest.mark.parametrize("method", ["GradCAM", "LayerCAM", "EigenGradCAM"])
def test_an_objects_own_way_to_run_the_model(method: str, bend: Callable[[Any], None]) -> None:
    def script() -> Any:
        model = network(two=True)
        with getattr(pgc, method)(model, [model.body[2]]) as cam:
            bend(cam)
            return cam(images(), TARGETS)

    expected = script()
    with dropin.install("pytorch_grad_cam"):
        assert same(expected, script())
        assert "activations_and_grads" in str(dropin.report())


# changed methods and functions


def _weights(*args: Any) -> Any:
    return np.ones((2, 8), np.float32)


def _scaled(usual: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: usual(*args, **kwargs) * 0.5


PATCHES: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "a method of the class": (
        "GradCAM",
        lambda patch: patch.setattr(pgc.GradCAM, "get_cam_weights", _weights),
    ),
    "a method that the class did not have": (
        "GradCAM",
        lambda patch: patch.setattr(
            pgc.GradCAM,
            "get_cam_image",
            lambda self, *args: base_cam.BaseCAM.get_cam_image(self, *args) + 1,
            raising=False,
        ),
    ),
    "a method of the base": (
        "LayerCAM",
        lambda patch: patch.setattr(
            base_cam.BaseCAM,
            "aggregate_multi_layers",
            _scaled(base_cam.BaseCAM.aggregate_multi_layers),
        ),
    ),
    "a function": (
        "GradCAMPlusPlus",
        lambda patch: patch.setattr(base_cam, "scale_cam_image", _scaled(base_cam.scale_cam_image)),
    ),
    "the class that runs the model": (
        "XGradCAM",
        lambda patch: patch.setattr(
            ActivationsAndGradients,
            "__call__",
            lambda self, x: _scaled(self.model)(x * 3) + 1,
        ),
    ),
    "score-cam's weights": (
        "ScoreCAM",
        lambda patch: patch.setattr(pgc.ScoreCAM, "get_cam_weights", _weights),
    ),
}


@pytest.mark.parametrize("before", [False, True], ids=["after", "before"])
@pytest.mark.parametrize("name", PATCHES)
@pytest.mark.filterwarnings("ignore:fastcam.dropin")
def test_a_changed_pytorch_grad_cam(
    name: str, before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, change = PATCHES[name]

    def script() -> Any:
        model = network()
        with getattr(pgc, method)(model, [model.body[2]]) as cam:
            return cam(images(), TARGETS)

    with monkeypatch.context() as patch:
        usual = script()
        change(patch)
        expected = script()
    assert not same(expected, usual)
    if before:
        change(monkeypatch)
    dropin.install("pytorch_grad_cam")
    if not before:
        assert same(usual, script())
        change(monkeypatch)
    try:
        assert same(expected, script())
    finally:
        dropin.uninstall()


def test_a_changed_release_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pgc.GradCAM, "get_cam_weights", _weights)
    with pytest.warns(UserWarning, match=r"not replaced: GradCAM \(pytorch_grad_cam.grad_cam\)"):
        dropin.install("pytorch_grad_cam")


def test_a_library_without_a_known_release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastcam.dropin.takeover.known", dict)
    with pytest.warns(UserWarning, match="fastcam knows no release of captum; not replaced"):
        dropin.install("captum")


@pytest.mark.parametrize(
    ("library", "advice"),
    [("captum", "captum$"), ("pytorch_grad_cam", "grad-cam, or import fastcam.compat.pytorch_")],
)
def test_a_missing_library(library: str, advice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    advice = f"^libraries: {library} is not installed; run pip install {advice}"
    with pytest.raises(ModuleNotFoundError, match=advice):
        dropin.install(library)


TORCHCAM_PATCHES: dict[str, tuple[str, Callable[[Any, pytest.MonkeyPatch], None]]] = {
    "weights on the object": (
        "GradCAM",
        lambda cam, patch: setattr(cam, "_get_weights", lambda *args, **kwargs: [torch.ones(2, 8)]),
    ),
    "weights of the class": (
        "LayerCAM",
        lambda cam, patch: patch.setattr(
            type(cam), "_get_weights", lambda self, *args, **kwargs: [torch.ones(2, 8)]
        ),
    ),
    "masked images on the object": (
        "ScoreCAM",
        lambda cam, patch: setattr(cam, "_masked_input_chunk", _scaled(cam._masked_input_chunk)),
    ),
    "the normalization": (
        "XGradCAM",
        lambda cam, patch: patch.setattr(
            type(cam).__mro__[2], "_normalize", staticmethod(lambda cams, *args: cams * 3)
        ),
    ),
    "the backward on the object": (
        "GradCAM",
        lambda cam, patch: setattr(
            cam, "_backprop", lambda *args, **kwargs: cam.hook_g.__setitem__(0, cam.hook_a[0])
        ),
    ),
}


@pytest.mark.parametrize("name", TORCHCAM_PATCHES)
def test_a_changed_torchcam(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method, change = TORCHCAM_PATCHES[name]
    if name == "masked images on the object" and not hasattr(torchcam, "LeGrad"):
        pytest.skip("torchcam 0.4.1 has no method for them")

    def script(bent: bool, patch: pytest.MonkeyPatch) -> Any:
        model = network()
        with getattr(torchcam, method)(model, "body.2") as cam:
            if bent:
                change(cam, patch)
            scores = model(images())
            return cam([1, 2], scores, normalized=True)

    with monkeypatch.context() as patch:
        usual, expected = script(False, patch), script(True, patch)
    assert not same(expected, usual)
    dropin.install("torchcam")
    try:
        assert same(usual, script(False, monkeypatch))
        with monkeypatch.context() as patch:
            assert same(expected, script(True, patch))
    finally:
        dropin.uninstall()


def test_a_changed_captum(monkeypatch: pytest.MonkeyPatch) -> None:
    gradient = importlib.import_module("captum._utils.gradient")
    grad_cam = importlib.import_module("captum.attr._core.layer.grad_cam")

    def script() -> Any:
        model = network()
        return captum.LayerGradCam(model, model.body[2]).attribute(images(), 1).detach()

    usual = gradient.compute_layer_gradients_and_eval

    def turned(*args: Any, **kwargs: Any) -> Any:
        gradients, values = usual(*args, **kwargs)[:2]
        return tuple(-each for each in gradients), values

    plain = script()
    with monkeypatch.context() as patch:
        patch.setattr(grad_cam, "compute_layer_gradients_and_eval", turned)
        expected = script()
    assert not same(plain, expected)
    dropin.install("captum")
    assert same(plain, script()) and by_fastcam(dropin.report())
    monkeypatch.setattr(grad_cam, "compute_layer_gradients_and_eval", turned)
    assert same(expected, script())
    assert "compute_layer_gradients_and_eval has been changed" in str(dropin.report())


# edited copies beside the script

COPY = """
import json, warnings
import torch, pytorch_grad_cam
import fastcam.dropin

torch.manual_seed(0)
model = torch.nn.Sequential(
    torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
    torch.nn.Linear(4, 5),
).eval()
images = torch.randn(2, 3, 12, 12)

def maps():
    found = []
    for method in (pytorch_grad_cam.GradCAM, pytorch_grad_cam.HiResCAM):
        with method(model, [model[0]]) as cam:
            found.append(cam(images, None).tolist())
    return found

plain = maps()
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    fastcam.dropin.install("pytorch_grad_cam")
print(json.dumps([plain, maps(), [str(each.message) for each in told]]))
"""
EDITS = {
    "a formula": ("grad_cam.py", "np.mean(grads, axis=(2, 3))", "np.abs(grads).mean(axis=(2, 3))"),
    "the run": (
        "base_cam.py",
        "input_tensor = input_tensor.to(self.device)",
        "input_tensor = -input_tensor",
    ),
    "the scale": ("utils/image.py", "img = img - np.min(img)", "img = (img - np.min(img)) ** 2"),
    "the hooks": (
        "activations_and_gradients.py",
        "return self.model(x)",
        "return self.model(x) ** 3",
    ),
    "nothing but line ends": ("grad_cam.py", "\n", "\r\n"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_copy_beside_the_script(edit: str, tmp_path: Path) -> None:
    file, before, after = EDITS[edit]
    home = Path(pgc.__file__).parent
    shutil.copytree(home, tmp_path / "pytorch_grad_cam")
    edited = tmp_path / "pytorch_grad_cam" / file
    text = edited.read_bytes().decode()
    assert before in text
    edited.write_bytes(text.replace(before, after).encode())
    script = tmp_path / "script.py"
    script.write_text(COPY)

    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    expected, found, told = json.loads(done.stdout)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert any("not replaced" in each for each in told) == (edit != "nothing but line ends"), told


def test_the_installed_releases_are_known() -> None:
    for name, prints in known().items():
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        assert fingerprint(module) in prints, f"{name} is no known release's"


# the report


def test_a_call_that_raises_is_in_the_report() -> None:
    model = network()
    with dropin.install("pytorch_grad_cam"), pgc.GradCAM(model, [model.body[2]]) as cam:
        with pytest.raises(IndexError):
            cam(images(), [ClassifierOutputTarget(99)] * 2)
        (call,) = dropin.report().calls
    assert call.name == "pytorch_grad_cam.GradCAM" and call.why == "raised IndexError"


class Watched(Net):
    """Counts its runs, fails in one, and notes whether the last was recorded below its layer."""

    runs, fails_in, recorded = 0, 0, False

    def forward(self, x: Tensor) -> Any:
        Watched.runs += 1
        if Watched.runs == self.fails_in:
            raise torch.OutOfMemoryError("out of memory")
        Watched.recorded = self.body[0](x).requires_grad
        return super().forward(x)


def _by_pytorch_grad_cam(model: Net) -> Callable[[Tensor], Any]:
    cam = pgc.GradCAM(model, [model.body[2]])
    return lambda given: cam(given, TARGETS)


def _by_torchcam(model: Net) -> Callable[[Tensor], Any]:
    cam = torchcam.GradCAM(model, "body.2")
    return lambda given: cam([1, 2], model(given))


def _by_captum(model: Net) -> Callable[[Tensor], Any]:
    cam = captum.LayerGradCam(model, model.body[2])
    return lambda given: cam.attribute(given, torch.tensor([1, 2])).detach()


EXPLAINS = {
    "pytorch_grad_cam": _by_pytorch_grad_cam,
    "torchcam": _by_torchcam,
    "captum": _by_captum,
}


@pytest.mark.parametrize("run", range(1, 5))
@pytest.mark.parametrize("library", EXPLAINS)
def test_out_of_memory_is_raised_and_forgotten(
    library: str, run: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Watched, "runs", 0)
    model = Watched().eval()
    with dropin.install(library):
        explain = EXPLAINS[library](model)
        monkeypatch.setattr(Watched, "fails_in", run)
        with pytest.raises(torch.OutOfMemoryError):
            explain(images())
        explain(images())
        assert not Watched.recorded


@pytest.mark.parametrize("library", EXPLAINS)
def test_a_failed_first_call_is_forgotten(library: str) -> None:
    model = Watched().eval()
    with dropin.install(library):
        explain = EXPLAINS[library](model)
        with pytest.raises(RuntimeError):
            explain(images()[:, :2])
        explain(images())
        assert not Watched.recorded


# threads and interrupts


def _in_force() -> list[Any]:
    owners = (base_cam.BaseCAM, pgc.ScoreCAM, pgc.GuidedBackpropReLUModel, captum.LayerGradCam)
    owners += (torchcam.GradCAM.__mro__[1], torchcam.GradCAM.__mro__[2])
    found: list[Any] = [dict(vars(owner)) for owner in owners]
    return [*found, base_cam.scale_cam_image.__code__, ActivationsAndGradients.__dict__.keys()]


def test_threads_that_install_and_uninstall() -> None:
    before = _in_force()

    def work() -> None:
        for _ in range(5):
            dropin.install("pytorch_grad_cam")
            dropin.uninstall()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    dropin.uninstall()
    assert _in_force() == before


class Interrupt:
    """Raises KeyboardInterrupt at the line of that number in the drop-in's own files."""

    def __init__(self, line: int) -> None:
        self.left, self.raised = line, False

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        if "/fastcam/dropin/" not in frame.f_code.co_filename:
            return None
        if event == "line" and frame.f_code.co_name not in ("fingerprint", "_source", "_is_code"):
            self.left -= 1
            if self.left == 0:
                self.raised = True
                raise KeyboardInterrupt
        return self


@pytest.mark.parametrize("library", ["pytorch_grad_cam", "captum"])
def test_an_interrupt_at_any_line(library: str) -> None:
    before = _in_force()
    dropin.install(library)
    dropin.uninstall()
    line, step = 0, 1
    while True:
        line += step
        interrupt = Interrupt(line)
        sys.settrace(interrupt)
        try:
            dropin.install(library)
            dropin.uninstall()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        dropin.uninstall()
        assert _in_force() == before, line
        if not interrupt.raised:
            break
        step = 1 if line < 10 else 61
    assert line > 100
