"""Every further method against its published formula, written out in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import network, small, small_images
from torch import Tensor, nn

import fastcam
from fastcam.engine.capture import capture
from fastcam.engine.continuation import Continuation
from fastcam.methods.eigen import kernel_component, principal_component
from fastcam.methods.masked_runs import masked_runs
from fastcam.targets import select

CLASSES = torch.tensor([1, 4, 2])
SIZES = {1: (19,), 2: (13, 18), 3: (5, 9, 11)}
MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


class Net(nn.Module):
    """A shortcut, an operation in place behind the layer, and a second derivative above it."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        self.first = conv(3, 6, 3, stride=2, padding=1)
        self.layer = conv(6, 7, 3, padding=1)
        self.side = conv(6, 7, 1)
        self.mix = conv(7, 8, 2)
        self.head = nn.Linear(8, 5)

    def below(self, x: Tensor) -> tuple[Tensor, Tensor]:
        skip = self.first(x).relu()
        return self.layer(skip), skip

    def above(self, a: Tensor, skip: Tensor) -> Tensor:
        z = F.relu_(a) + self.side(skip)
        z *= 1.5
        z = F.softplus(self.mix(z))
        return self.head(z.flatten(2).mean(2) ** 2) + 1

    def forward(self, x: Tensor) -> Tensor:
        return self.above(*self.below(x))


def case(dims: int) -> tuple[Net, Tensor]:
    torch.manual_seed(dims)
    model = Net(dims).double().eval()
    for parameter in model.parameters():  # scores that differ
        nn.init.normal_(parameter, std=0.4)
    return model, torch.randn(3, 3, *SIZES[dims], dtype=torch.float64)


