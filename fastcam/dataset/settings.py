"""What a data set of maps was made with, kept in its folder and compared when a run goes on."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastcam.errors import FastcamError, UsageError
from fastcam.pictures import cannot_write, temporary_name

FILE = "settings.json"
_HASHED = {
    "source": "the names, labels or annotations of pictures have changed",
    "weights": "the weights have changed",
    "network": "the network's modules have changed",
    "classes": "the names of classes have changed",
}
"""What to say about values that are hashes."""


def check(out: Path, settings: dict[str, Any]) -> None:
    """Writes the settings into a new folder, or compares them with those that are there.

    Raises:
        UsageError: if they differ, or the folder has other files but no settings.
        FastcamError: if the folder cannot be written.
    """
    path = out / FILE
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            foreign = [each.name for each in out.iterdir() if not each.name.startswith(".")]
            if foreign and not path.exists():  # another process may just have begun
                raise UsageError(
                    f"{out}: it has other files ({foreign[0]}) and no {FILE}; choose a new folder"
                )
            _create(path, settings)
    except FileExistsError:
        raise UsageError(f"{out}: expected a folder, got a file") from None
    except OSError as error:
        raise cannot_write(path, error) from error
    found = read(out)
    changes = [
        _HASHED.get(name, f"{name} was {found.get(name)}, now {settings.get(name)}")
        for name in {**found, **settings}
        if found.get(name) != settings.get(name)
    ]
    if changes:
        raise UsageError(
            f"{out}: it was begun with other settings: {'; '.join(changes)}. Go on with the same "
            "ones, or choose a new folder"
        )


def read(out: Path) -> dict[str, Any]:
    """The settings in a folder; raises FastcamError if there are none."""
    path = out / FILE
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise FastcamError(f"{out}: not a folder of fastcam dataset: it has no {FILE}") from None
    except (OSError, ValueError) as error:
        raise FastcamError(f"{path}: cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise FastcamError(f"{path}: not settings of fastcam dataset")
    return found


def _create(path: Path, settings: dict[str, Any]) -> None:
    """Writes the file unless it is there: of several processes, one succeeds."""
    temporary = temporary_name(path)
    try:
        with temporary.open("w") as file:
            file.write(json.dumps(settings, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def weights_of(module: nn.Module) -> str:
    """A hash of all parameters and buffers."""
    found = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        if not isinstance(tensor, torch.Tensor):
            found.update(repr((name, tensor)).encode())
            continue
        found.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        found.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return found.hexdigest()


def network_of(module: nn.Module) -> str:
    """A hash of the modules and their options, as they describe themselves."""
    return hash_of(f"{type(module).__qualname__} {without_addresses(repr(module))}")


def without_addresses(text: str) -> str:
    """A description without the addresses of functions, which differ from run to run."""
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def hash_of(value: Any) -> str:
    """A hash of plain values."""
    return hashlib.sha256(repr(value).encode()).hexdigest()


def as_text(value: Any) -> str:
    """Plain values as JSON."""
    return json.dumps(value)
