"""Hugging Face image classifiers, saved with random weights into a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from test_cli import run
from torch import Tensor, nn

from fastcam import models, pictures
from fastcam.cli import image
from fastcam.errors import FastcamError
from fastcam.explainer import Explainer
from fastcam.models import LoadedModel, MeasuredTransform
from fastcam.pictures.render import Style

transformers = pytest.importorskip("transformers", reason="transformers is missing")
pytest.importorskip("torchvision", reason="torchvision is missing")

TINY = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 64,
    "patch_size": 16,
}
STAGES = {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1]}
NETWORKS: dict[str, dict[str, Any]] = {
    "ViT": TINY,
    "ConvNext": STAGES,
    "Swin": {
        "image_size": 64,
        "patch_size": 4,
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 4,
    },
    "ResNet": {"embedding_size": 8, "layer_type": "basic", **STAGES},
    "Siglip": {
        "vision_config": TINY,
        "text_config": {key: TINY[key] for key in list(TINY)[:4]},
    },
    "MobileNetV2": {"depth_multiplier": 0.35, "finegrained_output": False},
    "Dinov2": {key: TINY[key] for key in ("hidden_size", *list(TINY)[1:3], *list(TINY)[4:])},
}
"""Configurations by the name in ``NAMEForImageClassification``."""

SIDE = {"height": 64, "width": 64}
PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT": ("ViTImageProcessor", {"size": SIDE}),
    "ConvNext": ("ConvNextImageProcessor", {"size": {"shortest_edge": 64}}),
    "Swin": ("ViTImageProcessor", {"size": SIDE, "resample": 3, "image_mean": [0.48, 0.45, 0.4]}),
    "ResNet": (
        "ConvNextImageProcessor",
        {"size": {"shortest_edge": 64}, "crop_pct": 0.875, "image_std": [0.22, 0.23, 0.24]},
    ),
    "Siglip": ("SiglipImageProcessor", {"size": SIDE}),
    "MobileNetV2": (
        "MobileNetV2ImageProcessor",
        {"size": {"shortest_edge": 80}, "crop_size": SIDE},
    ),
    "Dinov2": ("BitImageProcessor", {"size": {"shortest_edge": 72}, "crop_size": SIDE}),
}
LABELS = {0: "owl", 1: "fox", 2: "elk"}
SHAPES = [(90, 260), (260, 90), (151, 203), (64, 64)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a network of this name with its processor."""
    root = tmp_path_factory.mktemp("networks")

    def saved(name: str) -> Path:
        path = root / name
        if not path.exists():
            torch.manual_seed(1)
            config = getattr(transformers, f"{name}Config")(**NETWORKS[name], id2label=LABELS)
            module = getattr(transformers, f"{name}ForImageClassification")(config)
            for parameter in module.parameters():
                parameter.data += 0.2 * torch.randn_like(parameter)
            module.save_pretrained(path)
            processor, options = PROCESSORS[name]
            getattr(transformers, processor)(**options).save_pretrained(path)
        return path

    return saved


