"""The classes of pytorch-grad-cam's names beside the originals."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from side_by_side import differences
from torch import Tensor, nn

import fastcam.compat.pytorch_grad_cam as compat
from fastcam import dropin
from fastcam.compat.pytorch_grad_cam import base_cam

peer = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is missing")
from pytorch_grad_cam.utils.model_targets import (  # noqa: E402
    ClassifierOutputSoftmaxTarget,
    ClassifierOutputTarget,
)

NEWEST = hasattr(peer, "SESS")
"""Whether the release is 1.5.7, whose answers these are; otherwise it is 1.5.5."""
TARGETS = [ClassifierOutputTarget(1), ClassifierOutputTarget(3)]

newest_only = pytest.mark.skipif(not NEWEST, reason="1.5.5 has no such class")


def network(classes: int = 5) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3, 2), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(72, classes)),
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model.eval()


def images(height: int = 20, width: int = 26) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def assert_same(script: Callable[[Any], Any]) -> None:
    """The script, given the one library and the other, ends with the same."""
    expected, found = script(peer), script(compat)
    assert max(differences(expected, found)) < 1e-4
    for each, other in zip(expected, found, strict=True):
        assert type(each) is type(other) and each.dtype == other.dtype


def raised(script: Callable[[Any], Any], library: Any) -> type[Exception] | None:
    try:
        script(library)
    except Exception as error:
        return type(error)
    return None


CLASSES = [
    name
    for name in compat.__all__
    if isinstance(getattr(peer, name, None), type) and not name.startswith("AblationLayer")
]


@pytest.mark.parametrize("name", CLASSES)
def test_signatures(name: str) -> None:
    """Of constructors and calls; targets have a default here, as in 1.5.5."""
    mine, theirs = getattr(compat, name), getattr(peer, name)
    for method in ("__init__", "__call__", "forward", "release", "clear"):
        if not hasattr(theirs, method):
            continue
        here, there = (inspect.signature(getattr(c, method)).parameters for c in (mine, theirs))
        assert list(here) == list(there), method
        for parameter, original in there.items():
            if parameter in ("targets", "ablation_layer", "comparison_categories"):
                continue
            default = here[parameter].default
            if isinstance(default, type) and default.__module__.startswith("fastcam"):
                assert default.__name__ == original.default.__name__
            elif (name, method, parameter) != ("GuidedBackpropReLUModel", "__init__", "device"):
                assert default == original.default, parameter


@pytest.mark.parametrize("eigen_smooth", [False, True])
@pytest.mark.parametrize("aug_smooth", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        *("GradCAM", "GradCAMPlusPlus", "XGradCAM", "HiResCAM", "GradCAMElementWise", "LayerCAM"),
        *("EigenCAM", "EigenGradCAM", "SegEigenCAM", "KPCA_CAM", "FEM", "RandomCAM", "ScoreCAM"),
        *("AblationCAM", "ShapleyCAM", "FullGrad"),
    ],
)
def test_maps(name: str, aug_smooth: bool, eigen_smooth: bool) -> None:
    if not hasattr(peer, name):
        pytest.skip(f"the installed release has no {name}")

    def script(library: Any) -> Any:
        model = network()
        np.random.seed(0)
        layers = [] if name == "FullGrad" else [model[3]]
        with getattr(library, name)(model, layers) as cam:
            return [cam(images(), targets, aug_smooth, eigen_smooth) for targets in (None, TARGETS)]

    assert_same(script)


@pytest.mark.parametrize("name", ["GradCAM", "EigenCAM"])
@newest_only
def test_what_is_kept_ends_with_the_block(name: str) -> None:
    def script(library: Any) -> Any:
        model = network()
        with getattr(library, name)(model, [model[3]]) as cam:
            cam(images(), TARGETS)
            kept = cam.activations_and_grads
            before = [each.detach().numpy() for each in (*kept.activations, *kept.gradients)]
            lists = [kept.activations, kept.gradients, kept.handles]
        cam.activations_and_grads.release()
        assert not any(lists) and not model[3]._forward_hooks
        return before

    assert_same(script)


@pytest.mark.parametrize("compared", ["default", [1, 2, 3], [1, 7], [-1]], ids=str)
@pytest.mark.parametrize("classes", [1, 2, 3, 5])
@newest_only
def test_finer_cam(classes: int, compared: Any) -> None:
    options = {} if compared == "default" else {"comparison_categories": compared}

    def script(library: Any) -> Any:
        model = network(classes)
        maps = []
        for target_idx in (None, 0):
            with library.FinerCAM(model, [model[3]]) as cam:
                maps.append(cam(images(), alpha=0.7, target_idx=target_idx, **options))
            assert not model[3]._forward_hooks
        return maps

    if (error := raised(script, peer)) is None:
        assert_same(script)
    else:  # AttributeError there, of a sum of nothing
        assert classes == 1 and error is AttributeError and raised(script, compat) is not None


@pytest.mark.parametrize("method", ["GradCAMPlusPlus", "LayerCAM", "EigenGradCAM"])
@newest_only
def test_refine_cam(method: str) -> None:
    """Its eigen_smooth is the base method's aug_smooth there, and put right on request."""

    def script(library: Any, *smooth: bool) -> Any:
        model = network()
        layers = [model[1], model[3]]
        cam = library.RefineCAM(model, layers, base_method=getattr(library, method))
        assert len(cam.base_cam_per_layer) == 2
        return [cam(images(), targets, *smooth) for targets in (None, TARGETS)]

    def of_eigen(library: Any) -> Any:
        return script(library, True)

    assert_same(script)
    assert_same(of_eigen)
    model = network()
    factors = []
    for layer in (model[1], model[3]):
        with getattr(peer, method)(model, [layer]) as cam:
            factors.append(cam(images(), TARGETS, eigen_smooth=True))
    right = peer.utils.image.scale_cam_image(np.prod(factors, axis=0))
    wrong = of_eigen(peer)[1]
    assert np.abs(wrong - right).max() > 0.01
    with dropin.install("pytorch_grad_cam", fix=True):
        for library in (peer, compat):
            assert max(differences(right, of_eigen(library)[1])) < 1e-4


