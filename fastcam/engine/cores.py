"""Threads that keep to one core each, so that none waits for others at the end of an operation."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


@contextmanager
def single_threaded() -> Iterator[None]:
    """Holds the operators that this thread calls to one thread; other threads are not affected.

    torch.set_num_threads would not do: it also affects threads that start later, and MKL in all
    threads.
    """
    openmp, mkl = _thread_counts()
    before = torch.get_num_threads()  # its first call in a thread sets the thread's count
    openmp(1)
    mkl_before = mkl(1)
    try:
        yield
    finally:
        mkl(mkl_before)
        openmp(before)


def threads_abreast() -> int:
    """How many threads of one core each torch may take; 1 if they cannot be held to one core."""
    return 1 if _thread_counts()[0] is _nothing else torch.get_num_threads()


@functools.cache
def _thread_counts() -> tuple[Callable[[int], object], Callable[[int], Any]]:
    """OpenMP's and MKL's setters for the calling thread; the latter returns the previous value."""
    folder = Path(torch.__file__).parent / "lib"
    names = ("libtorch_cpu.so", "libtorch_cpu.dylib", "torch_cpu.dll")
    found = [ctypes.CDLL(str(folder / name)) for name in names if (folder / name).exists()]
    library = found[0] if found else None
    return (
        getattr(library, "omp_set_num_threads", _nothing),
        getattr(library, "MKL_Set_Num_Threads_Local", _nothing),
    )


def _nothing(count: int) -> int:
    """Stands in for a library that torch was built without."""
    return 0
