"""Target boxes on the command line: what is written, and where the heat lies."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from fastcam import demo, pictures
from fastcam.cli.commands import app

pytest.importorskip("torchvision", reason="torchvision is missing")

BOXES = ("--model", "digits-detector", "--target", "boxes")


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def truth(frame: int | None = None) -> dict[int, list[int]]:
    """Boxes by digit, in the scene or a frame of the clip."""
    name = "scene.json" if frame is None else "clip.json"
    about: Any = json.loads(demo.asset(name).read_text())
    digits = about["digits"] if frame is None else about["frames"][frame]
    return {digit["class"]: digit["box"] for digit in digits if digit["visible"] > 0.9}


def overlap(a: list[float], b: list[float]) -> float:
    left, top, right, bottom = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    shared = max(right - left, 0) * max(bottom - top, 0)
    areas = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return shared / (sum(areas) - shared)


def test_image_draws_each_box_and_its_heat(tmp_path: Path) -> None:
    result = run("image", demo.asset("scene.png"), *BOXES, "--out", tmp_path)
    assert result.exit_code == 0, result.stderr
    names = {"scene-boxes.png", "scene-grid.png", "scene.npy", "scene.json", ".fastcam.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    about = json.loads((tmp_path / "scene.json").read_text())
    assert about["method"] == "layercam" and len(about["layers"]) == 2
    digits, maps = truth(), np.load(tmp_path / "scene.npy")
    found = about["detections"]
    assert {each["label"] for each in found} == set(digits)
    assert maps.shape == (len(found), 160, 224)
    for each, heat in zip(found, maps, strict=True):
        box = digits[each["label"]]
        assert each["name"] == str(each["label"]) and 0.5 <= each["score"] <= 1
        assert overlap(each["box"], box) > 0.6
        y, x = np.unravel_index(heat.argmax(), heat.shape)
        left, top, right, bottom = box
        assert left <= x < right and top <= y < bottom
        assert heat[top:bottom, left:right].sum() > 0.6 * heat.sum()
    scores = [each["score"] for each in found]
    assert scores == sorted(scores, reverse=True)
    drawn = pictures.read(tmp_path / "scene-boxes.png")
    assert drawn.shape == (160, 224, 3)
    for each in found:  # an edge of the box was drawn
        left, top = round(each["box"][0]), round(sum(each["box"][1::2]) / 2)
        assert (drawn[top, left] != pictures.read(demo.asset("scene.png"))[top, left]).any()


def test_no_box_leaves_the_picture_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "blank.png"
    pictures.write(path, np.full((90, 120, 3), 128, np.uint8))
    result = run("image", path, *BOXES, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0
    about = json.loads(result.stdout)
    assert about["detections"] == [] and about["found"] == "no box above the threshold"
    assert (pictures.read(tmp_path / "out" / "blank-boxes.png") == 128).all()
    assert np.load(tmp_path / "out" / "blank.npy").shape == (0, 90, 120)


def test_the_threshold(tmp_path: Path) -> None:
    counts = []
    for threshold in (0.21, 0.65, 1):
        result = run(
            "image", demo.asset("scene.png"), *BOXES,
            "--threshold", threshold, "--out", tmp_path, "--json",
        )  # fmt: skip
        counts.append(len(json.loads(result.stdout)["detections"]))
    assert counts[0] >= counts[1] > counts[2] == 0


def test_a_clip_has_boxes_in_each_frame(tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    capture = cv2.VideoCapture(str(demo.asset("clip.mp4")))
    for number in range(4):
        for _ in range(20):
            read, picture = capture.read()
        assert read
        pictures.write(frames / f"{number}.png", picture[..., ::-1])
    result = run("video", frames, tmp_path / "out", *BOXES, "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["frames"] == 4
    there = sum(len(truth(20 * number + 19)) for number in range(4))
    assert there / 2 < report["boxes"] <= 2 * there
    for number in range(4):
        before = pictures.read(frames / f"{number}.png")
        after = pictures.read(tmp_path / "out" / f"{number:06d}.png")
        assert after.shape == before.shape and (after != before).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("video", "clip.mp4", "o.mp4", *BOXES, "--stride", 2),
            "stride 2: boxes are found in each",
        ),
        (
            ("video", "clip.mp4", "o.mp4", *BOXES, "--fast"),
            "fast True: not supported with --target",
        ),
        (("video", "clip.mp4", "o.mp4", *BOXES, "--norm", "clip"), "norm clip: not supported with"),
        (("video", "clip.mp4", "o.safetensors", *BOXES), "several maps per frame"),
        (("video", "clip.mp4", "o.mp4", "--threshold", 0.3), "threshold 0.3: only boxes have one"),
        (("image", "scene.png", "--threshold", 0.3), "threshold 0.3: only boxes have one"),
        (("image", "scene.png", *BOXES, "--size", 99), "size 99: a detector resizes"),
        (("image", "scene.png", *BOXES, "--method", "scorecam"), "scorecam does not explain boxes"),
        (("image", "scene.png", *BOXES, "--method", "layercan"), "near names: layercam"),
        (("image", "scene.png", *BOXES, "--layer", "nothing"), "the model has no 'nothing'"),
        (("image", "scene.png", "--target", "boxes", "--model", "resnet18"), "is not a detector"),
        (
            ("image", "scene.png", "--target", "boxes", "--model", "tiny_models:colors"),
            "which target boxes needs",
        ),
    ],
)
def test_what_does_not_go_with_boxes(arguments, message, tmp_path, monkeypatch) -> None:
    for name in ("scene.png", "clip.mp4"):
        shutil.copy(demo.asset(name), tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(Path(__file__).parent)
    result = run(*arguments)
    assert result.exit_code == 2, result.stderr
    assert message in result.stderr and len(result.stderr.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"scene.png", "clip.mp4"}


def test_not_a_class_is_what_speaks_against_it(tmp_path: Path) -> None:
    scene = demo.asset("scene.png")
    options = ("--model", "digits", "--method", "hirescam")
    run("image", scene, *options, "--target", 7, "--top-k", 1, "--out", tmp_path / "for")
    result = run("image", scene, *options, "--target", "not:7", "--out", tmp_path / "against")
    assert result.exit_code == 0, result.stderr
    about = json.loads((tmp_path / "against" / "scene.json").read_text())
    (seen,) = about["classes"]
    assert seen["id"] == 7 and seen["name"] == "against 7" and seen["probability"] > 0.9
    plus, minus = (np.load(tmp_path / name / "scene.npy")[0] for name in ("for", "against"))
    left, top, right, bottom = (each // 4 for each in truth()[7])
    inside = np.s_[top:bottom, left:right]
    assert plus[inside].max() == plus.max() > 0 and minus[inside].max() < 0.1 * minus.max()
    assert not (plus * minus).any()  # at each place it speaks for the class or against it
    assert (
        "unknown class nothing" in run("image", scene, *options, "--target", "not:nothing").stderr
    )
