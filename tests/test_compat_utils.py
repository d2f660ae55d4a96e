"""The names of pytorch-grad-cam's utils beside the originals."""

from __future__ import annotations

import inspect
import math
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from fastcam.compat.pytorch_grad_cam import sobel_cam
from fastcam.compat.pytorch_grad_cam.feature_factorization import deep_feature_factorization as dff
from fastcam.compat.pytorch_grad_cam.utils import (
    find_layers,
    image,
    model_targets,
    reshape_transforms,
    svd_on_activations,
)

peer = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is missing")
import pytorch_grad_cam.sobel_cam as peer_sobel  # noqa: E402
import pytorch_grad_cam.utils.find_layers as peer_layers  # noqa: E402
import pytorch_grad_cam.utils.image as peer_image  # noqa: E402
import pytorch_grad_cam.utils.model_targets as peer_targets  # noqa: E402
import pytorch_grad_cam.utils.reshape_transforms as peer_transforms  # noqa: E402
import pytorch_grad_cam.utils.svd_on_activations as peer_svd  # noqa: E402
from pytorch_grad_cam.feature_factorization import (  # noqa: E402
    deep_feature_factorization as peer_dff,
)

NEWEST = hasattr(peer, "SESS")
"""Whether the release is 1.5.7, whose answers these are; otherwise it is 1.5.5."""


def same(got: Any, want: Any, tolerance: float = 0.0) -> None:
    """Type, dtype, shape and values."""
    if isinstance(want, (list, tuple)):
        assert type(got) is type(want) and len(got) == len(want)
        for mine, theirs in zip(got, want, strict=True):
            same(mine, theirs, tolerance)
        return
    assert type(got) is type(want)
    if isinstance(want, (np.ndarray, torch.Tensor)):
        assert got.dtype == want.dtype and tuple(got.shape) == tuple(want.shape)
        got, want = np.asarray(got), np.asarray(want)
        largest = np.abs(want[np.isfinite(want)]).max(initial=0)
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * largest)
    else:
        assert got == want


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (image, peer_image),
        (model_targets, peer_targets),
        (reshape_transforms, peer_transforms),
        (find_layers, peer_layers),
        (svd_on_activations, peer_svd),
        (sobel_cam, peer_sobel),
        (dff, peer_dff),
    ],
)
def test_every_name_and_signature(mine: Any, theirs: Any) -> None:
    for name, original in vars(theirs).items():
        if getattr(original, "__module__", None) != theirs.__name__:
            continue
        pairs = [(getattr(mine, name), original)]
        if inspect.isclass(original):
            pairs += [
                (getattr(pairs[0][0], method), function)
                for method, function in vars(original).items()
                if inspect.isfunction(function) and method not in ("__exit__",)
            ]
        for function, expected in pairs:
            here, there = (inspect.signature(f).parameters for f in (function, expected))
            assert list(here) == list(there), name
            for parameter, default in ((p, there[p].default) for p in there):
                if name == "run_dff_on_image" and parameter == "reshape_transform":
                    continue  # there it is the type that annotates it
                given = here[parameter].default
                given = list(given) if isinstance(given, tuple) else given
                assert given == default, f"{name}({parameter})"


def random_image(dtype: Any, *shape: int) -> np.ndarray:
    values = np.random.default_rng(0).random(shape)
    return (values * 255).astype(dtype) if dtype == np.uint8 else values.astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(5, 7, 3), (4, 4, 1), (6, 3)])
def test_preprocess_image(dtype: Any, shape: tuple[int, ...]) -> None:
    picture = random_image(dtype, *shape)
    kept = picture.copy()
    channels = shape[2] if len(shape) == 3 else 1
    arguments = ([0.4, 0.5, 0.6][:channels], [0.2, 0.3, 0.5][:channels])
    want = peer_image.preprocess_image(picture, *arguments)
    same(image.preprocess_image(picture, *arguments), want)
    assert (picture == kept).all()
    if channels == 3:
        same(image.preprocess_image(picture), peer_image.preprocess_image(picture))