SESS_OPTIONS: dict[str, dict[str, Any]] = {
    "default": {"num_scales": 4},
    "max": {"num_scales": 3, "pool": "max", "smooth": False},
    "scores": {"num_scales": 3, "use_softmax_scores": False, "step_size": 7, "batch_size": 5},
    "windows": {"window_size": 15, "scales": [15, 21, 37], "theta": 0.2, "smooth": False},
    "filtered": {"num_scales": 4, "pre_filter_ratio": 0.4, "batch_size": 3},
}


@pytest.mark.parametrize("options", SESS_OPTIONS)
@pytest.mark.parametrize("method", ["GradCAM", "LayerCAM", "EigenCAM", "ShapleyCAM"])
@pytest.mark.parametrize("size", [(20, 26), (29, 20), (24, 24)])
@newest_only
def test_sess(size: tuple[int, int], method: str, options: str) -> None:
    """In fastcam.compat, and the library's own under the drop-in."""

    def script(library: Any) -> Any:
        model = network()
        base, layer = getattr(library, method), model[3]
        with library.SESS(model, [layer], base_method=base, **SESS_OPTIONS[options]) as cam:
            maps = [cam(images(*size), targets) for targets in (None, TARGETS)]
            kept = len(cam.base_cam.activations_and_grads.activations)
        return [*maps, np.array([kept, len(layer._forward_hooks)])]

    assert_same(script)
    expected = script(peer)
    dropin.forget()
    with dropin.install("pytorch_grad_cam"):
        found = script(peer)
        calls = dropin.report().calls
    assert max(differences(expected, found)) < 1e-4
    assert all(call.served_by == "fastcam" for call in calls)


@pytest.mark.parametrize(
    "options", [{"pool": "sum"}, {"pre_filter_ratio": 1.0}, {"num_scales": 0}, {"scales": [3]}]
)
@newest_only
def test_sess_refuses(options: dict[str, Any]) -> None:
    model = network()
    for library in (peer, compat):
        with pytest.raises(ValueError, match=r"pool|pre_filter_ratio|num_scales|scale"):
            library.SESS(model, [model[3]], **options)(images())


@newest_only
def test_sess_of_too_few_targets() -> None:
    model = network()
    for library in (peer, compat):
        with pytest.raises(ValueError, match="target"):
            library.SESS(model, [model[3]])(images(), TARGETS[:1])


@newest_only
def test_guided_backpropagation_goes_to_a_device() -> None:
    for device in (None, "cpu", torch.device("cpu")):
        guided = compat.GuidedBackpropReLUModel(network(), device)
        theirs = peer.GuidedBackpropReLUModel(network(), device)
        assert guided.device == theirs.device
        assert max(differences(theirs(images(), 2), guided(images(), 2))) < 1e-4
    assert compat.GuidedBackpropReLUModel(network(), "meta").device.type == "meta"


def test_softmax_targets() -> None:
    def script(library: Any) -> Any:
        model = network()
        with library.GradCAM(model, [model[3]]) as cam:
            return [cam(images(), [ClassifierOutputSoftmaxTarget(2)] * 2)]

    assert_same(script)


