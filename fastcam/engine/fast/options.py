"""The steps of the fast mode, and the precision that suits a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Options:
    """Which steps are wanted; None as the precision for the network's own.

    Compiling takes seconds to a minute for each shape: not worth it for one call's runs.
    """

    dtype: torch.dtype | None = None
    channels_last: bool = True
    fold_batchnorm: bool = True
    compile: bool = True

    def __post_init__(self) -> None:
        if self.dtype not in (None, *DTYPES):
            expected = ", ".join(map(str, DTYPES))
            raise ValueError(f"dtype: got {self.dtype!r}, expected None or one of {expected}")


def is_emulated(dtype: torch.dtype | None, device: torch.device) -> bool:
    """Whether a device has no instructions for a precision, so that it takes longer; if known."""
    if dtype not in (torch.bfloat16, torch.float16):
        return False
    if device.type == "cuda":
        return dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported(False)
    found = _capabilities() if device.type == "cpu" else {}
    names = {
        torch.bfloat16: ("avx512_bf16", "amx_bf16"),
        torch.float16: ("avx512_fp16", "amx_fp16"),
    }
    return found.get("architecture") == "x86_64" and not any(map(found.get, names[dtype]))


def preferred_dtype(device: torch.device) -> torch.dtype | None:
    """bfloat16 where the device is known to have instructions for it, else None."""
    known = device.type == "cuda" or (device.type == "cpu" and "avx512_bf16" in _capabilities())
    return torch.bfloat16 if known and not is_emulated(torch.bfloat16, device) else None


def _capabilities() -> Mapping[str, Any]:
    """Of the processor; empty where torch does not tell."""
    find: Callable[[], Mapping[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
    return find()
