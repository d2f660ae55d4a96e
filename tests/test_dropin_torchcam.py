"""torchcam's own answers, and the same scripts with fastcam in its place."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import Signal, Wrapped
from torch import Tensor, nn

import fastcam
from fastcam import dropin

methods = pytest.importorskip("torchcam.methods", reason="torchcam is missing")
from torchcam import metrics  # noqa: E402

NEWEST = hasattr(methods, "LeGrad")
since_newest = pytest.mark.skipif(not NEWEST, reason="torchcam 0.4.1 has no such thing")
CLASSES = [1, 4, 2]
Script = Callable[[], Any]


class Net(nn.Module):
    """A residual network of milliseconds whose layers are followed by operations in place."""

    def __init__(self, dims: int = 2) -> None:
        super().__init__()
        conv: Any = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
        norm: Any = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims]
        self.stem = conv(3, 6, 3, stride=2)
        self.relu = nn.ReLU(inplace=True)
        self.block = nn.Sequential(conv(6, 6, 3, padding=1), norm(6))
        self.features = conv(6, 8, 2)
        self.head = nn.Linear(8, 5)
        self.dims = tuple(range(2, 2 + dims))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        x = x + self.relu(self.block(x))
        x = self.features(x)
        return self.head(self.relu(x).mean(self.dims))


def net(dims: int = 2) -> nn.Module:
    torch.manual_seed(3)
    model = Net(dims)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model.eval()


def images(count: int = 3, dims: int = 2) -> Tensor:
    extents = (14, 17) if dims == 2 else (6, 12, 14)
    return torch.randn(count, 3, *extents, generator=torch.Generator().manual_seed(5))


def served() -> set[tuple[str, str]]:
    return {(call.name, call.served_by) for call in dropin.report().calls}


def compare(script: Script, *, by: str | None = "fastcam", atol: float = 1e-6) -> Any:
    """Runs a script as it is, and taken over; both have to give the same."""
    torch.manual_seed(0)
    expected = script()
    dropin.forget()
    with dropin.install("torchcam"):
        torch.manual_seed(0)
        found = script()
    assert_same(found, expected, atol)
    if by is not None:
        assert {library for _, library in served()} == {by}, dropin.report()
        assert sum(dropin.report().calls.values()) >= 1
    return found


def assert_same(found: Any, expected: Any, atol: float) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other, atol)
    elif isinstance(expected, Tensor):
        assert found.requires_grad == expected.requires_grad
        assert found.is_inference() == expected.is_inference()
        scale = float(expected.detach().abs().nan_to_num().max()) if expected.numel() else 0.0
        limit = atol * max(scale, 1e-30) + 1e-30
        torch.testing.assert_close(found, expected, rtol=0, atol=limit, equal_nan=True)
    else:
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-7)


GRADIENT = ["GradCAM", "GradCAMpp", "XGradCAM", "LayerCAM"]
LAYERS: dict[str, Any] = {
    "conv": "features",
    "in place behind": "block",
    "in place": "relu",
    "several": ["stem", "block", "features"],
}


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("name", [*GRADIENT, "SmoothGradCAMpp"])
def test_gradient_methods(name: str, layers: str, normalized: bool) -> None:
    if layers == "in place" and not NEWEST:
        pytest.skip("torchcam 0.4.1 mixes the first and last run of a layer, of other shapes here")
    model, x = net(), images()

    def script() -> list[Tensor]:
        answers = []
        for class_idx in (2, CLASSES):
            with getattr(methods, name)(model, LAYERS[layers]) as cam:
                scores = model(x)
                answers += cam(class_idx, scores, normalized)
                answers += [scores.detach(), *cam.hook_a, *cam.hook_g]
        return answers

    compare(script, atol=1e-5)


@pytest.mark.parametrize("name", ["GradCAM", "SmoothGradCAMpp", "ScoreCAM"])
def test_a_second_class_after_one_forward_and_targets_that_are_functions(name: str) -> None:
    model, x = net(), images()

    def script() -> list[Tensor]:
        with getattr(methods, name)(model, "features") as cam:
            scores = model(x)
            retain = {} if name == "ScoreCAM" else {"retain_graph": True}
            found = cam(1, scores, **retain) + cam(CLASSES, scores, **retain)
            targets = [lambda s, i=i: s[i] * 2 for i in CLASSES]
            return found + (cam(scores=scores, targets=targets) if NEWEST else [])

    compare(script, by=None, atol=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", ["CAM", "ScoreCAM", "SSCAM", "ISCAM"])
def test_methods_without_gradients(name: str, dims: int) -> None:
    model, x = net(dims), images(2, dims)
    options = {"SSCAM": {"num_samples": 3, "batch_size": 5}, "ScoreCAM": {"batch_size": 3}}

    def script() -> list[Tensor]:
        answers = []
        for mode in (torch.inference_mode, torch.enable_grad):
            with getattr(methods, name)(model, "features", **options.get(name, {})) as cam:
                with mode():
                    model(x)
                for class_idx in (3, [0, 4]):
                    answers += cam(class_idx) + cam(class_idx, normalized=False)
        return answers

    compare(script, atol=1e-4)


def test_score_cam_runs_constant_channels_once() -> None:
    model, x = net(), images(2)
    with torch.no_grad():
        model.stem.weight[:4] = 0
        model.stem.bias[:4] = 1
    rows: list[int] = []

    def script() -> list[Tensor]:
        with methods.ScoreCAM(model, "stem", batch_size=4) as cam:
            model(x)
            handle = model.register_forward_hook(lambda m, a, o: rows.append(len(a[0])))
            try:
                return cam(CLASSES[:2])
            finally:
                handle.remove()

    compare(script, atol=1e-5)
    assert rows[: rows.index(2) + 1] and sum(rows) == (2 + 12) + 2 * (2 + 1)


@since_newest
@pytest.mark.parametrize("base", GRADIENT)
def test_methods_on_top_of_others_are_one_call(base: str) -> None:
    model, x = net(), images()
    method = getattr(methods, base)

    def refined() -> list[Tensor]:
        with methods.RefineCAM(model, ["stem", "features"], base_method=method) as cam:
            return cam(CLASSES, model(x)) + cam(2, model(x), target_shape=(20, 21))

    def finer() -> list[Tensor]:
        with methods.FinerCAM(model, "features", base_method=method) as cam:
            return cam(CLASSES, model(x)) + cam(2, model(x), comparison_idx=[0, 3])

    compare(refined, atol=1e-5)
    assert dropin.report().calls.keys() and sum(dropin.report().calls.values()) == 2
    if base != "XGradCAM":
        compare(finer, atol=1e-5)
        assert {name for name, _ in served()} == {"torchcam.FinerCAM"}


@pytest.mark.parametrize("shape", [None, (9, 11)])
def test_fused_maps(shape: Any) -> None:
    maps = [torch.rand(2, 3, 4), torch.rand(2, 7, 5), torch.rand(2, 7, 5)]
    volumes = [torch.rand(2, 3, 4, 2), torch.rand(2, 3, 5, 3)]

    def script() -> list[Tensor]:
        found = [methods.GradCAM.fuse_cams(maps, shape), methods.LayerCAM.fuse_cams(maps, shape)]
        if NEWEST:
            found.append(methods.RefineCAM.fuse_cams(maps, shape))
            found += [methods.RefineCAM.fuse_cams(maps, shape, False)]
        return [*found, methods.GradCAM.fuse_cams(volumes), methods.CAM.fuse_cams(maps[:1])]

    compare(script)


def test_fused_maps_keep_their_graph() -> None:
    maps = [torch.rand(1, 3, 4, requires_grad=True), torch.rand(1, 6, 5, requires_grad=True)]

    def script() -> list[Tensor]:
        fused = methods.GradCAM.fuse_cams(maps)
        return [fused, *torch.autograd.grad(fused.sum(), maps)]

    compare(script, by="torchcam")


def transformer(frozen: bool = False) -> nn.Module:
    models = pytest.importorskip("torchvision.models", reason="torchvision is missing")
    torch.manual_seed(0)
    model = models.VisionTransformer(32, 8, 4, 2, 16, 32, num_classes=5).eval()
    torch.nn.init.normal_(model.heads.head.weight)
    return model.requires_grad_(not frozen)


@since_newest
@pytest.mark.parametrize("frozen", [False, True])
def test_legrad(frozen: bool) -> None:
    model = transformer(frozen)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))

    def script() -> list[Tensor]:
        with methods.LeGrad(model, list(model.encoder.layers)[-2:]) as cam:
            return cam([3, 1], model(x)) + cam(2, model(x), normalized=False)

    compare(script)
    (call,) = dropin.report().calls
    assert "begins at the first target layer" in call.why


@since_newest
def test_transformer_with_reshape() -> None:
    model = transformer()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))

    def grid(tokens: Tensor) -> Tensor:
        return tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 4))

    layer = "encoder.layers.encoder_layer_3.ln_1"

    def script() -> list[Tensor]:
        with methods.GradCAM(model, layer, reshape_transform=grid) as cam:
            return cam([3, 1], model(x))

    compare(script)


def test_half_precision_and_float64() -> None:
    model, x = net(), images()

    def script() -> list[Tensor]:
        found = []
        for dtype in (torch.float64, torch.bfloat16):
            other = copy.deepcopy(model).to(dtype)
            with methods.LayerCAM(other, "features") as cam:
                found += cam(CLASSES, other(x.to(dtype)), normalized=dtype == torch.float64)
        return found

    compare(script, atol=2e-2)


def test_nan_and_infinity_count_as_in_torchcam() -> None:
    model, x = net(), images(3)
    x[1, 0, 2, 2] = torch.nan
    x[2, 0, 2, 2] = torch.inf

    def script() -> list[Tensor]:
        found = []
        for name in ("GradCAM", "LayerCAM", "XGradCAM", "GradCAMpp"):
            with getattr(methods, name)(model, "features") as cam:
                found += cam(CLASSES, model(x), normalized=False)
        with methods.CAM(model, "features") as cam:
            model(x)
            return found + cam(1, normalized=False)

    for maps in compare(script, atol=1e-4):
        assert maps[0].isfinite().all()


def test_other_shapes_go_to_torchcam() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x).relu())

    torch.manual_seed(0)
    model, x = Flat().eval(), torch.randn(3, 4)

    def script() -> list[Tensor]:
        with methods.LayerCAM(model, "first") as cam:
            return cam(1, model(x))

    compare(script, by="torchcam")


def test_one_dimension() -> None:
    torch.manual_seed(0)
    model, x = Signal().eval(), torch.randn(2, 2, 64)

    def script() -> list[Tensor]:
        with methods.GradCAM(model, ["features.3", "features"]) as cam:
            return cam(1, model(x))

    compare(script, atol=1e-5)

    def score() -> list[Tensor]:
        with methods.ScoreCAM(model, "features") as cam:
            model(x)
            return cam(1)

    for installed in (False, True):
        if installed:
            dropin.install("torchcam")
        with pytest.raises((ValueError, RuntimeError)):
            score()
    if not NEWEST:
        return  # its masks are enlarged before they come to a function that is taken over
    dropin.install("torchcam", fix=True)
    (maps,) = score()
    expected = fastcam.ScoreCAM(model, "features")(x, 1, size="layer")
    torch.testing.assert_close(maps, expected, rtol=0, atol=1e-5)


def test_a_layer_in_place_whose_input_is_read() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.act = net(), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.inner.features(self.inner.relu(self.inner.stem(x)))
            self.act(x)
            return self.inner.head(x.mean((2, 3)))

    model, x = Reads().eval(), images()

    def script() -> list[Tensor]:
        with methods.GradCAM(model, "act") as cam:
            return cam(CLASSES, model(x))

    compare(script)


@pytest.mark.parametrize("name", ["GradCAM", "GradCAMpp"])
def test_a_layer_that_runs_at_two_scales(name: str) -> None:
    """torchcam 0.4.1 takes the activations of the last run, and the gradient of the first."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.conv = net(), nn.Conv2d(6, 6, 3, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(self.inner.stem(x).tanh()).tanh()
            return self.inner.head(
                self.inner.features(self.conv(F.pad(x, (2, 2, 2, 2)))).mean((2, 3))
            )

    torch.manual_seed(0)
    model, x = Twice().eval(), images()

    def script() -> list[Tensor]:
        with getattr(methods, name)(model, "conv") as cam:
            return cam(CLASSES, model(x), normalized=False)

    compare(script)