def noise(height: int, width: int) -> Tensor:
    """(1, height, width, 3)"""
    generator = torch.Generator().manual_seed(height)
    return torch.randint(0, 256, (1, height, width, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(("height", "width"), SHAPES)
@pytest.mark.parametrize("name", list(PROCESSORS)[:5])
def test_pixel_values_are_the_processors(
    folder: Callable[[str], Path], name: str, height: int, width: int
) -> None:
    from PIL import Image

    transform = models.load(f"hf:{folder(name)}").preprocessing
    batch = noise(height, width)
    processor = transformers.AutoImageProcessor.from_pretrained(folder(name))
    expected = processor(images=Image.fromarray(batch[0].numpy()), return_tensors="pt")
    assert torch.equal(transform(batch), expected["pixel_values"])


@pytest.mark.parametrize(("height", "width"), SHAPES)
@pytest.mark.parametrize("name", list(PROCESSORS)[:5])
def test_a_square_in_a_corner_is_hot_where_it_is(
    folder: Callable[[str], Path], name: str, height: int, width: int
) -> None:
    transform = models.load(f"hf:{folder(name)}").preprocessing
    explainer = Explainer(
        LoadedModel(tiny_models.Colors(), transform, tiny_models.COLORS), "gradcam"
    )
    seen = transform.region(height, width)
    down, across = seen.height // 3, seen.width // 3
    for top, left in ((seen.top, seen.left), (seen.bottom - down, seen.right - across)):
        picture = np.full((height, width, 3), 10, np.uint8)
        picture[top : top + down, left : left + across] = (250, 10, 10)
        made = image.explain(picture, explainer, explainer.targets("red"), Style("heat", "bone"))
        hot = np.argwhere(made.overlay[..., 0] > 128).mean(0)
        right = top + (down - 1) / 2, left + (across - 1) / 2
        cell = seen.height / 8, seen.width / 8
        assert (np.abs(hot - right) < np.array(cell) / 2).all(), (hot, right)


@pytest.mark.parametrize("name", NETWORKS)
def test_maps_of_a_network(folder: Callable[[str], Path], name: str) -> None:
    """HiResCAM at the layer that is found, compared with autograd through the whole network."""
    model = models.load(f"hf:{folder(name)}")
    assert model.classes == ("owl", "fox", "elk")
    explainer = Explainer(model, "hirescam")
    images = model.preprocessing(noise(120, 160))
    explained = explainer(images, explainer.targets("owl", 3))
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        kept[:] = [output if isinstance(output, Tensor) else output[0]]

    (layer,) = explainer.layers
    handle = model.module.get_submodule(layer).register_forward_hook(keep)
    logits = model.module(images).logits[0]
    handle.remove()
    heat = 0.0
    for k, class_id in enumerate(explained.class_ids[0]):
        (gradient,) = torch.autograd.grad(logits[class_id], kept, retain_graph=True)
        product = (kept[0] * gradient).detach()
        if product.dim() == 3:  # (N, prefix + rows², C) -> (N, C, rows, rows)
            rows = int(product.shape[1] ** 0.5)
            product = product[:, product.shape[1] - rows**2 :].mT.unflatten(2, (rows, rows))
        expected = product.sum(1).clamp(min=0)
        slack = 1e-4 * float(product.abs().max())
        torch.testing.assert_close(explained.maps[:, k], expected, atol=slack, rtol=1e-3)
        heat = max(heat, float(expected.max()) / slack)
    assert heat > 100, "no class has a map"


def test_one_command(folder: Callable[[str], Path], tmp_path: Path) -> None:
    pictures.write(tmp_path / "a.png", noise(90, 120)[0].numpy())
    options = ("--model", f"hf:{folder('ViT')}", "--out", tmp_path, "--json")
    result = run("image", tmp_path / "a.png", *options)
    assert result.exit_code == 0
    assert result.stderr == ""
    report = json.loads(result.stdout)
    assert {each["name"] for each in report["classes"]} == set(LABELS.values())
    assert report["shape"] == [3, 4, 4]
    assert report["preprocessing"] == {
        "resize": [64, 64],
        "crop": [64, 64],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": None,
        "origin": f"ViTImageProcessor of {folder('ViT')}",
    }


def changed(source: Path, target: Path, **values: Any) -> Path:
    """A copy of a folder with other values in its configuration."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **values}))
    return target


def test_several_labels_at_once(folder: Callable[[str], Path], tmp_path: Path) -> None:
    kind = {"problem_type": "multi_label_classification"}
    assert models.load(f"hf:{changed(folder('ViT'), tmp_path / 'a', **kind)}").multilabel
    assert not models.load(f"hf:{folder('ViT')}").multilabel


def test_classes_without_names(folder: Callable[[str], Path], tmp_path: Path) -> None:
    config = transformers.PvtConfig(
        image_size=64,
        num_labels=5,
        hidden_sizes=[16, 16, 32, 32],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 2, 2],
    )
    transformers.PvtForImageClassification(config).save_pretrained(tmp_path / "a")
    for file in folder("ViT").glob("preprocessor_config.json"):
        shutil.copy(file, tmp_path / "a")
    changed(tmp_path / "a", tmp_path / "b", id2label=None)
    assert models.load(f"hf:{tmp_path / 'b'}").class_name(3) == "class 3"


def test_weights_from_elsewhere(folder: Callable[[str], Path], tmp_path: Path) -> None:
    source = folder("ViT")
    state = models.load(f"hf:{source}").module.state_dict()
    other = models.load(f"hf:{source}", "none").module.state_dict()
    key = "classifier.weight"
    assert not torch.equal(state[key], other[key])
    torch.save(other, tmp_path / "other.pth")
    filled = models.load(f"hf:{source}", str(tmp_path / "other.pth")).module.state_dict()
    assert torch.equal(filled[key], other[key])
    path = changed(source, tmp_path / "torch")
    (path / "model.safetensors").unlink()
    torch.save(state, path / "pytorch_model.bin")
    assert torch.equal(models.load(f"hf:{path}").module.state_dict()[key], state[key])


def test_a_processor_from_elsewhere(folder: Callable[[str], Path], tmp_path: Path) -> None:
    path = changed(folder("ViT"), tmp_path / "a")
    (path / "preprocessor_config.json").unlink()
    with pytest.raises(FastcamError, match=r"has no preprocessor_config\.json: give --proc"):
        models.load(f"hf:{path}")
    loaded = models.load(f"hf:{path}", processor=str(folder("Siglip")))
    assert isinstance(loaded.preprocessing, MeasuredTransform)
    assert "SiglipImageProcessor of" in loaded.preprocessing.origin
    loaded = models.load("tiny_models:module", processor=str(folder("Siglip")))
    assert "SiglipImageProcessor of" in loaded.preprocessing.origin


def test_a_folder_of_timm(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="timm is missing")
    network = timm.create_model("resnet10t", num_classes=3).eval()
    about = {"num_classes": 3, "label_names": list(LABELS.values())}
    timm.models.save_for_hf(network, tmp_path, model_config=about, safe_serialization=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("model_args", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = models.load(f"hf:{tmp_path}")
    assert loaded.classes == ("owl", "fox", "elk")
    images = loaded.preprocessing(noise(120, 160))
    torch.testing.assert_close(loaded.module(images).logits, network(images))
    assert loaded.preprocessing.steps(120, 160)["mean"] == pytest.approx(
        network.pretrained_cfg["mean"], abs=1e-3
    )
    assert Explainer(loaded, "gradcam")(images).maps.shape[:2] == (1, 1)


def headless(path: Path, source: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(source)
    transformers.ViTModel(config).save_pretrained(path)
    shutil.copy(source / "preprocessor_config.json", path)


def of_text(path: Path, source: Path) -> None:
    changed(source, path, model_type="bert")


def with_code(path: Path, source: Path) -> None:
    (path.parent / "ran").unlink(missing_ok=True)
    changed(source, path, model_type="mine", auto_map={"AutoConfig": "mine.Config"})
    (path / "mine.py").write_text(f"open({str(path.parent / 'ran')!r}, 'w')")


def with_a_pickle(path: Path, source: Path) -> None:
    changed(source, path)
    (path / "model.safetensors").unlink()
    torch.save(nn.Linear(2, 2), path / "pytorch_model.bin")


def without_weights(path: Path, source: Path) -> None:
    changed(source, path)
    (path / "model.safetensors").unlink()


def cut_short(path: Path, source: Path) -> None:
    changed(source, path)
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (headless, "expected the weights of an image classifier, which lack classifier.bias"),
        (of_text, "expected an image classifier, got bert"),
        (with_code, "contains custom code"),
        (with_a_pickle, "contain objects other than tensors"),
        (without_weights, "cannot be read: Error no file named model.safetensors"),
        (cut_short, "cannot be read: "),
        (lambda path, source: path.mkdir(), "cannot be read: Unrecognized model"),
        (lambda path, source: None, "no such folder"),
    ],
)
def test_folders_that_cannot_be_used(
    folder: Callable[[str], Path], tmp_path: Path, make: Any, message: str
) -> None:
    make(tmp_path / "a", folder("ViT"))
    with pytest.raises(FastcamError, match=message) as raised:
        models.load(f"hf:{tmp_path / 'a'}")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "ran").exists(), "code in the folder ran"


def test_a_name_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")

    def offline(*args: Any, **options: Any) -> str:
        raise hub.errors.LocalEntryNotFoundError("Got: ConnectError: no network\nand more")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(FastcamError, match=r"neither a folder nor .*\(Got: .*no network\)$"):
        models.load("hf:google/vit-base-patch16-224")


def test_a_name_that_is_none() -> None:
    with pytest.raises(FastcamError, match="neither a folder nor"):
        models.load("hf:a b c")
