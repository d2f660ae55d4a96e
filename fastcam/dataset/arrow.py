"""Tables of paths in parquet, and data sets that Hugging Face's library has saved to disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastcam.errors import FastcamError, UsageError


def library() -> Any:
    """pyarrow, with what is used of it.

    Raises:
        FastcamError: if it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise FastcamError(
            "fastcam dataset requires pyarrow: pip install fastcam[dataset]"
        ) from None
    return pyarrow


def read_columns(path: Path) -> dict[str, list[Any]]:
    """The columns ``path`` and ``label`` of a parquet file; without ``path``, all, empty."""
    arrow = library()
    try:
        with arrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if "path" not in names:
                return {name: [] for name in names}
            wanted = [name for name in ("path", "label") if name in names]
            return dict(file.read(wanted).to_pydict())
    except (arrow.ArrowException, OSError) as error:
        raise FastcamError(f"{path}: not a parquet file, or damaged: {error}") from None


class Rows:
    """The rows of a data set in a folder that ``Dataset.save_to_disk`` has written.

    Args:
        folder: has ``state.json``, ``dataset_info.json`` and the Arrow files.

    Raises:
        UsageError: if it does not have one column of images.
        FastcamError: if it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            state = json.loads((folder / "state.json").read_bytes())
            features = json.loads((folder / "dataset_info.json").read_bytes())["features"]
            self._files = [folder / each["filename"] for each in state["_data_files"]]
            kinds = {name: each.get("_type") for name, each in features.items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise FastcamError(
                f"{folder}: not a data set that Dataset.save_to_disk has written: {error}"
            ) from None
        if state.get("_indices_data_files"):
            raise UsageError(f"{folder}: rows are chosen by indices; save flatten_indices() of it")
        images = [name for name, kind in kinds.items() if kind == "Image"]
        if len(images) != 1:
            found = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
            raise UsageError(f"{folder}: got the columns {found}, expected one of type Image")
        labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
        self._images = images[0]
        self._label = labels[0] if len(labels) == 1 else None
        self.label_names: tuple[str, ...] = ()
        """The names of labels."""
        if self._label is not None:
            self.label_names = tuple(features[self._label].get("names") or ())
        self._table: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_table": None}

    def labels(self) -> list[int | None]:
        """The label of each row; -1 stands for none, as Hugging Face's data sets have it."""
        table = self._opened()
        if self._label is None:
            return [None] * len(table)
        return [None if each in (None, -1) else each for each in table[self._label].to_pylist()]

    def picture(self, row: int) -> bytes | Path:
        """The bytes of a picture's file, or its path."""
        found = self._opened()[self._images][row].as_py() or {}
        if found.get("bytes") is not None:
            return bytes(found["bytes"])
        if not found.get("path"):
            raise FastcamError(f"row {row}: it has no picture")
        return Path(self._folder / found["path"])

    def _opened(self) -> Any:
        """The table, which stays on the disk."""
        if self._table is None:
            arrow = library()
            try:
                parts = [
                    arrow.ipc.open_stream(arrow.memory_map(str(path))).read_all()
                    for path in self._files
                ]
                self._table = arrow.concat_tables(parts)
            except (arrow.ArrowException, OSError) as error:
                raise FastcamError(f"{self._folder}: cannot be read: {error}") from None
        return self._table
