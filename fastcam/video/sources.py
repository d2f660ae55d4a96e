"""Where frames come from: clips, pictures, cameras, standard input, other programs' frames."""

from __future__ import annotations

import glob
import select
import sys
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import Self

from fastcam import pictures
from fastcam.errors import FastcamError, UsageError
from fastcam.pictures import Picture
from fastcam.video.frame import Decoded, Frame
from fastcam.video.pyav import av_library, has_av

if TYPE_CHECKING:
    import av

RATE = Fraction(25)
"""Frames a second where nothing says how many."""
_TIMEOUT = 20.0  # seconds that a network may be silent
_MICROSECONDS = Fraction(1, 1_000_000)
_PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


class Source(ABC):
    """Frames of one size, in order, with growing times.

    Iterating raises FastcamError where there is no frame, and behind the last good one where the
    source is broken or changes its size.
    """

    name: str
    """What an error calls it."""
    rate: Fraction = RATE
    """Frames a second, in the mean."""
    frames: int | None = None
    """How many there are, as far as is known."""
    sound: str | None = None
    """A file or URL whose sound belongs to the frames."""
    twice: bool = True
    """Whether it can be iterated over a second time."""

    def __iter__(self) -> Iterator[Frame]:
        last: Frame | None = None
        for frame in self._read():
            if last is not None and frame.size != last.size:
                (height, width), (before_height, before_width) = frame.size, last.size
                raise FastcamError(
                    f"{self.name}: {width}x{height} pixels {_place(last)}, "
                    f"but {before_width}x{before_height} up to there"
                )
            last = frame
            yield frame
        if last is None:
            raise FastcamError(f"{self.name}: no frame in it can be decoded")

    @abstractmethod
    def _read(self) -> Iterator[Frame]:
        """From the first frame on, also the second time."""

    def stop(self) -> None:  # noqa: B027
        """Ends an iteration that waits in another thread for bytes that may never come."""

    def close(self) -> None:  # noqa: B027
        """Lets go of files and devices, when no other thread reads from them any more."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Clip(Source):
    """A video file, a URL that FFmpeg opens, or a stream of bytes in any format that it knows.

    Args:
        source: a path, a URL, or an object with ``read``.
        raw: (width, height, frames a second) where the stream is nothing but RGB bytes.
        device: "cuda" decodes on the GPU where that can be (see :mod:`fastcam.video.cuda`).

    Raises:
        FastcamError: there is no such file, or no video in it; while iterating, behind the last
            frame that could be read, where it is broken or ends earlier than it says itself.
    """

    def __init__(
        self,
        source: Path | str | _Pipe,
        raw: tuple[int, int, Fraction] | None = None,
        device: str = "cpu",
    ) -> None:
        self.name = "-" if isinstance(source, _Pipe) else str(source)
        self.twice = not isinstance(source, _Pipe)
        self._source = source
        self._options: dict[str, Any] = {}
        if raw is not None:
            width, height, rate = raw
            self._options = {
                "format": "rawvideo",
                "options": {
                    "pixel_format": "rgb24",
                    "video_size": f"{width}x{height}",
                    "framerate": str(rate),
                },
            }
        elif "://" in self.name:
            self._options = {"timeout": _TIMEOUT}
        if device == "cuda":
            from fastcam.video import cuda

            self._options |= cuda.decoding(self.name)
        self._begun = False
        self._open()
        self.rate = self._stream.average_rate or RATE
        duration = self._container.duration or 0  # microseconds
        self.frames = self._stream.frames or round(duration / 1_000_000 * self.rate) or None
        if self.twice and self._container.streams.audio and (duration or "://" not in self.name):
            self.sound = self.name

    def _open(self) -> None:
        given = self._source if isinstance(self._source, _Pipe) else str(self._source)
        self._container = open_container(given, self.name, **self._options)
        if not self._container.streams.video:
            self._container.close()
            raise FastcamError(f"{self.name}: has no video in it")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"

    def _read(self) -> Iterator[Frame]:
        if self._begun:
            self._container.close()
            self._open()
        self._begun = True
        last: Frame | None = None
        damaged, end = False, 0.0
        try:
            for packet in self._container.demux(self._stream):
                if packet.size:  # the last one is empty and asks for the frames held back
                    damaged = packet.is_corrupt
                for decoded in packet.decode():
                    last = self._frame(decoded, last)
                    end = last.time + float((decoded.duration or 0) * last.time_base)
                    yield last
        except (av_library().FFmpegError, OSError) as error:
            raise FastcamError(f"{self.name}: broken {_place(last)}: {error.strerror}") from None
        if last is not None and (damaged or self._announced_end() - end > 1.5 / self.rate):
            raise FastcamError(f"{self.name}: cut short {_place(last)}")

    def _frame(self, decoded: av.VideoFrame, last: Frame | None) -> Frame:
        turns = round(decoded.rotation / 90) % 4  # degrees, counterclockwise
        aspect: Fraction = self._stream.sample_aspect_ratio or Fraction(1)
        if decoded.format.name == "cuda":
            from fastcam.video import cuda

            pixels: Any = cuda.planes(decoded, turns)
        else:
            pixels = Decoded(decoded, turns)
        return Frame(pixels, *self._when(decoded, last), 1 / aspect if turns % 2 else aspect)

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


class OpenCV(Source):
    """A camera, or a video file without PyAV: neither sound nor the frames' own times.

    Args:
        source: the camera's number, or a path.

    Raises:
        FastcamError: it cannot be opened; while iterating, where a camera ends.
    """

    def __init__(self, source: int | Path) -> None:
        import cv2

        live = isinstance(source, int)
        self.name = f"camera {source}" if live else str(source)
        if isinstance(source, Path) and not source.exists():
            raise FastcamError(f"{source}: no such file")
        self.twice = not live
        self._source: Any = source if live else str(source)
        self._live = live
        self._capture = cv2.VideoCapture(self._source)
        if not self._capture.isOpened():
            raise FastcamError(
                f"{self.name}: cannot be opened"
                if live
                else f"{self.name}: not a clip that can be read (by OpenCV; PyAV is missing)"
            )
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = Fraction(rate).limit_denominator(1001) if 1 <= rate <= 1000 else RATE
        count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.frames = count if count > 0 and not live else None
        self._begun = False

    def _read(self) -> Iterator[Frame]:
        if self._begun:
            self._capture.open(self._source)
        self._begun = True
        last: Frame | None = None
        start = time.monotonic()
        while True:
            found, picture = self._capture.read()
            if not found:
                break
            if self._live:
                microseconds = round(1e6 * (time.monotonic() - start))
                pts, base = max(microseconds, last.pts + 1 if last else 0), _MICROSECONDS
            else:
                pts, base = last.pts + 1 if last else 0, 1 / self.rate
            last = Frame(np.ascontiguousarray(picture[..., ::-1]), pts, base)
            yield last
        if self._live and last is not None:
            raise FastcamError(f"{self.name}: gives no more frames {_place(last)}")

    def close(self) -> None:
        self._capture.release()


class Pictures(Source):
    """Files of pictures in the order given, one a frame."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.name = str(paths[0].parent)
        self.frames = len(paths)
        self._paths = paths

    def _read(self) -> Iterator[Frame]:
        for index, path in enumerate(self._paths):
            self.name = str(path)
            yield Frame(pictures.read(path), index, 1 / self.rate)


