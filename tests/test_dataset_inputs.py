"""What is found in folders, tables, archives and data sets on disk, in which order, with labels."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
import torch
from data_sets import cut, make
from hypothesis import given
from hypothesis import strategies as st

from fastcam import pictures
from fastcam.dataset.inputs import Inputs, open_inputs
from fastcam.dataset.labels import class_ids
from fastcam.errors import FastcamError, UsageError
from fastcam.models import LoadedModel


def png(seed: int) -> bytes:
    return pictures.encoded(cut(seed), ".png")


def write(path: Path, seed: int) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(seed))
    return png(seed)


def listed(inputs: Inputs) -> list[tuple[str, Any]]:
    return [tuple(item) for item in inputs.items]


def data(inputs: Inputs) -> list[bytes]:
    """Also after it was pickled, as for another process."""
    inputs = pickle.loads(pickle.dumps(inputs))
    return [inputs.data(index, 10**8) for index in range(len(inputs))]


# --- folders


def test_a_folder_of_pictures(tmp_path):
    names = ["b.png", "a.PNG", "deep/er/c.jpeg", "z.webp", "ä.png"]
    for seed, name in enumerate(names):
        write(tmp_path / name, seed)
    for name in ("notes.txt", ".hidden.png", ".folder/d.png", "._a.png"):
        write(tmp_path / name, 9)
    inputs = open_inputs(tmp_path)
    assert listed(inputs) == [(name, None) for name in sorted(names)]
    assert data(inputs) == [png(names.index(name)) for name in sorted(names)]
    assert not inputs.has_labels


def test_a_folder_of_classes_is_torchvisions(tmp_path):
    for number, name in enumerate(
        ["dog/1.png", "cat/2.png", "cat/deep/3.png", "10/4.png", "9/5.png"]
    ):
        write(tmp_path / name, number)
    inputs = open_inputs(tmp_path)
    folder = pytest.importorskip(
        "torchvision.datasets", reason="torchvision is missing"
    ).ImageFolder
    peer = folder(str(tmp_path))
    expected = [(os.path.relpath(path, tmp_path), label) for path, label in peer.samples]
    assert sorted(listed(inputs)) == sorted(expected)
    assert list(inputs.label_names) == peer.classes == ["10", "9", "cat", "dog"]


def test_links_to_folders_and_back(tmp_path):
    write(tmp_path / "elsewhere" / "a.png", 0)
    write(tmp_path / "in" / "b.png", 1)
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    assert [key for key, _ in listed(open_inputs(tmp_path / "in"))] == ["b.png", "link/a.png"]


def test_a_name_that_is_not_utf8(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    expected = write(tmp_path / name, 0)
    inputs = open_inputs(tmp_path)
    assert listed(inputs) == [("caf\\xe9.png", None)]
    assert data(inputs) == [expected]


def test_what_is_not_a_data_set(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("no")
    with pytest.raises(UsageError, match="missing: no such file or folder"):
        open_inputs(tmp_path / "missing")
    with pytest.raises(UsageError, match=r"empty: the folder has neither pictures nor \.tar files"):
        open_inputs(tmp_path / "empty")
    with pytest.raises(UsageError, match=r"text.txt: expected a folder, or a \.tar, \.csv or"):
        open_inputs(tmp_path / "text.txt")


# --- tables


def test_a_csv_of_paths(tmp_path):
    for seed, name in enumerate(["b.png", "in, deep/a.png"]):
        write(tmp_path / name, seed)
    table = tmp_path / "table.csv"
    lines = ["label,path", "7,b.png", ',"in, deep/a.png"', f"cat,{tmp_path / 'b.png'}", "8,b.png"]
    table.write_text("\n".join(lines), encoding="utf-8-sig")
    inputs = open_inputs(table)
    absolute = str(tmp_path / "b.png")
    assert listed(inputs) == [
        (absolute, "cat"), ("b.png", 7), ("b.png", 8), ("in, deep/a.png", None),
    ]  # fmt: skip
    assert data(inputs) == [png(0), png(0), png(0), png(1)]


@pytest.mark.parametrize("labels", [None, [2, None, 1], ["cat", None, "3"], [2.0, None, 1.0]])
def test_a_parquet_of_paths(tmp_path, labels):
    for seed, name in enumerate("cab"):
        write(tmp_path / f"{name}.png", seed)
    columns = {"path": ["c.png", "a.png", "b.png"], "other": [1, 2, 3]}
    if labels is not None:
        columns["label"] = labels
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "table.parquet")
    inputs = open_inputs(tmp_path / "table.parquet")
    found = [None, None, None] if labels is None else [2, None, 1]
    found = ["cat", None, 3] if labels is not None and "cat" in labels else found
    assert listed(inputs) == sorted(zip(columns["path"], found, strict=True))
    assert data(inputs) == [png(1), png(2), png(0)]


def test_tables_that_do_not_fit(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("file,label\na.png,1\n")
    with pytest.raises(UsageError, match=r"table.csv: got the columns file, label, expected path"):
        open_inputs(table)
    table.write_text("path\n")
    with pytest.raises(UsageError, match=r"table.csv: it has no pictures"):
        open_inputs(table)
    table.write_text("path,label\n,1\n")
    with pytest.raises(UsageError, match=r"path None in row 1: expected the name of a file"):
        open_inputs(table)
    table.write_bytes(b"path\n\xe9.png\n")
    with pytest.raises(FastcamError, match=r"table.csv: not a table in UTF-8 with commas"):
        open_inputs(table)
    (tmp_path / "a.parquet").write_bytes(b"nothing")
    with pytest.raises(FastcamError, match=r"a.parquet: not a parquet file, or damaged"):
        open_inputs(tmp_path / "a.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"file": ["a"]}), tmp_path / "b.parquet")
    with pytest.raises(UsageError, match=r"b.parquet: got the columns file, expected path"):
        open_inputs(tmp_path / "b.parquet")


# --- archives


def pack(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def test_archives_of_a_webdataset(tmp_path):
    pack(
        tmp_path / "b-001.tar",
        [
            ("x/0001.jpg", png(1)), ("x/0001.cls", b"3\n"), ("x/0002.txt", b"no picture"),
            ("v1.0/0001.png", png(2)), ("v1.0/0001.json", b'{"label": "cat", "more": 1}'),
        ],
    )  # fmt: skip
    # the files of a sample may lie apart
    pack(tmp_path / "a-000.tar", [("2.png", png(3)), ("1.png", png(4)), ("2.cls", b"dog")])
    inputs = open_inputs(tmp_path)
    assert listed(inputs) == [
        ("a-000.tar/1", None), ("a-000.tar/2", "dog"),
        ("b-001.tar/v1.0/0001", "cat"), ("b-001.tar/x/0001", 3),
    ]  # fmt: skip
    assert data(inputs) == [png(4), png(3), png(2), png(1)]
    assert listed(open_inputs(tmp_path / "a-000.tar")) == listed(inputs)[:2]


def test_the_name_of_a_sample_ends_at_the_first_dot(tmp_path):
    """A picture named after another suffix, such as a mask, is not the sample's."""
    members = [("1.png", png(0)), ("1.mask.png", png(1)), (".png", png(2))]
    inputs = open_inputs(pack(tmp_path / "a.tar", members))
    assert listed(inputs) == [("a.tar/1", None)]
    assert data(inputs) == [png(0)]


