"""Signals that end a program leave a clip that plays and nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import contents, write_clip
from test_video import colors, squares

from fastcam import video
from fastcam.cli.outputs import MANIFEST
from fastcam.cli.signals import interrupting
from fastcam.errors import Interrupted
from fastcam.video.network import Network

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")

SIDE, FRAMES = 96, 30


class Program:
    """``fastcam video`` on frames that come through a pipe, of which the last ones never come."""

    def __init__(self, folder: Path, *options: str, prepare: Callable[[], Any] | None = None):
        here = Path(__file__).parent
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fastcam", "video", "-", str(folder / "out.mp4"), "--raw",
             f"{SIDE}x{SIDE}", "--model", "tiny_models:colors", "--method", "gradcam",
             "--batch", "1", *options],
            cwd=here, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            preexec_fn=prepare,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(here.parent), *sys.path])},
        )  # fmt: skip
        self._send()
        deadline = time.monotonic() + 120
        while not any(folder.glob(".*.part.mp4")):
            assert self._process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)

    def _send(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(bytes(SIDE * SIDE * 3 * FRAMES))
        self._process.stdin.flush()

    def signal(self, *numbers: int) -> None:
        for number in numbers:
            self._process.send_signal(number)

    def go_on(self) -> None:
        self._send()

    def end(self) -> tuple[int, str]:
        """Its exit code, and what it said."""
        printed, written = self._process.communicate(timeout=120)
        self.stdout, said = printed.decode(), written.decode()
        assert "Traceback" not in said
        assert {path.name for path in self._folder.iterdir()} == {"out.mp4", MANIFEST}
        return self._process.returncode, said


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_keeps_the_frames_so_far(tmp_path: Path, name: str) -> None:
    number = signal.Signals[name]
    program = Program(tmp_path, "--json")
    program.signal(number)
    code, said = program.end()
    assert code == 128 + number, said
    assert "fastcam: interrupted; finished output is kept" in said
    count = len(contents(tmp_path / "out.mp4").times)
    assert 0 < count <= FRAMES
    report = json.loads(program.stdout)
    assert report["error"] == "interrupted; finished output is kept"
    assert (report["frames"], report["files"]) == (count, [str(tmp_path / "out.mp4")])


@pytest.mark.parametrize(
    "option", [("--norm", "clip"), ("--smooth", "gauss:1"), ("--target", "clip")]
)
def test_a_signal_in_the_first_of_two_passes(
    tmp_path: Path, option: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_cli import run

    for name in ("maps", "mean_probabilities"):
        monkeypatch.setattr(Network, name, lambda *_: signal.raise_signal(signal.SIGTERM))
    write_clip(tmp_path / "in.mp4", range(0, 400, 40))
    model = ("--model", "tiny_models:colors", "--method", "gradcam", "--json")
    result = run("video", tmp_path / "in.mp4", tmp_path / "out.mp4", *model, *option)
    assert result.exit_code == 128 + signal.SIGTERM
    report = json.loads(result.stdout)
    assert report["error"].startswith("interrupted; nothing is written, because norm clip, ")
    assert f"fastcam: {report['error']}\n" == result.stderr
    assert (report["frames"], report["files"]) == (0, [])
    assert [each.name for each in tmp_path.iterdir()] == ["in.mp4"]


def test_signals_that_follow_do_not_break_the_closing(tmp_path: Path) -> None:
    program = Program(tmp_path)
    program.signal(signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
    code, said = program.end()
    assert code in (128 + signal.SIGTERM, 128 + signal.SIGHUP, 130), said
    assert len(contents(tmp_path / "out.mp4").times) > 0


def test_nohup_stays_in_force(tmp_path: Path) -> None:
    def nohup() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    program = Program(tmp_path, prepare=nohup)
    program.signal(signal.SIGHUP)
    time.sleep(0.5)
    program.go_on()
    code, said = program.end()
    assert code == 0, said
    assert len(contents(tmp_path / "out.mp4").times) == 2 * FRAMES


def test_a_signal_while_pictures_are_explained(tmp_path: Path) -> None:
    """Its temporary files go, finished ones stay."""
    from test_cli import run

    from fastcam import pictures
    from fastcam.cli import image

    for name in "ab":
        pictures.write(tmp_path / f"{name}.png", np.zeros((SIDE, SIDE, 3), np.uint8))
    saved = []

    def save(*arguments: Any) -> Any:
        if saved:
            with pictures.replacing(tmp_path / "out" / "b.npy") as temporary:
                temporary.write_text("half")
                try:
                    signal.raise_signal(signal.SIGTERM)
                finally:
                    signal.raise_signal(signal.SIGHUP)  # meets the removal of the file
        saved.append(1)
        return original(*arguments)

    original, image.save = image.save, save
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    options = ("--model", "tiny_models:colors", "--method", "gradcam", "--out", tmp_path / "out")
    try:
        result = run("image", tmp_path / "a.png", tmp_path / "b.png", *options)
    finally:
        image.save = original
    assert result.exit_code == 128 + signal.SIGTERM
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "a.json" in names and not [name for name in names if "part" in name or "b." in name]
    after = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert before == after


def test_the_library_leaves_signals_to_the_program(tmp_path: Path) -> None:
    met = []
    before = signal.signal(signal.SIGTERM, lambda *_: met.append(1))
    try:
        video.explain(
            squares(3), tmp_path / "out.mp4", colors(), target="red",
            progress=lambda: signal.raise_signal(signal.SIGTERM),
        )  # fmt: skip
        assert len(met) == 3
    finally:
        signal.signal(signal.SIGTERM, before)


def test_only_the_command_line_takes_signals() -> None:
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with pytest.raises(Interrupted) as caught, interrupting():
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
