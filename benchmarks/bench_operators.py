"""Every operator beside its definition in plain PyTorch, with pytest-benchmark:

python -m pytest benchmarks/bench_operators.py --benchmark-group-by=group
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.harness import synchronize
from benchmarks.ops import ARGUMENTS, Case, selected_cases
from fastcam import ops, reference

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
IMPLEMENTATIONS = {"fastcam": ops, "reference": reference}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", selected_cases(DEVICE), ids=lambda case: case.name)
def test_operator(benchmark: Any, case: Case, implementation: str) -> None:
    torch.manual_seed(0)
    arguments = ARGUMENTS[case.operator](case, DEVICE)
    call: Callable[..., Any] = getattr(IMPLEMENTATIONS[implementation], case.operator)

    def timed() -> None:
        call(*arguments)
        synchronize(DEVICE)

    benchmark.group = case.name
    benchmark(timed)