class _Tokens(nn.Module):
    """A class token and the positions of a grid, (N, 1 + 9, 6), and a head on the mean of all."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.patches = nn.Conv2d(3, 6, 8, 8)
        self.layer = nn.Linear(6, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1)
        return self.head(self.layer(tokens).relu().mean(1))


@pytest.mark.parametrize("ratio", [1.0, 0.4])
@pytest.mark.parametrize("served", [True, False])
def test_ablation_of_channels(served: bool, ratio: float) -> None:
    """By replays; and by runs of the whole network, for an ablation layer of one's own."""

    def script(library: Any) -> Any:
        model, layers = network(), library.AblationLayer
        stand_in = layers() if served else type("Mine", (layers,), {})()
        with library.AblationCAM(
            model,
            [model[2]],  # before a ReLU, so ablated channels are far below the least activation
            ablation_layer=stand_in,
            batch_size=3,
            ratio_channels_to_ablate=ratio,
        ) as cam:
            maps = [cam(images(), targets) for targets in (None, TARGETS)]
        assert model[2] in list(model.children())
        return maps

    assert_same(script)


@pytest.mark.parametrize("served", [True, False])
def test_ablation_of_tokens(served: bool) -> None:
    def script(library: Any) -> Any:
        model, layers = _Tokens().eval(), library.AblationLayerVit
        stand_in = layers() if served else type("Mine", (layers,), {})()
        reshape = importlib.import_module(
            f"{library.__name__}.utils.reshape_transforms"
        ).vit_reshape_transform
        with library.AblationCAM(
            model,
            [model.layer],
            lambda tokens: reshape(tokens, 3, 3),
            ablation_layer=stand_in,
            batch_size=4,
        ) as cam:
            return [cam(images(24, 24), targets) for targets in (None, TARGETS)]

    assert_same(script)


def test_ablation_of_a_feature_pyramid() -> None:
    def script(library: Any) -> Any:
        layer = library.AblationLayerFasterRCNN()
        generator = torch.Generator().manual_seed(0)
        levels = {
            name: torch.randn(2, 256, 3, 4, generator=generator)
            for name in ("0", "1", "2", "3", "pool")
        }
        layer.set_next_batch(1, levels, 3)
        layer.indices = np.array([4, 256 + 7, 4 * 256 + 1])
        return [level.numpy() for level in layer(None).values()]

    assert_same(script)


def _of_ones_own(library: Any) -> Any:
    """A method as its users write one: with the base class's sum, and of tensors."""

    base = importlib.import_module(f"{library.__name__}.base_cam").BaseCAM

    class OfTensors(base):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, compute_input_gradient=True, detach=False)

        def get_cam_weights(self, images: Any, layer: Any, targets: Any, a: Any, g: Any) -> Any:
            return g.mean((2, 3)).detach().numpy()

    return OfTensors


def test_a_method_of_ones_own_that_keeps_graphs() -> None:
    def script(library: Any) -> Any:
        model = network()
        with _of_ones_own(library)(model, [model[3]]) as cam:
            return [cam(images(), targets) for targets in (None, TARGETS)]

    assert_same(script)


@pytest.mark.parametrize("way", ["training", "twice", "no gradient"])
@pytest.mark.parametrize("name", ["GradCAM", "LayerCAM", "EigenCAM", "ShapleyCAM", "FullGrad"])
def test_networks_that_are_recorded_whole(name: str, way: str) -> None:
    """Where the graph cannot start at the layer, it starts at the image."""

    def script(library: Any) -> Any:
        model = network()
        layers = [] if name == "FullGrad" else [model[3]]
        if way == "twice":
            model = nn.Sequential(*model[:4], nn.Conv2d(8, 8, 1), model[3], *model[4:]).eval()
        with getattr(library, name)(model, layers) as cam:
            if way == "training":
                model[0].train()
            maps = []
            for targets in (None, TARGETS):
                with torch.set_grad_enabled(way != "no gradient"):
                    maps.append(cam(images(), targets))
            return maps

    if raised(script, peer) is None:
        assert_same(script)
    elif way != "no gradient":  # which pytorch-grad-cam does not take
        assert raised(script, compat) is not None


def test_an_index_error_ends_with_the_block(capsys: pytest.CaptureFixture[str]) -> None:
    for library in (peer, compat):
        model = network()
        with library.GradCAM(model, [model[3]]):
            raise IndexError("nothing there")
        assert "nothing there" in capsys.readouterr().out
        with pytest.raises(KeyError), library.GradCAM(model, [model[3]]):
            raise KeyError


def test_full_grad_of_batch_norm(capsys: pytest.CaptureFixture[str]) -> None:
    def script(library: Any) -> Any:
        torch.manual_seed(0)
        normal = nn.BatchNorm2d(6)
        for tensor in (normal.weight, normal.bias, normal.running_mean, normal.running_var):
            nn.init.uniform_(tensor, 0.5, 2)  # type: ignore[arg-type]
        model = nn.Sequential(network()[0], normal, *network()[1:]).eval()
        with library.FullGrad(model, [model[0]]) as cam:
            maps = [cam(images(24, 32), t, eigen_smooth=e) for t in (None, TARGETS) for e in (0, 1)]
        assert "target" in capsys.readouterr().out
        return maps

    assert_same(script)


