"""The pictures of a data set in a fixed order, and where their bytes and labels are."""

from __future__ import annotations

import csv
import hashlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fastcam import pictures
from fastcam.dataset import arrow, tars
from fastcam.errors import FastcamError, UsageError

if TYPE_CHECKING:
    from fastcam.dataset.annotated import Instances
    from fastcam.pictures.render import Region

_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("jpg", "jpeg", "jpe", "png", "webp", "bmp", "dib", "tif", "tiff", "gif", "avif", "jp2"),
        *("pbm", "pgm", "ppm", "pnm", "pam", "pfm", "hdr", "pic", "sr", "ras"),
    )
)
"""Of the formats that OpenCV reads."""

Size = tuple[int, int]  # (height, width)
Label = int | str | None
"""A class id, a class's name, or the index of a name in :attr:`Inputs.label_names`."""


class Item(NamedTuple):
    """A picture."""

    key: str
    """Its path from the source, for people."""
    label: Label


class Inputs(ABC):
    """A data set's pictures. Pickled, it opens the files again.

    Args:
        source: the folder or file.
        items: the pictures in their order.
        label_names: what integer labels stand for; empty if they are class ids.
    """

    def __init__(self, source: Path, items: list[Item], label_names: tuple[str, ...] = ()) -> None:
        if not items:
            raise UsageError(f"{source}: it has no pictures")
        self.source, self.items, self.label_names = source, items, label_names

    def __len__(self) -> int:
        return len(self.items)

    @abstractmethod
    def data(self, index: int, max_pixels: int) -> bytes:
        """The bytes of a picture's file; raises FastcamError if they cannot be read."""

    def instances(self, index: int, size: Size, region: Region, extents: Size) -> Instances | None:
        """What is annotated in a picture; None if the data set has no annotations.

        Args:
            index: the picture's place.
            size: its (height, width).
            region: the part of it that the network sees.
            extents: (height, width) of the network's input.

        Raises:
            FastcamError: if the annotations cannot be read, or do not fit the picture.
        """
        return None

    @property
    def has_labels(self) -> bool:
        """Whether any picture has a label."""
        return any(item.label is not None for item in self.items)

    def digest(self) -> str:
        """A hash of all names and labels in their order."""
        found = hashlib.sha256(repr(self.label_names).encode())
        for item in self.items:
            found.update(repr(tuple(item)).encode())
        return found.hexdigest()


class _Files(Inputs):
    """Pictures in files."""

    def __init__(
        self,
        source: Path,
        items: list[Item],
        paths: list[Path],
        label_names: tuple[str, ...] = (),
    ) -> None:
        super().__init__(source, items, label_names)
        self._paths = paths

    def data(self, index: int, max_pixels: int) -> bytes:
        path = self._paths[index]
        if path.exists() and not path.is_file():  # a pipe would wait for a writer
            raise FastcamError(f"{path}: not a regular file")
        return pictures.data_of(path, max_pixels)


class _Archives(Inputs):
    """Pictures in tar archives."""

    def __init__(self, source: Path, paths: list[Path]) -> None:
        self._members: list[tars.Member] = []
        items = []
        for path in paths:
            for sample in tars.samples(path, _SUFFIXES):
                items.append(Item(f"{path.name}/{printable(sample.key)}", sample.label))
                self._members.append(sample.picture)
        super().__init__(source, items)

    def data(self, index: int, max_pixels: int) -> bytes:
        return self._members[index].read()


class _Rows(Inputs):
    """Pictures in a Hugging Face data set on disk."""

    def __init__(self, source: Path) -> None:
        self._rows = arrow.Rows(source)
        labels = self._rows.labels()
        items = [Item(f"{index:08d}", label) for index, label in enumerate(labels)]
        super().__init__(source, items, self._rows.label_names)

    def data(self, index: int, max_pixels: int) -> bytes:
        found = self._rows.picture(index)
        return found if isinstance(found, bytes) else pictures.data_of(found, max_pixels)


