"""Explains a data set shard by shard, and goes on if it was interrupted."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastcam.dataset import manifest, settings
from fastcam.dataset.decoding import Batch, Batches, Read, Reader
from fastcam.dataset.inputs import Inputs, open_inputs
from fastcam.dataset.labels import class_ids
from fastcam.dataset.shards import Packed, Shard, clean, folder_of
from fastcam.engine.cores import single_threaded
from fastcam.errors import ArgumentError, FastcamError, UsageError, first_line
from fastcam.explainer import TOP_CLASS, Explained, Explainer
from fastcam.explainer.abreast import abreast
from fastcam.explainer.threads import Clock
from fastcam.pictures import MAX_PIXELS
from fastcam.targets import ClassChoice, TopClasses

LABEL = "label"
"""The target that is each picture's label."""
BATCH, SHARD = 32, 512
_PROBES = 1000  # pictures that are tried until one can be explained
Progress = Callable[[int, str], object]
"""Is called with the number of pictures that are done and the slowest stage so far."""


@dataclass(frozen=True)
class Report:
    """The statistics of a run."""

    pictures: int
    """How many the data set has."""
    explained: int
    """How many pictures this run has done, failures included."""
    failed: int | None
    """How many of all could not be explained; None if other processes still have shards to do."""
    seconds: float
    stages: dict[str, float]
    """Busy seconds of decode, network and write; they overlap."""

    @property
    def complete(self) -> bool:
        """Whether all shards are there and the manifest is written."""
        return self.failed is not None

    @property
    def images_per_second(self) -> float:
        return self.explained / self.seconds

    @property
    def slowest_stage(self) -> str:
        """The stage with the most busy seconds."""
        return slowest(self.stages)


def slowest(stages: dict[str, float]) -> str:
    """The stage with the most busy seconds."""
    return max(stages, key=lambda stage: stages[stage])


@dataclass(frozen=True)
class Job:
    """All that the work on any shard depends on. It can be pickled.

    Attributes:
        inputs, out, explainer: what is explained, where the maps go, and how.
        targets, top_k: the classes.
        labels: the class id of each picture, if it is a target.
        classes: K, how many classes there are per picture.
        maps: whether there are maps, or class ids alone.
        batch, shard, workers, max_pixels: see :func:`explain`.
    """

    inputs: Inputs
    out: Path
    explainer: Explainer
    targets: str
    top_k: int
    labels: list[int | None] | None
    classes: int
    maps: bool
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

    def run(self, numbers: Sequence[int], progress: Progress) -> dict[str, float]:
        """Explains and writes these shards.

        Returns:
            The busy seconds of each stage.
        """
        if not numbers:
            return {}
        reader = Reader(self.inputs, self.explainer.model.preprocessing, self.max_pixels)
        shards = [(number, self.places(number)) for number in numbers]
        clock = Clock()
        batches = Batches(reader, shards, self.batch, self.workers)
        about = {"layer": self.explainer.layer or ""}
        open_shard: Shard | None = None
        for batch, found in self._explained(batches, clock):
            if open_shard is None:
                places = self.places(batch.shard)
                open_shard = Shard(batch.shard, places, self.methods, self.classes, about)
            self._collect(open_shard, batch, found)
            if batch.last:
                with clock.of("write"):
                    open_shard.commit(self.out)
                open_shard = None
            progress(len(batch.reads), slowest({"decode": batches.seconds, **clock.seconds}))
        return {"decode": batches.seconds, **clock.seconds}

    def _explained(
        self, batches: Batches, clock: Clock
    ) -> Iterator[tuple[Batch, Packed | str | None]]:
        """Each batch with its maps, or with the reason why the network fails on it."""

        def call(explainer: Explainer, batch: Batch) -> tuple[Batch, Packed | str | None]:
            if batch.images is None:
                return batch, None
            images = explainer.model.preprocessing.normalized(batch.images.to(explainer.device))
            try:
                return batch, Packed.of(self._maps(explainer, batch, images))
            except UsageError:
                raise
            except FastcamError as error:
                if not _is_about_size(error):
                    raise
                return batch, first_line(error)

        with closing(abreast(self.explainer, batches, call, lambda: None, clock)) as found:
            yield from found

    def _maps(self, explainer: Explainer, batch: Batch, images: torch.Tensor) -> Explained:
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


def _is_about_size(error: FastcamError) -> bool:
    """Whether a network fails on inputs of one size, and not for want of memory or of a GPU."""
    cause = error.__cause__
    kinds = (torch.OutOfMemoryError, getattr(torch, "AcceleratorError", torch.OutOfMemoryError))
    return not isinstance(cause, kinds) and not any(
        word in str(cause) for word in ("alloc", "memory", "CUDA error")
    )