def parts(model: Net, images: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """A, dS/dA, and the chosen scores as a function of A."""
    with torch.no_grad():
        a, skip = model.below(images)

    def score(a: Tensor) -> Tensor:
        return model.above(a.clone(), skip).gather(1, CLASSES[:, None])[:, 0]

    leaf = a.clone().requires_grad_()
    (g,) = torch.autograd.grad(score(leaf).sum(), leaf)
    return a, g, score


def summed(a: Tensor, w: Tensor) -> Tensor:
    return torch.einsum("nc,nc...->n...", w, a).relu()


def raw(name: str, model: nn.Module, images: Tensor, **options: object) -> Tensor:
    cam = fastcam.METHODS[name](model, "layer", **options)
    return cam(images, CLASSES, size="layer", normalize=False)


def near(value: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    assert value.shape == expected.shape
    assert expected.abs().max() > 0
    torch.testing.assert_close(value, expected, rtol=0, atol=tolerance * expected.abs().max())


def scaled(maps: Tensor) -> Tensor:
    flat = maps.flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    return ((flat - low) / (high - low)).view_as(maps)


def enlarged(maps: Tensor, extents: tuple[int, ...]) -> Tensor:
    return F.interpolate(maps[:, None], extents, mode=MODES[len(extents)])[:, 0]


def component(features: Tensor) -> Tensor:
    """By SVD, the largest magnitude positive."""
    maps = []
    for image in features:
        x = image.flatten(1).T.double().numpy()
        x = x - x.mean(0)
        projection = x @ np.linalg.svd(x, full_matrices=False)[2][0]
        projection *= np.sign(projection[np.abs(projection).argmax()])
        maps.append(torch.from_numpy(projection).view(image.shape[1:]))
    return torch.stack(maps)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_eigen_family(dims: int) -> None:
    model, images = case(dims)
    a, g, _ = parts(model, images)
    near(raw("eigencam", model, images), component(a).relu())
    near(raw("eigengradcam", model, images), component(g * a).relu())
    near(raw("segeigencam", model, images), component(g.abs() * a).relu())
    with pytest.raises(AssertionError):
        near(raw("eigencam", model, images), component(g * a).relu())


@pytest.mark.parametrize("shape", [(2, 40, 3, 5), (2, 5, 9, 8), (2, 700, 30, 25), (1, 600, 700)])
def test_principal_component_of_any_shape(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    features = torch.randn(shape) * torch.linspace(0.1, 3, shape[1]).view(-1, *[1] * len(shape[2:]))
    features += torch.randn(shape[0], 1, *shape[2:])  # what stands out, as in activations
    maps = principal_component(features)
    assert maps.dtype == torch.float32
    near(maps.double(), component(features), 1e-5)


def test_the_drop_in_may_impose_a_sign() -> None:
    features = torch.randn(2, 4, 3, 3)
    maps = principal_component(features, lambda components, centred: -components.abs())
    near(maps, -principal_component(features).abs())


def test_kernel_principal_component_of_sklearn() -> None:
    decomposition = pytest.importorskip("sklearn.decomposition", reason="scikit-learn is missing")
    model, images = case(2)
    a, _, _ = parts(model, images)
    large = torch.randn(1, 6, 25, 24, dtype=torch.float64)  # by the iteration
    for features, maps in ((a, raw("kpcacam", model, images)), (large, kernel_component(large))):
        for image, found in zip(features, maps, strict=True):
            x = image.flatten(1).T.numpy()
            kernel = decomposition.KernelPCA(1, kernel="sigmoid", eigen_solver="dense")
            expected = torch.from_numpy(kernel.fit_transform(x - x.mean(0)))[:, 0]
            expected = expected * expected[expected.abs().argmax()].sign()
            expected = expected.relu() if features is a else expected
            near(found.flatten(), expected, 1e-7)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_fem(dims: int) -> None:
    model, images = case(dims)
    a, _, _ = parts(model, images)
    weights = torch.zeros(a.shape[:2], dtype=torch.float64)
    for n, image in enumerate(a):
        for k, channel in enumerate(image):
            weights[n, k] = (channel > channel.mean() + channel.std(correction=0)).double().mean()
    near(raw("fem", model, images, k=1.0), summed(a, weights))


def test_random_weights_come_from_the_seed() -> None:
    model, images = case(2)
    a, _, _ = parts(model, images)
    first = raw("randomcam", model, images)
    assert first.equal(raw("randomcam", model, images))
    assert not first.equal(raw("randomcam", model, images, seed=1))
    cam = fastcam.RandomCAM(model, "layer", seed=3)
    maps = cam(images, size="layer", normalize=False, relu=False)
    for image, found in zip(a, maps, strict=True):
        solution = torch.linalg.lstsq(image.flatten(1).T, found.flatten()[:, None]).solution
        assert (solution.abs() <= 1).all() and solution.min() < 0 < solution.max()
        near(torch.einsum("c,chw->hw", solution[:, 0], image), found)


def masks_of(a: Tensor, extents: tuple[int, ...]) -> Tensor:
    """(N, C, *extents), each channel enlarged, then in [0, 1]."""
    return torch.stack([scaled(enlarged(image, extents)) for image in a])


def masked_score(model: nn.Module, image: Tensor, mask: Tensor, target: Tensor) -> Tensor:
    with torch.no_grad():
        return model((image * mask)[None])[0, target]


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("name", ["scorecam", "sscam", "iscam"])
def test_score_cam_family(name: str, dims: int) -> None:
    model, images = case(dims)
    a, _, _ = parts(model, images)
    masks = masks_of(a, SIZES[dims])
    options = {"scorecam": {}, "sscam": {"samples": 2, "std": 0.7}, "iscam": {"samples": 3}}[name]
    generator = torch.Generator().manual_seed(0)
    if name == "sscam":
        variations = [
            masks + torch.empty_like(masks).normal_(0, 0.7, generator=generator) for _ in range(2)
        ]
    elif name == "iscam":
        variations = [masks / 3, masks * 3 / 3, masks * 6 / 3]
    else:
        variations = [masks]
    scores = torch.zeros(a.shape[:2], dtype=torch.float64)
    with torch.no_grad():
        baseline = model(images).gather(1, CLASSES[:, None])
    for n, k in np.ndindex(*a.shape[:2]):
        for varied in variations:
            found = masked_score(model, images[n], varied[n, k], CLASSES[n])
            scores[n, k] += (found - baseline[n, 0]) / len(variations)
    expected = summed(a, scores.softmax(1))
    near(raw(name, model, images, batch_size=64, **options), expected)
    if name != "sscam":  # that one draws its noise batch by batch
        near(raw(name, model, images, batch_size=4, **options), expected)


def test_constant_channels_share_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = case(2)
    with torch.no_grad():
        model.layer.weight[2:6] = 0
    a, _, _ = parts(model, images)
    masks = masks_of(a, SIZES[2])
    masks[:, 2:6] = 0
    scores = torch.zeros(a.shape[:2], dtype=torch.float64)
    for n, k in np.ndindex(*a.shape[:2]):
        scores[n, k] = masked_score(model, images[n], masks[n, k], CLASSES[n])
    rows = []
    model.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    near(raw("scorecam", model, images), summed(a, scores.softmax(1)))
    # one image, two for the axes, the images, an image beside itself and another, the masked ones
    assert rows == [1, 2, 3, 2, 2, 3 * (7 - 4 + 1)]


@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 6, 3, 2), (1, 1, 2, 2, 2), (0, 3, 2, 2)])
@pytest.mark.parametrize("share", [True, False])
def test_runs_that_give_each_channel_a_score(shape: tuple[int, ...], share: bool) -> None:
    a = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if shape[0] > 1:
        a[0, 1], a[0, 3], a[1, 0], a[1, 2] = 0.5, -1.0, 2.0, torch.nan
    runs = masked_runs(a, share)
    first: dict[int, int] = {}  # by image, what its constant channels share
    wanted, own = [], torch.zeros(shape[:2])
    for n, k in np.ndindex(*shape[:2]):
        number = n * shape[1] + k
        if share and a[n, k].unique().numel() == 1 and not a[n, k].isnan().any():
            number = first.setdefault(n, number)
        own[n, k] = number
        if number == n * shape[1] + k:
            wanted.append(number)
    assert runs.rows.tolist() == wanted
    assert runs.images.tolist() == [number // shape[1] for number in wanted]
    scores = runs.rows[:, None] * torch.tensor([1.0, -2.0])
    assert runs.spread(scores).equal(own[..., None] * torch.tensor([1.0, -2.0]))


def ablated(model: Net, images: Tensor) -> Tensor:
    a, _, score = parts(model, images)
    with torch.no_grad():
        whole = score(a)
        weights = torch.zeros(a.shape[:2], dtype=torch.float64)
        for k in range(a.shape[1]):
            without = a.clone()
            without[:, k] = 0
            weights[:, k] = (whole - score(without)) / whole
    return summed(a, weights)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_ablation_cam(dims: int) -> None:
    model, images = case(dims)
    expected = ablated(model, images)
    below = []
    model.first.register_forward_hook(lambda module, args, output: below.append(len(output)))
    for batch_size in (1, 4, 6, 7, 64):
        below.clear()
        near(raw("ablationcam", model, images, batch_size=batch_size), expected)
        # the first call: an image alone, 3 for the start, 1 for the axes, 2 for the rows; then the
        # capture, one that finds the operator, a whole one, one that is recorded
        assert len(below) <= 1 + 3 + 1 + 2 + 4


def test_ablation_cam_of_a_pooled_linear_head_takes_one_run() -> None:
    model, images = small().double(), small_images().double()
    runs = []
    model.register_forward_hook(lambda module, args, output: runs.append(1))
    maps = fastcam.AblationCAM(model, "features")(images, CLASSES, size="layer", normalize=False)
    assert len(runs) == 1 + 3 + 1 + 1  # one image, the graph's start, the layer's axes, this one
    a = model.features(model.norm(model.conv(images)).relu()).detach()
    scores = model.head(a.relu().mean((2, 3))).gather(1, CLASSES[:, None]).detach()
    weights = model.head.weight.detach()[CLASSES] * a.relu().mean((2, 3)) / scores
    near(maps, summed(a, weights))


class Awkward(Net):
    """A network of which no replay can be proven."""

    def __init__(self, kind: str) -> None:
        super().__init__(2)
        self.kind = kind

    def above(self, a: Tensor, skip: Tensor) -> Tensor:
        if self.kind == "writes below":
            buffer = skip.mean(1, keepdim=True).repeat(1, 7, 1, 1)
            a = buffer.add_(a.relu())
        elif self.kind == "decides":
            a = a if a.sum() > 0 else -a
        elif self.kind == "overwrites what was read":
            side = self.side(skip)
            a = a + side
            side.zero_()
            a = a + side
        elif self.kind == "twice":
            a = self.layer(F.pad(a, (0, 0, 0, 0, 0, 0))[:, :6].relu())
        return super().above(a, skip)


@pytest.mark.parametrize("kind", ["writes below", "decides", "overwrites what was read"])
def test_ablation_cam_where_nothing_can_be_replayed(kind: str) -> None:
    _, images = case(2)
    torch.manual_seed(5)
    model = Awkward(kind).double().eval()
    below = []
    model.first.register_forward_hook(lambda module, args, output: below.append(len(output)))
    found = raw("ablationcam", model, images, batch_size=3)
    # one image, the start, axes, rows; the capture, the operator, one a channel, one recorded
    assert len(below) == 1 + 3 + 1 + 2 + (1 + 1 + 7 + 1)
    near(found, ablated(model, images))


def test_ablation_of_a_layer_that_runs_twice() -> None:
    _, images = case(2)
    torch.manual_seed(5)
    model = Awkward("twice").double().eval()
    with torch.no_grad():
        a, skip = model.below(images)
        last = model.layer(a[:, :6].relu())
        whole = Net.above(model, last.clone(), skip).gather(1, CLASSES[:, None])
        weights = torch.zeros(last.shape[:2], dtype=torch.float64)
        for k in range(7):
            without = last.clone()
            without[:, k] = 0
            left = Net.above(model, without, skip).gather(1, CLASSES[:, None])
            weights[:, k] = ((whole - left) / whole)[:, 0]
    for batch_size in (3, 64):
        near(raw("ablationcam", model, images, batch_size=batch_size), summed(last, weights))


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", "layer3"),
        ("densenet121", "features.denseblock3"),
        ("mobilenet_v3_small", "features.6"),
        ("googlenet", "inception4c"),
        ("vit_b_16", "encoder.layers.encoder_layer_9"),
        ("swin_t", "features.3"),
        ("timm/vit_tiny_patch16_224", "blocks.9"),
    ],
)
def test_real_networks_are_replayed(name: str, layer: str) -> None:
    model, images = network(name)
    with torch.no_grad():
        record = capture(model, images, [layer], graph=None)
        above = Continuation(record, 0, torch.arange(3))
        whole = [above(lambda a: a[:, 3:7].zero_()), record.again(torch.arange(3))]
        replayed = [above(lambda a: a[:, 3:7].zero_()), above(lambda a: None)]
        assert above._recorded[0].sound
    assert (whole[0] - whole[1]).abs().max() > 1e-4
    for first, second in zip(whole, replayed, strict=True):
        near(second, first, 1e-4)


