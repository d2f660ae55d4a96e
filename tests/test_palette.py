"""Pictures in 256 colours: as good as a palette for each frame, exact if there are few colours."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from fastcam import demo, pictures
from fastcam.pictures import Picture
from fastcam.video.palette import Quantizer

av = pytest.importorskip("av")


def quantized(quantizer: Quantizer, picture: Picture) -> Picture:
    indices = quantizer(picture)
    shown: Picture = quantizer.palette[indices]
    return shown


def test_no_worse_than_a_palette_for_each_frame() -> None:
    photograph = pictures.read(demo.asset("photo.jpg"))
    quantizer = Quantizer()
    for left in range(0, 80, 8):
        picture = np.ascontiguousarray(photograph[:, left : left + 360])
        shown = quantized(quantizer, picture)
        assert psnr(shown, picture) > psnr(by_ffmpeg(picture), picture) - 1


def test_one_palette_serves_a_scene() -> None:
    photograph = pictures.read(demo.asset("photo.jpg"))
    quantizer = Quantizer()
    palettes = set()
    for left in range(10):
        quantizer(photograph[:, left : left + 360])
        palettes.add(quantizer.palette.tobytes())
    assert len(palettes) == 1
    quantizer(255 - photograph[:, :360])
    assert quantizer.palette.tobytes() not in palettes


def test_a_small_part_in_a_new_colour_keeps_it() -> None:
    photograph = pictures.read(demo.asset("photo.jpg"))
    quantizer = Quantizer()
    quantizer(photograph)
    changed = photograph.copy()
    changed[100:103, 100:103] = 0, 255, 0
    shown = quantized(quantizer, changed)[100:103, 100:103]
    assert np.abs(shown.astype(int) - (0, 255, 0)).max() < 16


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (40, 56)])
def test_few_colours_are_exact(shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    levels = np.array([0, 80, 160, 255], np.uint8)
    quantizer = Quantizer()
    for picture in (generator.choice(levels, (*shape, 3)), np.zeros((*shape, 3), np.uint8)):
        for shown in (picture, picture[::-1]):
            assert (quantized(quantizer, shown) == shown).all()


def psnr(got: Picture, want: Picture) -> float:
    return float(10 * np.log10(255**2 / np.square(got.astype(float) - want).mean()))


def by_ffmpeg(picture: Picture) -> Picture:
    """With a palette of its own and error diffusion."""
    graph = av.filter.Graph()
    height, width = picture.shape[:2]
    source = graph.add_buffer(width=width, height=height, format="rgb24", time_base=Fraction(1))
    split, sink = graph.add("split"), graph.add("buffersink")
    palette = graph.add("palettegen", "stats_mode=single")
    use = graph.add("paletteuse", "new=1:dither=sierra2_4a")
    source.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(palette, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    frame.pts, frame.time_base = 0, Fraction(1)
    graph.push(frame)
    shown: Picture = graph.pull().to_ndarray(format="rgb24")
    return shown
