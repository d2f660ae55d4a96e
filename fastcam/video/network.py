"""From frames to raw maps: batches of pictures, or windows of a clip for a video network."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastcam import ops
from fastcam.errors import FastcamError
from fastcam.explainer import Explainer
from fastcam.targets import ClassChoice
from fastcam.video.frame import Frame
from fastcam.video.temporal import RawMap, between
from fastcam.video.threads import Clock

Fitted = tuple[Frame, Tensor | None]
"""A frame and the network's input made from it, (3, h, w) uint8; None where it is left out."""


@dataclass(frozen=True)
class Network:
    """Explains every ``stride``-th frame.

    Args:
        explainer: its model takes pictures, or clips (then a window of ``clip_length`` explained
            frames goes through it, and its map is enlarged in time to one a frame).
        batch: how many frames are held at a time: with a stride, fewer go through the network.
        stride: 1 for every frame; the maps of the frames between are interpolated.
        clock: gets the network's time as "network".
    """

    explainer: Explainer
    batch: int
    stride: int
    clock: Clock

    @property
    def _group(self) -> int:
        """Explained frames that go through the network together."""
        return self.explainer.model.clip_length or max(1, self.batch // self.stride)

    def fitted(self, frames: Iterable[Frame]) -> Iterator[Fitted]:
        """The frames with their inputs."""
        fit = self.explainer.model.preprocessing.fitted
        for index, frame in enumerate(frames):
            yield frame, None if index % self.stride else fit(frame.rgb().unsqueeze(0))[0]

    def maps(
        self, fitted: Iterable[Fitted], targets: ClassChoice
    ) -> Iterator[tuple[Frame, RawMap]]:
        """Every frame with its map; a clip that breaks gives what it had before it raises."""
        last: tuple[Frame, RawMap] | None = None
        for group, error in _groups(fitted, self._group):
            sampled = [(frame, image) for frame, image in group if image is not None]
            with self.clock.of("network"):
                raws = self._explained([image for _, image in sampled], targets)
            ahead = deque(zip((frame for frame, _ in sampled), raws, strict=True))
            for frame, image in group:
                if image is not None:
                    last = ahead.popleft()
                    yield last
                else:
                    assert last is not None  # the first frame is never left out
                    yield frame, _at(frame, last, ahead[0] if ahead else None)
            if error is not None:
                raise error

    def mean_probabilities(self, fitted: Iterable[Fitted]) -> Tensor:
        """(classes,): of the explained frames, as far as the clip can be read."""
        total, windows = torch.zeros(()), 0
        for group, _ in _groups(fitted, self._group):
            images = [image for _, image in group if image is not None]
            if images:
                with self.clock.of("network"):
                    found = self.explainer.probabilities(self._input(images))
                total, windows = total + found.double().sum(0), windows + len(found)
        return total / max(windows, 1)

    def _input(self, images: list[Tensor]) -> Tensor:
        """(N, 3, h, w), or (1, 3, T, h, w) with the last picture repeated where some lack."""
        length = self.explainer.model.clip_length
        if length is not None:
            images = images + images[-1:] * (length - len(images))
        inputs = self.explainer.model.preprocessing.normalized(torch.stack(images))
        return inputs if length is None else inputs.movedim(0, 1).unsqueeze(0)

    def _explained(self, images: list[Tensor], targets: ClassChoice) -> list[RawMap]:
        if not images:
            return []
        explained = self.explainer(self._input(images), targets)
        heat = explained.heat(0)
        tops = explained.top_probabilities
        length = self.explainer.model.clip_length
        if length is not None:  # (1, t, h, w) -> (T, h, w): every frame has the window's class
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


def _groups(
    fitted: Iterable[Fitted], size: int
) -> Iterator[tuple[list[Fitted], FastcamError | None]]:
    """Runs of frames that end with the ``size``-th input; the last, with what broke the clip."""
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
    """The map of a frame by its time between two explained ones."""
    if right is None:
        return left[1]
    span = right[0].time - left[0].time
    return between(left[1], right[1], (frame.time - left[0].time) / span if span > 0 else 0.0)
