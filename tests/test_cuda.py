"""What only a GPU can show: graphs, streams, devices, and that the kernels' paths agree."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastcam import _kernels, ops, reference

# (N, C, *S): of few and many images, channels and positions
SHAPES = (
    (1, 2048, 7, 7),
    (64, 512, 7, 7),
    (9, 100, 14, 14),
    (2, 64, 56, 56),
    (1, 16, 112, 112),
    (3, 1024, 197),
    (2, 128, 8, 7, 7),
)


@pytest.fixture
def cuda() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    if not _kernels.build_info()["cuda"]:
        pytest.skip("there is a GPU, but fastcam was built without CUDA kernels")
    assert _kernels.report()["cuda"] == "kernels"
    return torch.device("cuda")


def operands(
    shape: tuple[int, ...], device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    a, g = torch.rand(shape, device=device), torch.randn(shape, device=device)
    return a.to(dtype), g.to(dtype)


def pictures(a: Tensor, g: Tensor, method: str, images: Tensor, colormap: Tensor) -> Tensor:
    """Maps, their range and the overlay: every kind of launch."""
    maps = ops.saliency(a, g, method, (40, 48))
    small = ops.normalize(ops.cam(a, g, method))
    guided = ops.guided_product(small, ops.guided_relu_backward(images, images))
    levels = ((maps[:, None] + guided).clamp(0, 1) * 255).byte()
    small = ops.weighted_sum(a, ops.gap(g)).clamp(0, 1)
    return ops.overlay(levels, small, colormap, colormap[:, 0] / 255)


@pytest.mark.parametrize("method", reference.METHODS)
def test_graph(method, cuda):
    """Captured once, replayed on other values."""
    torch.manual_seed(0)
    a, g = operands((4, 300, 7, 7), cuda)
    images = torch.randn(4, 3, 40, 48, device=cuda)
    colormap = torch.randint(0, 256, (256, 3), dtype=torch.uint8, device=cuda)
    pictures(a, g, method, images, colormap)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = pictures(a, g, method, images, colormap)
    for _ in range(2):
        a.uniform_(), g.normal_(), images.normal_()
        graph.replay()
        assert torch.equal(result, pictures(a, g, method, images, colormap))


def test_no_host_synchronization(cuda):
    a, g = operands((4, 300, 7, 7), cuda)
    images = torch.randn(4, 3, 40, 48, device=cuda)
    colormap = torch.zeros(256, 3, dtype=torch.uint8, device=cuda)
    pictures(a, g, "gradcam++", images, colormap)  # loads the kernels, which may wait
    torch.cuda.synchronize()
    torch.cuda._sleep(1_000_000_000)  # cycles: about half a second
    pictures(a, g, "gradcam++", images, colormap)
    assert not torch.cuda.current_stream().query(), "an operator waited for the GPU"
    torch.cuda.synchronize()


def test_other_stream(cuda):
    """Operators wait for what their own stream does, and for nothing else."""
    torch.manual_seed(0)
    a, g = operands((4, 300, 7, 7), cuda)
    want = ops.saliency(a + 1, g, "gradcam++", (40, 48))
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        got = ops.saliency(a + 1, g, "gradcam++", (40, 48))
    stream.synchronize()
    assert torch.equal(got, want)


def test_second_device(cuda):
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    torch.manual_seed(0)
    a, g = operands((4, 300, 7, 7), cuda)
    want = ops.saliency(a, g, "gradcam++", (40, 48))
    other = torch.device("cuda", 1)
    got = ops.saliency(a.to(other), g.to(other), "gradcam++", (40, 48))
    assert got.device == other and torch.cuda.current_device() == 0
    assert torch.equal(got.to(cuda), want)
