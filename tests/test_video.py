"""A clip from its source through the network to its sink, and what goes wrong on the way."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import tiny_models
import torch
from clips import av, contents, quarters, write_clip
from PIL import Image

from fastcam import demo, models, pictures, video
from fastcam.engine.cores import threads_abreast
from fastcam.errors import FastcamError, UsageError
from fastcam.explainer import Explainer
from fastcam.explainer.threads import Ahead, Behind
from fastcam.video import Frame
from fastcam.video.sinks import open_sink
from fastcam.video.sources import Clip, StandardInput, open_source

SIDE = 96


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """No thread and no open file outlives a call."""
    before = set(threading.enumerate())
    files = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    yield
    ours = [each for each in threading.enumerate() if each not in before]
    assert [each.name for each in ours if each.name.startswith("fastcam")] == []
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/fd")) <= files + 1  # a library may open something once


def colors() -> Explainer:
    """The map of a class is that colour; pictures go in as they are."""
    model = models.load("tiny_models:colors")
    as_it_is = models.Preprocessing(resize=None, crop=None, mean=(0, 0, 0), std=(1, 1, 1))
    return Explainer(models.LoadedModel(model.module, as_it_is, model.classes), "gradcam")


def square(left: int, color: tuple[int, int, int] = (255, 0, 0)) -> pictures.Picture:
    picture = np.zeros((SIDE, SIDE, 3), np.uint8)
    picture[40:56, left : left + 16] = color
    return picture


def squares(count: int) -> list[Frame]:
    """A red square that moves to the right over black; there is none in the last frame."""
    shown = [square(8 * (index % 10)) for index in range(count - 1)]
    return [
        Frame(picture, index, Fraction(1, 25))
        for index, picture in enumerate([*shown, square(0, (0, 0, 0))])
    ]


def center(values: Any) -> Any:
    """The mean position of what is hot, (y, x), in shares of the extents."""
    values = np.asarray(values, float)
    hot = np.argwhere(values > 0.5 * values.max())
    return (hot.mean(0) + 0.5) / values.shape


# --- what is drawn


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("batch", [3, 16])
def test_the_heat_follows_what_it_explains(stride: int, batch: int) -> None:
    frames = squares(8)
    explained = list(
        video.explain(
            iter(frames), None, colors(), target="red", batch=batch, stride=stride,
            colormap="bone", alpha=1.0, norm="frame",
        )
    )  # fmt: skip
    assert [each.frame.pts for each in explained] == list(range(8))
    for index, each in enumerate(explained[:-1]):
        if index % stride == 0:
            red = center(frames[index].picture[30:, :, 0])
            assert np.abs(red - center(each.picture[30:, :, 0])).max() < 0.05
            assert each.name == "red"
    if stride == 1:
        assert (explained[-1].picture[30:] == 0).all(), "nothing to see is cold, not NaN"


def test_maps_between_explained_frames_are_interpolated_by_time() -> None:
    times = [0, 1, 2, 8, 9]
    frames = [Frame(square(0 if at < 4 else 64), at, Fraction(1, 10)) for at in times]
    options = {"target": "red", "norm": "fixed:0,1"}
    every = [each.map for each in video.explain(frames, None, colors(), **options)]
    strided = [each.map for each in video.explain(frames, None, colors(), stride=4, **options)]
    for index, at in enumerate(times):
        expected = torch.lerp(every[0], every[-1], at / 9)
        torch.testing.assert_close(strided[index], expected)


def test_frames_behind_the_last_explained_one_keep_its_map() -> None:
    explained = list(video.explain(squares(6), None, colors(), stride=4, target="red"))
    assert len(explained) == 6
    assert explained[5].map.equal(explained[4].map)


def test_layouts() -> None:
    frame = squares(2)[:1]
    options = {"target": "red", "colormap": "bone"}

    def drawn(layout: str) -> pictures.Picture:
        (each,) = video.explain(frame, None, colors(), layout=layout, **options)
        return each.picture

    both = drawn("side-by-side")
    assert both.shape == (SIDE, 2 * SIDE, 3)
    assert (both[:, :SIDE] == frame[0].picture).all()
    assert (both[:, SIDE:] == drawn("overlay")).all()
    heat = drawn("heat")
    assert (heat[48, 8] == 255).all(), "the top of the colour table, without the picture"
    assert (heat[80, 80] == 0).all()
    with pytest.raises(UsageError, match="unknown layout sideways; choose from overlay"):
        drawn("sideways")


def test_max_height_shrinks_and_never_enlarges() -> None:
    for limit, shape in ((48, (48, 48, 3)), (200, (SIDE, SIDE, 3))):
        (each,) = video.explain(squares(2)[:1], None, colors(), max_height=limit, target="red")
        assert each.picture.shape == shape
        assert each.frame.size == (SIDE, SIDE)


# --- what acts over time, seen through a clip


def chroma(*names: str) -> list[pictures.Picture]:
    color = {"r": (200, 0, 0), "g": (0, 200, 0)}
    return [square(0, color[name]) for name in "".join(names)]


def test_lock_holds_the_class_until_another_leads_for_a_while() -> None:
    shown = chroma("rr", "ggg", "r", "gggggggggg", "r")
    sharp = colors()
    sharp.model.module.scale.data.fill_(300.0)  # type: ignore[operator, union-attr]
    locked = [each.name for each in video.explain(shown, None, sharp, batch=4)]
    assert locked == ["red"] * 13 + ["green"] * 4, "on the eighth frame in a row"
    own = [each.name for each in video.explain(shown, None, sharp, target="top1")]
    assert own == [{"r": "red", "g": "green"}[name] for name in "rrgggrggggggggggr"]


@pytest.mark.parametrize(("takes", "stride"), [("pictures", 1), ("pictures", 12), ("clips", 1)])
def test_lock_lets_go_at_a_cut(tmp_path: Path, takes: str, stride: int) -> None:
    """Neither class leads by much."""
    explainer = colors() if takes == "pictures" else motion()
    random = np.random.default_rng(0)
    scenes = []
    for tint in ((150, 60, 30), (20, 60, 30)):
        noise = random.integers(0, 40, (SIDE, SIDE, 3))
        scenes += [(np.roll(noise, index, 1) + tint).astype(np.uint8) for index in range(48)]
    source = write_clip(
        tmp_path / "in.mp4", [40 * i for i in range(96)], picture=lambda index: scenes[index]
    )
    shown = [each.name for each in video.explain(source, None, explainer, stride=stride)]
    assert shown[:48] == ["red"] * 48
    late = shown[48:].index("green")
    assert late / 25 < 1
    assert shown[48 + late :] == ["green"] * (48 - late)


def test_clip_takes_the_class_of_the_highest_mean(tmp_path: Path) -> None:
    for index, picture in enumerate(chroma("r", "ggg", "r")):
        pictures.write(tmp_path / f"{index}.png", picture)
    explained = list(video.explain(tmp_path, None, colors(), target="clip"))
    assert [each.name for each in explained] == ["green"] * 5


@pytest.mark.parametrize("option", [{"norm": "clip"}, {"smooth": "gauss:1"}, {"target": "clip"}])
def test_what_reads_twice_refuses_what_cannot_be(option: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="the iterator: can be read only once"):
        video.explain(iter(squares(3)), None, colors(), **option)


def test_the_range_of_the_clip_is_shared(tmp_path: Path) -> None:
    for index, level in enumerate((50, 200, 100)):
        pictures.write(tmp_path / f"{index}.png", square(0, (level, 0, 0)))
    options = {"target": "red", "norm": "clip"}
    peaks = [each.map.max().item() for each in video.explain(tmp_path, None, colors(), **options)]
    assert peaks == pytest.approx([0.25, 1, 0.5])


def test_flicker_on_the_demo_clip_where_the_digit_is_absent() -> None:
    about = json.loads(demo.asset("clip.json").read_text())["frames"]
    explainer = Explainer(models.load("digits"), "gradcam++")
    for digit in (2, 5, 7, 8):
        absent = np.array([digit not in [each["class"] for each in frame] for frame in about])
        assert absent.sum() > 20
        flicker = {}
        for norm in ("frame", "running"):
            maps = torch.stack(
                [
                    each.map
                    for each in video.explain(
                        demo.asset("clip.mp4"), None, explainer, target=str(digit), norm=norm
                    )
                ]
            )
            changes = (maps[1:] - maps[:-1]).abs().mean((1, 2))
            flicker[norm] = changes[torch.from_numpy(absent[1:] & absent[:-1])].mean().item()
        assert flicker["running"] <= flicker["frame"] / 5, digit


# --- video networks


def motion() -> Explainer:
    return Explainer(tiny_models.motion(), "gradcam")


@pytest.mark.parametrize("count", [8, 16, 19])
def test_a_video_network_explains_the_right_frames(count: int) -> None:
    """Red in frames 4 to 7 of every window of 8."""
    shown = [square(8 * (i % 8), (255, 0, 0) if i % 8 >= 4 else (0, 0, 0)) for i in range(count)]
    explained = list(video.explain(iter(shown), None, motion(), target="red", norm="fixed:0,1e-3"))
    assert len(explained) == count
    for index, each in enumerate(explained):
        assert each.map.shape == (SIDE // 8, SIDE // 8)
        if index % 8 in (1, 2) and index < 16:
            assert each.map.max() == 0, index
        if index % 8 in (5, 6):
            expected = 4 + (index % 8 // 2 * 2 + 0.5)  # features hold two frames
            y, x = center(each.map)
            assert abs(y - 48 / SIDE) < 0.05
            assert abs(x - (8 * (expected - 4) + 8) / SIDE) < 0.09, index


def test_a_stride_is_the_video_networks_own_pace() -> None:
    seen = []
    explainer = motion()
    explainer.model.module.register_forward_hook(lambda _, args, out: seen.append(args[0][0, 0]))
    shown = [square(0, (index, 0, 0)) for index in range(32)]
    explained = list(video.explain(iter(shown), None, explainer, target="red", stride=2))
    assert len(explained) == 32
    windows = [(255 * each[:, 48, 4]).round().int().tolist() for each in seen]
    assert sorted(windows)[-2:] == [list(range(0, 16, 2)), list(range(16, 32, 2))]


def test_pictures_do_not_go_through_a_video_network(tmp_path: Path) -> None:
    from fastcam.cli import image

    explainer = motion()
    with pytest.raises(UsageError, match="takes clips of 8 frames, not pictures"):
        image.explain(square(0), explainer, explainer.targets())


@pytest.mark.parametrize(("name", "length", "side"), [("r3d_18", 16, 112), ("swin3d_t", 32, 224)])
def test_torchvisions_video_networks(name: str, length: int, side: int) -> None:
    pytest.importorskip("torchvision", reason="torchvision is missing: no r3d_18, no swin3d_t")
    model = models.load(name, "none")
    assert model.clip_length == length
    assert len(model.classes) == 400
    assert model.preprocessing.crop == (side, side)
    small = models.Preprocessing(resize=None, crop=None)  # so that it takes a second
    explainer = Explainer(models.LoadedModel(model.module, small, model.classes, clip_length=4))
    frames = [np.full((64, 64, 3), 10 * index, np.uint8) for index in range(6)]
    explained = list(video.explain(iter(frames), None, explainer, target="0"))
    assert len(explained) == 6
    assert all(each.map.shape == explained[0].map.shape for each in explained)
    assert explained[0].map.dim() == 2


# --- sources


def gray(frame: Frame) -> float:
    return float(frame.picture.mean())


def test_frames_as_people_hold_them() -> None:
    array = np.random.default_rng(0).integers(0, 256, (2, 20, 30, 3), dtype=np.uint8)
    tensors = [torch.from_numpy(each) for each in array]
    held = {
        "arrays": list(array),
        "one array": array,
        "RGB of BGR": [np.ascontiguousarray(each[..., ::-1])[..., ::-1] for each in array],
        "PIL": [Image.fromarray(each) for each in array],
        "PIL with alpha": [Image.fromarray(each).convert("RGBA") for each in array],
        "tensors": tensors,
        "channels first": [each.movedim(-1, 0) for each in tensors],
        "a generator": (each for each in array),
    }
    for name, frames in held.items():
        opened = open_source(frames)
        assert opened.twice == (name != "a generator")
        found = list(opened)
        assert [frame.time for frame in found] == [0, 0.04]
        for frame, expected in zip(found, array, strict=True):
            assert np.array_equal(frame.picture, expected), name
            assert torch.equal(frame.rgb(), torch.from_numpy(expected)), name


def test_frames_of_pyav_keep_their_times() -> None:
    clip = demo.asset("clip.mp4")
    with av.open(str(clip)) as container:
        found = list(open_source(list(container.decode(video=0))))
    expected = list(open_source(clip))
    assert [frame.time for frame in found] == [frame.time for frame in expected]
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one.picture, other.picture)


@pytest.mark.parametrize(
    ("frame", "came"),
    [
        (np.zeros((4, 5, 3)), r"an array \(4, 5, 3\) of float64"),
        (np.zeros((4, 5, 3), np.uint16), "an array .* of uint16"),
        (np.zeros((2, 4, 5, 3), np.uint8), "an array .* of uint8"),
        (torch.zeros(4, 5, 3), "an array .* of float32"),
        ("a.png", "str"),
        (7, "int"),
    ],
)
def test_what_is_no_frame_is_named(frame: object, came: str) -> None:
    good = np.zeros((4, 5, 3), np.uint8)
    with pytest.raises(FastcamError, match=f"^the iterator: frame 1 is {came}, expected a picture"):
        list(open_source([good, frame]))


def test_numbers_in_names_count(tmp_path: Path) -> None:
    order = ["f2.png", "f10.png", "f100.png", "g1.png"]
    for value, name in enumerate(order):
        pictures.write(tmp_path / name, np.full((4, 5, 3), value, np.uint8))
    for source in (tmp_path, f"{tmp_path}/*.png"):
        assert [int(each.picture[0, 0, 0]) for each in open_source(source)] == [0, 1, 2, 3]


def test_a_folder_of_pictures_is_no_sink_for_itself(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        pictures.write(tmp_path / name, np.zeros((16, 16, 3), np.uint8))
    (tmp_path / "link").symlink_to(tmp_path)
    for sink in (tmp_path, tmp_path / "link"):
        with pytest.raises(UsageError, match="the source's pictures are in this folder"):
            open_sink(sink, open_source(tmp_path))
    open_sink(tmp_path / "out", open_source(tmp_path)).close()


def test_folders_and_globs_are_read_in_order(tmp_path: Path) -> None:
    for index in (2, 0, 1):
        pictures.write(tmp_path / f"{index}.png", np.full((32, 48, 3), 50 * index, np.uint8))
    (tmp_path / "notes.txt").write_text("no picture")
    for source in (tmp_path, str(tmp_path / "*.png"), str(tmp_path / "[0-2].png")):
        opened = video.open_source(source)
        assert opened.frames == 3
        assert [gray(frame) for frame in opened] == [0, 50, 100]
        assert [frame.time for frame in opened] == [0, 0.04, 0.08], "a second time too"
    with pytest.raises(FastcamError, match="matches no file"):
        video.open_source(str(tmp_path / "*.jpg"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FastcamError, match="the folder contains no pictures"):
        video.open_source(tmp_path / "empty")


def test_a_clip_can_be_read_twice(tmp_path: Path) -> None:
    with Clip(write_clip(tmp_path / "in.mp4", [0, 40, 80])) as clip:
        first, second = list(clip), list(clip)
    assert [each.pts for each in first] == [each.pts for each in second]
    assert (first[0].picture == second[0].picture).all()


def stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))


def test_y4m_and_raw_frames_on_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = [np.full((32, 48, 3), 40 * index, np.uint8) for index in range(5)]
    with av.open(str(tmp_path / "in.y4m"), "w") as container:
        stream = container.add_stream("rawvideo", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for picture in shown:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
    stdin(monkeypatch, (tmp_path / "in.y4m").read_bytes())
    with video.open_source("-") as source:
        read = list(source)
    assert [frame.time for frame in read] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert [gray(frame) for frame in read] == pytest.approx(list(range(0, 161, 40)), abs=3)

    stdin(monkeypatch, b"".join(picture.tobytes() for picture in shown))
    with video.open_source("-", raw="48x32@5") as source:
        read = list(source)
    assert [gray(frame) for frame in read] == [0, 40, 80, 120, 160]
    assert read[1].time == pytest.approx(0.2)
    for raw in ("48", "48x32@0", "0x3", "axb"):
        with pytest.raises(UsageError, match="expected WIDTHxHEIGHT"):
            video.open_source("-", raw=raw)
    with pytest.raises(UsageError, match="only supported for standard input"):
        video.open_source("in.mp4", raw="48x32")


def test_waiting_for_standard_input_can_be_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as pipe, os.fdopen(writer, "wb") as feed:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=pipe))
        feed.write(bytes(48 * 32 * 3 * 3))
        feed.flush()  # and nothing more, but it stays open
        frames = video.explain(
            StandardInput((48, 32, Fraction(25))), None, colors(), batch=1, target="red"
        )
        next(frames)
        frames.close()


def test_a_url(tmp_path: Path) -> None:
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    write_clip(tmp_path / "in.mp4", [0, 40, 80])

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/in.mp4"
        report = video.explain(url, tmp_path / "out.mp4", colors(), target="red")
        with pytest.raises(FastcamError, match="not a clip that can be read"):
            video.open_source(url + "x")
        server.shutdown()
    assert report.frames == 3
    assert contents(tmp_path / "out.mp4").sound, "fetched from the same place"


def test_a_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    class Camera:
        left = 3

        def __init__(self, number: int) -> None:
            assert number == 0

        def isOpened(self) -> bool:
            return True

        def get(self, what: int) -> float:
            return 0.0

        def release(self) -> None:
            pass

        def read(self) -> tuple[bool, Any]:
            self.left -= 1
            return self.left >= 0, quarters()[..., ::-1]

    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    with video.open_source("0") as camera:
        frames = []
        with pytest.raises(FastcamError, match="camera 0: stopped after"):
            for frame in camera:
                frames.append(frame)
    assert len(frames) == 3
    assert (frames[0].picture == quarters()).all(), "RGB"
    assert frames[0].time < frames[1].time < frames[2].time


def test_without_pyav_sound_and_times_are_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_clip(tmp_path / "in.mp4", [0, 40, 80, 200])
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.warns(
        UserWarning, match=r"sound and timestamps are lost: pip install fastcam\[video\]"
    ):
        opened = video.open_source(source)
    with pytest.warns(UserWarning, match="MPEG-4 without sound"):
        report = video.explain(opened, tmp_path / "out.mp4", colors(), norm="clip", target="red")
    assert report.frames == 4
    monkeypatch.undo()
    result = contents(tmp_path / "out.mp4")
    assert len(result.times) == 4 and not result.sound
    assert result.codec == "mpeg4"


# --- colours


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
@pytest.mark.parametrize("said", [True, False])
def test_colours_by_arithmetic_are_those_of_swscale(
    matrix: str, full_range: bool, said: bool
) -> None:
    from fastcam.video.frame import Decoded

    height, width = (96, 160) if matrix == "bt601" else (720, 1280)
    frame = av.VideoFrame(width, height, "yuv420p")
    noise = np.random.default_rng(0)
    for plane in frame.planes:
        small = noise.integers(60, 190, (6, 8), dtype=np.uint8)
        plane.update(cv2.resize(small, (plane.line_size, plane.height)).tobytes())
    if said:
        frame.colorspace = 6 if matrix == "bt601" else 1
    frame.color_range = 2 if full_range else 1
    decoded = Decoded(frame, 0)
    planes = decoded.planes()
    assert planes is not None
    assert (planes.matrix, planes.full_range) == (matrix, full_range)
    difference = (planes.rgb().float() - decoded.rgb().float()).abs()
    assert difference.mean() < 1
    assert difference.max() <= 3


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_planes_are_turned_as_pictures_are(turns: int) -> None:
    from fastcam.video.frame import Decoded

    rgb = av.VideoFrame.from_ndarray(quarters(), format="rgb24")
    decoded = Decoded(rgb.reformat(format="yuv420p"), turns)
    planes = decoded.planes()
    assert planes is not None
    assert planes.size() == decoded.size() == tuple(decoded.rgb().shape[:2])
    assert (planes.rgb().float() - decoded.rgb().float()).abs().mean() < 1.5


# --- sinks


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    report = video.explain(iter(squares(4)), tmp_path / "new", colors(), target="red")
    assert report.frames == 4
    names = [path.name for path in sorted((tmp_path / "new").iterdir())]
    assert names == ["000000.png", "000001.png", "000002.png", "000003.png"]
    expected = list(video.explain(iter(squares(4)), None, colors(), target="red"))
    assert (pictures.read(tmp_path / "new" / "000002.png") == expected[2].picture).all()


def test_a_gif_keeps_times_and_colours(tmp_path: Path) -> None:
    frames = [Frame(square(8 * i), time, Fraction(1, 1000)) for i, time in enumerate((0, 40, 200))]
    video.explain(iter(frames), tmp_path / "out.gif", colors(), target="red", layout="side-by-side")
    with av.open(str(tmp_path / "out.gif")) as container:
        read = list(container.decode(video=0))
    assert [float(frame.pts * frame.time_base) for frame in read] == pytest.approx([0, 0.04, 0.2])
    shown = read[2].to_ndarray(format="rgb24")
    assert np.abs(shown[48, 24].astype(int) - (255, 0, 0)).max() < 10


def maps_in(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(  # noqa: SIM118
            file.metadata()["classes"]
        )


@pytest.mark.parametrize("capacity", [4, 6, 100_000])
def test_maps_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capacity: int) -> None:
    from fastcam.storage import writer

    monkeypatch.setattr(writer, "_CAPACITY", capacity)
    options = {"target": "red", "norm": "running"}
    report = video.explain(iter(squares(6)), tmp_path / "maps.safetensors", colors(), **options)
    assert report.frames == 6
    expected = list(video.explain(iter(squares(6)), None, colors(), **options))
    names = sorted(path.name for path in tmp_path.iterdir())
    shards = ["maps-00000.safetensors", "maps-00001.safetensors"]
    assert names == (shards if capacity < 6 else ["maps.safetensors"])
    assert report.files == [tmp_path / name for name in names]
    parts = [maps_in(tmp_path / name) for name in names]
    assert all(classes == {"0": "red"} for _, classes in parts)
    found = {name: torch.cat([tensors[name] for tensors, _ in parts]) for name in parts[0][0]}
    assert found["maps"].dtype == torch.float16
    maps = torch.stack([each.map for each in expected])
    torch.testing.assert_close(found["maps"].float(), maps, atol=1e-3, rtol=0)
    assert found["times"].tolist() == [index / 25 for index in range(6)]
    assert found["classes"].tolist() == [0] * 6
    for name, value in (
        ("scores", "score"), ("probabilities", "probability"), ("ranges", "range"),
    ):  # fmt: skip
        wanted = torch.tensor([getattr(each, value) for each in expected])
        torch.testing.assert_close(found[name], wanted)


def test_names_that_do_not_fit_into_one_file_of_maps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastcam.storage import writer

    monkeypatch.setattr(writer, "_HEAD", 584)
    shown = chroma("r", "g", "r")
    report = video.explain(shown, tmp_path / "maps.safetensors", colors(), target="top1")
    assert len(report.files) == 3
    assert [maps_in(path)[1] for path in report.files] == [
        {"0": "red"}, {"1": "green"}, {"0": "red"},
    ]  # fmt: skip


def test_pictures_of_jpegs_in_a_clip(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mp4", [0, 40, 100])
    video.explain(source, tmp_path / "out.mp4", colors(), target="red", codec="mjpeg", alpha=0.0)
    result = contents(tmp_path / "out.mp4")
    assert result.codec == "mjpeg"
    assert result.times == [Fraction(time, 1000) for time in (0, 40, 100)]
    assert result.sound
    assert np.abs(result.pictures[0][70, 30].astype(int) - quarters()[70, 30]).max() < 12
    with pytest.raises(UsageError, match="unknown codec vp9; choose from auto, h264, mjpeg"):
        video.explain(source, tmp_path / "out.mp4", colors(), codec="vp9")


# --- faults


def broken(frames: list[Frame], error: BaseException) -> Iterator[Frame]:
    yield from frames
    raise error


SINKS = ("out.mp4", "out.mkv", "out.gif", "out", "out.safetensors")


@pytest.mark.parametrize("sink", SINKS)
@pytest.mark.parametrize("stride", [1, 4])
def test_a_broken_source_keeps_every_frame_before(tmp_path: Path, sink: str, stride: int) -> None:
    with pytest.raises(FastcamError, match="broken"):
        video.explain(
            broken(squares(21), FastcamError("broken")), tmp_path / sink, colors(),
            target="red", batch=4, stride=stride,
        )  # fmt: skip
    if sink == "out":
        assert len(list((tmp_path / sink).iterdir())) == 21
    elif sink == "out.safetensors":
        assert len(maps_in(tmp_path / sink)[0]["maps"]) == 21
    else:
        assert len(contents(tmp_path / sink).times) == 21
    assert not [path for path in tmp_path.iterdir() if ".part" in path.name]


@pytest.mark.parametrize("option", [{}, {"norm": "clip"}, {"target": "clip"}])
def test_a_clip_cut_in_the_middle(tmp_path: Path, option: dict[str, str]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 64, 96, 3), dtype=np.uint8)
    whole = write_clip(
        tmp_path / "whole.mkv", [40 * i for i in range(40)], picture=lambda i: noise[i]
    )
    (tmp_path / "cut.mkv").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(FastcamError, match=r"cut\.mkv: (cut short|broken) after the frame at \d"):
        video.explain(tmp_path / "cut.mkv", tmp_path / "out.mp4", colors(), **option)
    assert 10 < len(contents(tmp_path / "out.mp4").times) < 30


def test_a_change_of_resolution(tmp_path: Path) -> None:
    frames = [Frame(quarters(), i, Fraction(1, 25)) for i in range(5)]
    frames += [Frame(quarters(64, 96), i, Fraction(1, 25)) for i in range(5, 8)]
    said = (
        r"the iterator: the frame size changes from 160x96 to 96x64 pixels "
        r"after the frame at 0\.16 s"
    )
    with pytest.raises(FastcamError, match=said):
        video.explain(iter(frames), tmp_path / "out.mp4", colors(), target="red")
    assert len(contents(tmp_path / "out.mp4").times) == 5

    for index, size in enumerate(((32, 48), (32, 48), (48, 32))):
        pictures.write(tmp_path / f"{index}.png", np.zeros((*size, 3), np.uint8))
    with pytest.raises(FastcamError, match=r"2\.png: .* to 32x48 pixels after"):
        video.explain(str(tmp_path / "*.png"), tmp_path / "out", colors(), target="red")
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_a_stream_that_changes_its_resolution(tmp_path: Path) -> None:
    with (tmp_path / "in.ts").open("wb") as whole:
        for size in ((96, 160), (64, 96)):
            part = tmp_path / "part.ts"
            shown = quarters(*size)
            write_clip(part, [0, 40, 80, 120], sound=None, picture=lambda _, shown=shown: shown)
            whole.write(part.read_bytes())
    with pytest.raises(FastcamError, match=r"in\.ts: .* to 96x64 pixels after the frame at"):
        video.explain(tmp_path / "in.ts", tmp_path / "out.mp4", colors(), target="red")
    assert len(contents(tmp_path / "out.mp4").times) == 4


def test_a_frame_that_does_not_decode(tmp_path: Path) -> None:
    for index in range(4):
        pictures.write(tmp_path / f"{index}.png", quarters())
    (tmp_path / "2.png").write_bytes(b"\x89PNG, but no more")
    with pytest.raises(FastcamError, match=r"2\.png: not a picture"):
        video.explain(str(tmp_path / "*.png"), tmp_path / "out.mp4", colors(), target="red")
    assert len(contents(tmp_path / "out.mp4").times) == 2

    clip = tmp_path / "in.avi"
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("png", rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "rgb24"
        for _ in range(6):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(quarters(), format="rgb24")))
        container.mux(stream.encode(None))
    data = clip.read_bytes()
    fourth = [i for i in range(len(data)) if data.startswith(b"\x89PNG", i)][3]
    clip.write_bytes(data[:fourth] + b"\0" * 60 + data[fourth + 60 :])
    with pytest.raises(FastcamError, match=r"in\.avi: broken after the frame at 0\.\d+ s"):
        video.explain(clip, tmp_path / "out2.mp4", colors(), target="red")
    assert len(contents(tmp_path / "out2.mp4").times) == 4, "those behind it are read too"


def test_zero_frames(tmp_path: Path) -> None:
    with pytest.raises(FastcamError, match="the iterator: contains no frame that can be decoded"):
        video.explain(iter([]), tmp_path / "out.mp4", colors())
    assert list(tmp_path.iterdir()) == []


def test_an_odd_size_is_padded(tmp_path: Path) -> None:
    frames = [quarters(61, 83)] * 3
    report = video.explain(iter(frames), tmp_path / "out.mp4", colors(), target="red")
    assert report.padded == (62, 84)
    assert contents(tmp_path / "out.mp4").pictures[0].shape == (62, 84, 3)


_FULL = """
import resource, signal, sys
from fractions import Fraction
import numpy as np
from fastcam.errors import FastcamError
from fastcam.video import Frame, explain
sys.path.insert(0, {tests!r})
from test_video import colors
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
noise = np.random.default_rng(0).integers(0, 256, (16, 96, 160, 3), dtype=np.uint8)
frames = (Frame(noise[i % 16], i, Fraction(1, 25)) for i in range(400))
try:
    explain(frames, {sink!r}, colors(), target="red", alpha=0.1)
