"""Writes explained frames to a clip, a GIF, a folder of pictures, or files of maps."""

from __future__ import annotations

import glob
import warnings
from abc import ABC, abstractmethod
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from typing_extensions import Self

from fastcam import pictures
from fastcam.errors import FastcamError, UsageError
from fastcam.pictures import cannot_write, same_file, temporary_name
from fastcam.storage import MapWriter
from fastcam.video.drawing import ExplainedFrame
from fastcam.video.frame import Frame
from fastcam.video.gif import cut_to_whole_frames
from fastcam.video.palette import Quantizer
from fastcam.video.pyav import av_library, has_av
from fastcam.video.sources import Source
from fastcam.video.writer import SUFFIXES, Writer, after, frames_in

_CENTISECONDS = 100  # per second; the time unit of GIF
_SHORTEST = 2  # centiseconds; viewers slow down shorter frames


class Sink(ABC):
    """Writes explained frames in order. Closing it after a failure keeps the frames so far."""

    draws: ClassVar[bool] = True
    """Whether it uses the frames' drawings."""
    padded: tuple[int, int] | None = None
    """(height, width) in the file if it differs from that of the frames."""

    def __init__(self) -> None:
        self.frames = 0
        """The number of frames written."""

    @property
    def files(self) -> list[Path]:
        """The files that were written; complete once the sink is closed."""
        return []

    @abstractmethod
    def write(self, explained: ExplainedFrame) -> None:
        """Writes a frame; raises FastcamError if it cannot be written."""

    def close(self, complete: bool = True) -> None:  # noqa: B027
        """Finishes the output; ``complete`` is False after a failure anywhere."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        self.close(complete=kind is None)


class ClipFile(Sink):
    """A clip written by :class:`fastcam.video.writer.Writer`."""

    def __init__(self, writer: Writer) -> None:
        super().__init__()
        self._writer = writer

    @property
    def files(self) -> list[Path]:
        return [self._writer.path] if self._writer.saved else []

    def write(self, explained: ExplainedFrame) -> None:
        try:
            self._writer.write(explained.drawn())
        finally:
            self.frames, self.padded = self._writer.frames, self._writer.padded

    def close(self, complete: bool = True) -> None:
        try:
            self._writer.close(complete)
        finally:
            self.frames = self._writer.frames


class OpenCVFile(Sink):
    """A clip written without PyAV: MPEG-4 part 2 at a constant frame rate, without sound."""

    def __init__(self, path: Path, source: Source) -> None:
        super().__init__()
        self._path, self._rate = path, source.rate
        self._temporary = temporary_name(path)
        self._writer: Any = None

    @property
    def files(self) -> list[Path]:
        return [self._path] if self.frames else []

    def write(self, explained: ExplainedFrame) -> None:
        import cv2

        picture = explained.drawn().picture
        height, width = picture.shape[:2]
        if self._writer is None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise cannot_write(self._path, error) from error
            code = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(
                str(self._temporary), code, float(self._rate), (width, height)
            )
            if not self._writer.isOpened():
                raise FastcamError(
                    f"{self._path}: OpenCV cannot write it; install PyAV: "
                    "pip install fastcam[video]"
                )
        self._writer.write(np.ascontiguousarray(picture[..., ::-1]))
        self.frames += 1

    def close(self, complete: bool = True) -> None:
        if self._writer is not None:
            self._writer.release()
        if self.frames:
            self._temporary.replace(self._path)
        with suppress(OSError):
            self._temporary.unlink()


class Gif(Sink):
    """A GIF with 256 colours per scene; drops frames above 50 per second."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path, self._temporary = path, temporary_name(path)
        self._container: Any = None
        self._last = -_SHORTEST  # centiseconds
        self._quantizer = Quantizer()
        self._saved = False
        av_library()

    @property
    def files(self) -> list[Path]:
        return [self._path] if self._saved else []

    def write(self, explained: ExplainedFrame) -> None:
        frame = explained.drawn()
        try:
            if self._container is None:
                self._start(frame)
            time = round(frame.time * _CENTISECONDS)
            if time - self._last >= _SHORTEST or self.frames == 0:
                indices = self._quantizer(frame.picture)
                argb = np.insert(self._quantizer.palette, 0, 255, axis=1)
                indexed = av_library().VideoFrame.from_ndarray((indices, argb), format="pal8")
                indexed.pts, indexed.time_base = time, self._stream.codec_context.time_base
                self._container.mux(self._stream.encode(indexed))
                self._last = time
        except (av_library().FFmpegError, OSError) as error:
            raise self._failed(error) from error
        self.frames += 1

    def _start(self, frame: Frame) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av_library().open(str(self._temporary), "w", format="gif")
        self._stream = self._container.add_stream("gif", rate=_CENTISECONDS)
        self._stream.height, self._stream.width = frame.size
        self._stream.pix_fmt = "pal8"
        self._stream.codec_context.time_base = Fraction(1, _CENTISECONDS)

    def close(self, complete: bool = True) -> None:
        try:
            if self._container is not None and self.frames:
                self._container.mux(self._stream.encode(None))
                self._container.close()
                self._rename()
        except (av_library().FFmpegError, OSError) as error:
            raise self._failed(error) from error
        finally:
            self._release()

    def _failed(self, error: Exception) -> FastcamError:
        """As that of the writer of clips."""
        if self._container is not None:
            with suppress(av_library().FFmpegError, OSError):
                self._container.close()
        self.frames, end = 0, 0.0
        with suppress(OSError):
            cut_to_whole_frames(self._temporary)
            self.frames, end = frames_in(self._temporary)
            if self.frames:
                self._rename()
        self._release()
        return cannot_write(self._path, error, after(end) if self._saved else "")

    def _rename(self) -> None:
        self._temporary.replace(self._path)
        self._saved = True

    def _release(self) -> None:
        self._container = None
        with suppress(OSError):  # already renamed, or never created
            self._temporary.unlink()


