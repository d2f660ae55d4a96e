"""Threads that keep to one core each, which on a CPU wait for nobody at the end of an operation."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def single_threaded() -> Iterator[None]:
    """Operators that this thread calls take no further ones; what others call does as before.

    torch.set_num_threads would not do: it also acts on threads that are yet to come, and on MKL in
    all of them.
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
    """How many threads of one core each torch may take; 1 where they cannot be held to one core."""
    return 1 if _thread_counts()[0] is _nothing else torch.get_num_threads()


@functools.cache
def _thread_counts() -> tuple[Callable[[int], object], Callable[[int], Any]]:
    """OpenMP's and MKL's setters for the calling thread, the latter returns what was set before."""
    folder = Path(torch.__file__).parent / "lib"
    names = ("libtorch_cpu.so", "libtorch_cpu.dylib", "torch_cpu.dll")
    found = [ctypes.CDLL(str(folder / name)) for name in names if (folder / name).exists()]
    library = found[0] if found else None
    return (
        getattr(library, "omp_set_num_threads", _nothing),
        getattr(library, "MKL_Set_Num_Threads_Local", _nothing),
    )


def _nothing(count: int) -> int:
    """In the place of a library that torch was built without."""
    return 0


def abreast(function: Callable[[T], R], items: list[T]) -> list[R]:
    """``function`` of each item, without gradients, in threads of one core each."""
    autocast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    def call(item: T) -> R:
        precision = torch.autocast("cpu", autocast[1], autocast[0])
        with single_threaded(), torch.no_grad(), precision:
            return function(item)

    return list(_pool(os.getpid(), threads_abreast()).map(call, items))


@functools.cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads that stay as OpenMP's do; a forked process has none of them."""

    return ThreadPoolExecutor(threads, "core")
