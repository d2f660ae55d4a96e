"""Explains a data set; called again, goes on where it was interrupted."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fastcam.dataset import arrow, manifest, report, settings
from fastcam.dataset.annotated import Annotated
from fastcam.dataset.annotations import Annotations, names_in, read_annotations
from fastcam.dataset.decoding import Reader
from fastcam.dataset.inputs import Inputs, open_inputs
from fastcam.dataset.job import Job, Seconds
from fastcam.dataset.labels import class_ids, class_ids_of
from fastcam.dataset.scores import chosen
from fastcam.dataset.shards import clean, folder_of
from fastcam.engine.cores import single_threaded
from fastcam.errors import FastcamError, UsageError
from fastcam.explainer import AGAINST, TOP_CLASS, Explainer
from fastcam.pictures import MAX_PIXELS

LABEL = "label"
"""The target that is each picture's label."""
ANNOTATED = "annotated"
"""The target that is each class that is annotated in a picture, one after the other."""
BATCH, SHARD = 32, 512
_PROBES = 1000  # pictures that are tried until one can be explained


@dataclass(frozen=True)
class Report:
    """The statistics of a run."""

    pictures: int
    """How many the data set has; with the target "annotated", pairs of a picture and a class."""
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
    annotations: Path | str | None = None,
    metrics: Sequence[str] | None = None,
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

    With metrics, each row has their values for each method (:data:`fastcam.dataset.METRICS`), and
    ``report.json`` and ``report.md`` have their means over the data set, with 95 % intervals.

    Args:
        source: see :func:`fastcam.dataset.open_inputs`.
        out: a new folder, or one of the same data set and settings.
        explainer: the model, methods and layer.
        targets: "label" for each picture's label, "annotated" for a row for each class that is
            annotated in a picture, or as for :meth:`fastcam.explainer.Explainer.targets`.
        top_k: the number of classes per picture: the target, then the most probable others.
        maps: whether to store maps; otherwise only the classes are found.
        annotations: boxes or masks of the pictures; see :mod:`fastcam.dataset.annotations`.
        metrics: names of metrics and groups; empty for the default, which is localisation if there
            are annotations, and average_drop and increase_in_confidence. None for no metrics.
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
    marked = None if annotations is None else read_annotations(Path(annotations))
    names: tuple[str, ...] = ()
    if metrics is not None:
        names = chosen(metrics, marked is not None, marked is not None and marked.have_boxes)
        _check_metrics(targets, top_k, maps)
    if targets == ANNOTATED and marked is None:
        raise UsageError("targets annotated: it needs annotations")
    job = _prepared(
        Job(
            open_inputs(Path(source)),
            Path(out),
            explainer,
            targets,
            top_k,
            None,
            maps,
            names,
            batch,
            shard,
            max(1, len(os.sched_getaffinity(0)) // 2) if workers is None else workers,
            max_pixels,
        ),
        marked,
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


def _check_metrics(targets: str, top_k: int, maps: bool) -> None:
    if top_k != 1:
        raise UsageError(f"top-k {top_k}: metrics are for one class of a picture, expected 1")
    if targets.startswith(AGAINST):
        raise UsageError(f"targets {targets}: metrics are for maps of what supports a class")
    if not maps:
        raise UsageError("methods none: metrics need maps; name a method")


def _prepared(job: Job, annotations: Annotations | None) -> Job:
    """The job with its labels and annotations, after a try on one picture.

    The settings are compared with those of an earlier run.
    """
    explainer, model, inputs = job.explainer, job.explainer.model, job.inputs
    if model.clip_length is not None:
        raise UsageError("the network takes clips, not pictures")
    arrow.library()
    classes = _try(inputs, explainer, job.max_pixels, job.maps)
    if job.top_k > classes:
        raise UsageError(f"top-k {job.top_k}: the network has {classes} classes")
    if annotations is not None:
        names = names_in(annotations.matched(inputs).values())
        ids = class_ids_of(names, inputs, model, classes)
        annotated = Annotated(inputs, annotations, ids, job.targets == ANNOTATED)
        inputs = annotated
        job = replace(job, inputs=inputs, labels=annotated.classes)
    if job.targets == LABEL:
        job = replace(job, labels=class_ids(inputs, model, classes))
    elif job.labels is None:
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
            **({"metrics": list(job.metrics)} if job.metrics else {}),
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
    failed = manifest.merge([folder_of(job.out, number) for number in range(job.shards)], job.out)
    if job.metrics:
        about: dict[str, object] = {
            "source": str(job.inputs.source),
            "targets": job.targets,
            "layers": list(job.explainer.layers),
        }
        if isinstance(job.inputs, Annotated):
            about |= {"unmarked": job.inputs.unmarked, "absent": job.inputs.absent}
        report.write(job.out, job.methods, job.metrics, about)
    return failed
