"""GPUs and drivers that the CUDA kernels do not run on: the reference serves, with one warning."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastcam
from fastcam import _kernels

LIBRARY = Path(fastcam.__file__).with_name("_ops_cuda.so")
# what CUDA says: nothing, no code for this GPU, PTX of a newer toolkit, a driver that is too old
ANSWERS = {0: None, 209: "no kernel image", 222: "PTX", 35: "driver version is insufficient"}

RUNTIME = """
extern "C" int cudaGetDevice(int* device) { *device = 0; return 0; }
extern "C" int cudaSetDevice(int) { return 0; }
extern "C" int cudaFuncGetAttributes(void*, const void*) { return %d; }
"""
ASK = """
import torch
from fastcam import _kernels
_kernels._PROBLEMS["cuda"] = None  # as beside a GPU
print(_kernels._problem(torch.device("cuda", 0)))
"""


@pytest.mark.skipif(not LIBRARY.exists(), reason="the CUDA kernels were not built")
@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ makes the stub of CUDA's runtime")
@pytest.mark.parametrize("code", ANSWERS)
def test_what_the_driver_answers(code: int, tmp_path: Path) -> None:
    """A stub of the runtime answers in its place."""
    if _kernels._cuda_problem() is not None:
        pytest.skip(f"the CUDA kernels do not load here: {_kernels._cuda_problem()}")
    stub = tmp_path / "runtime.so"
    subprocess.run(
        ["g++", "-shared", "-fPIC", "-x", "c++", "-", "-o", stub],
        input=RUNTIME % code,
        text=True,
        check=True,
    )
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        env={**os.environ, "LD_PRELOAD": str(stub)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    answer = ANSWERS[code]
    if answer is None:
        assert done.stdout.strip() == "None"
    else:
        assert answer in done.stdout and "pip install" in done.stdout, done.stdout


def test_a_refusal_means_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one warning, and for that GPU alone."""
    monkeypatch.setitem(_kernels._PROBLEMS, "cuda", None)
    monkeypatch.setattr(_kernels, "_refusals", {0: "no code for it", 1: None})
    monkeypatch.setattr(_kernels, "_warned", set())
    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    assert _kernels._problem(first) == "no code for it" and _kernels._problem(second) is None
    with pytest.warns(UserWarning, match="PyTorch reference: no code for it") as warned:
        for _ in range(2):
            _kernels._warn_once("cuda", "no code for it")
    assert len(warned) == 1
