"""`fastcam.explain` and what it returns: pictures as inputs, the display in a notebook, files."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import warnings
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import Colors, colors
from torch import Tensor, nn

import fastcam
from fastcam import demo, models, pictures
from fastcam.models import LoadedModel, Preprocessing

SCENE = pictures.read(demo.asset("scene.png"))  # (160, 224, 3)
RED, GREEN, BLUE = range(3)
NORMALIZED = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def spot(top: int, left: int, size: tuple[int, int] = (144, 216)) -> np.ndarray:
    """A grey picture with one blue square of 24 pixels."""
    picture = np.full((*size, 3), 40, np.uint8)
    picture[top : top + 24, left : left + 24] = (40, 40, 255)
    return picture


FORMS = {
    "array": lambda picture: picture,
    "read-only array": lambda picture: np.broadcast_to(picture, picture.shape),
    "RGBA": lambda picture: np.dstack([picture, np.full(picture.shape[:2], 9, np.uint8)]),
    "PIL": Image.fromarray,
    "PIL RGBA": lambda picture: Image.fromarray(picture).convert("RGBA"),
    "list": lambda picture: [picture],
}


@pytest.mark.parametrize("form", FORMS)
def test_a_picture_is_preprocessed(form: str) -> None:
    given = FORMS[form](spot(60, 90))
    model = colors()
    explanation = fastcam.explain(model, given, "hirescam", targets=BLUE)
    inputs = model.preprocessing(torch.from_numpy(spot(60, 90))[None])
    expected = fastcam.HiResCAM(model.module)(inputs, BLUE)
    torch.testing.assert_close(explanation.maps, expected)
    assert explanation.images is given
    explained = fastcam.Explainer(model, "hirescam")(given)
    torch.testing.assert_close(explained.maps, fastcam.Explainer(model, "hirescam")(inputs).maps)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "YCbCr", "HSV"])
def test_pil_modes_become_rgb(mode: str) -> None:
    image = Image.fromarray(spot(60, 90)).convert(mode)
    explanation = fastcam.explain(colors(), image)
    expected = fastcam.explain(colors(), np.asarray(image.convert("RGB")))
    assert explanation.maps.equal(expected.maps)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("cat.png", "got (the path 'cat.png', .*read it first|str)"),
        (Path("cat.png"), "got (the path|PosixPath)"),
        (None, "got NoneType"),
        ({1, 2}, "got set"),
        ([SCENE, "cat.png"], "got list"),
        (SCENE.astype(np.float32), r"got an array \(160, 224, 3\) of float32, expected a picture"),
        (SCENE[None], r"got an array \(1, 160, 224, 3\) of uint8"),
        (SCENE[..., :2], "got an array"),
        (
            Image.fromarray(SCENE[..., 0].astype(np.uint16)),
            "got a PIL image of mode I;16, expected 8",
        ),
    ],
)
def test_other_inputs_get_one_sentence(given: object, message: str) -> None:
    for call in (
        lambda: fastcam.explain(Colors(), given),
        lambda: fastcam.Explainer(colors())(given),
    ):
        with pytest.raises(TypeError, match=f"^images: {message}") as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", [[], (), torch.zeros(8, 8, 3, dtype=torch.uint8)])
def test_what_is_no_batch_gets_one_sentence(given: object) -> None:
    with pytest.raises(ValueError, match=r"^images: got (an empty|a uint8 tensor \(8, 8, 3\))"):
        fastcam.explain(Colors(), given)


def test_photographs_are_upright() -> None:
    image = Image.fromarray(spot(60, 90))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned
    data = io.BytesIO()
    image.save(data, "png", exif=exif)
    turned = Image.open(data)
    upright = np.rot90(spot(60, 90), -1).copy()
    explanation = fastcam.explain(colors(), turned)
    assert explanation.maps.equal(fastcam.explain(colors(), upright).maps)
    np.testing.assert_array_equal(panels(explanation)[0], upright)


@pytest.mark.parametrize("given", [SCENE, Image.fromarray(SCENE), "cat.png", None])
def test_a_method_names_explain_for_a_picture(given: object) -> None:
    with pytest.raises(TypeError, match=r"^images: got .*; fastcam\.explain also takes pictures"):
        fastcam.GradCAM(Colors())(given)


def test_a_model_that_takes_arrays_is_explained() -> None:
    class TakesArrays(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.colors = Colors()

        def forward(self, picture: np.ndarray) -> Tensor:
            return self.colors(torch.from_numpy(picture).movedim(-1, 0)[None] / 255)

    maps = fastcam.GradCAM(TakesArrays(), "colors.features")(SCENE, size=SCENE.shape[:2])
    images = torch.from_numpy(SCENE).movedim(-1, 0)[None] / 255
    assert maps.equal(fastcam.GradCAM(Colors(), "features")(images))


def test_unknown_preprocessing_is_named_once() -> None:
    with pytest.warns(UserWarning, match="preprocessing is not known, assumed ImageNet's") as found:
        fastcam.explain(Colors(), SCENE)
    assert len(found) == 1 and found[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastcam.explain(colors(), SCENE)


def test_pictures_of_several_sizes() -> None:
    wide, tall = spot(60, 90), spot(90, 60, (216, 144))
    explanation = fastcam.explain(colors(), [wide, tall])
    for index, picture in enumerate((wide, tall)):
        alone = fastcam.explain(colors(), picture)
        torch.testing.assert_close(explanation.maps[index], alone.maps[0])
    keep = LoadedModel(Colors(), Preprocessing(resize=None, crop=None))
    with pytest.raises(ValueError, match="216x144 and 144x216 pixels become inputs of"):
        fastcam.explain(keep, [wide, tall])


def panels(explanation: fastcam.Explanation) -> list[np.ndarray]:
    page = explanation._repr_html_()
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(b64decode(each)))) for each in found]


def test_a_notebook_shows_the_heat_where_it_is() -> None:
    model = colors()
    explanation = fastcam.explain(model, spot(60, 90), "hirescam", targets=BLUE)
    picture, heated = panels(explanation)
    np.testing.assert_array_equal(picture, spot(60, 90))
    red_over_blue = heated[..., 0].astype(int) - heated[..., 2]
    region = model.preprocessing.region(144, 216)
    inside = red_over_blue[region.top : region.bottom, region.left : region.right]
    rows, columns = np.nonzero(inside > inside.max() / 2)
    assert abs(rows.mean() + region.top - 72) < 4 and abs(columns.mean() + region.left - 102) < 4
    page = explanation._repr_html_()
    assert "blue" in page and f"score {explanation.scores.item():.3g}" in page


def test_a_normalized_tensor_is_stretched_to_grey() -> None:
    page = fastcam.explain(Colors(), NORMALIZED)._repr_html_()
    assert page.count("input, stretched to grey") == 2
    grey = panels(fastcam.explain(Colors(), NORMALIZED))[0]
    assert (grey == grey[..., :1]).all() and grey.min() == 0 and grey.max() == 255
    plain = panels(fastcam.explain(Colors(), NORMALIZED.sigmoid()))[0]
    expected = (NORMALIZED[0].sigmoid() * 255).round().byte().movedim(0, -1)
    np.testing.assert_array_equal(plain, expected.numpy())


def test_at_most_eight_images_and_five_classes() -> None:
    images = torch.rand(11, 3, 16, 16)
    seven = nn.Sequential(Colors(), nn.Linear(3, 7))
    explanation = fastcam.explain(seven, images, targets=fastcam.TopClasses(7))
    assert len(panels(explanation)) == 8 * (1 + 5)
    assert "3 more images" in explanation._repr_html_()


@pytest.mark.parametrize("method", ["guided-backprop", "guided-gradcam", "eigencam", "fullgrad"])
@pytest.mark.parametrize("targets", [None, fastcam.TopClasses(2)])
def test_every_kind_of_map_is_shown(method: str, targets: object) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)
    )
    explanation = fastcam.explain(model, torch.rand(2, 3, 16, 16), method, targets=targets)
    assert len(panels(explanation)) == 2 * (2 if targets is None else 3)


def test_volumes_show_their_middle_and_signals_only_text() -> None:
    volume = nn.Sequential(nn.Conv3d(1, 4, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    explanation = fastcam.explain(volume, torch.rand(1, 1, 9, 16, 16), target_layers="0")
    assert len(panels(explanation)) == 2
    assert "slice 4 of 9" in explanation._repr_html_()
    signal = nn.Sequential(nn.Conv1d(1, 4, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    explanation = fastcam.explain(signal, torch.rand(1, 1, 50), target_layers="0")
    assert panels(explanation) == [] and explanation._repr_png_() is None
    assert "Explanation(gradcam++ of 0, maps (1, 50)" in explanation._repr_html_()
    with pytest.raises(ValueError, match="nothing to draw"):
        explanation.plot()


def test_maps_of_layers_and_functions_as_targets() -> None:
    two = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    images = torch.rand(1, 3, 16, 16)
    per_layer = fastcam.explain(two, images, target_layers=["0", "2"], normalize=False)
    assert panels(per_layer) == []
    assert "maps (1, 16, 16), (1, 16, 16)" in repr(per_layer)
    chosen = fastcam.explain(two, images, target_layers="2", targets=lambda logits: logits.sum())
    assert len(panels(chosen)) == 2 and "functions" in repr(chosen)


def test_drawing_waits_for_the_display(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    heat = fastcam.render.heat  # type: ignore[attr-defined]
    monkeypatch.setattr(fastcam.render, "heat", lambda *args: drawn.append(1) or heat(*args))
    explanation = fastcam.explain(Colors(), NORMALIZED)
    assert not drawn
    explanation._repr_png_()
    assert len(drawn) == 2


def test_repr_is_short() -> None:
    explanation = fastcam.explain(Colors(), torch.rand(20, 3, 16, 16), "gradcam", targets=GREEN)
    expected = "Explanation(gradcam of features, maps (20, 16, 16), classes 1, 1, 1, ...)"
    assert repr(explanation) == expected


def test_plot() -> None:
    import matplotlib

    matplotlib.use("agg")
    axes = fastcam.explain(colors(), SCENE, targets=fastcam.TopClasses(3)).plot()
    assert axes.shape == (1, 4)
    assert axes[0, 1].get_title().startswith(("red", "green", "blue"))
    np.testing.assert_array_equal(axes[0, 0].images[0].get_array(), SCENE)


def test_save(tmp_path: Path) -> None:
    explanation = fastcam.explain(colors(), SCENE, targets=fastcam.TopClasses(2))
    explanation.save(tmp_path / "heat.png")
    explanation.save(str(tmp_path / "new" / "maps.npz"))
    sheet = pictures.read(tmp_path / "heat.png")
    assert sheet.shape == np.asarray(Image.open(io.BytesIO(explanation._repr_png_()))).shape
    with np.load(tmp_path / "new" / "maps.npz") as arrays:
        np.testing.assert_array_equal(arrays["maps"], explanation.maps.numpy())
        np.testing.assert_array_equal(arrays["class_ids"], explanation.class_ids.numpy())
        np.testing.assert_array_equal(arrays["scores"], explanation.scores.numpy())
    for name in ("heat", "heat.txt", "heat.unknown"):
        with pytest.raises(ValueError, match=f"^path: got .*{name}, expected a picture's suffix"):
            explanation.save(tmp_path / name)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["heat.png", "new"]


def test_an_overlay_of_a_picture_is_a_picture() -> None:
    maps = torch.rand(1, 10, 14, generator=torch.Generator().manual_seed(0))
    expected = fastcam.overlay(torch.from_numpy(SCENE)[None], maps)[0].numpy()
    for heat in (maps, maps[0], maps[0].numpy()):
        np.testing.assert_array_equal(fastcam.overlay(SCENE, heat), expected)
        drawn = fastcam.overlay(Image.fromarray(SCENE), heat)
        assert isinstance(drawn, Image.Image)
        np.testing.assert_array_equal(np.asarray(drawn), expected)


@pytest.mark.parametrize(
    ("images", "maps", "message"),
    [
        (torch.rand(1, 3, 8, 8) * 2, torch.rand(1, 8, 8), "^images: got values from .* [0, 1]"),
        (NORMALIZED[:1], torch.rand(1, 8, 8), "^images: got values from -"),
        (SCENE, torch.rand(8, 8) * 3, "^maps: got values from .*normalize=True"),
        (SCENE, torch.rand(8, 8) - 1, "^maps: got values from -"),
        (SCENE, torch.full((8, 8), torch.inf), "^maps: got values"),
        ("cat.png", torch.rand(8, 8), "^images: got str, expected a tensor"),
        ([SCENE], torch.rand(8, 8), "^images: got list"),
    ],
)
def test_overlay_refuses_what_it_would_draw_wrong(
    images: object, maps: Tensor, message: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=message.replace("[0, 1]", r"\[0, 1\]")):
        fastcam.overlay(images, maps)


def test_rounding_and_nan_are_no_error() -> None:
    images = torch.tensor([0.0, 1.0 + 1e-6, torch.nan]).expand(1, 3, 4, 3).contiguous()
    maps = torch.tensor([[[-1e-7, 1.0000001, torch.nan]]])
    fastcam.overlay(images.movedim(3, 1), maps)


def test_one_import_is_enough() -> None:
    names = ("dropin.install", "compat", "targets.TopClasses", "explainer.Explainer", "__version__")
    code = f"import fastcam; print({', '.join(f'fastcam.{name}' for name in names)})"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_pictures_that_are_views() -> None:
    picture = pictures.read(demo.asset("scene.png"))
    model = models.load("digits")
    expected = fastcam.explain(model, picture, targets=7).maps
    stored = np.ascontiguousarray(picture[..., ::-1])  # as OpenCV reads it
    assert fastcam.explain(model, stored[..., ::-1], targets=7).maps.equal(expected)
    turned = np.ascontiguousarray(picture[::-1, ::-1])
    assert fastcam.explain(model, turned[::-1, ::-1], targets=7).maps.equal(expected)
    drawn = fastcam.overlay(stored[..., ::-1], expected)
    assert np.array_equal(drawn, fastcam.overlay(picture, expected))


@pytest.mark.parametrize("shape", [(2, 4, 4), (1, 1, 4, 4), (1, 4), ()])
def test_maps_that_do_not_belong_to_the_pictures(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^maps: got shape"):
        fastcam.overlay(torch.zeros(1, 3, 4, 4), torch.zeros(shape))


def test_explanations_can_be_kept_in_a_set() -> None:
    explanation = fastcam.explain(demo.digits(), torch.rand(1, 3, 40, 40))
    assert len({explanation, explanation}) == 1
    assert explanation == explanation
