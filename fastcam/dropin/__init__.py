"""Scripts written for pytorch-grad-cam, torchcam and captum, unchanged and several times faster.

One line before or after the other library's import::

    import fastcam.dropin; fastcam.dropin.install()

or none at all: ``python -m fastcam.dropin script.py``, and in a notebook ``%load_ext
fastcam.dropin``. What fastcam has is taken over in place; the rest stays the library's own.
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
"""Each library, and the module with whose import it is taken over."""

_installed: dict[str, Takeover] = {}
_lock = threading.RLock()


class Installed:
    """What :func:`install` gives: as a context manager it ends with the block."""

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
    """Takes libraries over, now or with their import; those that are taken over stay so.

    Args:
        libraries: of :data:`LIBRARIES`; all that are installed where none is named.
        fix: whether known errors of the libraries are put right; docs/dropin.md lists them.
        fast: whether networks run in the fast mode, see :meth:`fastcam.GradCAM.compile`: maps then
            agree to a correlation of 0.99 instead of to rounding.

    Raises:
        ValueError: an unknown library.
        ModuleNotFoundError: a library that was named and is not installed.
    """
    for name in libraries:
        if name not in LIBRARIES:
            raise ValueError(f"libraries: got {name!r}, expected some of {', '.join(LIBRARIES)}")
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(
                f"libraries: {name} is not installed, so there is nothing to take over; "
                "fastcam.compat.pytorch_grad_cam has pytorch_grad_cam's names without it"
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
        except Exception as error:  # another release of the library may have other names
            takeover.undo()
            warnings.warn(
                f"fastcam.dropin: {name} stays as it is: fastcam does not know this release "
                f"({first_line(error)})",
                stacklevel=2,
            )
        except BaseException:
            takeover.undo()
            raise


def uninstall(*libraries: str) -> None:
    """Puts libraries back as they were; all where none is named."""
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
