"""Imputation against a dense system, the reference, and the equations themselves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pairwise import pairwise
from torch import Tensor

from fastcam import ops, reference
from fastcam.metrics.imputation import impute

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
SIZES = ((1, 1), (1, 40), (2, 3), (3, 2), (4, 4), (5, 5), (2, 64), (17, 16), (33, 26), (64, 100))
KERNEL = torch.tensor([[1, 2, 1], [2, 0, 2], [1, 2, 1]], dtype=torch.float64)[None, None] / 12


@pytest.fixture(autouse=True)
def poisoned_outputs():
    """Memory that an operator allocates and does not write is NaN, and a test sees it."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def dense(images: Tensor, known: Tensor) -> Tensor:
    """Every missing pixel the weighted mean of its neighbours, by one dense system an image."""
    height, width = known.shape[1:]
    found = []
    for image, kept in zip(images.double(), known, strict=True):
        matrix = torch.eye(height * width, dtype=torch.float64)
        right = image.flatten(1).T.clone()
        for y, x in np.ndindex(height, width):
            if kept[y, x]:
                continue
            row = y * width + x
            matrix[row], right[row] = 0, 0
            for dy, dx in np.ndindex(3, 3):
                v, u = y + dy - 1, x + dx - 1
                if 0 <= v < height and 0 <= u < width:
                    matrix[row, row] += KERNEL[0, 0, dy, dx]
                    matrix[row, v * width + u] -= KERNEL[0, 0, dy, dx]
        found.append(torch.linalg.solve(matrix, right).T.view_as(image))
    return torch.stack(found)


def residual(images: Tensor, known: Tensor) -> Tensor:
    """(N, C, H, W): how far a missing pixel is from the weighted mean of its neighbours."""

    def neighbours(values: Tensor) -> Tensor:
        return F.conv2d(values.flatten(0, 1)[:, None], KERNEL, padding=1).view_as(values)

    images = images.double()
    return (neighbours(images) - neighbours(torch.ones_like(images)) * images) * ~known[:, None]


def laid_out(images: Tensor, layout: str) -> Tensor:
    if layout == "channels_last":
        return images.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        return torch.stack([images, images * torch.nan], -1)[..., 0]
    return images


@pytest.mark.parametrize("function", [ops.impute, reference.impute])
@pytest.mark.parametrize("size", [size for size in SIZES if size[0] * size[1] < 500])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_dense_system(
    function: Callable[[Tensor, Tensor], Tensor], size: tuple[int, int], share: float
) -> None:
    torch.manual_seed(0)
    images, known = torch.randn(3, 2, *size, dtype=torch.float64) + 1, torch.rand(3, *size) < share
    known[:, -1, -1] = True
    torch.testing.assert_close(function(images, known), dense(images, known), rtol=0, atol=1e-10)