@pytest.mark.skipif(NEWEST, reason="torchcam 0.5.0 takes scores of the last forward alone")
@pytest.mark.parametrize("name", GRADIENT)
def test_scores_of_an_earlier_forward(name: str) -> None:
    model, x = net(), images()

    def script() -> list[Tensor]:
        with getattr(methods, name)(model, ["block", "features"]) as cam:
            first, second = model(x), model(x.flip(0))
            return cam(1, first, retain_graph=True) + cam(CLASSES, second) + cam(2, first)

    compare(script)


# --- A user's own classes and hooks


def test_subclasses_keep_their_weights() -> None:
    class Mine(methods.GradCAM):
        def _get_weights(self, class_idx: Any, scores: Tensor, **kwargs: Any) -> list[Tensor]:
            return [2 - w for w in super()._get_weights(class_idx, scores, **kwargs)]

    class Noisy(methods.ScoreCAM):
        def _score_input(self, *args: Any) -> Any:
            return super()._score_input(*args) * 3

    model, x = net(), images()

    def script() -> list[Tensor]:
        with Mine(model, "features") as cam, methods.GradCAM(model, "block") as other:
            found = cam(1, scores := model(x), retain_graph=True) + other(1, scores)
        with Noisy(model, "features") as cam:
            model(x)
            return found + cam(2)

    compare(script, by=None)
    reasons = {call.name: call.why for call in dropin.report().calls}
    assert "_score_input" in reasons["torchcam.Noisy"] or not NEWEST  # 0.4.1 calls no such method
    assert "other hooks" in reasons["torchcam.GradCAM"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda model, x: model.train(), "in training mode"),
        (lambda model, x: model.head.train(), "in training mode"),
        (lambda model, x: x.requires_grad_(), "input requires"),
        (lambda model, x: vars(model.block).update(forward=model.block.forward), "forward of"),
        (lambda model, x: model.stem.register_forward_hook(lambda *a: None), "other hooks"),
        (
            lambda model, x: model.head.register_full_backward_hook(lambda *a: None),
            "backward hooks",
        ),
        (lambda model, x: None, ""),
    ],
)
def test_the_graph_is_whole_where_it_may_be_needed(change: Any, reason: str) -> None:
    model, x = net(), images()
    change(model, x)
    dropin.install("torchcam")
    with methods.GradCAM(model, "features") as cam:
        scores = model(x)
        cam(1, scores, retain_graph=True)
        gradients = torch.autograd.grad(
            scores.sum(), [model.stem.weight, model.head.weight], allow_unused=True
        )
    assert (gradients[0] is not None) == bool(reason) and gradients[1] is not None
    (call,) = dropin.report().calls
    assert reason in call.why if reason else "begins at the first" in call.why


