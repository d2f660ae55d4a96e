"""Maps against a full backward through whole networks, in plain PyTorch."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from networks import (
    ARCHITECTURES,
    Wrapped,
    full_backward,
    literal_map,
    network,
    small,
    small_images,
)
from torch import Tensor, nn

import fastcam
from fastcam import reference
from fastcam.methods.gradient import GradientMap

MAP_METHODS = [name for name in reference.METHODS if name in fastcam.METHODS]
CLASSES = torch.tensor([1, 4, 2])
SMALL = {"resnet18", "vgg11", "r3d_18", "signal"}  # vgg11: g differs between positions


def as_positions(name: str, output: Tensor) -> Tensor:
    """What the architecture's layer returns, as (N, C, *S)."""
    if "vit" in name:
        return output[:, 1:].reshape(3, 4, 4, -1).permute(0, 3, 1, 2)
    return output.permute(0, 3, 1, 2) if name == "swin_t" else output


def near(value: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert value.shape == expected.shape
    error = (value - expected).abs().max().item()
    assert error <= tolerance * max(expected.abs().max().item(), 1e-30), error


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_maps_of_a_full_backward(name: str, device: torch.device) -> None:
    model, images = network(name)
    model, images = copy.deepcopy(model).to(device), images.to(device)
    kept = full_backward(model, images, ARCHITECTURES[name], CLASSES.to(device))
    activations, gradients = (as_positions(name, tensor) for tensor in kept)

    cam = fastcam.GradCAM(model)
    maps = cam(images, CLASSES)
    assert cam.layers == (ARCHITECTURES[name],)
    assert maps.dtype == images.dtype and maps.device == images.device
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[images.dim() - 2]
    raw = literal_map("gradcam", activations, gradients)
    enlarged = F.interpolate(raw[:, None], images.shape[2:], mode=mode)[:, 0].flatten(1)
    low, high = enlarged.amin(1, keepdim=True), enlarged.amax(1, keepdim=True)
    near(maps.flatten(1), (enlarged - low) / (high - low).clamp(min=1e-300))

    for method in MAP_METHODS if name in SMALL else ["gradcam++"]:
        cam = fastcam.METHODS[method](model, ARCHITECTURES[name])
        raw = cam(images, CLASSES, size="layer", normalize=False)
        near(raw, literal_map(method, activations, gradients))


@pytest.mark.parametrize("layer", ["features.0", "features.3", "features.18"])
def test_activations_are_those_before_an_operation_in_place(layer: str) -> None:
    model, images = network("vgg11")
    activations, gradients = full_backward(model, images, layer, CLASSES)
    assert (activations < 0).any()
    raw = fastcam.HiResCAM(model, layer)(images, CLASSES, size="layer", normalize=False)
    near(raw, literal_map("hirescam", activations, gradients))


def test_several_layers() -> None:
    model, images = network("resnet18")
    layers = ["layer2", "layer4", "layer3"]
    cam = fastcam.LayerCAM(model, [model.layer2, "layer4", model.layer3])
    raw = cam(images, CLASSES, size="layer", normalize=False)
    for layer, maps in zip(layers, raw, strict=True):
        near(maps, literal_map("layercam", *full_backward(model, images, layer, CLASSES)))
    one_by_one = [fastcam.LayerCAM(model, layer)(images, CLASSES, size="layer") for layer in layers]
    for maps, alone in zip(cam(images, CLASSES, size="layer"), one_by_one, strict=True):
        near(maps, alone)
    enlarged = [F.interpolate(maps[:, None], (64, 64), mode="bilinear") for maps in one_by_one]
    mean = torch.stack(enlarged).mean(0)[:, 0]
    low, high = mean.amin((1, 2), keepdim=True), mean.amax((1, 2), keepdim=True)
    near(cam(images, CLASSES), (mean - low) / (high - low))


def test_layers_on_parallel_branches() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
            self.head = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            both = torch.cat([self.left(x), self.right(x)], 1)
            return self.head((both**2).mean((2, 3)))

    torch.manual_seed(0)
    for model in (Branches(), Branches().requires_grad_(False)):
        images = small_images()
        raw = fastcam.HiResCAM(model, ["left", "right"])(
            images, CLASSES, size="layer", normalize=False
        )
        model.requires_grad_(True)
        for layer, maps in zip(("left", "right"), raw, strict=True):
            near(maps, literal_map("hirescam", *full_backward(model, images, layer, CLASSES)))


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "swin_t", "mobilenet_v3_small"])
@pytest.mark.parametrize("method", [*MAP_METHODS, "cam"])
def test_classes_at_once_equal_them_one_by_one(method: str, name: str) -> None:
    model, images = network(name)
    if method == "cam" and name == "mobilenet_v3_small":
        pytest.skip("two linear layers: no CAM")
    classes = torch.tensor([[0, 3, 5, 3], [1, 2, 4, 19], [7, 7, 8, 9]])
    cam = fastcam.METHODS[method](model)
    maps = cam(images, classes, size="layer", normalize=False)
    assert cam.scores.equal(cam.outputs.gather(1, classes))
    for k in range(4):
        near(maps[:, k], cam(images, classes[:, k], size="layer", normalize=False))
    assert cam(images, classes).shape == (3, 4, 64, 64)
    assert cam(images, classes[:, :1]).shape == (3, 1, 64, 64)


