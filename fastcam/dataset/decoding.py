"""Reads pictures in other processes, and puts those of one input size into batches."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastcam import pictures
from fastcam.dataset.inputs import Inputs
from fastcam.errors import FastcamError, UsageError, first_line
from fastcam.models import Transform

Size = tuple[int, int]  # (height, width)


@dataclass(frozen=True)
class Read:
    """What reading a picture gave besides its pixels."""

    index: int
    """Its place in the data set."""
    digest: str | None
    """The hash of its file; None if it could not be read."""
    size: Size | None
    """Of the picture, upright; None if it could not be decoded."""
    error: str | None
    """Why there is no input."""


@dataclass(frozen=True)
class Batch:
    """Pictures of one shard whose inputs have one size, or those that could not be read."""

    shard: int
    reads: list[Read]
    images: Tensor | None
    """(N, 3, h, w) before :meth:`fastcam.models.Transform.normalized`; None if not readable."""
    last: bool = False
    """Whether it is the shard's last."""


@dataclass(frozen=True)
class Reader(Dataset[tuple[Read, Tensor | None]]):
    """Picture by picture, what :class:`Read` has, and the input.

    Args:
        inputs: the data set.
        preprocessing: of the network.
        max_pixels: refuse larger pictures.
    """

    inputs: Inputs
    preprocessing: Transform
    max_pixels: int

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Read, Tensor | None]:
        digest = size = None
        key = self.inputs.items[index].key
        try:
            with pictures.enough_memory(key):
                data = self.inputs.data(index, self.max_pixels)
                digest = hashlib.sha256(data).hexdigest()
                picture = torch.from_numpy(pictures.decoded(data, key, self.max_pixels))
                size = picture.shape[0], picture.shape[1]
                image = self.preprocessing.fitted(picture.unsqueeze(0))[0].contiguous()
        except UsageError:  # the preprocessing's
            raise
        except FastcamError as error:
            return Read(index, digest, size, first_line(error)), None
        return Read(index, digest, size, None), image


class _Chunk(NamedTuple):
    """Some pictures of a shard, from one process."""

    failed: list[Read]
    ready: dict[Size, tuple[list[Read], Tensor]]
    """By the size of the input, in order."""
    seconds: float


class _Chunks(Dataset[_Chunk]):
    """Chunks of pictures by number."""

    def __init__(self, reader: Reader, places: list[range]) -> None:
        self._reader, self._places = reader, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int) -> _Chunk:
        started = time.perf_counter()
        failed: list[Read] = []
        ready: dict[Size, tuple[list[Read], list[Tensor]]] = {}
        for read, image in map(self._reader.__getitem__, self._places[number]):
            if image is None:
                failed.append(read)
                continue
            reads, images = ready.setdefault((image.shape[1], image.shape[2]), ([], []))
            reads.append(read)
            images.append(image)
        stacked = {size: (reads, torch.stack(images)) for size, (reads, images) in ready.items()}
        return _Chunk(failed, stacked, time.perf_counter() - started)


class Batches(Iterator[Batch]):
    """The batches of some shards, shard by shard; the last one of each shard says so.

    Batches depend on the shard's pictures alone: inputs of one size are taken in their order,
    ``batch`` at a time, and what is left at the end of the shard forms smaller ones.

    Args:
        reader: reads the pictures.
        shards: by number, the pictures of each, at least one.
        batch: the number of pictures in a batch.
        workers: the number of processes; 0 to read in this one.
    """

    def __init__(
        self, reader: Reader, shards: Sequence[tuple[int, range]], batch: int, workers: int
    ) -> None:
        self.seconds = 0.0
        """The time that reading took, divided by the number of processes."""
        self._batch, self._workers = batch, workers
        self._parts = [
            (number, places[start : start + batch], start + batch >= len(places))
            for number, places in shards
            for start in range(0, len(places), batch)
        ]
        loader = DataLoader(
            _Chunks(reader, [places for _, places, _ in self._parts]),
            batch_size=None,
            collate_fn=_unchanged,  # type: ignore[arg-type]  # without a batch size it gets an item
            num_workers=workers,
            worker_init_fn=_one_thread,
        )
        self._chunks = iter(loader)  # starts the processes
        self._batches = self._joined()

    def __next__(self) -> Batch:
        return next(self._batches)

    def _joined(self) -> Iterator[Batch]:
        waiting: dict[Size, tuple[list[Read], list[Tensor]]] = {}
        for shard, _, ends in self._parts:
            chunk = self._next()
            self.seconds += chunk.seconds / max(1, self._workers)
            made = [Batch(shard, chunk.failed, None)] if chunk.failed else []
            for size, (reads, images) in chunk.ready.items():
                before, parts = waiting.setdefault(size, ([], []))
                before += reads
                parts.append(images)
                if len(before) >= self._batch:
                    made.append(self._taken(shard, waiting[size]))
            if ends:
                made += [self._taken(shard, each) for each in waiting.values() if each[0]]
                waiting.clear()
                made[-1] = replace(made[-1], last=True)
            yield from made

    def _taken(self, shard: int, waiting: tuple[list[Read], list[Tensor]]) -> Batch:
        """The first pictures of one size, which no longer wait."""
        reads, parts = waiting
        images = parts[0] if len(parts) == 1 else torch.cat(parts)
        made = Batch(shard, reads[: self._batch], images[: self._batch])
        reads[:] = reads[self._batch :]
        parts[:] = [images[self._batch :]] if reads else []
        return made

    def _next(self) -> _Chunk:
        try:
            return next(self._chunks)
        except RuntimeError as error:
            if "worker" not in str(error):
                raise
            raise FastcamError(
                f"a process that reads pictures has ended ({first_line(error)}); run the command "
                "again, with fewer workers if memory is short"
            ) from error


def _unchanged(chunk: _Chunk) -> _Chunk:
    return chunk


def _one_thread(worker: int) -> None:
    import cv2

    cv2.setNumThreads(1)
