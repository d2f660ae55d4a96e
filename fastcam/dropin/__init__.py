"""Runs scripts written for pytorch-grad-cam, torchcam and captum unchanged, several times faster.

Add one line before or after the other library's import::

    import fastcam.dropin; fastcam.dropin.install()

or run ``python -m fastcam.dropin script.py``, or ``%load_ext fastcam.dropin`` in a notebook.
fastcam replaces in place the functions that it implements; the others keep running the library's
code.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import threading
import warnings
from dataclasses import replace
from typing import Any

from fastcam.dropin.calls import Report, forget, report
from fastcam.dropin.imports import no_longer, when_imported
from fastcam.dropin.settings import Settings, settings
from fastcam.dropin.takeover import Takeover
from fastcam.errors import first_line

__all__ = ["LIBRARIES", "Installed", "Report", "forget", "install", "report", "uninstall"]

LIBRARIES = {
    "pytorch_grad_cam": "pytorch_grad_cam",
    "torchcam": "torchcam",
    "captum": "captum.attr",
}
"""By library, the module whose import triggers the takeover."""

_installed: dict[str, Takeover] = {}
_lock = threading.RLock()


class Installed:
    """The result of :func:`install`; as a context manager, it uninstalls when the block ends."""

    def __init__(self, libraries: tuple[str, ...], before: Settings) -> None:
        self.libraries = libraries
        self._before = before

    def __enter__(self) -> Installed:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.libraries:
            uninstall(*self.libraries)
        settings.fix, settings.fast = self._before.fix, self._before.fast


def install(*libraries: str, fix: bool = False, fast: bool = False) -> Installed:
    """Takes libraries over, now or when they are imported; earlier takeovers stay in force.

    Args:
        libraries: names from :data:`LIBRARIES`; by default all that are installed.
        fix: whether to fix known errors of the libraries; docs/dropin.md lists them.
        fast: whether to run networks in the fast mode, see :meth:`fastcam.GradCAM.compile`: maps
            then agree to a correlation of 0.99 instead of to rounding.

    Raises:
        ValueError: if a library is unknown.
        ModuleNotFoundError: if a named library is not installed.
    """
    for name in libraries:
        if name not in LIBRARIES:
            raise ValueError(f"libraries: got {name!r}, expected one of {', '.join(LIBRARIES)}")
        if importlib.util.find_spec(name) is None:
            package = {"pytorch_grad_cam": "grad-cam"}.get(name, name)
            instead = ", or import fastcam.compat.pytorch_grad_cam, which has its names"
            raise ModuleNotFoundError(
                f"libraries: {name} is not installed; run pip install {package}"
                f"{instead if name == 'pytorch_grad_cam' else ''}"
            )
    with _lock:
        before = replace(settings)
        settings.fix, settings.fast = fix, fast
        chosen = libraries or tuple(LIBRARIES)
        new = tuple(name for name in chosen if name not in _installed)
        for name in new:
            _installed[name] = takeover = Takeover(name)
            try:
                when_imported(LIBRARIES[name], functools.partial(_take, name, takeover))
            except BaseException:
                uninstall(name)
                raise
        return Installed(new, before)


def _take(name: str, takeover: Takeover) -> None:
    with _lock:
        try:
            importlib.import_module(f"fastcam.dropin.{name}").take_over(takeover)
            takeover.finish()
        except Exception as error:  # names may differ in another release of the library
            from fastcam.engine.trials import raise_out_of_memory  # imports torch, as libraries do

            takeover.undo()
            raise_out_of_memory(error)
            warnings.warn(
                f"fastcam.dropin: {name} is unchanged, because fastcam does not know this release "
                f"({first_line(error)})",
                stacklevel=2,
            )
        except BaseException:
            takeover.undo()
            raise


def uninstall(*libraries: str) -> None:
    """Restores libraries; by default all that were taken over."""
    with _lock:
        for name in libraries or tuple(_installed):
            if name in _installed:
                no_longer(LIBRARIES[name])
                _installed[name].undo()
                del _installed[name]
        if not _installed:
            settings.fix = settings.fast = False


def load_ipython_extension(ipython: Any) -> None:
    """For ``%load_ext fastcam.dropin``."""
    install()


def unload_ipython_extension(ipython: Any) -> None:
    """For ``%unload_ext fastcam.dropin``."""
    uninstall()
