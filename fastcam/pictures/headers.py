"""The size of a picture from its header, without decoding it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial

Size = tuple[int, int]  # (width, height)


def extents(data: bytes) -> tuple[int, int] | None:
    """(height, width) in pixels as the header says; None if it is not a picture.

    Knows every format that OpenCV reads: PNG, JPEG, TIFF, WebP, GIF, BMP, AVIF, JPEG 2000, PNM,
    PAM, PFM, Radiance HDR and Sun raster.
    """
    for start, read in _READERS:
        if start.match(data):
            largest = max(read(data), key=lambda each: each[0] * each[1], default=None)
            return None if largest is None else (largest[1], largest[0])
    return None


def is_picture(head: bytes) -> bool:
    """Whether a file that begins with these bytes, 16 or more, may be a picture."""
    return any(start.match(head) for start, _ in _READERS)


def _fields(pattern: bytes, order: str, data: bytes) -> Iterator[Size]:
    """The first two binary fields, width and height, that match."""
    found = re.search(pattern, data, re.DOTALL)
    if found:
        yield _number(found[1], order), _number(found[2], order)


def _avif(data: bytes) -> Iterator[Size]:
    """All items, of which some are tiles and thumbnails."""
    for width, height in re.findall(rb"ispe\0{4}(.{4})(.{4})", data, re.DOTALL):
        yield _number(width, "big"), _number(height, "big")


def _text(pattern: bytes, data: bytes) -> Iterator[Size]:
    """Two groups of digits named width and height."""
    found = re.match(pattern, data[:_TEXT], re.DOTALL)
    if found:
        yield int(found["width"]), int(found["height"])


def _jpeg(data: bytes) -> Iterator[Size]:
    """Follows the segments to the start of the frame."""
    at = 2
    while at + 9 <= len(data):
        if data[at] != 0xFF:
            return
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            yield _number(data[at + 7 : at + 9], "big"), _number(data[at + 5 : at + 7], "big")
            return
        else:
            at += 2 + _number(data[at + 2 : at + 4], "big")


def _tiff(data: bytes) -> Iterator[Size]:
    """The tags ImageWidth (256) and ImageLength (257) of the first directory."""
    order = "little" if data[:2] == b"II" else "big"
    big = _number(data[2:4], order) == 43
    # bytes of an offset and of the number of entries; bytes of an entry
    offset, count, entry = (8, 8, 20) if big else (4, 2, 12)
    start = _number(data[8:16] if big else data[4:8], order)
    tags: dict[int, int] = {}
    for index in range(_number(data[start : start + count], order)):
        at = start + count + index * entry
        if at + entry > len(data):
            return
        width = {3: 2, 4: 4, 16: 8}.get(_number(data[at + 2 : at + 4], order))  # of the type
        value = at + entry - offset
        if width is not None:
            tag = _number(data[at : at + 2], order)
            tags.setdefault(tag, _number(data[value : value + width], order))
    if 256 in tags and 257 in tags:
        yield tags[256], tags[257]


def _webp(data: bytes) -> Iterator[Size]:
    kind = data[12:16]
    if kind == b"VP8X":
        yield _number(data[24:27], "little") + 1, _number(data[27:30], "little") + 1
    elif kind == b"VP8L":
        bits = _number(data[21:25], "little")
        yield (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        yield _number(data[26:28], "little") & 0x3FFF, _number(data[28:30], "little") & 0x3FFF


def _bmp(data: bytes) -> Iterator[Size]:
    if data[14:15] == b"\x0c":  # the header of OS/2
        yield _number(data[18:20], "little"), _number(data[20:22], "little")
    else:  # a negative height says that the top row comes first
        yield _signed(data[18:22]), _signed(data[22:26])


def _number(digits: bytes, order: str) -> int:
    return int.from_bytes(digits, order)  # type: ignore[arg-type]  # "little" or "big"


def _signed(digits: bytes) -> int:
    return abs(int.from_bytes(digits, "little", signed=True))


_TEXT = 65536  # bytes in which a header of text ends
_CODESTREAM = rb"\xff\x4f\xff\x51.{4}(.{4})(.{4})"
_SPACE = rb"(?:\s|#[^\n]*\n)+"  # of PNM, with comments
_READERS: list[tuple[re.Pattern[bytes], Callable[[bytes], Iterator[Size]]]] = [
    (re.compile(start, re.DOTALL), read)
    for start, read in (
        (rb"\x89PNG\r\n\x1a\n", partial(_fields, rb"\A.{16}(.{4})(.{4})", "big")),
        (rb"\xff\xd8\xff", _jpeg),
        (rb"II[*+]\0|MM\0[*+]", _tiff),
        (rb"RIFF.{4}WEBP", _webp),
        (rb"GIF8[79]a", partial(_fields, rb"\A.{6}(..)(..)", "little")),
        (rb"BM.{12}", _bmp),
        (rb".{4}ftypavi[fs]", _avif),
        # JPEG 2000: a file, or the codestream alone
        (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", partial(_fields, _CODESTREAM, "big")),
        (rb"\x59\xa6\x6a\x95", partial(_fields, rb"\A.{4}(.{4})(.{4})", "big")),
        (
            rb"P[1-6]\s|P[Ff]\s",
            partial(
                _text, rb"P." + _SPACE + rb"(?P<width>\d{1,9})" + _SPACE + rb"(?P<height>\d{1,9})"
            ),
        ),
        (rb"P7\s", partial(_text, rb".*?WIDTH (?P<width>\d{1,9}).*?HEIGHT (?P<height>\d{1,9})")),
        (
            rb"#\?(?:RADIANCE|RGBE)",
            partial(_text, rb".*?\n[-+]Y (?P<height>\d{1,9}) [-+]X (?P<width>\d{1,9})"),
        ),
    )
]
