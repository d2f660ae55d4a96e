"""The work on shards: from batches of pictures to maps, and from maps to files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastcam.dataset import settings
from fastcam.dataset.decoding import Batch, Batches, Read, Reader
from fastcam.dataset.inputs import Inputs
from fastcam.dataset.scores import scores
from fastcam.dataset.shards import Packed, Shard, folder_of
from fastcam.errors import FastcamError, first_line
from fastcam.explainer import Explained, Explainer
from fastcam.explainer.abreast import abreast
from fastcam.explainer.threads import Clock
from fastcam.targets import ClassChoice, TopClasses

STAGES = ("decode", "network", "write")
Seconds = dict[str, float]
"""The busy seconds of each stage. Stages overlap."""
Progress = Callable[[int, Seconds], object]
"""Is called with the number of pictures that are newly done, and the seconds so far."""


@dataclass(frozen=True)
class Job:
    """All that the work on any shard depends on. It can be pickled.

    Attributes:
        inputs, out, explainer: what is explained, where the maps go, and how.
        targets, top_k: the classes.
        labels: the class id of each picture, if it is a target.
        maps: whether there are maps, or class ids alone.
        metrics: the names of the metrics of the maps.
        batch, shard, workers, max_pixels: see :func:`fastcam.dataset.explain`.
    """

    inputs: Inputs
    out: Path
    explainer: Explainer
    targets: str
    top_k: int
    labels: list[int | None] | None
    maps: bool
    metrics: tuple[str, ...]
    batch: int
    shard: int
    workers: int
    max_pixels: int

    @property
    def shards(self) -> int:
        """How many there are."""
        return math.ceil(len(self.inputs) / self.shard)

    @property
    def methods(self) -> tuple[str, ...]:
        return self.explainer.names if self.maps else ()

    def places(self, number: int) -> range:
        """The places of a shard's pictures."""
        return range(number * self.shard, min((number + 1) * self.shard, len(self.inputs)))

    def missing(self, numbers: Sequence[int]) -> list[int]:
        """Those of the shards that have not been written yet."""
        return [number for number in numbers if not folder_of(self.out, number).exists()]

    def run(self, numbers: Sequence[int], progress: Progress) -> Seconds:
        """Explains and writes these shards."""
        seconds: Seconds = dict.fromkeys(STAGES, 0.0)
        if not numbers:
            return seconds
        reader = Reader(self.inputs, self.explainer.model.preprocessing, self.max_pixels)
        shards = [(number, self.places(number)) for number in numbers]
        clock = Clock()
        batches = Batches(reader, shards, self.batch, self.workers)
        about = {"layer": ", ".join(self.explainer.layers)}
        open_shard: Shard | None = None
        for batch, found in self._explained(batches, clock):
            if open_shard is None:
                places = self.places(batch.shard)
                open_shard = Shard(
                    batch.shard, places, self.methods, self.top_k, about, self.metrics
                )
            self._collect(open_shard, batch, found)
            if batch.last:
                with clock.of("write"):
                    open_shard.commit(self.out)
                open_shard = None
            seconds |= {"decode": batches.seconds, **clock.seconds}
            progress(len(batch.reads), seconds)
        return seconds

    def _explained(
        self, batches: Batches, clock: Clock
    ) -> Iterator[tuple[Batch, Packed | str | None]]:
        """Each batch with its maps, or with the reason why the network fails on it."""

        def call(explainer: Explainer, batch: Batch) -> tuple[Batch, Packed | str | None]:
            if batch.images is None:
                return batch, None
            try:
                images = self._images(explainer, batch)
                explained = self._maps(explainer, images, batch)
            except FastcamError as error:
                if _is_about_memory(error):
                    raise
                if len(batch.reads) > 1 and self._takes(explainer, batch.first()):
                    raise FastcamError(
                        f"{error}; it takes a single picture of this size, so give --batch 1"
                    ) from error
                return batch, first_line(error)
            if not self.metrics:
                return batch, Packed.of(explained, {})
            instances = [read.instances for read in batch.reads if read.instances is not None]
            values = scores(self.metrics, explainer, images, explained, instances or None)
            return batch, Packed.of(explained, values)

        found = abreast(self.explainer, batches, call, lambda: None, clock)
        with closing(batches), closing(found):
            yield from found

    def _takes(self, explainer: Explainer, batch: Batch) -> bool:
        try:
            self._maps(explainer, self._images(explainer, batch), batch)
        except FastcamError:
            return False
        return True

    def _images(self, explainer: Explainer, batch: Batch) -> Tensor:
        """The network's inputs."""
        assert batch.images is not None
        return explainer.model.preprocessing.normalized(batch.images.to(explainer.device))

    def _maps(self, explainer: Explainer, images: Tensor, batch: Batch) -> Explained:
        choice = self._choice([read.index for read in batch.reads])
        if self.maps:
            return explainer(images, choice)
        probabilities = explainer.probabilities(images)
        ids = choice.ids(probabilities)
        found = probabilities.gather(1, ids)
        nothing = torch.full_like(found, torch.nan)
        return Explained({}, ids, nothing, found, probabilities.amax(1), False)

    def _choice(self, indices: Sequence[int]) -> ClassChoice:
        if self.labels is None:
            return self.explainer.targets(self.targets, self.top_k)
        # a picture without a label fails later
        labels = [self.labels[index] for index in indices]
        return TopClasses(self.top_k, tuple(0 if each is None else each for each in labels))

    def _title(self, class_id: int) -> str:
        if self.labels is not None:
            return self.explainer.model.class_name(class_id)
        return self.explainer.title(class_id, self.explainer.targets(self.targets))

    def _collect(self, shard: Shard, batch: Batch, found: Packed | str | None) -> None:
        for number, read in enumerate(batch.reads):
            row = self._row(read)
            error = read.error or (found if isinstance(found, str) else None)
            if error is None and self.labels is not None and self.labels[read.index] is None:
                error = "it has no label"
            if error is not None:
                shard.fail(row, error)
                continue
            assert isinstance(found, Packed)
            own = found.row(number)
            names = [self._title(each) for each in own.class_ids.tolist()]
            shard.add({**row, "class_names": names}, own)

    def _row(self, read: Read) -> dict[str, Any]:
        """What the manifest says about a picture beside its classes."""
        item = self.inputs.items[read.index]
        label = item.label
        if isinstance(label, int) and self.inputs.label_names:
            label = self.inputs.label_names[label]
        row = {
            "index": read.index,
            "path": item.key,
            "label": None if label is None else str(label),
            "sha256": read.digest,
        }
        if read.size is None:
            return row
        height, width = read.size
        seen = self.explainer.model.preprocessing
        steps = seen.report(height, width)
        return {
            **row,
            "height": height,
            "width": width,
            "input": list(steps["crop"]),
            "region": list(seen.region(height, width)),
            "preprocessing": settings.as_text(steps),
        }


def _is_about_memory(error: FastcamError) -> bool:
    """Whether it would be another one at another time: for want of memory, or of a GPU."""
    cause = error.__cause__
    if isinstance(cause, (torch.OutOfMemoryError, torch.AcceleratorError)):
        return True
    return any(word in str(cause) for word in ("alloc", "memory", "CUDA error"))
