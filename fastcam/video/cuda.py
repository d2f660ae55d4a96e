"""Decoding on an NVIDIA GPU, and uploading frames to it.

Not yet run on a GPU; the tests use fakes.
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
    """Options of ``av.open`` that decode this file with NVDEC; empty if it cannot be.

    Warns:
        UserWarning: if NVDEC cannot decode the file.
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
        warnings.warn(
            f"{name}: decoding on the CPU because the GPU cannot decode it ({why})", stacklevel=4
        )
        return {}
    return options


def planes(frame: Any, turns: int) -> Planes:
    """Copies an NV12 frame out of NVDEC's buffers, which are few."""
    described = Decoded(frame, turns)  # only for the matrix and the range
    luma, chroma = (torch.utils.dlpack.from_dlpack(plane) for plane in frame.planes)
    chroma = chroma.reshape(frame.height // 2, frame.width // 2, 2)
    y, u, v = (
        torch.rot90(each, turns).clone(memory_format=torch.contiguous_format)
        for each in (luma, chroma[..., 0], chroma[..., 1])
    )
    return Planes(y, u, v, described.matrix, described.full_range)


def uploaded(frames: Iterable[Frame], device: torch.device, depth: int) -> Iterator[Frame]:
    """Frames with their pixels on the GPU: planes if the decoder provides them, else RGB."""
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
    """A ring of pinned staging buffers for copies to the GPU."""

    def __init__(self, device: torch.device, depth: int) -> None:
        self._device = device
        self._depth = depth
        self._slots: list[tuple[Tensor, Any]] = []
        self._next = 0

    def upload(self, data: Tensor) -> Tensor:
        """Copies to the GPU, ordered on the current stream."""
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
    """An empty pinned tensor like ``data``."""
    return torch.empty(data.shape, dtype=data.dtype, pin_memory=True)
