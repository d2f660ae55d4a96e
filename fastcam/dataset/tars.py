"""The samples of a webdataset: files in an uncompressed tar with one name up to the first dot."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fastcam.errors import FastcamError


class Member(NamedTuple):
    """The bytes of a file in an archive."""

    archive: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """Raises FastcamError if they cannot be read."""
        try:
            with self.archive.open("rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise FastcamError(f"{self.archive}: {error.strerror}") from None
        if len(data) < self.size:
            raise FastcamError(f"{self.archive}: the archive is cut short")
        return data


class Sample(NamedTuple):
    """A picture of an archive."""

    key: str
    label: int | str | None
    picture: Member


def samples(archive: Path, suffixes: Collection[str]) -> Iterator[Sample]:
    """The samples that have a picture, sorted by key.

    The files of a sample need not follow one another.

    Args:
        archive: the tar.
        suffixes: those of pictures, with their dot.

    Raises:
        FastcamError: if the archive is compressed or damaged, or a sample has two pictures, only
            pictures with further dots in their names, a file twice, or a label that cannot be read.
    """
    found: dict[str, dict[str, Member]] = {}
    try:
        with tarfile.open(archive, "r:") as opened:
            for entry in opened:
                folder, slash, name = entry.name.removeprefix("./").rpartition("/")
                stem, dot, kind = name.partition(".")
                if not entry.isreg() or entry.issparse() or not stem or not dot:
                    continue
                kinds = found.setdefault(f"{folder}{slash}{stem}", {})
                if kind.lower() in kinds:
                    raise FastcamError(f"{archive}: {entry.name} is there twice")
                kinds[kind.lower()] = Member(archive, entry.offset_data, entry.size)
    except tarfile.TarError as error:
        raise FastcamError(
            f"{archive}: not an uncompressed tar archive, or damaged: {error}"
        ) from None
    for key in sorted(found):
        kinds = found[key]
        shown = [kind for kind in kinds if f".{kind}" in suffixes]
        if len(shown) > 1:
            raise FastcamError(
                f"{archive}: {key} has {len(shown)} pictures ({', '.join(shown)}), expected one"
            )
        dotted = [kind for kind in kinds if f".{kind.rpartition('.')[2]}" in suffixes]
        if dotted and not shown:
            raise FastcamError(
                f"{archive}: {key}.{dotted[0]}: a name ends at its first dot, so this picture "
                "would be left out; rename it, or unpack the archive"
            )
        if shown:
            yield Sample(key, _label_of(key, kinds), kinds[shown[0]])


def _label_of(key: str, kinds: dict[str, Member]) -> int | str | None:
    """The text in ``cls``, or else the entry ``label`` in ``json``."""
    label: Any = None
    try:
        if "cls" in kinds:
            label = kinds["cls"].read().decode().strip()
        elif "json" in kinds:
            about = json.loads(kinds["json"].read())
            label = about.get("label") if isinstance(about, dict) else None
    except ValueError as error:
        raise FastcamError(
            f"{kinds['cls' if 'cls' in kinds else 'json'].archive}: the label of "
            f"{key} cannot be read: {error}"
        ) from None
    if isinstance(label, str):
        return int(label) if label.isdecimal() else label or None
    if isinstance(label, bool) or not isinstance(label, int | None):
        raise FastcamError(f"{key}: got the label {label!r}, expected a class id or name")
    return label
