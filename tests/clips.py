"""Clips made for the tests. What imports this is skipped where PyAV is missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

av = pytest.importorskip("av", reason="PyAV is missing: nothing that needs clips is tested")

Picture = NDArray[np.uint8]
MILLISECONDS = Fraction(1, 1000)


def quarters(height: int = 96, width: int = 160) -> Picture:
    """Red, green, blue and grey, so that a turned or mirrored picture shows."""
    picture = np.full((height, width, 3), 128, np.uint8)
    picture[: height // 2, : width // 2] = (230, 20, 20)
    picture[: height // 2, width // 2 :] = (20, 230, 20)
    picture[height // 2 :, : width // 2] = (20, 20, 230)
    return picture


def write_clip(
    path: Path,
    times: Sequence[int],
    time_base: Fraction = MILLISECONDS,
    picture: Callable[[int], Picture] = lambda index: quarters(),
    sound: str | None = "aac",
    rotation: int = 0,
    pixel_aspect: Fraction = Fraction(1),
) -> Path:
    """H.264 with frames at these times and a tone as long as they last."""
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        video = container.add_stream("libx264", rate=25, options={"crf": "12"})
        video.height, video.width = picture(0).shape[:2]
        video.pix_fmt = "yuv420p"
        video.codec_context.time_base = time_base
        video.codec_context.sample_aspect_ratio = pixel_aspect
        if rotation:
            video.set_display_rotation(rotation)
        audio = container.add_stream(sound, rate=8000, layout="mono") if sound else None
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(index), format="rgb24")
            frame.pts, frame.time_base = time, time_base
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            tone = np.sin(np.arange(1024) / 3).reshape(1, -1)
            fmt = audio.codec_context.format.name
            samples = (20000 * tone).astype(np.int16) if fmt == "s16" else tone.astype(np.float32)
            for start in range(0, int(8000 * times[-1] * time_base), 1024):
                frame = av.AudioFrame.from_ndarray(samples, format=fmt, layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = 8000, start, Fraction(1, 8000)
                container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return path


@dataclass
class Contents:
    """What another reader finds in a clip."""

    times: list[Fraction]
    sound: list[tuple[Fraction, bytes]]
    pictures: list[Picture]
    codec: str
    pix_fmt: str
    pixel_aspect: Fraction


def contents(path: Path) -> Contents:
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        frames = list(container.decode(video))
        codec, pix_fmt = video.codec_context.name, video.codec_context.pix_fmt
        pixel_aspect = video.sample_aspect_ratio
    with av.open(str(path)) as container:
        packets = container.demux(container.streams.audio) if container.streams.audio else ()
        sound = [(p.pts * p.time_base, bytes(p)) for p in packets if p.pts is not None]
    return Contents(
        times=[frame.pts * frame.time_base for frame in frames],
        sound=sound,
        pictures=[frame.to_ndarray(format="rgb24") for frame in frames],
        codec=codec,
        pix_fmt=pix_fmt,
        pixel_aspect=pixel_aspect,
    )
