"""The layers of a network that can be explained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastcam.engine.layers import find_layer, find_levels
from fastcam.engine.listing import list_layers
from fastcam.engine.running import Loan
from fastcam.errors import FastcamError, first_line
from fastcam.models import LoadedModel
from fastcam.targets.detectors import detector

_SIDE = 256  # of the picture that is shown to the network, in pixels


def of_classifier(model: LoadedModel) -> dict[str, Any]:
    """The layers of a network as :func:`fastcam.list_layers` lists them, for a picture of noise.

    Returns:
        "input", the shape of the network's input; "layers", with the fields of
        :class:`fastcam.ListedLayer`; "chosen", the names of the layers that are explained if none
        is named; "problem", why there are none, or None.

    Raises:
        FastcamError: if the model fails on the picture, or returns no scores.
    """
    images = model.preprocessing(_noise())
    if model.clip_length is not None:
        images = images.unsqueeze(2).expand(-1, -1, model.clip_length, -1, -1)
    images = images.to(model.device)
    return _report(
        images,
        lambda: list_layers(model.module, images),
        lambda: [find_layer(model.module, images)],
    )


def of_detector(model: LoadedModel) -> dict[str, Any]:
    """The same for a detector and its boxes; "chosen" are the levels of its feature pyramid."""
    image = _noise()[0].permute(2, 0, 1).to(model.device) / 255
    found = detector(model.module)

    def best(_: Any) -> Tensor:
        return torch.stack([logits.amax(0) for _, logits in found.candidates()])

    with Loan(found.hooks):
        return _report(
            image[None],
            lambda: list_layers(model.module, [image], output=best),
            lambda: find_levels(model.module, [image], lambda: found.levels, best),
        )


def _noise() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (1, _SIDE, _SIDE, 3), dtype=torch.uint8, generator=generator)


def _report(
    images: Tensor, layers: Callable[[], Sequence[Any]], choice: Callable[[], Sequence[str]]
) -> dict[str, Any]:
    found: dict[str, Any] = {"input": list(images.shape), "chosen": [], "problem": None}
    try:
        found["layers"] = [vars(each) for each in layers()]
    except (ValueError, RuntimeError, AssertionError, TypeError) as error:
        raise FastcamError(
            "the layers of this model cannot be listed: its scores are needed, for an input of "
            f"{'x'.join(map(str, images.shape))}, and {first_line(error)}"
        ) from error
    with torch.inference_mode(False), torch.no_grad():
        try:
            found["chosen"] = list(choice())
        except ValueError as error:
            found["problem"] = " ".join(str(error).split())
    return found


def rows(report: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Name, class, channels and positions, and remarks of each layer in a report."""
    for layer in report["layers"]:
        remarks = []
        if layer["name"] in report["chosen"]:
            remarks.append("<- chosen by default")
        if layer["runs"] > 1:
            remarks.append(f"runs {layer['runs']} times")
        shape = layer["activations"]
        if shape is None:
            shown = f"returns {'x'.join(map(str, layer['shape']))}: reshape= has to read it"
        else:
            shown = " x ".join(map(str, shape))
        yield layer["name"], layer["kind"], shown, "; ".join(remarks)
