"""Methods on top of another one: another score, or another way to join several layers."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from fastcam import ops
from fastcam.capture import (
    Capture,
)
from fastcam.layers import Layers
from fastcam.methods.base import MapMethod, Reading, Size, extents_of
from fastcam.methods.gradient import GradCAM, GradCAMPlusPlus
from fastcam.targets import Selection


class FinerCAM(MapMethod):
    """The map of S_c - gamma sum_d p_d S_d: what speaks for class c and not for its likes d.

    Zhang et al. 2025, arXiv 2501.11309. The references d are the classes with the scores nearest to
    S_c; p weighs them equally, or by their softmax probabilities, scaled to sum 1 and derived too.
    The paper's and torchcam's formula is the default; pytorch-grad-cam's is ``gamma=1,
    weights="softmax"``.
    """

    name = "finercam"

    def __init__(
        self,
        model: nn.Module,
        target_layers: Layers | None = None,
        *,
        base: type[MapMethod] = GradCAM,
        gamma: float = 0.6,
        references: int = 3,
        weights: Literal["equal", "softmax"] = "equal",
        **reading: Unpack[Reading],
    ) -> None:
        """As for the other methods.

        Args:
            base: the method whose map it is, one that derives the score.
            gamma: how much the references count.
            references: how many there are; all other classes where the model has fewer.
            weights: how they are weighed.
        """
        super().__init__(model, target_layers, **reading)
        if base.graph != "layers":
            raise ValueError(
                f"base: got '{base.name}', expected a method of gradients, such as GradCAM"
            )
        if references < 1 or weights not in ("equal", "softmax"):
            raise ValueError(
                f"references, weights: got {references} and {weights!r}, expected at least 1, and "
                '"equal" or "softmax"'
            )
        self.gamma, self.references, self.weights = gamma, references, weights
        self._base = base(model)

    def _maps(self, record: Capture, selection: Selection, relu: bool) -> list[Tensor]:
        finer = Selection(self._contrast(record.logits, selection), None)
        return self._base._maps(record, finer, relu)

    def _contrast(self, logits: Tensor, selection: Selection) -> Tensor:
        """The scores to explain instead, (N,) or (N, K)."""
        ids = selection.class_ids
        if ids is None:
            raise ValueError(
                "targets: Finer-CAM needs class ids, for it compares a class with others"
            )
        if logits.dim() != 2 or logits.shape[1] < 2:
            raise ValueError(
                f"output: got {tuple(logits.shape)}, but Finer-CAM compares classes: it expects "
                "logits (N, classes) of 2 classes and more"
            )
        columns = ids if ids.dim() == 2 else ids.unsqueeze(1)
        with torch.enable_grad():
            scores = logits.gather(1, columns)  # (N, K)
            rows = logits.unsqueeze(1).expand(-1, columns.shape[1], -1)  # (N, K, classes)
            distance = (rows.detach() - scores.detach().unsqueeze(2)).abs()
            distance = distance.scatter(2, columns.unsqueeze(2), torch.inf)
            count = min(self.references, logits.shape[1] - 1)
            nearest = distance.topk(count, 2, largest=False).indices
            others = rows.gather(2, nearest)
            if self.weights == "equal":
                other = others.mean(2)
            else:
                other = (others.softmax(2) * others).sum(2)
            return (scores - self.gamma * other).reshape(ids.shape)


class RefineCAM(MapMethod):
    """The product of several layers' maps: each normalized at its layer, then enlarged.

    How to Evaluate and Refine your CAM, 2026, arXiv 2605.14641. The last layer says where, the
    earlier ones how far. Of one layer it is the base method's map.
    """

    name = "refinecam"

    def __init__(
        self,
        model: nn.Module,
        target_layers: Layers | None = None,
        *,
        base: type[MapMethod] = GradCAMPlusPlus,
        **reading: Unpack[Reading],
    ) -> None:
        """As for the other methods.

        Args:
            base: the method whose maps are multiplied.
        """
        super().__init__(model, target_layers, **reading)
        self._base = base(model)
        self.graph = base.graph

    def _finished(
        self, record: Capture, selection: Selection, relu: bool, size: Size, normalize: bool
    ) -> Any:
        """One map whatever the number of layers; "layer" is the largest extents among them."""
        if size == "layer":
            shapes = [a.shape[2:] for a in record.activations]
            size = [max(extents) for extents in zip(*shapes, strict=True)]
        extents = extents_of(record, size)
        dims = len(extents)
        product: Tensor | None = None
        for maps in self._base._maps(record, selection, relu):
            enlarged = ops.upsample(ops.normalize(maps, dims), extents, normalize=False)
            product = enlarged if product is None else product * enlarged
        assert product is not None
        return ops.normalize(product, dims) if normalize else product