def test_preprocess_image_refuses() -> None:
    for picture, std, error in (
        (random_image(np.uint8, 4, 4, 3).astype(np.int32), [0.5] * 3, TypeError),
        (random_image(np.uint8, 4, 4, 3), [0.5, 0.0, 0.5], ValueError),
    ):
        for module in (image, peer_image):
            with pytest.raises(error):
                module.preprocess_image(picture, std=std)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_deprocess_image(dtype: Any) -> None:
    gradient = np.random.default_rng(1).standard_normal((9, 8, 3)).astype(dtype)
    same(image.deprocess_image(gradient), peer_image.deprocess_image(gradient))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, np.float16])
@pytest.mark.parametrize("size", [(1, 1), (33, 50), (224, 224)])
@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 1.0, np.float64(0.37)])
def test_show_cam_on_image(dtype: Any, size: tuple[int, int], weight: float) -> None:
    picture = random_image(dtype, *size, 3)
    picture = picture // 128 if dtype == np.uint8 else picture
    small = np.random.default_rng(2).random((7, 7)).astype(np.float32)
    for mask in (cv2.resize(small, size[::-1]), np.zeros(size, np.float64)):
        for use_rgb, colormap in ((False, cv2.COLORMAP_JET), (True, cv2.COLORMAP_VIRIDIS)):
            arguments = (picture, mask, use_rgb, colormap, weight)
            same(image.show_cam_on_image(*arguments), peer_image.show_cam_on_image(*arguments))


def test_show_cam_on_image_refuses() -> None:
    picture, mask = random_image(np.float32, 4, 4, 3), np.zeros((4, 4), np.float32)
    for module in (image, peer_image):
        with pytest.raises(Exception, match=r"np\.float32"):
            module.show_cam_on_image(picture * 3, mask)
        with pytest.raises(Exception, match="image_weight"):
            module.show_cam_on_image(picture, mask, image_weight=1.5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("shape", "size"),
    [((3, 7, 7), (40, 30)), ((2, 9, 5), None), ((1, 14, 14), (14, 14)), ((2, 3, 4, 5), (9, 8, 7))],
)
def test_scale_cam_image(dtype: Any, shape: tuple[int, ...], size: Any) -> None:
    maps = np.random.default_rng(3).standard_normal(shape).astype(dtype)
    maps[0] = 0.5
    same(image.scale_cam_image(maps, size), peer_image.scale_cam_image(maps, size), 1e-6)


def test_scale_accross_batch_and_channels() -> None:
    maps = np.random.default_rng(4).random((2, 3, 5, 6), dtype=np.float32)
    want = peer_image.scale_accross_batch_and_channels(maps, (12, 10))
    same(image.scale_accross_batch_and_channels(maps, (12, 10)), want, 1e-6)


def test_create_labels_legend() -> None:
    scores = np.random.default_rng(5).random((3, 6))
    labels = {k: f"name {k}, other, third, fourth" for k in range(6)}
    for top_k in (1, 2, 9):
        want = peer_image.create_labels_legend(scores, labels, top_k)
        same(image.create_labels_legend(scores, labels, top_k), want)


def test_show_factorization_on_image() -> None:
    picture = random_image(np.float64, 40, 50, 3)
    maps = np.random.default_rng(6).random((4, 40, 50), dtype=np.float32)
    kept = maps.copy()
    colors = [np.array(c) for c in ((1.0, 0, 0.2), (0, 1.0, 0), (0, 0.1, 1.0), (0.5, 0.5, 0.5))]
    shown = image.show_factorization_on_image(picture, maps, colors, 0.4)
    assert (maps == kept).all()  # the original sets what is weaker to 0
    same(shown, peer_image.show_factorization_on_image(picture, maps.copy(), colors, 0.4))
    pytest.importorskip("matplotlib", reason="matplotlib is missing")
    labels = ["one", "two", "three", "four"]
    beside = image.show_factorization_on_image(picture, maps, concept_labels=labels)
    assert beside.shape == (40, 100, 3) and beside.dtype == np.uint8
    same(beside[:, :50], image.show_factorization_on_image(picture, maps))
    assert beside[:, 50:].std() > 1
    if NEWEST:  # 1.5.5 draws its legend by a method that matplotlib has no more
        arguments = (picture, maps, colors, 0.4, labels)
        want = peer_image.show_factorization_on_image(picture, maps.copy(), colors, 0.4, labels)
        same(image.show_factorization_on_image(*arguments), want)


