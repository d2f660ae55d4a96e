"""PyAV, an optional dependency: the rest of the package works without it."""

from __future__ import annotations

from typing import Any

from fastcam.errors import FastcamError


def has_av() -> bool:
    try:
        av_library()
    except FastcamError:
        return False
    return True


def av_library() -> Any:
    """Imports PyAV."""
    try:
        import av
    except ImportError:
        raise FastcamError("PyAV is required: pip install fastcam[video]") from None
    return av