def test_a_kernel_method_by_default_computes_classes_from_their_gradients() -> None:
    class Plain(GradientMap):
        name = "gradcam-elementwise"

    model, images = network("resnet18")
    options = {"size": "layer", "normalize": False}
    maps = Plain(model)(images, CLASSES.expand(3, 3), **options)
    near(maps, fastcam.GradCAMElementWise(model)(images, CLASSES.expand(3, 3), **options))


def test_all_classes_of_a_pooled_linear_head_take_one_backward(monkeypatch) -> None:
    calls = []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: calls.append(1) or grad(*a, **k))
    model, images = network("resnet18")
    every = torch.arange(20).expand(3, -1)
    for method in ("gradcam", "gradcam++", "xgradcam", "hirescam", "layercam", "cam"):
        calls.clear()
        fastcam.METHODS[method](model, "layer4.1")(images, every, size="layer")
        assert len(calls) == 1
    calls.clear()
    fastcam.GradCAM(model, "layer3")(images, every, size="layer")
    assert len(calls) == 20


def test_cam_takes_the_weights_of_the_linear_layer() -> None:
    model, images = network("resnet18")
    activations, _ = full_backward(model, images, "layer4", CLASSES)
    expected = torch.einsum("nc,nchw->nhw", model.fc.weight[CLASSES], activations)
    raw = fastcam.CAM(model)(images, CLASSES, size="layer", normalize=False)
    assert (raw < 0).any()
    near(raw, expected.detach())
    rectified = fastcam.CAM(model)(images, CLASSES, size="layer", normalize=False, relu=True)
    assert rectified.equal(raw.relu())


def test_cam_of_a_head_that_pools_relu() -> None:
    model, images = network("densenet121")
    activations, _ = full_backward(model, images, "features", CLASSES)
    expected = torch.einsum("nc,nchw->nhw", model.classifier.weight[CLASSES], activations.relu())
    assert (activations < 0).any()
    near(fastcam.CAM(model)(images, CLASSES, size="layer", normalize=False), expected.detach())


def pooled_otherwise(kind: str) -> nn.Module:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Conv2d(3, 8, 3)
            self.hidden = nn.Linear(8, 8)
            self.head = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.features(x)
            if kind == "maximum":
                return self.head(x.amax((2, 3)))
            if kind == "two layers":
                return self.head(self.hidden(x.mean((2, 3))))
            if kind == "scaled in place":
                return self.head(x.mean((2, 3))).mul_(0.5)
            if kind == "scaled":
                return self.head(x.mean((2, 3))) * 0.5
            mean = x.mean((2, 3))
            return self.head(mean.detach() + 2 * (mean - mean.detach()))

    torch.manual_seed(0)
    return Head().eval()


