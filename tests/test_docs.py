"""The documents: every code block runs on the shipped files, links work, the prose is plain."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastcam import demo

try:
    import av
except ImportError:
    av = None

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROSE = [*DOCUMENTS, ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "results" / "README.md"]
MODULES = sorted((ROOT / "fastcam").rglob("*.py"))
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


UNIT = r"(line|file|map|run|thread|value|class|folder|package|tensor|frame|row|object|ms|KB|MB)"
OF = r"(picture|image|frame|line|method|operator|machine|core|channel|layer|block|call)"
VERB = r"(is|are|was|were|has|have|had|do|does|did|may|might|will|would|could|\w+s)"
KIND = r"(tensor|function|module|map|class|model|buffer|release|floating point|single)"
HABITS = {
    "because": rf"[,;] for (it|they|he|there|nobody|that|this|these|those) {VERB}\b",
    "separate, or nothing": r"\bof (its|their|his|our) own"
    r"(?! \w)|\bof (its|their|his|our) own (for|in|into|and|or|but|comes|beside)\b",
    "differentiate with respect to": r"\bderiv(es?|ed|ing)\b[^.;:]{0,60}\bby\b",
    "if": r"\bwhere (it|they) (can|cannot|could|has|have|does|do)\b"
    r"|\bwhere (it|they) (is|are) (not|no|left|broken|missing|recorded|installed)\b"
    r"|\bwhere (CUDA|torch|PyAV|there|none) (is|are|has)\b"
    r"|\b(None|empty|all|used) where\b",
    "a noun": r"\b[Ww]hat runs where\b|\bwhat was done\b",
    "per": rf"\b{UNIT}(e?s)? an? {OF}\b",
    "is not a": rf"\b(is|are|was|were) no {KIND}(e?s)?\b(?!')",
    "cannot be inferred": r"\b(is|are) not known (for|to|when|whether)\b|\bnobody knows\b",
    "unchanged": r"\bas ever\b|\bas it (is|was), for\b",
    "does not have": r"\b(has|have) not( got\b|[,.;])",
}
"""Turns of phrase that a reader stumbles over, under what to write instead."""


def docstrings(module: Path) -> Iterator[str]:
    """The docstrings of a module, also those of attributes, and the help texts."""
    for node in ast.walk(ast.parse(module.read_text())):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield text
            case ast.keyword(arg="help", value=ast.Constant(value=str(text))):
                yield text


def stumbles(text: str) -> list[str]:
    """The habits in a text, as lines of a failure."""
    text = " ".join(text.split())
    return [
        f"{text[max(found.start() - 40, 0) : found.end() + 30]!r}: write {instead!r}"
        for instead, habit in HABITS.items()
        for found in re.finditer(habit, text)
    ]


@pytest.mark.parametrize("document", PROSE, ids=lambda path: str(path.relative_to(ROOT)))
def test_prose_of_documents(document):
    found = stumbles(BLOCK.sub("", document.read_text()))
    assert not found, "\n".join(found)


# modules whose docstrings still have such turns; drop a module from here once it is mended
PENDING = {
    "fastcam/_kernels.py",
    "fastcam/cli/commands.py",
    "fastcam/compat/pytorch_grad_cam/base_cam.py",
    "fastcam/compat/pytorch_grad_cam/feature_factorization/deep_feature_factorization.py",
    "fastcam/dropin/__init__.py",
    "fastcam/dropin/captum.py",
    "fastcam/dropin/known.py",
    "fastcam/dropin/pytorch_grad_cam/ablation.py",
    "fastcam/dropin/pytorch_grad_cam/maps.py",
    "fastcam/dropin/pytorch_grad_cam/run.py",
    "fastcam/dropin/takeover.py",
    "fastcam/dropin/torchcam/forward.py",
    "fastcam/dropin/torchcam/smooth.py",
    "fastcam/engine/axes.py",
    "fastcam/engine/cores.py",
    "fastcam/engine/fast/batch_sizes.py",
    "fastcam/engine/fast/cuda_graphs.py",
    "fastcam/engine/fast/folding.py",
    "fastcam/engine/fast/model.py",
    "fastcam/engine/fast/options.py",
    "fastcam/engine/fast/units.py",
    "fastcam/engine/layouts.py",
    "fastcam/engine/per_image.py",
    "fastcam/engine/propagation.py",
    "fastcam/engine/shapes.py",
    "fastcam/engine/trials.py",
    "fastcam/explainer.py",
    "fastcam/methods/__init__.py",
    "fastcam/methods/base.py",
    "fastcam/methods/composed.py",
    "fastcam/methods/masked_runs.py",
    "fastcam/metrics/__init__.py",
    "fastcam/models/__init__.py",
    "fastcam/reference.py",
    "fastcam/targets.py",
    "fastcam/video/cuda.py",
    "fastcam/video/network.py",
    "fastcam/video/sinks.py",
    "fastcam/video/sources.py",
    "fastcam/video/temporal.py",
    "fastcam/video/threads.py",
    "fastcam/video/writer.py",
}


@pytest.mark.parametrize("module", [str(path.relative_to(ROOT)) for path in MODULES])
def test_prose_of_docstrings(module, request):
    if module in PENDING:
        request.applymarker(pytest.mark.xfail(reason="its docstrings are to be mended"))
    found = [each for text in docstrings(ROOT / module) for each in stumbles(text)]
    assert not found, "\n".join(found)
