"""Every operator against its definition in float64, over dtypes, layouts, shapes and values."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pairwise import pairwise
from torch import Tensor
from torch.autograd import forward_ad

from fastcam import _kernels, ops, reference

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# (N, C, *S)
SHAPES = (
    (1, 1, 1, 1),
    (3, 3, 7, 7),
    (1, 2048, 7, 7),
    (3, 2049, 1, 1),
    (2, 5, 13, 5),
    (1, 17, 56, 56),
    (2, 2049, 3, 2),
    (3, 3, 11),
    (2, 64, 197),
    (2, 3, 4, 7, 7),
    (1, 33, 2, 3, 5),
    (0, 3, 7, 7),
)
LAYOUTS = ("contiguous", "channels_last", "permuted", "sliced", "expanded", "row expanded")
VALUES = ("random", "zero", "constant", "nan", "inf", "huge a", "tiny a", "huge g", "tiny g")
HUGE = {torch.float64: 1e200, torch.float32: 1e30, torch.bfloat16: 1e30, torch.float16: 6e4}
TINY = {torch.float64: 1e-200, torch.float32: 1e-30, torch.bfloat16: 1e-30, torch.float16: 1e-7}


@pytest.fixture(autouse=True)
def poisoned_outputs():
    """Memory that an operator allocates and does not write is NaN, and a test sees it."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def device(device: torch.device) -> torch.device:
    """A device that compiled kernels serve: the reference is not tested against itself."""
    if device.type == "cuda" and not _kernels.build_info()["cuda"]:
        pytest.skip("there is a GPU, but fastcam was built without CUDA kernels")
    assert _kernels.report()[device.type] == "kernels"
    return device


def laid_out(tensor: Tensor, layout: str, channel: int = 1) -> Tensor:
    """The same values in another memory order."""
    if layout == "channels_last":
        return tensor.movedim(channel, -1).contiguous().movedim(-1, channel)
    if layout == "permuted":
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "sliced":
        shape = [2 * size + 1 for size in tensor.shape]
        wide = torch.full(shape, torch.nan, dtype=tensor.dtype, device=tensor.device)
        window = wide[tuple(slice(1, 2 * size, 2) for size in tensor.shape)]
        return window.copy_(tensor)
    return tensor