@pytest.mark.parametrize(
    "kind", ["maximum", "two layers", "scaled", "scaled in place", "right values, another gradient"]
)
def test_cam_refuses_other_heads_and_names_the_way_out(kind: str) -> None:
    with pytest.raises(ValueError, match="Grad-CAM"):
        fastcam.CAM(pooled_otherwise(kind), "features")(small_images(), CLASSES)


def test_nan_in_every_image_shows_no_head() -> None:
    with pytest.raises(ValueError, match="every image gave NaN"):
        fastcam.CAM(pooled_otherwise("maximum"), "features")(small_images() * torch.nan, CLASSES)


def test_cam_needs_class_ids() -> None:
    with pytest.raises(ValueError, match="class ids"):
        fastcam.CAM(small())(small_images(), lambda row: row[0])


@pytest.mark.parametrize("method", [*MAP_METHODS, "cam"])
def test_nan_in_one_image_stays_there(method: str) -> None:
    images = small_images()
    clean = fastcam.METHODS[method](small())(images, CLASSES[:, None].expand(3, 2))
    images[1, 0, 3, 3] = float("nan")
    maps = fastcam.METHODS[method](small())(images, CLASSES[:, None].expand(3, 2))
    assert maps[[0, 2]].equal(clean[[0, 2]]) and maps[1].isnan().any()


def test_alpha_from_derivatives_of_the_exponential() -> None:
    """alpha = Y'' / (2 Y'' + sum(A) Y'''), w = sum alpha ReLU(Y'), by autograd of Y = exp(S)."""
    torch.manual_seed(3)
    head = nn.Sequential(nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).double()
    model = nn.Sequential(OrderedDict(features=nn.Conv2d(2, 3, 2), head=head)).double()
    images = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    activations = model.features(images).detach().requires_grad_()
    score = model.head(activations)[0, 1]

    def derivatives(i: int) -> list[Tensor]:
        """Y', Y'', Y''' along the position i of A, divided by exp(S)."""
        found, value = [], score.exp()
        for _ in range(3):
            value = torch.autograd.grad(value, activations, create_graph=True)[0].flatten()[i]
            found.append((value / score.exp()).detach())
        return found

    first, second, third = torch.tensor(
        [derivatives(i) for i in range(activations.numel())], dtype=torch.float64
    ).T.reshape(3, 3, 9)
    kept = activations.detach().reshape(3, 9)
    denominator = 2 * second + kept.relu().sum(1, keepdim=True) * third
    alpha = torch.where(denominator == 0, 0, second / denominator)
    weights = (alpha * first.relu()).sum(1)
    assert (first > 0).any() and (first < 0).any()
    expected = (weights[:, None] * kept).sum(0).relu().reshape(1, 3, 3)
    assert expected.any()
    raw = fastcam.GradCAMPlusPlus(model, "features")(images, 1, size="layer", normalize=False)
    near(raw, expected, 1e-12)


def logits_object(logits: Tensor) -> object:
    return SimpleNamespace(loss=None, logits=logits, hidden=logits * 2)


@pytest.mark.parametrize(
    ("wrap", "pick", "output"),
    [
        (lambda y: (y, y.argmax(1)), lambda o: o[0], None),
        (lambda y: [y], lambda o: o[0], None),
        (lambda y: {"mask": y > 0, "out": y}, lambda o: o["out"], None),
        (lambda y: {"hidden": y * 2, "logits": y}, lambda o: o["logits"], None),
        (logits_object, lambda o: o.logits, None),
        (lambda y: {"hidden": y * 2, "x": (None, y)}, lambda o: o["x"][1], lambda o: o["x"][1]),
    ],
)
def test_what_models_return(wrap, pick, output) -> None:
    model, images = small(), small_images()
    expected = fastcam.GradCAM(model)(images)
    cam = fastcam.GradCAM(Wrapped(model, wrap), output=output)
    assert cam(images).equal(expected)
    answer = pick(cam.outputs)
    assert answer.equal(model(images)) and not answer.requires_grad
    assert cam.class_ids.equal(model(images).argmax(1))


