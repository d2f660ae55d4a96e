"""The share of one of the processes that torchrun has started.

Shards are taken in turn, and nothing is sent: the process that finishes last finds all shards and
writes the manifest.
"""

from __future__ import annotations

import os

import torch


def share() -> tuple[int, int]:
    """This process's number and that of all processes; (0, 1) without torchrun."""
    if not _started_this():
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def device(chosen: torch.device) -> torch.device:
    """The GPU of this process, if torchrun has started several and none was named."""
    if not _started_this() or chosen.type == "cpu" or chosen.index is not None:
        return chosen
    count = torch.accelerator.device_count()
    return torch.device(chosen.type, int(os.environ["LOCAL_RANK"]) % max(1, count))


def _started_this() -> bool:
    """Whether torchrun has started this process; others set RANK too."""
    return "TORCHELASTIC_RUN_ID" in os.environ
