"""What runs on an NVIDIA GPU alone: decoding, and frames on their way there.

No GPU has run this yet; the tests put fakes in the place of the GPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.utils.dlpack
from torch import Tensor

from fastcam.video.frame import Decoded, Frame, Planes
from fastcam.video.pyav import av_library


def decoding(name: str) -> dict[str, Any]:
    """Options of ``av.open`` that let NVDEC decode this file; none where it cannot.

    Warns:
        UserWarning: it cannot, and why.
    """
    av = av_library()
    try:
        from av.codec.hwaccel import HWAccel

        options = {"hwaccel": HWAccel("cuda", is_hw_owned=True)}
        with av.open(name, **options) as trial:
            frame = next(trial.decode(video=0))
        if frame.format.name != "cuda" or frame.sw_format.name != "nv12":
            raise ValueError(f"{frame.format.name} frames")
    except (av.FFmpegError, ImportError, RuntimeError, ValueError, StopIteration) as error:
        why = str(error).partition("\n")[0] or type(error).__name__
        warnings.warn(f"{name}: the GPU cannot decode it ({why}): the CPU does", stacklevel=4)
        return {}
    return options


def planes(frame: Any, turns: int) -> Planes:
    """A frame that NVDEC holds, NV12, as planes of our own: its buffers are few."""
    described = Decoded(frame, turns)  # for the matrix and the range alone
    luma, chroma = (torch.utils.dlpack.from_dlpack(plane) for plane in frame.planes)
    chroma = chroma.reshape(frame.height // 2, frame.width // 2, 2)
    y, u, v = (
        torch.rot90(each, turns).clone(memory_format=torch.contiguous_format)
        for each in (luma, chroma[..., 0], chroma[..., 1])
    )
    return Planes(y, u, v, described.matrix, described.full_range)


def uploaded(frames: Iterable[Frame], device: torch.device, depth: int) -> Iterator[Frame]:
    """The frames with their pixels on the GPU: planes where the decoder gives them, else RGB."""
    ring = _Ring(device, depth)
    for frame in frames:
        pixels = frame.pixels
        if isinstance(pixels, Planes):
            yield frame
            continue
        held = pixels.planes() if isinstance(pixels, Decoded) else None
        if held is None:
            yield replace(frame, pixels=_Picture(ring.upload(frame.rgb())))
            continue
        flat = ring.upload(torch.cat([each.reshape(-1) for each in (held.y, held.u, held.v)]))
        parts = flat.split([held.y.numel(), held.u.numel(), held.v.numel()])
        y, u, v = (
            part.view(each.shape)
            for part, each in zip(parts, (held.y, held.u, held.v), strict=True)
        )
        yield replace(frame, pixels=replace(held, y=y, u=u, v=v))


class _Picture:
    """RGB on the GPU."""

    def __init__(self, pixels: Tensor) -> None:
        self._pixels = pixels

    def size(self) -> tuple[int, int]:
        return self._pixels.shape[0], self._pixels.shape[1]

    def rgb(self) -> Tensor:
        return self._pixels


class _Ring:
    """Pinned buffers that copies to the GPU start from, each used again when its copy is done."""

    def __init__(self, device: torch.device, depth: int) -> None:
        self._device = device
        self._depth = depth
        self._slots: list[tuple[Tensor, Any]] = []
        self._next = 0

    def upload(self, data: Tensor) -> Tensor:
        """A copy on the GPU, in the order of the current stream."""
        if len(self._slots) < self._depth:
            self._slots.append((_pinned(data), torch.cuda.Event()))
            index = len(self._slots) - 1
        else:
            index, self._next = self._next, (self._next + 1) % self._depth
            self._slots[index][1].synchronize()
        pinned, copied = self._slots[index]
        pinned.copy_(data)
        result = pinned.to(self._device, non_blocking=True)
        copied.record()
        return result


def _pinned(data: Tensor) -> Tensor:
    """Memory for ``data`` that the GPU can read by itself."""
    return torch.empty(data.shape, dtype=data.dtype, pin_memory=True)
