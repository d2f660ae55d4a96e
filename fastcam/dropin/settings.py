"""The settings of the takeover."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Settings:
    """The options of :func:`fastcam.dropin.install`."""

    fix: bool = False
    """Whether to fix known errors of the libraries; otherwise their results are reproduced."""
    fast: bool = False
    """Whether to run networks in the fast mode; see :meth:`fastcam.GradCAM.compile`."""


settings = Settings()
