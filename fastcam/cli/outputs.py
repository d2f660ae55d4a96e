"""What a command writes: planned before anything is read, and listed in a manifest at the end.

A manifest is a file ``.fastcam.json`` in a folder of outputs. It names the files that fastcam has
written there with their sizes and times. A command replaces a file without ``--overwrite`` only if
the manifest names it as it is: a file that someone else wrote or changed is kept.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fastcam.errors import UsageError
from fastcam.pictures import replacing, same_file

MANIFEST = ".fastcam.json"
_FILES = "files"

State = dict[str, int]  # "size" in bytes, "mtime_ns"
Found = dict[Path, tuple[int, State]]  # inode and state


@contextmanager
def planned(
    targets: Callable[[], Iterable[Path]], inputs: Sequence[Path], overwrite: bool
) -> Iterator[None]:
    """Refuses outputs that would destroy something; then lists what the block wrote.

    The manifest is written when the block ends, also by an error or an interruption.

    Args:
        targets: the paths that the command may write; called before and after the block. Paths that
            do not exist do not matter.
        inputs: the files that the command reads. They are never replaced.
        overwrite: whether to replace files that no manifest names.

    Raises:
        UsageError: if an output is an input, or exists and is not in a manifest.
    """
    planned_paths = list(targets())
    for folder in {each for path in planned_paths for each in path.parents}:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder} is a file, expected a folder for the output")
    before = _existing(planned_paths)
    for path in before:
        given = same_file(path, inputs)
        if given is not None:
            raise UsageError(
                f"{path}: the output and the input {given} are the same file; choose another output"
            )
    named = {folder: _manifest(folder) for folder in {path.parent for path in planned_paths}}
    foreign = [
        path for path, (_, state) in before.items() if named[path.parent].get(path.name) != state
    ]
    if foreign and not overwrite:
        more = f" (and {len(foreign) - 1} more)" if len(foreign) > 1 else ""
        raise UsageError(
            f"{foreign[0]}{more} exists, and {MANIFEST} does not list it as it is, so it may not "
            "be fastcam's: choose another output, or add --overwrite to replace it"
        )
    try:
        yield
    finally:
        after = _existing(targets())
        _record({path: after[path][1] for path in after if after[path] != before.get(path)})


def paths(patterns: dict[str, str], folder: Path, name: str) -> dict[str, Path]:
    """The files in a folder that belong to one input, by kind.

    Args:
        patterns: by kind, a file name with {} in place of the input's name.
        folder: the output folder.
        name: the input's name.
    """
    return {kind: folder / pattern.format(name) for kind, pattern in patterns.items()}


def _existing(paths: Iterable[Path]) -> Found:
    found = {}
    for path in paths:
        with suppress(OSError):
            # a link that leads nowhere may lead to a disk that is not there
            stat = path.stat() if path.exists() else path.lstat()
            found[path] = stat.st_ino, {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    return found


def _record(written: dict[Path, State]) -> None:
    """Adds files to the manifests of their folders."""
    for folder in {path.parent for path in written}:
        with _locked(folder):
            files = _manifest(folder)
            files |= {path.name: state for path, state in written.items() if path.parent == folder}
            with replacing(folder / MANIFEST) as temporary:
                temporary.write_text(json.dumps({_FILES: files}, indent=1) + "\n")


def _manifest(folder: Path) -> dict[str, Any]:
    """The states of the files that the folder's manifest names."""
    path = folder / MANIFEST
    try:
        files = json.loads(path.read_bytes())[_FILES]
        if isinstance(files, dict):
            return files
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError):
        pass
    raise UsageError(f"{path}: not a manifest that fastcam wrote; move it away")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps other runs from writing the folder's manifest at the same time."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network drives know no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