def test_no_logits_is_an_error() -> None:
    with pytest.raises(ValueError, match="output="):
        fastcam.GradCAM(Wrapped(small(), lambda y: {"loss": "none"}))(small_images())


def test_inputs_as_tuple_and_mapping() -> None:
    model, images = small(), small_images()
    expected = fastcam.GradCAM(model)(images)
    assert fastcam.GradCAM(model)((images,)).equal(expected)
    assert fastcam.GradCAM(model)({"x": images}).equal(expected)
    with pytest.raises(ValueError, match="size"):
        fastcam.GradCAM(model, "features")(images, size=(3,))
    with pytest.raises(TypeError, match='size: got 32, expected a list of integers or "layer"'):
        fastcam.GradCAM(model, "features")(images, size=32)
    assert fastcam.GradCAM(model)(images, size=(5, 7)).shape == (3, 5, 7)


def test_empty_batch() -> None:
    images = small_images(0)
    assert fastcam.GradCAM(small())(images).shape == (0, 16, 20)
    assert fastcam.GradCAMPlusPlus(small())(images, torch.zeros(0, 2)[:, :2].long()).shape == (
        0,
        2,
        16,
        20,
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    model, images = small().to(dtype), small_images().to(dtype)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    for name in ("gradcam", "gradcam++", "cam"):
        maps = fastcam.METHODS[name](model)(images, torch.tensor([[0, 1]] * 3))
        assert maps.dtype == expected and maps.isfinite().all()


def test_autocast_does_not_reach_the_operators() -> None:
    model, images = small(), small_images()
    with torch.autocast("cpu", torch.bfloat16):
        maps = fastcam.GradCAM(model)(images, CLASSES)
    assert maps.dtype == torch.float32
    near(maps, fastcam.GradCAM(model)(images, CLASSES), 0.1)


def test_explain() -> None:
    model, images = network("resnet18")
    explained = fastcam.explain(model, images, "gradcam++", targets=CLASSES, size="layer")
    cam = fastcam.GradCAMPlusPlus(model)
    assert explained.maps.equal(cam(images, CLASSES, size="layer"))
    assert explained.class_ids.equal(CLASSES) and explained.outputs.equal(cam.outputs)
    assert explained.scores.equal(cam.scores)
    with pytest.raises(ValueError, match="gradcam"):
        fastcam.explain(model, images, "grad-cam")


def test_leaving_the_block_lets_go_of_the_outputs() -> None:
    with fastcam.GradCAM(small()) as cam:
        cam(small_images())
        assert cam.outputs is not None
    assert cam.outputs is None and cam.scores is None


def test_probabilities_are_warned_about_once() -> None:
    for wrap in (
        lambda y: y.softmax(1),
        lambda y: y.sigmoid(),
        lambda y: y.exp() / y.exp().sum(1, True),
    ):
        cam = fastcam.GradCAM(Wrapped(small(), wrap))
        with pytest.warns(UserWarning, match="logits"):
            cam(small_images())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            cam(small_images())


def test_importing_needs_torch_and_numpy_alone() -> None:
    heavy = "{'cv2', 'PIL', 'av', 'typer', 'rich', 'torchvision', 'safetensors'}"
    code = f"import sys, fastcam; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_modules_are_found_without_importing_them() -> None:
    names = "ops", "reference", "render", "demo", "pictures", "models", "video"
    code = "import fastcam; " + "; ".join(f"fastcam.{name}.__doc__" for name in names)
    subprocess.run([sys.executable, "-c", code], check=True)