def explain(
    source: Path | str,
    out: Path | str,
    explainer: Explainer,
    *,
    targets: str = TOP_CLASS,
    top_k: int = 1,
    maps: bool = True,
    batch: int = BATCH,
    shard: int = SHARD,
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
    share: tuple[int, int] = (0, 1),
    progress: Progress = lambda count, stage: None,
) -> Report:
    """Explains all pictures of a data set; called again, it goes on where it was interrupted.

    The sorted list of pictures is cut into shards. A shard is a folder ``out/shards/NUMBER`` with a
    file of maps for each method (:mod:`fastcam.storage`) and its part of the manifest. It appears
    as a whole. At the end ``manifest.parquet`` and ``failures.parquet`` have the rows of all
    shards. A picture that cannot be explained keeps its row, without classes.

    Args:
        source: see :func:`fastcam.dataset.open_inputs`.
        out: a new folder, or one of the same data set and settings.
        explainer: the model, methods and layer.
        targets: "label" for each picture's label, or as for :meth:`Explainer.targets`.
        top_k: the number of classes per picture: the target, then the most probable others.
        maps: whether to store maps; otherwise only the classes are found.
        batch: pictures per forward pass.
        shard: pictures per shard.
        workers: processes that read pictures; None for one per two cores, 0 for none.
        max_pixels: leave larger pictures out.
        share: this process's number and that of all processes, which take the shards in turn.
        progress: see :data:`Progress`.

    Raises:
        UsageError: if the source, an option, or a setting of an earlier run does not fit.
        FastcamError: if no picture can be explained, or the folder cannot be written.
    """
    started = time.perf_counter()
    job = prepare(
        source,
        out,
        explainer,
        targets=targets,
        top_k=top_k,
        maps=maps,
        batch=batch,
        shard=shard,
        workers=workers,
        max_pixels=max_pixels,
    )
    own = job.missing(range(share[0], job.shards, share[1]))
    stages = job.run(own, progress)
    return finish(job, sum(len(job.places(number)) for number in own), started, stages)


def prepare(
    source: Path | str,
    out: Path | str,
    explainer: Explainer,
    *,
    targets: str,
    top_k: int,
    maps: bool,
    batch: int,
    shard: int,
    workers: int | None,
    max_pixels: int,
) -> Job:
    """Lists the pictures, tries the network on one of them, and compares the settings.

    The arguments are those of :func:`explain`.
    """
    for name, value in (("top_k", top_k), ("batch", batch), ("shard", shard)):
        if value < 1:
            raise UsageError(f"{name.replace('_', '-')} {value}: expected at least 1")
    if explainer.model.clip_length is not None:
        raise UsageError("the network takes clips, not pictures")
    manifest.library()
    inputs, out = open_inputs(Path(source)), Path(out)
    classes = _try(inputs, explainer, max_pixels, maps)
    if top_k > classes:
        raise UsageError(f"top-k {top_k}: the network has {classes} classes")
    labels = class_ids(inputs, explainer.model, classes) if targets == LABEL else None
    if labels is None:
        explainer.targets(targets, top_k)
    model = explainer.model
    seen = model.preprocessing
    settings.check(
        out,
        {
            "format": 1,
            "pictures": len(inputs),
            "source": inputs.digest(),
            "network": settings.network_of(model.module),
            "weights": settings.weights_of(model.module),
            "classes": settings.hash_of(model.classes),
            "preprocessing": f"{settings.without_addresses(repr(seen))}, {seen.origin}",
            "methods": list(explainer.names) if maps else [],
            "layer": explainer.layer if maps else None,
            "targets": targets,
            "top-k": top_k,
            "batch": batch,
            "shard": shard,
            "max-pixels": max_pixels,
        },
    )
    if workers is None:
        workers = max(1, len(os.sched_getaffinity(0)) // 2)
    return Job(
        inputs, out, explainer, targets, top_k, labels, top_k, maps, batch, shard, workers,
        max_pixels,
    )  # fmt: skip


def finish(job: Job, explained: int, started: float, stages: dict[str, float]) -> Report:
    """Writes the manifest if all shards are there, also those of other processes."""
    failed = None
    if not job.missing(range(job.shards)):
        clean(job.out)
        parts = [folder_of(job.out, number) for number in range(job.shards)]
        failed = manifest.merge(parts, job.out)
    seconds = time.perf_counter() - started
    return Report(len(job.inputs), explained, failed, seconds, stages or {"decode": 0.0})


def _try(inputs: Inputs, explainer: Explainer, max_pixels: int, maps: bool) -> int:
    """Explains the first picture that can be; finds the layer, in every process the same.

    Returns:
        The number of classes.
    """
    reader = Reader(inputs, explainer.model.preprocessing, max_pixels)
    reason: FastcamError | None = None
    for index in range(min(len(inputs), _PROBES)):
        read, image = reader[index]
        if image is None:
            reason = reason or FastcamError(str(read.error))
            continue
        images = explainer.model.preprocessing.normalized(image[None].to(explainer.device))
        try:
            with single_threaded():
                if maps:
                    explainer(images)
                return explainer.probabilities(images).shape[1]
        except ArgumentError as error:
            raise UsageError(str(error)) from error
        except UsageError:
            raise
        except FastcamError as error:
            reason = FastcamError(f"{inputs.items[index].key}: {error}")
    raise FastcamError(
        f"{inputs.source}: none of the first {min(len(inputs), _PROBES)} pictures can be "
        f"explained; the first reason is: {reason}"
    )
