"""Clips in and out with PyAV: every frame with its own time, upright, and the sound beside it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from typing_extensions import Self

from fastcam import render
from fastcam.errors import FastcamError, UsageError
from fastcam.explainer import Explainer
from fastcam.pictures import Picture, cannot_write, temporary_name

if TYPE_CHECKING:
    import av

_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv")
_H264 = {"crf": "23", "preset": "veryfast"}


@dataclass(frozen=True)
class Frame:
    """One picture of a clip and when it is shown."""

    picture: Picture
    """(H, W, 3), RGB, upright."""
    pts: int
    time_base: Fraction
    pixel_aspect: Fraction = Fraction(1)
    """Width over height of one pixel as shown."""

    @property
    def time(self) -> float:
        """Seconds."""
        return float(self.pts * self.time_base)


class Clip:
    """A video file to iterate over once.

    Raises:
        FastcamError: there is no such file, or no video in it; while iterating, behind the last
            frame that could be read, where it is broken or ends earlier than it says itself.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._container = _open(path)
        if not self._container.streams.video:
            self._container.close()
            raise FastcamError(f"{path}: has no video in it")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self._size = self._stream.width, self._stream.height  # that of the first frame
        self._reformatter = _av().video.reformatter.VideoReformatter()  # keeps its tables
        self.rate = self._stream.average_rate or Fraction(25)
        """Frames a second, in the mean."""

    @property
    def frames(self) -> int | None:
        """How many frames there are, as far as the file says."""
        duration = self._container.duration or 0  # microseconds
        return self._stream.frames or round(duration / 1_000_000 * self.rate) or None

    def __iter__(self) -> Iterator[Frame]:
        last: Frame | None = None
        damaged, end = False, 0.0
        try:
            for packet in self._container.demux(self._stream):
                if packet.size:  # the last one is empty and asks for the frames held back
                    damaged = packet.is_corrupt
                for decoded in packet.decode():
                    last = self._upright(decoded, *self._when(decoded, last))
                    end = last.time + float((decoded.duration or 0) * last.time_base)
                    yield last
        except (_av().FFmpegError, OSError) as error:
            raise FastcamError(f"{self.path}: broken {_place(last)}: {error.strerror}") from None
        if last is None:
            raise FastcamError(f"{self.path}: no frame in it can be decoded")
        if damaged or self._announced_end() - end > 1.5 / self.rate:
            raise FastcamError(f"{self.path}: cut short {_place(last)}")

    def _upright(self, decoded: av.VideoFrame, pts: int, time_base: Fraction) -> Frame:
        """The frame as it is to be seen."""
        picture = self._reformatter.reformat(decoded, *self._size, format="rgb24").to_ndarray()
        turns = round(decoded.rotation / 90)  # degrees, counterclockwise
        aspect: Fraction = self._stream.sample_aspect_ratio or Fraction(1)
        return Frame(
            np.ascontiguousarray(np.rot90(picture, turns)),
            pts,
            time_base,
            1 / aspect if turns % 2 else aspect,
        )

    def _when(self, decoded: av.VideoFrame, last: Frame | None) -> tuple[int, Fraction]:
        """pts and time base; a frame without a time of its own comes one period after the last."""
        time_base: Fraction = decoded.time_base or self._stream.time_base
        if decoded.pts is not None and (last is None or decoded.pts > last.pts):
            return decoded.pts, time_base
        period = max(1, round(1 / (self.rate * time_base)))
        return (last.pts + period if last is not None else 0), time_base

    def _announced_end(self) -> float:
        """When the last frame ends by what the file says, in seconds; 0 where it says nothing."""
        stream = self._stream
        if stream.duration is not None:
            return float(((stream.start_time or 0) + stream.duration) * stream.time_base)
        try:  # Matroska has a tag, which is any text that its writer chose
            hours, minutes, seconds = stream.metadata["DURATION"].split(":")
            return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
        except (KeyError, ValueError):
            return 0

    def close(self) -> None:
        self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Writer:
    """An H.264 file that frames are written to, with their own times and another file's sound.

    The file appears under its name when the ``with`` block ends; where that is an exception, with
    the frames that were written so far and no more sound than those. Pictures of odd width or
    height are padded by a row or column (see :attr:`padded`), for the format needs even ones.

    Args:
        path: .mp4, .m4v, .mov or .mkv.
        rate: frames a second, in the mean.
        sound: a file whose sound is copied as it is.

    Raises:
        UsageError: another suffix.
        FastcamError: the file cannot be written.

    Warns:
        UserWarning: this kind of file cannot hold this kind of sound, and goes without.
    """

    def __init__(self, path: Path, rate: Fraction, sound: Path | None = None) -> None:
        if path.suffix.lower() not in _SUFFIXES:
            raise UsageError(f"{path}: the suffix must be one of {', '.join(_SUFFIXES)}")
        self.path = path
        self.frames = 0
        self.padded: tuple[int, int] | None = None
        """(height, width) in the file where it is not that of the pictures."""
        self._rate = rate
        self._temporary = temporary_name(path)
        self._container: Any = None
        self._stream: Any = None
        self._sound = _Sound(sound) if sound is not None else None
        self._reformatter = _av().video.reformatter.VideoReformatter()

    def write(self, frame: Frame) -> None:
        """Appends a frame; all have one size and pixel aspect, and times grow."""
        try:
            if self._container is None:
                self._start(frame)
            picture = frame.picture
            if self.padded is not None:
                height, width = picture.shape[:2]
                growth = ((0, height % 2), (0, width % 2), (0, 0))
                picture = np.pad(picture, growth, mode="edge")
            rgb = _av().VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            yuv = self._reformatter.reformat(
                rgb, format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
            )
            yuv.pts, yuv.time_base = frame.pts, frame.time_base
            self._mux(self._stream.encode(yuv))
            self.frames += 1
        except (_av().FFmpegError, OSError) as error:
            raise cannot_write(self.path, error) from error

    def close(self, complete: bool = True) -> None:
        """Finishes the file; not ``complete``: without the sound behind the last frame."""
        try:
            if self.frames:
                self._mux(self._stream.encode(None))
                if self._sound is not None and complete:
                    self._sound.copy_until(None, self._container)
                self._container.close()
                self._temporary.replace(self.path)
        except (_av().FFmpegError, OSError) as error:
            raise cannot_write(self.path, error) from error
        finally:
            self._container = None
            if self._sound is not None:
                self._sound.close()
            with suppress(OSError):  # it has been renamed, or could not be made
                self._temporary.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(complete=kind is None)

    def _start(self, frame: Frame) -> None:
        height, width = frame.picture.shape[:2]
        even = height + height % 2, width + width % 2
        self.padded = None if even == (height, width) else even
        self.path.parent.mkdir(parents=True, exist_ok=True)
        options = {} if self.path.suffix.lower() == ".mkv" else {"movflags": "+faststart"}
        self._container = _av().open(str(self._temporary), "w", options=options)
        stream = self._container.add_stream("libx264", rate=self._rate, options=_H264)
        stream.height, stream.width = even
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = frame.time_base
        stream.codec_context.sample_aspect_ratio = frame.pixel_aspect
        # 1 is BT.709 in all three lists, and the limited range
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1
        self._stream = stream
        if self._sound is not None:
            self._sound.add_to(self._container)

    def _mux(self, packets: Iterable[Any]) -> None:
        """Writes video packets, each behind the sound of its time."""
        for packet in packets:
            if self._sound is not None and packet.dts is not None:
                self._sound.copy_until(packet.dts * packet.time_base, self._container)
            self._container.mux(packet)


