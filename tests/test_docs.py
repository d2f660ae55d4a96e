"""Every code block of the documents runs, in a folder that holds what ships with the package."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastcam import demo

try:
    import av
except ImportError:
    av = None

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    for name in ("photo.jpg", "clip.mp4", "scene.png"):
        shutil.copy(demo.asset(name), tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_line(line: str) -> None:
    """A shell line: our own commands are run, make's goals are looked up."""
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        subprocess.run(["make", "--dry-run", "--directory", str(ROOT), *words[1:]], check=True)
        return
    assert words[0] in ("fastcam", "python"), f"a block has a line that no test can run: {line}"
    words = ["-m", *words] if words[0] == "fastcam" else words[1:]
    path = os.pathsep.join([str(ROOT), *sys.path])  # as an in-place build is not installed
    done = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_code_block_runs(document, shipped):
    blocks = BLOCK.findall(document.read_text())
    names: dict[str, object] = {}
    left_out = []
    for language, text in blocks:
        assert language in ("python", "sh", "text"), f"a block without a language: {text[:60]}"
        if language == "python":
            exec(compile(text, str(document), "exec"), names)
        elif language == "sh":
            for line in filter(None, map(str.strip, text.splitlines())):
                if av is None and line.startswith("fastcam video"):
                    left_out.append(line)
                elif not line.startswith("#"):
                    run_line(line)
    if left_out:
        pytest.skip(f"PyAV is missing: all blocks ran but for {left_out}")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_pictures_are_there(document):
    for target in re.findall(r"\]\(([^)#]+)", document.read_text()):
        assert "://" in target or (document.parent / target).exists(), target
