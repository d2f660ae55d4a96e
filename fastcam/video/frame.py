"""A frame of a clip: its pixels and its presentation time."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from fastcam.pictures import Picture

if TYPE_CHECKING:
    import av

Matrix = Literal["bt601", "bt709"]

_LUMA_WEIGHTS = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}  # K_R and K_B
_PLANAR = ("yuv420p", "yuvj420p")  # 8 bits, chroma at half the height and width
_local = threading.local()


class Pixels(Protocol):
    """Pixels in another form than an RGB array."""

    def size(self) -> tuple[int, int]:
        """(height, width), upright."""

    def rgb(self) -> Tensor:
        """(H, W, 3) uint8, upright, on the pixels' device."""


@dataclass(frozen=True)
class Frame:
    """A frame of a clip and its presentation time."""

    pixels: Picture | Pixels
    """(H, W, 3), RGB, upright; or an object that converts to it."""
    pts: int
    time_base: Fraction
    pixel_aspect: Fraction = Fraction(1)
    """Width over height of one displayed pixel."""

    @property
    def time(self) -> float:
        """Seconds."""
        return float(self.pts * self.time_base)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        if isinstance(self.pixels, np.ndarray):
            return self.pixels.shape[0], self.pixels.shape[1]
        return self.pixels.size()

    @property
    def picture(self) -> Picture:
        """(H, W, 3), RGB, upright; decoder planes are converted on each access."""
        return self.pixels if isinstance(self.pixels, np.ndarray) else self.rgb().cpu().numpy()

    def rgb(self) -> Tensor:
        """The picture as a tensor on the pixels' device."""
        pixels = self.pixels
        return torch.from_numpy(pixels) if isinstance(pixels, np.ndarray) else pixels.rgb()


@dataclass(frozen=True)
class Planes:
    """8-bit YUV 4:2:0, on any device."""

    y: Tensor
    """(H, W) uint8."""
    u: Tensor
    """(ceil(H / 2), ceil(W / 2)) uint8, like ``v``."""
    v: Tensor
    matrix: Matrix
    full_range: bool
    """Whether luma spans 0 to 255; otherwise 16 to 235, and chroma 16 to 240."""

    def size(self) -> tuple[int, int]:
        return self.y.shape[0], self.y.shape[1]

    def rgb(self) -> Tensor:
        """(H, W, 3) uint8, with nearest chroma samples and truncated values, like swscale.

        With luma and chroma scaled to Y in [0, 1] and U, V in [-1/2, 1/2]:
        R = Y + 2 (1 - K_R) V, B = Y + 2 (1 - K_B) U, G = (Y - K_R R - K_B B) / (1 - K_R - K_B)
        (ITU-R BT.601-7 and BT.709-6, section 3).
        """
        red, blue = _LUMA_WEIGHTS[self.matrix]
        height, width = self.size()
        lowest, luma, chroma = (0, 255, 255) if self.full_range else (16, 219, 224)
        y = (self.y.float() - lowest) / luma
        u, v = (
            ((each.float() - 128) / chroma)
            .repeat_interleave(2, 0)[:height]
            .repeat_interleave(2, 1)[:, :width]
            for each in (self.u, self.v)
        )
        r = y + 2 * (1 - red) * v
        b = y + 2 * (1 - blue) * u
        g = (y - red * r - blue * b) / (1 - red - blue)
        return (torch.stack((r, g, b), -1) * 255).clamp_(0, 255).byte()


@dataclass(frozen=True)
class Decoded:
    """A decoder's frame, in a buffer that the decoder reuses once this object is freed."""

    frame: av.VideoFrame
    turns: int
    """Counterclockwise quarter turns that make it upright."""

    def size(self) -> tuple[int, int]:
        height, width = self.frame.height, self.frame.width
        return (width, height) if self.turns % 2 else (height, width)

    def rgb(self) -> Tensor:
        given: dict[str, Any] = {}
        if self.frame.format.name.startswith(("yuv", "nv")):
            given = {
                "src_colorspace": "ITU709" if self.matrix == "bt709" else "ITU601",
                "src_color_range": "JPEG" if self.full_range else "MPEG",
                "dst_color_range": "JPEG",
            }
        rgb = reformatter().reformat(self.frame, format="rgb24", threads=1, **given).to_ndarray()
        return torch.from_numpy(np.ascontiguousarray(np.rot90(rgb, self.turns)))

    def planes(self) -> Planes | None:
        """The planes, copied only if rotated; None if the format is not 4:2:0."""
        if self.frame.format.name not in _PLANAR:
            return None
        views = [
            np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[
                : plane.height, : plane.width
            ]
            for plane in self.frame.planes
        ]
        if self.turns:
            views = [np.ascontiguousarray(np.rot90(each, self.turns)) for each in views]
        y, u, v = (torch.from_numpy(each) for each in views)
        return Planes(y, u, v, self.matrix, self.full_range)

    @property
    def matrix(self) -> Matrix:
        """The matrix that the file declares, otherwise by frame size, as players do."""
        declared = {1: "bt709", 5: "bt601", 6: "bt601"}.get(self.frame.colorspace)
        return declared or ("bt709" if self.frame.height >= 720 else "bt601")  # type: ignore[return-value]

    @property
    def full_range(self) -> bool:
        return self.frame.color_range == 2 or self.frame.format.name.startswith("yuvj")


def reformatter() -> Any:
    """This thread's converter to RGB, which caches its tables across frames."""
    if not hasattr(_local, "reformatter"):
        from av.video.reformatter import VideoReformatter

        _local.reformatter = VideoReformatter()
    return _local.reformatter
