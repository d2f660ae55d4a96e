"""Targets computed from the output: pixels of a class, similarity, margins, and their negatives."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastcam.errors import ArgumentError
from fastcam.targets.selection import (
    EveryScore,
    ModelTarget,
    OutputTarget,
    Target,
    Targets,
    on_top,
    select,
)


def _id(name: str, given: Any) -> int:
    if isinstance(given, bool) or not isinstance(given, Integral):
        raise TypeError(
            f"{name}: got {given!r}, expected one class id (an int); call the method once for each"
        )
    return int(given)


class Segmentation(OutputTarget):
    """The sum of a class's logits over a mask, for outputs with a logit per class and pixel.

    Vinogradova et al. 2020, arXiv 2002.11434, equation 1.

    Args:
        class_id: the class. A network with one logit per pixel has class 0 alone.
        mask: (H, W) for all images, or (N, H, W), one per image. Floating-point values weigh the
            logits; of other types, all values but 0 count alike. It has the size of the logits, or
            that of the images: then the logit in row i of h takes the mask's row
            floor((i + 1/2) H / h), and columns likewise. If None, the pixels where the class is on
            top; with one logit, where that is above 0. Methods that run masked images keep the
            pixels of the unmasked one.
    """

    def __init__(self, class_id: int, mask: Any = None) -> None:
        self.class_id = _id("class_id", class_id)
        given = None if mask is None else torch.as_tensor(mask)
        self.mask = given if given is None or given.is_floating_point() else given != 0

    def functions(self, outputs: Tensor, extents: Sequence[int] | None) -> list[Target]:
        """See :class:`OutputTarget`; outputs are (N, classes, *S)."""
        if outputs.dim() < 3:
            raise ArgumentError(
                "targets",
                f"Segmentation expects an output (N, classes, H, W), got {tuple(outputs.shape)}; "
                "a class of a classifier is named by its id",
            )
        classes = outputs.shape[1]
        if not 0 <= self.class_id < classes:
            expected = f"0 to {classes - 1}" if classes > 1 else "0: there is one logit per pixel"
            raise ArgumentError("class_id", f"got {self.class_id}, expected {expected}")
        if self.mask is None:
            masks = self._on_top(outputs.detach())
        else:
            masks = self._fitted(self.mask, outputs, extents)
        return [_masked_sum(self.class_id, mask) for mask in masks]

    def _on_top(self, outputs: Tensor) -> Tensor:
        """(N, *S)"""
        masks = on_top(outputs)[:, self.class_id]
        empty = (~masks.flatten(1).any(1)).nonzero().flatten().tolist()
        if empty:
            raise ArgumentError(
                "mask",
                f"got None, but class {self.class_id} is on top at no pixel of image {empty[0]}; "
                "give the pixels to explain as mask=",
            )
        return masks

    @staticmethod
    def _fitted(mask: Tensor, outputs: Tensor, extents: Sequence[int] | None) -> Tensor:
        """The mask at the logits' size, (N, *S)."""
        size, dims = tuple(outputs.shape[2:]), outputs.dim() - 2
        images = len(outputs)
        sizes = [size, *([] if extents is None else [tuple(extents)])]
        per_image = mask.dim() == dims + 1 and len(mask) == images
        if not (mask.dim() == dims or per_image) or tuple(mask.shape[-dims:]) not in sizes:
            expected = " or ".join(map(str, dict.fromkeys(sizes)))
            raise ArgumentError(
                "mask",
                f"got shape {tuple(mask.shape)}, expected the logits' or the images' size, "
                f"{expected}, with {images} in front for a mask per image; resize it",
            )
        masks = mask.to(outputs.device, outputs.dtype).expand(images, *mask.shape[-dims:])
        blank = (~masks.flatten(1).any(1)).nonzero().flatten().tolist()
        if blank:
            raise ArgumentError("mask", f"got no pixel but zeros for image {blank[0]}")
        if tuple(mask.shape[-dims:]) == size:
            return masks
        return F.interpolate(masks[:, None], size, mode="nearest-exact")[:, 0]


def _masked_sum(class_id: int, mask: Tensor) -> Target:
    return lambda row: (row[class_id] * mask).sum()


class Similarity(OutputTarget):
    """The cosine of the angle between a network's output and an embedding.

    For retrieval, and for CLIP's picture encoder with a text's embedding.

    Args:
        embedding: (D,) for all images, or (N, D), one per image.
    """

    def __init__(self, embedding: Any) -> None:
        self.embedding = torch.as_tensor(embedding).detach()
        if self.embedding.dim() not in (1, 2) or not self.embedding.is_floating_point():
            raise ArgumentError(
                "embedding",
                f"got shape {tuple(self.embedding.shape)} of {self.embedding.dtype}, expected "
                "floating-point values (D,), or (N, D), one row per image",
            )
        if not bool(self.embedding.isfinite().all()):
            raise ArgumentError("embedding", "got values that are not finite")

    def functions(self, outputs: Tensor, extents: Sequence[int] | None) -> list[Target]:
        """See :class:`OutputTarget`; outputs are (N, D)."""
        images, given = len(outputs), tuple(self.embedding.shape)
        if outputs.dim() != 2 or given not in (outputs.shape[1:], outputs.shape):
            raise ArgumentError(
                "embedding",
                f"got shape {given} for an output {tuple(outputs.shape)}, expected "
                f"{tuple(outputs.shape[1:])}, or one row for each of {images} images; if the "
                "network returns something else, pick its embedding by output=",
            )
        rows = self.embedding.to(outputs.device, outputs.dtype).expand(images, -1)
        return [_cosine_to(row) for row in rows]


def _cosine_to(embedding: Tensor) -> Target:
    return lambda row: F.cosine_similarity(row, embedding, dim=0)


class Margin(OutputTarget):
    """The logit of class ``a`` minus that of class ``b``: what speaks for a rather than b."""

    def __init__(self, a: int, b: int) -> None:
        self.a, self.b = _id("a", a), _id("b", b)

    def functions(self, outputs: Tensor, extents: Sequence[int] | None) -> list[Target]:
        """See :class:`OutputTarget`; outputs are (N, classes)."""
        select(outputs, self.a), select(outputs, self.b)  # both are classes
        return [lambda row: row[self.a] - row[self.b]] * len(outputs)


class Negative(OutputTarget):
    """Minus the score of any other target: what speaks against it.

    Args:
        target: whatever a method accepts as targets.
    """

    def __init__(self, target: Targets) -> None:
        self.target = target

    def functions(self, outputs: Tensor, extents: Sequence[int] | None) -> list[Target]:
        """See :class:`OutputTarget`."""
        selection = select(outputs, self.target, extents)
        if selection.functions is not None:
            return [_minus(function) for function in selection.functions]
        assert selection.class_ids is not None
        single = outputs.dim() == 1
        return [_minus(_picking(ids, single)) for ids in selection.class_ids]


def watched(targets: Targets) -> tuple[ModelTarget | None, Targets]:
    """The target among these whose scores come from inside of the model, and what is left to do.

    The latter are the targets for the scores that its :class:`Watch` computes.
    """
    if isinstance(targets, ModelTarget):
        return targets, EveryScore()
    if isinstance(targets, Negative):
        target, rest = watched(targets.target)
        return target, Negative(rest)
    return None, targets


def _minus(function: Target) -> Target:
    return lambda row: -function(row)


def _picking(ids: Tensor, single: bool) -> Target:
    """The logits of classes (K,) or (), from one image's logits, a scalar if there is one class."""
    return lambda row: (row.reshape(1) if single else row)[ids]
