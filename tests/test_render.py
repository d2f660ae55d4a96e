"""Colours over pictures, in the right place, with legible captions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import fastcam
from fastcam.errors import UsageError
from fastcam.pictures import render
from fastcam.pictures.render import Title

CPU = torch.device("cpu")


@pytest.fixture
def pictures() -> Tensor:
    return torch.randint(256, (2, 12, 16, 3), dtype=torch.uint8, generator=torch.Generator())


def test_colour_tables_are_rgb() -> None:
    jet = render.color_table("jet", CPU)
    assert jet.shape == (256, 3)
    assert jet[0, 2] > jet[0, 0], "cold is blue"
    assert jet[255, 0] > jet[255, 2], "hot is red"


def test_an_unknown_colour_table_is_named_beside_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"turb; choose from .*turbo"):
        render.color_table("turb", CPU)


@pytest.mark.parametrize("level", [0.0, 1.0])
@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("floating", [False, True])
def test_overlay_blends(
    pictures: Tensor, level: float, channels_first: bool, floating: bool
) -> None:
    images = pictures.movedim(-1, 1) if channels_first else pictures
    images = images / 255 if floating else images
    blended = fastcam.overlay(images, torch.full((2, 3, 4), level), "viridis", alpha=0.3)
    color = render.color_table("viridis", CPU)[round(255 * level)]
    expected = 0.3 * color + 0.7 * pictures
    assert blended.dtype == torch.uint8
    assert blended.shape == images.shape
    result = blended.movedim(1, -1) if channels_first else blended
    torch.testing.assert_close(result.float(), expected, atol=1, rtol=0)


def test_heat_lies_on_the_region_and_the_rest_is_dark(pictures: Tensor) -> None:
    region = render.Region(2, 4, 10, 12)
    maps = torch.tensor([[[0.0, 7.0]], [[0.0, 0.0]]])  # hot on the right; nothing at all
    result = render.heat(pictures, maps, region, "bone", alpha=1)
    assert result[0, 2:10, 11].eq(255).all()
    assert result[0, 2:10, 4].eq(0).all()
    assert result[1, 2:10, 4:12].eq(0).all()
    outside = torch.ones(12, 16, dtype=torch.bool)
    outside[2:10, 4:12] = False
    assert torch.equal(result[:, outside], pictures[:, outside] // 2)


@pytest.mark.parametrize(("height", "width"), [(24, 64), (720, 1280), (1280, 720), (40, 1600)])
def test_a_caption_stays_in_its_corner(height: int, width: int) -> None:
    picture = np.full((height, width, 3), 100, np.uint8)
    render.caption(picture, Title("Egyptian cat", "93%"))
    changed = np.argwhere((picture != 100).any(2))
    assert (changed.min(0) == 0).all()
    bottom, right = changed.max(0) + 1
    assert bottom <= max(0.08 * height, 32)
    assert picture[:bottom, :right].max() > 200, "white on black"
    inside = picture[:bottom, :right]
    assert (inside[-2:] == 0).all(), "the letters end above the box"
    assert (inside[:, -2:] == 0).all(), "and before it"


def test_a_long_caption_is_shortened() -> None:
    written = []
    for name in ("a class with a very long name that fits nowhere", "a class with a very long one"):
        written.append(np.full((100, 160, 3), 100, np.uint8))
        render.caption(written[-1], Title(name, "7%"))
        assert (written[-1][:20, -4:] == 100).all()
    assert np.array_equal(*written), "the end of the name goes, the note stays"
    other = np.full((100, 160, 3), 100, np.uint8)
    render.caption(other, Title(name, "8%"))
    assert not np.array_equal(other, written[0])


@pytest.mark.parametrize(
    ("count", "rows", "columns"), [(1, 1, 1), (4, 1, 4), (6, 2, 3), (11, 3, 4)]
)
def test_a_grid_holds_every_panel(count: int, rows: int, columns: int) -> None:
    panels = [(Title(f"class {k}"), np.full((30, 60, 3), 20 * k, np.uint8)) for k in range(count)]
    page = render.grid(panels)
    assert page.shape[1] // 360 == columns
    assert page.shape[0] // 180 == rows
    for k in range(count):
        assert (page == 20 * k).all(2).mean() > 0.5 / (rows * columns)


def test_a_narrow_panel_has_room_for_its_caption() -> None:
    page = render.grid([(Title("a name"), np.zeros((200, 10, 3), np.uint8))])
    assert page.shape[0] > 360
    assert page.shape[1] > 150
