"""The shipped demo: the files are whole, and the network does what its score says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastcam import demo

SCORE = Path(__file__).parents[1] / "benchmarks" / "digits" / "score.json"


@pytest.fixture(scope="module")
def model() -> demo.DigitsNet:
    return demo.digits()


@pytest.fixture(scope="module")
def scene() -> Tensor:
    """The scene as the network takes it: (1, 3, H, W)."""
    return to_input(read("scene.png"))


@pytest.fixture(scope="module")
def scene_boxes() -> dict[int, Sequence[int]]:
    """Class -> (left, top, right, bottom) of its one digit in the scene."""
    digits = json.loads(demo.asset("scene.json").read_text())["digits"]
    return {digit["class"]: digit["box"] for digit in digits}


def read(name: str) -> np.ndarray:
    """A shipped picture, RGB: (H, W, 3)."""
    image = cv2.imread(str(demo.asset(name)))
    assert image is not None
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def to_input(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255


@torch.inference_mode()
def gradcam(model: demo.DigitsNet, images: Tensor) -> Tensor:
    """Grad-CAM of all classes in plain PyTorch: (N, 3, H, W) -> (N, 10, H, W)."""
    features = []
    layer = model.get_submodule(demo.TARGET_LAYER)
    handle = layer.register_forward_hook(lambda _module, _inputs, output: features.append(output))
    model(images)
    handle.remove()
    # Behind pooling and one linear layer, the pooled gradient is the layer's weight over H * W.
    maps = torch.einsum("nchw,kc->nkhw", features[0], model.head.weight).relu()
    return F.interpolate(maps, images.shape[-2:], mode="bilinear")


def peak_inside(heat: Tensor, box: Sequence[int]) -> bool:
    y, x = divmod(int(heat.argmax()), heat.shape[1])
    left, top, right, bottom = box
    return left <= x < right and top <= y < bottom


def test_the_network_is_ready_to_use(model: demo.DigitsNet) -> None:
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model(torch.rand(2, 3, 50, 70)).shape == (2, len(demo.DIGITS_CLASSES))


def test_the_files_are_small() -> None:
    weights = demo.asset("digits.safetensors")
    assert weights.stat().st_size < 1_000_000
    assert demo.asset("photo.jpg").stat().st_size < 200_000
    assert sum(path.stat().st_size for path in weights.parent.iterdir()) < 3_000_000


def test_an_unknown_file_is_named_beside_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'cat\.gif'.*scene\.png"):
        demo.asset("cat.gif")


def test_the_photograph_opens() -> None:
    assert read("photo.jpg").shape == (300, 451, 3)


def test_the_top_classes_are_those_in_the_scene(
    model: demo.DigitsNet, scene: Tensor, scene_boxes: dict[int, Sequence[int]]
) -> None:
    top = model(scene)[0].topk(len(scene_boxes)).indices
    assert set(top.tolist()) == set(scene_boxes)


def test_the_network_is_sure_of_what_is_in_the_scene_and_what_is_not(
    model: demo.DigitsNet, scene: Tensor, scene_boxes: dict[int, Sequence[int]]
) -> None:
    probabilities = model(scene)[0].sigmoid()
    for label, probability in enumerate(probabilities.tolist()):
        assert probability > 0.8 if label in scene_boxes else probability < 0.2, label


def test_the_chosen_digit_is_hot_and_the_others_are_cold(
    model: demo.DigitsNet, scene: Tensor, scene_boxes: dict[int, Sequence[int]]
) -> None:
    maps = gradcam(model, scene)[0]
    for label, box in scene_boxes.items():
        heat = maps[label] / maps[label].max()
        assert peak_inside(heat, box), label
        for other, (left, top, right, bottom) in scene_boxes.items():
            if other != label:
                assert heat[top:bottom, left:right].max() < 0.25, (label, other)


def test_the_clip_matches_its_description(model: demo.DigitsNet) -> None:
    av = pytest.importorskip("av", reason="PyAV is missing")
    about = json.loads(demo.asset("clip.json").read_text())
    with av.open(str(demo.asset("clip.mp4"))) as container:
        rate = container.streams.video[0].average_rate
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert rate == about["rate"]
    assert {frame.shape for frame in frames} == {(about["height"], about["width"], 3)}
    assert len(frames) == len(about["frames"])

    whole = [{d["class"]: d["box"] for d in f if d["visible"] > 0.9} for f in about["frames"]]
    seen = [{d["class"] for d in f} for f in about["frames"]]
    assert set.union(*seen) - set.intersection(*seen), "no class is ever absent"
    hits = []
    for frame, boxes in list(zip(frames, whole, strict=True))[::10]:
        maps = gradcam(model, to_input(frame))[0]
        hits += [peak_inside(maps[label], box) for label, box in boxes.items()]
    assert np.mean(hits) > 0.95


def test_the_weights_reach_the_recorded_score(model: demo.DigitsNet) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is missing")
    from benchmarks.digits.train import evaluate, held_out

    recorded = json.loads(SCORE.read_text())
    score = evaluate(model, held_out(200, seed=7))
    # 200 scenes: the standard error of each figure is near 0.01.
    for name, value in score.items():
        assert value == pytest.approx(recorded[name], abs=0.04), name
