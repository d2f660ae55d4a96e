"""Sound is copied or encoded, and whatever is wrong with it, the pictures are kept."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import av, contents, quarters, write_clip
from numpy.typing import NDArray
from test_cli import run

from fastcam.video.sound import Sound
from fastcam.video.sources import Clip
from fastcam.video.writer import Writer

FRAMES = 50  # 2 s
ONSET = 1.25  # seconds
ONE_TONE = 700  # per second; the other channel is silent


def write(path: Path, codec: str, rate: int = 48_000, layout: str = "stereo") -> Path:
    """A clip whose first channel has a tone from ONSET on."""
    time = np.arange(2 * rate) / rate
    channels = 2 if layout == "stereo" else int(layout.split()[0])
    sound = np.zeros((len(time), channels))
    sound[:, 0] = (time >= ONSET) * np.sin(2 * np.pi * ONE_TONE * time) / 2
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.height, video.width = 96, 160
        video.pix_fmt = "yuv420p"
        audio = container.add_stream(codec, rate=rate, layout=layout)
        for index in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(quarters(), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(video.encode(frame))
            part = sound[index * rate // 25 : (index + 1) * rate // 25]
            samples = (part * 32767).astype(np.int16).reshape(1, -1)
            tone = av.AudioFrame.from_ndarray(samples, format="s16", layout=layout)
            tone.rate, tone.pts, tone.time_base = rate, index * rate // 25, Fraction(1, rate)
            container.mux(audio.encode(tone))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
    return path


def copy(source: Path, target: Path) -> list[str]:
    """The warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Clip(source) as clip, Writer(target, clip.rate, clip.sound) as writer:
            for frame in clip:
                writer.write(frame)
    assert sorted(target.parent.glob(".*")) == []
    return [str(each.message) for each in caught]


def decoded(path: Path) -> tuple[str, float, NDArray[np.float32]]:
    """The codec, and when its samples (N, 2) at 48 kHz begin, after the first frame."""
    with av.open(str(path)) as container:
        first = next(container.decode(video=0)).time
    with av.open(str(path)) as container:
        (stream,) = container.streams.audio
        frames = list(container.decode(stream))
        to = av.AudioResampler("flt", "stereo", 48_000)
        samples = np.concatenate([f.to_ndarray()[0] for each in frames for f in to.resample(each)])
        codec = stream.codec_context.codec.canonical_name
    return codec, frames[0].time - first, samples.reshape(-1, 2)


def heard(path: Path) -> tuple[str, float, float]:
    """The codec, when the tone begins, and how loud it is."""
    codec, start, samples = decoded(path)
    loud = np.abs(samples[:, 0]) > 0.1
    assert np.abs(samples[:, 1]).max() < 0.01, "channels are mixed"
    spectrum = np.abs(np.fft.rfft(samples[-24_000:-4_000, 0]))
    assert abs(np.argmax(spectrum) * 48_000 / 20_000 - ONE_TONE) < 3
    return codec, start + loud.argmax() / 48_000, float(np.abs(samples).max())


@pytest.mark.parametrize(
    ("codec", "source", "target", "rate"),
    [
        ("pcm_s16le", ".mkv", ".mp4", 48_000),
        ("pcm_s16le", ".mkv", ".mp4", 192_000),
        ("pcm_s16le", ".avi", ".mp4", 44_100),
        ("pcm_mulaw", ".avi", ".m4v", 8_000),
        ("libopus", ".mkv", ".mov", 48_000),
        ("flac", ".mkv", ".mov", 44_100),
    ],
)
def test_sound_that_the_format_cannot_hold_is_encoded(
    tmp_path: Path, codec: str, source: str, target: str, rate: int
) -> None:
    path = write(tmp_path / f"in{source}", codec, rate)
    (said,) = copy(path, tmp_path / f"out{target}")
    name = codec.removeprefix("lib")
    assert f"the sound is encoded as AAC because {target} cannot hold {name}" in said
    assert said.endswith("; choose .mkv to copy it")
    assert len(contents(tmp_path / f"out{target}").times) == FRAMES
    _, before, level = heard(path)
    found, after, new_level = heard(tmp_path / f"out{target}")
    assert found == "aac"
    assert abs(after - before) < 2e-3
    assert abs(new_level - level) < 0.1


@pytest.mark.parametrize(
    ("codec", "source", "target"),
    [
        ("aac", ".ts", ".mp4"),
        ("aac", ".ts", ".mov"),
        ("aac", ".ts", ".mkv"),
        ("mp2", ".ts", ".mp4"),
        ("pcm_s16le", ".mov", ".mp4"),
        ("libopus", ".ts", ".mp4"),
        ("libopus", ".mkv", ".mkv"),
    ],
)
def test_other_sound_is_copied(tmp_path: Path, codec: str, source: str, target: str) -> None:
    path = write(tmp_path / f"in{source}", codec)
    assert copy(path, tmp_path / f"out{target}") == []
    assert len(contents(tmp_path / f"out{target}").times) == FRAMES
    before, after = decoded(path), decoded(tmp_path / f"out{target}")
    assert abs(before[1] - after[1]) < 2e-3
    assert before[0] == after[0] or {before[0], after[0]} == {"mp2", "mp3"}  # one code in .mp4
    np.testing.assert_allclose(before[2], after[2], atol=1e-4)  # decoders of 16 bits, of floats


def test_sound_that_cannot_be_encoded_is_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "in.mkv", "pcm_s16le", layout="24 channels")
    (said,) = copy(path, tmp_path / "out.mp4")
    assert "the sound is left out because .mp4 cannot hold pcm_s16le (" in said
    result = contents(tmp_path / "out.mp4")
    assert (len(result.times), result.sound) == (FRAMES, [])


def test_sound_that_cannot_be_opened_is_left_out(tmp_path: Path) -> None:
    with (
        Clip(write_clip(tmp_path / "in.mp4", [0, 40, 80])) as clip,
        pytest.warns(UserWarning, match="the sound is left out: .*none.mp4: no such file"),
        Writer(tmp_path / "out.mp4", clip.rate, str(tmp_path / "none.mp4")) as writer,
    ):
        for frame in clip:
            writer.write(frame)
    assert len(contents(tmp_path / "out.mp4").times) == 3


@pytest.mark.parametrize("target", ["out.mp4", "out.mkv"])
def test_a_packet_that_is_refused_ends_the_sound_alone(
    tmp_path: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "in.mp4", "aac")
    read = Sound._read

    def back_in_time(self: Sound) -> Iterator[Any]:
        for packet in read(self):
            if packet.dts * packet.time_base > ONSET:
                packet.dts = packet.pts = 0
            yield packet

    monkeypatch.setattr(Sound, "_read", back_in_time)
    (said,) = copy(path, tmp_path / target)
    assert "the sound ends at 0.00 s because its next packet cannot be written: " in said
    result = contents(tmp_path / target)
    assert len(result.times) == FRAMES
    assert ONSET - 0.05 < result.sound[-1][0] < ONSET + 0.01


def test_the_command_writes_the_clip_with_encoded_sound(tmp_path: Path) -> None:
    path = write(tmp_path / "in.mkv", "pcm_s16le")
    with pytest.warns(UserWarning, match=r"the sound is encoded as AAC because \.mp4 cannot hold"):
        done = run(
            "video", path, tmp_path / "out.mp4", "--model", "digits", "--target", "7", "--json"
        )
    assert done.exit_code == 0
    assert json.loads(done.stdout)["frames"] == FRAMES
    assert heard(tmp_path / "out.mp4")[0] == "aac"
