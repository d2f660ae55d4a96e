"""What the program writes over, and what it never does; pictures and options that are wrong."""

from __future__ import annotations

import io
import itertools
import json
import os
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from test_cli import COLORS, run, squares

from fastcam import demo, pictures, video
from fastcam.cli import image, outputs
from fastcam.cli.outputs import MANIFEST, planned
from fastcam.errors import FastcamError, UsageError
from fastcam.explainer import Explainer
from fastcam.pictures import headers


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with the picture a.png."""
    monkeypatch.chdir(tmp_path)
    pictures.write(Path("a.png"), squares(100, 120))
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(folder: Path, *arguments: object) -> str:
    """The complaint of a command that must change nothing."""
    before = contents(folder)
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert contents(folder) == before
    (line,) = result.stderr.splitlines()
    return line


# --- outputs that exist


@pytest.mark.parametrize("name", ["a-overlay.png", "a-grid.png", "a.npy", "a.json"])
def test_files_of_others_are_kept(folder: Path, name: str) -> None:
    Path(name).write_text("mine")
    command = ("image", "a.png", *COLORS, "--out", ".")
    assert f"{name} exists, and .fastcam.json does not list it" in refused(folder, *command)
    assert "--overwrite" in refused(folder, *command)
    assert run(*command, "--overwrite").exit_code == 0
    assert Path(name).read_bytes() != b"mine"
    assert run(*command).exit_code == 0, "now it is fastcam's"


def test_outputs_that_were_changed_are_kept(folder: Path) -> None:
    command = ("image", "a.png", *COLORS, "--out", "out")
    assert run(*command).exit_code == run(*command).exit_code == 0
    report = Path("out/a.json")
    text = report.read_text()
    report.write_text(text.replace("gradcam", "GRADCAM"))
    assert "out/a.json exists" in refused(folder, *command)
    report.write_text(text + "a note")
    assert "out/a.json exists" in refused(folder, *command)
    report.unlink()
    assert run(*command).exit_code == 0


def test_a_broken_manifest_is_found_before_anything_is_written(folder: Path) -> None:
    Path("out").mkdir()
    Path("out", MANIFEST).write_text("garbage")
    assert "not a manifest" in refused(folder, "image", "a.png", *COLORS, "--out", "out")


def test_a_link_that_leads_nowhere_is_kept(folder: Path) -> None:
    Path("a.npy").symlink_to("/nonexistent/a.npy")  # perhaps on a disk that is not there
    assert "a.npy exists" in refused(folder, "image", "a.png", *COLORS, "--out", ".")
    assert Path("a.npy").is_symlink()


@pytest.mark.parametrize("text", ["", "[]", '{"files": 3}', '{"name": "a project"}', "\xff"])
def test_a_manifest_of_others_is_kept(folder: Path, text: str) -> None:
    Path("out").mkdir()
    Path("out/a.json").write_text("mine")
    Path("out", MANIFEST).write_text(text, encoding="latin-1")
    line = refused(folder, "image", "a.png", *COLORS, "--out", "out", "--overwrite")
    assert f"out/{MANIFEST}: not a manifest" in line


def test_an_error_is_not_hidden_by_one_of_the_manifest(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise FastcamError(f"{MANIFEST}: cannot be written: No space left on device")

    monkeypatch.setattr(outputs, "_record", full)
    out = folder / "out.mkv"
    with pytest.raises(FastcamError, match="the clip cannot"), planned(lambda: [out], [], False):
        out.write_text("half")
        raise FastcamError("the clip cannot be written")
    with pytest.raises(FastcamError, match=MANIFEST), planned(lambda: [out], [], True):
        out.write_text("whole")


def test_commands_share_a_manifest(folder: Path) -> None:
    pictures.write(Path("b.png"), squares(100, 120))
    for name in ("a.png", "b.png", "a.png", "b.png"):
        assert run("image", name, *COLORS, "--out", "out").exit_code == 0
    assert len(json.loads(Path("out", MANIFEST).read_text())["files"]) == 8


def test_runs_at_the_same_time_share_a_manifest(folder: Path) -> None:
    ready = threading.Barrier(8)

    def write(index: int) -> None:
        path = folder / f"{index}.txt"
        with planned(lambda: [path], [], overwrite=False):
            path.write_text("text")
            ready.wait()

    threads = [threading.Thread(target=write, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(json.loads((folder / MANIFEST).read_text())["files"]) == 8


# --- outputs that are inputs


def test_pictures_are_no_outputs(folder: Path) -> None:
    pictures.write(Path("a-overlay.png"), squares(100, 120))
    command = ("image", "a.png", "a-overlay.png", *COLORS, "--out", ".", "--overwrite")
    assert "a-overlay.png: the output and the input a-overlay.png are the same file" in refused(
        folder, *command
    )
    Path("out").mkdir()
    Path("out/a-overlay.png").hardlink_to("a-overlay.png")
    line = refused(folder, *command[:-2], "out", "--overwrite")
    assert "out/a-overlay.png: the output and the input a-overlay.png are the same file" in line


def test_classes_and_weights_are_no_outputs(folder: Path) -> None:
    Path("a.json").write_text("red\ngreen\nblue\n")
    command = ("image", "a.png", "--overwrite", "--out", ".")
    line = refused(folder, *command, *COLORS, "--classes", folder / "a.json")
    assert "a.json: the output and the input" in line
    Path("a.json").rename("a.npy")
    assert "a.npy: the output and the input" in refused(
        folder, *command, *COLORS, "--weights", "./a.npy"
    )


def test_the_files_of_the_demo_are_no_outputs(folder: Path) -> None:
    assets = demo.asset("scene.png").parent
    result = run("demo", "--out", assets, "--overwrite")
    assert result.exit_code == 2
    assert "are the same file" in result.stderr
    Path("scene.png").write_text("mine")
    assert "scene.png exists" in refused(folder, "demo", "--out", ".")


SAME = ["{}", "./{}", "file:{}", "file://{}", "cache:{}", "async:file:{}", "concat:{}", "link.mp4"]


@pytest.mark.parametrize("form", SAME)
def test_a_clip_is_not_its_own_sink(folder: Path, form: str) -> None:
    clips = pytest.importorskip("clips", reason="PyAV is missing")
    clip = clips.write_clip(folder / "clip.mp4", range(0, 200, 40))
    Path("link.mp4").symlink_to(clip)
    absolute = form.startswith(("file://", "./"))
    source = form.format(clip if absolute and ":" in form else "clip.mp4")
    for sink in ("clip.mp4", "./clip.mp4", "link.mp4"):
        line = refused(folder, "video", source, sink, *COLORS, "--overwrite")
        assert f"{Path(sink)}: the output and the input" in line
        with video.open_source(source) as opened, pytest.raises(UsageError, match="the same file"):
            video.open_sink(sink, opened)


def test_frames_are_no_outputs(folder: Path) -> None:
    for name in ("f/a/000000.png", "f/b/000000.png", "f/b/000001.png"):
        pictures.write(Path(name), squares(100, 120))
    command = ("video", "f/*/*.png", "f/b", *COLORS)
    assert "f/b/000000.png: the output and the input" in refused(folder, *command, "--overwrite")
    with video.open_source("f/*/*.png") as opened, pytest.raises(UsageError, match="the same file"):
        video.open_sink("f/b", opened)


def test_clips_of_others_are_kept(folder: Path) -> None:
    clips = pytest.importorskip("clips", reason="PyAV is missing")
    clips.write_clip(folder / "in.mp4", range(0, 200, 40))
    Path("out").mkdir()
    for name in ("out.mp4", "out/000001.png", "out.gif", "maps.safetensors"):
        Path(name).write_text("mine")
        sink = {"out/000001.png": "out"}.get(name, name)
        command = ("video", "in.mp4", sink, *COLORS)
        assert f"{name} exists" in refused(folder, *command)
        assert run(*command, "--overwrite").exit_code == 0
        assert run(*command).exit_code == 0


# --- how files are written


def test_temporary_files_are_those_of_one_call(folder: Path) -> None:
    with pictures.replacing(Path("x.txt")) as one, pictures.replacing(Path("x.txt")) as two:
        one.write_text("one")
        two.write_text("two")
    assert Path("x.txt").read_text() == "one"
    assert contents(folder).keys() == {str(folder / "a.png"), str(folder / "x.txt")}


@pytest.mark.parametrize("failure", [OSError(28, "No space left"), KeyboardInterrupt()])
def test_no_temporary_file_stays(folder: Path, failure: BaseException) -> None:
    before = contents(folder)
    expected = FastcamError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected), pictures.replacing(Path("a.png")) as temporary:
        temporary.write_text("half")
        raise failure
    assert contents(folder) == before


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_modes_follow_the_umask(folder: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        assert run("image", "a.png", *COLORS, "--out", "out").exit_code == 0
        with pictures.replacing(Path("out/secret")) as temporary:
            temporary.unlink()
            os.close(os.open(temporary, os.O_CREAT, 0o600))
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in Path("out").iterdir()}
    assert modes == {0o666 & ~umask}


# --- pictures that are wrong


def png(width: int, height: int) -> bytes:
    """A PNG with a header and nearly no data."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(1000))),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def jpeg(width: int, height: int) -> bytes:
    """A JPEG whose header says another size."""
    data = bytearray(cv2.imencode(".jpg", squares(100, 120))[1].tobytes())
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize("make", [png, jpeg])
def test_large_pictures_are_refused_by_their_header(
    folder: Path, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("bomb.png").write_bytes(make(60000, 60000))
    with monkeypatch.context() as patch:
        patch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
        with pytest.raises(FastcamError, match="60000x60000 pixels are more than max-pixels"):
            pictures.read(Path("bomb.png"))
    result = run("image", "bomb.png", "a.png", *COLORS)
    assert result.exit_code == 1
    assert "bomb.png: 60000x60000 pixels" in result.stderr
    assert Path("out/a.json").exists()
    result = run("image", "a.png", *COLORS, "--max-pixels", 100 * 120 - 1)
    assert "a.png: 120x100 pixels are more than max-pixels (11,999)" in result.stderr
    assert run("image", "a.png", *COLORS, "--max-pixels", 100 * 120).exit_code == 0


FORMATS = ["png", "jpg", "jp2", "webp", "avif", "tif", "bmp", "gif", "hdr", "ppm", "pam", "ras"]


@pytest.mark.parametrize("suffix", [*FORMATS, "pgm", "pbm", "pfm"])
@pytest.mark.parametrize(("height", "width"), [(40, 57), (300, 32)])
def test_headers(suffix: str, height: int, width: int) -> None:
    shown: Any = squares(height, width)
    if suffix in ("hdr", "pfm"):
        shown = (shown / 255).astype(np.float32)
    if suffix in ("pgm", "pbm"):
        shown = shown[..., 0]
    try:
        data = cv2.imencode(f".{suffix}", shown)[1].tobytes()
    except cv2.error:
        pytest.skip(f"this OpenCV does not write {suffix}")
    assert headers.extents(data) == (height, width)
    assert headers.is_picture(data[:16])
    for length in range(0, len(data), 7):  # none of these raises
        assert headers.extents(data[:length]) is None or length > 2


@pytest.mark.parametrize(
    "options",
    [
        {"format": "WEBP", "quality": 70},
        {"format": "WEBP", "lossless": True},
        {"format": "WEBP", "exif": b"Exif\0\0"},
        {"format": "JPEG", "progressive": True, "exif": 60000 * b"x"},
        {"format": "TIFF", "compression": "tiff_lzw"},
        {"format": "TIFF", "big_tiff": True},
        {"format": "JPEG2000", "no_jp2": True},
        {"format": "DIB"},
    ],
    ids=str,
)
def test_headers_of_other_writers(options: dict[str, Any]) -> None:
    writer = pytest.importorskip("PIL.Image", reason="Pillow is missing")
    if options["format"] == "DIB":
        pytest.skip("OpenCV reads no DIB")
    file = io.BytesIO()
    writer.fromarray(squares(40, 57)).save(file, **options)
    assert headers.extents(file.getvalue()) == (40, 57)


def odd_pictures() -> dict[str, bytes]:
    """Pictures that other programs write, by name."""
    shown = squares(100, 120)

    def encoded(suffix: str, picture: Any) -> bytes:
        return cv2.imencode(suffix, picture)[1].tobytes()

    return {
        "thin.png": encoded(".png", shown[:, :1]),
        "flat.png": encoded(".png", shown[:1]),
        "pixel.png": encoded(".png", shown[:1, :1]),
        "deep.png": encoded(".png", shown.astype(np.uint16) * 257),
        "grey.png": encoded(".png", shown[..., 0]),
        "clear.png": encoded(".png", np.dstack((shown, shown[..., :1]))),
        "animated.gif": encoded(".gif", shown),
    }


def test_odd_pictures(folder: Path) -> None:
    for name, data in odd_pictures().items():
        Path(name).write_bytes(data)
    writer = pytest.importorskip("PIL.Image", reason="Pillow is missing")
    for name, mode in (("cmyk.jpg", "CMYK"), ("palette.png", "P")):
        writer.fromarray(squares(100, 120)).convert(mode).save(name)
    names = [*odd_pictures(), "cmyk.jpg", "palette.png"]
    result = run("image", *names, *COLORS, "--json")
    assert result.exit_code == 0, result.stderr
    assert len(result.stdout.splitlines()) == len(names)
    result = run("image", *names, "--model", "digits", "--json", "--no-crop")
    assert len(result.stdout.splitlines()) == len(names)


def test_bad_pictures_end_no_batch(folder: Path) -> None:
    Path("folder.png").mkdir()
    Path("empty.png").touch()
    Path("text.png").write_text("text")
    Path("endless.png").symlink_to("/dev/zero")
    Path("cut.jpg").write_bytes(jpeg(120, 100)[:-300])
    Path("wrong.png").write_bytes(png(0, 7))
    Path("float.tif").write_bytes(cv2.imencode(".tif", np.ones((9, 9), np.float32))[1].tobytes())
    pictures.write(Path("narrow.png"), np.zeros((1, 10**6, 3), np.uint8))
    names = sorted({path.name for path in folder.iterdir()} - {"a.png"})
    result = run("image", *names, "a.png", *COLORS, "--json")
    assert result.exit_code == 1
    reports = [json.loads(line) for line in result.stdout.splitlines()]
    assert [report["picture"] for report in reports] == [*names, "a.png"]
    assert ["error" in report for report in reports] == [True] * len(names) + [False]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        np._core._exceptions._ArrayMemoryError((1 << 40,), np.dtype(np.uint8)),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("function", ["explain", "save"])
def test_memory_that_runs_out_ends_no_batch(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, function: str
) -> None:
    pictures.write(Path("b.png"), squares(100, 120))
    calls = itertools.count()
    work = getattr(image, function)

    def first_time(*arguments: Any) -> Any:
        if next(calls) == 0:
            raise error
        return work(*arguments)

    monkeypatch.setattr(image, function, first_time)
    result = run("image", "a.png", "b.png", *COLORS)
    assert result.exit_code == 1
    assert result.stderr == "fastcam: a.png: not enough memory for this picture\n"
    assert Path("out/b.json").exists()


PEAK = """
import resource, sys
from typer.testing import CliRunner
from fastcam.cli.commands import app
result = CliRunner().invoke(app, ["image", *sys.argv[1:]])
assert result.exit_code == 0, result.output
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak(*arguments: str) -> int:
    """The largest memory of a command, in bytes."""
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(done.stdout) * (1024 if sys.platform == "linux" else 1)


def test_memory_per_pixel(folder: Path) -> None:
    side = 4000
    small = np.random.default_rng(0).integers(0, 256, (side // 5, side // 5, 3), np.uint8)
    pictures.write(Path("large.png"), cv2.resize(small, (side, side)))  # type: ignore[arg-type]
    assert peak("large.png", *COLORS) - peak("a.png", *COLORS) < 12 * side**2


# --- options that are wrong


def test_options_are_checked_before_the_model_is_built(folder: Path) -> None:
    for options in (
        ("--method", "grad"),
        ("--colormap", "turbine"),
        ("--std", 0, 0, 0),
        ("--std", 1, -1, 1),
        ("--mean", "inf", 0, 0),
    ):
        for command in (("image", "a.png"), ("video", "a.png", "out.gif")):
            # this model's function raises when it is called
            line = refused(folder, *command, "--model", "tiny_models:broken", *options)
            assert options[0].lstrip("-") in line
    result = run("image", "a.png", "--model", "tiny_models:broken", "--size", 99999999)
    assert result.exit_code == 2
    assert "--size" in result.stderr
    for options in (("--layout", "none"), ("--norm", "best"), ("--smooth", "x"), ("--codec", "x")):
        line = refused(folder, "video", "a.png", "o.gif", "--model", "tiny_models:broken", *options)
        assert options[0].lstrip("-") in line
    assert "suffix" in refused(folder, "video", "a.png", "o.avi", "--model", "tiny_models:broken")


def test_classes_are_checked_before_pictures_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "read", lambda *_: pytest.fail("a picture was read"))
    unnamed = ("image", "a.png", "--model", "tiny_models:module", "--method", "gradcam")
    assert "top-k 4: the network has 3 classes" in refused(folder, *unnamed, "--top-k", 4)
    assert "got class 9999, expected 0 to 2" in refused(folder, *unnamed, "--target", 9999)
    assert "top-k 2000: the network has 3" in refused(
        folder, "image", "a.png", *COLORS, "--top-k", 2000
    )
    Path("names").write_text("red\n")
    line = refused(folder, "image", "a.png", *COLORS, "--classes", "names")
    assert "got 1 names, expected 3" in line


def test_classes_are_checked_before_a_clip_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Explainer, "__call__", lambda *_: pytest.fail("a frame was explained"))
    unnamed = ("video", "a*.png", "out.gif", "--model", "tiny_models:module")
    assert "got class 3, expected 0 to 2" in refused(folder, *unnamed, "--target", 3)
