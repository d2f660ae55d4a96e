"""Reads frames from clips, pictures, cameras, standard input or iterables."""

from __future__ import annotations

import glob
import re
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
from torch import Tensor
from typing_extensions import Self

from fastcam import pictures
from fastcam.errors import FastcamError, UsageError
from fastcam.pictures.given import pictures_of
from fastcam.video.damage import Damage, is_cover, place
from fastcam.video.frame import Decoded, Frame
from fastcam.video.pyav import av_library, has_av

if TYPE_CHECKING:
    import av

RATE = Fraction(25)
"""The default frame rate, per second."""
_TIMEOUT = 20.0  # seconds without network data
_MICROSECONDS = Fraction(1, 1_000_000)
_PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


class Source(ABC):
    """Frames of one size, in order of increasing time.

    Iterating raises FastcamError if there are no frames, and after the last good frame if the
    source is broken or the frame size changes.
    """

    name: str
    """The name in error messages."""
    rate: Fraction = RATE
    """The mean frame rate, per second."""
    frames: int | None = None
    """The number of frames, if known."""
    sound: str | None = None
    """A file or URL with the frames' sound."""
    twice: bool = True
    """Whether it can be iterated over twice."""

    @property
    def lost_packets(self) -> int:
        """How many packets are missing or incomplete, as far as it has been read."""
        return 0

    @property
    def decode_errors(self) -> int:
        """How many frames were decoded with errors or not at all, as far as it has been read."""
        return 0

    @property
    def files(self) -> list[Path]:
        """The files that it reads, as far as its name tells."""
        return _files(self.name)

    def __iter__(self) -> Iterator[Frame]:
        last: Frame | None = None
        for frame in self._read():
            if last is not None and frame.size != last.size:
                (height, width), (before_height, before_width) = frame.size, last.size
                raise FastcamError(
                    f"{self.name}: the frame size changes from {before_width}x{before_height} to "
                    f"{width}x{height} pixels {place(last)}"
                )
            last = frame
            yield frame
        if last is None:
            raise FastcamError(f"{self.name}: contains no frame that can be decoded")

    @abstractmethod
    def _read(self) -> Iterator[Frame]:
        """Yields the frames from the first one, on every call."""

    def stop(self) -> None:  # noqa: B027
        """Ends an iteration in another thread that may wait for data forever."""

    def close(self) -> None:  # noqa: B027
        """Releases files and devices. No other thread may be reading from them."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Clip(Source):
    """A video file, a URL or a byte stream, in any format that FFmpeg reads.

    Args:
        source: a path, a URL, or an object with ``read``.
        raw: (width, height, frames per second) if the stream is raw RGB.
        device: "cuda" decodes on the GPU if possible (see :mod:`fastcam.video.cuda`).

    Raises:
        FastcamError: if the file does not exist or contains no video; while iterating, after the
            last readable frame, if it is damaged. Damage is what FFmpeg notices: incomplete or
            missing packets, errors while decoding, and an end before the declared one.
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
        self._damage: Damage | None = None  # in the pass that is under way
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
            raise FastcamError(f"{self.name}: contains no video stream")
        streams = self._container.streams.video
        self._stream = min(streams, key=is_cover)  # the first that is none

    @property
    def lost_packets(self) -> int:
        return self._damage.lost_packets if self._damage else 0

    @property
    def decode_errors(self) -> int:
        return self._damage.decode_errors if self._damage else 0

    def _read(self) -> Iterator[Frame]:
        if not Path(self.name).is_file():
            yield from self._pass("AUTO")
            return
        last: Frame | None = None
        try:
            for last in self._pass("AUTO", stops=True):
                yield last
        except FastcamError:
            # after an error, FFmpeg's threads for whole frames lose those that are in them
            for frame in self._pass("SLICE"):
                if last is None or frame.time > last.time:
                    yield frame

    def _pass(self, threads: str, stops: bool = False) -> Iterator[Frame]:
        """Reads the clip from the start; raises an error at the end, or ``stops`` at the first."""
        if self._damage is not None:
            self._container.close()
            self._open()
        self._stream.thread_type = threads
        damage = self._damage = Damage(self._container, self._stream, self.name, self.rate)
        last: Frame | None = None
        try:
            for packet in self._packets():
                damage.packet(packet)
                if packet.stream is not self._stream:
                    continue
                for decoded in self._decoded(packet, damage, stops):
                    last = self._frame(decoded, last)
                    damage.frame(last, float((decoded.duration or 0) * last.time_base))
                    yield last
        except (av_library().FFmpegError, OSError) as error:
            damage.stop(error.strerror or str(error))
        complaint = damage.complaint()
        if complaint is not None and last is None and isinstance(self._source, _Pipe):
            complaint += "; an MP4 whose index is at its end cannot be read from a pipe"
        if complaint is not None:
            raise FastcamError(f"{self.name}: {complaint}")

    def _packets(self) -> Iterator[Any]:
        try:
            yield from self._container.demux()
        except IndexError:  # PyAV's, at the end, about a stream that appeared while it read
            return

    def _decoded(self, packet: Any, damage: Damage, stops: bool) -> Iterator[av.VideoFrame]:
        try:
            frames = packet.decode()
        except av_library().FFmpegError as error:
            damage.error()
            if stops:
                raise FastcamError(f"{self.name}: {error.strerror}") from error
            return
        for frame in frames:
            if frame.is_corrupt:
                damage.error()
            yield frame

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
        """pts and time base; a frame without a timestamp follows one period after the last."""
        time_base: Fraction = decoded.time_base or self._stream.time_base
        if decoded.pts is not None and (last is None or decoded.pts > last.pts):
            return decoded.pts, time_base
        period = max(1, round(1 / (self.rate * time_base)))
        return (last.pts + period if last is not None else 0), time_base

    def close(self) -> None:
        self._container.close()


