"""Scripts as the users of the other libraries write them: plain, and under the drop-in."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastcam import demo, dropin, pictures

pytest.importorskip("pytorch_grad_cam", reason="grad-cam is missing: its scripts do not run")
pytest.importorskip("torchcam", reason="torchcam is missing: its scripts do not run")
pytest.importorskip("captum", reason="captum is missing: its scripts do not run")
pytest.importorskip("torchvision", reason="torchvision is missing: the scripts' networks")

TESTS = Path(__file__).parent
SCRIPTS = TESTS / "peer_scripts"
PHOTO = str(demo.asset("photo.jpg"))


def python(*arguments: object, check: int = 0) -> subprocess.CompletedProcess[str]:
    """A new process, in the folder of the tests."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=TESTS,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == check, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def same_pictures(plain: Path, under: Path) -> None:
    """The same files, and pictures that differ by one level where a rounding falls otherwise."""
    names = sorted(each.name for each in plain.iterdir())
    assert names == sorted(each.name for each in under.iterdir())
    for name in (name for name in names if name.endswith(".png")):
        one, other = (pictures.read(folder / name).astype(int) for folder in (plain, under))
        assert one.shape == other.shape and one.std() > 1, name
        # a colour table steps by up to 5 levels where a map is rounded to the next one
        assert np.abs(one - other).max() <= 5 and (one != other).mean() < 1e-2, name


def same_arrays(plain: Path, under: Path) -> None:
    with np.load(plain) as one, np.load(under) as other:
        assert sorted(one) == sorted(other)
        for name in one:
            assert one[name].dtype == other[name].dtype and one[name].shape == other[name].shape
            off, size = np.abs(one[name] - other[name]).max(), np.abs(one[name]).max()
            assert off <= 1e-4 * size, f"{name}: {off / size:.3g} of the range"


def served(stderr: str) -> dict[str, set[str]]:
    """Of a report: the call's name to who served it."""
    found: dict[str, set[str]] = {}
    for line in stderr.splitlines():
        words = line.split()
        if len(words) > 3 and words[1] == "x" and words[0].isdigit():
            found.setdefault(words[2], set()).add(words[3])
    return found


def test_pictures_of_pytorch_grad_cam(tmp_path: Path) -> None:
    plain, under = tmp_path / "plain", tmp_path / "under"
    options = ["--image-path", PHOTO, "--method", "gradcam", "gradcam++", "xgradcam", "eigencam"]
    options += ["layercam", "--aug-smooth"]
    script = SCRIPTS / "cam.py"
    first = python(script, *options, "--output-dir", plain)
    second = python("-m", "fastcam.dropin", "--report", script, *options, "--output-dir", under)
    assert first.stdout == second.stdout and "sees class" in first.stdout
    same_pictures(plain, under)
    who = served(second.stderr)
    assert who.keys() >= {"pytorch_grad_cam.GradCAM", "pytorch_grad_cam.EigenCAM"}
    assert set().union(*who.values()) == {"fastcam"}, second.stderr


def test_tokens_and_metrics_of_pytorch_grad_cam(tmp_path: Path) -> None:
    script = SCRIPTS / "tokens_and_metrics.py"
    plain, under = tmp_path / "plain.npz", tmp_path / "under.npz"
    first = python(script, PHOTO, plain)
    second = python("-m", "fastcam.dropin", "--report", script, PHOTO, under)
    assert first.stdout == second.stdout
    same_arrays(plain, under)
    assert set().union(*served(second.stderr).values()) == {"fastcam"}, second.stderr


def test_torchcam_and_captum_as_a_module(tmp_path: Path) -> None:
    plain, under = tmp_path / "plain", tmp_path / "under"
    module = "peer_scripts.torchcam_and_captum"
    for folder in (plain, under):
        folder.mkdir()
    python("-m", module, PHOTO, plain)
    done = python("-m", "fastcam.dropin", "--report", "-m", module, PHOTO, under)
    same_arrays(plain / "found.npz", under / "found.npz")
    same_pictures(plain, under)
    who = served(done.stderr)
    assert who.keys() >= {"torchcam.SmoothGradCAMpp", "captum.LayerGradCam"}
    assert set().union(*who.values()) == {"fastcam"}, done.stderr


def test_the_script_is_the_program() -> None:
    """Arguments, exit code, __main__, and the folder whose modules it finds."""
    script = SCRIPTS / "leaves.py"
    arguments = ["--fast", "-m", "x y", "--report"]
    first = python(script, *arguments, check=7)
    second = python("-m", "fastcam.dropin", "--report", script, *arguments, check=7)
    assert second.stdout == first.stdout
    assert "no call yet" in second.stderr


def test_what_is_no_script() -> None:
    done = python("-m", "fastcam.dropin", "missing.py", check=2)
    assert "missing.py: no such file" in done.stderr


# --- notebooks ------------------------------------------------------------------------------------


@pytest.fixture
def put_back() -> Iterator[None]:
    yield
    dropin.uninstall()
    dropin.forget()


CELL = """
import torch
from pytorch_grad_cam import GradCAM
torch.manual_seed(0)
model = torch.nn.Sequential(
    torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
    torch.nn.Linear(4, 5),
)
with GradCAM(model, [model[1]]) as cam:
    maps = cam(torch.randn(2, 3, 12, 12), None)
"""


@pytest.mark.usefixtures("put_back")
def test_extension_of_a_notebook() -> None:
    shell: Any
    try:
        from IPython.core.interactiveshell import InteractiveShell
    except ImportError:  # the extension's two functions then stand for the magics
        namespace: dict[str, Any] = {}
        run = lambda code: exec(code, namespace)  # noqa: E731
        load = lambda: dropin.load_ipython_extension(None)  # noqa: E731
        unload = lambda: dropin.unload_ipython_extension(None)  # noqa: E731
    else:
        shell = InteractiveShell.instance()
        namespace = shell.user_ns
        run = lambda code: shell.run_cell(code).raise_error()  # noqa: E731
        load = lambda: shell.run_line_magic("load_ext", "fastcam.dropin")  # noqa: E731
        unload = lambda: shell.run_line_magic("unload_ext", "fastcam.dropin")  # noqa: E731
    answers, counts = [], []
    for change in (None, load, unload):
        dropin.forget()
        if change is not None:
            change()
        run(CELL)
        answers.append(torch.from_numpy(namespace["maps"]))
        counts.append(sum(dropin.report().calls.values()))
    assert counts == [0, 1, 0]
    torch.testing.assert_close(answers[1], answers[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(answers[2], answers[0], rtol=0, atol=0)
