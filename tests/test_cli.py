"""The program as a person or a script runs it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

import fastcam
from fastcam import demo, pictures
from fastcam.cli import image
from fastcam.cli.commands import app
from fastcam.cli.outputs import MANIFEST
from fastcam.pictures import Picture

COLORS = ("--model", "tiny_models:colors", "--method", "gradcam")


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def squares(height: int, width: int) -> Picture:
    """Red on the left, green on the right, within the middle that the network sees; grey around."""
    picture = np.full((height, width, 3), 20, np.uint8)
    y, x, side = height // 2, width // 2, min(height, width) // 8
    picture[y - side : y, x - 2 * side : x - side] = (255, 0, 0)
    picture[y : y + side, x + side : x + 2 * side] = (0, 255, 0)
    return picture


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pictures.write(tmp_path / "squares.png", squares(240, 320))
    return tmp_path / "squares.png"


def test_what_image_writes(picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    options = ("--crop", "--top-k", 2, "--target", "green", "--out", out)
    result = run("image", picture, *COLORS, *options)
    assert result.exit_code == 0
    assert result.stderr == ""
    names = {"squares-overlay.png", "squares-grid.png", "squares.npy", "squares.json", MANIFEST}
    assert {path.name for path in out.iterdir()} == names

    about = json.loads((out / "squares.json").read_text())
    assert [each["name"] for each in about["classes"]] == ["green", "red"]
    assert [each["id"] for each in about["classes"]] == [1, 0]
    assert about["layers"] == ["features"]
    assert about["method"] == "gradcam"
    assert about["region"] == {"top": 40, "left": 80, "bottom": 200, "right": 240}
    assert about["preprocessing"] == {
        "resize": [144, 192],
        "crop": [96, 96],
        "mean": [0, 0, 0],
        "std": [1, 1, 1],
        "interpolation": "bilinear",
        "origin": "tiny_models:colors",
    }
    assert "the network sees 33% of the picture: columns 80 to 240 of 320" in result.stdout
    raw = np.load(out / "squares.npy")
    assert raw.shape == (2, 12, 12)
    assert raw.dtype == np.float32
    for each, values in zip(about["classes"], raw, strict=True):
        assert each["range"] == pytest.approx([values.min(), values.max()])
    assert pictures.read(out / "squares-overlay.png").shape == (240, 320, 3)


@pytest.mark.parametrize(("height", "width"), [(240, 320), (500, 333), (96, 96), (1000, 1003)])
@pytest.mark.parametrize("options", [(), ("--crop",), ("--no-crop",), ("--size", 192)])
def test_the_heat_is_where_it_belongs(
    tmp_path: Path, height: int, width: int, options: tuple[object, ...]
) -> None:
    shown = squares(height, width)
    pictures.write(tmp_path / "a.png", shown)
    heat_alone = ("--alpha", 1, "--no-fade", "--colormap", "bone", "--out", tmp_path, *options)
    for target, channel in (("red", 0), ("green", 1)):
        assert (
            run("image", tmp_path / "a.png", *COLORS, "--target", target, *heat_alone).exit_code
            == 0
        )
        overlay = pictures.read(tmp_path / "a-overlay.png")
        hot = np.argwhere(overlay[..., 0] > 128).mean(0)
        square = np.argwhere(shown[..., channel] == 255).mean(0)
        assert np.abs(hot - square).max() < max(height, width) / 50


def test_the_whole_picture_is_seen_by_a_network_of_any_size(tmp_path: Path) -> None:
    model = (*COLORS, "--out", tmp_path, "--json")
    regions = []
    for height, width in ((200, 320), (100, 500)):
        pictures.write(tmp_path / "a.png", squares(height, width))
        report = json.loads(run("image", tmp_path / "a.png", *model).stdout)
        regions.append(tuple(report["region"].values()))
        assert report["preprocessing"]["crop"] == [96, min(96 * width // height, 3 * 96)]
    assert regions == [(0, 0, 200, 320), (0, 100, 100, 400)]


def test_no_crop_is_the_whole_picture_however_long(tmp_path: Path) -> None:
    for width, cut in ((600, False), (900, True)):
        pictures.write(tmp_path / "wide.png", squares(200, width))
        reports = [
            json.loads(
                run(
                    "image", tmp_path / "wide.png", *COLORS, *option, "--out", tmp_path, "--json"
                ).stdout
            )
            for option in ((), ("--no-crop",))
        ]
        usual, whole = (each["preprocessing"] for each in reports)
        assert whole["resize"] == usual["resize"] == [96, 96 * width // 200]
        assert (usual["crop"] != whole["crop"]) == cut
        assert whole["crop"] == whole["resize"]
        region = {"top": 0, "left": 0, "bottom": 200, "right": width}
        assert reports[1]["region"] == region


def test_an_assumed_preprocessing_is_said_once(picture: Path, tmp_path: Path) -> None:
    model = ("--model", "tiny_models:module", "--method", "gradcam", "--out", tmp_path)
    result = run("image", picture, picture, *model)
    (line,) = result.stderr.splitlines()
    assert line.startswith("fastcam: preprocessing assumed: resized to 298x224, input 298x224")
    assert "mean 0.485 0.456 0.406, std 0.229 0.224 0.225 (ImageNet's values)" in line
    origin = json.loads((tmp_path / "squares.json").read_text())["preprocessing"]["origin"]
    assert origin == "assumed: ImageNet's values"

    known = run("image", picture, *COLORS, "--out", tmp_path)
    assert known.stderr == ""
    said = known.stdout.splitlines()
    assert said[0].startswith("preprocessing: resized to 128x96")
    assert said[2] == "  gradcam at features"


def test_preprocessing_by_a_function(picture: Path, tmp_path: Path) -> None:
    model = ("--model", "tiny_models:module", "--method", "gradcam", "--out", tmp_path)
    named = ("--preprocess", "tiny_models:left_half")
    report = json.loads(run("image", picture, *model, *named, "--json").stdout)
    assert report["region"] == {"top": 0, "left": 0, "bottom": 240, "right": 160}
    assert report["preprocessing"]["origin"] == "tiny_models:left_half"
    for refused, message in (
        (("--size", 100), "size: cannot be changed, since tiny_models:left_half is a function"),
        (("--no-crop",), "crop: cannot be changed"),
        (("--std", 1, 1, 1), "mean and std: cannot be changed"),
        (("--processor", "x"), "preprocess: got a processor too"),
    ):
        result = run("image", picture, *model, *named, *refused)
        assert result.exit_code == 2
        assert message in result.stderr


def test_several_layers_are_one_map(tmp_path: Path) -> None:
    names = ("stages.0", "stages.2")
    options = [each for name in names for each in ("--layer", name)]
    scene = demo.asset("scene.png")
    result = run("image", scene, "--model", "digits", *options, "--out", tmp_path, "--json")
    report = json.loads(result.stdout)
    assert report["layers"] == list(names)
    batch = torch.from_numpy(pictures.read(scene)).movedim(-1, 0)[None] / 255
    ids = torch.tensor([[each["id"] for each in report["classes"]]])
    expected = fastcam.GradCAMPlusPlus(demo.digits(), list(names))(batch, ids)
    maps = torch.from_numpy(np.load(report["files"]["maps"]))
    assert torch.allclose(maps, expected[0], atol=1e-5)

    result = run("image", scene, "--model", "digits", "--layer", "auto", *options)
    assert result.exit_code == 2 and "stands for one layer" in result.stderr
    result = run("video", demo.asset("clip.mp4"), tmp_path / "a.gif", *options)
    assert result.exit_code == 2 and "add --norm frame" in result.stderr


def test_a_network_with_scores_for_each_pixel(tmp_path: Path) -> None:
    scene = demo.asset("scene.png")
    options = ("--model", "digits-unet", "--target", "7", "--top-k", 3, "--out", tmp_path)
    report = json.loads(run("image", scene, *options, "--json").stdout)
    assert [each["name"] for each in report["classes"]][:2] == ["7", "background"]
    batch = torch.from_numpy(pictures.read(scene)).movedim(-1, 0)[None] / 255
    unet = demo.digits_unet()
    share = (unet(batch).argmax(1) == 7).double().mean()
    assert report["classes"][0]["probability"] == pytest.approx(share.item())
    cam = fastcam.GradCAMPlusPlus(unet)
    raw = cam(batch, fastcam.targets.Segmentation(7), size="layer", normalize=False)
    maps = torch.from_numpy(np.load(report["files"]["maps"]))
    assert torch.allclose(maps[0], raw[0], atol=1e-5)


def test_a_picture_that_the_network_refuses_is_named(tmp_path: Path) -> None:
    for name, size in (("thin", (1, 300)), ("good", (64, 64))):
        pictures.write(tmp_path / f"{name}.png", np.zeros((*size, 3), np.uint8))
    files = [tmp_path / "thin.png", tmp_path / "good.png"]
    result = run("image", *files, "--model", "digits", "--out", tmp_path / "out", "--json")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"fastcam: {files[0]}: the model fails on an input of 300x1")
    failed, good = map(json.loads, result.stdout.splitlines())
    assert failed["picture"] == str(files[0]) and "error" in failed
    assert good["picture"] == str(files[1])


def test_an_output_folder_that_is_a_file(picture: Path) -> None:
    result = run("image", picture, *COLORS, "--out", picture)
    assert result.exit_code == 2
    assert result.stderr == f"fastcam: {picture} is a file, expected a folder for the output\n"


def test_a_network_of_one_channel_is_told_what_to_do(picture: Path, tmp_path: Path) -> None:
    result = run("image", picture, "--model", "tiny_models:grey", "--out", tmp_path)
    assert result.exit_code == 1
    assert "it takes 1 channel: give --preprocess" in result.stderr


def test_the_colours_of_the_picture_stay(picture: Path, tmp_path: Path) -> None:
    run("image", picture, *COLORS, "--alpha", 0, "--no-crop", "--out", tmp_path)
    overlay = pictures.read(tmp_path / "squares-overlay.png")
    assert np.array_equal(overlay, pictures.read(picture))


def test_pictures_of_one_name_do_not_overwrite_each_other(picture: Path, tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "squares.png", tmp_path / "b" / "SQUARES.jpg"]
    for path in paths:
        pictures.write(path, squares(100, 120))
    result = run("image", picture, *paths, *COLORS, "--out", tmp_path / "out", "--json")
    reports = [json.loads(line) for line in result.stdout.splitlines()]
    assert [report["picture"] for report in reports] == [str(picture), *map(str, paths)]
    files = [file for report in reports for file in report["files"].values()]
    assert len(set(files)) == 9
    assert all(Path(file).exists() for file in files)
    assert list(image.output_names([Path("a"), Path("a-2"), Path("x/a")])) == ["a", "a-2", "a-3"]


def test_a_broken_picture_does_not_stop_the_others(picture: Path, tmp_path: Path) -> None:
    broken, missing = tmp_path / "broken.png", tmp_path / "missing.png"
    broken.write_bytes(picture.read_bytes()[:300])
    result = run("image", broken, missing, picture, *COLORS, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert len(lines) == 2
    assert "broken.png: not a picture" in lines[0]
    assert "missing.png: no such file" in lines[1]
    reports = [json.loads(line) for line in result.stdout.splitlines()]
    assert ["error" in report for report in reports] == [True, True, False]
    assert (tmp_path / "out" / "squares-grid.png").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "resnet5"), "unknown model resnet5; near names: resnet50"),
        (("--layer", "feature"), "'feature'.*near names: features"),
        (("--target", "purple"), "unknown class purple"),
        (("--target", "3"), "class 3 is out of range: the ids are 0 to 2"),
        (("--model", "tiny_models:module", "--target", "3"), "got class 3, expected 0 to 2"),
        (("--method", "gradcam+++"), "unknown method gradcam.*near names: .*gradcam"),
        (("--colormap", "turbine"), "unknown colormap turbine; choose from .*turbo"),
        (("--device", "gpu"), "device gpu cannot be used"),
        (("--model", "tiny_models:module", "--method", "cam"), "global average pooling"),
        (("--weights", "none"), "weights none is not supported for a function"),
        (("--std", "0", "0", "0"), "std 0 0 0: expected three numbers above 0"),
        (("--mean", "0", "nan", "0"), "mean 0 nan 0: expected three finite numbers"),
        (("--target", 5000 * "9"), "unknown class 999"),
    ],
)
@pytest.mark.parametrize("command", ["image", "video"])
def test_usage_errors(picture: Path, command: str, options: tuple[str, ...], message: str) -> None:
    if "resnet5" in options:
        pytest.importorskip("torchvision", reason="torchvision is missing")
    if command == "video":
        pytest.importorskip("av", reason="PyAV is missing")
        arguments = [demo.asset("clip.mp4"), picture.parent / "out.mp4"]
    else:
        arguments = [picture, "--out", picture.parent / "out"]
    result = run(command, *arguments, *COLORS, *options)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert re.search(message, line), line
    assert result.stdout == ""
    assert list(picture.parent.iterdir()) == [picture]

    result = run(command, *arguments, *COLORS, *options, "--json")
    assert result.exit_code == 2
    assert f"fastcam: {json.loads(result.stdout)['error']}" == line


def test_names_of_other_classes_are_refused(picture: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("red\n")
    result = run("image", picture, *COLORS, "--classes", tmp_path / "names.txt")
    assert result.exit_code == 2
    assert result.stderr == "fastcam: classes: got 1 names, expected 3, one per class\n"


def no_number(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def test_numbers_that_json_does_not_know_are_null(picture: Path, tmp_path: Path) -> None:
    model = ("--model", "tiny_models:unsure", "--method", "gradcam")
    result = run("image", picture, *model, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0
    for text in (result.stdout, (tmp_path / "out" / "squares.json").read_text()):
        report = json.loads(text, parse_constant=no_number)
        assert report["classes"][0]["probability"] is None


def test_an_interruption_keeps_what_is_finished(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explain = image.explain
    calls = 0

    def second_time(*arguments: Any) -> image.ImageExplanation:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return explain(*arguments)

    monkeypatch.setattr(image, "explain", second_time)
    result = run("image", picture, picture, *COLORS, "--out", tmp_path / "out")
    assert result.exit_code == 130
    assert "interrupted" in result.stderr
    assert pictures.read(tmp_path / "out" / "squares-grid.png").size
    assert len(list((tmp_path / "out").iterdir())) == 5
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert len(manifest["files"]) == 4


def test_class_names_from_a_file(picture: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("rot\ngrün\nblau\n", encoding="utf-8")
    result = run(
        "image", picture, *COLORS, "--classes", tmp_path / "names.txt", "--target", "grün",
        "--top-k", 3, "--out", tmp_path, "--json",
    )  # fmt: skip
    classes = json.loads(result.stdout)["classes"]
    assert classes[0]["name"] == "grün"
    assert len(classes) == 3


@pytest.mark.parametrize("method", ["guided-backprop", "guided-gradcam"])
def test_signed_gradients_are_drawn_too(picture: Path, tmp_path: Path, method: str) -> None:
    result = run("image", picture, "--model", "digits", "--method", method, "--out", tmp_path)
    assert result.exit_code == 0
    assert np.load(tmp_path / "squares.npy").shape == (3, 3, 240, 320)
    assert pictures.read(tmp_path / "squares-overlay.png").shape == (240, 320, 3)


@pytest.fixture
def clips() -> ModuleType:
    """Imported here so that the other tests run without PyAV."""
    import clips

    return clips


@pytest.fixture
def clip(clips: ModuleType, tmp_path: Path) -> Path:
    times = [0, 40, 60, 130, 200, 210, 300]
    return clips.write_clip(tmp_path / "in.mp4", times, picture=lambda index: squares(96, 120))


def test_what_video_writes(clips: ModuleType, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out.mp4"
    result = run("video", clip, out, *COLORS, "--target", "red", "--batch", 3, "--json")
    assert result.exit_code == 0
    assert result.stderr == "", "no bar where there is no terminal"
    report = json.loads(result.stdout)
    assert report["frames"] == 7
    assert report["layers"] == ["features"]
    assert report["slowest_stage"] in report["stages"]
    assert report["frames_per_second"] == pytest.approx(7 / report["seconds"])
    before, after = clips.contents(clip), clips.contents(out)
    assert after.times == before.times
    assert report["region"] == {"top": 0, "left": 0, "bottom": 96, "right": 120}
    assert report["preprocessing"]["crop"] == [96, 120]
    assert [data for _, data in after.sound] == [data for _, data in before.sound]
    assert after.pictures[0].shape == (96, 120, 3)


def test_the_fast_mode(
    clips: ModuleType, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    options = ("video", clip, tmp_path / "out.mp4", "--model", "digits", "--fast")
    report = json.loads(run(*options, "--json").stdout)
    assert report["compiled"]["BatchNorm"].endswith(" folded")
    shown = run(*options).stdout.splitlines()[-len(report["compiled"]) :]
    assert shown == [f"  {part}: {state}" for part, state in report["compiled"].items()]
    refused = run(*options, "--method", "guided-backprop")
    assert refused.exit_code == 2
    assert "fast: not supported for guided-backprop" in refused.stderr


def test_a_clip_cut_short_ends_with_a_word(clips: ModuleType, clip: Path, tmp_path: Path) -> None:
    data = clip.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: int(0.9 * len(data))])
    out = tmp_path / "out.mp4"
    result = run("video", tmp_path / "cut.mp4", out, *COLORS, "--json")
    assert result.exit_code == 1
    assert re.search(r"cut\.mp4: (cut short|broken) after the frame at", result.stderr)
    assert "error" in json.loads(result.stdout)
    assert 0 < len(clips.contents(out).times) < 7


def test_a_clip_through_a_function(clips: ModuleType, clip: Path, tmp_path: Path) -> None:
    model = ("--model", "tiny_models:module", "--preprocess", "tiny_models:left_half")
    heat = ("--target", 0, "--layout", "heat", "--colormap", "bone", "--method", "gradcam")
    result = run("video", clip, tmp_path / "out.mp4", *model, *heat, "--max-height", 80, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["region"]["right"] == 60
    picture = clips.contents(tmp_path / "out.mp4").pictures[0][26:]  # below the caption
    hot = np.argwhere(picture[..., 0] > 128).mean(0)
    assert np.abs(hot - (35 - 26, 35)).max() < 4  # the red square, shrunk
    assert picture[:, 54:].max() < 30


def test_an_odd_size_is_mentioned(clips: ModuleType, tmp_path: Path) -> None:
    with clips.av.open(str(tmp_path / "odd.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = 95, 121, "bgr0"
        frame = clips.av.VideoFrame.from_ndarray(squares(95, 121), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    result = run("video", tmp_path / "odd.mkv", tmp_path / "out.mp4", *COLORS)
    assert result.exit_code == 0
    assert "padded to 122x96" in result.stderr
    assert "1 frames" in result.stdout


@pytest.mark.parametrize(
    ("source", "sink", "code", "message"),
    [
        ("missing.mp4", "out.mp4", 1, "missing.mp4: no such file"),
        ("squares.png.txt", "out.mp4", 1, "not a clip that can be read"),
        ("in.mp4", "out.avi", 2, "the suffix must be one of"),
        ("in.mp4", "in.mp4", 2, "the same file"),
    ],
)
def test_clips_that_cannot_be_explained(
    clip: Path, source: str, sink: str, code: int, message: str
) -> None:
    (clip.parent / "squares.png.txt").write_text("text")
    result = run("video", clip.parent / source, clip.parent / sink, *COLORS)
    assert result.exit_code == code
    (line,) = result.stderr.splitlines()
    assert message in line
    assert not (clip.parent / "out.mp4").exists()


def test_the_options_of_video(clips: ModuleType, clip: Path, tmp_path: Path) -> None:
    options = ("--target", "clip", "--norm", "clip", "--smooth", "gauss:1", "--stride", 2)
    drawn = ("--layout", "side-by-side", "--max-height", 48, "--codec", "h264")
    result = run("video", clip, tmp_path / "out.mov", *COLORS, *options, *drawn)
    assert result.exit_code == 0
    assert "7 frames in" in result.stdout and "slowest: " in result.stdout
    assert clips.contents(tmp_path / "out.mov").pictures[0].shape == (48, 2 * 60, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--norm", "best"), "norm best: expected frame, running, clip"),
        (("--smooth", "ema:2"), "smooth ema:2: expected none"),
        (("--layout", "none"), "unknown layout none; choose from overlay"),
        (("--codec", "h265"), "unknown codec h265"),
        (("--raw", "1x1"), "only supported for standard input"),
    ],
)
def test_options_of_video_that_are_refused(
    clips: ModuleType, clip: Path, options: tuple[str, ...], message: str
) -> None:
    result = run("video", clip, clip.parent / "out.mp4", *COLORS, *options)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert message in line
    assert list(clip.parent.iterdir()) == [clip]


def test_a_video_network_explains_no_pictures(picture: Path) -> None:
    result = run("image", picture, "--model", "tiny_models:motion", "--method", "gradcam")
    assert result.exit_code == 2
    assert "takes clips of 8 frames, not pictures: use fastcam video" in result.stderr


def test_demo(clips: ModuleType, tmp_path: Path) -> None:
    result = run("demo", "--out", tmp_path / "demo")
    assert result.exit_code == 0
    written = ("scene.png", "grid.png", "clip.mp4")
    assert all(f"{tmp_path / 'demo' / name}\n" in result.stdout for name in written)

    scene = pictures.read(tmp_path / "demo" / "scene.png")
    original = pictures.read(demo.asset("scene.png"))
    zoom = scene.shape[0] // original.shape[0]
    assert zoom >= 2
    enlarged = cv2.resize(original, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
    heat = np.abs(scene.astype(float) - enlarged).sum(2)
    about = json.loads(demo.asset("scene.json").read_text())
    for digit in about["digits"]:
        left, top, right, bottom = (zoom * edge for edge in digit["box"])
        level = heat[top:bottom, left:right].mean()
        assert level > 60 if digit["class"] == 3 else level < 5, digit

    frames = clips.contents(tmp_path / "demo" / "clip.mp4")
    assert len(frames.times) == len(json.loads(demo.asset("clip.json").read_text())["frames"])


def test_info() -> None:
    facts = json.loads(run("info", "--json").stdout)
    assert facts["kernels"].keys() >= {"cpu", "cuda"}
    assert {"versions", "build", "devices"} <= facts.keys()
    assert "kernels" in run("info").stdout


def start(*arguments: object) -> subprocess.Popen[str]:
    """``python -m fastcam`` from the folder that the models are in."""
    here = Path(__file__).parent
    return subprocess.Popen(
        [sys.executable, "-m", "fastcam", *map(str, arguments)],
        cwd=here,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(here.parent), *sys.path])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_python_m_is_the_same_program(picture: Path) -> None:
    out = picture.parent / "out"
    process = start("image", picture, "no.png", *COLORS, "--out", out)
    printed, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said == "fastcam: no.png: no such file\n"
    assert "squares-overlay.png" in printed


def test_ctrl_c_leaves_a_clip_that_plays(clips: ModuleType, tmp_path: Path) -> None:
    shown = squares(96, 120)
    source = clips.write_clip(
        tmp_path / "long.mp4", [40 * index for index in range(1500)], picture=lambda index: shown
    )
    out = tmp_path / "out.mp4"
    process = start("video", source, out, *COLORS)
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob(".fastcam-*.part.mp4")):
        assert process.poll() is None, "it ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert "interrupted" in said
    assert "Traceback" not in said
    assert 0 < len(clips.contents(out).times) < 1500


def test_a_size_that_the_model_cannot_take(picture: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchvision", reason="torchvision is missing")
    model = ("--model", "vit_b_16", "--weights", "none", "--size", 100)
    result = run("image", picture, *model, "--out", tmp_path / "out")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert "the model fails on an input of 100x100 pixels" in line


def test_version_and_completion() -> None:
    command = [sys.executable, "-m", "fastcam"]
    shown = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout == f"fastcam {fastcam.__version__}\n"
    named = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    script = subprocess.run(
        [*command, "--show-completion", "bash"],
        capture_output=True,
        text=True,
        check=True,
        env=named,
    )
    assert "_FASTCAM_COMPLETE" in script.stdout