OUTPUTS = (torch.linspace(-1, 2, 6), torch.linspace(-2, 1, 18).view(3, 6).sin())


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ClassifierOutputTarget", (2,)),
        ("ClassifierOutputSoftmaxTarget", (4,)),
        ("ClassifierOutputReST", (3,)),
        ("BinaryClassifierOutputTarget", (1,)),
        ("BinaryClassifierOutputTarget", (0,)),
        ("SoftmaxOutputTarget", ()),
        ("RawScoresOutputTarget", ()),
        ("FinerWeightedTarget", (1, [0, 2, 5], 0.6)),
        ("FinerWeightedTarget", (1, [3], 1.0)),
    ],
)
def test_targets(name: str, arguments: tuple[Any, ...]) -> None:
    mine, theirs = (getattr(m, name)(*arguments) for m in (model_targets, peer_targets))
    assert vars(mine) == vars(theirs)
    # of several rows, 1.5.5 takes the mean cross-entropy of all from each
    for output in OUTPUTS if NEWEST or name != "ClassifierOutputReST" else OUTPUTS[:1]:
        got, want = (target(output.clone().requires_grad_()) for target in (mine, theirs))
        same(got.detach(), want.detach(), 1e-6)
        assert type(mine).__call__(theirs, output).equal(got.detach())
        gradients = []
        for target in (mine, theirs):
            leaf = output.clone().requires_grad_()
            target(leaf).sum().backward()
            gradients.append(leaf.grad)
        same(*gradients, 1e-6)


def test_semantic_segmentation_target() -> None:
    mask, output = np.random.default_rng(7).random((4, 5)), torch.randn(3, 4, 5).double()
    mine, theirs = (m.SemanticSegmentationTarget(1, mask) for m in (model_targets, peer_targets))
    same(mine(output), theirs(output), 1e-12)


def test_faster_rcnn_box_score_target() -> None:
    boxes = [np.array([0, 0, 10, 10]), np.array([5, 5, 20, 20]), np.array([50, 50, 60, 60])]
    found = {
        "boxes": torch.tensor([[1.0, 0, 10, 10], [5, 6, 20, 19], [0, 0, 3, 3]]),
        "labels": torch.tensor([1, 3, 1]),
        "scores": torch.tensor([0.9, 0.8, 0.7]),
    }
    empty = {key: value[:0] for key, value in found.items()}
    for labels, threshold in (([1, 2, 1], 0.5), ([1, 3, 1], 0.5), ([1, 3, 1], 0.95)):
        mine, theirs = (
            m.FasterRCNNBoxScoreTarget(labels, boxes, threshold)
            for m in (model_targets, peer_targets)
        )
        for outputs in (found, empty):
            want = theirs(outputs).to(outputs["boxes"].device)
            same(mine(outputs), want, 1e-6)
            doubled = {k: v.double() if v.is_floating_point() else v for k, v in outputs.items()}
            if NEWEST:  # of 1.5.5 always float32
                same(mine(doubled), theirs(doubled), 1e-6)


def test_reshape_transforms() -> None:
    tokens = torch.randn(2, 12, 5)
    for arguments in ((3, 4), (4, 3)):
        want = peer_transforms.swinT_reshape_transform(tokens, *arguments)
        same(reshape_transforms.swinT_reshape_transform(tokens, *arguments), want)
    tokens = torch.randn(2, 197, 5)
    same(
        reshape_transforms.vit_reshape_transform(tokens),
        peer_transforms.vit_reshape_transform(tokens),
    )
    pyramid = {"0": torch.randn(1, 3, 16, 16), "1": torch.randn(1, 3, 8, 8)}
    pyramid["pool"] = torch.randn(1, 3, 4, 5)
    want = peer_transforms.fasterrcnn_reshape_transform(pyramid)
    same(reshape_transforms.fasterrcnn_reshape_transform(pyramid), want)


