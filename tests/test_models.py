"""Models by name: weights, preprocessing, classes; and what is said when they cannot be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from fastcam import models
from fastcam.errors import FastcamError, UsageError
from fastcam.models import LoadedModel, Preprocessing

torchvision = pytest.importorskip("torchvision", reason="torchvision is missing")

SIZES = [(300, 451), (512, 512), (640, 427), (100, 90)]


def picture(height: int, width: int) -> torch.Tensor:
    """(1, height, width, 3), smooth."""
    coarse = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(height))
    fine = nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    return (255 * fine).to(torch.uint8).movedim(1, -1)


@pytest.fixture(scope="module")
def resnet() -> LoadedModel:
    return models.load("resnet18", "none")


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_preprocessing_is_that_of_the_weights(resnet: LoadedModel, height: int, width: int) -> None:
    batch = picture(height, width)
    transform = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    level = 1 / 255 / 0.22  # torchvision resizes in floating point
    expected = transform(batch.movedim(-1, 1))
    torch.testing.assert_close(resnet.preprocessing(batch), expected, atol=1.1 * level, rtol=0)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_preprocessing_is_that_of_timm(height: int, width: int) -> None:
    timm = pytest.importorskip("timm", reason="timm is missing")
    image = pytest.importorskip("PIL.Image", reason="Pillow is missing")
    batch = picture(height, width)
    loaded = models.load("timm:resnet18", "none")
    config = timm.data.resolve_model_data_config(loaded.module)
    transform = timm.data.create_transform(**config, is_training=False)
    expected = transform(image.fromarray(batch[0].numpy()))
    assert (loaded.preprocessing(batch)[0] - expected).abs().mean() < 2 / 255 / 0.22
    assert loaded.classes[281].startswith("tabby")


@given(
    height=st.integers(20, 255),
    width=st.integers(20, 255),
    crop=st.integers(8, 64),
    stretch=st.booleans(),
)
def test_the_region_is_what_the_network_sees(
    height: int, width: int, crop: int, stretch: bool
) -> None:
    seen = Preprocessing(
        resize=(64, 64), crop=(crop, crop), stretch=stretch, mean=(0, 0, 0), std=(1, 1, 1)
    )
    rows = torch.arange(height, dtype=torch.uint8).view(1, height, 1, 1)
    columns = torch.arange(width, dtype=torch.uint8).view(1, 1, width, 1)
    blank = torch.zeros(1, height, width, 1, dtype=torch.uint8)
    batch = torch.cat([rows + blank, columns + blank, blank], -1)
    given = 255 * seen(batch)[0]  # every pixel says where it came from
    region = seen.region(height, width)
    cell = max(height, width) / 64
    slack = 1 + cell  # rounding, and the edge of the resize filter
    assert abs(given[0, 0].mean() + 0.5 - cell / 2 - region.top) <= slack
    assert abs(given[0, -1].mean() + 0.5 + cell / 2 - region.bottom) <= slack
    assert abs(given[1, :, 0].mean() + 0.5 - cell / 2 - region.left) <= slack
    assert abs(given[1, :, -1].mean() + 0.5 + cell / 2 - region.right) <= slack


def test_another_size_keeps_the_share_that_is_cut_off() -> None:
    assert Preprocessing(resize=(256, 256), crop=(224, 224)).sized(448).resize == (512, 512)
    whole = Preprocessing(resize=None, crop=None).sized(64)
    assert whole(picture(100, 200)).shape == (1, 3, 64, 128)


def test_weights_from_files(resnet: LoadedModel, tmp_path: Path) -> None:
    state = resnet.module.state_dict()
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pth")
    wrapped = {f"module.{key}": value for key, value in state.items()}
    torch.save({"state_dict": wrapped, "epoch": 3}, tmp_path / "c.pth")
    for name in ("a.safetensors", "b.pth", "c.pth"):
        loaded = models.load("resnet18", str(tmp_path / name))
        assert not loaded.module.training
        for key, value in loaded.module.state_dict().items():
            assert torch.equal(value, state[key]), (name, key)


def test_a_file_may_have_other_classes(tmp_path: Path) -> None:
    module = torchvision.models.resnet18(num_classes=7)
    torch.save(module.state_dict(), tmp_path / "seven.pth")
    loaded = models.load("resnet18", str(tmp_path / "seven.pth"))
    assert loaded.module(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
    assert loaded.classes == ()
    assert loaded.class_name(3) == "class 3"


def write_pickle(path: Path) -> None:
    torch.save(nn.Linear(2, 2), path)


def write_text(path: Path) -> None:
    path.write_text("weights?")


def write_other(path: Path) -> None:
    torch.save({"conv9.weight": torch.zeros(3)}, path)


def write_sizes(path: Path) -> None:
    state = torchvision.models.resnet18(num_classes=1000).state_dict()
    torch.save({**state, "conv1.weight": torch.zeros(1)}, path)


def write_list(path: Path) -> None:
    torch.save([torch.zeros(3)], path)


def write_numbers(path: Path) -> None:
    torch.save({0: torch.zeros(3)}, path)


def write_wrapped(path: Path) -> None:
    torch.save({"model": torch.zeros(3)}, path)


def write_no_tensor(path: Path) -> None:
    torch.save({"fc.weight": 3}, path)


@pytest.mark.parametrize(
    ("write", "name", "message"),
    [
        (write_pickle, "x.pth", "objects other than tensors"),
        (write_text, "x.pth", "objects other than tensors"),
        (write_text, "x.safetensors", "not a weights file"),
        (write_list, "x.pth", "expected a state dict, got list"),
        (write_numbers, "x.pth", "its keys are not strings"),
        (write_wrapped, "x.pth", "expected a state dict, got Tensor"),
        (write_no_tensor, "x.pth", "does not fit resnet18"),
        (write_other, "x.pth", "does not fit resnet18: missing keys .* more"),
        (write_sizes, "x.pth", "does not fit resnet18: size mismatch for conv1.weight"),
        (lambda path: None, "x.pth", "no such file"),
    ],
)
def test_weights_that_cannot_be_used(tmp_path: Path, write: Any, name: str, message: str) -> None:
    write(tmp_path / name)
    with pytest.raises(FastcamError, match=message) as raised:
        models.load("resnet18", str(tmp_path / name))
    assert raised.value.exit_code == 1
    assert "\n" not in str(raised.value)


def test_weights_that_cannot_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **options: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(FastcamError, match=r"cannot be downloaded.*no network.*--weights FILE"):
        models.load("resnet18")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet500", "near names: resnet50,"),
        ("timm:resnet19", "near names: .*resnet18"),
        ("nowhere:model", "No module named 'nowhere'"),
        ("tiny_models:color", "has no color; near names: .*colors"),
        ("tiny_models:number", "returned int, expected a torch.nn.Module"),
        (":x", "package.module:function"),
        ("os:", "package.module:function"),
        (".x:y", "TypeError"),
        ("os:sep", "expected a function, got str"),
    ],
)
def test_unknown_models(name: str, message: str) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm", reason="timm is missing")
    with pytest.raises(UsageError, match=message):
        models.load(name)


def test_the_code_behind_a_function_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unfinished.py").write_text("def model(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match="unfinished:model: SyntaxError"):
        models.load("unfinished:model")
    with pytest.raises(FastcamError, match="tiny_models:broken: KeyError") as raised:
        models.load("tiny_models:broken")
    assert "\n" not in str(raised.value)


def test_random_weights_and_those_of_a_file(tmp_path: Path) -> None:
    state = models.load("digits").module.state_dict()
    other = models.load("digits", "none").module.state_dict()
    assert not other["head.weight"].equal(state["head.weight"])
    torch.save(other, tmp_path / "digits.pth")
    loaded = models.load("digits", str(tmp_path / "digits.pth")).module.state_dict()
    assert loaded["head.weight"].equal(other["head.weight"])

    torch.save({"scale": torch.tensor(7.0)}, tmp_path / "scale.pth")
    assert models.load("tiny_models:colors", str(tmp_path / "scale.pth")).module.scale == 7
    with pytest.raises(UsageError, match="weights none is not supported"):
        models.load("tiny_models:colors", "none")


def test_a_function_brings_its_own_classes_and_preprocessing() -> None:
    loaded = models.load("tiny_models:colors")
    assert loaded.classes == ("red", "green", "blue")
    assert models.load("tiny_models:module").preprocessing == Preprocessing()


def test_the_shipped_model_says_yes_or_no_to_each_digit() -> None:
    loaded = models.load("digits")
    batch = picture(90, 110)
    assert loaded.preprocessing(batch).shape == (1, 3, 90, 110)
    logits = loaded.module(loaded.preprocessing(batch))
    torch.testing.assert_close(loaded.probabilities(logits), logits.sigmoid())


def test_probabilities_add_up_where_classes_exclude_each_other() -> None:
    loaded = LoadedModel(nn.Identity())
    assert loaded.probabilities(torch.rand(4, 3)).sum(1).allclose(torch.ones(4))
    assert loaded.probabilities(torch.zeros(4, 1)).eq(0.5).all()


def test_classes_by_id_and_by_name() -> None:
    loaded = LoadedModel(nn.Identity(), classes=("tabby", "tiger cat", "crane", "crane"))
    assert loaded.class_id("2") == 2
    assert loaded.class_id("Tiger Cat") == 1
    for text, message in (
        ("4", "out of range: the ids are 0 to 3"),
        ("tiger", "near names: tiger cat"),
        ("owl", "unknown class owl; choose from tabby, tiger cat, crane, crane"),
        ("crane", r"ambiguous: give one of the ids \[2, 3\]"),
    ):
        with pytest.raises(UsageError, match=message):
            loaded.class_id(text)
    with pytest.raises(UsageError, match="no class names"):
        LoadedModel(nn.Identity()).class_id("cat")