def test_a_forward_set_on_an_object_runs_as_often_as_the_user_runs_it() -> None:
    model, x = net(), images()
    plain, runs = model.forward, []

    def counting(images: Tensor) -> Tensor:
        runs.append(len(images))
        return plain(images) * len(runs)

    vars(model)["forward"] = counting

    def script() -> list[Tensor]:
        runs.clear()
        with methods.GradCAM(model, "features") as cam:
            return cam(1, model(x), normalized=False) + cam(1, model(x), normalized=False)

    compare(script)
    assert runs == [3, 3]


def test_extractors_together_begin_at_the_lowest_layer() -> None:
    model, x = net(), images()

    def script() -> list[Tensor]:
        with methods.GradCAM(model, "features") as high, methods.GradCAMpp(model, "stem") as low:
            scores = model(x)
            found = high(1, scores, retain_graph=True) + low(1, scores, retain_graph=True)
            low.disable_hooks()
            return found + high(CLASSES, model(x))

    compare(script)
    assert any("begins at the first" in call.why for call in dropin.report().calls)


@pytest.mark.parametrize("before", ["grad", "no_grad"])
def test_a_model_that_fails_leaves_grad_mode(before: str) -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()
            self.error: BaseException | None = None

        def forward(self, x: Tensor) -> Tensor:
            x = self.inner.stem(x)
            if self.error is not None:
                raise self.error
            return self.inner.head(self.inner.features(x).mean((2, 3)))

    model, x = Fails().eval(), images()
    dropin.install("torchcam")
    with methods.GradCAM(model, "inner.features") as cam:
        enabled = before == "grad"
        assert model(x).grad_fn is not None and torch.is_grad_enabled()
        for error in (RuntimeError("network"), KeyError("network")):
            model.error = error
            with torch.set_grad_enabled(enabled):
                with pytest.raises(type(error), match="network"):
                    model(x)
                assert torch.is_grad_enabled() == enabled
        model.error = None
        cam(1, model(x))
        # no hook is called on Ctrl-C: the next forward, or the extractor's end, puts it right
        model.error = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            model(x)
        model.error = None
        scores = model.train()(x)
        assert torch.autograd.grad(scores.sum(), model.inner.stem.weight)[0].any()
        model.eval().error = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            model(x)
    assert torch.is_grad_enabled()
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_a_model_that_calls_itself() -> None:
    class Flips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()

        def forward(self, x: Tensor, flip: bool = True) -> Tensor:
            if flip:
                return self(x.flip(-1), flip=False) + self(x, flip=False)
            return self.inner(x)

    model, x = Flips().eval(), images()

    def script() -> list[Tensor]:
        with methods.GradCAM(model, "inner.features") as cam:
            scores = model(x)
            assert torch.is_grad_enabled()
            return cam(1, scores)

    compare(script)


