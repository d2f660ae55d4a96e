"""The package's structure: imports without cycles, a small root, documents that fit the files."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import subprocess
from pathlib import Path

import grimp
import pytest
import test_further_methods
import test_methods
import test_video
import torch
from known_releases import MODULES

import fastcam
from benchmarks import report
from benchmarks.__main__ import SUITES
from fastcam import dropin, methods, ops, reference
from fastcam.dropin.known import known
from fastcam.methods.base import Method
from fastcam.methods.maps import MapMethod
from fastcam.video import sinks, sources

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]

NAME = re.compile(r"(?<!\.)\bfastcam(?:\.[A-Za-z_]\w*)+")
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


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def private_names(tree: ast.AST) -> set[str]:
    """The private functions, classes, variables and attributes that a module defines."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
            found.add(node.id if isinstance(node, ast.Name) else node.attr)
    return set(filter(is_private, found))


def foreign_accesses(tree: ast.AST) -> list[tuple[int, str]]:
    """Line and name of all private names that a module takes from another module or object."""
    own = ("self", "cls", "super()")
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in own:
            found.append((node.lineno, node.attr))
        elif isinstance(node, ast.ImportFrom):
            found += [(node.lineno, alias.name) for alias in node.names]
    return [(line, name) for line, name in found if is_private(name)]


def test_private_names_stay_with_their_owner():
    trees = {path: ast.parse((ROOT / path).read_text()) for path in tracked("fastcam/*.py")}
    private = set().union(*map(private_names, trees.values()))
    assert "_layouts" in private and len(private) > 100
    private -= {"_base", "_modules", "_version"}  # of torch too
    private -= {"_input"}  # of torchcam too
    found = [
        f"{path}:{line}: {name}"
        for path, tree in trees.items()
        for line, name in foreign_accesses(tree)
        if name in private
    ]
    assert not found


def catches_all(handler: ast.ExceptHandler) -> bool:
    return isinstance(handler.type, ast.Name) and handler.type.id == "Exception"


@pytest.mark.parametrize("folder", ["fastcam/engine", "fastcam/dropin"])
def test_an_out_of_memory_error_is_never_swallowed(folder: str):
    handlers = {
        f"{path}:{node.lineno}": ast.unparse(node.body)
        for path in tracked(f"{folder}/*.py")
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, ast.ExceptHandler) and catches_all(node)
    }
    assert len(handlers) > 2
    swallowed = [where for where, body in handlers.items() if "raise_out_of_memory(" not in body]
    assert not swallowed, f"call raise_out_of_memory(error) in the handler: {swallowed}"


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


# --- what docs/contributing.md says to add is in every list


def public_subclasses(base: type, package: str) -> set[type]:
    """The classes below ``base`` with public names that the package defines."""
    found = set()
    for each in base.__subclasses__():
        found |= public_subclasses(each, package)
        if each.__module__.startswith(package) and not each.__name__.startswith("_"):
            found.add(each)
    return found


def test_every_method_is_in_the_table_and_in_the_readme():
    defined = {
        each for each in public_subclasses(Method, "fastcam.methods") if "name" in vars(each)
    }
    assert defined == {*fastcam.METHODS.values(), methods.Several}  # that one has several names
    assert {each.__name__ for each in defined} < set(methods.__all__)
    rows = [row for row in (ROOT / "README.md").read_text().splitlines() if row.startswith("| `")]
    for name, method in fastcam.METHODS.items():
        assert any(f"`{name}`" in row and f"`{method.__name__}`" in row for row in rows), name


def test_every_method_of_maps_is_compared_with_its_definition():
    maps = {name for name, method in fastcam.METHODS.items() if issubclass(method, MapMethod)}
    tested = {*test_methods.MAP_METHODS, *test_further_methods.FURTHER, "cam"}
    assert maps <= tested, "compare it in test_further_methods.py and add it to FURTHER there"