except FastcamError as error:
    print(error.details["frames"], *error.details["files"], sep="\\n")
    raise
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files to simulate it")
@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out.gif"])
def test_a_full_disk_leaves_a_file_that_plays(tmp_path: Path, name: str) -> None:
    tests = Path(__file__).parent
    script = _FULL.format(tests=str(tests), limit=1_000_000, sink=str(tmp_path / name))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tests,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tests.parent), *sys.path])},
    )  # fmt: skip
    result = contents(tmp_path / name)
    assert 25 <= len(result.times) < 400
    assert result.times == [Fraction(index, 25) for index in range(len(result.times))]
    end = f"{float(result.times[-1]):.2f} s, the last one in the file: File too large"
    last = done.stderr.strip().splitlines()[-1]
    assert last.endswith(f"{name}: cannot be written after the frame at {end}"), done.stderr
    assert done.stdout.splitlines() == [str(len(result.times)), str(tmp_path / name)]
    noise = np.random.default_rng(0).integers(0, 256, (16, 96, 160, 3), dtype=np.uint8)
    shown = noise[(len(result.times) - 1) % 16].astype(float)
    likeness = [
        np.corrcoef(a.ravel(), b.ravel())[0, 1]
        for a, b in zip(
            np.array_split(result.pictures[-1], 4), np.array_split(shown, 4), strict=True
        )
    ]
    assert min(likeness) > 0.3, "the last frame is whole"
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files to simulate it")
def test_a_full_disk_keeps_the_maps_so_far(tmp_path: Path) -> None:
    tests = Path(__file__).parent
    out = tmp_path / "out.safetensors"
    script = _FULL.format(tests=str(tests), limit=100_000, sink=str(out))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tests,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tests.parent), *sys.path])},
    )  # fmt: skip
    assert "out.safetensors: cannot be written" in done.stderr.strip().splitlines()[-1]
    found, _ = maps_in(out)
    assert 30 < len(found["maps"]) < 400
    assert found["times"].tolist() == [index / 25 for index in range(len(found["maps"]))]
    assert [path.name for path in tmp_path.iterdir()] == ["out.safetensors"]