@pytest.mark.parametrize("inside", [True, False])
def test_a_model_that_sets_grad_modes_itself(inside: bool) -> None:
    class Sets(nn.Module):
        """A part runs in a mode of its own, which ends before the head: with the layer or below."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = net()

        def forward(self, x: Tensor) -> Tensor:
            inner = self.inner
            with torch.enable_grad():
                x = inner.relu(inner.stem(x))
                x = inner.features(x) if inside else x
            x = x if inside else inner.features(x)
            return inner.head(inner.relu(x).mean((2, 3)))

    model, x = Sets().eval(), images()

    def script() -> list[Tensor]:
        with methods.GradCAM(model, "inner.features") as cam:
            return cam(1, model(x)) + cam(CLASSES, model(x))

    compare(script)
    assert inside == any("grad modes itself" in call.why for call in dropin.report().calls)


def test_errors_are_torchcams() -> None:
    model, x = net(), images()
    frozen = net().requires_grad_(False)
    layer: Any
    cases: list[Callable[[], Any]] = []
    for layer in ("feature", 3, []):
        cases.append(lambda layer=layer: methods.GradCAM(model, layer)(1, model(x)))
    cam = methods.GradCAM(model, "features")
    cases += [
        lambda: cam(1, None),
        lambda: cam(-1, model(x)),
        lambda: cam([1, 2], model(x)),
        lambda: cam(),
        lambda: cam(7, model(x)),
        lambda: cam(1, model(x), unknown=1),
        lambda: methods.GradCAM(model, "features")(1, torch.ones(3, 5)),
        lambda: cam(1, torch.ones(3, 5)),
        lambda: methods.GradCAM(frozen, "features")(1, frozen(x)),
        lambda: methods.GradCAM.fuse_cams([]),
        lambda: methods.GradCAM.fuse_cams(torch.ones(1, 2, 2)),
        lambda: methods.GradCAM.fuse_cams([torch.ones(1, 2, 2), torch.ones(1, 3)]),
        lambda: wrapped_cam(),
    ]
    if NEWEST:
        cases += [
            lambda: methods.RefineCAM.fuse_cams([]),
            lambda: methods.RefineCAM.fuse_cams([torch.ones(1, 2, 2), 1]),
            lambda: methods.RefineCAM(model, "features"),
            lambda: methods.FinerCAM(model, "features")(9, model(x)),
            lambda: methods.LeGrad(model, "features"),
        ]

    def wrapped_cam() -> Any:
        tuples = Wrapped(model, lambda answer: {"logits": answer})
        with methods.GradCAM(tuples, "inner.features") as other:
            return other(1, tuples(x))

    def outcome(case: Callable[[], Any]) -> Any:
        with torch.enable_grad():
            try:
                return case()
            except Exception as error:
                return type(error), str(error)

    expected = [outcome(case) for case in cases]
    with dropin.install("torchcam"):
        found = [outcome(case) for case in cases]
    cam.remove_hooks()
    for one, other in zip(found, expected, strict=True):
        assert one == other
        assert isinstance(one, tuple) or not NEWEST  # 0.4.1 has no maps of no layers


# --- What belongs to the user


def test_objects_made_before_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = net(), images()
    old = methods.GradCAM(model, "features")
    expected = old(1, model(x))
    dropin.install("torchcam")
    assert_same(old(1, model(x)), expected, 1e-6)
    old.remove_hooks()
    new = methods.GradCAM(model, "features")
    assert isinstance(new, methods.GradCAM) and methods.GradCAM.__name__ == "GradCAM"
    assert_same(new(1, model(x)), expected, 1e-6)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(net())):
        other.load_state_dict(model.state_dict())
    new.reset_hooks()
    stored = io.BytesIO()
    torch.save(model, stored)
    stored.seek(0)
    again = torch.load(stored, weights_only=False)
    assert again(x).requires_grad  # its hooks came along, as torchcam's do
    dropin.uninstall()
    dropin.forget()
    runs = []
    forward = Net.forward
    monkeypatch.setattr(Net, "forward", lambda *args: runs.append(1) or forward(*args))
    scores = model(x)
    assert len(runs) == 1
    assert torch.autograd.grad(scores.sum(), model.stem.weight, retain_graph=True)[0] is not None
    assert_same(new(1, scores), expected, 1e-6)
    assert not dropin.report().calls
    new.remove_hooks()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_installed_before_the_import() -> None:
    script = """