def test_every_method_of_the_kernels_is_a_method_of_the_package():
    public = set(reference.METHODS) - {"gradcam++-signed"}  # that one is for the drop-in
    assert public < fastcam.METHODS.keys(), "add a class to fastcam/methods/gradient.py"


def test_every_operator_has_a_kernel_on_each_side():
    prefix = "fastcam::"
    known = [str(name) for name in torch._C._dispatch_get_all_op_names()]
    assert {name.removeprefix(prefix) for name in known if name.startswith(prefix)} == set(
        ops.__all__
    )
    for side, pattern in (("cpu", "*.cpp"), ("cuda", "*.cu")):
        text = "".join(path.read_text() for path in (ROOT / "csrc" / side).glob(pattern))
        missing = [name for name in ops.__all__ if f'm.impl("{name}"' not in text]
        served = ["impute"] if side == "cuda" else []  # by the reference
        assert missing == served, f"add m.impl(NAME, ...) in csrc/{side}/ for {missing}"


def test_every_library_of_the_drop_in_is_installed():
    found = {module.name for module in pkgutil.iter_modules(dropin.__path__)}
    taken = {name for name in found - {"__main__"} if takes_over(f"fastcam.dropin.{name}")}
    assert taken == dropin.LIBRARIES.keys()


def takes_over(module: str) -> bool:
    return callable(getattr(importlib.import_module(module), "take_over", None))


@pytest.mark.parametrize("library", dropin.LIBRARIES)
def test_every_library_of_the_drop_in_is_in_all_lists(library: str):
    assert takes_over(f"fastcam.dropin.{library}")
    for module in MODULES[library]:
        assert f"{library}.{module}" in known(), "run tests/known_releases.py RELEASE FOLDER"
    matrix = (ROOT / "tests" / "test_dropin_matrix.py").read_text()
    assert re.search(rf'assert_same\(\s*"{library}"', matrix), "compare it in test_dropin_matrix.py"
    assert f"## {library.replace('_', '-')}\n" in (ROOT / "docs" / "dropin.md").read_text()
    assert f'"fastcam.dropin.{library}"' in (ROOT / "pyproject.toml").read_text()


def test_every_sink_can_be_opened_and_is_tested(tmp_path):
    pytest.importorskip("av", reason="PyAV is missing: clips go to OpenCV")
    source = sources.Frames([])
    opened = {type(sinks.open_sink(tmp_path / name, source)) for name in test_video.SINKS}
    assert opened == public_subclasses(sinks.Sink, "fastcam.video") - {sinks.OpenCVFile}
    row = next(row for row in (ROOT / "README.md").read_text().splitlines() if "| out |" in row)
    assert [name for name in test_video.SINKS if Path(name).suffix not in row] == []


def test_every_source_can_be_opened():
    text = Path(sources.__file__).read_text()
    for each in public_subclasses(sources.Source, "fastcam.video"):
        assert f" {each.__name__}(" in text.partition("def open_source(")[2], each


def test_every_suite_of_benchmarks_is_in_all_lists():
    folder = ROOT / "benchmarks"
    found = [path.stem for path in folder.glob("*.py") if "\ndef cases(" in path.read_text()]
    assert sorted(found) == sorted(SUITES)
    for path in (ROOT / "Makefile", folder / "results" / "README.md"):
        text = path.read_text()
        missing = [suite for suite in SUITES if f"-m benchmarks {suite}" not in text]
        assert missing == [], path
    targets = {target.suite for target in report.TARGETS["cpu"]}
    assert targets == set(SUITES), 'add targets to TARGETS["cpu"] in benchmarks/report.py'


def test_pre_commit_runs_the_linters_of_make_lint():
    goal = (ROOT / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    linters = re.findall(r"\$\(BIN\)/([\w-]+(?: check| format)?)", goal)
    assert len(linters) == 6
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert [linter for linter in linters if f"entry: .venv/bin/{linter}" not in hooks] == []
