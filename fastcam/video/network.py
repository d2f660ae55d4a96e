"""Computes raw maps of frames, in batches of pictures or windows of a clip."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from typing_extensions import Self

from fastcam import ops
from fastcam.engine.cores import single_threaded
from fastcam.errors import FastcamError
from fastcam.explainer import Explainer
from fastcam.explainer.abreast import abreast
from fastcam.explainer.threads import Ahead, Clock
from fastcam.targets import ClassChoice
from fastcam.video.frame import Frame
from fastcam.video.temporal import Lock, RawMap, between

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
        with closing(self._abreast(items, explain, fitted)) as results:
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
        with closing(self._abreast(groups, sums, fitted)) as results:
            for part, count in results:
                total, windows = total + part, windows + count
        return total / max(windows, 1)

    def _abreast(
        self, items: Iterator[T], call: Callable[[Explainer, T], R], fitted: Ahead[Fitted]
    ) -> Generator[R]:
        return abreast(self.explainer, items, call, fitted.close, self.clock)

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