class Frames(Source):
    """Frames, or pictures (H, W, 3) uint8 RGB, that somebody else makes, to iterate over once."""

    twice = False
    name = "the iterator"

    def __init__(self, frames: Iterable[Frame | Picture], rate: Fraction = RATE) -> None:
        self.rate = rate
        self._frames = frames

    def _read(self) -> Iterator[Frame]:
        for index, each in enumerate(self._frames):
            yield each if isinstance(each, Frame) else Frame(each, index, 1 / self.rate)


class _Pipe:
    """Standard input as FFmpeg reads it, with an end to waiting for bytes that do not come."""

    def __init__(self) -> None:
        self.ended = False

    def read(self, size: int) -> bytes:
        stdin: Any = sys.stdin.buffer
        with suppress(OSError, ValueError):  # a stream without a descriptor never waits
            descriptor = stdin.fileno()
            while not select.select([descriptor], [], [], 0.1)[0]:
                if self.ended:
                    return b""
            return b"" if self.ended else stdin.raw.read(size)
        return stdin.read(size)


class StandardInput(Clip):
    """Standard input: anything that FFmpeg recognises, Y4M for one, or raw RGB.

    Args:
        raw: as for :class:`Clip`.
    """

    def __init__(self, raw: tuple[int, int, Fraction] | None = None) -> None:
        self._pipe = _Pipe()
        super().__init__(self._pipe, raw)

    def stop(self) -> None:
        self._pipe.ended = True


