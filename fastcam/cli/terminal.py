"""What commands say: lines and JSON on stdout; errors, notes and a bar on stderr."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

from fastcam.cli import json
from fastcam.cli.signals import interrupting
from fastcam.errors import KEPT, FastcamError


class Command(TyperCommand):
    """Prints errors that the user can fix as one line on stderr and sets the exit code.

    With --json, prints the error on stdout too. A signal that ends the command is such an error.
    """

    def invoke(self, ctx: Any) -> Any:
        try:
            with interrupting():
                return super().invoke(ctx)
        except FastcamError as error:
            say(str(error))
            if ctx.params["as_json"]:
                print_json({"error": str(error), **error.details})
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt as error:
            message = f"interrupted; {getattr(error, 'kept', KEPT)}"
            with suppress(OSError, FastcamError, typer.Exit):  # after SIGHUP, with no terminal
                say(message)
                if ctx.params["as_json"]:
                    print_json({"error": message, **getattr(error, "details", {})})
            raise typer.Exit(getattr(error, "exit_code", 130)) from None


class _Speed(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f} {self._unit}/s" if speed else "")


@contextmanager
def bar(unit: str, total: int | None = None) -> Iterator[Callable[..., object]]:
    """Yields a function with the arguments of ``Progress.update``; without any, it goes on by one.

    Shows a bar if stderr is a terminal.
    """
    console = Console(stderr=True)
    columns = (
        BarColumn(), MofNCompleteColumn(), _Speed(unit), TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as shown:
        task = shown.add_task("", total=total)
        yield lambda **changes: shown.update(task, **(changes or {"advance": 1}))


def say(message: str) -> None:
    """Prints a line on stderr."""
    print(f"fastcam: {message}", file=sys.stderr)


def print_line(text: str) -> None:
    """Prints a line on stdout. If a reader such as ``head`` has closed it, the command ends."""
    try:
        print(text, flush=True)
    except OSError as error:
        # Python would report what is left in the buffer once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise typer.Exit(128 + signal.SIGPIPE) from None
        raise FastcamError(f"stdout cannot be written: {error.strerror}") from None


def print_json(report: dict[str, Any]) -> None:
    """Prints an object as one line on stdout."""
    print_line(json.dumps(report))


def print_table(table: Table) -> None:
    """Prints a table on stdout; nothing of it is cut off if that is a file or a pipe."""
    width = Console().width if sys.stdout.isatty() else 1000
    text = io.StringIO()
    Console(file=text, width=width).print(table)
    print_line("\n".join(line.rstrip() for line in text.getvalue().splitlines()))