class PngFolder(Sink):
    """000000.png, 000001.png, ... in a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    @property
    def files(self) -> list[Path]:
        return [self._file(index) for index in range(self.frames)]

    def write(self, explained: ExplainedFrame) -> None:
        pictures.write(self._file(self.frames), explained.drawn().picture)
        self.frames += 1

    def _file(self, index: int) -> Path:
        return self._folder / f"{index:06d}.png"


class Maps(Sink):
    """The maps without pictures, in NAME.safetensors: see :mod:`fastcam.storage`.

    Beyond 100,000 frames, or if the classes' names take more than 60 KB, there are several files:
    NAME-00000.safetensors, NAME-00001.safetensors, ...
    """

    draws = False

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._files: list[Path] = []
        self._open: MapWriter | None = None

    @property
    def files(self) -> list[Path]:
        return list(self._files)

    def write(self, explained: ExplainedFrame) -> None:
        names = {explained.class_id: explained.name}
        if self._open is not None and not self._open.has_room_for(names):
            self._finish(self._shard())
        try:
            if self._open is None:
                self._open = MapWriter(self._path)
            self._open.write(
                explained.map,
                names,
                ranges=explained.range,
                times=explained.time,
                classes=explained.class_id,
                scores=explained.score,
                probabilities=explained.probability,
            )
        except OSError as error:
            raise cannot_write(self._path, error) from error
        self.frames += 1

    def close(self, complete: bool = True) -> None:
        if self._open is not None:
            self._finish(self._shard() if self._files else self._path)

    def _shard(self) -> Path:
        return self._path.with_name(f"{self._path.stem}-{len(self._files):05d}{self._path.suffix}")

    def _finish(self, path: Path) -> None:
        made, self._open = self._open, None
        assert made is not None
        before = made.rows
        try:
            if made.finish(path):
                self._files.append(path)
        except OSError as error:
            raise cannot_write(path, error) from error
        finally:
            self.frames -= before - made.rows


def open_sink(
    sink: Sink | Path | str, source: Source, codec: str = "auto", device: str = "cpu"
) -> Sink:
    """Opens a sink.

    ============================== ============================
    a Sink                         itself
    .mp4, .m4v, .mov, .mkv         a clip
    .gif                           an animation
    .safetensors                   only the maps
    no suffix, or a folder         a folder of PNGs
    ============================== ============================

    Args:
        sink: see the table.
        source: provides the frame rate and the sound.
        codec, device: as for :class:`fastcam.video.writer.Writer`.

    Raises:
        UsageError: if the suffix is unknown or the sink is the source.
        FastcamError: if the sink requires PyAV, which is missing.
    """
    if isinstance(sink, Sink):
        return sink
    path = Path(sink)
    for each in existing_files(path):
        given = same_file(each, source.files)
        if given is not None:
            raise UsageError(f"{each}: the sink and the source {given} are the same file")
    check_suffix(path)
    suffix = path.suffix.lower()
    if _is_folder(path):
        shared = same_file(path, [each.parent for each in source.files if each.is_file()])
        if shared is not None:
            raise UsageError(
                f"{path}: the source's pictures are in this folder, and the next run would read "
                "what this one writes; choose another folder"
            )
        return PngFolder(path)
    if suffix == ".gif":
        return Gif(path)
    if suffix == ".safetensors":
        return Maps(path)
    if not has_av():
        warnings.warn(
            "PyAV is missing: writing MPEG-4 without sound, at a constant frame rate", stacklevel=2
        )
        return OpenCVFile(path, source)
    return ClipFile(Writer(path, source.rate, source.sound, codec, device))


def existing_files(sink: Path) -> list[Path]:
    """The files that exist now and that a sink at this path may replace."""
    if _is_folder(sink):
        return sorted(sink.glob("[0-9]*.png"))
    if sink.suffix.lower() == ".safetensors":
        name = glob.escape(sink.stem)
        return sorted([sink, *sink.parent.glob(f"{name}-[0-9]*{sink.suffix}")])
    return [sink]


def check_suffix(sink: Path) -> None:
    """Raises UsageError if the suffix tells no format."""
    suffixes = (*SUFFIXES, ".gif", ".safetensors")
    if not _is_folder(sink) and sink.suffix.lower() not in suffixes:
        raise UsageError(
            f"{sink}: the suffix must be one of {', '.join(suffixes)}, or none to write a folder "
            "of pictures"
        )


def _is_folder(sink: Path) -> bool:
    return sink.suffix == "" or sink.is_dir()
