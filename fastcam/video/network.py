"""Computes raw maps of frames, in batches of pictures or windows of a clip."""

from __future__ import annotations

import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor
from typing_extensions import Self

from fastcam import ops
from fastcam.engine.cores import single_threaded, threads_abreast
from fastcam.engine.running import ours
from fastcam.errors import FastcamError, first_line
from fastcam.explainer import Explainer
from fastcam.targets import ClassChoice
from fastcam.video.frame import Frame
from fastcam.video.temporal import Lock, RawMap, between
from fastcam.video.threads import Abreast, Ahead, Clock

T = TypeVar("T")
R = TypeVar("R")
Fitted = tuple[Frame, Tensor | None]
"""A frame and its input before :meth:`fastcam.models.Transform.normalized`, (3, h, w); None if the
stride skips the frame."""
Group = tuple[list[Fitted], FastcamError | None]
"""Frames that go through the network together, and the error that ended the clip after them."""


@dataclass(frozen=True)
class Network:
    """Explains every ``stride``-th frame.

    On a CPU, each core has a thread with its own batch and copy of the network. Threads that share
    an operation instead would wait for each other at the end of each one.

    Args:
        explainer: its model takes pictures or clips. For clips, ``clip_length`` explained frames
            form a window, and its map is upsampled in time to one map per frame.
        batch: the number of frames in memory per batch; with a stride, fewer are explained.
        stride: explain every ``stride``-th frame and interpolate the maps of the others.
        clock: records the time as "network".
    """

    explainer: Explainer
    batch: int
    stride: int
    clock: Clock

    @property
    def _group(self) -> int:
        """The number of explained frames per forward pass."""
        return self.explainer.model.clip_length or max(1, self.batch // self.stride)

    def fitted(self, frames: Iterable[Frame]) -> Iterator[Fitted]:
        """Yields the frames with their inputs."""
        fit = self.explainer.model.preprocessing.fitted
        for index, frame in enumerate(frames):
            if index % self.stride:
                yield frame, None
                continue
            with single_threaded():
                image = fit(frame.rgb().unsqueeze(0))[0]
            yield frame, image

    def maps(self, fitted: Ahead[Fitted], targets: ClassChoice) -> Generator[tuple[Frame, RawMap]]:
        """Yields every frame with its map; raises the clip's error after the last good frame.

        Closing the generator closes ``fitted``.
        """

        def explain(explainer: Explainer, item: tuple[Group, _Turn]) -> tuple[Group, list[RawMap]]:
            group, turn = item
            with turn:
                turn.frames = [
                    (frame.time, image) for frame, image in group[0] if image is not None
                ]
                images = [image for _, image in turn.frames]
                return group, self._explained(explainer, images, turn)

        items = zip(_groups(fitted, self._group), _turns(targets), strict=False)
        last: tuple[Frame, RawMap] | None = None
        with closing(self._abreast(items, explain, fitted.close)) as results:
            for (group, error), raws in results:
                sampled = [frame for frame, image in group if image is not None]
                ahead = deque(zip(sampled, raws, strict=True))
                for frame, image in group:
                    if image is not None:
                        last = ahead.popleft()
                        yield last
                    else:
                        assert last is not None  # the first frame is never skipped
                        yield frame, _at(frame, last, ahead[0] if ahead else None)
                if error is not None:
                    raise error

    def mean_probabilities(self, fitted: Ahead[Fitted]) -> Tensor:
        """(classes,), the mean over the explained frames that can be read."""

        def sums(explainer: Explainer, group: Group) -> tuple[Tensor, int]:
            images = [image for _, image in group[0] if image is not None]
            if not images:
                return torch.zeros(()), 0
            found = explainer.probabilities(self._input(images))
            return found.double().sum(0), len(found)

        total, windows = torch.zeros(()), 0
        groups = _groups(fitted, self._group)
        with closing(self._abreast(groups, sums, fitted.close)) as results:
            for part, count in results:
                total, windows = total + part, windows + count
        return total / max(windows, 1)

    def _abreast(
        self,
        items: Iterator[T],
        call: Callable[[Explainer, T], R],
        stop: Callable[[], object],
    ) -> Generator[R]:
        """Yields ``call`` of each item, in order; ``stop`` as for :class:`Ahead`."""
        threads = threads_abreast() if self.explainer.device.type == "cpu" else 1
        dtype, enabled = torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu")

        def run(explainer: Explainer, item: T) -> R:
            # autocast is thread-local
            with self.clock.of("network", threads), torch.autocast("cpu", dtype, enabled):
                return call(explainer, item)

        if threads > 1 and not self.explainer.is_ready:  # the copies share its results
            for item in islice(items, 1):
                with single_threaded():
                    result = run(self.explainer, item)
                yield result
        closed = threading.Event()
        twins = self._twins(threads, closed) if threads > 1 else []
        if not twins:
            threads = 1
            yield from map(partial(run, self.explainer), items)
            return
        functions = [partial(run, twin) for twin in twins]

        def end() -> None:
            closed.set()
            stop()

        with closing(Abreast(items, functions, "fastcam-network", end)) as results:
            yield from results

    def _twins(self, count: int, closed: threading.Event) -> list[Explainer]:
        """One explainer per thread, which stops once ``closed`` is set; empty if not copyable."""

        @ours
        def check(*_: object) -> None:
            if closed.is_set():
                raise _Closed

        try:
            twins = [self.explainer.twin() for _ in range(count)]
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

    def _input(self, images: list[Tensor]) -> Tensor:
        """(N, 3, h, w), or (1, 3, T, h, w), padded by repeating the last picture."""
        length = self.explainer.model.clip_length
        if length is not None:
            images = images + images[-1:] * (length - len(images))
        inputs = self.explainer.model.preprocessing.normalized(torch.stack(images))
        return inputs if length is None else inputs.movedim(0, 1).unsqueeze(0)

    def _explained(
        self, explainer: Explainer, images: list[Tensor], targets: ClassChoice
    ) -> list[RawMap]:
        if not images:
            return []
        explained = explainer(self._input(images), targets)
        heat = explained.heat(0)
        tops = explained.top_probabilities
        length = self.explainer.model.clip_length
        if length is not None:  # (1, t, h, w) -> (T, h, w); all frames share the window's class
            heat = ops.upsample(heat, (length, *heat.shape[2:]), normalize=False)[0]
        numbers = zip(
            explained.class_ids[:, 0].tolist(),
            explained.scores[:, 0].tolist(),
            explained.probabilities[:, 0].tolist(),
            (explained.probabilities[:, 0] / tops).tolist(),
            strict=True,
        )
        rows = list(numbers) * (1 if length is None else length)
        return [RawMap(each, *row) for each, row in zip(heat[: len(images)], rows, strict=False)]


class _Closed(BaseException):
    """Stops a network whose results are no longer needed; not an error, so no Exception."""


class _Turn(ClassChoice):
    """One batch's turn to use the shared, stateful class choice; turns follow batch order."""

    def __init__(self, choice: ClassChoice, before: threading.Event) -> None:
        self._choice, self._before = choice, before
        self.over = threading.Event()
        self.frames: list[tuple[float, Tensor]] = []
        """For each explained frame of the batch its time in seconds, and its input."""

    def ids(self, logits: Tensor) -> Tensor:
        self._before.wait()
        if isinstance(self._choice, Lock):
            self._choice.show(self.frames)
        ids = self._choice.ids(logits)
        self.over.set()
        return ids

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Passes the turn on even if the choice was not used."""
        self._before.wait()
        self.over.set()


def _turns(choice: ClassChoice) -> Iterator[_Turn]:
    before = threading.Event()
    before.set()
    while True:
        turn = _Turn(choice, before)
        before = turn.over
        yield turn


def _groups(fitted: Iterable[Fitted], size: int) -> Iterator[Group]:
    """Groups frames by ``size`` inputs; the last group carries the error that ended the clip."""
    group: list[Fitted] = []
    inputs = 0
    error = None
    try:
        for frame, image in fitted:
            group.append((frame, image))
            inputs += image is not None
            if inputs == size:
                yield group, None
                group, inputs = [], 0
    except FastcamError as broken:
        error = broken
    if group or error is not None:
        yield group, error


def _at(frame: Frame, left: tuple[Frame, RawMap], right: tuple[Frame, RawMap] | None) -> RawMap:
    """Interpolates the map of a frame between two explained ones by time."""
    if right is None:
        return left[1]
    span = right[0].time - left[0].time
    return between(left[1], right[1], (frame.time - left[0].time) / span if span > 0 else 0.0)
