"""How the libraries that are taken over behave."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Settings:
    """What :func:`fastcam.dropin.install` was asked for."""

    fix: bool = False
    """Whether a known error of the library is put right; otherwise its answers are kept."""
    fast: bool = False
    """Whether networks run in the fast mode; see :meth:`fastcam.GradCAM.compile`."""


settings = Settings()
