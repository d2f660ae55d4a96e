"""The sound of a clip: copied from another file, or encoded anew if the format cannot hold it."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

from fastcam.errors import FastcamError
from fastcam.video.pyav import av_library
from fastcam.video.sources import open_container

_TRIAL = 50  # packets
_RATE = 48_000  # per second, for sound at a rate that AAC does not have


class Sound:
    """Copies the audio tracks of a file, packet by packet.

    A track that the format cannot hold is encoded as AAC, or left out if that fails too. Whatever
    is wrong with the sound, the pictures are written.

    Args:
        source: a file or URL.

    Warns:
        UserWarning: if a track is encoded, is left out or ends early.
    """

    def __init__(self, source: str) -> None:
        self._name = source
        self._source: Any = None
        self._tracks: dict[Any, _Copied | _Encoded] = {}
        self._packets: Iterator[Any] = iter(())
        self._next: Any = None

    def add_to(self, container: Any, options: dict[str, str]) -> None:
        """Adds the tracks to a container that was opened with ``options``."""
        try:
            self._source = open_container(self._name, self._name)
        except FastcamError as error:
            warnings.warn(f"the sound is left out: {error}", stacklevel=5)
            return
        for index, track in enumerate(self._source.streams.audio):
            way = self._way(index, container, options)
            if way is not None:
                self._tracks[track] = way(track, container)
        if self._tracks:
            self._packets = self._read()
            self._advance()

    def _way(
        self, index: int, container: Any, options: dict[str, str]
    ) -> type[_Copied | _Encoded] | None:
        """How the container can hold a track; None if it cannot."""
        why = self._refusal(_Copied, index, container, options)
        if why is None:
            return _Copied
        encodes = self._refusal(_Encoded, index, container, options) is None
        suffix = Path(container.name).suffix.lower()
        warnings.warn(
            f"the sound is {'encoded as AAC' if encodes else 'left out'} because {suffix} cannot "
            f"hold {_codec(self._source.streams.audio[index])} ({why})"
            + ("" if suffix == ".mkv" else "; choose .mkv to copy it"),
            stacklevel=6,
        )
        return _Encoded if encodes else None

    def _refusal(
        self, way: type[_Copied | _Encoded], index: int, container: Any, options: dict[str, str]
    ) -> str | None:
        """Writes the start of a track to memory and reads it: what fails, or None.

        Muxers refuse a codec when it is added, with the header or at a packet; some write a file
        that no reader opens.
        """
        file = io.BytesIO()
        form = container.format.name
        try:
            with open_container(self._name, self._name) as source:
                track = source.streams.audio[index]
                with av_library().open(file, "w", format=form, options=options) as trial:
                    writing = way(track, trial)
                    packets = (each for each in source.demux(track) if each.dts is not None)
                    for packet in islice(packets, _TRIAL):
                        trial.mux(writing.packets(packet))
                    trial.mux(writing.rest())
            file.seek(0)
            with av_library().open(file) as result:
                next(result.decode(audio=0))
        except StopIteration:
            return "nothing of it can be decoded"
        except (FastcamError, av_library().FFmpegError, OSError, ValueError) as error:
            return getattr(error, "strerror", None) or str(error)
        return None

    def _read(self) -> Iterator[Any]:
        """The packets as they are written."""
        for packet in self._source.demux(*self._tracks):
            if packet.dts is not None:
                yield from self._tracks[packet.stream].packets(packet)
        for track in self._tracks.values():
            yield from track.rest()

    def copy_until(self, time: Fraction | None, container: Any) -> None:
        """Writes the packets before ``time`` in seconds; None for all remaining ones."""
        while self._next is not None:
            start = self._next.dts * self._next.time_base
            if time is not None and start >= time:
                return
            try:
                container.mux(self._next)
            except _refused() as error:
                self._next = None
                warnings.warn(
                    f"the sound ends at {float(start):.2f} s because its next packet cannot be "
                    f"written: {getattr(error, 'strerror', None) or error}",
                    stacklevel=5,
                )
            else:
                self._advance()

    def _advance(self) -> None:
        try:
            self._next = next(self._packets, None)
        except av_library().FFmpegError:  # the video stream reports it
            self._next = None

    def close(self) -> None:
        if self._source is not None:
            self._source.close()


def _refused() -> tuple[type[Exception], ...]:
    """A muxer's errors about a packet, which are none of a disk."""
    error = av_library().error
    return error.ArgumentError, error.InvalidDataError, error.PermissionError


def _codec(track: Any) -> str:
    context = track.codec_context
    return context.codec.canonical_name if context is not None else "sound of an unknown codec"


class _Copied:
    """A track whose packets are copied."""

    def __init__(self, track: Any, container: Any) -> None:
        self.stream = container.add_stream_from_template(track)
        self._filter: Any = None
        if _codec(track) == "aac" and not track.codec_context.extradata:
            from av.bitstream import BitStreamFilterContext

            # broadcasts have a header on every packet, files one for all
            self._filter = BitStreamFilterContext("aac_adtstoasc", track)

    def packets(self, packet: Any) -> Iterator[Any]:
        """What a packet of the track becomes in the container."""
        for each in [packet] if self._filter is None else self._filter.filter(packet):
            each.stream = self.stream
            yield each

    def rest(self) -> Iterator[Any]:
        """The packets at the end of the track."""
        return iter(())


class _Encoded:
    """A track that is decoded and encoded as AAC."""

    def __init__(self, track: Any, container: Any) -> None:
        self._decoder = track.codec_context
        rate, layout = self._decoder.sample_rate, self._decoder.layout.name
        rates = av_library().Codec("aac", "w").audio_rates
        # some formats only have the number of channels
        layout = {"1 channels": "mono", "2 channels": "stereo"}.get(layout, layout)
        rate = rate if rate in rates else _RATE
        self._stream = container.add_stream("aac", rate=rate, layout=layout)
        encoder = self._stream.codec_context
        encoder.open()
        self._resampler = av_library().AudioResampler(
            encoder.format, encoder.layout, encoder.sample_rate, encoder.frame_size
        )

    def packets(self, packet: Any) -> Iterator[Any]:
        frames = []
        with suppress(av_library().error.InvalidDataError):  # a broken packet is a gap
            frames = self._decoder.decode(packet)
        for frame in frames:
            for even in self._resampler.resample(frame):
                yield from self._stream.encode(even)

    def rest(self) -> Iterator[Any]:
        for frame in [*self._decoder.decode(None), None]:
            for even in self._resampler.resample(frame):
                yield from self._stream.encode(even)
        yield from self._stream.encode(None)
