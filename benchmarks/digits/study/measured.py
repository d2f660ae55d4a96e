"""All metrics of one method at one layer of one network: one value per scene."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score
from torch import Tensor, nn

from benchmarks.digits.networks import Architecture
from benchmarks.digits.scenes import Box
from benchmarks.digits.study.controls import CONTROLS
from benchmarks.digits.study.plan import Settings
from benchmarks.digits.study.scenes import Scenes
from benchmarks.digits.train import BATCH, held_out, stack
from fastcam import metrics
from fastcam.methods import METHODS
from fastcam.metrics.box_accuracy import LEVELS

Rows = dict[str, NDArray[Any]]
"""One array per metric, with a row per scene; those of the first scenes are shorter."""

BOX_THRESHOLDS = 25
SCORED = {"output": torch.sigmoid, "probabilities": False}
"""The confidence of a network whose classes do not exclude each other. Maps explain the logit: the
gradient of a sigmoid vanishes where the network is sure."""


def new_method(name: str, architecture: Architecture, layer: str, network: nn.Module) -> Any:
    """A method or a control, ready to explain a network at one of its layers."""
    kind = (METHODS | CONTROLS)[name]
    if not kind.takes_layers:
        return kind(network)
    if name == "refinecam":  # the layers before refine what this one has found
        return kind(network, list(architecture.layers.values()))
    if name == "sess":  # its default is the softmax of classes that exclude each other
        return METHODS["sess"](network, architecture.layers[layer], probabilities=False)
    return kind(network, architecture.layers[layer])


def localisation(maps: Tensor, scenes: Scenes) -> Rows:
    """The metrics that need no network."""
    own, others = scenes.own, scenes.others
    ious = metrics.box_ious(maps, own, thresholds=BOX_THRESHOLDS)
    values = {
        "auc": box_auc(maps, own, others),
        "recall": metrics.instance_recall(maps, own),
        "other_hits": metrics.instance_recall(maps, others),
        "confusion": metrics.class_confusion(maps, own, other_boxes=others),
        "pointing": metrics.pointing_game(maps, own),
        "energy": metrics.energy_pointing_game(maps, own),
        "iou": metrics.iou(maps, own, thresholds=[0.5])[:, 0],
        "px_ap": metrics.pixel_histograms(maps, own),  # (N, 2, T + 1)
        "max_box_acc_v2": torch.stack([ious >= level for level in LEVELS], 1),  # (N, 3, T)
        "complexity": metrics.complexity(maps),
        "sparseness": metrics.sparseness(maps),
    }
    return {name: value.numpy() for name, value in values.items()}


def faithfulness(
    method: Any, network: nn.Module, maps: Tensor, scenes: Scenes, settings: Settings
) -> Rows:
    """The metrics that run the network again."""
    images, ids = scenes.images, scenes.class_ids
    given = network, images, maps, ids
    confidence = metrics.confidence(*given, **SCORED)
    quality = metrics.adcc(method, images, ids, **SCORED)
    randomised = metrics.parameter_randomisation(method, images, ids)
    values = {
        "relative_drop": confidence.relative_drop,
        "increase": confidence.increase,
        "insertion_minus_deletion": metrics.insertion_minus_deletion(
            *given, steps=settings.curve_steps, **SCORED
        ),
        "road": metrics.road(*given, **SCORED).combined,
        "infidelity": metrics.infidelity(*given, samples=settings.samples, **SCORED),
        "max_sensitivity": metrics.max_sensitivity(
            method, images, ids, samples=settings.moves, relative=True
        ),
        "coherency": quality.coherency,
        "adcc": quality.score,
        "arcc": metrics.arcc(method, images, ids, **SCORED).score,
        "class_sensitivity": metrics.class_sensitivity(
            method, images, ids, others=scenes.other_ids
        ).rank_correlation,
        "parameter_randomisation": randomised.ssim.mean(1),
    }
    return {name: value.double().numpy() for name, value in values.items()}


def box_auc(maps: Tensor, own: Sequence[Sequence[Box]], others: Sequence[Sequence[Box]]) -> Tensor:
    """How often an instance of the class is hotter than one of another class, (N,). High is good.

    The share of pairs (own box, other box) in which the own one has the larger mean of the map
    (N, H, W); equal means count as half a pair. It needs no threshold, and a map without a class
    has 1/2 on average.
    """

    def heat(values: Tensor, boxes: Sequence[Box]) -> Tensor:
        return torch.stack(
            [values[top:bottom, left:right].mean() for left, top, right, bottom in boxes]
        )

    found = []
    for values, ours, theirs in zip(maps.double(), own, others, strict=True):
        difference = heat(values, ours)[:, None] - heat(values, theirs)[None]
        found.append(((difference > 0).double() + 0.5 * (difference == 0)).mean())
    return torch.stack(found)


def measure(
    name: str,
    architecture: Architecture,
    layer: str,
    network: nn.Module,
    scenes: Scenes,
    settings: Settings,
) -> Rows:
    """The rows of a method or a control.

    Args:
        name: of the method.
        architecture, layer: of the network, see :data:`benchmarks.digits.networks.ARCHITECTURES`.
        network: trained.
        scenes: all of them.
        settings: the amounts.
    """
    first = scenes.first(settings.first_scenes)
    method = new_method(name, architecture, layer, network)
    explained = first if name in settings.slow else scenes
    maps = method(explained.images, explained.class_ids)
    rows = localisation(maps, explained)
    if name in settings.faithful:
        maps = method(first.images, first.class_ids)
        rows |= faithfulness(method, network, maps, first, settings)
    return rows


@torch.inference_mode()
def classification(network: nn.Module, scenes: Scenes, settings: Settings) -> Rows:
    """How well a network classifies: whether it sees the class, by scene, and its own score."""
    network.eval()
    logits = network(scenes.images)
    images, present = stack(held_out(settings.held_out))
    scores = torch.cat([network(some.float() / 255) for some in images.split(BATCH)]).numpy()
    return {
        "recognised": (logits.gather(1, scenes.class_ids[:, None])[:, 0] > 0).numpy(),
        "mean_average_precision": np.array(average_precision_score(present, scores)),
        "macro_f1": np.array(f1_score(present, scores > 0, average="macro", zero_division=0)),
    }
