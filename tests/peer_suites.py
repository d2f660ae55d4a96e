"""Another library's own tests under the drop-in, unchanged: what only fails with it?

    python tests/peer_suites.py FOLDER [--as-compat]

FOLDER is a checkout of torchcam, captum or pytorch-grad-cam, its folder of tests, or a part of
that. The tests run twice against the release that is installed, without the drop-in and with it,
each time in a copy of the checkout that lacks the library. The exit status is 1 if a test that
passed does not pass any more.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from fastcam import dropin

LIBRARIES = ("torchcam", "captum", "pytorch_grad_cam")
COMPAT = "fastcam.compat.pytorch_grad_cam"
OUTCOMES = ("passed", "failed", "skipped", "no network")
NETWORK = re.compile(
    r"^(E\s|\w).*(URLError|gaierror|Name or service not known|name resolution|NameResolutionError"
    r"|Connection(Error|Refused|Reset|Aborted)|MaxRetryError|Connect(Error|Timeout)|ReadTimeout"
    r"|HTTPError|HTTPStatusError|ProxyError|SSLError|Network is unreachable|couldn't connect"
    r"|LocalEntryNotFoundError|OfflineMode)",
    re.MULTILINE,
)
"""In the lines of a report that show exceptions, not in those of a source text."""


class Result(NamedTuple):
    """What became of one test."""

    outcome: str
    """Of :data:`OUTCOMES`."""
    text: str
    """The report of a failure."""


class Suite(NamedTuple):
    """A library's tests."""

    root: Path
    """The checkout."""
    part: Path
    """The tests to run, relative to it."""
    library: str

    @classmethod
    def of(cls, folder: Path) -> Suite:
        """The suite that a folder belongs to; the library is the one that its tests import most."""
        folder = folder.resolve()
        root = next((each for each in (folder, *folder.parents) if (each / "tests").is_dir()), None)
        if root is None:
            raise SystemExit(f"FOLDER: {folder} is no checkout with a folder named tests")
        part = Path("tests") if folder == root else folder.relative_to(root)
        imports = re.compile(rf"^\s*(?:from|import) ({'|'.join(LIBRARIES)})\b", re.MULTILINE)
        found: Counter[str] = Counter()
        for path in (root / "tests").rglob("*.py"):
            found.update(imports.findall(path.read_text(errors="replace")))
        if not found:
            raise SystemExit(f"FOLDER: no test below {root} imports one of {', '.join(LIBRARIES)}")
        return cls(root, part, found.most_common(1)[0][0])


class Outcome(NamedTuple):
    """A run of a suite."""

    results: dict[str, Result]
    notes: list[str]
    """What the drop-in said."""


def run(suite: Suite, under: str, limit: int) -> Outcome:
    """Runs a suite in a process of its own.

    Args:
        suite: what to run.
        under: "nothing", "dropin" or "compat".
        limit: seconds that one test may take.
    """
    with tempfile.TemporaryDirectory() as temporary:
        copy, log = Path(temporary) / suite.root.name, Path(temporary) / "log"
        apart = {str(suite.root): {".git", suite.library}}
        shutil.copytree(
            suite.root, copy, symlinks=True, ignore=lambda at, names: apart.get(str(at), set())
        )
        command = [sys.executable, __file__, "--one", under, str(log), str(limit), suite.library]
        done = subprocess.run([*command, str(suite.part)], cwd=copy, capture_output=True, text=True)
        if done.returncode not in (0, 1):
            print(f"pytest ended with status {done.returncode}:\n{done.stdout[-2000:]}", end="")
            print(done.stderr[-2000:])
        lines = map(json.loads, log.read_text().splitlines() if log.exists() else ())
        results, notes = {}, []
        for name, *found in lines:
            if name:
                results[name] = Result(*found)
            else:
                notes.append(found[0])
        return Outcome(results, notes)


def only_failing(without: Outcome, under: Outcome) -> dict[str, Result]:
    """The tests that passed before and do not any more; a network that is gone does not count."""
    missing = Result("failed", "it was not run")
    found = {
        name: under.results.get(name, missing)
        for name, result in without.results.items()
        if result.outcome == "passed"
    }
    return {
        name: result
        for name, result in found.items()
        if result.outcome not in ("passed", "no network")
    }