def test_reshape_that_copies_is_named() -> None:
    model, images = case(2)
    with pytest.raises(ValueError, match="reshape: got a function that copies"):
        raw("ablationcam", model, images, reshape=torch.clone)


def test_shapley_cam_by_the_whole_hessian() -> None:
    model, images = case(1)
    a, g, _ = parts(model, images)
    _, skip = model.below(images)
    products = []
    for n in range(3):

        def score(x: Tensor, n: int = n) -> Tensor:
            return model.above(x[None].clone(), skip[n : n + 1].detach())[0, CLASSES[n]]

        hessian = torch.autograd.functional.hessian(score, a[n])
        products.append(torch.einsum("abcd,cd->ab", hessian, a[n]))
    product = torch.stack(products)
    assert product.abs().max() > 1e-3
    near(raw("shapleycam", model, images), summed(a, (g - product / 2).mean(2)))


def test_shapley_cam_of_a_linear_head_is_grad_cam() -> None:
    model, images = small(), small_images()
    expected = fastcam.GradCAM(model)(images, CLASSES)
    torch.testing.assert_close(fastcam.ShapleyCAM(model)(images, CLASSES), expected)


def test_shapley_cam_of_a_transformer() -> None:
    model, images = network("timm/vit_tiny_patch16_224")
    maps = fastcam.ShapleyCAM(model)(images, CLASSES)
    assert maps.isfinite().all() and not maps.equal(fastcam.GradCAM(model)(images, CLASSES))


