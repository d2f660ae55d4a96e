"""Data sets: what the files say is what each method says of each picture."""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import pickle
import threading
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import tiny_models
import torch
from data_sets import contents, cut, make
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

import fastcam
from fastcam import dataset, demo, models, pictures
from fastcam.dataset import decoding
from fastcam.errors import FastcamError, UsageError
from fastcam.explainer import Explainer, abreast

METHODS = ["gradcam", "gradcam++", "eigencam"]


@pytest.fixture(scope="module")
def digits() -> Explainer:
    return Explainer(models.load("digits"), METHODS)


def table(path: Path) -> list[dict[str, object]]:
    return pyarrow.parquet.read_table(path).to_pylist()


SIZES = ((48, 48), (48, 64), (40, 48))


@pytest.fixture(scope="module")
def made(tmp_path_factory, digits) -> tuple[Path, Path]:
    """A data set with pictures of three sizes and two broken ones, and its maps."""
    source = make(tmp_path_factory.mktemp("pictures"), 23, SIZES)
    (source / "00005.png").write_bytes(b"not a picture")
    whole = (source / "00011.png").read_bytes()
    (source / "00011.png").write_bytes(whole[: len(whole) // 2])
    out = tmp_path_factory.mktemp("maps") / "out"
    report = dataset.explain(source, out, digits, top_k=3, batch=4, shard=8, workers=2)
    assert (report.pictures, report.explained, report.failed) == (23, 23, 2)
    return source, out


def test_the_maps_are_those_of_each_method(made):
    source, out = made
    maps = fastcam.MapDataset(out)
    raw = fastcam.MapDataset(out, size="layer", normalize=False)
    large = fastcam.MapDataset(out, ["eigencam"], size=(70, 30))
    assert maps.methods == tuple(METHODS) and len(maps) == 23
    network = demo.digits().double()
    cams = {name: fastcam.METHODS[name](network, "stages.2.1") for name in METHODS}
    for index, path in enumerate(sorted(source.iterdir())):
        entry = maps[index]
        assert (entry["path"], entry["index"]) == (path.name, index)
        if index in (5, 11):
            assert entry["class_ids"].tolist() == [-1] * 3
            assert all(each.isnan().all() for each in entry["maps"].values())
            assert entry["maps"]["gradcam"].shape == (3, 48, 48)  # of the first one
            continue
        image = torch.from_numpy(pictures.read(path)).movedim(-1, 0)[None].double() / 255
        for name, cam in cams.items():
            expected = cam(image, fastcam.TopClasses(3))
            assert entry["class_ids"].equal(cam.class_ids[0])
            torch.testing.assert_close(
                entry["scores"].double(), cam.scores[0], rtol=1e-5, atol=1e-4
            )
            found = entry["maps"][name].double()
            assert found.shape == (3, *image.shape[2:])
            assert (found - expected[0]).abs().max() < 1e-3
            wanted = cam(image, fastcam.TopClasses(3), size="layer", normalize=False)[0]
            span = wanted.amax((1, 2)) - wanted.amin((1, 2))
            error = (raw[index]["maps"][name] - wanted).abs().amax((1, 2))
            assert (error <= 1e-3 * span + 1e-6).all()
        wanted = cams["eigencam"](image, fastcam.TopClasses(3), size=(70, 30))[0]
        assert (large[index]["maps"]["eigencam"] - wanted).abs().max() < 1e-3


def test_the_manifest_has_a_row_for_each_picture(made):
    source, out = made
    rows, failures = table(out / "manifest.parquet"), table(out / "failures.parquet")
    assert [row["index"] for row in rows] == list(range(23))
    maps = fastcam.MapDataset(out, size="layer", normalize=False)
    for row, path in zip(rows, sorted(source.iterdir()), strict=True):
        assert row["path"] == path.name
        if row["index"] in (5, 11):
            assert row["class_ids"] is None and row["height"] is None
            continue
        assert row["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        height, width = SIZES[row["index"] % 3]
        assert [row["height"], row["width"]] == row["input"] == [height, width]
        assert row["region"] == [0, 0, height, width]
        entry = maps[row["index"]]
        assert row["class_ids"] == entry["class_ids"].tolist()
        assert row["class_names"] == [str(each) for each in row["class_ids"]]
        assert row["scores"] == entry["scores"].tolist()
        for name in METHODS:
            raw = entry["maps"][name]
            ends = torch.stack([raw.amin((1, 2)), raw.amax((1, 2))], 1)
            torch.testing.assert_close(torch.tensor(row[f"range_{name}"]), ends)
        assert row["probabilities"] == entry["probabilities"].tolist()
    assert [row["index"] for row in failures] == [5, 11]
    assert "not a picture" in failures[0]["error"] and failures[0]["path"] == "00005.png"
    # the hash of a file that could be read, to find it again
    assert failures[1]["sha256"] == hashlib.sha256((source / "00011.png").read_bytes()).hexdigest()


def test_workers_and_threads_change_nothing(made, digits, tmp_path, monkeypatch):
    source, out = made
    for workers, cores in ((0, 1), (1, 3)):
        monkeypatch.setattr(abreast, "threads_abreast", lambda cores=cores: cores)
        other = tmp_path / str(workers)
        dataset.explain(source, other, digits, top_k=3, batch=4, shard=8, workers=workers)
        assert contents(other) == contents(out)


def test_a_function_that_cannot_be_sent_runs_here(made, tmp_path):
    source, _ = made

    def function(image):
        return torch.from_numpy(np.array(image.resize((64, 64)))).movedim(-1, 0) / 255

    model = models.LoadedModel(demo.digits(), models.MeasuredTransform(function))
    options = {"batch": 4, "shard": 30}
    with pytest.warns(UserWarning, match="pictures are read in this one"):
        report = dataset.explain(source, tmp_path / "a", Explainer(model), workers=1, **options)
    assert report.failed == 2
    dataset.explain(source, tmp_path / "b", Explainer(model), workers=0, **options)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_run_goes_on_with_what_is_missing(made, digits, tmp_path):
    source, out = made
    other = tmp_path / "other"
    options = {"top_k": 3, "batch": 4, "shard": 8, "workers": 0}
    report = dataset.explain(source, other, digits, share=(1, 3), **options)
    assert (report.explained, report.failed) == (8, None)
    assert not (other / "manifest.parquet").exists()
    with pytest.raises(FastcamError, match="the run has not finished"):
        fastcam.MapDataset(other)
    seen = []
    report = dataset.explain(
        source, other, digits, **options, progress=lambda done, total, _: seen.append((done, total))
    )
    assert (report.explained, report.failed) == (15, 2)
    assert seen[0] == (8, 23) and seen[-1] == (23, 23)
    assert contents(other) == contents(out)


def test_shares_are_disjoint_and_together_all(made, digits, tmp_path):
    source, out = made
    for rank in (1, 0):
        report = dataset.explain(
            source, tmp_path / "out", digits, top_k=3, batch=4, shard=8, workers=0, share=(rank, 2)
        )
        assert report.explained == (8 if rank else 15)
    assert report.failed == 2
    assert contents(tmp_path / "out") == contents(out)


def test_what_an_interrupted_run_left_is_removed(made, digits, tmp_path):
    source, out = made
    stale = tmp_path / "out" / "shards" / ".fastcam-0123456789abcdef.part"
    options = {"top_k": 3, "batch": 4, "shard": 8, "workers": 0}
    dataset.explain(source, tmp_path / "out", digits, share=(0, 3), **options)
    stale.mkdir()
    (stale / "gradcam.safetensors").write_bytes(b"half")
    dataset.explain(source, tmp_path / "out", digits, **options)
    assert contents(tmp_path / "out") == contents(out)


def test_two_runs_that_write_the_same_shard(made, digits, tmp_path):
    source, out = made
    options = {"top_k": 3, "batch": 4, "shard": 8, "workers": 0}
    threads = [
        threading.Thread(
            target=dataset.explain,
            args=(source, tmp_path / "out", Explainer(models.load("digits"), METHODS)),
            kwargs=options,
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert contents(tmp_path / "out") == contents(out)


CHANGES = {
    "top-k was 3, now 2": {"top_k": 2},
    "batch was 4, now 5": {"batch": 5},
    "shard was 8, now 9": {"shard": 9},
    "targets was top1, now 3": {"targets": "3"},
    "max-pixels was 100000000, now 10000": {"max_pixels": 10_000},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_setting_is_refused(made, digits, change):
    source, out = made
    before = contents(out)
    options = {"top_k": 3, "batch": 4, "shard": 8, "workers": 0, **CHANGES[change]}
    with pytest.raises(UsageError, match=f"begun with other settings: {change}. Go on"):
        dataset.explain(source, out, digits, **options)
    assert contents(out) == before


def test_a_changed_model_is_refused(made, digits):
    source, out = made
    options = {"top_k": 3, "batch": 4, "shard": 8, "workers": 0}
    loaded = models.load("digits")
    with torch.no_grad():
        next(loaded.module.parameters()).flatten()[0] += 1e-3
    with pytest.raises(UsageError, match=r"settings: the weights have changed\."):
        dataset.explain(source, out, Explainer(loaded, METHODS), **options)
    loaded = models.load("digits")
    loaded.module.pool = nn.AdaptiveMaxPool2d(1)
    with pytest.raises(UsageError, match="settings: the network's modules have changed"):
        dataset.explain(source, out, Explainer(loaded, METHODS), **options)
    with pytest.raises(UsageError, match=r"layers was \['stages.2.1'\], now \['stages.1'\]"):
        dataset.explain(
            source, out, Explainer(models.load("digits"), METHODS, "stages.1"), **options
        )
    with pytest.raises(UsageError, match=r"methods was .*eigencam'\], now \['gradcam'\]"):
        dataset.explain(source, out, Explainer(models.load("digits"), ["gradcam"]), **options)


def test_a_changed_source_is_refused(made, digits, tmp_path):
    source, out = made
    for path in source.iterdir():
        (tmp_path / path.name.replace("00022", "00023")).write_bytes(path.read_bytes())
    with pytest.raises(UsageError, match="labels or annotations of pictures have changed"):
        dataset.explain(tmp_path, out, digits, top_k=3, batch=4, shard=8, workers=0)


def test_a_folder_with_other_files_is_refused(made, digits, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match=r"it has other files \(thesis.tex\) and no settings.json"):
        dataset.explain(made[0], tmp_path, digits)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(FastcamError, match="not a folder of fastcam dataset"):
        fastcam.MapDataset(tmp_path)


def test_of_two_runs_that_begin_together_the_first_one_decides(tmp_path):
    path = tmp_path / "settings.json"
    for number in (1, 2):
        dataset.settings._create(path, {"number": number})
    assert dataset.settings.read(tmp_path) == {"number": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_whole_shards(made, digits, tmp_path, monkeypatch):
    source, out = made
    options = {"top_k": 3, "batch": 4, "shard": 8, "workers": 0}
    write_part, calls = dataset.shards.manifest.write_part, []

    def full(*args):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        write_part(*args)

    monkeypatch.setattr(dataset.shards.manifest, "write_part", full)
    with pytest.raises(FastcamError, match="shards/00001: cannot be written: No space left"):
        dataset.explain(source, tmp_path / "out", digits, **options)
    assert [path.name for path in (tmp_path / "out" / "shards").iterdir()] == ["00000"]
    monkeypatch.undo()
    dataset.explain(source, tmp_path / "out", digits, **options)
    assert contents(tmp_path / "out") == contents(out)


def test_one_method_and_a_class(tmp_path):
    source = make(tmp_path / "in", 3)
    explainer = Explainer(models.load("digits"), "layercam")
    dataset.explain(source, tmp_path / "out", explainer, targets="7", top_k=2, workers=0)
    for row in table(tmp_path / "out" / "manifest.parquet"):
        assert row["class_ids"][0] == 7 and len(row["class_ids"]) == 2
    assert fastcam.MapDataset(tmp_path / "out").methods == ("layercam",)


def test_what_speaks_against_a_class(tmp_path):
    source = make(tmp_path / "in", 2)
    explainer = Explainer(models.load("digits"), "hirescam")
    dataset.explain(source, tmp_path / "out", explainer, targets="not:7", top_k=5, workers=0)
    (row, _) = table(tmp_path / "out" / "manifest.parquet")
    assert (row["class_ids"], row["class_names"]) == ([7], ["against 7"])


def test_classes_alone(tmp_path, digits):
    source = make(tmp_path / "in", 5)
    report = dataset.explain(source, tmp_path / "out", digits, maps=False, workers=0)
    assert report.failed == 0
    written = {path.name for path in (tmp_path / "out" / "shards" / "00000").iterdir()}
    assert written == {"manifest.parquet", "failures.parquet"}
    for row in table(tmp_path / "out" / "manifest.parquet"):
        image = torch.from_numpy(cut(row["index"])).movedim(-1, 0)[None] / 255
        assert row["class_ids"] == [int(demo.digits()(image).argmax())]
        assert math.isnan(row["scores"][0])


def test_a_picture_on_which_the_network_fails(tmp_path):
    """Too small for a pooling: the others are explained, in the same places."""
    make(tmp_path / "in", 4)
    pictures.write(tmp_path / "in" / "00001.png", cut(1, 4, 4))
    layers = nn.Conv2d(3, 4, 8, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    as_it_is = models.Preprocessing(resize=None, crop=None)
    model = models.LoadedModel(nn.Sequential(*layers), as_it_is)
    explainer = Explainer(model, "hirescam", "1")
    report = dataset.explain(tmp_path / "in", tmp_path / "out", explainer, workers=0)
    assert report.failed == 1
    (failure,) = table(tmp_path / "out" / "failures.parquet")
    assert failure["path"] == "00001.png" and "fails on an input of 4x4 pixels" in failure["error"]
    assert fastcam.MapDataset(tmp_path / "out")[1]["maps"]["hirescam"].isnan().all()
    assert not fastcam.MapDataset(tmp_path / "out")[2]["maps"]["hirescam"].isnan().any()


def test_missing_memory_is_no_failure_of_a_picture(tmp_path):
    class Hungry(tiny_models.Colors):
        full = False

        def forward(self, images):
            if Hungry.full:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(images)

    make(tmp_path / "in", 5)
    model = models.LoadedModel(Hungry(), models.Preprocessing(resize=None, crop=None))
    explainer = Explainer(model, "gradcam", "features")

    def fill(done, total, stage):
        Hungry.full = True

    with pytest.raises(FastcamError, match="out of memory"):
        dataset.explain(tmp_path / "in", tmp_path / "out", explainer, workers=0, progress=fill)
    assert not (tmp_path / "out" / "shards").exists()


def test_a_network_for_single_pictures(tmp_path):
    """The first try is on one picture; the others must not become failures."""

    class Single(tiny_models.Colors):
        def forward(self, images):
            return super().forward(images.reshape(1, 3, 48, 48))

    make(tmp_path / "in", 5)
    model = models.LoadedModel(Single(), models.Preprocessing(resize=None, crop=None))
    explainer = Explainer(model, "gradcam", "features")
    with pytest.raises(FastcamError, match="takes a single picture of this size, so give --batch"):
        dataset.explain(tmp_path / "in", tmp_path / "out", explainer, workers=0)
    report = dataset.explain(tmp_path / "in", tmp_path / "one", explainer, workers=0, batch=1)
    assert report.failed == 0


def test_a_worker_that_is_killed(tmp_path, digits):
    make(tmp_path / "in", 40)
    before = set(multiprocessing.active_children())

    def kill(done, total, stage):
        for child in set(multiprocessing.active_children()) - before:
            child.kill()

    options = {"batch": 2, "shard": 10, "workers": 1}
    with pytest.raises(FastcamError, match="a process that reads pictures has ended"):
        dataset.explain(tmp_path / "in", tmp_path / "out", digits, **options, progress=kill)
    assert dataset.explain(tmp_path / "in", tmp_path / "out", digits, **options).failed == 0


def test_no_picture_can_be_read(tmp_path, digits):
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(FastcamError, match=r"none of the first 1 pictures .*not a picture"):
        dataset.explain(tmp_path, tmp_path / "out", digits)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 11}, "top-k 11: the network has 10 classes"),
        ({"batch": 0}, "batch 0: expected at least 1"),
        ({"workers": -1}, "workers -1: expected at least 0"),
        ({"targets": "cat"}, "unknown class cat"),
        ({"targets": "label"}, "targets label: the pictures of .* have no labels"),
        ({"engine": "spark"}, "engine spark: expected local or ray"),
    ],
)
def test_wrong_options(tmp_path, digits, options, message):
    make(tmp_path / "in", 1)
    with pytest.raises(UsageError, match=message):
        dataset.explain(tmp_path / "in", tmp_path / "out", digits, **options)
    assert not (tmp_path / "out").exists()


def test_maps_in_a_data_loader(made):
    _, out = made
    maps = fastcam.MapDataset(out, ["gradcam"], size=(10, 12))
    loader = DataLoader(maps, batch_size=5, shuffle=True, num_workers=2)
    found = {}
    for batch in loader:
        assert batch["maps"]["gradcam"].shape[1:] == (3, 10, 12)
        found |= dict(zip(batch["index"].tolist(), batch["maps"]["gradcam"], strict=True))
    assert len(found) == 23
    for index, each in found.items():
        torch.testing.assert_close(each, maps[index]["maps"]["gradcam"], equal_nan=True)


def test_entries_that_are_not_there(made):
    maps = fastcam.MapDataset(made[1])
    assert maps[-1]["index"] == 22
    for index in (23, -24):
        with pytest.raises(IndexError, match=f"index: got {index}"):
            maps[index]
    with pytest.raises(ValueError, match="methods: got layercam, expected some of gradcam, gradc"):
        fastcam.MapDataset(made[1], ["layercam"])
    with pytest.raises(ValueError, match="size: got 'image', expected two integers"):
        fastcam.MapDataset(made[1], size="image")


# --- batches


class _Listed(dataset.Inputs):
    """Inputs whose data are sizes: width and height, or nothing if the picture is broken."""

    def data(self, index: int, max_pixels: int) -> bytes:
        size = self.items[index].label
        if size is None:
            raise FastcamError("broken")
        return pictures.encoded(np.full((8 + size, 8, 3), index, np.uint8), ".png")


@settings(max_examples=60, deadline=None)
@given(
    kinds=st.lists(st.sampled_from([None, 0, 1, 2]), min_size=1, max_size=30),
    batch=st.integers(1, 5),
    shard=st.integers(1, 11),
)
def test_batches_keep_to_their_shard_and_size(kinds, batch, shard):
    items = [dataset.inputs.Item(str(n), kind) for n, kind in enumerate(kinds)]
    reader = decoding.Reader(
        _Listed(Path("x"), items), models.Preprocessing(resize=None, crop=None), 10**6
    )
    shards = [
        (number, range(start, min(start + shard, len(kinds))))
        for number, start in enumerate(range(0, len(kinds), shard))
    ]
    made = list(decoding.Batches(reader, shards, batch, 0))
    for number, places in shards:
        own = [each for each in made if each.shard == number]
        assert [each.last for each in own] == [False] * (len(own) - 1) + [True]
        assert sorted(read.index for each in own for read in each.reads) == list(places)
        for each in own:
            for row, read in enumerate(each.reads):
                if each.images is None:
                    assert kinds[read.index] is None and read.error == "broken"
                else:
                    assert each.images.shape[2:] == (8 + kinds[read.index], 8)
                    assert (each.images[row] == read.index).all()
        for kind in (0, 1, 2):
            sizes = [
                len(b.reads) for b in own if b.images is not None and b.images.shape[2] == 8 + kind
            ]
            count = sum(kinds[place] == kind for place in places)
            assert sizes == [batch] * (count // batch) + [count % batch] * (count % batch > 0)
    numbers = [each.shard for each in made]
    assert numbers == sorted(numbers)


# --- the explainer as a function of arrays


def test_an_explainer_maps_a_dict_of_arrays(digits):
    shown = [cut(seed) for seed in range(3)]
    given = {"image": np.stack(shown), "name": np.array(["a", "b", "c"])}
    found = pickle.loads(pickle.dumps(digits))(given, fastcam.TopClasses(2))
    assert list(found) == [
        "name", "class_ids", "scores", "probabilities", *(f"maps_{name}" for name in METHODS),
    ]  # fmt: skip
    expected = digits(shown, fastcam.TopClasses(2))
    assert found["name"].tolist() == ["a", "b", "c"]
    np.testing.assert_array_equal(found["class_ids"], expected.class_ids)
    for name in METHODS:
        np.testing.assert_array_equal(found[f"maps_{name}"], expected.by_method[name])
    files = np.array([pictures.encoded(each, ".png") for each in shown], dtype=object)
    same = digits({"bytes": files}, fastcam.TopClasses(2))
    np.testing.assert_array_equal(same["maps_gradcam"], found["maps_gradcam"])
    with pytest.raises(ValueError, match='got a dict with path, expected pictures in "image"'):
        digits({"path": files})
    with pytest.raises(FastcamError, match="row 1: not a picture"):
        digits({"bytes": [files[0], b"nothing"]})


def test_an_explainer_maps_frames_of_pandas(digits):
    """As Spark's mapInPandas calls it: from an iterator of frames to an iterator of frames."""
    import pandas

    def explained(frames):
        for frame in frames:
            arrays = digits({name: frame[name].to_numpy() for name in frame})
            yield pandas.DataFrame({name: list(each) for name, each in arrays.items()})

    files = [pictures.encoded(cut(seed), ".png") for seed in range(5)]
    frames = (
        pandas.DataFrame({"path": [f"{n}.png" for n in rows], "bytes": [files[n] for n in rows]})
        for rows in ([0, 1], [2, 3, 4])
    )
    found = pandas.concat(explained(frames), ignore_index=True)
    assert found["path"].tolist() == [f"{n}.png" for n in range(5)]
    for seed in range(5):
        expected = digits(cut(seed))
        assert found["class_ids"][seed].tolist() == expected.class_ids[0].tolist()
        np.testing.assert_allclose(
            found["maps_eigencam"][seed], expected.by_method["eigencam"][0], rtol=1e-4, atol=1e-4
        )
