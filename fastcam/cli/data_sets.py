"""Shared by `dataset` and `bench`: the explainer, the run with its progress bar, the summary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from rich.text import Text

from fastcam import dataset
from fastcam.cli import loading, options
from fastcam.cli.terminal import bar
from fastcam.dataset import report, torchrun
from fastcam.errors import UsageError
from fastcam.explainer import Explainer


def names_of(text: str) -> list[str]:
    """The names with commas between them."""
    return [each.strip() for each in text.split(",")]


def explainer(
    methods: Sequence[str],
    layer: Sequence[str],
    targets: str,
    device: torch.device,
    *,
    model: str,
    weights: str,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    **preprocessing: Any,
) -> Explainer:
    """The explainer that the options describe.

    Args:
        methods, layer, targets, model, weights: those of the command.
        device: the device; under torchrun each process has its own GPU.
        mean, std, preprocessing: as for :func:`fastcam.cli.loading.load`.

    Raises:
        UsageError, FastcamError: if an option does not fit.
    """
    options.check(targets, options.AUTO, None, mean, std)
    if targets == options.BOXES:
        raise UsageError("targets boxes: not supported for data sets; give label, top1 or a class")
    loaded = loading.load(
        model, weights, torchrun.device(device), mean=mean, std=std, **preprocessing
    )
    return Explainer(loaded, methods, options.layers(layer))


def explain(source: Path, out: Path, made: Explainer, **given: Any) -> dataset.Report:
    """:func:`fastcam.dataset.explain` with a bar, and under torchrun this process's share."""
    with bar("images") as update:
        return dataset.explain(
            source,
            out,
            made,
            share=torchrun.share(),
            progress=lambda done, total, stage: update(
                completed=done, total=total, description=f"slowest: {stage}" if stage else ""
            ),
            **given,
        )


def facts(
    source: Path,
    out: Path,
    made: Explainer,
    targets: str,
    about: Mapping[str, Any],
    done: dataset.Report,
) -> dict[str, Any]:
    """What --json prints."""
    return {
        "source": source,
        "out": out,
        **about,
        "layers": made.layers,
        "targets": targets,
        "pictures": done.pictures,
        "explained": done.explained,
        "failed": done.failed,
        "complete": done.failed is not None,
        "seconds": done.seconds,
        "images_per_second": done.images_per_second,
        "stages": done.stages,
        "slowest_stage": done.slowest_stage,
    }


def lines(
    out: Path, made: Explainer | None, done: dataset.Report, unit: str = "pictures"
) -> Iterator[str]:
    """What is printed about a run of some units; without an explainer, it found classes alone."""
    speed = f"{done.images_per_second:.1f} images/s, slowest: {done.slowest_stage}"
    spent = f"in {done.seconds:.1f} s ({speed})" if done.explained else "were left to do"
    yield f"{out}: {done.explained} of {done.pictures} {unit} {spent}"
    if made is not None:
        yield f"  {', '.join(made.names)} at {', '.join(made.layers) or 'the input'}"
    if done.failed is None:
        yield "  other processes have not finished their shards"
    elif done.failed:
        yield f"  {done.failed} could not be explained: see {out / 'failures.parquet'}"


def table(found: Mapping[str, Any]) -> Table:
    """The report."""
    head, *rows = report.table(found)
    made = Table(*head, box=None, padding=(0, 2, 0, 0))
    for row in rows:
        made.add_row(*map(Text, row))
    return made
