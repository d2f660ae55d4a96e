"""Explains a data set; called again, goes on where it was interrupted."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from fastcam.dataset import arrow, manifest, settings
from fastcam.dataset.decoding import Reader
from fastcam.dataset.inputs import Inputs, open_inputs
from fastcam.dataset.job import Job, Seconds
from fastcam.dataset.labels import class_ids
from fastcam.dataset.shards import clean, folder_of
from fastcam.engine.cores import single_threaded
from fastcam.errors import FastcamError, UsageError
from fastcam.explainer import TOP_CLASS, Explainer
from fastcam.pictures import MAX_PIXELS

LABEL = "label"
"""The target that is each picture's label."""
BATCH, SHARD = 32, 512
_PROBES = 1000  # pictures that are tried until one can be explained


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
    stages: Seconds
    """Busy seconds of decode, network and write; they overlap."""

    @property
    def images_per_second(self) -> float:
        return self.explained / self.seconds

    @property
    def slowest_stage(self) -> str:
        """The stage with the most busy seconds."""
        return slowest(self.stages)


def slowest(stages: Seconds) -> str:
    """The stage with the most busy seconds."""
    return max(stages, key=lambda stage: stages[stage])


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
    engine: str = "local",
    address: str | None = None,
    progress: Callable[[int, int, str], object] = lambda done, total, stage: None,
) -> Report:
    """Explains all pictures of a data set; called again, goes on where it was interrupted.

    The sorted list of pictures is cut into shards. A shard is a folder ``out/shards/NUMBER`` with a
    file of maps for each method (:mod:`fastcam.storage`) and its part of the manifest. It appears
    as a whole. At the end ``manifest.parquet`` and ``failures.parquet`` have the rows of all
    shards. A picture that cannot be explained keeps its row, without classes.

    Args:
        source: see :func:`fastcam.dataset.open_inputs`.
        out: a new folder, or one of the same data set and settings.
        explainer: the model, methods and layer.
        targets: "label" for each picture's label, or as for
            :meth:`fastcam.explainer.Explainer.targets`.
        top_k: the number of classes per picture: the target, then the most probable others.
        maps: whether to store maps; otherwise only the classes are found.
        batch: pictures per forward pass.
        shard: pictures per shard.
        workers: processes that read pictures; None for one per two cores, 0 to read in this one.
        max_pixels: leave larger pictures out.
        share: this process's number and that of all processes, which take the shards in turn.
        engine: "local", or "ray" to distribute the shards over the machines of a Ray cluster.
        address: that of the cluster, as for ``ray.init``.
        progress: is called with the number of pictures that are done, how many this process has to
            do in all, and the slowest stage so far.

    Raises:
        UsageError: if the source, an option, or a setting of an earlier run does not fit.
        FastcamError: if no picture can be explained, or the folder cannot be written.
    """
    started = time.perf_counter()
    for name, value, least in (
        ("top-k", top_k, 1), ("batch", batch, 1), ("shard", shard, 1), ("workers", workers, 0),
    ):  # fmt: skip
        if value is not None and value < least:
            raise UsageError(f"{name} {value}: expected at least {least}")
    if engine not in ("local", "ray"):
        raise UsageError(f"engine {engine}: expected local or ray")
    job = _prepared(
        Job(
            open_inputs(Path(source)),
            Path(out),
            explainer,
            targets,
            top_k,
            None,
            maps,
            batch,
            shard,
            max(1, len(os.sched_getaffinity(0)) // 2) if workers is None else workers,
            max_pixels,
        )
    )
    own = range(share[0], job.shards, share[1])
    missing = job.missing(own)
    count, left = (sum(len(job.places(n)) for n in numbers) for numbers in (own, missing))
    done = count - left
    progress(done, count, "")

    def advance(newly: int, seconds: Seconds) -> None:
        nonlocal done
        done += newly
        progress(done, count, slowest(seconds))

    if engine == "local":
        stages = job.run(missing, advance)
    else:
        from fastcam.dataset import ray

        stages = ray.run(job, missing, address, advance)
    failed = _finish(job)
    return Report(len(job.inputs), left, failed, time.perf_counter() - started, stages)


def _prepared(job: Job) -> Job:
    """The job with its labels, after a try on one picture and a comparison of the settings."""
    explainer, model, inputs = job.explainer, job.explainer.model, job.inputs
    if model.clip_length is not None:
        raise UsageError("the network takes clips, not pictures")
    arrow.library()
    classes = _try(inputs, explainer, job.max_pixels, job.maps)
    if job.top_k > classes:
        raise UsageError(f"top-k {job.top_k}: the network has {classes} classes")
    if job.targets == LABEL:
        job = replace(job, labels=class_ids(inputs, model, classes))
    else:
        job = replace(job, top_k=explainer.targets(job.targets, job.top_k).count)
    seen = model.preprocessing
    settings.check(
        job.out,
        {
            "format": 1,
            "pictures": len(inputs),
            "source": inputs.digest(),
            "network": settings.network_of(model.module),
            "weights": settings.weights_of(model.module),
            "classes": settings.hash_of(model.classes),
            "preprocessing": f"{settings.without_addresses(repr(seen))}, {seen.origin}",
            "methods": list(job.methods),
            "layers": list(explainer.layers) if job.maps else [],
            "targets": job.targets,
            "top-k": job.top_k,
            "batch": job.batch,
            "shard": job.shard,
            "max-pixels": job.max_pixels,
        },
    )
    return job


def _try(inputs: Inputs, explainer: Explainer, max_pixels: int, maps: bool) -> int:
    """Explains the first picture that can be; finds the layer, in every process the same.

    Returns:
        The number of classes.
    """
    reader = Reader(inputs, explainer.model.preprocessing, max_pixels)
    reason: object = None
    for index in range(min(len(inputs), _PROBES)):
        read, image = reader[index]
        if image is None:
            reason = reason or read.error
            continue
        images = explainer.model.preprocessing.normalized(image[None].to(explainer.device))
        try:
            with single_threaded():
                if maps:
                    explainer(images)
                return explainer.probabilities(images).shape[1]
        except UsageError:
            raise
        except FastcamError as error:
            reason = reason or f"{inputs.items[index].key}: {error}"
    raise FastcamError(
        f"{inputs.source}: none of the first {min(len(inputs), _PROBES)} pictures can be "
        f"explained; the first reason is: {reason}"
    )


def _finish(job: Job) -> int | None:
    """Writes the manifest if all shards are there, also those of other processes.

    Returns:
        The number of failures; None if shards are missing.
    """
    if job.missing(range(job.shards)):
        return None
    clean(job.out)
    return manifest.merge([folder_of(job.out, number) for number in range(job.shards)], job.out)
