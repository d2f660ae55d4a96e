"""Many machines: the shards of a data set as rows of Ray Data.

A row is the number of a shard and not a picture, so shards and batches are those of a local run.
Each actor keeps one network and writes to the output folder, which all machines have to see.
"""

from __future__ import annotations

import logging
import math
from typing import Any

from fastcam.dataset.job import STAGES, Job, Progress, Seconds
from fastcam.errors import FastcamError, first_line


class _Worker:
    """An actor: explains one shard at a time."""

    def __init__(self, job: Any, threads: int) -> None:
        import ray
        import torch

        self._job: Job = ray.get(job)
        torch.set_num_threads(threads)  # Ray sets it to what the actor asks for
        if ray.get_runtime_context().get_assigned_resources().get("GPU"):
            self._job.explainer.model.module.to(torch.accelerator.current_accelerator())

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        number = int(row["shard"])
        # nothing is missing if it was done before this machine or another one was lost
        seconds = self._job.run(self._job.missing([number]), lambda newly, seconds: None)
        return {"shard": number, **seconds}


def run(job: Job, numbers: list[int], address: str | None, progress: Progress) -> Seconds:
    """Explains shards on the machines of a cluster; a lost machine's shards are done by others.

    Args:
        job: what to do.
        numbers: the shards.
        address: that of the cluster; None for the one of the environment, or this machine alone.
        progress: see :data:`fastcam.dataset.job.Progress`.

    Returns:
        The busy seconds of each stage, summed over the machines.

    Raises:
        FastcamError: if Ray is not installed, the cluster cannot be reached or an actor fails.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise FastcamError("engine ray requires Ray: pip install fastcam[ray]") from None
    seconds: Seconds = dict.fromkeys(STAGES, 0.0)
    if not numbers:
        return seconds
    try:
        if not ray.is_initialized():
            ray.init(address, log_to_driver=False, logging_level=logging.WARNING)
        ray.data.DataContext.get_current().enable_progress_bars = False
        size, threads, wants = _actors(ray.nodes())
        worker: Any = _Worker
        pool = ray.data.ActorPoolStrategy(min_size=1, max_size=size)
        rows = ray.data.from_items([{"shard": number} for number in numbers])
        done = rows.repartition(len(numbers)).map(
            worker, fn_constructor_args=[ray.put(job), threads], compute=pool, **wants
        )
        for row in done.iter_rows():
            for stage in seconds:
                seconds[stage] += row[stage]
            progress(len(job.places(row["shard"])), seconds)
    except (ray.exceptions.RayError, ConnectionError, ValueError) as error:
        raise FastcamError(f"engine ray: {first_line(error)}") from error
    return seconds


def _actors(nodes: list[dict[str, Any]]) -> tuple[int, int, dict[str, Any]]:
    """The most actors, the threads of each, and what each of them asks for.

    One per GPU, or else one per machine. They ask for a quarter of the CPUs, which is half if half
    of the machines are lost: what reads the rows needs one too.
    """
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    resources = [each for each in resources if each.get("CPU")]
    if not resources:
        raise FastcamError("engine ray: no machine of the cluster has a CPU for the actors")
    gpus = math.floor(sum(each.get("GPU", 0) for each in resources))
    if gpus:
        return gpus, 1, {"num_gpus": 1, "num_cpus": 0.5}
    least = min(each["CPU"] for each in resources)
    return len(resources), max(1, int(least)), {"num_cpus": least / 4}