def open_inputs(source: Path) -> Inputs:
    """The pictures of a source, sorted.

    ======================================== ==================================================
    a folder with pictures                   all pictures in it, by path
    a folder with pictures in folders only   the same; the first folder's name is the label
    a folder with .tar files, or a .tar file the samples of a webdataset, ``cls`` or the entry
                                             ``label`` of ``json`` is the label
    a .csv or .parquet file                  the files in its column ``path``, from the folder of
                                             the table; the column ``label``, if there is one
    a Hugging Face data set on disk          its column of images; its column of class labels
    ======================================== ==================================================

    Hidden files and folders are left out.

    Raises:
        UsageError: for anything else, or if there is no picture.
        FastcamError: if it cannot be read.
    """
    try:
        return _opened(source)
    except OSError as error:
        raise FastcamError(f"{source}: cannot be read: {error.strerror or error}") from None


def _opened(source: Path) -> Inputs:
    if not source.exists():
        raise UsageError(f"{source}: no such file or folder")
    if source.is_dir():
        return _folder(source)
    suffix = source.suffix.lower()
    if suffix == ".tar":
        return _Archives(source, [source])
    if suffix == ".csv":
        return _table(source, _read_csv(source))
    if suffix == ".parquet":
        return _table(source, arrow.read_columns(source))
    raise UsageError(
        f"{source}: expected a folder, or a .tar, .csv or .parquet file"
        + (
            "; unpack it first"
            if {".tar", ".tgz"} & {each.lower() for each in source.suffixes}
            else ""
        )
    )


def _folder(source: Path) -> Inputs:
    if (source / "state.json").exists():
        return _Rows(source)
    if (source / "dataset_dict.json").exists():
        splits = sorted(each.parent.name for each in source.glob("*/state.json"))
        raise UsageError(
            f"{source}: a data set with the splits {', '.join(splits)}; give one of these folders"
        )
    paths = sorted(_pictures_in(source), key=lambda path: path.relative_to(source).as_posix())
    if not paths:
        archives = sorted(each for each in source.glob("*.tar") if not each.name.startswith("."))
        if archives:
            return _Archives(source, archives)
        raise UsageError(f"{source}: the folder has neither pictures nor .tar files")
    below = [path.relative_to(source) for path in paths]
    labels: list[Label] = [None] * len(paths)
    names: tuple[str, ...] = ()
    if all(len(path.parts) > 1 for path in below):
        names = tuple(sorted({path.parts[0] for path in below}))
        numbers = {name: number for number, name in enumerate(names)}
        labels = [numbers[path.parts[0]] for path in below]
        names = tuple(map(printable, names))
    keys = (printable(path.as_posix()) for path in below)
    return _Files(source, list(map(Item, keys, labels)), paths, names)


def _pictures_in(folder: Path) -> Iterator[Path]:
    """Follows links to folders, but not back into a folder that contains them."""
    pending = [(folder, frozenset({folder.resolve()}))]
    while pending:
        within, above = pending.pop()
        for entry in os.scandir(within):
            path = within / entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                real = path.resolve()
                if real not in above:
                    pending.append((path, above | {real}))
            elif path.suffix.lower() in _SUFFIXES:
                yield path


def _read_csv(path: Path) -> dict[str, list[Label]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            names = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = names
            rows = list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise FastcamError(f"{path}: not a table in UTF-8 with commas: {error}") from None
    return {name: [row[name] or None for row in rows] for name in names}


def _table(source: Path, columns: dict[str, list[Label]]) -> Inputs:
    if "path" not in columns:
        raise UsageError(
            f"{source}: got the columns {', '.join(columns) or 'of none'}, expected path and, for "
            "labels, label"
        )
    paths = columns["path"]
    for row, path in enumerate(paths, start=1):
        if not isinstance(path, str):
            raise UsageError(f"{source}: path {path} in row {row}: expected the name of a file")
    labels = columns.get("label", [None] * len(paths))
    rows = sorted(zip(map(str, paths), labels, strict=True), key=lambda row: row[0])
    items = [Item(printable(path), _label_of(label)) for path, label in rows]
    return _Files(source, items, [source.parent / path for path, _ in rows])


def _label_of(value: Label | float) -> Label:
    """A label of a table: whole numbers in any form are class ids."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else None if value != value else str(value)
    text = value.strip() if isinstance(value, str) else value
    whole = re.fullmatch(r"(\d+)(\.0*)?", text) if isinstance(text, str) else None
    return int(whole[1]) if whole else text


def printable(text: str) -> str:
    """A file's name as UTF-8, with escapes for what is not."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def joined(labels: Iterable[str], most: int = 3) -> str:
    """The first labels, for messages."""
    every = list(labels)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more