@pytest.mark.parametrize("sink", SINKS)
def test_what_was_written_is_listed(tmp_path: Path, sink: str) -> None:
    report = video.explain(iter(squares(4)), tmp_path / sink, colors(), target="red")
    found = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert set(report.files) == found
    assert len(report.files) == (4 if sink == "out" else 1)


@pytest.mark.parametrize("sink", SINKS)
def test_modes_follow_the_umask(tmp_path: Path, sink: str) -> None:
    before = os.umask(0o027)
    try:
        report = video.explain(iter(squares(4)), tmp_path / sink, colors(), target="red")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in report.files} == {0o640}


@pytest.mark.parametrize("sink", ["out.mp4", "out.mkv", "out.gif", "out.safetensors"])
def test_two_runs_with_one_output(tmp_path: Path, sink: str) -> None:
    """The one that ends last leaves its file, whole."""
    begun, ended = threading.Event(), threading.Event()

    def slow() -> Iterator[Frame]:
        yield from squares(10)
        begun.set()
        assert ended.wait(60)
        yield from (replace(frame, pts=frame.pts + 10) for frame in squares(10))

    reports = []

    def run() -> None:
        explained = video.explain(slow(), tmp_path / sink, colors(), target="red", batch=1)
        reports.append(explained)

    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(60)
    video.explain(iter(squares(5)), tmp_path / sink, colors(), target="red", batch=1)
    if sink.endswith("tensors"):
        assert len(maps_in(tmp_path / sink)[0]["maps"]) == 5
    else:
        assert len(contents(tmp_path / sink).times) == 5
    ended.set()
    thread.join(60)
    assert [report.frames for report in reports] == [20]
    if sink.endswith("tensors"):
        assert len(maps_in(tmp_path / sink)[0]["maps"]) == 20
    else:
        assert len(contents(tmp_path / sink).times) == 20
    assert [path.name for path in tmp_path.iterdir()] == [sink]


