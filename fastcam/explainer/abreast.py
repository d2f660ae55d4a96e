"""One network per core, each with its own batch."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from functools import partial
from itertools import islice
from typing import TypeVar

import torch

from fastcam.engine.cores import single_threaded, threads_abreast
from fastcam.engine.running import ours
from fastcam.errors import first_line
from fastcam.explainer.explainer import Explainer
from fastcam.explainer.threads import Abreast, Clock

T = TypeVar("T")
R = TypeVar("R")
STAGE = "network"


def abreast(
    explainer: Explainer,
    items: Iterator[T],
    call: Callable[[Explainer, T], R],
    stop: Callable[[], object],
    clock: Clock,
) -> Generator[R]:
    """Yields ``call(explainer, item)`` for each item, in order.

    On a CPU, each core has a thread with a copy of the network, and operators run in one thread.
    Threads that share an operation instead would wait for each other at the end of each one. State
    that the model updates between calls stays in the copies.

    Args:
        explainer: for a CPU it is copied, if that is possible.
        items: taken from one thread at a time.
        call: computes a result.
        stop: called by closing the generator; must end an iteration that may wait forever.
        clock: records the time as "network".

    Warns:
        UserWarning: if the model cannot be copied.
    """
    threads = threads_abreast() if explainer.device.type == "cpu" else 1
    dtype, enabled = torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu")

    def run(explainer: Explainer, item: T) -> R:
        # autocast is thread-local
        with clock.of(STAGE, threads), torch.autocast("cpu", dtype, enabled):
            return call(explainer, item)

    if threads > 1 and not explainer.is_ready:  # the copies share its results
        for item in islice(items, 1):
            with single_threaded():
                result = run(explainer, item)
            yield result
    closed = threading.Event()
    twins = _twins(explainer, threads, closed) if threads > 1 else []
    if not twins:
        threads = 1
        yield from map(partial(run, explainer), items)
        return
    functions = [partial(run, twin) for twin in twins]

    def end() -> None:
        closed.set()
        stop()

    with closing(Abreast(items, functions, "fastcam-network", end)) as results:
        yield from results


def _twins(explainer: Explainer, count: int, closed: threading.Event) -> list[Explainer]:
    """One explainer per thread, which stops once ``closed`` is set; empty if not copyable."""

    @ours
    def check(*_: object) -> None:
        if closed.is_set():
            raise _Closed

    try:
        twins = [explainer.twin() for _ in range(count)]
    except Exception as error:  # user code may raise anything
        warnings.warn(
            f"the model cannot be copied ({first_line(error)}): using a single thread",
            stacklevel=6,
        )
        return []
    for twin in twins:
        for network in twin.networks:
            network.register_forward_pre_hook(check)
    return twins


class _Closed(BaseException):
    """Stops a network whose results are no longer needed; not an error, so no Exception."""
