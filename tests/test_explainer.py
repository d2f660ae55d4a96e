"""The classes are ranked by the forward that explains them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import Colors, colors

from fastcam import models
from fastcam.explainer import Explainer

# mostly blue, some red, hardly any green
PICTURES = torch.zeros(2, 96, 96, 3, dtype=torch.uint8)
PICTURES[:, 30:50, 30:50] = torch.tensor([180, 20, 255], dtype=torch.uint8)
RED, GREEN, BLUE = range(3)


def test_all_classes_come_from_one_forward() -> None:
    model = colors()
    explainer = Explainer(model, "gradcam", layer="features")
    explainer(model.preprocessing(PICTURES), explainer.targets(top_k=3))  # finds the axes
    forwards = []
    model.module.register_forward_hook(lambda *_: forwards.append(1))
    explained = explainer(model.preprocessing(PICTURES), explainer.targets(top_k=3))
    assert len(forwards) == 1
    assert explained.class_ids.tolist() == [[BLUE, RED, GREEN]] * 2
    assert explained.maps.shape == (2, 3, 12, 12)
    logits = Colors()(model.preprocessing(PICTURES))
    expected = logits.softmax(1).gather(1, explained.class_ids)
    torch.testing.assert_close(explained.probabilities, expected)
    torch.testing.assert_close(explained.scores, logits.gather(1, explained.class_ids))


def test_the_chosen_class_comes_first() -> None:
    explainer = Explainer(colors(), "gradcam")
    images = explainer.model.preprocessing(PICTURES)
    explained = explainer(images, explainer.targets("green", 2))
    assert explained.class_ids.tolist() == [[GREEN, BLUE]] * 2


def test_maps_are_raw() -> None:
    model = colors()
    explainer = Explainer(model, "hirescam")
    explained = explainer(model.preprocessing(PICTURES), explainer.targets("red"))
    features = model.module.features(model.preprocessing(PICTURES))  # type: ignore[operator]
    positions = features.shape[2:].numel()
    torch.testing.assert_close(explained.maps[:, 0], 5 / positions * features[:, RED])
    assert explained.heat(0).equal(explained.maps[:, 0])


def test_a_signed_gradient_is_drawn_by_its_magnitude() -> None:
    explainer = Explainer(colors(), "guided-gradcam")
    images = explainer.model.preprocessing(PICTURES)
    with pytest.warns(UserWarning, match="met no ReLU"):
        explained = explainer(images, explainer.targets("red"))
    assert explained.maps.shape == (2, 1, 3, 96, 96)
    assert explained.heat(0).equal(explained.maps[:, 0].abs().amax(1))


def test_no_column_of_a_dict_is_lost() -> None:
    explainer = Explainer(models.load("digits"))
    pictures = np.zeros((1, 32, 32, 3), np.uint8)
    assert explainer({"image": pictures, "name": ["a"]})["name"] == ["a"]
    for given in ({"image": pictures, "scores": [1]}, {"image": pictures, "bytes": [b""]}):
        with pytest.raises(ValueError, match="no column that the result has too"):
            explainer(given)