@pytest.mark.parametrize("batch", [1, 5])
def test_ctrl_c_keeps_what_is_done(tmp_path: Path, batch: int) -> None:
    done = []

    def interrupt() -> None:
        done.append(1)
        if len(done) == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        video.explain(
            iter(squares(200)), tmp_path / "out.mp4", colors(),
            target="red", batch=batch, progress=interrupt,
        )  # fmt: skip
    assert len(contents(tmp_path / "out.mp4").times) == 12
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_a_network_that_fails_ends_everything(tmp_path: Path) -> None:
    explainer = colors()

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory\nand more")

    explainer.model.module.register_forward_hook(fail)
    with pytest.raises(FastcamError, match="input of 96x96 pixels: out of memory"):
        video.explain(iter(squares(50)), tmp_path / "out.mp4", explainer, target="red")
    assert list(tmp_path.iterdir()) == []


def test_an_iterator_that_is_left_early(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mp4", [40 * index for index in range(60)])
    frames = video.explain(source, None, colors(), target="red")
    next(frames)
    assert any(each.name == "fastcam-decode" for each in threading.enumerate())
    frames.close()  # and nothing_left_behind looks at the rest


# --- threads


def test_the_decoder_waits_for_a_slow_encoder() -> None:
    made: list[int] = []
    held = threading.Event()

    def frames() -> Iterator[Frame]:
        for frame in squares(200):
            made.append(frame.pts)
            yield frame

    class Slow(video.Sink):
        def write(self, explained: video.ExplainedFrame) -> None:
            held.wait(30)
            self.frames += 1

    batch = 4
    finished = []

    def work() -> None:
        finished.append(video.explain(frames(), Slow(), colors(), target="red", batch=batch))

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(1)
    ahead = len(made)
    held.set()
    thread.join(60)
    assert finished[0].frames == 200
    # a batch waits on each side of the network, two pictures for the encoder; one a thread
    under_way = 1 + 2 * threads_abreast()
    assert ahead <= (2 + under_way) * batch + 2 + 4


@pytest.mark.parametrize("error", [FastcamError("full"), ZeroDivisionError("own")])
def test_an_error_behind_arrives_in_front(error: Exception) -> None:
    def consume(item: int) -> None:
        if item == 3:
            raise error

    behind = Behind(consume, 2, "fastcam-test")
    with pytest.raises(type(error)):
        for item in range(100):
            behind.put(item)
    behind.close()


def test_an_error_ahead_comes_behind_the_items() -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise FastcamError("at the end")

    ahead = Ahead(items(), 2, "fastcam-test")
    got = [next(ahead) for _ in range(5)]
    assert got == list(range(5))
    with pytest.raises(FastcamError, match="at the end"):
        next(ahead)
    with pytest.raises(StopIteration):
        next(ahead)
    ahead.close()


def test_report() -> None:
    class Nowhere(video.Sink):
        def write(self, explained: video.ExplainedFrame) -> None:
            assert explained.picture.shape == (SIDE, SIDE, 3)
            self.frames += 1

    report = video.explain(iter(squares(20)), Nowhere(), colors(), target="red")
    assert report.frames == 20
    assert report.stages.keys() == {"decode", "network", "draw", "encode"}
    assert report.slowest_stage in report.stages
    assert report.frames_per_second == pytest.approx(20 / report.seconds)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "runing"}, "norm runing: expected frame"),
        ({"norm": "fixed:2,1"}, "LOW below HIGH"),
        ({"norm": "fixed:1"}, "LOW below HIGH"),
        ({"norm": "clip:1"}, "expected frame"),
        ({"smooth": "ema:0"}, r"A in \(0, 1\]"),
        ({"smooth": "gauss"}, "S above 0"),
        ({"smooth": "box:3"}, "expected none"),
        ({"stride": 0}, "stride 0: expected at least 1"),
        ({"batch": 0}, "batch 0: expected at least 1"),
        ({"target": "purple"}, "unknown class purple"),
    ],
)
def test_options_that_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        video.explain(iter(squares(3)), tmp_path / "out.mp4", colors(), **options)
    assert list(tmp_path.iterdir()) == []


def interrupted(process: subprocess.Popen[str], until: Callable[[], bool]) -> str:
    """Ctrl-C for a program once ``until`` holds; what it said."""
    deadline = time.monotonic() + 60
    while not until():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    return process.communicate(timeout=60)[1]


def test_ctrl_c_while_standard_input_is_silent(tmp_path: Path) -> None:
    here = Path(__file__).parent
    process = subprocess.Popen(
        [sys.executable, "-m", "fastcam", "video", "-", str(tmp_path / "out.mp4"),
         "--raw", "96x96", "--model", "tiny_models:colors", "--method", "gradcam", "--batch", "1"],
        cwd=here, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(here.parent), *sys.path])},
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.buffer.write(bytes(96 * 96 * 3 * 30))
    process.stdin.buffer.flush()
    said = interrupted(process, lambda: any(tmp_path.glob(".fastcam-*.part.mp4")))
    assert process.returncode == 130, said
    assert "interrupted" in said
    assert len(contents(tmp_path / "out.mp4").times) > 0
