"""The manifest: one row for each picture, and the list of those that could not be explained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastcam.dataset.arrow import library
from fastcam.dataset.scores import INSTANCES, LOCALISATION, METRICS, OUTSIDE, column
from fastcam.errors import FastcamError
from fastcam.pictures import replacing

MANIFEST, FAILURES = "manifest.parquet", "failures.parquet"


def schema(methods: Sequence[str], metrics: Sequence[str] = ()) -> Any:
    """The columns of the manifest."""
    arrow = library()
    counted = any(METRICS[name].group == LOCALISATION for name in metrics)
    number = arrow.float32()
    of_classes = {
        "class_ids": arrow.int64(),
        "class_names": arrow.string(),
        "scores": arrow.float32(),
        "probabilities": arrow.float32(),
        **{f"range_{method}": arrow.list_(arrow.float32()) for method in methods},
    }
    return arrow.schema(
        {
            "index": arrow.int64(),
            "path": arrow.string(),
            "label": arrow.string(),
            "sha256": arrow.string(),
            "height": arrow.int32(),
            "width": arrow.int32(),
            **{name: arrow.list_(kind) for name, kind in of_classes.items()},
            "input": arrow.list_(arrow.int32()),
            "region": arrow.list_(arrow.int32()),
            "preprocessing": arrow.string(),
            **(dict.fromkeys((INSTANCES, OUTSIDE), arrow.int32()) if counted else {}),
            **{
                column(name, method): arrow.list_(number) if METRICS[name].several else number
                for method in methods
                for name in metrics
            },
        }
    )


def failures_schema() -> Any:
    """The columns of the list of failures."""
    arrow = library()
    text = ("path", "sha256", "error")
    return arrow.schema({"index": arrow.int64(), **{name: arrow.string() for name in text}})


def write_part(
    folder: Path,
    rows: list[dict[str, Any]],
    failures: list[dict[str, Any]],
    columns: Any,
) -> None:
    """Writes the rows of one shard with the columns of a schema; what a row lacks is null."""
    arrow = library()
    for name, kinds, found in (
        (MANIFEST, columns, rows),
        (FAILURES, failures_schema(), failures),
    ):
        arrow.parquet.write_table(arrow.Table.from_pylist(found, kinds), folder / name)


def merge(parts: Sequence[Path], out: Path) -> int:
    """Joins the parts in the folders of all shards to one file each, in ``out``.

    Returns:
        The number of failures.
    """
    arrow = library()
    rows = 0
    for name in (MANIFEST, FAILURES):
        with replacing(out / name) as temporary:
            rows = 0
            columns = arrow.parquet.read_schema(parts[0] / name)
            with arrow.parquet.ParquetWriter(temporary, columns) as writer:
                for table in map(read, (part / name for part in parts)):
                    writer.write_table(table)
                    rows += len(table)
    return rows


def read(path: Path) -> Any:
    """A table; raises FastcamError if it cannot be read."""
    arrow = library()
    try:
        return arrow.parquet.read_table(path, partitioning=None)
    except (arrow.ArrowException, OSError) as error:
        raise FastcamError(f"{path}: cannot be read: {error}") from None
