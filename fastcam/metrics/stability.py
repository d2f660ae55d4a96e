"""Infidelity and max-sensitivity: does the map tell what perturbations of the image do?"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from fastcam.engine.inputs import Argument, Inputs
from fastcam.engine.outputs import Output
from fastcam.engine.per_image import PerImage
from fastcam.errors import ArgumentError, check_positive
from fastcam.metrics.scoring import Explained, Scorer
from fastcam.targets import Targets

Perturb = Callable[[Tensor, torch.Generator], Tensor]
"""A function (images (R, C, *S), generator) -> I, in their shape, which is subtracted from them."""


def infidelity(
    model: nn.Module,
    images: Inputs,
    maps: Tensor,
    targets: Targets = None,
    *,
    perturb: Perturb | None = None,
    samples: int = 50,
    scaled: bool = True,
    seed: int = 0,
    batch_size: int = 32,
    probabilities: bool = True,
    output: Output | None = None,
    per_image: PerImage | Collection[Argument] | None = None,
) -> Tensor:
    """Infidelity: E[(b sum(I M) - (S(x) - S(x - I)))²] over random perturbations I. Low is good.

    Yeh et al. 2019, arXiv 1901.09392, definition 2.1; every channel has the map M. The scale of a
    map in [0, 1] is arbitrary, so b is the factor that makes the value smallest, E[sum(I M) dS] /
    E[sum(I M)²], as in the authors' code and captum's ``normalize=True``; Quantus has b = 1. It
    takes samples + 1 forwards per image.

    Args:
        model, images, targets, maps, probabilities, output, per_image: as for :func:`confidence`.
        perturb: a function (images (R, C, *S), generator) -> I, in their shape. By default the
            paper's square removal: I is the image in a random box, 0 elsewhere, so that x - I is 0
            in the box. The box's side is uniform from 1 pixel to half of the shortest side.
        samples: the number of perturbations per image.
        scaled: whether to find b; otherwise it is 1.
        seed: the seed of the perturbations; calls with the same batch_size draw the same ones.
        batch_size: the number of perturbed images per run.

    Returns:
        (N,), 0 or more; NaN if the map holds NaN.

    Raises:
        ValueError, TypeError: if maps, targets or perturbations do not fit the images.
    """
    check_positive(samples=samples)
    scorer = Scorer(
        model, images, targets, probabilities=probabilities, output=output, per_image=per_image
    )
    with scorer:
        scorer.check(maps)
        record, pixels = scorer.record, scorer.images
        generator = torch.Generator(pixels.device).manual_seed(seed)
        products: list[Tensor] = []

        def perturbed(_: Tensor, rows: Tensor) -> Tensor:
            chosen = pixels[rows]
            change = (
                _square_removal(chosen, record.places, generator)
                if perturb is None
                else perturb(chosen, generator)
            )
            if change.shape != chosen.shape:
                raise ArgumentError(
                    "perturb",
                    f"the function returned {tuple(change.shape)} for images "
                    f"{tuple(chosen.shape)}, expected their shape",
                )
            weighted = change.double() * record.over_images(maps[rows].double())
            products.append(weighted.flatten(1).sum(1))
            return chosen - change.to(chosen.dtype)

        rows = scorer.rows.repeat_interleave(samples)
        after = scorer.of_copies(rows, batch_size, perturbed).double().view(-1, samples)
        drops = scorer.before.double()[:, None] - after
        shares = torch.cat([*products, after.new_zeros(0)]).view(-1, samples)
        if scaled:
            squares = shares.square().sum(1, keepdim=True)
            best = (shares * drops).sum(1, keepdim=True) / squares
            shares = shares * best.masked_fill(squares == 0, 0)
        return (shares - drops).square().mean(1).to(scorer.before.dtype)


def max_sensitivity(
    method: Any,
    images: Inputs,
    targets: Targets = None,
    *,
    radius: float = 0.02,
    samples: int = 10,
    relative: bool = False,
    seed: int = 0,
) -> Tensor:
    """Max-sensitivity: the largest ||M(y) - M(x)|| with |y - x| <= radius everywhere. Low is good.

    Yeh et al. 2019, arXiv 1901.09392, definition 3.1; the maximum is that of random y, uniform
    around x. captum divides by ||M(x)|| (``relative=True``), Quantus by ||x||. The class of y is
    that of x. It takes samples + 1 explanations and 1 forward per image.

    Args:
        method: a method that returns one map per image, such as ``fastcam.GradCAM(model)``.
        images, targets: as for :func:`confidence`.
        radius: how far a value of the image may change.
        samples: the number of random y.
        relative: whether to divide by ||M(x)||; by 1 if it is 0.
        seed: the seed of the changes.

    Returns:
        (N,), 0 or more; NaN if a map holds NaN.
    """
    check_positive(samples=samples)
    explained = Explained(method, images, targets)
    maps, pixels = explained.maps, explained.scorer.images
    generator = torch.Generator(pixels.device).manual_seed(seed)
    distances = []
    for _ in range(samples):
        with explained.scorer:
            change = torch.empty_like(pixels).uniform_(-radius, radius, generator=generator)
            changed = pixels + change
        moved = explained.again(changed) - maps
        distances.append(moved.flatten(1).norm(dim=1))
    largest = torch.stack(distances).amax(0)
    if not relative:
        return largest
    lengths = maps.flatten(1).norm(dim=1)
    return largest / lengths.masked_fill(lengths == 0, 1)


def _square_removal(images: Tensor, places: Collection[int], generator: torch.Generator) -> Tensor:
    """The images (R, C, *S) within a random box each, and 0 elsewhere."""
    count, extents = len(images), [images.shape[axis] for axis in places]

    def uniform() -> Tensor:
        return torch.rand(count, generator=generator, device=images.device)

    sides = (uniform() * max(1, min(extents) // 2)).floor() + 1
    inside = torch.ones(count, *[1] * (images.dim() - 1), dtype=torch.bool, device=images.device)
    for axis, extent in zip(places, extents, strict=True):
        starts = (uniform() * (extent - sides + 1)).floor()
        shape = [-1 if other == axis else 1 for other in range(1, images.dim())]
        offsets = torch.arange(extent, device=images.device) - starts[:, None]
        within = (offsets >= 0) & (offsets < sides[:, None])
        inside = inside & within.view(count, *[extent if n == -1 else 1 for n in shape])
    return images * inside