@pytest.mark.parametrize("base", [fastcam.GradCAM, fastcam.LayerCAM])
@pytest.mark.parametrize("weights", ["equal", "softmax"])
def test_finer_cam(weights: str, base: type) -> None:
    model, images = case(2)

    def contrast(row: Tensor, target: int) -> Tensor:
        distances = (row - row[target]).detach().abs().tolist()
        nearest = sorted((i for i in range(5) if i != target), key=distances.__getitem__)[:2]
        if weights == "equal":
            return row[target] - 0.7 * sum(row[i] for i in nearest) / 2
        p = row.softmax(0)
        total = sum(p[i] for i in nearest)
        return sum(p[i] * (row[target] - 0.7 * row[i]) for i in nearest) / total

    targets = [lambda row, c=int(c): contrast(row, c) for c in CLASSES]
    expected = base(model, "layer")(images, targets, size="layer", normalize=False)
    options = {"gamma": 0.7, "references": 2, "weights": weights, "base": base}
    near(raw("finercam", model, images, **options), expected)
    cam = fastcam.FinerCAM(model, "layer", **options)
    maps = cam(images, CLASSES[:, None].repeat(1, 2), size="layer", normalize=False)
    near(maps[:, 1], expected)
    assert cam.scores.equal(cam.outputs.gather(1, CLASSES[:, None].repeat(1, 2)))


