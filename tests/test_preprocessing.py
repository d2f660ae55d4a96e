"""What a function does to positions is measured; whole pictures for networks of any size."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastcam import models
from fastcam.errors import FastcamError, UsageError
from fastcam.models import LoadedModel, MeasuredTransform, Preprocessing
from fastcam.pictures import render
from fastcam.pictures.render import Region, Style

pytest.importorskip("PIL.Image", reason="Pillow is missing")
transforms = pytest.importorskip("torchvision.transforms.v2", reason="torchvision is missing")
functional = transforms.functional

SIZES = [(300, 451), (451, 300), (97, 640), (640, 97), (333, 334)]


def chain(*steps: Any) -> Any:
    return transforms.Compose(
        [
            *steps,
            transforms.ToImage(),
            transforms.ToDtype(torch.float32, scale=True),
            transforms.Normalize((0.48, 0.45, 0.4), (0.2, 0.25, 0.3)),
        ]
    )


def square(image: Any) -> Any:
    """Padded to a square, with grey."""
    wide, high = max(0, image.height - image.width), max(0, image.width - image.height)
    return functional.pad(image, [wide // 2, high // 2, wide - wide // 2, high - high // 2], 99)


def letterbox(height: int, width: int) -> Region:
    side = max(height, width)
    top, left = -((side - height) // 2), -((side - width) // 2)
    return Region(top, left, top + side, left + side)


KNOWN: dict[str, tuple[Any, Any]] = {
    "stretched": (chain(transforms.Resize((64, 96))), lambda h, w: Region(0, 0, h, w)),
    "bicubic centre": (
        chain(transforms.Resize(64, interpolation=3), transforms.CenterCrop(56)),
        Preprocessing(resize=(64, 64), crop=(56, 56)).region,
    ),
    "nearest": (
        chain(transforms.Resize((48, 48), interpolation=0)),
        lambda h, w: Region(0, 0, h, w),
    ),
    "corner": (
        chain(lambda image: image.crop((10, 20, 90, 80)), transforms.Resize((60, 60))),
        lambda h, w: Region(20, 10, 80, 90),
    ),
    "letterbox": (chain(square, transforms.Resize((64, 64))), letterbox),
    "enlarged": (chain(transforms.Resize((700, 700))), lambda h, w: Region(0, 0, h, w)),
    "channels reversed": (
        lambda image: chain(transforms.Resize((64, 64)))(image)[[2, 1, 0]],
        lambda h, w: Region(0, 0, h, w),
    ),
    "one grey channel": (
        lambda image: chain(transforms.Resize((64, 64)))(image).mean(0, keepdim=True),
        lambda h, w: Region(0, 0, h, w),
    ),
}


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("name", KNOWN)
def test_the_region_is_measured(name: str, height: int, width: int) -> None:
    function, expected = KNOWN[name]
    transform = MeasuredTransform(function, name)
    came, right = transform.region(height, width), expected(height, width)
    slack = 1 + 0.01 * max(height, width)
    assert np.abs(np.subtract(came, right)).max() <= slack, (came, right)


def test_the_normalization_is_measured() -> None:
    steps = MeasuredTransform(KNOWN["letterbox"][0]).report(120, 160)
    assert steps["mean"] == pytest.approx((0.48, 0.45, 0.4), abs=1e-3)
    assert steps["std"] == pytest.approx((0.2, 0.25, 0.3), abs=1e-3)
    assert steps["resize"] == [48, 64]
    assert steps["crop"] == [64, 64]


def test_a_function_runs_on_each_picture() -> None:
    function = KNOWN["bicubic centre"][0]
    transform = MeasuredTransform(function)
    batch = torch.randint(0, 256, (3, 90, 120, 3), dtype=torch.uint8)
    from PIL import Image

    expected = [function(Image.fromarray(each.numpy())) for each in batch]
    assert torch.equal(transform(batch), torch.stack(expected))


def bent(image: Any) -> Any:
    corners = [[0, 0], [63, 0], [63, 63], [0, 63]]
    return functional.perspective(image, corners, [[0, 0], [63, 0], [50, 63], [13, 63]])


class Sometimes:
    """Flips every second picture, without the usual random numbers."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, image: Any) -> Tensor:
        self.count += 1
        made = chain(transforms.Resize((64, 64)))(image)
        return made.flip(2) if self.count % 2 else made


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (chain(transforms.Resize(64), functional.hflip), "does more to positions"),
        (chain(transforms.Resize(64), functional.vflip), "does more to positions"),
        (chain(transforms.Resize((64, 64)), lambda i: i.transpose(5)), "does more to positions"),
        (
            chain(transforms.Resize(64), lambda i: i.rotate(20)),
            "not show the picture as a rectangle",
        ),
        (
            chain(transforms.Resize(64), lambda i: i.rotate(3), transforms.CenterCrop(50)),
            "does more",
        ),
        (chain(transforms.Resize((64, 64)), bent), "not show the picture as a rectangle"),
        (chain(lambda i: functional.pad(i, [90, 0, 90, 0], padding_mode="reflect")), "does more"),
        (lambda image: chain(transforms.Resize(64))(image) ** 3, "does more"),
        (chain(transforms.RandomResizedCrop(64)), "it is random"),
        (chain(transforms.Resize(64), transforms.RandomHorizontalFlip(0.1)), "it is random"),
        (lambda image: chain()(image) + random.random(), "it is random"),
        (lambda image: chain()(image) + np.random.rand(), "it is random"),
        (Sometimes(), "does more to positions|it is random"),
        (lambda image: torch.zeros(3, 8, 8), "black and a white picture become the same"),
        (lambda image: chain(transforms.Resize((64, 64)))(image).log(), "is not finite"),
        (
            lambda image: torch.fft.fft2(chain()(image)).abs(),
            "does not show the picture as a rectangle",
        ),
    ],
)
def test_a_function_that_moves_positions_is_refused(function: Any, message: str) -> None:
    state = torch.get_rng_state(), random.getstate()
    with pytest.raises(UsageError, match=rf"({message}).*Preprocessing\(\.\.\.\)") as raised:
        MeasuredTransform(function, "mine")(torch.zeros(1, 120, 160, 3, dtype=torch.uint8))
    assert "\n" not in str(raised.value)
    assert torch.equal(state[0], torch.get_rng_state())
    assert state[1] == random.getstate()


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda image: 3, UsageError, "mine: returned int, expected a tensor"),
        (lambda image: torch.zeros(5, 3, 8, 8), UsageError, r"returned \(5, 3, 8, 8\)"),
        (lambda image: torch.zeros(8, 8, 3), UsageError, r"expected \(3, h, w\)"),
        (lambda image: torch.zeros(3, 8, 8).byte(), UsageError, "of torch.uint8"),
        (lambda image: image.none, FastcamError, "mine: AttributeError"),
    ],
)
def test_a_function_that_returns_something_else(
    function: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        MeasuredTransform(function, "mine").region(40, 40)


def test_a_picture_that_is_too_small_to_measure() -> None:
    with pytest.raises(FastcamError, match="on a picture of 200x1 pixels") as raised:
        MeasuredTransform(KNOWN["stretched"][0]).region(1, 200)
    assert raised.value.exit_code == 1, "the other pictures of a batch go on"


def test_a_transform_is_a_preprocessing() -> None:
    with pytest.raises(UsageError, match=r"got Compose, expected Preprocessing\(\.\.\.\), or Meas"):
        LoadedModel(nn.Identity(), transforms.Compose([nn.Identity()]))


def test_heat_over_a_padded_picture() -> None:
    """A region that exceeds the picture: only the part over the picture is drawn."""
    maps = torch.zeros(1, 4, 4)
    maps[0, 2, 3] = 1  # the second of the picture's two rows, the last column
    picture = torch.zeros(1, 20, 40, 3, dtype=torch.uint8)
    drawn = render.heat(picture, maps, Region(-10, 0, 30, 40), Style("heat", "bone"))[0, ..., 0]
    assert drawn.shape == (20, 40)
    assert np.abs(np.argwhere(drawn.numpy() > 128).mean(0) - (14.5, 36)).max() < 3


class Pooled(nn.Module):
    """A network of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = nn.Parameter(torch.zeros(1))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        self.seen += 1
        return images.flatten(2).mean(2)


class OneSize(Pooled):
    def forward(self, images: Tensor) -> Tensor:
        return images.reshape(-1, 3, 96 * 96).mean(2)


class Dense(Pooled):
    def forward(self, images: Tensor) -> Tensor:
        return images


USUAL = Preprocessing(resize=(128, 128), crop=(96, 96))


@pytest.mark.parametrize(
    ("module", "preprocessing", "expected"),
    [
        (Pooled(), USUAL, Preprocessing(resize=(96, 96), crop=(288, 288))),
        (OneSize(), USUAL, USUAL),
        (Dense(), USUAL, USUAL),
        (Pooled(), Preprocessing(resize=(9, 9), crop=(9, 9), stretch=True), None),
        (Pooled(), Preprocessing(resize=(9, 9), crop=None), None),
        (Pooled(), Preprocessing(resize=None, crop=(9, 9)), None),
        (Pooled(), MeasuredTransform(lambda image: image), None),
    ],
)
def test_whole_pictures(module: Pooled, preprocessing: Any, expected: Any) -> None:
    model = LoadedModel(module, preprocessing)
    assert models.whole_picture(model).preprocessing == (expected or preprocessing)
    assert module.seen == 0, "a trial leaves no trace"


def test_a_whole_picture_has_the_shape_of_the_picture() -> None:
    whole = models.whole_picture(LoadedModel(Pooled(), USUAL)).preprocessing
    for height, width, size in ((100, 150, (96, 144)), (150, 100, (144, 96)), (50, 400, (96, 288))):
        made = whole(torch.zeros(1, height, width, 3, dtype=torch.uint8))
        assert tuple(made.shape[2:]) == size
    assert whole.region(50, 400) == Region(0, 125, 50, 275)


def trimmed(image: Any) -> Any:
    """Without dark borders, as scanners and microscopes leave them."""
    box = image.convert("L").point(lambda value: 255 * (value > 30)).getbbox()
    return image.crop(box) if box else image


def textures(height: int, width: int) -> dict[str, np.ndarray]:
    random_numbers = np.random.default_rng(0)
    column = np.indices((height, width))[1]
    spot = np.zeros((height, width, 3), np.uint8)
    spot[height // 6 : height // 2, width // 6 : width // 3] = 200
    grey = {"flat": np.full((height, width), 90), "stripes": column // 3 % 2 * 255}
    return {
        "noise": random_numbers.integers(0, 256, (height, width, 3), dtype=np.uint8),
        "spot": spot,
        **{name: each.astype(np.uint8)[..., None].repeat(3, 2) for name, each in grey.items()},
    }


@pytest.mark.parametrize(("height", "width"), [(60, 97), (333, 640)])
def test_a_cut_that_depends_on_the_picture_is_refused(height: int, width: int) -> None:
    transform = MeasuredTransform(chain(trimmed, transforms.Resize((64, 64))))
    picture = torch.from_numpy(textures(height, width)["spot"])[None]
    with pytest.raises(UsageError, match="its crop depends on the content of the picture"):
        transform.fitted(picture)


@pytest.mark.parametrize("steps", [[], [transforms.Grayscale(3)]], ids=["colour", "grey"])
def test_a_flip_that_depends_on_the_picture_is_refused(steps: list[Any]) -> None:
    def turned(image: Any) -> Any:
        red, _, blue = np.asarray(image).reshape(-1, 3).mean(0)
        return functional.vflip(image) if red > blue + 10 else image

    transform = MeasuredTransform(chain(turned, *steps, transforms.Resize((64, 64))))
    picture = np.full((90, 120, 3), 60, np.uint8)
    picture[10:50, 20:60] = 230, 120, 90
    with pytest.raises(UsageError, match="its crop depends on the content of the picture"):
        transform.fitted(torch.from_numpy(picture)[None])
    transform.fitted(torch.from_numpy(picture[..., ::-1].copy())[None])


@pytest.mark.parametrize("texture", ["noise", "spot", "flat", "stripes"])
@pytest.mark.parametrize(("height", "width"), [(16, 20), (200, 60), (333, 640)])
def test_a_cut_that_depends_on_the_size_alone_is_not(texture: str, height: int, width: int) -> None:
    picture = torch.from_numpy(textures(height, width)[texture])[None]
    nearest = transforms.InterpolationMode.NEAREST
    for steps in (
        [transforms.Resize(72), transforms.CenterCrop(64)],
        [transforms.Resize((50, 50), interpolation=nearest)],
        [square, transforms.Resize((64, 64))],
        [transforms.Resize((32, 32)), transforms.Grayscale()],
        [transforms.Grayscale(3), transforms.Resize(72), transforms.CenterCrop(64)],
        [transforms.Lambda(lambda image: image.convert("HSV").convert("RGB"))],
    ):
        MeasuredTransform(transforms.Compose([*steps, transforms.ToTensor()])).fitted(picture)
