"""The shipped detector, U-Net and transformer, and their heat on the digit asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fastcam
from fastcam import demo, models, pictures
from fastcam.models.detection import load_detector
from fastcam.targets import Boxes, Margin, Negative, Segmentation, Similarity

SCORES = Path(__file__).parents[1] / "benchmarks" / "digits"
NETWORKS = ("digits-detector", "digits-unet", "digits-vit")


def scene() -> Tensor:
    """(1, 3, H, W)"""
    return torch.from_numpy(pictures.read(demo.asset("scene.png"))).permute(2, 0, 1)[None] / 255


BOXES = {
    digit["class"]: digit["box"]
    for digit in json.loads(demo.asset("scene.json").read_text())["digits"]
}


def points_at(heat: Tensor, box: list[int]) -> bool:
    y, x = divmod(int(heat.argmax()), heat.shape[1])
    left, top, right, bottom = box
    return left <= x < right and top <= y < bottom


@pytest.mark.parametrize("name", NETWORKS)
def test_they_are_loaded_by_name(name) -> None:
    assert demo.asset(f"{name}.safetensors").stat().st_size < 2_000_000
    load = load_detector if name == "digits-detector" else models.load
    loaded, other = load(name), load(name, "none")
    assert loaded.classes[:10] == demo.DIGITS_CLASSES and not loaded.module.training
    weights, random = (each.module.state_dict() for each in (loaded, other))
    assert weights.keys() == random.keys()
    assert not all(torch.equal(weights[key], random[key]) for key in weights)
    again = load(name, str(demo.asset(f"{name}.safetensors"))).module.state_dict()
    assert all(torch.equal(weights[key], again[key]) for key in weights)


def test_the_detectors_heat_is_in_each_box() -> None:
    pytest.importorskip("torchvision", reason="torchvision is missing")
    labels = torch.tensor(list(BOXES))
    boxes = torch.tensor(list(BOXES.values()))
    cam = fastcam.LayerCAM(demo.digits_detector())
    (maps,) = cam(list(scene()), Boxes(boxes, labels))
    for heat, box in zip(maps, BOXES.values(), strict=True):
        assert points_at(heat, box)
        left, top, right, bottom = box
        assert heat[top:bottom, left:right].sum() > 0.6 * heat.sum()


def test_the_unets_heat_is_on_the_digit() -> None:
    model, images = demo.digits_unet(), scene()
    cam = fastcam.GradCAM(model)
    classes = model(images)[0].argmax(0)
    for label, (left, top, right, bottom) in BOXES.items():
        assert points_at(cam(images, Segmentation(label))[0], [left, top, right, bottom])
        mask = torch.zeros(160, 224, dtype=torch.bool)
        mask[top:bottom, left:right] = True
        assert points_at(cam(images, Segmentation(label, mask))[0], [left, top, right, bottom])
        assert (classes[mask] == label).any()


def test_the_transformers_heat_is_on_the_digit() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is missing")
    from benchmarks.digits.training import boxes_of, held_out

    model = demo.digits_vit()
    cam, hits = fastcam.LayerCAM(model), []
    for each in held_out(30, (96, 96)):
        images = torch.from_numpy(each.image).permute(2, 0, 1)[None] / 255
        known = model(images)[0] > 0
        for label in sorted({digit.label for digit in each.digits}):
            if known[label]:
                heat = cam(images, label)[0]
                hits.append(any(points_at(heat, box) for box in boxes_of(each, label)))
    recorded = json.loads((SCORES / "digits-vit.json").read_text())["pointing_layercam"]
    assert sum(hits) / len(hits) == pytest.approx(recorded, abs=0.15)


def test_margins_negatives_and_similarities_of_the_classifier() -> None:
    model, images = demo.digits(), scene()
    cam = fastcam.HiResCAM(model)
    assert points_at(cam(images, Margin(2, 7))[0], BOXES[2])
    assert points_at(cam(images, Margin(7, 2))[0], BOXES[7])
    (against,) = cam(images, Negative(7))
    left, top, right, bottom = BOXES[7]
    assert against[top:bottom, left:right].max() < 0.2
    two = torch.nn.functional.one_hot(torch.tensor(2), 10).float()
    assert points_at(cam(images, Similarity(two))[0], BOXES[2])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_weights_reach_the_recorded_score(name) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is missing")
    pytest.importorskip("torchvision", reason="torchvision is missing")
    from benchmarks.digits import detector, unet, vit
    from benchmarks.digits.training import held_out

    module = {"digits-detector": detector, "digits-unet": unet, "digits-vit": vit}[name]
    model = getattr(demo, name.replace("-", "_"))()
    recorded = json.loads((SCORES / f"{name}.json").read_text())
    for figure, value in module.evaluate(model, held_out(100)).items():
        assert value == pytest.approx(recorded[figure], abs=0.06), figure
