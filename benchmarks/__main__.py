"""python -m benchmarks SUITE [--device cpu|cuda] [--json FILE] [--full] [--only TEXT]

`python -m benchmarks digits` is the study of methods in benchmarks/digits/study.
"""

from __future__ import annotations

import argparse
import importlib
import json
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

import torch

from benchmarks import report
from benchmarks.digits.study import __main__ as study
from benchmarks.harness import Result

SUITES = ("ops", "capture", "endtoend", "video", "dropin")


def main() -> int:
    if sys.argv[1:2] == ["digits"]:
        return study.main(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("suite", choices=(*SUITES, "digits"), help="digits has other options")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write one JSON object a line as cases end, and a plot beside it (.png)",
    )
    parser.add_argument("--full", action="store_true", help="all sizes, dtypes and methods")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name has this text")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    found = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(found if options.device == "auto" else options.device)
    suite = importlib.import_module(f"benchmarks.{options.suite}")
    cases = {
        name: measure
        for name, measure in suite.cases(device, options.full).items()
        if options.only in name
    }
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
    with open(options.json or "/dev/null", "w") as lines:
        results, failed = run(cases, lines)
    if results:
        report.show(results, device.type)
        if options.json:
            report.plot(results, options.json.with_suffix(".png"))
    for name in failed:
        print(f"FAILED: {name}")
    return 1 if failed or not results else 0


def run(
    cases: dict[str, Callable[[], list[Result]]], lines: TextIO
) -> tuple[list[Result], list[str]]:
    """What was measured, and the cases that failed. KeyboardInterrupt ends it early."""
    results: list[Result] = []
    failed = []
    try:
        for i, (name, measure) in enumerate(cases.items(), start=1):
            print(f"[{i}/{len(cases)}] {name}", end="", flush=True)
            try:
                measured = measure()
            except Exception:
                print()
                traceback.print_exc()
                failed.append(name)
                continue
            lines.writelines(json.dumps(asdict(result)) + "\n" for result in measured)
            lines.flush()
            results += measured
            times = (f"{result.implementation} {1e3 * result.median:.4g}" for result in measured)
            print(f", ms: {', '.join(times)}", flush=True)
    except KeyboardInterrupt:
        print(f"\ncut off: {len(cases) - i + 1} of {len(cases)} cases were not measured")
    return results, failed


if __name__ == "__main__":
    sys.exit(main())
