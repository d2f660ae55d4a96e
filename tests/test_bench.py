"""``fastcam bench``: values and summaries against loops over pictures, classes and pixels."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import tiny_models
import torch
from annotated_data import FORMATS, Instance, placed, save
from data_sets import contents, cut
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_cli import run

import fastcam
from fastcam import dataset, demo, metrics, models, pictures
from fastcam.dataset import report
from fastcam.dataset.annotated import Annotated
from fastcam.dataset.annotations import read_annotations
from fastcam.dataset.scores import METRICS
from fastcam.errors import FastcamError, UsageError
from fastcam.explainer import Explainer
from fastcam.models import Preprocessing

METHODS = ["gradcam", "layercam"]
SIZES = {f"{n:05d}.png": ((48, 48), (48, 64), (40, 48))[n % 3] for n in range(7)}
UNMARKED = "00003.png"
INSTANCES = [each for each in placed(SIZES, ("1", "3", "7")) if each.picture != UNMARKED]
PAIRS = sorted({(each.picture, int(each.name)) for each in INSTANCES})
GROUPS = ("localisation", "faithfulness", "form")


def rows_of(out: Path) -> list[dict[str, object]]:
    return pyarrow.parquet.read_table(out / "manifest.parquet").to_pylist()


@pytest.fixture(scope="module")
def digits() -> Explainer:
    return Explainer(models.load("digits"), METHODS)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number, (name, size) in enumerate(SIZES.items()):
        pictures.write(folder / name, cut(number, *size))
    return folder


@pytest.fixture(scope="module")
def explained(source, digits, tmp_path_factory) -> dict[str, Path]:
    """The output for each format; of the table with all metrics."""
    found = {}
    for kind in FORMATS:
        folder = tmp_path_factory.mktemp(kind)
        given = save(folder / "in", kind, SIZES, INSTANCES)
        dataset.explain(
            source, folder / "out", digits, targets="annotated", annotations=given,
            metrics=GROUPS if kind == "csv" else (), batch=3, shard=4, workers=0,
        )  # fmt: skip
        found[kind] = folder / "out"
    return found


# --- the oracle: one picture and one class at a time, in float64


def area(height: int, width: int, boxes: list[tuple[int, ...]]) -> np.ndarray:
    inside = np.zeros((height, width), bool)
    for y in range(height):
        for x in range(width):
            inside[y, x] = any(x0 <= x < x1 and y0 <= y < y1 for x0, y0, x1, y1 in boxes)
    return inside


def boxes_of(picture: str, class_id: int) -> list[tuple[int, int, int, int]]:
    wanted = (picture, str(class_id))
    return [each.box for each in INSTANCES if (each.picture, each.name) == wanted]


def expected(path: Path, class_id: int, method: str, boxes: bool) -> dict[str, float]:
    """Some metrics of one map, from the method itself and their formulas."""
    network = demo.digits().double()
    image = torch.from_numpy(pictures.read(path)).movedim(-1, 0)[None].double() / 255
    cam = fastcam.METHODS[method](network, "stages.2.1")
    heat = cam(image, class_id)[0].numpy()
    own = [
        each.box for each in INSTANCES if (each.picture, each.name) == (path.name, str(class_id))
    ]
    others = [
        each.box for each in INSTANCES if each.picture == path.name and each.name != str(class_id)
    ]
    inside, beside = area(*heat.shape, own), area(*heat.shape, others)
    hot = heat >= heat.max() / 2
    with torch.no_grad():
        before, after = (
            network(x)[0, class_id].sigmoid().item() for x in (image, image * torch.tensor(heat))
        )
    touched = [hot[y0:y1, x0:x1].any() for x0, y0, x1, y1 in own]
    return {
        "pointing_game": inside[heat == heat.max()].mean(),
        "energy_pointing_game": heat[inside].sum() / (heat.sum() or 1),
        "iou": (hot & inside).sum() / (hot | inside).sum(),
        "instance_recall": np.mean(touched) if boxes else float((hot & inside).any()),
        "class_confusion": (hot & beside & ~inside).sum() / hot.sum(),
        "average_drop": max(0.0, before - after) / before,
        "increase_in_confidence": float(after > before),
    }


@pytest.mark.parametrize("kind", FORMATS)
def test_values_are_those_of_one_picture_and_class_at_a_time(source, explained, kind):
    rows = rows_of(explained[kind])
    assert [(row["path"], row["class_ids"]) for row in rows] == [(p, [k]) for p, k in PAIRS]
    for row, (picture, class_id) in zip(rows, PAIRS, strict=True):
        own = boxes_of(picture, class_id)
        assert row["instances"] == (len(own) if kind != "masks" else 1)
        assert row["outside"] == 0 and row["label"] == str(class_id)
        for method in METHODS:
            wanted = expected(source / picture, class_id, method, kind != "masks")
            for name, value in wanted.items():
                # a pixel at the edge of the hottest area may be on either side of it in float32
                assert row[f"{name}_{method}"] == pytest.approx(value, abs=5e-3), (name, row)


def test_formats_agree(explained):
    coco, voc, table, masks = (rows_of(explained[kind]) for kind in FORMATS)
    assert coco == voc
    shared = set(coco[0]) & set(table[0])
    assert all(a[name] == b[name] for a, b in zip(coco, table, strict=True) for name in shared)
    for a, b in zip(coco, masks, strict=True):
        for method in METHODS:
            for name in (
                "pointing_game",
                "energy_pointing_game",
                "iou",
                "class_confusion",
                "px_ap",
            ):
                assert a[f"{name}_{method}"] == b[f"{name}_{method}"]
    assert not any(name.startswith("max_box_acc") for name in masks[0])


def test_the_report_sums_up_what_the_metrics_say_of_all_pictures(source, explained, digits):
    """The functions of fastcam.metrics, called for each pair, and joined as they are documented."""
    out = explained["csv"]
    found = json.loads((out / "report.json").read_text())
    assert (found["rows"], found["failed"], found["pictures"]) == (len(PAIRS), 0, 6)
    assert (found["unmarked"], found["absent"], found["outside"]) == (1, 0, 0)
    assert list(found["metrics"]) == list(METRICS)
    network = digits.model.module
    cam = fastcam.METHODS["layercam"](network, "stages.2.1")
    ious, histograms = [], []
    values: dict[str, list[float]] = {"deletion": [], "insertion": [], "road": [], "sparseness": []}
    for picture, class_id in PAIRS:
        image = torch.from_numpy(pictures.read(source / picture)).movedim(-1, 0)[None] / 255
        maps = cam(image, class_id)
        own = [
            each.box for each in INSTANCES if (each.picture, each.name) == (picture, str(class_id))
        ]
        ious.append(metrics.box_ious(maps, [own]))
        histograms.append(metrics.pixel_histograms(maps, [own]))

        def target(logits, class_id=class_id):
            return logits[class_id].sigmoid()

        for name in ("deletion", "insertion"):
            area = getattr(metrics, name)(network, image, maps, target).area
            values[name].append(area.item())
        values["sparseness"].append(metrics.sparseness(maps).item())
    got = {name: each["methods"]["layercam"] for name, each in found["metrics"].items()}
    assert all(each["rows"] == len(PAIRS) for each in got.values())
    assert got["max_box_acc_v2"]["value"] == pytest.approx(
        metrics.max_box_acc_v2(torch.cat(ious)).item(), abs=0.02
    )
    assert got["px_ap"]["value"] == pytest.approx(
        metrics.px_ap(torch.cat(histograms)).item(), abs=1e-3
    )
    for name in ("deletion", "insertion", "sparseness"):
        assert got[name]["value"] == pytest.approx(np.mean(values[name]), abs=1e-4)
    assert all(each["low"] <= each["value"] <= each["high"] for each in got.values())
    for name, metric in found["metrics"].items():
        for method in METHODS:
            column = [row[f"{name}_{method}"] for row in rows_of(out)]
            if not METRICS[name].several:
                assert metric["methods"][method]["value"] == pytest.approx(np.mean(column))
    lines = (out / "report.md").read_text().splitlines()
    assert lines[0] == "| metric | good | values | gradcam | layercam |"
    assert lines[2].startswith(f"| pointing_game | high | {len(PAIRS)} | ")
    assert "- pictures without an instance: 1" in lines


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 8), st.one_of(st.just(math.nan), st.floats(-5, 5, width=32))),
        max_size=12,
    )
)
@example([(0, 1.0), (0, 2.0), (1, math.nan)])
def test_intervals_are_of_a_bootstrap_over_pictures(rows):
    pictures_of = torch.tensor([picture for picture, _ in rows], dtype=torch.int64)
    values = torch.tensor([value for _, value in rows], dtype=torch.float64)
    found = report.estimate(values, pictures_of, METRICS["iou"].summary)
    kept = [(picture, value) for picture, value in rows if not math.isnan(value)]
    assert found.rows == len(kept)
    if not kept:
        assert found.value is None
        return
    assert found.value == pytest.approx(np.mean([value for _, value in kept]), abs=1e-9)
    groups = [
        [value for owner, value in kept if owner == picture] for picture in {p for p, _ in kept}
    ]
    if len(groups) < 2:
        assert found.low is None and found.high is None
        return
    random = np.random.default_rng(1)
    draws = []
    for _ in range(1000):
        drawn = [groups[k] for k in random.integers(len(groups), size=len(groups))]
        draws.append(np.mean([value for group in drawn for value in group]))
    low, high = np.percentile(draws, [2.5, 97.5])
    spread = max(draws) - min(draws)
    assert found.low == pytest.approx(low, abs=0.25 * spread + 1e-9)
    assert found.high == pytest.approx(high, abs=0.25 * spread + 1e-9)


# --- where the network sees an instance


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(40, 120), st.integers(40, 120)),
    st.tuples(*[st.floats(0, 1)] * 4),
    st.sampled_from(
        [
            Preprocessing((60, 60), (40, 40)),
            Preprocessing((64, 64), (64, 64), stretch=True),
            Preprocessing(None, None),
            Preprocessing((80, 80), None),
        ]
    ),
)
def test_boxes_and_masks_move_as_pixels_do(tmp_path_factory, size, ends, seen):
    """The oracle is the preprocessing: a picture that is white in the box, and black around it."""
    height, width = size
    across, down = sorted(ends[:2]), sorted(ends[2:])
    box = (
        int(across[0] * (width - 1)), int(down[0] * (height - 1)),
        int(across[1] * (width - 1)) + 1, int(down[1] * (height - 1)) + 1,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("moved")
    picture = np.zeros((height, width, 3), np.uint8)
    picture[box[1] : box[3], box[0] : box[2]] = 255
    pictures.write(folder / "in" / "a.png", picture)
    inputs = dataset.open_inputs(folder / "in")
    shown = seen.fitted(torch.from_numpy(picture)[None])[0, 0].double().numpy() / 255
    for kind in ("csv", "masks"):
        path = save(folder / kind, kind, {"a.png": size}, [Instance("a.png", "3", box)])
        annotated = Annotated(inputs, read_annotations(path), {"3": 3}, True)
        found = annotated.instances(0, size, seen.region(*size), shown.shape)
        assert sum(found.counts(3)) == 1 and found.counts(4) == [0, 0]
        if found.counts(3)[0] == 0:
            assert shown.mean() < 2 / min(shown.shape)  # at most a line of it at the edge
            continue
        region = found.of(3, True)[0]
        if kind == "csv":
            x0, y0, x1, y1 = region
            assert 0 <= x0 < x1 <= shown.shape[1] and 0 <= y0 < y1 <= shown.shape[0]
            # the same area and centre, up to the rounding of the region to a picture's pixel
            lines = [shown.max(axis).sum() / shown.max() for axis in (1, 0)]
            scale = [
                shown.shape[0] / seen.region(*size).height,
                shown.shape[1] / seen.region(*size).width,
            ]
            assert y1 - y0 == pytest.approx(lines[0], abs=2 + 2 * scale[0])
            assert x1 - x0 == pytest.approx(lines[1], abs=2 + 2 * scale[1])
            y, x = np.mgrid[: shown.shape[0], : shown.shape[1]] + 0.5
            centre = (shown * x).sum() / shown.sum(), (shown * y).sum() / shown.sum()
            assert (x0 + x1) / 2 == pytest.approx(centre[0], abs=1 + scale[1])
            assert (y0 + y1) / 2 == pytest.approx(centre[1], abs=1 + scale[0])
        else:
            assert region.shape == shown.shape
            sure = np.abs(shown - 0.5) > 0.49  # not at the box's edge
            wrong = (region != (shown > 0.5)) & sure
            assert wrong.mean() <= 2 / min(shown.shape)


def test_what_the_network_does_not_see_does_not_count(tmp_path):
    """The network of colours sees columns 50 to 150 and rows 25 to 125 of 200 x 150 pixels."""
    pictures.write(tmp_path / "in" / "a.png", cut(0, 150, 200))
    (tmp_path / "boxes.csv").write_text(
        "path,label,x0,y0,x1,y1\n"
        "a,red,0,0,50,150\n"  # left of it
        "a,green,40,100,70,140\n"  # its corner: 0 to 20, 75 to 100 of 100
        "a,green,0,130,200,150\n"  # below
        "a,green,100,50,125.5,75\n"
        "a,2,150,0,200,150\n"
    )
    explainer = Explainer(tiny_models.colors(), ["hirescam"])
    dataset.explain(
        tmp_path / "in", tmp_path / "out", explainer, targets="annotated", workers=0,
        annotations=tmp_path / "boxes.csv", metrics=("localisation", "complexity"),
    )  # fmt: skip
    red, green, blue = rows_of(tmp_path / "out")
    assert [(row["instances"], row["outside"]) for row in (red, green, blue)] == [
        (0, 1), (2, 1), (0, 1),
    ]  # fmt: skip
    assert math.isnan(red["iou_hirescam"]) and math.isnan(blue["class_confusion_hirescam"])
    assert red["complexity_hirescam"] > 0
    # the map of green is that channel, shrunk and enlarged; 96 pixels cover 100 of the picture
    image = tiny_models.colors().preprocessing(torch.from_numpy(cut(0, 150, 200))[None])
    heat = torch.nn.functional.avg_pool2d(image, tiny_models.STRIDE)[:, 1:2]
    heat = torch.nn.functional.interpolate(heat, (96, 96), mode="bilinear")[0, 0].numpy()
    heat = (heat - heat.min()) / (heat.max() - heat.min())
    inside = np.zeros((96, 96), bool)
    inside[72:, :20] = True  # 75 to 100, 0 to 20 times .96, outwards
    inside[24:48, 48:73] = True
    assert green["energy_pointing_game_hirescam"] == pytest.approx(
        heat[inside].sum() / heat.sum(), abs=1e-4
    )
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["outside"] == 3
    assert found["metrics"]["iou"]["methods"]["hirescam"]["rows"] == 1
    assert found["metrics"]["iou"]["methods"]["hirescam"]["low"] is None
    lines = (tmp_path / "out" / "report.md").read_text().splitlines()
    assert "- instances outside of what the network sees, which do not count: 3" in lines


# --- runs


def test_a_run_goes_on_with_the_same_values(source, explained, digits, tmp_path):
    given = save(tmp_path / "csv", "csv", SIZES, INSTANCES)
    options = {
        "targets": "annotated", "annotations": given, "metrics": GROUPS, "batch": 3, "shard": 4,
        "workers": 0,
    }  # fmt: skip
    out = tmp_path / "out"
    first = dataset.explain(source, out, digits, share=(1, 2), **options)
    assert first.failed is None and not (out / "report.json").exists()
    second = dataset.explain(source, out, digits, **options)
    assert second.failed == 0 and first.explained + second.explained == len(PAIRS)
    assert contents(out) == contents(explained["csv"])
    for other in (
        {"metrics": ("form",)},
        {"annotations": save(tmp_path / "other", "csv", SIZES, INSTANCES[:-1])},
    ):
        with pytest.raises(UsageError, match="it was begun with other settings"):
            dataset.explain(source, out, digits, **{**options, **other})


@pytest.mark.parametrize("targets", ["top1", "3", "label"])
def test_other_targets_keep_all_pictures(source, digits, tmp_path, targets):
    given = save(tmp_path / "in", "coco", SIZES, INSTANCES)
    table = tmp_path / "labels.csv"
    labels = {**dict.fromkeys(SIZES, 5), **dict(PAIRS)}
    lines = [f"{source / name},{label}" for name, label in labels.items()]
    table.write_text("\n".join(["path,label", *lines]))
    dataset.explain(
        table, tmp_path / "out", digits, targets=targets, annotations=given, metrics=("iou",),
        workers=0,
    )  # fmt: skip
    rows = rows_of(tmp_path / "out")
    assert [Path(str(row["path"])).name for row in rows] == list(SIZES)
    for row in rows:
        (class_id,) = row["class_ids"]
        name = Path(str(row["path"])).name
        assert targets == "top1" or class_id == (3 if targets == "3" else labels[name])
        marked = (name, class_id) in PAIRS
        assert marked != math.isnan(row["iou_gradcam"])
    assert targets == "top1" or any(not math.isnan(row["iou_gradcam"]) for row in rows)


def test_annotations_that_do_not_fit_a_picture_fail_there(source, digits, tmp_path):
    sizes = {**SIZES, "00001.png": (480, 640)}
    path = save(tmp_path / "in", "coco", sizes, INSTANCES)
    content = json.loads(path.read_text())
    content["images"][2]["width"] = content["images"][2]["height"] = 0  # unknown
    content["annotations"].append({"image_id": 102, "category_id": 1, "bbox": [0, 0, 400, 10]})
    path.write_text(json.dumps(content))
    done = dataset.explain(
        source, tmp_path / "out", digits, targets="annotated", annotations=path, metrics=("iou",),
        workers=0,
    )  # fmt: skip
    failures = pyarrow.parquet.read_table(tmp_path / "out" / "failures.parquet").to_pylist()
    assert {each["path"] for each in failures} == {"00001.png", "00002.png"}
    assert done.failed == len(failures)
    messages = {each["path"]: each["error"] for each in failures}
    assert messages["00001.png"] == (
        "the annotations are for a picture of 640x480 pixels, but it has 64x48"
    )
    assert messages["00002.png"] == (
        "it has a box from (0, 0) to (400, 10), outside of its 48x40 pixels"
    )
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["failed"] == done.failed
    good = [pair for pair in PAIRS if pair[0] not in messages]
    assert found["metrics"]["iou"]["methods"]["gradcam"]["rows"] == len(good)


def test_crowds_are_left_out(tmp_path):
    path = save(tmp_path, "coco", SIZES, INSTANCES)
    content = json.loads(path.read_text())
    content["annotations"][0]["iscrowd"] = 1
    path.write_text(json.dumps(content))
    every = read_annotations(path).by_name.values()
    assert sum(len(each.marks) for each in every) == len(INSTANCES) - 1


def test_names_of_labels_are_names_in_annotations(tmp_path):
    """As those of ImageNet's folders and documents, which are not names of classes."""
    for name in ("n01", "n02", "n03"):
        pictures.write(tmp_path / "in" / name / f"{name}_5.png", cut(0, 150, 200))
    sizes = {f"{name}_5.png": (150, 200) for name in ("n01", "n02", "n03")}
    given = save(tmp_path / "voc", "voc", sizes, [Instance("n02_5.png", "n02", (60, 30, 100, 100))])
    explainer = Explainer(tiny_models.colors(), ["hirescam"])
    with pytest.warns(UserWarning, match="so they are numbered"):
        dataset.explain(
            tmp_path / "in", tmp_path / "out", explainer, targets="annotated", annotations=given,
            metrics=("localisation",), workers=0,
        )  # fmt: skip
    (row,) = rows_of(tmp_path / "out")
    assert (row["path"], row["label"], row["class_ids"]) == ("n02/n02_5.png", "n02", [1])