def test_a_picture_with_a_further_dot_is_not_left_out_in_silence(tmp_path):
    for number, names in enumerate((["img.0.jpg", "img.1.jpg", "ok.jpg"], ["IMG_2024.01.png"])):
        archive = tmp_path / f"{number}.tar"
        with tarfile.open(archive, "w") as opened:
            for name in names:
                entry = tarfile.TarInfo(name)
                entry.size = len(png(1))
                opened.addfile(entry, io.BytesIO(png(1)))
        with pytest.raises(FastcamError, match="a name ends at its first dot, so this picture"):
            open_inputs(archive)


def test_labels_of_csv_as_pandas_writes_them(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        write(tmp_path / name, 1)
    table = tmp_path / "t.csv"
    table.write_text("path, label\na.png,3.0\nb.png,\nc.png, 7\n")
    assert listed(open_inputs(table)) == [("a.png", 3), ("b.png", None), ("c.png", 7)]
    table.write_text("path,label\na.png,owl\n")
    model = LoadedModel(torch.nn.Identity(), classes=("cat", "dog"))
    with pytest.raises(UsageError, match=r"^targets label: a\.png: unknown class owl"):
        class_ids(open_inputs(table), model, 2)


def test_a_pipe_among_the_pictures_is_a_failure(tmp_path):
    write(tmp_path / "a.png", 1)
    os.mkfifo(tmp_path / "b.png")
    inputs = open_inputs(tmp_path)
    with pytest.raises(FastcamError, match="not a regular file"):
        inputs.data(1, 10**8)


def test_archives_that_do_not_fit(tmp_path):
    with pytest.raises(FastcamError, match=r"a.tar: 1.png is there twice"):
        open_inputs(pack(tmp_path / "a.tar", [("1.png", png(0)), ("1.png", png(1))]))
    with pytest.raises(FastcamError, match=r"a.tar: 1 has 2 pictures \(png, jpg\), expected one"):
        open_inputs(pack(tmp_path / "a.tar", [("1.png", png(0)), ("1.jpg", png(1))]))
    with pytest.raises(FastcamError, match=r"a.tar: not an uncompressed tar archive, or damaged"):
        open_inputs(pack(tmp_path / "a.tar", [("1.png", png(0))], "w:gz"))
    with pytest.raises(FastcamError, match=r"the label of 1 cannot be read"):
        open_inputs(pack(tmp_path / "a.tar", [("1.png", png(0)), ("1.json", b"{")]))
    with pytest.raises(FastcamError, match=r"1: got the label \[1\], expected a class id or name"):
        open_inputs(pack(tmp_path / "a.tar", [("1.png", png(0)), ("1.json", b'{"label": [1]}')]))
    with pytest.raises(UsageError, match=r"a.tar: it has no pictures"):
        open_inputs(pack(tmp_path / "a.tar", [("1.txt", b"")]))
    # cut short behind the headers: found when the picture is read
    inputs = open_inputs(pack(tmp_path / "a.tar", [("1.png", png(0))]))
    with (tmp_path / "a.tar").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(FastcamError, match="the archive is cut short"):
        data(inputs)


@given(st.lists(st.text("ab.", min_size=1, max_size=4), unique=True, min_size=1, max_size=6))
def test_any_names_in_an_archive(names):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = pack(Path(folder) / "a.tar", [(f"{name}.png", name.encode()) for name in names])
        expected, others = {}, set()
        for name in names:
            stem, _, kind = f"{name}.png".partition(".")
            if stem and kind == "png":
                expected[f"a.tar/{stem}"] = name.encode()
            elif stem:
                others.add(f"a.tar/{stem}")
        if others - expected.keys() or not expected:
            with pytest.raises((FastcamError, UsageError)):
                open_inputs(path)
            return
        inputs = open_inputs(path)
        found = {key: inputs.data(index, 1) for index, (key, _) in enumerate(listed(inputs))}
        assert found == expected


# --- data sets of Hugging Face


def save(folder: Path, columns: dict[str, Any], features: dict[str, Any], parts: int = 1) -> Path:
    """As ``Dataset.save_to_disk`` does."""
    folder.mkdir(parents=True)
    table = pyarrow.table(columns)
    names = [f"data-{part:05d}-of-{parts:05d}.arrow" for part in range(parts)]
    rows = -(-len(table) // parts)
    for part, name in enumerate(names):
        with pyarrow.ipc.new_stream(str(folder / name), table.schema) as stream:
            stream.write_table(table.slice(part * rows, rows))
    state = {"_data_files": [{"filename": name} for name in names], "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    return folder


LABELS = {"names": ["cat", "dog"], "_type": "ClassLabel"}


@pytest.mark.parametrize("parts", [1, 2])
def test_a_data_set_of_hugging_face(tmp_path, parts):
    write(tmp_path / "c.png", 2)
    images = [
        {"bytes": png(0), "path": "a.png"},
        {"bytes": png(1), "path": None},
        {"bytes": None, "path": str(tmp_path / "c.png")},
    ]
    features = {
        "image": {"_type": "Image"},
        "label": LABELS,
        "n": {"dtype": "int64", "_type": "Value"},
    }
    columns = {"image": images, "label": [1, 0, -1], "n": [1, 2, 3]}
    inputs = open_inputs(save(tmp_path / "saved", columns, features, parts))
    assert listed(inputs) == [("00000000", 1), ("00000001", 0), ("00000002", None)]
    assert inputs.label_names == ("cat", "dog")
    assert data(inputs) == [png(0), png(1), png(2)]


def test_data_sets_of_hugging_face_that_do_not_fit(tmp_path):
    image = {"image": {"_type": "Image"}}
    none = save(tmp_path / "none", {"image": [{"bytes": None, "path": None}]}, image)
    with pytest.raises(FastcamError, match="row 0: it has no picture"):
        data(open_inputs(none))
    text = save(tmp_path / "text", {"text": ["a"]}, {"text": {"_type": "Value"}})
    with pytest.raises(UsageError, match=r"got the columns text \(Value\), expected one of"):
        open_inputs(text)
    splits = tmp_path / "splits"
    for name in ("test", "train"):
        save(splits / name, {"image": [{"bytes": png(0), "path": None}]}, image)
    (splits / "dataset_dict.json").write_text("{}")
    with pytest.raises(UsageError, match="with the splits test, train; give one of these folders"):
        open_inputs(splits)
    (none / "state.json").write_text("[]")
    with pytest.raises(FastcamError, match=r"not a data set that Dataset\.save_to_disk"):
        open_inputs(none)


# --- labels

PETS = LoadedModel(None, classes=("Cat", "dog", "bird"))  # type: ignore[arg-type]
UNNAMED = LoadedModel(None)  # type: ignore[arg-type]


def folder_of(path: Path, *names: str) -> Inputs:
    for name in names:
        write(path / name / "0.png", 0)
    return open_inputs(path)


def test_labels_by_name(tmp_path):
    assert class_ids(folder_of(tmp_path, "dog", "cat"), PETS, 3) == [0, 1]
    assert class_ids(folder_of(tmp_path, "dog", "cat", "bird"), PETS, 3) == [2, 0, 1]


def test_labels_by_number(tmp_path):
    inputs = folder_of(tmp_path, "n03", "n01", "n02")
    assert class_ids(inputs, UNNAMED, 3) == [0, 1, 2]
    with pytest.warns(UserWarning, match="so they are numbered: n01 is class 0, Cat"):
        assert class_ids(inputs, PETS, 3) == [0, 1, 2]


def test_labels_that_fit_no_class(tmp_path):
    with pytest.raises(UsageError, match=r"n01, n02: not the name of one class, and the 2 labels"):
        class_ids(folder_of(tmp_path / "a", "n01", "n02"), PETS, 3)
    (tmp_path / "table.csv").write_text("path,label\na.png,bird\nb.png,2\nc.png,\n")
    assert class_ids(open_inputs(tmp_path / "table.csv"), PETS, 3) == [2, 2, None]
    (tmp_path / "table.csv").write_text("path,label\na.png,3\n")
    with pytest.raises(UsageError, match=r"a.png has the label 3, expected 0 to 2"):
        class_ids(open_inputs(tmp_path / "table.csv"), UNNAMED, 3)
    (tmp_path / "table.csv").write_text("path,label\na.png,fish\n")
    with pytest.raises(UsageError, match="unknown class fish"):
        class_ids(open_inputs(tmp_path / "table.csv"), PETS, 3)
    with pytest.raises(UsageError, match=r"targets label: the pictures of .* have no labels"):
        class_ids(open_inputs(make(tmp_path / "in", 1)), PETS, 3)
