"""Lists the layers of a model that can be explained."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastcam.engine.inputs import Argument, Inputs
from fastcam.engine.layer_reader import Reader
from fastcam.engine.outputs import Output
from fastcam.engine.per_image import PerImage
from fastcam.engine.running import unwrap
from fastcam.engine.shapes import Reshape
from fastcam.engine.survey import Returned, survey
from fastcam.engine.values import rebuild


@dataclass(frozen=True)
class ListedLayer:
    """A layer on which the score depends, and what it returns for one image."""

    name: str
    """Its dotted name, for ``target_layers``."""
    kind: str
    """Its class, such as "Conv2d"."""
    shape: tuple[int, ...]
    """What it returns."""
    activations: tuple[int, ...] | None
    """(C, *S), how this is read: channels and positions. None if it cannot be read, or in two
    ways; then ``reshape=`` has to say how."""
    runs: int
    """How often it runs."""


def list_layers(
    model: nn.Module,
    images: Inputs,
    *,
    reshape: Reshape | None = None,
    output: Output | None = None,
    per_image: Collection[Argument] | None = None,
) -> list[ListedLayer]:
    """The layers that a method can explain, in the order in which the model computes them.

    These are the modules that return more than one position for each image, if the top score of
    the first image depends on them. It takes a few runs on one and two images.

    Args:
        model: the model; it is left as it was.
        images: (N, C, *S), or the model's inputs, as for the methods.
        reshape, output, per_image: as for the methods.

    Returns:
        One entry for each layer. The methods explain
        :func:`fastcam.engine.layers.find_layer`'s choice if no layer is named.

    Raises:
        ValueError: if the model returned no scores for the images.
    """
    model, rows = unwrap(model), PerImage(per_image)
    with torch.inference_mode(False), torch.no_grad():
        one, pair = (prepare(model, images, output) for prepare in (rows.first, rows.pair))
        seen = survey(model, rebuild(one, Tensor.clone), output)
        read = Reader(model, pair, seen, reshape, 0)
        layers = (_listed(layer, read) for group in seen.groups[::-1] for layer in group)
        return [layer for layer in layers if layer is not None]


def _listed(layer: Returned, read: Reader) -> ListedLayer | None:
    activations = read(layer, layer.tensor)
    if activations is not None and activations.shape[2:].numel() == 1:
        return None
    readable = activations is not None and read.why_not(layer) is None
    return ListedLayer(
        layer.name,
        type(layer.module).__name__,
        tuple(layer.tensor.shape),
        tuple(activations.shape[1:]) if activations is not None and readable else None,
        layer.runs,
    )
