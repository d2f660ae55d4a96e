"""Clips keep their times, sound, orientation and colours; broken ones keep what was read."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from clips import contents, quarters, write_clip

from fastcam.errors import FastcamError, UsageError
from fastcam.video import Frame
from fastcam.video.damage import announced_end
from fastcam.video.sources import Clip
from fastcam.video.writer import Writer

UNEVEN = np.cumsum(np.random.default_rng(0).integers(15, 80, 40)).tolist()


def copy(source: Path, target: Path) -> Writer:
    with Clip(source) as clip, Writer(target, clip.rate, clip.sound) as writer:
        for frame in clip:
            writer.write(frame)
    return writer


@pytest.mark.parametrize("source", ["in.mp4", "in.mkv", "in.mov"])
@pytest.mark.parametrize("time_base", [Fraction(1, 1000), Fraction(1, 90000)])
def test_times_and_sound_are_kept(tmp_path: Path, source: str, time_base: Fraction) -> None:
    times = [round(time / 1000 / time_base) for time in UNEVEN]
    before = contents(write_clip(tmp_path / source, times, time_base))
    writer = copy(tmp_path / source, tmp_path / "out.mp4")
    after = contents(tmp_path / "out.mp4")
    assert after.times == before.times
    assert [data for _, data in after.sound] == [data for _, data in before.sound]
    shifts = [float(a - b) for (a, _), (b, _) in zip(after.sound, before.sound, strict=True)]
    assert np.abs(shifts).max() < 1e-3
    assert (after.codec, after.pix_fmt) == ("h264", "yuv420p")
    assert writer.frames == len(times)


def test_the_index_comes_first_and_sound_lies_between_the_frames(tmp_path: Path) -> None:
    write_clip(tmp_path / "in.mkv", [40 * index for index in range(200)])
    copy(tmp_path / "in.mkv", tmp_path / "out.mp4")
    data = (tmp_path / "out.mp4").read_bytes()
    assert data.find(b"moov") < data.find(b"mdat")
    sound = contents(tmp_path / "out.mp4").sound
    places = [data.find(packet) for _, packet in sound if len(packet) > 30]
    assert max(np.diff(sorted(places))) > 200, "video between the packets of sound"


@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_rotation_is_applied(tmp_path: Path, rotation: int) -> None:
    path = write_clip(tmp_path / "in.mp4", [0, 40, 80], rotation=rotation)
    copy(path, tmp_path / "out.mp4")
    found, expected = cv2.VideoCapture(str(path)).read()  # OpenCV turns the picture too
    assert found
    for reread in (path, tmp_path / "out.mp4"):
        with Clip(reread) as clip:
            picture = next(iter(clip)).picture
        assert picture.shape == expected.shape
        assert np.abs(picture.astype(int) - expected[..., ::-1]).mean() < 4


@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_pixels_that_are_not_square_turn_with_the_picture(tmp_path: Path, rotation: int) -> None:
    wide = Fraction(4, 3)
    path = write_clip(tmp_path / "in.mp4", [0, 40], rotation=rotation, pixel_aspect=wide)
    copy(path, tmp_path / "out.mp4")
    assert contents(path).pixel_aspect == wide
    turned = 1 / wide if rotation % 180 else wide
    assert contents(tmp_path / "out.mp4").pixel_aspect == turned


@pytest.mark.parametrize("tag", [{}, *({"DURATION": text} for text in ("", "3 s", "a:b:c"))])
def test_a_duration_of_any_format_is_read(tmp_path: Path, tag: dict[str, str]) -> None:
    with Clip(write_clip(tmp_path / "in.mkv", [0, 40], sound=None)) as clip:
        # FFmpeg writes no such file itself
        stream = SimpleNamespace(duration=None, metadata=tag)
        assert announced_end(clip._container, stream) == 0


def test_colours_are_kept(tmp_path: Path) -> None:
    write_clip(tmp_path / "in.mp4", [0, 40])
    copy(tmp_path / "in.mp4", tmp_path / "out.mp4")
    with Clip(tmp_path / "out.mp4") as clip:
        picture = next(iter(clip)).picture
    for y, x in ((20, 30), (20, 130), (70, 30), (70, 130)):
        assert np.abs(picture[y, x].astype(int) - quarters()[y, x]).max() <= 8


def test_odd_sizes_are_padded(tmp_path: Path) -> None:
    picture = quarters(61, 83)
    with Writer(tmp_path / "out.mp4", Fraction(25)) as writer:
        writer.write(Frame(picture, 0, Fraction(1, 25)))
    assert writer.padded == (62, 84)
    (result,) = contents(tmp_path / "out.mp4").pictures
    assert result.shape == (62, 84, 3)
    assert np.abs(result[-1, -1].astype(int) - picture[-1, -1]).max() < 12


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("share", [0.4, 0.8])
def test_a_clip_that_is_cut_short(tmp_path: Path, suffix: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 64, 96, 3), dtype=np.uint8)
    times = [40 * index for index in range(60)]
    whole = write_clip(tmp_path / f"whole{suffix}", times, picture=lambda index: noise[index])
    data = whole.read_bytes()
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(data[: int(share * len(data))])
    with pytest.raises(FastcamError, match=r"cut\.\w+: (cut short|broken) after the frame at \d"):
        copy(cut, tmp_path / "out.mp4")
    result = contents(tmp_path / "out.mp4")
    assert 0.5 * share * 60 < len(result.times) < 60
    assert result.times == [Fraction(time, 1000) for time in times[: len(result.times)]]
    assert result.sound[-1][0] <= result.times[-1] + 0.2


def test_what_was_written_before_an_interruption_plays(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mp4", [40 * index for index in range(100)])
    with (
        pytest.raises(KeyboardInterrupt),
        Clip(source) as clip,
        Writer(tmp_path / "out.mp4", clip.rate, clip.sound) as writer,
    ):
        for frame in clip:
            writer.write(frame)
            if writer.frames == 20:
                raise KeyboardInterrupt
    result = contents(tmp_path / "out.mp4")
    assert len(result.times) == 20
    assert result.sound[-1][0] < 1.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]


def test_nothing_written_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "out.mp4").write_text("an older one")
    with pytest.raises(ZeroDivisionError), Writer(tmp_path / "out.mp4", Fraction(25)):
        raise ZeroDivisionError
    assert [path.read_text() for path in tmp_path.iterdir()] == ["an older one"]


def test_files_that_are_no_clips(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no clip")
    (tmp_path / "empty.mp4").write_bytes(b"")
    for name, message in (
        ("text.mp4", "not a clip"),
        ("empty.mp4", "not a clip"),
        ("none.mp4", "no such file"),
        (".", "not a clip"),
    ):
        with pytest.raises(FastcamError, match=message):
            Clip(tmp_path / name)


def test_where_a_clip_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"must be one of \.mp4"):
        Writer(tmp_path / "out.gif", Fraction(25))
    (tmp_path / "file").write_text("")
    frame = Frame(quarters(), 0, Fraction(1, 25))
    with (
        pytest.raises(FastcamError, match="cannot be written"),
        Writer(tmp_path / "file" / "out.mp4", Fraction(25)) as writer,
    ):
        writer.write(frame)