def open_source(
    source: Source | Iterable[Frame | Picture] | Path | str | int,
    raw: str | None = None,
    device: str = "cpu",
) -> Source:
    """What a person or a program names, as a source.

    ==================================== =========================================================
    a Source                             itself
    a number                             the camera of that number
    ``-``                                standard input
    ``scheme://...``                     a URL that FFmpeg opens
    a folder, or a pattern with ``*?[``  the pictures in it or that match, sorted by name
    any other text or path               a clip
    anything else                        an iterable of frames or pictures
    ==================================== =========================================================

    Args:
        source: as in the table.
        raw: "WIDTHxHEIGHT" or "WIDTHxHEIGHT@RATE" where ``-`` carries nothing but RGB bytes.
        device: as for :class:`Clip`.

    Raises:
        UsageError: ``raw`` is not of that form, or not for standard input.
        FastcamError: the source cannot be opened.

    Warns:
        UserWarning: PyAV is missing, and with it a file's sound and times.
    """
    if raw is not None and source != "-":
        raise UsageError(f"raw {raw}: only for frames on standard input, which is named -")
    if isinstance(source, Source):
        return source
    if not isinstance(source, (Path, str, int)):
        return Frames(source)
    text = str(source)
    if text == "-":
        return StandardInput(None if raw is None else _raw_format(raw))
    if text.isdecimal() and not Path(text).exists():
        return OpenCV(int(text))
    if "://" in text:
        return Clip(text, device=device)
    path = Path(text)
    if path.is_dir():
        found = [each for each in path.iterdir() if each.suffix.lower() in _PICTURE_SUFFIXES]
        return _pictures(found, f"{text}: no picture in this folder")
    if glob.has_magic(text) and not path.exists():
        return _pictures([Path(each) for each in glob.glob(text)], f"{text}: matches no file")
    if not has_av():
        warnings.warn(
            "PyAV is missing, so sound and times are lost: pip install fastcam[video]", stacklevel=2
        )
        return OpenCV(path)
    return Clip(path, device=device)


def _pictures(paths: list[Path], complaint: str) -> Pictures:
    if not paths:
        raise FastcamError(complaint)
    return Pictures(sorted(paths))


def _raw_format(text: str) -> tuple[int, int, Fraction]:
    size, _, rate = text.partition("@")
    try:
        width, height = map(int, size.lower().split("x"))
        per_second = Fraction(rate) if rate else RATE
        if width > 0 and height > 0 and per_second > 0:
            return width, height, per_second
    except (ValueError, ZeroDivisionError):
        pass
    raise UsageError(f"raw {text}: expected WIDTHxHEIGHT or WIDTHxHEIGHT@RATE, as in 640x480@25")


def _place(last: Frame | None) -> str:
    return "at its start" if last is None else f"after the frame at {last.time:.2f} s"


def open_container(given: Any, name: str, **options: Any) -> Any:
    """PyAV's container of a file, a URL or a stream, for reading."""
    try:
        return av_library().open(given, **options)
    except FileNotFoundError:
        raise FastcamError(f"{name}: no such file") from None
    except (av_library().FFmpegError, OSError) as error:
        raise FastcamError(f"{name}: not a clip that can be read ({error.strerror})") from None