CASES = pairwise(
    {
        "size": SIZES,
        "dtype": DTYPES,
        "layout": ("contiguous", "channels_last", "sliced"),
        "share": (0.0, 0.02, 0.3, 0.7, 0.99, 1.0),
        "batch": ((0, 3), (2, 0), (1, 1), (5, 3)),
        "scale": (1.0, 1e-4, 1e4),
    }
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_reference(case: dict, device: torch.device) -> None:
    torch.manual_seed(1)
    shape = (*case["batch"], *case["size"])
    known = (torch.rand(shape[0], *shape[2:]) < case["share"]).to(device)
    images = (torch.randn(shape) * case["scale"]).to(device, case["dtype"])
    images = laid_out(images.where(known[:, None], torch.nan), case["layout"])
    got, want = ops.impute(images, known), reference.impute(images.double(), known)
    assert got.shape == shape and got.dtype == case["dtype"] and got.is_contiguous()
    kept = known[:, None].expand(shape)
    assert got[kept].equal(images[kept])
    tolerance = {torch.float64: 1e-10}.get(case["dtype"], torch.finfo(case["dtype"]).eps)
    largest = want.abs().amax() if want.numel() else 0
    assert ((got.double() - want).abs() <= tolerance * largest).all()


def patterns(height: int = 150, width: int = 131) -> dict[str, Tensor]:
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    torch.manual_seed(2)
    return {
        "disc": (y - 70) ** 2 + (x - 60) ** 2 > 59**2,
        "one": (y == 90) & (x == 31),
        "corner": (y == 0) & (x == 0),
        "checkerboard": (y + x) % 2 == 0,
        "single pixels": ~((y % 2 == 1) & (x % 2 == 1)),
        "dots": (y % 8 == 0) & (x % 8 == 0),
        "stripes": x % 17 == 0,
        "comb": (x % 3 == 0) & (y > 5),
        "snake": (x % 6 == 0) & (torch.where(x % 12 == 0, y, height - 1 - y) > 0),
        "few": torch.rand(height, width) < 0.002,
        "map": F.interpolate(torch.rand(1, 1, 7, 7), (height, width), mode="bicubic")[0, 0] < 0.4,
    }


PATTERNS = patterns()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", PATTERNS)
def test_patterns(name: str, dtype: torch.dtype) -> None:
    known = PATTERNS[name][None]
    images = torch.randn(1, 2, *known.shape[1:], dtype=dtype) + 100
    found = ops.impute(images, known)
    assert residual(found, known).abs().max() < {torch.float32: 2e-5}.get(dtype, 1e-10)
    for channel, given in zip(found[0], images[0], strict=True):
        lowest, highest = given[known[0]].min(), given[known[0]].max()  # a mean is in between
        assert channel.min() >= lowest - 1e-5 and channel.max() <= highest + 1e-5
    if name in ("one", "corner"):
        want = images[:, :, known[0]].expand(1, 2, known[0].numel())
        torch.testing.assert_close(found.flatten(2), want, rtol=1e-7, atol=0)


@pytest.mark.parametrize("size", [(1, 700), (2, 501), (700, 3), (4, 333)])
def test_strips(size: tuple[int, int]) -> None:
    """Where only one dimension can be halved, and a single known pixel hardly holds the rest."""
    known = torch.zeros(2, *size, dtype=torch.bool)
    known[0, size[0] // 2, size[1] // 2] = True
    known[1] = torch.rand(size) < 0.01
    known[1, -1, 0] = True
    images = torch.randn(2, 1, *size, dtype=torch.float64)
    found = ops.impute(images, known)
    assert residual(found, known).abs().max() < 1e-10
    assert (found[0] - images[0, 0, size[0] // 2, size[1] // 2]).abs().max() < 1e-8


@pytest.mark.parametrize("function", [ops.impute, reference.impute])
@pytest.mark.parametrize("special", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_channel(
    function: Callable[[Tensor, Tensor], Tensor], special: float
) -> None:
    torch.manual_seed(3)
    images, known = torch.randn(2, 3, 20, 30), torch.rand(2, 20, 30) < 0.3
    clean = function(images, known)
    row, column = known[1].nonzero()[5]
    images[1, 2, row, column] = special
    found = function(images, known)
    assert found[1, 2][~known[1]].isnan().all()
    kept = found[1, 2][known[1]], images[1, 2][known[1]]
    torch.testing.assert_close(*kept, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(found[0], clean[0])
    torch.testing.assert_close(found[1, :2], clean[1, :2])


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_any_magnitude(scale: float) -> None:
    images, known = torch.randn(1, 1, 20, 20, dtype=torch.float64), torch.rand(1, 20, 20) < 0.3
    want = ops.impute(images, known)
    torch.testing.assert_close(ops.impute(images * scale, known) / scale, want)


def test_same_bits_on_every_thread_count_and_in_every_batch() -> None:
    torch.manual_seed(4)
    images, known = torch.randn(5, 2, 50, 61), torch.rand(5, 50, 61) < 0.2
    want = ops.impute(images, known)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3, threads):
            torch.set_num_threads(count)
            assert ops.impute(images, known).equal(want)
    finally:
        torch.set_num_threads(threads)
    assert ops.impute(images[3:4], known[3:4]).equal(want[3:4])


def test_noise_is_added_to_missing_pixels_alone() -> None:
    torch.manual_seed(5)
    images, known = torch.randn(2, 3, 9, 9).half(), torch.rand(2, 9, 9) < 0.5
    noise = torch.randn(2, 3, 9, 9)
    found, plain = impute(images, known, noise), impute(images, known)
    kept = known[:, None].expand_as(images)
    assert found.dtype == torch.float16 and found[kept].equal(images[kept])
    torch.testing.assert_close(found[~kept], (plain + noise).half()[~kept])


def test_errors_name_the_argument() -> None:
    images, known = torch.randn(2, 3, 8, 9), torch.ones(2, 8, 9, dtype=torch.bool)
    with pytest.raises(RuntimeError, match=r"known: got shape \(2, 9, 8\).*expected \(N, H, W\)"):
        ops.impute(images, known.mT)
    with pytest.raises(RuntimeError, match="dtype float32"):
        ops.impute(images, known.float())
    with pytest.raises(RuntimeError, match="images: got dtype int32"):
        ops.impute(images.int(), known)
    with pytest.raises(RuntimeError, match=r"known: got shape \(2, 9, 8\)"):
        reference.impute(images, known.mT)
    with pytest.raises(NotImplementedError, match=r"use fastcam\.reference\.impute"):
        ops.impute(images.requires_grad_(), known).sum().backward()
