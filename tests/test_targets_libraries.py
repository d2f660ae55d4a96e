"""Targets on random networks of other libraries, compared with autograd; skipped without them."""

from __future__ import annotations

import os

import pytest
import torch
from torch.nn import functional as F

import fastcam
from fastcam.targets import Boxes, Negative, Segmentation, Similarity

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def whole_graph(model, images, layer: str, score_of):
    """Scores, and Grad-CAM of a layer (N, C, h, w), by plain autograd and a hook."""
    kept = {}
    module = model.get_submodule(layer)
    handle = module.register_forward_hook(lambda m, args, out: kept.update(a=out))
    with torch.enable_grad():
        outputs = model(images.clone().requires_grad_())
        scores = score_of(outputs)
    handle.remove()
    (gradient,) = torch.autograd.grad(scores.sum(), kept["a"])
    weights = gradient.mean((2, 3), keepdim=True)
    return scores.detach(), F.relu((weights * kept["a"]).sum(1)).detach()


def assert_same(found, expected) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("architecture", ["Unet", "FPN", "DeepLabV3Plus"])
def test_segmentation_models_pytorch(architecture) -> None:
    smp = pytest.importorskip(
        "segmentation_models_pytorch", reason="segmentation_models_pytorch is missing"
    )
    torch.manual_seed(0)
    model = smp.create_model(architecture, "resnet18", encoder_weights=None, classes=3)
    model = model.double().eval()
    cam = fastcam.GradCAM(model, "decoder" if architecture == "DeepLabV3Plus" else "encoder.layer2")
    mask = torch.rand(2, 64, 64, generator=torch.Generator().manual_seed(1)) > 0.5
    maps = cam(IMAGES, Segmentation(1, mask), size="layer", normalize=False)
    expected = whole_graph(model, IMAGES, cam.layers[0], lambda out: (out[:, 1] * mask).sum((1, 2)))
    assert_same(cam.scores, expected[0])
    assert_same(maps, expected[1])
    assert fastcam.GradCAM(model)(IMAGES, Segmentation(1, mask)).shape == (2, 64, 64)


@pytest.mark.parametrize("name", ["RN50", "ViT-B-32"])
def test_open_clip(name) -> None:
    open_clip = pytest.importorskip("open_clip", reason="open_clip is missing")
    torch.manual_seed(0)
    config = open_clip.get_model_config(name)
    config["vision_cfg"].update(
        image_size=64,
        width=32 if name == "RN50" else 64,
        layers=([1, 1, 1, 1] if name == "RN50" else 2),
    )
    config["text_cfg"].update(layers=1, width=64, heads=1)
    model = open_clip.CLIP(**config).double().eval()
    with torch.no_grad():
        texts = model.encode_text(torch.randint(0, 400, (2, 77)))
    encoder = model.visual
    cam = fastcam.GradCAM(encoder, "layer4" if name == "RN50" else None)
    maps = cam(IMAGES, Similarity(texts), size="layer", normalize=False)
    expected = F.cosine_similarity(encoder(IMAGES), texts)
    assert_same(cam.scores, expected.detach())
    found = cam.verify(IMAGES, Similarity(texts))
    assert found.gradient_error < 1e-9 and found.map_error < 1e-9
    if name == "RN50":
        _, expected_maps = whole_graph(
            encoder, IMAGES, "layer4", lambda out: F.cosine_similarity(out, texts)
        )
        assert_same(maps, expected_maps)


@pytest.fixture(scope="module")
def ultralytics():
    os.environ.update(YOLO_AUTOINSTALL="0", YOLO_OFFLINE="1")
    return pytest.importorskip(
        "ultralytics", reason="ultralytics is missing; it is AGPL-3.0 and never a dependency"
    )


@pytest.mark.parametrize(
    "config",
    ["yolov8n", "yolo11n", "yolov10n", "yolov8n-seg", "yolo26n-seg", "yolov8n-pose"],
)
def test_ultralytics(ultralytics, config) -> None:
    torch.manual_seed(0)
    model = ultralytics.YOLO(f"{config}.yaml").model.double().eval()
    images = IMAGES[:1]
    with torch.no_grad():
        decoded, raw = model(images)
    decoded = decoded[0] if isinstance(decoded, (list, tuple)) else decoded  # beside masks
    rows = decoded.shape[2] != 84  # 84 anchors, or the best of them
    of_head = raw.get("one2one", raw) if rows else raw.get("one2many", raw)
    label = 0 if config.endswith("-pose") else 2
    if rows:  # left, top, right, bottom, score, class
        box, label = decoded[0, 0, :4], int(decoded[0, 0, 5])
        score = of_head["scores"][0, label].sigmoid()
        anchor = int((score - decoded[0, 0, 4]).abs().argmin())
    else:
        anchor = 20
        x, y, width, height = decoded[0, :4, anchor]
        box = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2])

    def score_of(outputs):
        head = outputs[1].get("one2one" if rows else "one2many", outputs[1])
        return head["scores"][:, label, anchor]

    cam = fastcam.GradCAM(model)
    target = Boxes(box[None], [label], iou=0.99)
    maps = cam(images, target, size="layer", normalize=False)
    assert len(cam.layers) == 3
    for layer, of_layer in zip(cam.layers, maps, strict=True):
        scores, expected = whole_graph(model, images, layer, score_of)
        assert_same(cam.scores[:, 0], scores)
        assert_same(of_layer[:, 0], expected)
    assert cam(images, target).shape == (1, 1, 64, 64)
    cam(images, Negative(target))
    assert_same(cam.scores[:, 0], -scores)


def test_the_network_of_ultralytics_is_named(ultralytics) -> None:
    with pytest.raises(ValueError, match=r"^model: got ultralytics' YOLO, expected the network in"):
        fastcam.GradCAM(ultralytics.YOLO("yolov8n.yaml"))(IMAGES[:1], Boxes([[0, 0, 9, 9]], [0]))