def with_values(values: str, a: Tensor, g: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    if values == "zero":
        a, g = a * 0, g * 0
    elif values == "constant":
        a, g = torch.full_like(a, 0.5), torch.full_like(g, 0.25)
    elif values in ("nan", "inf") and a.numel():
        special = float(values)
        a[0].view(-1)[a[0].numel() // 2] = special
        g[-1].view(-1)[0] = special
    elif values.endswith(" a"):
        a = a * (HUGE if values == "huge a" else TINY)[dtype]
    elif values.endswith(" g"):
        g = g * (HUGE if values == "huge g" else TINY)[dtype]
    return a, g


def operands(case: dict[str, Any], device: torch.device) -> tuple[Tensor, Tensor]:
    """Activations as behind a ReLU and signed gradients, rounded to the dtype."""
    torch.manual_seed(3)
    shape, classes, dtype = case["shape"], case["classes"], case["dtype"]
    a = torch.rand(shape, dtype=torch.float64)
    a = a * (torch.rand(shape) > 0.3)
    g = torch.randn((shape[0], *classes, *shape[1:]), dtype=torch.float64).clamp(-4, 4) / 4
    a, g = with_values(case["values"], a, g, dtype)
    a, g = a.to(device, dtype), g.to(device, dtype)
    if case["layout"].endswith("expanded"):  # over all positions, or along the last dimension
        expanded = 1 if case["layout"].startswith("row") else len(shape) - 2
        return a, g[(..., *[slice(0, 1)] * expanded)].expand_as(g)
    return laid_out(a, case["layout"]), laid_out(g, case["layout"], channel=1 + len(classes))


def double(*tensors: Tensor) -> list[Tensor]:
    return [tensor.double() for tensor in tensors]


def assert_close(got: Tensor, want: Tensor, scale: Tensor | None = None, inf: bool = False) -> None:
    """Equal but for rounding: relative to the largest magnitude that was summed, image by image.

    NaN where the reference has NaN; where Inf went in, Inf - Inf may make NaN of more.
    """
    assert got.shape == want.shape
    if inf:
        assert got.isnan()[want.isnan()].all()
        want = want.where(got.isfinite(), torch.nan)
    else:
        assert torch.equal(got.isnan(), want.isnan())
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}.get(
        got.dtype, 1e-3
    )
    finite = want.isfinite()
    want = want.where(finite, 0)
    scale = (
        want.abs() if scale is None else scale.abs().where(scale.isfinite(), 0).maximum(want.abs())
    )
    if want.numel():
        largest = scale.reshape(len(want), -1).amax(1).reshape(-1, *[1] * (want.dim() - 1))
        error = (got.double().where(finite, 0) - want).abs()
        floor = torch.finfo(got.dtype).tiny
        assert (error <= tolerance * largest + floor).all(), f"{error.max()} of {largest.max()}"


def is_inf(case: dict[str, Any]) -> bool:
    return case["values"] == "inf"


def name(case: dict[str, Any]) -> str:
    parts = (str(case["dtype"]).removeprefix("torch."), case["layout"], case["values"])
    return "-".join((*parts, "x".join(map(str, (*case["shape"], *case["classes"])))))


CASES = pairwise(
    {
        "dtype": DTYPES,
        "layout": LAYOUTS,
        "shape": SHAPES,
        "values": VALUES,
        "classes": ((), (1,), (3,)),
    }
)
cases = pytest.mark.parametrize("case", CASES, ids=name)


@cases
def test_gap(case, device):
    a, g = operands(case, device)
    spatial = a.dim() - 2
    got = ops.gap(g, spatial)
    assert got.dtype == (torch.float64 if g.dtype == torch.float64 else torch.float32)
    scale = reference.gap(g.double().abs(), spatial)
    assert_close(got, reference.gap(g.double(), spatial), scale, is_inf(case))


@cases
def test_gradcam_plus_plus_weights(case, device):
    a, g = operands(case, device)
    for eps in (0.0, 1e-3):
        got = ops.gradcam_plus_plus_weights(a, g, eps)
        want = reference.gradcam_plus_plus_weights(*double(a, g), eps)
        assert_close(got, want, inf=is_inf(case))


def signed_operands(
    values: str, layout: str, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Activations of both signs (2, 37, 5, 4), gradients (2, 3, 37, 5, 4)."""
    torch.manual_seed(12)
    a = torch.randn(2, 37, 5, 4, dtype=torch.float64)
    g = torch.randn(2, 3, 37, 5, 4, dtype=torch.float64)
    if values == "all below 0":
        a = -a.abs()
    elif values == "pole":  # 2 + g sum(A) = 0 exactly, where g > 0
        a, g = torch.full_like(a, -1 / 4), g.sign() * 2 / 5
    elif values == "tiny":
        a, g = a * 1e-7, g * 1e-7
    elif values == "nan":
        a[0, 3, 2, 1], g[1, 2, 5, 0, 0] = torch.nan, torch.nan
    a, g = laid_out(a.to(dtype), layout), laid_out(g.to(dtype), layout, channel=2)
    return a.to(device), g.to(device)


def weights_by_a_loop(a: Tensor, g: Tensor, eps: float, signed: bool) -> Tensor:
    """Grad-CAM++'s weights (N, K, C) as the paper writes them, with sum(A) or sum(ReLU(A))."""
    weights = torch.zeros(g.shape[:3], dtype=torch.float64)
    for n, k, c in torch.cartesian_prod(*map(torch.arange, g.shape[:3])).tolist():
        values = a[n, c].double().flatten().tolist()
        # not max(0, value), which is 0 for NaN
        total = sum(value if signed or not value < 0 else 0.0 for value in values)
        for gradient in g[n, k, c].double().flatten().tolist():
            if gradient <= 0:
                continue
            below = 2 * gradient**2 + total * gradient**3 + eps
            weights[n, k, c] += 0.0 if below == 0 else gradient**2 / below * gradient
    return weights


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("values", ["batch norm", "all below 0", "pole", "nan"])
def test_grad_cam_plus_plus_of_negative_activations(values, layout, dtype, device):
    a, g = signed_operands(values, layout, dtype, device)
    for eps in (0.0, 1e-3):
        want = weights_by_a_loop(a, g, eps, signed=False).to(device)
        for found in (
            ops.gradcam_plus_plus_weights(a, g, eps),
            reference.gradcam_plus_plus_weights(a, g, eps),
        ):
            assert_close(found, want)
        scale = reference.weighted_sum(*double(a.abs(), want), False)
        want = reference.weighted_sum(*double(a, want), False)
        for cam in (ops.cam, reference.cam):
            assert_close(cam(a, g, "gradcam++", False, eps), want, scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_the_formula_of_other_libraries_has_signed_activations(layout, dtype, device):
    a, g = signed_operands("batch norm", layout, dtype, device)
    eps = 1e3  # away from the pole, which amplifies rounding
    weights = weights_by_a_loop(a, g, eps, signed=True).to(device)
    scale = reference.weighted_sum(*double(a.abs(), weights.abs()), False)
    want = reference.weighted_sum(*double(a, weights), False)
    for cam in (ops.cam, reference.cam):
        assert_close(cam(a, g, "gradcam++-signed", False, eps), want, scale)
        same = cam(a.relu(), g, "gradcam++-signed", False), cam(a.relu(), g, "gradcam++", False)
        assert torch.equal(*same)


def test_no_channel_of_negative_activations_outweighs_all(device):
    """w_k <= sum ReLU(g) / 2, whatever A is: the denominator is at least 2."""
    for values in ("batch norm", "all below 0", "pole", "tiny"):
        a, g = signed_operands(values, "contiguous", torch.float64, device)
        weights = ops.gradcam_plus_plus_weights(a, g)
        most = g.relu().flatten(3).sum(3) / 2
        assert (weights >= 0).all() and (weights <= most * (1 + 1e-12)).all()


@cases
@pytest.mark.parametrize("relu", [True, False])
def test_weighted_sum(case, relu, device):
    a, g = operands(case, device)
    w = g.flatten(-(a.dim() - 2))[..., 0].float()
    got = ops.weighted_sum(a, w, relu)
    want = reference.weighted_sum(*double(a, w), relu)
    scale = reference.weighted_sum(*double(a.abs(), w.abs()), False)
    assert_close(got, want, scale, is_inf(case))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weighted_sum_of_many_classes(layout, dtype, device):
    """Shared weights, expanded over the images, and weights of each image's own."""
    torch.manual_seed(8)
    a = laid_out(torch.rand(3, 37, 5, 4, device=device).to(dtype), layout)
    shared = torch.randn(100, 37, device=device).expand(3, -1, -1)
    for w in (shared, torch.randn(3, 16, 37, device=device)):
        got, want = ops.weighted_sum(a, w), reference.weighted_sum(*double(a, w))
        assert_close(got, want, reference.weighted_sum(*double(a, w.abs())))


@cases
@pytest.mark.parametrize("method", reference.METHODS)
def test_cam(case, method, device):
    a, g = operands(case, device)
    for relu, eps in ((True, 0.0), (False, 1e-3)):
        got = ops.cam(a, g, method, relu, eps)
        want = reference.cam(*double(a, g), method, relu, eps)
        scale = reference.cam(*double(a.abs(), g.abs()), method, False, eps)
        assert_close(got, want, scale, is_inf(case))


@cases
@pytest.mark.parametrize("method", reference.METHODS)
def test_saliency(case, method, device):
    """The fused operator against the two that it fuses."""
    a, g = operands(case, device)
    size = [min(2 * extent + 3, 60) for extent in a.shape[2:]]
    for relu, normalize in ((True, True), (False, False)):
        got = ops.saliency(a, g, method, size, relu, normalize, 0.5)
        want = ops.upsample(ops.cam(a, g, method, relu, 0.5), size, normalize)
        assert got.shape == want.shape and got.dtype == want.dtype
        small = reference.cam(*double(a.abs(), g.abs()), method, False, 0.5)
        scale = torch.ones_like(want) if normalize else reference.upsample(small, size, False)
        assert_close(got, want, scale, is_inf(case))


@cases
def test_normalize(case, device):
    a, _ = operands(case, device)
    spatial = a.dim() - 2
    for eps in (0.0, 0.5):
        got, want = ops.normalize(a, spatial, eps), reference.normalize(a.double(), spatial, eps)
        assert_close(got, want, inf=is_inf(case))


@cases
@pytest.mark.parametrize("factor", [0.4, 1, 3.7])
def test_upsample(case, factor, device):
    a, _ = operands(case, device)
    size = [max(1, round(extent * factor)) for extent in a.shape[2:]]
    size = [min(extent, 70) for extent in size]
    a = a[:, :9]
    got, want = ops.upsample(a, size, False), reference.upsample(a.double(), size, False)
    assert_close(got, want, inf=is_inf(case))
    got, want = ops.upsample(a, size), reference.upsample(a.double(), size)
    assert_close(got, want, torch.ones_like(want), is_inf(case))
    finite = got[got.isfinite()]
    assert ((finite >= 0) & (finite <= 1)).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_constant_map_stays_constant(dims, dtype, device):
    """Whichever order it is enlarged and normalized in: noise would fill [0, 1]."""
    torch.manual_seed(11)
    for extent, enlarged in ((1, 5), (3, 7), (5, 3), (7, 30), (4, 4)):
        size = [enlarged + axis for axis in range(dims)]
        levels = torch.tensor([0.1, -3.7, 1e-5, 1234.5]).view(-1, *[1] * dims)
        maps = levels.expand(-1, *[extent] * dims).to(device, dtype)
        for operators in (ops, reference):
            found = operators.upsample(maps, size, False)
            assert (found == found.flatten(1)[:, :1].view(-1, *[1] * dims)).all()
            assert (found.flatten(1)[:, 0] == maps.flatten(1)[:, 0].to(found.dtype)).all()
            for zero in (operators.normalize(found, dims), operators.upsample(maps, size)):
                assert (zero == 0).all()


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_the_reference_enlarges_as_torch_does(dims):
    torch.manual_seed(11)
    maps = torch.randn(2, *[4, 5, 3][:dims], dtype=torch.float64, requires_grad=True)
    size = [9, 7, 6][:dims]
    mode = ("linear", "bilinear", "trilinear")[dims - 1]
    want = F.interpolate(maps.unsqueeze(1), size, mode=mode)[:, 0]
    found = reference.upsample(maps, size, False)
    torch.testing.assert_close(found, want)
    weight = torch.randn_like(want)
    gradients = (torch.autograd.grad((m * weight).sum(), maps)[0] for m in (found, want))
    torch.testing.assert_close(*gradients)


@cases
def test_guided_relu(case, device):
    _, g = operands(case, device)
    x = g - 0.1
    assert torch.equal(ops.guided_relu(x).nan_to_num(7), x.relu().nan_to_num(7))
    gradient = g.flip(0)
    got = ops.guided_relu_backward(gradient, x)
    want = reference.guided_relu_backward(gradient, x)
    assert got.stride() == torch.empty_like(x).stride()
    assert torch.equal(got.nan_to_num(7), want.nan_to_num(7))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_guided_relu_of_many_elements(dtype, device):
    """More than a thread's part, and not a multiple of a vector."""
    count = (16 << 20) // dtype.itemsize + 4099
    x = torch.linspace(-1, 1, count, device=device).to(dtype).roll(7)
    gradient = x.flip(0)
    assert torch.equal(ops.guided_relu(x), x.relu())
    want = torch.where((x > 0) & (gradient > 0), gradient, 0)
    assert torch.equal(ops.guided_relu_backward(gradient, x), want)


@cases
def test_guided_product(case, device):
    a, g = operands(case, device)
    maps = g.movedim(-(a.dim() - 1), 0)[0]  # (N, *S) or (N, K, *S)
    size = [2 * extent + 1 for extent in maps.shape[-(a.dim() - 2) :]]
    size = [min(extent, 40) for extent in size]
    shape = (*maps.shape[: maps.dim() - len(size)], 3, *size)
    guided = torch.randn(shape, device=device).to(g.dtype)
    guided = laid_out(guided, case["layout"], channel=guided.dim() - len(size) - 1)
    got = ops.guided_product(maps, guided, len(size))
    want = reference.guided_product(*double(maps, guided), len(size))
    assert got.dtype == guided.dtype
    assert got.stride() == torch.empty_like(guided).stride()
    assert_close(got, want, guided.double(), is_inf(case))


@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "NCHW-strided", "cropped"])
@pytest.mark.parametrize("dtype", [torch.uint8, *DTYPES], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("size", [(1, 1), (31, 33), (64, 100)])
def test_overlay(layout, dtype, size, device):
    torch.manual_seed(5)
    images = torch.rand(2, *size, 3, device=device) * 1.1 - 0.05  # some outside [0, 1]
    images = (images.clamp(0, 1) * 255).byte() if dtype == torch.uint8 else images.to(dtype)
    if layout.startswith("NCHW"):
        images = images.movedim(-1, 1)
        images = images.contiguous() if layout == "NCHW" else images
    if layout == "cropped":
        images = torch.cat([images, images], 2)[:, :, : size[1]]
    maps = torch.rand(2, 7, 5, device=device)
    maps[0, 2, 3] = torch.nan
    # neighbouring colours are near, so a heat rounded to the next one still agrees
    ramp = torch.arange(256, device=device)
    colormap = torch.stack([ramp, 255 - ramp, ramp // 2], 1).byte()
    opacities = torch.linspace(-0.2, 1.2, 256, device=device)  # some outside [0, 1]
    opacities[100] = torch.nan
    got = ops.overlay(images, maps, colormap, opacities)
    want = reference.overlay(images, maps, colormap, opacities)
    assert got.dtype == torch.uint8 and got.shape == images.shape and got.is_contiguous()
    difference = (got.int() - want.int()).abs()
    assert difference.max() <= 1
    assert difference.float().mean() < 0.01


def test_overlay_of_nothing_and_of_everything(device):
    images = torch.randint(0, 256, (1, 8, 8, 3), dtype=torch.uint8, device=device)
    colormap = torch.randint(0, 256, (256, 3), dtype=torch.uint8, device=device)
    maps = torch.ones(1, 2, 2, device=device)
    opacities = torch.ones(256, device=device)
    assert torch.equal(ops.overlay(images, maps, colormap, 0 * opacities), images)
    painted = ops.overlay(images, maps, colormap, opacities)
    assert torch.equal(painted, colormap[255].expand_as(images))


def test_each_colour_of_an_overlay_has_its_opacity(device):
    images = torch.randint(0, 256, (1, 4, 256, 3), dtype=torch.uint8, device=device)
    maps = torch.linspace(0, 1, 256, device=device).expand(1, 4, 256)
    colormap = torch.randint(0, 256, (256, 3), dtype=torch.uint8, device=device)
    opacities = (torch.arange(256, device=device) % 3 == 0).float()
    opaque = opacities.bool().view(256, 1)
    for order in ((0, 1, 2, 3), (0, 3, 1, 2)):
        drawn = ops.overlay(images.permute(order), maps, colormap, opacities)
        drawn = drawn if order[1] == 1 else drawn.movedim(1, -1)
        assert torch.equal(drawn, torch.where(opaque, colormap, images))


def test_cam_is_channel_weights_and_sum(device):
    """The fused operator against the operators that it fuses."""
    torch.manual_seed(1)
    a, g = torch.rand(2, 37, 9, 8, device=device), torch.randn(2, 3, 37, 9, 8, device=device)
    for method, weights in (
        ("gradcam", ops.gap(g, 2)),
        ("gradcam++", ops.gradcam_plus_plus_weights(a, g)),
    ):
        torch.testing.assert_close(ops.cam(a, g, method), ops.weighted_sum(a, weights))


@pytest.mark.parametrize("special", [torch.nan, torch.inf])
@pytest.mark.parametrize("method", reference.METHODS)
def test_nan_stays_in_its_image(method, special, device):
    torch.manual_seed(2)
    a, g = torch.rand(3, 40, 7, 7, device=device), torch.randn(3, 40, 7, 7, device=device)
    clean = ops.upsample(ops.cam(a, g, method), (20, 20))
    a[1, 5, 3, 3] = g[1, 7, 2, 2] = special
    maps = ops.upsample(ops.cam(a, g, method), (20, 20))
    if special != special:
        assert maps[1].isnan().all()
    assert torch.equal(maps[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("method", reference.METHODS)
def test_same_bits_on_every_run_and_thread_count(method, device):
    torch.manual_seed(4)
    a, g = torch.rand(2, 300, 14, 14, device=device), torch.randn(2, 300, 14, 14, device=device)
    first = ops.upsample(ops.cam(a, g, method), (50, 50))
    w = torch.randn(2, 20, 300, device=device)
    many = ops.weighted_sum(a, w)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3, threads):
            torch.set_num_threads(count)
            assert torch.equal(ops.upsample(ops.cam(a, g, method), (50, 50)), first)
            assert torch.equal(ops.weighted_sum(a, w), many)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_long_sums_keep_their_digits(layout, device):
    a = laid_out(torch.full((1, 2, 1000, 1000), 0.1, device=device), layout)
    torch.testing.assert_close(ops.gap(a), a[:, :, 0, 0], rtol=1e-6, atol=0)
    want = reference.gradcam_plus_plus_weights(a.double(), a.double())
    torch.testing.assert_close(ops.gradcam_plus_plus_weights(a, a), want.float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("classes", [3, 20])
def test_autocast_does_not_round_maps(classes, device):
    torch.manual_seed(9)
    a, w = torch.rand(2, 50, 5, 5, device=device), torch.randn(2, classes, 50, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        got = ops.weighted_sum(a, w), reference.weighted_sum(a, w)
    for maps in got:
        torch.testing.assert_close(maps, reference.weighted_sum(a, w))


def test_operands_on_two_devices(device):
    here, there = torch.rand(1, 3, 4, 4, device=device), torch.rand(1, 3, 4, 4)
    if device.type == "cpu":
        pytest.skip("it takes a second device")
    with pytest.raises(RuntimeError, match="gradients: is on another device than activations"):
        ops.cam(here, there, "gradcam")
    with pytest.raises(RuntimeError, match="maps: is on another device than guided"):
        ops.guided_product(there[:, 0], here)


def test_guided_relu_has_the_guided_backward(device):
    x = torch.tensor([-1.0, 0.0, 1.0, 2.0], device=device, requires_grad=True)
    ops.guided_relu(x).backward(torch.tensor([3.0, 3.0, 3.0, -3.0], device=device))
    assert x.grad is not None
    assert x.grad.tolist() == [0, 0, 3, 0]


def test_an_operator_without_backward_says_so(device):
    w = torch.rand(2, 20, 5, device=device, requires_grad=True)
    maps = ops.weighted_sum(torch.rand(2, 5, 3, 3, device=device), w)
    with pytest.raises(NotImplementedError, match=r"use fastcam\.reference\.weighted_sum"):
        maps.sum().backward()


def samples(device: torch.device) -> dict[str, tuple[Any, ...]]:
    torch.manual_seed(6)
    a, g = torch.rand(2, 5, 4, 3, device=device), torch.randn(2, 3, 5, 4, 3, device=device)
    maps = torch.rand(2, 4, 3, device=device)
    colormap = torch.randint(0, 256, (256, 3), dtype=torch.uint8, device=device)
    return {
        "gap": (g, 2),
        "gradcam_plus_plus_weights": (a, g, 0.1),
        "weighted_sum": (a, g.mean((-1, -2)), False),
        "cam": (a, g, "xgradcam", True, 0.1),
        "saliency": (a, g, "gradcam++", [9, 8], True, True, 0.1),
        "normalize": (maps, 2, 0.1),
        "upsample": (maps, [9, 8]),
        "guided_relu": (g.clone().requires_grad_(),),
        "guided_relu_backward": (g, g - 0.1),
        "guided_product": (maps, torch.randn(2, 3, 9, 8, device=device)),
        "impute": (
            torch.randn(2, 3, 9, 8, device=device),
            torch.rand(2, 9, 8, device=device) < 0.5,
        ),
        "overlay": (
            torch.rand(2, 3, 9, 8, device=device),
            maps,
            colormap,
            torch.rand(256, device=device),
        ),
    }


OPERATORS = list(samples(torch.device("cpu")))


@pytest.mark.parametrize("operator", OPERATORS)
def test_opcheck(operator, device):
    torch.use_deterministic_algorithms(False)  # opcheck compares results, poison and all
    arguments = samples(device)[operator]
    torch.library.opcheck(getattr(torch.ops.fastcam, operator).default, arguments)
    half = [
        x.detach().half() if isinstance(x, Tensor) and x.is_floating_point() else x
        for x in arguments
    ]
    torch.library.opcheck(getattr(torch.ops.fastcam, operator).default, half)


def plain(arguments: tuple[Any, ...]) -> list[Any]:
    return [x.detach() if isinstance(x, Tensor) else x for x in arguments]


@pytest.mark.parametrize("operator", OPERATORS)
def test_meta_tensors_among_others_are_refused(operator, device):
    """The result would be memory that nobody has written."""
    arguments = plain(samples(device)[operator])
    tensors = [i for i, x in enumerate(arguments) if isinstance(x, Tensor)]
    functions = (getattr(ops, operator), getattr(torch.ops.fastcam, operator))
    for i in tensors if len(tensors) > 1 else ():
        mixed = [x.to("meta") if i == j else x for j, x in enumerate(arguments)]
        for function in functions:
            with pytest.raises(RuntimeError, match=r"^[a-z_]+: is on another device than [a-z_]+ "):
                function(*mixed)
    meta = [x.to("meta") if isinstance(x, Tensor) else x for x in arguments]
    got, want = functions[1](*meta), functions[1](*arguments)
    assert got.device.type == "meta" and got.shape == want.shape and got.dtype == want.dtype


def test_devices_are_compared_by_the_reference_too(device, monkeypatch):
    monkeypatch.setitem(_kernels._PROBLEMS, device.type, "a test")
    monkeypatch.setattr(_kernels, "_warned", {device.type, "meta"})
    a, g = torch.rand(1, 3, 4, 4, device=device), torch.rand(1, 3, 4, 4, device="meta")
    assert torch.equal(ops.cam(a, a, "gradcam"), reference.cam(a, a, "gradcam"))
    with pytest.raises(RuntimeError, match="gradients: is on another device than activations"):
        ops.cam(a, g, "gradcam")


@pytest.mark.parametrize("operator", OPERATORS)
def test_forward_mode_derivatives_are_refused(operator, device):
    """Never a tangent of 0: by dual tensors, torch.func.jvp, jacfwd, and jvp within jvp."""
    arguments = plain(samples(device)[operator])
    function = getattr(ops, operator)
    want = function(*arguments)
    for i, x in enumerate(arguments):
        if not isinstance(x, Tensor) or not x.is_floating_point():
            continue

        def of_one(given: Tensor, i: int = i) -> Tensor:
            return function(*arguments[:i], given, *arguments[i + 1 :])

        def dual(x: Tensor = x, of_one: Any = of_one) -> None:
            with forward_ad.dual_level():
                assert torch.equal(of_one(x), want)  # without a tangent as ever
                of_one(forward_ad.make_dual(x, torch.ones_like(x)))

        def nested(outer: Tensor, x: Tensor = x, of_one: Any = of_one) -> Tensor:
            return torch.func.jvp(lambda y: of_one(outer) * y.sum(), (x,), (x,))[0]

        calls = {
            "dual": dual,
            "jvp": lambda x=x, f=of_one: torch.func.jvp(f, (x,), (x,)),
            "jacfwd": lambda x=x, f=of_one: torch.func.jacfwd(f)(x),
            "nested": lambda x=x, f=nested: torch.func.jvp(f, (x,), (x,)),
        }
        for call in calls.values():
            sentence = f"^fastcam.ops.{operator} has no forward-mode derivative"
            with pytest.raises(NotImplementedError, match=sentence):
                call()
    assert torch.equal(function(*arguments), want)


def test_the_reference_has_forward_mode_derivatives():
    a, g = torch.rand(1, 3, 4, 4).double(), torch.rand(1, 3, 4, 4).double()
    tangent = torch.func.jvp(lambda g: reference.cam(a, g, "gradcam"), (g,), (g,))[1]
    torch.testing.assert_close(tangent, reference.cam(a, g, "gradcam"))  # it is linear in g


def test_every_operator_has_one_name():
    assert set(samples(torch.device("cpu"))) == set(ops.__all__)
    assert set(WRONG) == set(ops.__all__)
    assert all(callable(getattr(reference, operator)) for operator in ops.__all__)


def test_compiled_without_a_break(device):
    def maps(a: Tensor, g: Tensor) -> Tensor:
        return ops.upsample(ops.cam(a * 2, g, "gradcam++"), (20, 20))

    a, g = torch.rand(2, 8, 7, 7, device=device), torch.randn(2, 8, 7, 7, device=device)
    compiled = torch.compile(maps, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(a, g), maps(a, g))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_shape(data, device):
    spatial = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    n, c = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 40))
    classes = data.draw(st.sampled_from([(), (1,), (2,), (11,)]))
    layout = data.draw(st.sampled_from(LAYOUTS))
    dtype = data.draw(st.sampled_from(DTYPES))
    method = data.draw(st.sampled_from(reference.METHODS))
    size = [data.draw(st.integers(1, 30)) for _ in spatial]
    case = {"shape": (n, c, *spatial), "classes": classes, "layout": layout, "dtype": dtype}
    a, g = operands({**case, "values": "random"}, device)
    scale = reference.cam(*double(a.abs(), g.abs()), method, False)
    maps = ops.cam(a, g, method)
    assert_close(maps, reference.cam(*double(a, g), method), scale)
    want = reference.upsample(maps.double(), size, False)
    assert_close(ops.upsample(maps, size, False), want)
    dims = len(spatial)
    assert_close(ops.normalize(maps, dims), reference.normalize(maps.double(), dims))
    w = g.flatten(-dims)[..., 0]
    scale = reference.weighted_sum(*double(a, w.abs()))
    assert_close(ops.weighted_sum(a, w), reference.weighted_sum(*double(a, w)), scale)
    guided = laid_out(torch.randn(n, *classes, 2, *size, device=device).to(dtype), layout)
    got, want = (
        ops.guided_product(maps, guided, dims),
        reference.guided_product(*double(maps, guided), dims),
    )
    assert_close(got, want, guided.double())
    rectified = ops.guided_relu_backward(guided.flip(0), guided)
    assert torch.equal(rectified, reference.guided_relu_backward(guided.flip(0), guided))


WRONG = {
    "gap": ((torch.rand(3),), "gradients: got shape (3)"),
    "gradcam_plus_plus_weights": (
        (torch.rand(1, 2, 3, 3), torch.rand(1, 2, 3, 4)),
        "gradients: got shape (1, 2, 3, 4), expected that of the activations, (1, 2, 3, 3)",
    ),
    "weighted_sum": (
        (torch.rand(1, 2, 3, 3), torch.rand(1, 3)),
        "weights: got shape (1, 3), expected (N, C) or (N, K, C) with N = 1 and C = 2",
    ),
    "cam": (
        (torch.rand(1, 2, 3, 3), torch.rand(1, 2, 3, 3), "gradcampp"),
        "method: got 'gradcampp', expected one of gradcam, gradcam++",
    ),
    "saliency": (
        (torch.rand(1, 2, 3, 3), torch.rand(1, 2, 3, 3), "gradcam", [9]),
        "size: got (9), expected 2 extents, one for each spatial dimension of the activations",
    ),
    "normalize": ((torch.rand(2, 2), 4), "spatial_dims: got 4, expected 1, 2 or 3"),
    "upsample": ((torch.rand(2, 3, 3), [0, 4]), "size: got (0, 4), expected spatial extents"),
    "guided_relu": ((torch.ones(3, dtype=torch.int32),), "input: got dtype int32, expected"),
    "guided_relu_backward": (
        (torch.rand(3), torch.rand(4)),
        "grad_output: got shape (3), expected that of the input, (4)",
    ),
    "guided_product": (
        (torch.rand(2, 3, 3), torch.rand(1, 3, 6, 6)),
        "guided: got shape (1, 3, 6, 6) for maps of shape (2, 3, 3), expected (N, C, *T)",
    ),
    "impute": (
        (torch.rand(1, 3, 4, 4), torch.ones(1, 4, 5).bool()),
        "known: got shape (1, 4, 5) and dtype bool, expected (N, H, W) and bool for images of "
        "shape (1, 3, 4, 4)",
    ),
    "overlay": (
        (torch.rand(1, 4, 4, 3), torch.rand(1, 2, 2), torch.zeros(256, 3).byte(), torch.ones(3)),
        "opacities: got shape (3), expected (256), one of each colour",
    ),
}


@pytest.mark.parametrize("operator", WRONG)
def test_errors_name_the_argument(operator, device):
    arguments, message = WRONG[operator]
    on_device = [x.to(device) if isinstance(x, Tensor) else x for x in arguments]
    with pytest.raises(RuntimeError) as error:
        getattr(ops, operator)(*on_device)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
        *(torch.complex32, torch.complex64, torch.complex128, torch.float8_e4m3fn),
    ],
)
def test_errors_name_the_dtype_as_python_does(dtype, device):
    with pytest.raises(RuntimeError) as error:
        ops.guided_relu(torch.empty(3, dtype=dtype, device=device))
    assert str(error.value).startswith(f"input: got {str(dtype).replace('torch.', 'dtype ')}, ")


def test_kernels_and_documentation_name_the_methods_of_the_reference(device):
    a = torch.rand(1, 2, 3, 3, device=device)
    messages = []
    for cam in (ops.cam, reference.cam):
        with pytest.raises(RuntimeError) as error:
            cam(a, a, "unknown")
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    assert ops.cam.__doc__ is not None
    documented = re.findall(r"^ +``([^`]+)`` ", ops.cam.__doc__, re.MULTILINE)
    assert tuple(documented) == reference.METHODS