class OpenCV(Source):
    """A camera, or a video file read without PyAV: no sound and no frame timestamps.

    Args:
        source: the camera number or a path.

    Raises:
        FastcamError: if it cannot be opened; while iterating, if a camera stops.
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
                else f"{self.name}: not a clip that OpenCV can read; to try FFmpeg, install PyAV: "
                "pip install fastcam[video]"
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
            raise FastcamError(f"{self.name}: stopped {place(last)}")

    def close(self) -> None:
        self._capture.release()


class Pictures(Source):
    """Picture files in the given order, one per frame."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.name = str(paths[0].parent)
        self.frames = len(paths)
        self._paths = paths

    @property
    def files(self) -> list[Path]:
        return list(self._paths)

    def _read(self) -> Iterator[Frame]:
        for index, path in enumerate(self._paths):
            self.name = str(path)
            yield Frame(pictures.read(path), index, 1 / self.rate)


class Frames(Source):
    """An iterable of frames or pictures; a list can be read twice.

    A picture is a uint8 array (H, W, 3), RGB, a PIL image, a uint8 tensor (H, W, 3) or (3, H, W),
    or one of PyAV's frames, which keeps its time.
    """

    name = "the iterator"

    def __init__(self, frames: Iterable[Any], rate: Fraction = RATE) -> None:
        self.rate = rate
        self._frames = frames
        if isinstance(frames, (list, tuple, np.ndarray, Tensor)):
            self.frames = len(frames)
        self.twice = self.frames is not None

    def _read(self) -> Iterator[Frame]:
        for index, each in enumerate(self._frames):
            yield each if isinstance(each, Frame) else self._frame(each, index)

    def _frame(self, given: Any, index: int) -> Frame:
        if has_av() and isinstance(given, av_library().VideoFrame):
            pixels: Any = Decoded(given, round(given.rotation / 90) % 4)
            if given.pts is not None and given.time_base:
                return Frame(pixels, given.pts, given.time_base)
            return Frame(pixels, index, 1 / self.rate)
        try:
            found = pictures_of(_array(given))
        except TypeError as error:
            raise self._refusal(
                index, str(error).partition("got ")[2].partition(", expected")[0]
            ) from error
        if found is None or len(found) != 1:
            raise self._refusal(index, type(given).__name__)
        return Frame(found[0], index, 1 / self.rate)

    def _refusal(self, index: int, came: str) -> FastcamError:
        return FastcamError(
            f"{self.name}: frame {index} is {came}, expected a picture: an array (H, W, 3) of "
            "uint8, RGB, or a PIL image"
        )


