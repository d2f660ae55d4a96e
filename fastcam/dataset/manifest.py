"""The manifest: one row for each picture, and the list of those that could not be explained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastcam.dataset.arrow import library
from fastcam.errors import FastcamError
from fastcam.pictures import replacing

MANIFEST, FAILURES = "manifest.parquet", "failures.parquet"


def schema(methods: Sequence[str]) -> Any:
    """The columns of the manifest."""
    arrow = library()
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
    methods: Sequence[str],
) -> None:
    """Writes the rows of one shard; columns that a row lacks are null."""
    arrow = library()
    for name, columns, found in (
        (MANIFEST, schema(methods), rows),
        (FAILURES, failures_schema(), failures),
    ):
        arrow.parquet.write_table(arrow.Table.from_pylist(found, columns), folder / name)


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