def nested() -> nn.Module:
    inner = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Sequential(nn.ReLU(), nn.Linear(2, 2)))
    return nn.Sequential(inner, nn.ReLU(), nn.Linear(2, 2), nn.ReLU6())


def test_find_layers() -> None:
    model = nested()
    for mine, theirs, argument in (
        (find_layers.find_layer_types_recursive, peer_layers.find_layer_types_recursive, [nn.ReLU]),
        (
            find_layers.find_layer_predicate_recursive,
            peer_layers.find_layer_predicate_recursive,
            lambda layer: isinstance(layer, (nn.Sequential, nn.Linear)),
        ),
    ):
        found, expected = mine(model, argument), theirs(model, argument)
        assert len(found) == len(expected) > 2
        assert all(a is b for a, b in zip(found, expected, strict=True))


def test_replace_layers() -> None:
    for path in ("0.2.1", "1", "0"):
        model, new = nested(), nn.Identity()
        assert find_layers.replace_layer_recursive(model, model.get_submodule(path), new)
        assert model.get_submodule(path) is new
    assert not find_layers.replace_layer_recursive(nested(), nn.ReLU(), nn.Identity())
    first, second = nested(), nested()
    find_layers.replace_all_layer_type_recursive(first, nn.ReLU, nn.Tanh())
    peer_layers.replace_all_layer_type_recursive(second, nn.ReLU, nn.Tanh())
    assert str(first) == str(second) and "ReLU()" not in str(first)
    first[0][1] = None  # a name without a module
    first.register_module("nothing", None)
    assert len(find_layers.find_layer_types_recursive(first, (nn.Linear,))) == 3


def batches() -> list[np.ndarray]:
    """Activations that LAPACK goes each of its ways for: long, wide, nearly square, tiny."""
    generator = np.random.default_rng(8)
    found = []
    for channels, extents in (
        (150, (6, 6)),
        (128, (3, 3)),
        (64, (7, 7)),
        (40, (5, 8)),
        (8, (14, 14)),
        (3, (6, 5)),
        (1, (4, 4)),
        (20, (1, 1)),
        (30, (2, 3, 4)),
    ):
        values = generator.standard_normal((4, channels, *extents))
        values[1:] = np.maximum(values[1:], 0)
        values[2] *= np.abs(generator.standard_normal((channels, *[1] * len(extents))))
        rank = generator.random((channels, 3)) @ generator.random((3, math.prod(extents)))
        values[3] = rank.reshape(channels, *extents)
        found += [values.astype(np.float32), values]
    return found


def test_get_2d_projection() -> None:
    for activations in batches():
        want = peer_svd.get_2d_projection(activations.copy())
        got = svd_on_activations.get_2d_projection(activations)
        assert got.dtype == want.dtype and got.shape == want.shape
        for mine, theirs, values in zip(got, want, activations, strict=True):
            scale = max(np.abs(theirs).max(), np.abs(values).max())
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("seed", range(24))
def test_the_sign_of_lapack(seed: int) -> None:
    generator = np.random.default_rng(seed)
    channels, extent = int(generator.integers(1, 120)), int(generator.integers(2, 11))
    activations = np.maximum(generator.standard_normal((1, channels, extent, extent)), 0)
    activations = activations * generator.random((1, channels, 1, 1)) ** 3
    for values in (activations, activations * (generator.random((1, channels, 1, 1)) < 0.5)):
        values = values.astype(np.float32)  # the second with channels that are 0, so of low rank
        got = svd_on_activations.get_2d_projection(values)
        want = peer_svd.get_2d_projection(values.copy())
        assert (got * want).sum() >= 0.99 * (want * want).sum()


