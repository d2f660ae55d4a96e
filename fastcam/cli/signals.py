"""Signals that end a command."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from fastcam.errors import ENDING, interrupt


@contextmanager
def interrupting() -> Iterator[None]:
    """Within this context, SIGTERM and SIGHUP interrupt the program as Ctrl-C does.

    Signals that the program was started to ignore, as by nohup, stay ignored. Does nothing outside
    of the main thread, which alone may set handlers.
    """
    usual = (signal.SIG_DFL, signal.default_int_handler)
    in_main = threading.current_thread() is threading.main_thread()
    before = {each: signal.getsignal(each) for each in ENDING if in_main}
    taken = {each: handler for each, handler in before.items() if handler in usual}
    for each in taken:
        signal.signal(each, interrupt)
    try:
        yield
    finally:
        for each, handler in taken.items():
            signal.signal(each, handler)
