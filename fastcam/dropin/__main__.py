"""``python -m fastcam.dropin script.py ARGS`` and ``python -m fastcam.dropin -m module ARGS``."""

from __future__ import annotations

import argparse
import atexit
import runpy
import sys
from pathlib import Path

from fastcam.dropin import install, report


def main() -> None:
    """Runs a script or module as Python does, and takes over the libraries that it imports."""
    parser = argparse.ArgumentParser(
        prog="python -m fastcam.dropin",
        usage="%(prog)s [--fix] [--fast] [--report] (-m MODULE | SCRIPT) ...",
        description="Runs a script that uses pytorch-grad-cam, torchcam or captum, faster.",
    )
    parser.add_argument("--fix", action="store_true", help="fix known errors of the libraries")
    parser.add_argument("--fast", action="store_true", help="run networks in the fast mode")
    parser.add_argument("--report", action="store_true", help="print at the end which code ran")
    parser.add_argument("-m", dest="module", action="store_true", help="SCRIPT is a module's name")
    parser.add_argument("script", metavar="SCRIPT", help="a file, or with -m a module")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="passed to the script")
    chosen = parser.parse_args()
    if not chosen.module and not Path(chosen.script).exists():
        parser.error(f"{chosen.script}: no such file")
    if chosen.report:
        atexit.register(lambda: print(report(), file=sys.stderr))
    install(fix=chosen.fix, fast=chosen.fast)
    sys.argv = [chosen.script, *chosen.arguments]
    if chosen.module:
        runpy.run_module(chosen.script, run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(chosen.script).resolve().parent)
        runpy.run_path(chosen.script, run_name="__main__")


if __name__ == "__main__":
    main()