# --- what is refused


def write(text: str, name: str = "a.csv") -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        return folder / name.partition("/")[0]

    return made


HEAD = "path,label,x0,y0,x1,y1\n"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (write(HEAD + "00000,dog,1,1,2,2"), "annotations: unknown class dog; choose from 0, 1"),
        (write(HEAD + "00000,11,1,1,2,2"), "annotations: class 11 is out of range"),
        (
            write(HEAD + "00000,dog,1,1,2,2\n00000,cat,1,1,2,2"),
            "(2 names are unknown: dog, cat); rename or remove what is not a class",
        ),
        (write(HEAD + "zzz,3,1,1,2,2"), "it has no picture of"),
        (write(HEAD + "00000,3,5,1,2,2"), "row 1: got a box from (5, 1) to (2, 2), expected the"),
        (write(HEAD + "00000,3,5,1,,2"), "not a table of boxes in UTF-8 with commas"),
        (write(HEAD + "00000,3,nan,1,7,2"), "got a box from (nan, 1)"),
        (write("path,label\n00000,3"), "the columns x0, y0, x1, y1 are missing"),
        (write("{}", "a.json"), "not COCO's format, or incomplete: KeyError 'categories'"),
        (write("[", "a.json"), "not COCO's format"),
        (write("<a>", "voc/a.xml"), "not Pascal VOC's format"),
        (write("<a><object/></a>", "voc/a.xml"), "not Pascal VOC's format"),
        (write("", "none/a.txt"), "the folder has neither .xml files nor PICTURE/LABEL.png"),
        (write("", "masks/a.png"), "expected PICTURE/LABEL.png, a folder for each picture"),
        (write("", "a.yaml"), "expected a .json or .csv file, or a folder"),
        (lambda folder: folder / "no.csv", "no such file or folder"),
    ],
)
def test_annotations_that_are_refused(source, digits, tmp_path, make, message):
    with pytest.raises(FastcamError) as caught:
        dataset.explain(
            source, tmp_path / "out", digits, targets="annotated", annotations=make(tmp_path),
            metrics=(), workers=0,
        )  # fmt: skip
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_name_of_two_pictures_is_refused(digits, tmp_path):
    for folder in ("a", "b"):
        pictures.write(tmp_path / "in" / folder / "x.png", cut(0))
    inputs = dataset.open_inputs(tmp_path / "in")
    for name, message in (
        ("x.png", "x.png could be a/x.png or b/x.png; give the path from the source"),
        ("a/x.png", None),
        ("a/x", None),
    ):
        path = write(f"{HEAD}{name},3,1,1,2,2")(tmp_path)
        if message is None:
            assert list(read_annotations(path).matched(inputs)) == [0]
            continue
        with pytest.raises(UsageError, match=message):
            read_annotations(path).matched(inputs)
    path = write(f"{HEAD}a/x,3,1,1,2,2\na/x.png,3,1,1,2,2")(tmp_path)
    with pytest.raises(UsageError, match=r"a/x\.png is there twice, expected once"):
        read_annotations(path).matched(inputs)


