"""Colours over pictures, in the right place, with legible captions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import fastcam
from fastcam.errors import UsageError
from fastcam.pictures import Picture, render
from fastcam.pictures.render import LAYOUTS, Style, Title

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
    blended = fastcam.overlay(
        images, torch.full((2, 3, 4), level), "viridis", alpha=0.3, fade=False
    )
    color = render.color_table("viridis", CPU)[round(255 * level)]
    expected = 0.3 * color + 0.7 * pictures
    assert blended.dtype == torch.uint8
    assert blended.shape == images.shape
    result = blended.movedim(1, -1) if channels_first else blended
    torch.testing.assert_close(result.float(), expected, atol=1, rtol=0)


def test_heat_lies_on_the_region_and_the_rest_is_dark(pictures: Tensor) -> None:
    region = render.Region(2, 4, 10, 12)
    maps = torch.tensor([[[0.0, 7.0]], [[0.0, 0.0]]])  # hot on the right; nothing at all
    result = render.heat(pictures, maps, region, Style("overlay", "bone", 1.0, fade=False))
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
        written.append(np.full((100, 120, 3), 100, np.uint8))
        render.caption(written[-1], Title(name, "7%"))
        assert (written[-1][:20, -4:] == 100).all()
    assert np.array_equal(*written), "the end of the name goes, the note stays"
    other = np.full((100, 120, 3), 100, np.uint8)
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


def test_cold_parts_stay_as_they_were_and_opacity_follows_the_heat(pictures: Tensor) -> None:
    maps = torch.linspace(0, 1, 16).expand(2, 12, 16)
    drawn = fastcam.overlay(pictures, maps, alpha=0.8)
    assert torch.equal(drawn[:, :, :2], pictures[:, :, :2])
    shares = render.opacities(0.8, True, CPU)
    assert shares[:25].max() == 0
    assert shares.diff().min() >= 0
    assert shares[-1] == pytest.approx(0.8)
    expected = 0.2 * pictures[:, :, -1].float() + 0.8 * render.color_table("turbo", CPU)[-1]
    torch.testing.assert_close(drawn[:, :, -1].float(), expected, atol=1, rtol=0)


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_an_opacity_outside_its_range(pictures: Tensor, alpha: float) -> None:
    with pytest.raises(UsageError, match=r"alpha: got .*, expected a value in \[0, 1\]"):
        fastcam.overlay(pictures, torch.rand(2, 3, 4), alpha=alpha)
    with pytest.raises(UsageError, match=r"alpha: got .*, expected a value in \[0, 1\]"):
        Style(alpha=alpha)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (64, 64), (96, 128)])
def test_every_layout_draws_every_size(layout: str, size: tuple[int, int]) -> None:
    picture = torch.full((1, *size, 3), 100, dtype=torch.uint8)
    style = Style(layout, enlarge="bicubic", colorbar=layout != "outline")
    drawn = render.heat(picture, torch.rand(1, 7, 7), render.Region(0, 0, *size), style)
    assert drawn.shape == picture.shape
    arranged = render.arranged(picture[0].numpy(), drawn[0].numpy(), style, (-0.5, 3.0))
    height, width = size
    assert arranged.shape[1] == width * (1 + (layout == "side-by-side"))
    assert (arranged.shape[0] > height) == style.colorbar


def test_lines_lie_at_their_levels() -> None:
    picture = torch.full((1, 100, 200, 3), 100, dtype=torch.uint8)
    maps = torch.linspace(0, 1, 200).expand(1, 100, 200)
    region = render.Region(0, 0, 100, 200)
    outline = render.heat(picture, maps, region, Style("outline"))[0, 50]
    assert outline[99:101].min() > 170
    assert outline[:94].eq(100).all()
    assert outline[106:].eq(100).all()
    contours = render.heat(picture, maps, region, Style("contours"))[0, 50]
    changed = contours.ne(100).any(1).nonzero()[:, 0]
    assert {round(x.item() / 50) for x in changed} == {1, 2, 3}
    table = render.color_table("turbo", CPU).int()
    for level in (0.25, 0.5, 0.75):
        shown = contours[round(level * 199)].int()
        assert shown.argmax() == table[round(level * 255)].argmax()


def test_a_colorbar_has_the_colours_as_they_are_shown() -> None:
    picture = np.zeros((100, 300, 3), np.uint8)
    style = Style(alpha=1.0, colorbar=True)
    strip = render.arranged(picture, picture, style, (0.0, 2.0))[100:]
    middle = strip[strip.shape[0] // 2]
    table = render.color_table("turbo", CPU).numpy()
    assert (middle[0] == 255).all()
    distances = np.abs(middle[:, None].astype(int) - table).max(2).min(0)  # to each colour
    assert distances[220:250].max() < 12, "opaque at the hot end"
    assert distances[:25].min() > 20, "and white at the cold end"
    titled = render.arranged(picture, picture, style, (0.0, 2.0), Title("a cat"))[100:]
    assert titled.shape[0] > strip.shape[0]


def test_styles_are_checked() -> None:
    with pytest.raises(UsageError, match="unknown layout up; choose from overlay"):
        Style("up")
    with pytest.raises(UsageError, match="unknown enlargement cubic; choose from bilinear"):
        Style(enlarge="cubic")
    with pytest.raises(UsageError, match="colorbar: the outline has no colours"):
        Style("outline", colorbar=True)


def test_bicubic_heat_is_smooth_and_bilinear_exact() -> None:
    maps = torch.rand(1, 7, 7, generator=torch.Generator().manual_seed(0))
    picture = torch.zeros((1, 140, 140, 3), dtype=torch.uint8)
    region = render.Region(0, 0, 140, 140)
    smooth, exact = (
        render.heat(picture, maps, region, Style("heat", "bone", enlarge=how))[..., 1].float()
        for how in ("bicubic", "bilinear")
    )
    levels = fastcam.ops.upsample(maps, (140, 140), normalize=False) * 255
    assert (exact - render.color_table("bone", CPU)[levels.round().long()][..., 1]).abs().max() <= 3
    assert (smooth - exact).abs().max() > 3
    assert smooth[0, 3::20, 3::20].sub(exact[0, 3::20, 3::20]).abs().mean() < 40


@pytest.mark.parametrize("name", ["Müller", "медведь", "猫", "고양이", "قطة"])
def test_names_in_other_scripts_are_written(name: str) -> None:
    def written(text: str) -> Picture:
        picture = np.zeros((100, 300, 3), np.uint8)
        render.caption(picture, Title(text))
        return picture

    assert not np.array_equal(written(name), written("?" * len(name)))


@pytest.mark.parametrize(("height", "width"), [(96, 128), (64, 64)])
def test_a_caption_leaves_a_small_clip_visible(height: int, width: int) -> None:
    picture = np.full((height, width, 3), 100, np.uint8)
    render.caption(picture, Title("Egyptian cat", "93%"))
    assert (picture[height // 4 :] == 100).all()
    assert picture.max() > 200


def test_a_grid_of_the_most_panels_opens_everywhere() -> None:
    panel = (Title("a"), np.zeros((30, 30, 3), np.uint8))
    assert max(render.grid([panel] * render.MOST_PANELS).shape) < 16384
