"""Writes explained frames to a clip, a GIF, a folder of pictures, or files of maps."""

from __future__ import annotations

import glob
import json
import warnings
from abc import ABC, abstractmethod
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from typing_extensions import Self

from fastcam import pictures
from fastcam.errors import FastcamError, UsageError
from fastcam.pictures import cannot_write, replacing, same_file, temporary_name
from fastcam.video.drawing import ExplainedFrame
from fastcam.video.frame import Frame
from fastcam.video.palette import Quantizer
from fastcam.video.pyav import av_library, has_av
from fastcam.video.sources import Source
from fastcam.video.writer import SUFFIXES, Writer

_SHARD = 1024  # frames
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

    def write(self, explained: ExplainedFrame) -> None:
        self._writer.write(explained.drawn())
        self.frames, self.padded = self._writer.frames, self._writer.padded

    def close(self, complete: bool = True) -> None:
        self._writer.close(complete)


class OpenCVFile(Sink):
    """A clip written without PyAV: MPEG-4 part 2 at a constant frame rate, without sound."""

    def __init__(self, path: Path, source: Source) -> None:
        super().__init__()
        self._path, self._rate = path, source.rate
        self._temporary = temporary_name(path)
        self._writer: Any = None

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
        av_library()

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
            raise cannot_write(self._path, error) from error
        self.frames += 1

    def _start(self, frame: Frame) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av_library().open(str(self._temporary), "w", format="gif")
        self._stream = self._container.add_stream("gif", rate=_CENTISECONDS)
        self._stream.height, self._stream.width = frame.size
        self._stream.pix_fmt = "pal8"
        self._stream.codec_context.time_base = Fraction(1, _CENTISECONDS)

    def close(self, complete: bool = True) -> None:
        if self._container is None:
            return
        try:
            with suppress(av_library().FFmpegError):
                self._container.mux(self._stream.encode(None))
                self._container.close()
            self._temporary.replace(self._path)
        except OSError as error:
            raise cannot_write(self._path, error) from error
        finally:
            self._container = None


class PngFolder(Sink):
    """000000.png, 000001.png, ... in a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def write(self, explained: ExplainedFrame) -> None:
        path = self._folder / f"{self.frames:06d}.png"
        pictures.write(path, explained.drawn().picture)
        self.frames += 1


class MapShards(Sink):
    """The maps without pictures: NAME-00000.safetensors, NAME-00001.safetensors, ...

    Each file holds up to 1,024 frames: ``maps`` (N, h, w) float16 in [0, 1] at the layer's
    resolution; ``ranges`` (N, 2), the raw values that map to 0 and 1; ``times`` (N,) float64 in
    seconds; ``classes`` (N,) int64; ``scores`` and ``probabilities`` (N,) float32. Its metadata
    entry ``classes`` is a JSON object that maps ids to names.
    """

    draws = False

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._shards = 0
        self._waiting: list[ExplainedFrame] = []
        self._names: dict[int, str] = {}

    def write(self, explained: ExplainedFrame) -> None:
        self._waiting.append(explained.without_pixels())
        self._names[explained.class_id] = explained.name
        self.frames += 1
        if len(self._waiting) == _SHARD:
            self._flush()

    def close(self, complete: bool = True) -> None:
        if self._waiting:
            self._flush()

    def _flush(self) -> None:
        from safetensors.torch import save_file

        waiting, self._waiting = self._waiting, []
        tensors = {
            "maps": torch.stack([each.map.half() for each in waiting]),
            "ranges": torch.tensor([each.range for each in waiting]),
            "times": torch.tensor([each.time for each in waiting], dtype=torch.float64),
            "classes": torch.tensor([each.class_id for each in waiting]),
            "scores": torch.tensor([each.score for each in waiting]),
            "probabilities": torch.tensor([each.probability for each in waiting]),
        }
        name = f"{self._path.stem}-{self._shards:05d}{self._path.suffix}"
        with replacing(self._path.with_name(name)) as temporary:
            save_file(tensors, temporary, {"classes": json.dumps(self._names)})
        self._shards += 1


def open_sink(
    sink: Sink | Path | str, source: Source, codec: str = "auto", device: str = "cpu"
) -> Sink:
    """Opens a sink.

    ============================== ============================
    a Sink                         itself
    .mp4, .m4v, .mov, .mkv         a clip
    .gif                           an animation
    .safetensors                   only the maps, in shards
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
        return PngFolder(path)
    if suffix == ".gif":
        return Gif(path)
    if suffix == ".safetensors":
        return MapShards(path)
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
