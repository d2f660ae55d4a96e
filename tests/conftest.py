"""What every test shares."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads starve on shared cores

import pytest
import torch

from fastcam import dropin


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device: the same test ran on the CPU alone")
    torch.backends.cudnn.allow_tf32 = False  # convolutions that are compared to 1e-5
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def own_libraries() -> Iterator[None]:
    """No library stays taken over: other tests compare with the libraries themselves."""
    dropin.forget()
    yield
    dropin.uninstall()