def test_full_grads_sum_over_layers() -> None:
    """What its own forward calls, for those who call it too."""

    def script(library: Any) -> Any:
        model = network()
        with library.FullGrad(model, []) as cam:
            given = images().requires_grad_()
            cam.activations_and_grads(given)[:, 1].sum().backward()
            return [cam.compute_cam_per_layer(given, TARGETS, False)]

    assert_same(script)


@pytest.mark.parametrize("name", ["GradCAM", "GradCAMPlusPlus", "XGradCAM", "HiResCAM", "LayerCAM"])
@pytest.mark.parametrize("shape", [(2, 5, 3, 4), (2, 5, 2, 3, 4)])
def test_formulas_of_arrays(name: str, shape: tuple[int, ...]) -> None:
    """What subclasses call: of arrays, and of two extents and three."""
    if len(shape) == 5 and not NEWEST:
        pytest.skip("1.5.5 has formulas of two extents only")
    rng = np.random.default_rng(0)
    a, g = (rng.normal(size=shape).astype(np.float32) for _ in range(2))

    def script(library: Any) -> Any:
        model = network()
        cam = getattr(library, name)(model, [model[3]])
        return [cam.get_cam_image(None, None, None, a, g, eigen_smooth=e) for e in (False, True)]

    assert_same(script)


def test_activations_without_positions() -> None:
    model, flat = network(), np.ones((2, 5), np.float32)
    for name in ("GradCAM", "LayerCAM", "EigenGradCAM"):
        cam = getattr(compat, name)(model, [model[3]])
        if name != "EigenGradCAM":
            with pytest.raises(ValueError, match="activations: got 2 dimensions"):
                cam.get_cam_image(None, None, None, flat, flat)
    cam = compat.GradCAM(model, [model[3]])
    cam.get_cam_weights = lambda *args: flat
    with pytest.raises(ValueError, match="activations: got 2 dimensions"):
        cam.get_cam_image(None, None, None, flat, flat)
    with pytest.raises(NotImplementedError, match="BaseCAM"):
        base_cam.BaseCAM(model, [model[3]])(images())
    with pytest.raises(ValueError, match="input_tensor: got 2 dimensions"):
        base_cam.BaseCAM(model, [model[3]]).get_target_width_height(torch.zeros(2, 3))


@newest_only
def test_sess_with_scores_of_ones_own() -> None:
    """A subclass that scores windows in another way is asked, here and under the drop-in."""

    def script(library: Any) -> Any:
        class Mine(library.SESS):  # type: ignore[misc]
            def get_scores(self, patches: Any, target: Any) -> Any:
                return super().get_scores(patches, target)[::-1].copy()

        model = network()
        own, plain = (
            kind(model, [model[3]], num_scales=3)(images(), TARGETS)
            for kind in (Mine, library.SESS)
        )
        assert np.abs(own - plain).max() > 0.01
        return [own]

    assert_same(script)
    expected = script(peer)
    with dropin.install("pytorch_grad_cam"):
        assert max(differences(expected, script(peer))) < 1e-4


def test_windows_of_a_picture_smaller_than_them() -> None:
    for library in (peer, compat) if NEWEST else (compat,):
        sess = importlib.import_module(f"{library.__name__}.sess")
        assert sess.sliding_window(5, 12, 4, 7) == [(0, 0), (4, 0), (5, 0)]
        assert sess.window_starts(0, 4, 7) == []


@newest_only
def test_finer_cam_of_ones_own_targets() -> None:
    def script(library: Any) -> Any:
        model = network()
        with library.FinerCAM(model, [model[3]], base_method=library.HiResCAM) as cam:
            return [cam(images(), TARGETS)]

    assert_same(script)


def test_one_image_times_its_map() -> None:
    image, heat = torch.rand(3, 4, 5), torch.rand(4, 5)
    for library in (peer, compat):
        module = importlib.import_module(f"{library.__name__}.metrics.cam_mult_image")
        assert torch.equal(module.multiply_tensor_with_cam(image, heat), image * heat)


def test_score_cam_of_too_few_targets() -> None:
    for library in (peer, compat):
        model = network()
        with pytest.raises(RuntimeError), library.ScoreCAM(model, [model[3]]) as cam:
            cam(images(), TARGETS[:1])
        with dropin.install("pytorch_grad_cam"), pytest.raises(RuntimeError, match="targets"):
            library.ScoreCAM(model, [model[3]])(images(), TARGETS[:1])
