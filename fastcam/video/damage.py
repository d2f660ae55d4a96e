"""What is missing or wrong in a clip, as far as FFmpeg and the file's own figures tell."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

from fastcam.video.frame import Frame
from fastcam.video.pyav import av_library

_IN_ORDER = ("flv", "matroska,webm")  # packets lie one behind another, and have times
_BETWEEN = 512  # bytes between packets that are headers
_SOUND = 0.25  # seconds that a packet of sound may last without saying so


class Damage:
    """Counts damage while a clip is read.

    Args:
        container, stream: PyAV's.
        name: the file's.
        rate: the mean frame rate, per second.
    """

    def __init__(self, container: Any, stream: Any, name: str, rate: Fraction) -> None:
        self.lost_packets = 0
        """How many packets are missing or incomplete."""
        self.decode_errors = 0
        """How many frames were decoded with errors or not at all."""
        self._container, self._stream, self._rate = container, stream, rate
        self._path = Path(name)
        self._first: Frame | None = None
        self._last: Frame | None = None
        self._end = 0.0  # seconds: of the last frame
        self._reached = 0.0  # seconds: the end of all streams
        self._packets = 0
        self._position: int | None = None  # bytes: the end of the last packet
        self._cut = False  # whether the last packet is incomplete
        self._place = ""  # of the first damage
        self._hole = ""  # where bytes were skipped first
        self._stopped = ""  # why reading ended

    def packet(self, packet: Any) -> None:
        """Regards a packet of any stream."""
        if packet.pts is not None:
            end = (packet.pts + (packet.duration or 0)) * packet.time_base
            self._reached = max(self._reached, float(end))
        if not packet.size:  # the last packet is empty and flushes the decoder
            return
        if packet.pos is not None and self._container.format.name in _IN_ORDER:
            if self._position is not None and packet.pos - self._position > _BETWEEN:
                self._hole = self._hole or self._here
            self._position = packet.pos + packet.size
        if packet.stream is self._stream:
            self._packets += 1
            self._cut = packet.is_corrupt
            if self._cut:
                self.lost_packets += 1
                self._place = self._place or self._here

    def error(self) -> None:
        """Counts a frame that was decoded with errors or not at all."""
        self.decode_errors += 1
        self._place = self._place or self._here

    def frame(self, frame: Frame, duration: float) -> None:
        """Regards a frame; its duration in seconds, 0 if unknown."""
        self._first = self._first or frame
        self._last = frame
        self._end = frame.time + duration

    def stop(self, reason: str) -> None:
        """Reading ended with an error."""
        self._stopped = reason
        self.lost_packets += 1
        self._place = self._place or self._here

    def complaint(self) -> str | None:
        """What to say at the end about all damage, in one line; None if there is none."""
        if self._last is not None:
            self._compare_with_declarations()
        if self._cut and not self._stopped:
            return f"cut short {self._here}: {self._counts()}"
        if not self._place:
            return None
        why = [self._stopped, self._counts()] if self._stopped else [self._counts()]
        return f"broken {self._place}: {', '.join(why)}"

    @property
    def _here(self) -> str:
        return place(self._last)

    def _counts(self) -> str:
        found = ((self.lost_packets, "lost packet"), (self.decode_errors, "decode error"))
        return ", ".join(f"{count} {name}{'s' * (count > 1)}" for count, name in found if count)

    def _compare_with_declarations(self) -> None:
        missing = self._missing()
        if missing > 1.5 / self._rate or self._ends_within_a_packet():
            self._cut = True
            self.lost_packets = max(self.lost_packets, round(missing * self._rate), 1)
        assert self._first is not None
        expected = round((self._end - self._first.time) * self._rate)
        if self._hole and self._packets < expected:
            self.lost_packets = max(self.lost_packets, expected - self._packets)
            self._place = self._place or self._hole

    def _missing(self) -> float:
        """How many seconds of the declared duration were not read."""
        if is_cover(self._stream):
            return 0
        if announced := announced_end(self._container, self._stream):
            return announced - self._end
        if self._container.format.name in _IN_ORDER:  # in others FFmpeg estimates it
            return (self._container.duration or 0) / 1e6 - self._reached - _SOUND
        return 0

    def _ends_within_a_packet(self) -> bool:
        """Whether the file is an MPEG transport stream whose last packet of bytes is incomplete."""
        if self._container.format.name != "mpegts" or not self._path.is_file():
            return False
        with self._path.open("rb") as file:
            head = file.read(5 * 204)
        for length, before in ((188, 0), (192, 4), (204, 0)):  # before: a time in front of 0x47
            for start in range(length):
                if set(head[start::length]) == {0x47}:
                    return (self._path.stat().st_size - start + before) % length != 0
        return False


def announced_end(container: Any, stream: Any) -> float:
    """The end of the last frame that the stream declares, in seconds; 0 if it declares none."""
    if container.format.name == "avi":  # the duration is that of the index, which may be cut
        return float(stream.frames / stream.average_rate) if stream.average_rate else 0
    if (
        stream.duration is not None and container.format.name not in _IN_ORDER
    ):  # else of all streams
        return float(((stream.start_time or 0) + stream.duration) * stream.time_base)
    try:  # Matroska has a free-text tag
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except (KeyError, ValueError):
        return 0


def is_cover(stream: Any) -> bool:
    """Whether the stream is an attached picture."""
    return bool(stream.disposition & av_library().stream.Disposition.attached_pic)


def place(last: Frame | None) -> str:
    """Where something comes after this frame, for messages."""
    return "at the start" if last is None else f"after the frame at {last.time:.2f} s"
