"""What runs on a GPU alone, with fakes in its place, and what happens where it cannot be had."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from clips import av, contents, quarters, write_clip

from fastcam.video import Frame, cuda, writer
from fastcam.video.frame import Decoded
from fastcam.video.sources import Clip
from fastcam.video.writer import Writer

if torch.cuda.is_available():
    pytest.skip("there is a GPU: its absence is not tested", allow_module_level=True)


def decoded(turns: int = 0) -> Decoded:
    rgb = av.VideoFrame.from_ndarray(quarters(), format="rgb24")
    return Decoded(rgb.reformat(format="yuv420p"), turns)


def test_a_clip_that_nvdec_cannot_decode(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "in.mp4", [0, 40, 80])
    with (
        pytest.warns(UserWarning, match=r"in\.mp4: decoding on the CPU because the GPU cannot"),
        Clip(source, device="cuda") as clip,
    ):
        assert len(list(clip)) == 3


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_nv12_frames_become_planes(turns: int) -> None:
    expected = decoded(turns).planes()
    straight = decoded().planes()
    assert expected is not None and straight is not None
    chroma = torch.stack((straight.u, straight.v), -1).reshape(len(straight.u), -1)
    frame: Any = SimpleNamespace(
        height=96, width=160, colorspace=2, color_range=1, format=SimpleNamespace(name="cuda"),
        planes=[straight.y.numpy().copy(), chroma.numpy().copy()],
    )  # fmt: skip
    found = cuda.planes(frame, turns)
    for name in ("y", "u", "v"):
        assert getattr(found, name).equal(getattr(expected, name)), name
    assert (found.matrix, found.full_range) == ("bt601", False)
    frame.planes[0][:] = 0  # the decoder uses its buffer again
    assert found.y.equal(expected.y)


class Event:
    """Counts how often somebody waits for a copy."""

    waits = 0

    def record(self) -> None:
        self.recorded = True

    def synchronize(self) -> None:
        assert self.recorded
        Event.waits += 1


def test_frames_on_their_way_to_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    buffers: list[int] = []

    def pinned(data: torch.Tensor) -> torch.Tensor:
        buffers.append(data.numel())
        return torch.empty(data.shape, dtype=data.dtype)

    real = torch.Tensor.to

    def to(tensor: torch.Tensor, *arguments: Any, non_blocking: bool = False) -> torch.Tensor:
        assert non_blocking
        return real(tensor, *arguments).clone()  # a copy, as to another device

    monkeypatch.setattr(cuda, "_pinned", pinned)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.Tensor, "to", to)
    picture = quarters()
    frames = [Frame(decoded(turns), turns, Fraction(1, 25)) for turns in (0, 2, 0, 2)]
    arrived = list(cuda.uploaded(frames, torch.device("cpu"), depth=2))
    assert buffers == [96 * 160 * 3 // 2] * 2, "two buffers, used again"
    assert Event.waits == 2
    for frame, before in zip(arrived, frames, strict=True):
        assert frame.size == before.size
        assert np.abs(frame.picture.astype(int) - before.picture).mean() < 1.5
    (other,) = cuda.uploaded([Frame(picture, 0, Fraction(1, 25))], torch.device("cpu"), depth=2)
    assert (other.picture == picture).all()
    assert other.size == (96, 160)


def chosen(codec: str, **fakes: Callable[..., Any]) -> tuple[type, list[str]]:
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        for name, fake in fakes.items():
            patch.setattr(writer, name, fake)
        encoder = writer._encoder(codec, "cuda", (64, 64))
    return encoder, [str(each.message) for each in said if each.category is UserWarning]


def test_which_encoder() -> None:
    def works(*_: object) -> bytes:
        return b""

    def fails(*_: object) -> bytes:
        raise RuntimeError("no such GPU")

    assert chosen("auto", _try_nvenc=works) == (writer._NVENC, [])
    encoder, (said,) = chosen("auto", _try_nvenc=fails, _jpeg=works)
    assert encoder is writer._MJPEGOnGPU
    assert "writing JPEGs because the GPU has no H.264 encoder (no such GPU)" in said
    for codec in ("auto", "h264"):
        encoder, (said,) = chosen(codec, _try_nvenc=fails, _jpeg=fails)
        assert encoder is writer._H264
        assert "encoding on the CPU because the GPU has no H.264 encoder (no such GPU)" in said
    assert chosen("mjpeg", _jpeg=works) == (writer._MJPEGOnGPU, [])
    encoder, (said,) = chosen("mjpeg", _jpeg=fails)
    assert encoder is writer._MJPEG
    assert said == "encoding on the CPU because the GPU has no JPEG encoder (no such GPU)"


def test_a_clip_where_nothing_can_be_had(tmp_path: Path) -> None:
    with (
        pytest.warns(UserWarning, match="encoding on the CPU because the GPU has no H.264 encoder"),
        Writer(tmp_path / "out.mp4", Fraction(25), device="cuda") as clip,
    ):
        for index in range(3):
            clip.write(Frame(quarters(), index, Fraction(1, 25)))
    assert contents(tmp_path / "out.mp4").codec == "h264"
