"""Sanity checks: maps have to change with the network's parameters and with the class."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from fastcam.engine.inputs import Inputs
from fastcam.engine.running import copied
from fastcam.errors import ArgumentError
from fastcam.metrics.scoring import Explained
from fastcam.metrics.similarity import Similarity, similarity
from fastcam.targets import Targets

Order = Literal["cascading", "independent"]


@dataclass(frozen=True)
class Randomisation(Similarity):
    """How alike the maps are before and after layers were randomised, (N, L) each. Low is good."""

    layers: tuple[str, ...]
    """The L layers, from the output down."""


def parameter_randomisation(
    method: Any,
    images: Inputs,
    targets: Targets = None,
    *,
    order: Order = "cascading",
    seed: int = 0,
) -> Randomisation:
    """Model-parameter randomisation: are the maps still the same if the network knows nothing?

    Adebayo et al. 2018, arXiv 1810.03292. The network is copied, and the copy's layers
    are initialized anew. Each layer is a module with parameters, in the reverse of the order in
    which they are registered, as in Quantus. ``reset_parameters()`` initializes it; parameters that
    it leaves unchanged, and those of modules without it, are drawn from a normal distribution with
    their mean and standard deviation, which leaves constants alone (Quantus keeps all of these).
    The classes stay those of the original network. It takes L + 1 explanations and 1 forward per
    image, and memory for a second network. Compiled methods explain in exact mode.

    Args:
        method: a method that returns one map per image, such as ``fastcam.GradCAM(model)``.
        images, targets: as for :func:`confidence`.
        order: ``"cascading"`` randomises a layer and all above it, ``"independent"`` that layer
            alone.
        seed: the seed of the new parameters.
    """
    if order not in ("cascading", "independent"):
        raise ArgumentError("order", f'got {order!r}, expected "cascading" or "independent"')
    exactly = getattr(method, "exactly", nullcontext)
    # a compiled copy of the network would not see its new parameters
    with exactly(), torch.inference_mode(False):
        explained = Explained(method, images, targets)
        other = copy.deepcopy(method, {id(method.model): copied(method.model)})
    found = []
    with torch.random.fork_rng(_devices(other.model)), torch.inference_mode(False):
        torch.manual_seed(seed)
        for name in randomised_layers(other.model):
            module = other.model.get_submodule(name)
            with _randomised(module, kept=order == "independent"):
                maps = other(images, explained.targets)
            found.append(similarity(explained.maps, maps))
    if not found:
        raise ArgumentError("method", "its network has no parameters that could be randomised")
    return Randomisation(
        torch.stack([each.ssim for each in found], 1),
        torch.stack([each.rank_correlation for each in found], 1),
        randomised_layers(method.model),
    )


def randomised_layers(model: nn.Module) -> tuple[str, ...]:
    """The names of the modules with parameters, from the output down; "" for the model itself."""
    names = [
        name
        for name, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    return tuple(reversed(names))


def class_sensitivity(
    method: Any, images: Inputs, targets: Targets = None, *, others: Targets = None
) -> Similarity:
    """How alike the maps of two classes are: a map that ignores the class cannot explain it.

    By default the class with the highest score and the one with the lowest, as Rebuffi et al. 2020,
    arXiv 2004.02866; Sixt et al. 2020, arXiv 1912.09818, and Quantus' RandomLogit take a random
    other class. It takes 2 explanations and 1 forward per image.

    Args:
        method: a method that returns one map per image, such as ``fastcam.GradCAM(model)``.
        images, targets: as for :func:`confidence`.
        others: the other class of each image; by default the one with the lowest score.

    Returns:
        (N,) each, low is good.

    Raises:
        ValueError: if the targets are not class ids and ``others`` is missing.
    """
    explained = Explained(method, images, targets)
    if others is None:
        logits = method.logits_of(method.outputs, images)
        if method.class_ids is None or logits.dim() != 2:
            raise ArgumentError(
                "others",
                "got None, but only class ids of logits (N, classes) have a class with the "
                "lowest score; give the other targets",
            )
        others = logits.argmin(1)
    return similarity(explained.maps, method(images, others))


@contextmanager
def _randomised(module: nn.Module, kept: bool) -> Iterator[None]:
    """Initializes a module's own parameters anew; ``kept`` restores them at the end."""
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    before = [each.detach().clone() for each in own]
    reset = getattr(module, "reset_parameters", None)
    with torch.no_grad():
        if callable(reset):
            reset()
        for value, old in zip(own, before, strict=True):
            if isinstance(value, nn.Parameter) and value.is_floating_point() and value.equal(old):
                spread = old.std(unbiased=False)
                if spread > 0:  # constants, such as the weights of a new BatchNorm, remain
                    value.normal_().mul_(spread).add_(old.mean())
    yield
    if kept:
        with torch.no_grad():
            for value, old in zip(own, before, strict=True):
                value.copy_(old)


def _devices(model: nn.Module) -> list[int]:
    """The indices of the GPUs that hold parameters."""
    found = {parameter.device for parameter in model.parameters()}
    return [each.index for each in found if each.type == "cuda" and each.index is not None]
