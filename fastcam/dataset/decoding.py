"""Reads pictures in other processes, and puts those of one input size into batches."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from fastcam import pictures
from fastcam.dataset.annotated import Instances
from fastcam.dataset.inputs import Inputs, Size
from fastcam.errors import ENDING, FastcamError, UsageError, first_line
from fastcam.models import Transform


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
    instances: Instances | None = None
    """What is annotated in it; None without annotations, or without an input."""


@dataclass(frozen=True)
class Batch:
    """Pictures of one shard whose inputs have one size, or those that could not be read."""

    shard: int
    reads: list[Read]
    images: Tensor | None
    """(N, 3, h, w) before :meth:`fastcam.models.Transform.normalized`; None if not readable."""
    last: bool = False
    """Whether it is the shard's last."""

    def first(self) -> Batch:
        """Its first picture alone."""
        images = None if self.images is None else self.images[:1]
        return replace(self, reads=self.reads[:1], images=images)


@dataclass(frozen=True)
class Reader:
    """Picture by picture, what :class:`Read` has, and the input.

    Args:
        inputs: the data set.
        preprocessing: of the network.
        max_pixels: refuse larger pictures.
    """

    inputs: Inputs
    preprocessing: Transform
    max_pixels: int

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
            region = self.preprocessing.region(*size)
            extents = image.shape[1], image.shape[2]
            instances = self.inputs.instances(index, size, region, extents)
        except UsageError:  # the preprocessing's
            raise
        except FastcamError as error:
            return Read(index, digest, size, first_line(error)), None
        return Read(index, digest, size, None, instances), image


class _Chunk(NamedTuple):
    """Some pictures of a shard, from one process."""

    failed: list[Read]
    ready: dict[Size, tuple[list[Read], NDArray[Any]]]
    """By the size of the input, in order."""
    seconds: float


class Batches(Iterator[Batch]):
    """The batches of some shards, shard by shard; the last one of each shard says so.

    Batches depend on the shard's pictures alone: inputs of one size are taken in their order,
    ``batch`` at a time, and what is left at the end of the shard forms smaller ones.

    Args:
        reader: reads the pictures.
        shards: by number, the pictures of each, at least one.
        batch: the number of pictures in a batch.
        workers: the number of processes; 0 to read in this one.

    Raises:
        FastcamError: in place of a batch, if a process has ended.
    """

    def __init__(
        self, reader: Reader, shards: Sequence[tuple[int, range]], batch: int, workers: int
    ) -> None:
        self.seconds = 0.0
        """The time that reading took, divided by the number of processes."""
        self._batch = batch
        self._parts = [
            (number, places[start : start + batch], start + batch >= len(places))
            for number, places in shards
            for start in range(0, len(places), batch)
        ]
        self._pool = workers_of(reader, workers) if workers else None
        self._workers = 1 if self._pool is None else workers
        read = partial(_chunk, reader)
        places = [each for _, each, _ in self._parts]
        chunks = map(read, places) if self._pool is None else _ahead(self._pool, places, workers)
        self._batches = self._joined(chunks)

    def __next__(self) -> Batch:
        return next(self._batches)

    def close(self) -> None:
        """Ends the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _joined(self, chunks: Iterator[_Chunk]) -> Iterator[Batch]:
        waiting: dict[Size, tuple[list[Read], list[Tensor]]] = {}
        for (shard, _, ends), chunk in zip(self._parts, chunks, strict=True):
            self.seconds += chunk.seconds / self._workers
            made = [Batch(shard, chunk.failed, None)] if chunk.failed else []
            for size, (reads, images) in chunk.ready.items():
                before, parts = waiting.setdefault(size, ([], []))
                before += reads
                parts.append(torch.from_numpy(images))
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


def _chunk(reader: Reader, places: range) -> _Chunk:
    started = time.perf_counter()
    failed: list[Read] = []
    ready: dict[Size, tuple[list[Read], list[Tensor]]] = {}
    for read, image in map(reader.__getitem__, places):
        if image is None:
            failed.append(read)
            continue
        reads, images = ready.setdefault((image.shape[1], image.shape[2]), ([], []))
        reads.append(read)
        images.append(image)
    stacked = {
        size: (reads, torch.stack(images).numpy()) for size, (reads, images) in ready.items()
    }
    return _Chunk(failed, stacked, time.perf_counter() - started)


# --- processes. torch's DataLoader is not used: once one of its processes has ended, it raises an
# error from a signal handler, anywhere in the program; and tensors would need shared memory, of
# which containers have little. They are no forks: a fork of a process whose libraries have threads
# (OpenCV's, OpenMP's) may wait forever for threads that it does not have.

_reader: Reader  # of a worker


def workers_of(reader: Reader, count: int) -> ProcessPoolExecutor | None:
    """Processes that read pictures; None if they cannot have the reader.

    Warns:
        UserWarning: if the preprocessing is a function that cannot be pickled.
    """
    try:
        pickle.dumps(reader.preprocessing)
    except Exception as error:  # user code may raise anything
        warnings.warn(
            f"the preprocessing cannot be sent to other processes ({first_line(error)}): pictures "
            "are read in this one; define the function at the top of a module",
            stacklevel=6,
        )
        return None
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, context, _begin, (reader, os.getpid()))


def _begin(reader: Reader, parent: int) -> None:
    """The beginning of a worker, which ends with the process that has started it."""
    global _reader
    _reader = reader
    import cv2

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    for each in set(ENDING) - {signal.SIGINT}:
        signal.signal(each, signal.SIG_DFL)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _work(places: range) -> _Chunk:
    return _chunk(_reader, places)


def _ahead(pool: ProcessPoolExecutor, places: Sequence[range], workers: int) -> Generator[_Chunk]:
    """The chunks in order; some more than there are workers are under way."""
    under_way: deque[Future[_Chunk]] = deque()
    try:
        for each in places:
            under_way.append(pool.submit(_work, each))
            if len(under_way) > 2 * workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    except BrokenProcessPool as error:
        raise FastcamError(
            "a process that reads pictures has ended; run the same command again, with fewer "
            "workers if memory is short (a script that is run as a file needs "
            'if __name__ == "__main__": around its calls)'
        ) from error