def _array(given: Any) -> Any:
    """A tensor as an array, its channels last; anything else as it is."""
    if not isinstance(given, Tensor):
        return given
    channels_first = given.dim() == 3 and given.shape[0] == 3 != given.shape[2]
    return (given.movedim(0, -1) if channels_first else given).detach().cpu().numpy()


class _Pipe:
    """Standard input for FFmpeg; setting ``ended`` stops a read that waits for data."""

    def __init__(self) -> None:
        self.ended = False

    def read(self, size: int) -> bytes:
        stdin: Any = sys.stdin.buffer
        with suppress(OSError, ValueError):  # a stream without a descriptor never blocks
            descriptor = stdin.fileno()
            while not select.select([descriptor], [], [], 0.1)[0]:
                if self.ended:
                    return b""
            return b"" if self.ended else stdin.raw.read(size)
        return stdin.read(size)


class StandardInput(Clip):
    """Standard input: a format that FFmpeg recognises, such as Y4M, or raw RGB.

    Args:
        raw: as for :class:`Clip`.
    """

    def __init__(self, raw: tuple[int, int, Fraction] | None = None) -> None:
        self._pipe = _Pipe()
        super().__init__(self._pipe, raw)

    def stop(self) -> None:
        self._pipe.ended = True


def open_source(
    source: Source | Iterable[Any] | Path | str | int,
    raw: str | None = None,
    device: str = "cpu",
) -> Source:
    """Opens a source.

    ==================================== =========================================================
    a Source                             itself
    a number                             the camera with that number
    ``-``                                standard input
    ``scheme://...``                     a URL that FFmpeg opens
    a folder, or a pattern with ``*?[``  its pictures, sorted by name, numbers by their value
    any other string or path             a clip
    anything else                        an iterable of frames or pictures
    ==================================== =========================================================

    Args:
        source: see the table.
        raw: "WIDTHxHEIGHT" or "WIDTHxHEIGHT@RATE" if ``-`` is raw RGB.
        device: as for :class:`Clip`.

    Raises:
        UsageError: if ``raw`` is malformed or given for another source than ``-``.
        FastcamError: if the source cannot be opened.

    Warns:
        UserWarning: if PyAV is missing, so a file's sound and timestamps are lost.
    """
    if raw is not None and source != "-":
        raise UsageError(f"raw {raw}: only supported for standard input, the source -")
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
        return _pictures(found, f"{text}: the folder contains no pictures")
    if glob.has_magic(text) and not path.exists():
        return _pictures([Path(each) for each in glob.glob(text)], f"{text}: matches no file")
    if not has_av():
        warnings.warn(
            "PyAV is missing, so sound and timestamps are lost: pip install fastcam[video]",
            stacklevel=2,
        )
        return OpenCV(path)
    return Clip(path, device=device)


def _pictures(paths: list[Path], complaint: str) -> Pictures:
    if not paths:
        raise FastcamError(complaint)
    return Pictures(sorted(paths, key=_natural))


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts f2 before f10."""
    parts = re.findall(r"\d+|\D+", str(path), re.ASCII)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _files(name: str) -> list[Path]:
    """The files behind FFmpeg's URLs, such as file:clip.mp4 or concat:a.ts|file:b.ts."""
    if name == "-":
        return [Path("/dev/stdin")]
    parts = name.split(":")
    rests = (":".join(parts[index:]) for index in range(len(parts)))
    return [Path(each) for rest in rests for each in {rest, *rest.split("|")}]


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


def open_container(given: Any, name: str, **options: Any) -> Any:
    """Opens a file, URL or stream with PyAV for reading."""
    try:
        return av_library().open(given, **options)
    except FileNotFoundError:
        raise FastcamError(f"{name}: no such file") from None
    except (av_library().FFmpegError, OSError) as error:
        raise FastcamError(f"{name}: not a clip that can be read ({error.strerror})") from None