def test_projections_of_nan_leave_the_activations() -> None:
    activations = np.random.default_rng(9).random((2, 6, 3, 3), dtype=np.float32)
    activations[0, 2, 1, 1] = np.nan
    kept = activations.copy()
    same(
        svd_on_activations.get_2d_projection(activations),
        peer_svd.get_2d_projection(activations.copy()),
        1e-5,
    )
    np.testing.assert_array_equal(activations, kept)
    with pytest.raises(np.linalg.LinAlgError), np.errstate(invalid="ignore"):
        svd_on_activations.get_2d_projection(np.full((1, 3, 2, 2), np.inf, np.float32))


def test_projection_with_sign_correction() -> None:
    activations = np.random.default_rng(10).standard_normal((6, 8, 5, 5)).astype(np.float32)
    plain = svd_on_activations.get_2d_projection(activations)
    maps = svd_on_activations.get_2d_projection_with_sign_correction(activations)
    for projection, original in zip(maps, plain, strict=True):
        assert projection.max() == np.abs(original).max()
        assert (projection == original).all() or (projection == -original).all()
    assert not (maps == plain).all()
    if NEWEST:
        for batch in batches():
            want = peer_svd.get_2d_projection_with_sign_correction(batch)
            got = svd_on_activations.get_2d_projection_with_sign_correction(batch)
            assert got.dtype == want.dtype and got.shape == want.shape
            for mine, theirs, values in zip(got, want, batch, strict=True):
                scale = max(np.abs(theirs).max(), np.abs(values).max())
                np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-4 * scale)


def test_kernel_projection() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is missing")
    activations = np.random.default_rng(11).random((2, 6, 4, 4), dtype=np.float32)
    for arguments in ((), ("rbf", 0.1)):
        want = peer_svd.get_2d_projection_kernel(activations.copy(), *arguments)
        same(svd_on_activations.get_2d_projection_kernel(activations, *arguments), want, 1e-5)


def test_sobel_cam() -> None:
    picture = random_image(np.uint8, 20, 31, 3)
    same(sobel_cam.sobel_cam(picture), peer_sobel.sobel_cam(picture))


def factorized() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 12, 3, 2), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.ReLU())
    return model.eval(), torch.randn(2, 3, 20, 24)


def test_dff() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is missing")
    activations = np.random.default_rng(12).random((2, 8, 5, 6), dtype=np.float32)
    activations[1, 2, 3, 3] = np.nan
    kept = activations.copy()
    same(dff.dff(activations, 3), peer_dff.dff(activations.copy(), 3), 1e-5)
    np.testing.assert_array_equal(activations, kept)


def test_deep_feature_factorization_lent_to_the_original() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is missing")
    model, images = factorized()
    head = nn.Linear(12, 5)
    for computation in (None, head):
        theirs = peer_dff.DeepFeatureFactorization(model, model[2], None, computation)
        got = dff.DeepFeatureFactorization.__call__(theirs, images, 4)
        same(got, theirs(images, 4), 1e-5)


def test_run_dff_on_image() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is missing")
    pytest.importorskip(
        "fastcam.compat.pytorch_grad_cam.activations_and_gradients",
        reason="the hooks of fastcam.compat.pytorch_grad_cam are missing",
    )
    model, images = factorized()
    mine, theirs = (m.DeepFeatureFactorization(model, model[2]) for m in (dff, peer_dff))
    same(mine(images, 4), theirs(images, 4), 1e-5)
    hooks = len(model[2]._forward_hooks)
    mine.activations_and_grads.release()
    assert len(model[2]._forward_hooks) < hooks
    model.config = SimpleNamespace(id2label={k: f"class {k}" for k in range(5)})
    picture = random_image(np.uint8, 20, 24, 3)
    shown = dff.run_dff_on_image(model, model[2], nn.Linear(12, 5), picture, images[0])
    assert shown.shape == (20, 72, 3) and (shown[:, :24] == picture).all()
