"""python -m benchmarks SUITE [--json FILE]"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from benchmarks import harness

# suite -> the module with run() -> list[Result], and the implementation that others are compared to
SUITES = {"capture": ("benchmarks.capture", "inference")}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write one JSON object a line")
    options = parser.parse_args()
    module, baseline = SUITES[options.suite]
    results = importlib.import_module(module).run()
    harness.show(results, baseline)
    if options.json:
        harness.write(results, options.json)


if __name__ == "__main__":
    main()