import sys
import fastcam.dropin
fastcam.dropin.install("torchcam")
assert "torchcam" not in sys.modules
import torch, torchcam, torchcam.methods
from torchcam.utils import overlay_mask
from PIL import Image
overlay_mask(Image.new("RGB", (8, 8)), Image.new("F", (4, 4)))
model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(2), torch.nn.LazyLinear(1),
                            torch.nn.Flatten()).eval()
model(torch.zeros(1, 3, 8, 8))
with torchcam.methods.GradCAM(model, "0") as cam:
    cam(1, model(torch.zeros(1, 3, 8, 8)))
print(fastcam.dropin.report())
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert len(lines) == 2 and all(" fastcam " in line for line in lines), ran.stdout


def test_uninstall_restores_everything() -> None:
    import torchcam.methods.activation as activation
    import torchcam.methods.core as core
    import torchcam.methods.gradient as gradient
    import torchcam.utils

    modules: list[Any] = [core, activation, gradient, metrics, torchcam.utils]
    if NEWEST:
        import torchcam.explain

        modules.append(torchcam.explain)

    def everything() -> dict[str, Any]:
        found: dict[str, Any] = {}
        for module in modules:
            for name, value in vars(module).items():
                if isinstance(value, type) and value.__module__.startswith("torchcam"):
                    for key, own in vars(value).items():
                        found[f"{value.__qualname__}.{key}"] = own
                        if hasattr(own, "__code__"):
                            found[f"{value.__qualname__}.{key} code"] = own.__code__
                elif hasattr(value, "__code__"):
                    found[name] = (value, value.__code__, value.__kwdefaults__, value.__defaults__)
        return found

    before = everything()
    dropin.install("torchcam")
    assert everything() != before
    dropin.uninstall()
    assert everything() == before


