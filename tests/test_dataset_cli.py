"""``fastcam dataset`` as a person runs it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import tiny_models
import torch
from data_sets import cut, make
from test_cli import run

import fastcam
from fastcam import pictures

DIGITS = ("--model", "digits", "--workers", 0)


def rows(out: Path) -> list[dict[str, object]]:
    return pyarrow.parquet.read_table(out / "manifest.parquet").to_pylist()


def test_what_dataset_prints(tmp_path):
    make(tmp_path / "in", 3)
    (tmp_path / "in" / "00001.png").write_bytes(b"no")
    out = tmp_path / "out"
    words = ("dataset", tmp_path / "in", out, *DIGITS, "--methods", "gradcam, layercam")
    result = run(*words)
    assert result.exit_code == 1 and result.stderr == ""
    first, second, third = result.stdout.splitlines()
    assert first.startswith(f"{out}: 3 of 3 pictures in ") and " images/s, slowest: " in first
    assert second == "  gradcam, layercam at stages.2.1"
    assert third == f"  1 could not be explained: see {out / 'failures.parquet'}"
    assert run(*words).stdout.splitlines()[0].endswith("0 of 3 pictures were left to do")
    report = json.loads(run(*words, "--json").stdout)
    assert (report["pictures"], report["explained"], report["failed"]) == (3, 0, 1)
    assert report["complete"] and report["methods"] == ["gradcam", "layercam"]


def test_labels_of_folders(tmp_path):
    for name in ("red", "blue"):
        pictures.write(tmp_path / "in" / name / "a.png", cut(0, 150, 200))
    words = ("--model", "tiny_models:colors", "--targets", "label", "--methods", "hirescam")
    result = run("dataset", tmp_path / "in", tmp_path / "out", *words, "--top-k", 2)
    assert result.exit_code == 0, result.stderr
    blue, red = rows(tmp_path / "out")
    assert (blue["label"], blue["class_names"][0]) == ("blue", "blue")
    assert (red["label"], red["class_names"][0]) == ("red", "red")
    assert blue["sha256"] == red["sha256"]
    # the map of a colour is that channel of what the network sees, shrunk
    inputs = tiny_models.colors().preprocessing(torch.from_numpy(cut(0, 150, 200))[None])
    channels = torch.nn.functional.avg_pool2d(inputs, tiny_models.STRIDE)[0]
    maps = fastcam.MapDataset(tmp_path / "out", size="layer", normalize=False)
    for entry, channel in ((maps[0], channels[2]), (maps[1], channels[0])):
        expected = 5 / channel.numel() * channel
        error = (entry["maps"]["hirescam"][0] - expected).abs().max()
        assert error < 1e-3 * (expected.max() - expected.min())
    assert blue["region"] == [25, 50, 125, 150]


def test_whole_pictures_of_several_sizes(tmp_path):
    """Crop by default: one size; with --no-crop each picture as wide as it is."""
    for number, width in enumerate((150, 300, 200, 300)):
        wide = np.concatenate([cut(number, 150, 150)] * 2, 1)[:, :width]
        pictures.write(tmp_path / "in" / f"{number}.png", wide)
    words = ("--model", "tiny_models:colors", "--methods", "gradcam", "--shard", 3)
    run("dataset", tmp_path / "in", tmp_path / "crop", *words)
    assert [row["input"] for row in rows(tmp_path / "crop")] == [[96, 96]] * 4
    run("dataset", tmp_path / "in", tmp_path / "whole", *words, "--no-crop")
    found = rows(tmp_path / "whole")
    maps = fastcam.MapDataset(tmp_path / "whole")
    model = tiny_models.colors()
    seen = model.preprocessing.whole()
    cam = fastcam.GradCAM(model.module, "features")
    for number, (row, width) in enumerate(zip(found, (150, 300, 200, 300), strict=True)):
        assert row["region"] == [0, 0, 150, width]
        picture = pictures.read(tmp_path / "in" / f"{number}.png")
        images = seen(torch.from_numpy(picture)[None])
        assert row["input"] == list(images.shape[2:])
        assert (maps[number]["maps"]["gradcam"] - cam(images)).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--methods", "gradcam,gradcan"), "unknown method gradcan; near names: gradcam"),
        (("--methods", "gradcam,fullgrad"), "methods: got 'fullgrad', expected methods whose maps"),
        (("--methods", "gradcam,gradcam"), "methods: got gradcam, gradcam, expected different"),
        (("--targets", "boxes"), "targets boxes: not supported for data sets"),
        (("--targets", "label"), "targets label: the pictures of"),
        (("--targets", "11"), "class 11 is out of range: the ids are 0 to 9"),
        (("--layer", "stem.9"), "'stem.9'"),
        (("--top-k", "11"), "top-k 11: the network has 10 classes"),
        (("--engine", "dask"), "engine dask: expected local or ray"),
        (("--std", "0", "1", "1"), "std 0 1 1: expected three numbers above 0"),
    ],
)
def test_wrong_options(tmp_path, words, message):
    make(tmp_path / "in", 1)
    result = run("dataset", tmp_path / "in", tmp_path / "out", *DIGITS, *words)
    assert result.exit_code == 2
    assert message in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_classes_alone(tmp_path):
    make(tmp_path / "in", 2)
    result = run("dataset", tmp_path / "in", tmp_path / "out", *DIGITS, "--methods", "none")
    assert result.exit_code == 0 and len(result.stdout.splitlines()) == 1
    assert fastcam.MapDataset(tmp_path / "out")[0]["maps"] == {}


def test_a_network_for_clips(tmp_path):
    make(tmp_path / "in", 1)
    words = ("--model", "tiny_models:motion")
    result = run("dataset", tmp_path / "in", tmp_path / "out", *words)
    assert result.exit_code == 2
    assert result.stderr == "fastcam: the network takes clips, not pictures\n"
