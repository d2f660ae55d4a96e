"""Writes a clip: H.264 or JPEG frames with timestamps, and the sound copied from another file."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterable
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from fastcam.errors import FastcamError, UsageError
from fastcam.pictures import Picture, cannot_write, temporary_name
from fastcam.video.frame import Frame
from fastcam.video.pyav import av_library
from fastcam.video.sound import Sound

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv")
CODECS = ("auto", "h264", "mjpeg")

# A truncated file plays up to its last complete fragment, one second of frames.
_FRAGMENTS = {
    "movflags": "+frag_keyframe+delay_moov+default_base_moof",
    "frag_duration": "1000000",  # microseconds
}
_JPEG_QUALITY = 90


class Writer:
    """Writes frames to a clip, with their timestamps and the sound of another file.

    The file appears under its name at the end of the ``with`` block. After an exception it holds
    the frames so far and their sound, or, if the disk is full, those that were stored before. The
    formats require an even width and height: odd ones are padded by a column or row (see
    :attr:`padded`).

    Args:
        path: .mp4, .m4v, .mov or .mkv.
        rate: the mean frame rate, per second.
        sound: a file or URL whose sound is copied; see :class:`fastcam.video.sound.Sound`.
        codec: "h264", "mjpeg" (JPEGs: many times larger, but fast), or "auto": h264, or mjpeg on a
            GPU without an H.264 encoder.
        device: "cuda" encodes on the GPU if it has the encoder, otherwise on the CPU.

    Raises:
        UsageError: if the suffix or codec is unknown.
        FastcamError: if the file cannot be written.

    Warns:
        UserWarning: if the sound cannot be copied, or the GPU lacks the encoder.
    """

    def __init__(
        self,
        path: Path,
        rate: Fraction,
        sound: str | None = None,
        codec: str = "auto",
        device: str = "cpu",
    ) -> None:
        if path.suffix.lower() not in SUFFIXES:
            raise UsageError(f"{path}: the suffix must be one of {', '.join(SUFFIXES)}")
        check_codec(codec)
        self.path = path
        self.frames = 0
        """The number of frames written; after an error, of those in the file."""
        self.saved = False
        """Whether the file exists under its name."""
        self.padded: tuple[int, int] | None = None
        """(height, width) in the file if it differs from that of the pictures."""
        self._rate = rate
        self._codec, self._device = codec, device
        self._temporary = temporary_name(path)
        self._fragmented = path.suffix.lower() != ".mkv"
        self._container: Any = None
        self._encoder: _H264 | _MJPEG
        self._sound = Sound(sound) if sound is not None else None

    def write(self, frame: Frame) -> None:
        """Appends a frame; all frames share one size and pixel aspect, with increasing times."""
        try:
            if self._container is None:
                self._start(frame)
            picture = frame.picture
            if self.padded is not None:
                height, width = picture.shape[:2]
                growth = ((0, height % 2), (0, width % 2), (0, 0))
                picture = np.pad(picture, growth, mode="edge")
            self._mux(self._encoder.encode(picture, frame.pts, frame.time_base))
            self.frames += 1
        except (av_library().FFmpegError, OSError) as error:
            raise self._failed(error) from error

    def close(self, complete: bool = True) -> None:
        """Finishes the file; unless ``complete``, omits the sound after the last frame."""
        try:
            if self._container is not None and self.frames:
                self._finish(complete)
        except (av_library().FFmpegError, OSError) as error:
            raise self._failed(error) from error
        finally:
            self._release()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        self.close(complete=kind is None)

    def _start(self, frame: Frame) -> None:
        height, width = frame.size
        even = height + height % 2, width + width % 2
        self.padded = None if even == (height, width) else even
        self.path.parent.mkdir(parents=True, exist_ok=True)
        options = _FRAGMENTS if self._fragmented else {}
        self._container = av_library().open(str(self._temporary), "w", options=options)
        encoder = _encoder(self._codec, self._device, even)
        self._encoder = encoder(self._container, self._rate, even, frame)
        if self._sound is not None:
            self._sound.add_to(self._container, options)

    def _mux(self, packets: Iterable[Any]) -> None:
        """Writes video packets, interleaved with the sound."""
        for packet in packets:
            if self._sound is not None and packet.dts is not None:
                self._sound.copy_until(packet.dts * packet.time_base, self._container)
            self._container.mux(packet)

    def _finish(self, complete: bool) -> None:
        self._mux(self._encoder.rest())
        if self._sound is not None and complete:
            self._sound.copy_until(None, self._container)
        self._container.close()
        if self._fragmented:
            _put_index_first(self._temporary, self.path)
        self._rename()

    def _failed(self, error: Exception) -> FastcamError:
        """Saves the frames on disk without writing any more; returns the error to raise."""
        if self._container is not None:
            with suppress(av_library().FFmpegError, OSError):
                self._container.close()
        self.frames, end = 0, 0.0
        with suppress(OSError):
            if self._fragmented:
                _cut_to_whole_fragments(self._temporary)
            self.frames, end = frames_in(self._temporary)
            if self.frames:
                self._rename()
        self._release()
        return cannot_write(self.path, error, after(end) if self.saved else "")

    def _rename(self) -> None:
        self._temporary.replace(self.path)
        self.saved = True

    def _release(self) -> None:
        self._container = None
        if self._sound is not None:
            self._sound.close()
        with suppress(OSError):  # already renamed, or never created
            self._temporary.unlink()


def frames_in(path: Path) -> tuple[int, float]:
    """The number of frames in a clip and the time of the last one; 0 and 0 if it does not open."""
    count, last = 0, 0.0
    with suppress(av_library().FFmpegError, OSError), av_library().open(str(path)) as clip:
        for packet in clip.demux(video=0):
            if packet.pts is not None:
                count, last = count + 1, max(last, float(packet.pts * packet.time_base))
    return count, last


def after(end: float) -> str:
    """Where writing failed: behind the last frame that is saved, at ``end`` in seconds."""
    return f" after the frame at {end:.2f} s, the last one in the file"


def check_codec(codec: str) -> None:
    """Raises UsageError if the codec is unknown."""
    if codec not in CODECS:
        raise UsageError(f"unknown codec {codec}; choose from {', '.join(CODECS)}")


def _put_index_first(path: Path, name: Path) -> None:
    """Remuxes a fragmented file with the index at the start, for web players.

    Args:
        path: the file, which stays as it is if there is no room for another.
        name: what a warning calls it.
    """
    whole = temporary_name(path)
    with av_library().open(str(path)) as source:
        try:
            with av_library().open(str(whole), "w", options={"movflags": "+faststart"}) as sink:
                streams = {each: sink.add_stream_from_template(each) for each in source.streams}
                for packet in source.demux():
                    if packet.dts is not None:
                        packet.stream = streams[packet.stream]
                        sink.mux(packet)
            whole.replace(path)
        except (av_library().FFmpegError, OSError) as error:
            why = getattr(error, "strerror", None) or error
            warnings.warn(
                f"{name}: the file stays fragmented because its index cannot be moved to the start "
                f"({why}); it plays as it is",
                stacklevel=4,
            )
        finally:
            with suppress(OSError):
                whole.unlink()


def _cut_to_whole_fragments(path: Path) -> None:
    """Truncates the file after its last complete fragment."""
    end, size = 0, path.stat().st_size
    with path.open("r+b") as file:
        offset = 0
        while len(head := _read_at(file, offset, 16)) == 16:
            length, kind, large = struct.unpack(">I4sQ", head)
            offset += large if length == 1 else length
            if offset > size or length == 0:
                break
            if kind == b"mdat":
                end = offset
        file.truncate(end)


def _read_at(file: Any, offset: int, count: int) -> bytes:
    file.seek(offset)
    return file.read(count)


class _H264:
    """libx264."""

    name = "libx264"
    options: ClassVar = {"crf": "23", "preset": "veryfast"}

    def __init__(self, container: Any, rate: Fraction, size: tuple[int, int], first: Frame) -> None:
        self._stream = container.add_stream(self.name, rate=rate, options=self.options)
        _describe(self._stream, size, first, "yuv420p")
        # 1 means BT.709 in the first three, limited range in the last
        context = self._stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1
        self._reformatter = av_library().video.reformatter.VideoReformatter()

    def encode(self, picture: Picture, pts: int, time_base: Fraction) -> Iterable[Any]:
        rgb = av_library().VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        yuv = self._reformatter.reformat(
            rgb, format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG", threads=1
        )
        yuv.pts, yuv.time_base = pts, time_base
        return self._stream.encode(yuv)

    def rest(self) -> Iterable[Any]:
        return self._stream.encode(None)


class _NVENC(_H264):
    """The encoder of NVIDIA GPUs."""

    name = "h264_nvenc"
    options: ClassVar = {"rc": "vbr", "cq": "23", "preset": "p4"}


class _MJPEG:
    """A sequence of JPEGs."""

    device = "cpu"

    def __init__(self, container: Any, rate: Fraction, size: tuple[int, int], first: Frame) -> None:
        self._stream = container.add_stream("mjpeg", rate=rate)
        _describe(self._stream, size, first, "yuvj420p")

    def encode(self, picture: Picture, pts: int, time_base: Fraction) -> Iterable[Any]:
        packet = av_library().Packet(_jpeg(picture, self.device))
        packet.stream, packet.time_base = self._stream, time_base
        packet.pts = packet.dts = pts
        packet.is_keyframe = True
        return [packet]

    def rest(self) -> Iterable[Any]:
        return ()


class _MJPEGOnGPU(_MJPEG):
    device = "cuda"


def _describe(stream: Any, size: tuple[int, int], first: Frame, pix_fmt: str) -> None:
    stream.height, stream.width = size
    stream.pix_fmt = pix_fmt
    stream.time_base = stream.codec_context.time_base = first.time_base
    stream.codec_context.sample_aspect_ratio = first.pixel_aspect


def _jpeg(picture: Picture, device: str) -> bytes:
    if device == "cpu":
        import cv2

        quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
        return cv2.imencode(".jpg", picture[..., ::-1], quality)[1].tobytes()
    try:
        from torchcodec.encoders import JpegEncoder
    except ImportError:
        raise FastcamError("JPEG on a GPU requires torchcodec: pip install torchcodec") from None
    pixels = torch.from_numpy(np.ascontiguousarray(picture)).to(device)
    encoder = JpegEncoder(pixels.permute(2, 0, 1).contiguous())
    return encoder.to_tensor(quality=_JPEG_QUALITY).cpu().numpy().tobytes()


def _encoder(codec: str, device: str, size: tuple[int, int]) -> Any:
    """The encoder class: the GPU's encoder if available."""
    if device != "cuda":
        return _MJPEG if codec == "mjpeg" else _H264

    def try_jpeg() -> None:
        _jpeg(np.zeros((*size, 3), np.uint8), device)

    if codec == "mjpeg":
        why = _refusal(try_jpeg)
        if why is None:
            return _MJPEGOnGPU
        warnings.warn(
            f"encoding on the CPU because the GPU has no JPEG encoder ({why})", stacklevel=5
        )
        return _MJPEG
    why = _refusal(lambda: _try_nvenc(size))
    if why is None:
        return _NVENC
    if codec == "auto" and _refusal(try_jpeg) is None:
        warnings.warn(
            f"writing JPEGs because the GPU has no H.264 encoder ({why}); to encode H.264 on the "
            "CPU, use codec h264",
            stacklevel=5,
        )
        return _MJPEGOnGPU
    warnings.warn(f"encoding on the CPU because the GPU has no H.264 encoder ({why})", stacklevel=5)
    return _H264


def _refusal(attempt: Any) -> str | None:
    """The reason why the attempt fails, or None if it succeeds."""
    try:
        attempt()
    except (av_library().FFmpegError, RuntimeError, ValueError, FastcamError) as error:
        return str(error).partition("\n")[0]
    return None


def _try_nvenc(size: tuple[int, int]) -> None:
    context = av_library().CodecContext.create("h264_nvenc", "w")
    context.height, context.width = size
    context.pix_fmt, context.time_base = "yuv420p", Fraction(1, 25)
    context.open()