def test_the_model_is_left_as_found() -> None:
    model, x = net(), images()
    state = copy.deepcopy(model.state_dict())
    dropin.install("torchcam")
    for name in (*GRADIENT, "SmoothGradCAMpp", "ScoreCAM", "SSCAM", "ISCAM", "CAM"):
        options = {"num_samples": 2} if name in ("SSCAM", "SmoothGradCAMpp", "ISCAM") else {}
        with getattr(methods, name)(model, "features", **options) as cam:
            cam(1, model(x))
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])
    assert all(p.requires_grad for p in model.parameters())
    below = model.parameters() if NEWEST else model.block.parameters()  # 0.4.1 fills .grad
    assert all(p.grad is None for p in below)
    assert not any(m.training or m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not x.requires_grad and x._version == 0


@since_newest  # 0.4.1 raises at the forward
def test_identity_layers_do_not_touch_the_users_images() -> None:
    class Front(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.same, self.inner = nn.Identity(), net()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(self.same(x))

    model, x = Front().eval(), images()
    dropin.install("torchcam")
    with methods.GradCAM(model, "same") as cam:
        scores = model(x)
        with pytest.raises(RuntimeError, match="not connected"):  # as without the drop-in
            cam(1, scores)
    assert not x.requires_grad and x._version == 0


def test_peak_memory_below_the_layer_is_that_of_inference() -> None:
    torch.manual_seed(0)
    deep = nn.Sequential(*[nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Tanh())] * 20)
    model = nn.Sequential(deep, nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    x = torch.randn(2, 3, 32, 32)

    def nodes(scores: Tensor) -> int:
        seen, waiting = set(), [scores.grad_fn]
        while waiting:
            node = waiting.pop()
            if node is not None and node not in seen:
                seen.add(node)
                waiting += [each for each, _ in node.next_functions]
        return len(seen)

    counts = []
    for installed in (False, True):
        if installed:
            dropin.install("torchcam")
        with methods.GradCAM(model, "1") as cam:
            scores = model(x)
            counts.append(nodes(scores))
            cam(1, scores)
    assert counts[0] > 40 and counts[1] < 8


# --- Metrics, pictures, explain


def test_metrics() -> None:
    model, x = net(), images()
    softmax = torch.nn.Softmax(-1)

    def script() -> list[float]:
        found = []
        for name in ("ClassificationMetric", "DeletionInsertionMetric")[: 1 + NEWEST]:
            metric = getattr(metrics, name)
            for method in (methods.GradCAM, methods.LayerCAM):
                with method(model, ["block", "features"]) as cam:
                    counted = metric(cam, softmax)
                    counted.update(x)
                    counted.update(x, CLASSES if NEWEST else 3)
                    counted.update(x.clone().requires_grad_(), 2)
                    found += counted.summary().values()
        return found

    compare(script)
    assert sum(dropin.report().calls.values()) == 6 * (1 + NEWEST)
    assert all("Metric" in call.name for call in dropin.report().calls)


@since_newest
def test_explain() -> None:
    from torchcam.explain import explain

    model, x = net().requires_grad_(False), images(1)

    def script() -> list[Any]:
        found: list[Any] = []
        for method in (methods.GradCAM, methods.ScoreCAM, methods.LayerCAM):
            layers = ["block", "features"] if method is methods.LayerCAM else "features"
            answer = explain(model, x, expected_class_idx=4, target_layer=layers, method=method)
            found += [answer.logits, answer.predicted_class_idx]
            found += [maps for key in sorted(answer.cams) for maps in answer.cams[key]]
        return found

    compare(script)
    assert {name for name, _ in served()} == {"torchcam.explain"}


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("size", [(7, 5), (64, 48), (640, 480)])
def test_overlay_mask(mode: str, size: tuple[int, int]) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is missing")
    from torchcam.utils import overlay_mask

    if mode == "L" and not NEWEST:
        pytest.skip("torchcam 0.4.1 takes no gray images")
    rng = np.random.default_rng(0)
    picture = image.fromarray(rng.integers(0, 256, (*size[::-1], 3), np.uint8)).convert(mode)
    levels = rng.random((7, 9), np.float32)
    levels[0, 0], levels[3, 3] = 1, 0
    mask = image.fromarray(levels)

    def script() -> list[Any]:
        found = []
        for options in ({}, {"colormap": "viridis", "alpha": 0.25}, {"colormap": "tab10"}):
            overlay = overlay_mask(picture, mask, **options)
            assert overlay.mode == "RGB" and overlay.size == size
            found.append(torch.from_numpy(np.array(overlay)).int())
        return found

    compare(script, atol=0)


def test_overlay_mask_of_other_kinds_goes_to_torchcam() -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is missing")
    from torchcam.utils import overlay_mask

    picture = image.new("RGB", (20, 10), (9, 200, 30))
    levels = np.random.default_rng(0).random((4, 5), np.float32)
    small = image.fromarray((levels * 255).astype(np.uint8))
    levels[0, 0] = np.nan
    holes = image.fromarray(levels)

    def script() -> list[Any]:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            overlays = [overlay_mask(picture, mask) for mask in (small, holes)]
        return [torch.from_numpy(np.array(overlay)).int() for overlay in overlays]

    compare(script, by="torchcam", atol=0)
    for wrong in (2.0, 1, -0.5):
        for installed in (False, True):
            if installed:
                dropin.install("torchcam")
            with pytest.raises(ValueError, match="alpha"):
                overlay_mask(picture, small, alpha=wrong)
            dropin.uninstall()
    dropin.install("torchcam", fix=True)
    fixed = np.array(overlay_mask(picture, small))
    dropin.uninstall()
    exact = image.fromarray(np.asarray(small, np.float32) / 255)
    assert (fixed == np.array(overlay_mask(picture, exact))).all()


# --- What is put right, and what is fast


def test_fix() -> None:
    model, x = net(), images()
    with dropin.install("torchcam", fix=True):
        with methods.GradCAMpp(model, "features") as cam:
            (maps,) = cam(CLASSES, model(x), normalized=False)
        with methods.GradCAM(model, "features") as cam:
            frozen = net().requires_grad_(False)
            with methods.GradCAM(frozen, "features") as other:
                (same,) = other(1, frozen(x))
            assert_same(cam(1, model(x)), [same], 1e-6)
        with methods.ScoreCAM(model, "features") as cam:
            model(x)
            (masked,) = cam(CLASSES)

    class Head(nn.Module):
        """torchcam's activations are those after an operation in place: here that is a layer."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.layer = net(), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            inner = self.inner
            x = inner.relu(inner.stem(x))
            x = inner.features(x + inner.relu(inner.block(x)))
            return inner.head(self.layer(x).mean((2, 3)))

    after = Head().eval()
    options: Any = {"size": "layer", "normalize": False}
    expected = fastcam.GradCAMPlusPlus(after, "layer")(x, CLASSES, **options)
    if NEWEST:  # 0.4.1 takes the gradient from before the operation in place
        torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-6)
    expected = fastcam.ScoreCAM(after, "layer")(x, CLASSES, size="layer")
    torch.testing.assert_close(masked, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("eps", [None, 1e-3])
@pytest.mark.parametrize("broken", [False, True])
def test_fixed_grad_cam_pp_keeps_the_papers_sum(broken: bool, eps: float | None) -> None:
    """sum(A) of negative activations; products that are NaN are left out, as by torchcam."""
    model, x = net(), images()
    model.relu.inplace = False
    with dropin.install("torchcam", fix=True), methods.GradCAMpp(model, "features") as cam:
        scores = model(x)
        if broken:
            cam.hook_a[0][1, 2, 3, 1] = torch.nan
        (maps,) = cam(CLASSES, scores, normalized=False, **({"eps": eps} if eps else {}))
        a, g = cam.hook_a[0].detach().double(), cam.hook_g[0].double()
    assert (a < 0).any()
    denominator = 2 * g**2 + a.sum((2, 3), keepdim=True) * g**3 + (eps or 0)
    alpha = torch.where(denominator == 0, 0, g**2 / denominator)
    products = (alpha * g.relu()).sum((2, 3), keepdim=True) * a
    expected = products.nansum(1).relu().float()
    assert expected.isfinite().all() and expected.flatten(1).any(1).all()
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-6)


def test_fixed_smooth_grad_cam() -> None:
    model, x = net(), images()
    model.relu.inplace = False
    torch.manual_seed(4)
    with dropin.install("torchcam", fix=True), methods.SmoothGradCAMpp(model, "features") as cam:
        model(x)
        clean = cam.hook_a[0].clone()
        (maps,) = cam(CLASSES, normalized=False)
    torch.manual_seed(4)
    draw = torch.distributions.Normal(0, 0.3).sample
    gradients = []
    for _ in range(4):
        outputs: list[Tensor] = []
        handle = model.features.register_forward_hook(lambda m, a, o, to=outputs: to.append(o))
        scores = model(x + draw(x.shape)).gather(1, torch.tensor(CLASSES)[:, None]).sum()
        handle.remove()
        gradients.append(torch.autograd.grad(scores, outputs)[0].double())
    g = torch.stack(gradients)
    second, third = (g**2).mean(0), (g**3).mean(0)
    total = clean.double().sum((2, 3), keepdim=True)
    denominator = 2 * second + total * third
    alpha = torch.where(denominator == 0, 0, second / denominator)
    weights = (alpha * g.mean(0).relu()).sum((2, 3))
    expected = F.relu((weights[:, :, None, None] * clean).sum(1)).float()
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-6)


def test_fast_score_cam(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    class Copy:
        """In the place of the copy, which takes seconds to compile."""

        is_stale = False

        def __init__(self, model: nn.Module, inputs: Tensor, *others: Any) -> None:
            assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
            self.source = model
            self.model = copy.deepcopy(model)

        def prepared(self, inputs: Tensor) -> Tensor:
            ran.append(len(inputs))
            return inputs

    monkeypatch.setattr("fastcam.engine.fast.model.FastModel", Copy)
    model, x = net(), images()
    with methods.ScoreCAM(model, "features") as cam, methods.GradCAM(model, "block") as other:
        model(x)
        other.disable_hooks()  # without a gradient 0.4.1 fails
        expected = cam(CLASSES)
        hooks = [list(m._forward_hooks) for m in model.modules()]
        with dropin.install("torchcam", fast=True):
            assert_same(cam(CLASSES), expected, 1e-5)
        assert hooks == [list(m._forward_hooks) for m in model.modules()]
    assert 0 < sum(ran) <= 24  # constant channels share a run


def test_a_users_own_backward_of_a_short_graph_warns() -> None:
    model, given = net(), images()
    with dropin.install("torchcam"), methods.GradCAM(model, "features") as cam:
        scores = model(given)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            cam(CLASSES, scores, retain_graph=True)
        with pytest.warns(UserWarning, match="no gradient to parameters at and below the target"):
            scores.sum().backward()
        assert model.get_submodule("stem").weight.grad is None
        cam.disable_hooks()
        model(given).sum().backward()
        assert model.get_submodule("stem").weight.grad is not None