class Watch:
    """A plugin of pytest: writes down every outcome, and ends tests that take too long.

    Random numbers are the same in every run, so that a difference is the drop-in's.
    """

    def __init__(self, log: Path, limit: int) -> None:
        self._log = log
        self._limit = limit
        self._results: dict[str, Result] = {}

    def note(self, *found: str) -> None:
        with self._log.open("a") as file:
            print(json.dumps(found), file=file)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Iterator[None]:
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        signal.signal(signal.SIGALRM, self._too_long)
        signal.alarm(self._limit)
        try:
            return (yield)
        finally:
            signal.alarm(0)
            self.note(item.nodeid, *self._results.get(item.nodeid, Result("failed", "no report")))

    def _too_long(self, *_: object) -> None:
        pytest.fail(f"it took more than {self._limit} seconds")

    def pytest_runtest_logreport(self, report: Any) -> None:
        before = self._results.get(report.nodeid)
        # setup, call, teardown: the first that goes wrong counts
        if before is None or before.outcome == "passed":
            self._results[report.nodeid] = _result(report)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.note(report.nodeid, *_result(report))


def _result(report: Any) -> Result:
    if not report.failed:
        return Result(report.outcome, "")
    text = report.longreprtext
    return Result("no network" if NETWORK.search(text) else "failed", text)


class Alias(MetaPathFinder, Loader):
    """A finder by which pytorch_grad_cam and its modules are those of fastcam.compat."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name.partition(".")[0] == "pytorch_grad_cam" else None

    def exec_module(self, module: ModuleType) -> None:
        inner = module.__name__.removeprefix("pytorch_grad_cam")
        sys.modules[module.__name__] = importlib.import_module(COMPAT + inner)


def _one(under: str, log: str, limit: str, library: str, part: str) -> int:
    """The process that runs the tests, in the copy of a checkout."""
    sys.path[0] = str(Path.cwd())  # as pytest does, and not the folder of this file
    socket.setdefaulttimeout(20)
    watch = Watch(Path(log), int(limit))
    if under == "compat":
        sys.meta_path.insert(0, Alias())
        importlib.import_module(library)
    if under == "dropin":
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            dropin.install(library)
            importlib.import_module(dropin.LIBRARIES[library])
        for each in said:
            if "fastcam" in str(each.message):
                watch.note("", str(each.message))
    arguments = [part, "--rootdir=.", "--override-ini=addopts=", "--continue-on-collection-errors"]
    status = pytest.main([*arguments, "-q"], plugins=[watch])
    if under == "dropin":
        watch.note("", str(dropin.report()))
    return int(status)


def main() -> None:
    """Runs a suite twice and prints what came of it."""
    if sys.argv[1:2] == ["--one"]:
        sys.exit(_one(*sys.argv[2:]))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="a checkout, or its tests")
    parser.add_argument(
        "--as-compat",
        action="store_true",
        help="instead of the drop-in: pytorch_grad_cam is a name of fastcam.compat's modules",
    )
    parser.add_argument("--limit", type=int, default=300, help="seconds that one test may take")
    chosen = parser.parse_args()
    suite = Suite.of(chosen.folder)
    if chosen.as_compat and suite.library != "pytorch_grad_cam":
        parser.error(f"--as-compat: got tests of {suite.library}, expected pytorch_grad_cam's")
    under = "compat" if chosen.as_compat else "dropin"
    runs = {each: run(suite, each, chosen.limit) for each in ("nothing", under)}
    for note in runs[under].notes:
        print(note)
    titles = {"nothing": "by itself", "dropin": "under the drop-in", "compat": "as fastcam.compat"}
    print(f"{suite.library + ', ' + str(suite.part):32}" + "".join(f"{o:>12}" for o in OUTCOMES))
    for each, outcome in runs.items():
        counts = Counter(result.outcome for result in outcome.results.values())
        print(f"{titles[each]:32}" + "".join(f"{counts[o]:12}" for o in OUTCOMES))
    for name, result in runs["nothing"].results.items():
        if result.outcome == "failed":
            print(f"fails by itself: {name}: {_last(result.text)}")
    if not any(result.outcome == "passed" for result in runs["nothing"].results.values()):
        raise SystemExit("no test passes by itself, so nothing was compared")
    failing = only_failing(runs["nothing"], runs[under])
    for name, result in failing.items():
        print(f"\nfails only {titles[under]}: {name}\n{result.text}")
    print(f"{len(failing)} that only fail {titles[under]}")
    sys.exit(1 if failing else 0)


def _last(text: str) -> str:
    """The first line of the last exception."""
    shown = re.findall(r"^(?!E ).*\nE +(.*)", "\n" + text, re.MULTILINE)
    return (shown or text.splitlines() or [""])[-1][:150]


if __name__ == "__main__":
    main()
