"""Deep feature factorization: the concepts that a layer sees in a batch of images."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastcam import ops
from fastcam.engine.capture import capture
from fastcam.engine.inputs import (
    Argument,
    Inputs,
)
from fastcam.engine.layers import Layers, find_layer, layer_names
from fastcam.engine.outputs import (
    Output,
)
from fastcam.engine.per_image import PerImage
from fastcam.engine.repeats import Repeats
from fastcam.engine.running import (
    unwrap,
)
from fastcam.engine.shapes import Reshape
from fastcam.errors import ArgumentError, check_positive
from fastcam.methods.maps import Size, extents_of


@dataclass(frozen=True)
class Factorization:
    """The result of :func:`deep_feature_factorization`, the strongest concept first."""

    concepts: Tensor
    """(K, C): the activations of a position that shows this concept alone, at full strength."""
    maps: Tensor
    """(N, K, *size): where each concept is in each image."""
    outputs: Any
    """The model's outputs."""


def deep_feature_factorization(
    model: nn.Module,
    images: Inputs,
    components: int = 16,
    target_layers: Layers | None = None,
    *,
    size: Size = None,
    normalize: bool = True,
    iterations: int = 200,
    seed: int = 0,
    reshape: Reshape | None = None,
    output: Output | None = None,
    per_image: Collection[Argument] | None = None,
    run: int | None = None,
) -> Factorization:
    """A = W H with W and H at least 0: K concepts W (C, K) and their positions H (K, N Z).

    Collins et al. 2018, arXiv 1806.10206. A (C, N Z) holds the layer's activations at all positions
    of all images, minus each channel's minimum, which is added back to the concepts. W and H start
    from random numbers, are fitted by hierarchical alternating least squares (Cichocki and Phan
    2009), and are scaled so that each row of H has the maximum 1. To name the concepts, apply the
    classifier's head: ``model.fc(factorization.concepts)``.

    Args:
        model, images, reshape, output, per_image, run: as for the methods of
            :mod:`fastcam.methods`.
        components: K.
        target_layers: one layer, or a list of one.
        size: the maps' extents, by default those of the images; "layer" for the layer's own.
        normalize: whether to scale each map to [0, 1]; a constant map becomes 0.
        iterations: the maximum number of iterations; fewer run if they converge.
        seed: the seed of the random numbers.

    Raises:
        ValueError, TypeError: if the layer or the size does not fit the model and the images, or
            activations are NaN or infinite.
    """
    check_positive(components=components)
    with torch.inference_mode(False), torch.no_grad():
        model = unwrap(model)
        reading: dict[str, Any] = {
            "reshape": reshape,
            "output": output,
            "per_image": PerImage(per_image),
            "repeats": Repeats(run),
        }
        if target_layers is None:
            found = find_layer(model, images, **reading)
            layers: tuple[str, ...] = (found,)
        else:
            layers = layer_names(model, target_layers)
        if len(layers) != 1:
            raise ArgumentError(
                "target_layers", f"got {len(layers)}, expected one layer to factorize"
            )
        record = capture(model, images, layers, graph=None, **reading)
        (activations,) = record.activations
        with torch.autocast(record.logits.device.type, enabled=False):
            a = activations if activations.dtype == torch.float64 else activations.float()
            a = a.movedim(1, 0).flatten(1)  # (C, N Z)
            if not a.isfinite().all():
                raise ArgumentError("images", "NaN or infinite activations cannot be factorized")
            low = a.amin(1, keepdim=True)
            w, h = _factors(a - low, components, iterations, seed)
            shape = (components, activations.shape[0], *activations.shape[2:])
            maps = h.reshape(shape).transpose(0, 1)
            dims = activations.dim() - 2
            if size == "layer":
                maps = ops.normalize(maps, dims) if normalize else maps
            else:
                maps = ops.upsample(maps, extents_of(record, size), normalize)
            return Factorization((w + low).T, maps, record.outputs)


def _factors(a: Tensor, components: int, iterations: int, seed: int) -> tuple[Tensor, Tensor]:
    """W (C, K) and H (K, P), both at least 0, with W H close to A (C, P)."""
    generator = torch.Generator().manual_seed(seed)
    scale = (a.mean() / components).sqrt()
    w, h = (
        torch.randn(shape, generator=generator).abs().to(a) * scale
        for shape in ((a.shape[0], components), (components, a.shape[1]))
    )
    energy, before = a.square().sum(), torch.inf
    for i in range(iterations):
        _improve(h.T, (w.T @ a).T, w.T @ w)
        product, gram = a @ h.T, h @ h.T
        _improve(w, product, gram)
        if i % 10 == 9:
            error = float(energy - 2 * (w * product).sum() + ((w.T @ w) * gram).sum())
            if before - error <= 1e-5 * error:
                break
            before = error
    strongest = h.amax(1)
    w, h = w * strongest, h / strongest.where(strongest > 0, 1.0)[:, None]
    order = (w.norm(dim=0) * h.norm(dim=1)).argsort(descending=True)
    return w[:, order], h[order]


def _improve(w: Tensor, product: Tensor, gram: Tensor) -> None:
    """Updates W >= 0 in place, column by column; ``product`` is A H^T, ``gram`` is H H^T."""
    for k in range(w.shape[1]):
        diagonal = gram[k, k]
        step = (product[:, k] - w @ gram[:, k]) / diagonal.where(diagonal > 0, torch.inf)
        w[:, k] = (w[:, k] + step).clamp(min=0)
