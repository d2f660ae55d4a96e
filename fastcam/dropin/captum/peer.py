"""captum's modules, shared by the modules of this package."""

from __future__ import annotations

from typing import Any


class Peer:
    """captum's modules, after the takeover."""

    common: Any
    gradient: Any
