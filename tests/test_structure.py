"""The package's structure: imports without cycles, a small root, documents that fit the files."""

from __future__ import annotations

import pkgutil
import re
import subprocess
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]

NAME = re.compile(r"\bfastcam(?:\.[A-Za-z_]\w*)+")
IMPORT = re.compile(r"^from (fastcam[\w.]*) import (\w+(?:, \w+)*)$", re.MULTILINE)
FILE = re.compile(r"`([\w./+-]+\.(?:py|h|cuh|cpp|cu|sh|md|toml|yml|yaml))`")


def tracked(*patterns: str) -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a checkout of git")
    return listed.stdout.split()


def test_imports_have_no_cycles():
    graph = grimp.build_graph("fastcam", exclude_type_checking_imports=True, cache_dir=None)
    imports = [
        (importer, imported)
        for importer in graph.modules
        for imported in graph.find_modules_directly_imported_by(importer)
    ]
    assert len(imports) > 100
    circles = [
        f"{importer} -> {imported}"
        for importer, imported in imports
        if graph.chain_exists(importer=imported, imported=importer)
    ]
    assert not circles


def test_the_root_of_the_package_is_small():
    modules = [path for path in tracked("fastcam/*.py") if path.count("/") == 1]
    assert 0 < len(modules) < 10


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_names_in_documents_can_be_imported(document):
    text = document.read_text()
    names = set(NAME.findall(text))
    names |= {
        f"{module}.{name}"
        for module, imported in IMPORT.findall(text)
        for name in imported.split(", ")
    }
    for name in sorted(names):
        pkgutil.resolve_name(name)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_in_documents_exist(document):
    # a path is from the root, or from the folder of the sources that the text is about
    folders = [ROOT, ROOT / "fastcam", ROOT / "csrc", document.parent]
    for path in set(FILE.findall(document.read_text())):
        if "/" in path:
            assert any((folder / path).exists() for folder in folders), path


def test_the_architecture_names_every_folder():
    text = (ROOT / "docs" / "architecture.md").read_text()
    modules = [Path(path).relative_to("fastcam") for path in tracked("fastcam/*.py")]
    folders = {str(path.parent) for path in modules if len(path.parts) in (2, 3)}
    assert len(folders) > 10
    missing = [folder for folder in sorted(folders) if f"`{folder}/`" not in text]
    assert not missing