def test_finer_cam_says_what_it_cannot_compare() -> None:
    model, images = case(2)
    with pytest.raises(ValueError, match="Finer-CAM needs class ids"):
        fastcam.FinerCAM(model, "layer")(images, lambda row: row[0])
    with pytest.raises(ValueError, match="base: got 'eigencam'"):
        fastcam.FinerCAM(model, base=fastcam.EigenCAM)


def test_refine_cam() -> None:
    model, images = case(2)
    layers = ["first", "layer", "mix"]
    product = torch.ones(3, *SIZES[2], dtype=torch.float64)
    for layer in layers:
        maps = fastcam.GradCAMPlusPlus(model, layer)(images, CLASSES, size="layer")
        product *= enlarged(maps, SIZES[2])
    cam = fastcam.RefineCAM(model, layers)
    near(cam(images, CLASSES, normalize=False), product)
    near(cam(images, CLASSES), scaled(product))
    assert cam(images, CLASSES, size="layer").shape == (3, 7, 9)
    assert not cam(images, CLASSES).equal(
        fastcam.RefineCAM(model, layers, base=fastcam.LayerCAM)(images, CLASSES)
    )


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_smooth_grad_cam_plus_plus(dims: int) -> None:
    model, images = case(dims)
    a, _, _ = parts(model, images)
    noise = torch.empty(4 * 3, *images.shape[1:], dtype=torch.float64)
    noise.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    gradients = torch.stack([parts(model, images + some)[1] for some in noise.split(3)])
    second, third = (gradients**2).mean(0), (gradients**3).mean(0)
    assert (a < 0).any()
    total = a.relu().flatten(2).sum(2).view(*a.shape[:2], *[1] * dims)
    alpha = torch.where(second == 0, 0, second / (2 * second + total * third))
    weights = (alpha * gradients.mean(0).relu()).flatten(2).sum(2)
    near(raw("smoothgradcam++", model, images), summed(a, weights))


def test_smooth_grad_cam_plus_plus_takes_two_runs() -> None:
    model, images = case(2)
    cam = fastcam.SmoothGradCAMPlusPlus(model, "layer")
    cam(images, 1)
    runs = []
    model.register_forward_hook(lambda *_: runs.append(1))
    cam(images, 1)
    assert len(runs) == 2  # on the images and on their noisy copies


@pytest.mark.parametrize(
    ("name", "option"),
    [
        *[(name, "batch_size") for name in ("scorecam", "sscam", "iscam", "ablationcam")],
        *[(name, "samples") for name in ("sscam", "iscam", "smoothgradcam++")],
        ("finercam", "references"),
    ],
)
def test_counts_are_at_least_one(name: str, option: str) -> None:
    model, _ = case(2)
    with pytest.raises(ValueError, match=f"^{option}: got 0, expected at least 1$"):
        fastcam.METHODS[name](model, "layer", **{option: 0})


def test_smooth_grad_cam_plus_plus_without_underflow() -> None:
    model, images = small(), small_images()
    expected = fastcam.SmoothGradCAMPlusPlus(model, "features")(images, CLASSES)
    with torch.no_grad():
        model.head.weight *= 1e-18
        model.head.bias *= 1e-18
        model.features.weight *= 1
    found = fastcam.SmoothGradCAMPlusPlus(model, "features")(images, CLASSES)
    assert found.isfinite().all() and (found.amax((1, 2)) > 0.99).all()
    assert expected.shape == found.shape


