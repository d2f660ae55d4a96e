"""The script that runs other libraries' tests under the drop-in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pytorch_grad_cam", reason="grad-cam is missing: it has no tests to run")

SCRIPT = Path(__file__).with_name("peer_suites.py")
TESTS = """
import time
import urllib.error

import numpy as np
import pytest
import pytorch_grad_cam
from pytorch_grad_cam.utils.image import show_cam_on_image


def test_fine():
    picture = show_cam_on_image(np.ones((4, 5, 3), np.float32), np.eye(4, 5, dtype=np.float32))
    assert picture.shape == (4, 5, 3)


def test_always_fails():
    assert False, "as ever"


def test_needs_network():
    try:
        raise OSError(-3, "Temporary failure in name resolution")
    except OSError as error:
        raise RuntimeError("no weights") from urllib.error.URLError(error)


def test_fails_once_fastcam_has_served():
    from fastcam import dropin

    show_cam_on_image(np.ones((4, 5, 3), np.float32), np.eye(4, 5, dtype=np.float32))
    calls = dropin.report().calls
    assert not calls and "compat" not in pytorch_grad_cam.__name__, "not the library's"


@pytest.mark.skip(reason="not today")
def test_skipped():
    pass


def test_hangs():
    time.sleep(1000)


def test_writes_beside_itself():
    with open("written", "w") as file:
        file.write("here")
    assert __file__.startswith(__import__("os").getcwd())
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    tests = tmp_path / "their-checkout" / "tests"
    tests.mkdir(parents=True)
    (tests / "test_theirs.py").write_text(TESTS)
    # the release that is installed is tested, whatever lies in the checkout
    package = tests.parent / "pytorch_grad_cam"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('the copy of the checkout')")
    (tests.parent / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\naddopts = "--an-option-of-some-plugin"\npythonpath = ["."]\n'
    )
    return tests.parent


def run(*arguments: object) -> tuple[int, dict[str, list[int]], str]:
    """The exit status, the table's numbers by row, and all that was printed."""
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    rows = (line.rsplit(maxsplit=4) for line in done.stdout.splitlines())
    table = {row[0]: [int(n) for n in row[1:]] for row in rows if row and row[-1].isdigit()}
    return done.returncode, table, done.stdout + done.stderr


@pytest.mark.parametrize("compat", [False, True])
def test_only_what_fails_with_fastcam_alone_counts(checkout: Path, compat: bool) -> None:
    before = sorted(checkout.rglob("*"))
    arguments = [checkout, "--as-compat"] if compat else [checkout / "tests"]
    status, table, printed = run(*arguments, "--limit", 3)
    assert status == 1, printed
    title = "as fastcam.compat" if compat else "under the drop-in"
    assert table == {"by itself": [3, 2, 1, 1], title: [2, 3, 1, 1]}
    only = [line for line in printed.splitlines() if line.startswith("fails only")]
    assert only == [f"fails only {title}: tests/test_theirs.py::test_fails_once_fastcam_has_served"]
    assert "fails by itself: tests/test_theirs.py::test_always_fails: AssertionError: as ever" in (
        printed
    )
    assert "it took more than 3 seconds" in printed
    assert compat or "show_cam_on_image" in printed  # who served what
    assert sorted(checkout.rglob("*")) == before


def test_a_folder_that_is_no_suite(tmp_path: Path) -> None:
    assert "is no checkout" in run(tmp_path)[2]
    (tmp_path / "tests").mkdir()
    assert "imports one of" in run(tmp_path)[2]
    (tmp_path / "tests" / "test_theirs.py").write_text("import torchcam\nimport not_there\n")
    status, _, printed = run(tmp_path)
    assert status == 1 and "nothing was compared" in printed and "not_there" in printed