class _Sound:
    """The sound tracks of a file, copied packet by packet."""

    def __init__(self, path: Path) -> None:
        self._source = _open(path)
        self._tracks: dict[Any, Any] = {}
        self._packets: Iterator[Any] = iter(())
        self._next: Any = None

    def add_to(self, container: Any) -> None:
        for track in self._source.streams.audio:
            try:
                self._tracks[track] = container.add_stream_from_template(track)
            except ValueError as error:
                warnings.warn(f"the sound is left out: {error}; try .mkv or .mov", stacklevel=4)
        if self._tracks:
            self._packets = self._source.demux(*self._tracks)
            self._advance()

    def copy_until(self, time: Fraction | None, container: Any) -> None:
        """Writes what comes before ``time`` in seconds, or all that is left."""
        while self._next is not None:
            if time is not None and self._next.dts * self._next.time_base >= time:
                return
            self._next.stream = self._tracks[self._next.stream]
            container.mux(self._next)
            self._advance()

    def _advance(self) -> None:
        try:
            self._next = next((each for each in self._packets if each.dts is not None), None)
        except _av().FFmpegError:  # the picture is broken at the same place and says so
            self._next = None

    def close(self) -> None:
        self._source.close()


def explain(
    frames: Iterable[Frame],
    explainer: Explainer,
    batch: int = 16,
    colormap: str = "turbo",
    alpha: float = 0.5,
) -> Iterator[Frame]:
    """The frames with the heat of their class over them, its name and probability in the corner.

    Each frame's map is brought to [0, 1] by itself; one that is 0 everywhere is cold everywhere.

    Args:
        frames: of one size.
        explainer: its first class is drawn.
        batch: how many frames go through the network together.
        colormap, alpha: as in :func:`fastcam.render.overlay`.
    """
    model = explainer.model
    for group in _batches(frames, batch):
        pictures = torch.from_numpy(np.stack([frame.picture for frame in group]))
        explained = explainer(pictures)
        region = model.preprocessing.region(*pictures.shape[1:3])
        heated = render.heat(pictures, explained.heat(0), region, colormap, alpha).numpy()
        for index, (frame, picture) in enumerate(zip(group, heated, strict=True)):
            name = model.class_name(int(explained.class_ids[index, 0]))
            render.caption(picture, render.Title(name, f"{explained.probabilities[index, 0]:.0%}"))
            yield replace(frame, picture=picture)


def _batches(frames: Iterable[Frame], size: int) -> Iterator[list[Frame]]:
    """Lists of ``size`` frames; a clip that breaks gives what it had before it raises."""
    group: list[Frame] = []
    try:
        for frame in frames:
            group.append(frame)
            if len(group) == size:
                yield group
                group = []
    except FastcamError:
        if group:
            yield group
        raise
    if group:
        yield group


def _av() -> Any:
    """PyAV, which is an extra."""
    try:
        import av
    except ImportError:
        raise FastcamError("clips need PyAV: pip install fastcam[video]") from None
    return av


def _open(path: Path) -> Any:
    try:
        return _av().open(str(path))
    except FileNotFoundError:
        raise FastcamError(f"{path}: no such file") from None
    except (_av().FFmpegError, OSError) as error:
        raise FastcamError(f"{path}: not a clip that can be read ({error.strerror})") from None


def _place(last: Frame | None) -> str:
    return "at its start" if last is None else f"after the frame at {last.time:.2f} s"