class Biased(nn.Module):
    """ReLUs only, with every kind of bias."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
        self.a, self.norm = conv(3, 4, 3, stride=2, bias=False), norm(4)
        self.b, self.plain = conv(4, 5, 2), norm(5, affine=False)
        self.head = nn.Linear(5, 5)

    def forward(self, x: Tensor, add: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
        x = F.relu(add(self.norm(self.a(x))), inplace=True)
        x = F.relu(add(self.plain(add(self.b(x)))), inplace=True)
        return self.head(x.flatten(2).mean(2))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_full_grad(dims: int) -> None:
    torch.manual_seed(dims)
    model = Biased(dims).double().eval()
    for norm in (model.norm, model.plain):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    nn.init.normal_(model.norm.bias)
    nn.init.uniform_(model.norm.weight, 0.5, 1.5)
    images = torch.randn(3, 3, *SIZES[dims], dtype=torch.float64, requires_grad=True)
    zeros: list[Tensor] = []

    def add(x: Tensor) -> Tensor:
        zeros.append(torch.zeros_like(x, requires_grad=True))
        return x + zeros[-1]

    scores = model(images, add).gather(1, CLASSES[:, None])[:, 0]
    gradients = torch.autograd.grad(scores.sum(), [images, *zeros])
    norm, plain = model.norm, model.plain
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    biases = [
        norm.bias - norm.running_mean * scale,
        model.b.bias,
        -plain.running_mean / (plain.running_var + plain.eps).sqrt(),
    ]
    column = (-1, *[1] * dims)
    factors = [images, *(bias.view(column) for bias in biases)]
    products = [(g * f).detach() for g, f in zip(gradients, factors, strict=True)]
    # the completeness of the paper's proposition 1: together with the last layer's bias, the score
    complete = sum(p.flatten(1).sum(1) for p in products) + model.head.bias[CLASSES]
    torch.testing.assert_close(complete, scores)
    expected = torch.zeros(3, *SIZES[dims], dtype=torch.float64)
    for product in products:
        for channel in product.abs().unbind(1):
            expected += torch.nan_to_num(enlarged(scaled(channel), SIZES[dims]))
    images = images.detach()
    near(fastcam.FullGrad(model)(images, CLASSES, normalize=False), expected)
    near(fastcam.FullGrad(model)(images, CLASSES), scaled(expected))
    both = fastcam.FullGrad(model)(images, CLASSES[:, None].repeat(1, 2), normalize=False)
    near(both[:, 1], expected)


def test_deconvnet() -> None:
    model, images = small().double(), small_images().double()
    a = model.norm(model.conv(images)).detach()
    b = model.features(a.relu()).detach()
    gradient = model.head.weight[CLASSES][:, :, None, None].expand_as(b) / b[0, 0].numel()
    x = a.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.features(x), x, gradient.relu().detach())
    x = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.norm(model.conv(x)), x, gradient.relu())
    near(fastcam.Deconvnet(model)(images, CLASSES), gradient)


def transformer(**options: object) -> nn.Module:
    models = pytest.importorskip("torchvision.models", reason="torchvision is missing")
    torch.manual_seed(0)
    model = models.VisionTransformer(32, 8, 3, 2, 16, 32, num_classes=5, **options)
    nn.init.normal_(model.heads.head.weight)
    return model.double().eval()


def test_legrad_by_hand() -> None:
    """Attention in plain steps, with the matrix as a leaf of its own in every block."""
    model = transformer()
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        x = model._process_input(images)
        x = torch.cat([model.class_token.expand(3, -1, -1), x], 1) + model.encoder.pos_embedding
    maps = []
    for block in model.encoder.layers:
        attention = block.self_attention
        with torch.no_grad():
            qkv = F.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
            q, k, v = qkv.view(3, 17, 3, 2, 8).permute(2, 0, 3, 1, 4)
        matrix = (q @ k.mT / math.sqrt(8)).softmax(-1).requires_grad_()
        y = x + attention.out_proj((matrix @ v).transpose(1, 2).reshape(3, 17, 16))
        y = y + block.mlp(block.ln_2(y))
        logits = model.heads(model.encoder.ln(y.mean(1)))
        score = logits.gather(1, CLASSES[:, None]).sum()
        (gradient,) = torch.autograd.grad(score, matrix, retain_graph=True)
        maps.append(gradient.relu().mean((1, 2))[:, 1:].view(3, 4, 4))
        x = y.detach()
    cam = fastcam.LeGrad(model)
    found = cam(images, CLASSES, size="layer", normalize=False)
    assert cam.layers == tuple(f"encoder.layers.encoder_layer_{i}" for i in range(3))
    near(found, sum(maps) / 3)
    last = fastcam.LeGrad(model, list(cam.layers[1:]))
    near(last(images, CLASSES, size="layer", normalize=False), sum(maps[1:]) / 2)
    near(cam(images, CLASSES), scaled(enlarged(sum(maps) / 3, (32, 32))))
    classes = torch.stack([CLASSES, (CLASSES + 1) % 5], 1)
    near(cam(images, classes, size="layer", normalize=False)[:, 0], sum(maps) / 3)


def test_legrad_leaves_the_model_as_found() -> None:
    model = transformer().train().requires_grad_(False)
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    before = copy.deepcopy(model.state_dict())
    with torch.inference_mode():
        maps = fastcam.LeGrad(model)(images, CLASSES)
    assert maps.equal(fastcam.LeGrad(model)(images, CLASSES))
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


def test_legrad_of_fused_and_plain_attention() -> None:
    model, images = network("timm/vit_tiny_patch16_224")
    expected = fastcam.LeGrad(model)(images, CLASSES)
    plain = copy.deepcopy(model)
    for block in plain.blocks:
        block.attn.fused_attn = False
    torch.testing.assert_close(fastcam.LeGrad(plain)(images, CLASSES), expected)


def test_legrad_says_what_it_cannot_explain() -> None:
    with pytest.raises(ValueError, match="head: unknown for Signal"):
        fastcam.LeGrad(network("signal")[0])
    with pytest.raises(ValueError, match="found no attention"):
        fastcam.LeGrad(small(), head=nn.Identity())(small_images())
    swin, images = network("swin_t")
    with pytest.raises(ValueError, match="blocks that attend all tokens"):
        fastcam.LeGrad(swin, "features.7", head=nn.Identity())(images)


FURTHER = [
    *("eigencam", "eigengradcam", "segeigencam", "kpcacam", "fem", "randomcam", "scorecam"),
    *("sscam", "iscam", "ablationcam", "shapleycam", "finercam", "refinecam", "smoothgradcam++"),
    *("fullgrad", "sess"),
]
AT_ONCE = {"sscam": {"samples": 2}, "sess": {"scales": 3}}


@pytest.mark.parametrize("name", FURTHER)
def test_classes_at_once_equal_them_one_by_one(name: str) -> None:
    model, images = case(2)
    layers = [] if name == "fullgrad" else ["layer"]
    cam = fastcam.METHODS[name](model, *layers, **AT_ONCE.get(name, {}))
    classes = torch.stack([CLASSES, (CLASSES + 2) % 5, CLASSES], 1)
    maps = cam(images, classes)
    assert maps.shape == (3, 3, 13, 18)
    for k in range(3):
        torch.testing.assert_close(maps[:, k], cam(images, classes[:, k]), rtol=0, atol=1e-7)
    if name != "finercam":
        targets = [lambda row, c=int(c): row[c] for c in CLASSES]
        torch.testing.assert_close(maps[:, 0], cam(images, targets), rtol=0, atol=1e-7)
    assert cam(images[:0], CLASSES[:0]).shape == (0, 13, 18)


@pytest.mark.parametrize("name", FURTHER)
def test_nan_and_constant_images(name: str) -> None:
    model, images = case(2)
    layers = [] if name == "fullgrad" else ["layer"]
    cam = fastcam.METHODS[name](model, *layers, **AT_ONCE.get(name, {}))
    clean = cam(images, CLASSES)
    images[1, 0, 3, 3] = torch.nan
    maps = cam(images, CLASSES)
    assert maps[1].isnan().any() and not maps[[0, 2]].isnan().any()
    torch.testing.assert_close(maps[[0, 2]], clean[[0, 2]], rtol=0, atol=1e-9)
    with torch.no_grad():
        model.layer.weight.zero_()  # each channel the same everywhere
    if name not in ("fullgrad", "eigengradcam", "segeigencam"):  # gradients differ still
        assert not cam(images[:1], CLASSES[:1]).any()


@pytest.mark.parametrize("name", [*FURTHER, "deconvnet"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_other_precisions(name: str, dtype: torch.dtype) -> None:
    model, images = small().to(dtype), small_images().to(dtype)
    maps = fastcam.METHODS[name](model, **AT_ONCE.get(name, {}))(images, CLASSES)
    assert maps.dtype == (dtype if name == "deconvnet" else torch.float32)
    assert maps.isfinite().all() and maps.any()


def test_several_layers() -> None:
    model, images = case(2)
    for name in ("eigencam", "scorecam", "ablationcam", "shapleycam", "smoothgradcam++"):
        cam = fastcam.METHODS[name](model, ["first", "layer"])
        both = cam(images, CLASSES, size="layer", normalize=False)
        near(both[1], raw(name, model, images))


def test_autocast_reaches_the_further_runs() -> None:
    model, images = small(), small_images()
    seen = []
    model.features.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        for name in ("scorecam", "smoothgradcam++"):
            fastcam.METHODS[name](model, "features")(images, CLASSES)
    assert set(seen) == {torch.bfloat16}


def planted() -> Tensor:
    torch.manual_seed(0)
    concepts = torch.rand(8, 3).double() * torch.tensor([3.0, 2.0, 1.0])
    concepts *= torch.rand(8, 3) > 0.5
    where = torch.rand(3, 2 * 6 * 5).double() * (torch.rand(3, 2 * 6 * 5) > 0.6)
    return (concepts @ where).view(8, 2, 6, 5).transpose(0, 1)


class Fixed(nn.Module):
    def __init__(self, activations: Tensor) -> None:
        super().__init__()
        self.layer = nn.Identity()
        self.activations = activations

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.activations + 0 * x[:, :1, ::2, ::2]).mean((2, 3))


def test_deep_feature_factorization() -> None:
    a = planted()
    images = torch.randn(2, 3, 12, 10, dtype=torch.float64)
    found = fastcam.deep_feature_factorization(
        Fixed(a), images, 3, "layer", size="layer", normalize=False, iterations=2000
    )
    assert found.concepts.shape == (3, 8) and found.maps.shape == (2, 3, 6, 5)
    low = a.amin((0, 2, 3))
    again = torch.einsum("nkhw,kc->nchw", found.maps, found.concepts - low) + low.view(-1, 1, 1)
    assert (again - a).norm() < 1e-2 * a.norm()
    assert (found.maps >= 0).all() and (found.concepts - low >= -1e-12).all()
    torch.testing.assert_close(found.maps.amax((0, 2, 3)), torch.ones(3, dtype=torch.float64))
    assert found.outputs.shape == (2, 8)
    maps = fastcam.deep_feature_factorization(Fixed(a), images, 3, "layer").maps
    assert maps.shape == (2, 3, 12, 10) and maps.amin() == 0 and maps.amax() == 1
    again = fastcam.deep_feature_factorization(Fixed(a), images, 3, "layer").maps
    assert again.equal(maps)


def test_the_factorization_is_as_good_as_that_of_sklearn() -> None:
    decomposition = pytest.importorskip("sklearn.decomposition", reason="scikit-learn is missing")
    model, images = network("resnet18")
    with torch.no_grad():
        (a,) = capture(model, images, ["layer3"], graph=None).activations
    a = a.transpose(0, 1).flatten(1)
    a = a - a.amin(1, keepdim=True)
    nmf = decomposition.NMF(5, init="random", random_state=0)
    nmf.fit(a.numpy())
    found = fastcam.deep_feature_factorization(
        model, images, 5, "layer3", size="layer", normalize=False
    )
    low = found.concepts.T - found.concepts.T.amin(1, keepdim=True)
    assert low.isfinite().all()
    h = found.maps.transpose(0, 1).flatten(1)
    w = torch.linalg.lstsq(h.T, a.T).solution.T
    assert (a - w @ h).norm() <= 1.02 * nmf.reconstruction_err_


def test_scores_of_other_logits() -> None:
    logits = torch.randn(3, 5)
    rows = torch.tensor([2, 0, 0, 1])
    functions = [lambda row, i=i: row[i] for i in CLASSES]
    for targets in (None, CLASSES, CLASSES[:, None].repeat(1, 2), functions):
        selection = select(logits, targets)
        assert selection.of(logits[rows], rows).equal(selection.scores[rows])