DIGITS = ("--model", "digits", "--workers", 0, "--methods", "gradcam")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--metrics", "iuo"), "metrics: unknown metric iuo; near names: iou"),
        (("--metrics", "iou"), "metrics: iou needs instances; give --annotations"),
        (("--targets", "annotated"), "targets annotated: it needs annotations"),
        (("--targets", "not:3"), "targets not:3: metrics are for maps of what supports a class"),
        (("--methods", "none"), "unknown method none"),
    ],
)
def test_wrong_options(source, tmp_path, words, message):
    result = run("bench", source, tmp_path / "out", *DIGITS, *words)
    assert result.exit_code == 2
    assert message in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_masks_have_no_boxes(source, tmp_path):
    given = save(tmp_path / "masks", "masks", SIZES, INSTANCES)
    words = ("--annotations", given, "--metrics", "max_box_acc_v2")
    result = run("bench", source, tmp_path / "out", *DIGITS, *words)
    assert result.exit_code == 2
    assert "max_box_acc_v2 needs boxes, but the annotations are masks" in result.stderr


def test_what_bench_prints(source, tmp_path):
    given = save(tmp_path / "voc", "voc", SIZES, INSTANCES)
    words = ("bench", source, tmp_path / "out", *DIGITS, "--annotations", given)
    result = run(*words)
    assert result.exit_code == 0 and result.stderr == ""
    count = len(PAIRS)
    first, second, head, *table = result.stdout.splitlines()
    assert first.startswith(f"{tmp_path / 'out'}: {count} of {count} pairs of picture and class in")
    assert second == "  gradcam at stages.2.1"
    assert head.split() == ["metric", "good", "values", "gradcam"]
    assert len(table) == 10 and table[-1] == "pictures without an instance: 1"
    report = json.loads(run(*words, "--json").stdout)
    assert (report["explained"], report["targets"]) == (0, "annotated")
    found = report["report"]["metrics"]
    assert list(found)[-2:] == ["average_drop", "increase_in_confidence"] and len(found) == 9
    shown = {line.split()[0]: line.split()[2:4] for line in table[:-1]}
    for name, metric in found.items():
        assert shown[name] == [str(count), f"{metric['methods']['gradcam']['value']:.3f}"]


def test_a_benchmark_without_annotations(source, tmp_path):
    result = run("bench", source, tmp_path / "out", *DIGITS, "--metrics", "form,average_drop")
    assert result.exit_code == 0
    rows = rows_of(tmp_path / "out")
    assert [row["path"] for row in rows] == list(SIZES) and "instances" not in rows[0]
    network = demo.digits()
    for row, name in zip(rows, SIZES, strict=True):
        image = torch.from_numpy(pictures.read(source / name)).movedim(-1, 0)[None] / 255
        cam = fastcam.GradCAM(network, "stages.2.1")
        heat = cam(image)
        assert row["class_ids"] == cam.class_ids.flatten().tolist()
        assert row["complexity_gradcam"] == pytest.approx(heat.mean().item(), abs=1e-4)
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["outside"] is None and "unmarked" not in found
