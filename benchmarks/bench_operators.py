"""Every operator beside its definition in plain PyTorch, with pytest-benchmark:

python -m pytest benchmarks/bench_operators.py --benchmark-group-by=group
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fastcam import ops, reference

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
IMPLEMENTATIONS = {"fastcam": ops, "reference": reference}
LAYERS = {"2048x7x7": (8, 2048, 7, 7), "256x56x56": (8, 256, 56, 56)}
METHODS = ("gradcam", "gradcam++", "xgradcam", "hirescam", "layercam", "gradcam-elementwise")


def _cases() -> dict[str, tuple[str, tuple[Any, ...]]]:
    """Case -> operator and its arguments."""
    torch.manual_seed(0)
    cases: dict[str, tuple[str, tuple[Any, ...]]] = {}
    for layer, shape in LAYERS.items():
        a, g = torch.rand(shape, device=DEVICE), torch.randn(shape, device=DEVICE)
        cases[f"gap {layer}"] = "gap", (g,)
        cases[f"gradcam_plus_plus_weights {layer}"] = "gradcam_plus_plus_weights", (a, g)
        cases[f"weighted_sum {layer}"] = "weighted_sum", (a, g[:, :, 0, 0].contiguous())
        for method in METHODS:
            cases[f"cam {method} {layer}"] = "cam", (a, g, method)
    maps = torch.rand(8, 7, 7, device=DEVICE)
    images = torch.rand(8, 3, 224, 224, device=DEVICE)
    colormap = torch.randint(0, 256, (256, 3), dtype=torch.uint8, device=DEVICE)
    cases["normalize 224x224"] = "normalize", (images[:, 0].contiguous(),)
    cases["upsample 7x7 to 224x224"] = "upsample", (maps, [224, 224])
    cases["guided_relu 224x224"] = "guided_relu", (images,)
    cases["guided_relu_backward 224x224"] = "guided_relu_backward", (images, images)
    cases["guided_product 224x224"] = "guided_product", (maps, images)
    cases["overlay 224x224"] = "overlay", ((images * 255).byte(), maps, colormap)
    return cases


CASES = _cases()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", CASES)
def test_operator(benchmark: Any, case: str, implementation: str) -> None:
    operator, arguments = CASES[case]
    call: Callable[..., Any] = getattr(IMPLEMENTATIONS[implementation], operator)

    def timed() -> None:
        call(*arguments)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    benchmark.group = case
    benchmark(timed)
