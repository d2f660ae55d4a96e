"""CAM, and the methods of :func:`fastcam.ops.cam`, which weight activations by gradients."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastcam import ops
from fastcam.engine.capture import Capture
from fastcam.engine.pooled_head import PooledHead, find_pooled_head
from fastcam.errors import ArgumentError
from fastcam.methods.maps import MapMethod, Wanted, extents_of
from fastcam.targets import Selection


class CAM(MapMethod):
    """M = sum_k w_k^c A^k, w^c the weights of the linear layer after global average pooling.

    Zhou et al. 2016, arXiv 1512.04150, equation 2; the bias and ReLU are left out. If the head
    averages ReLU(A), A stands for ReLU(A).
    """

    name = "cam"
    relu = False

    def layer_maps(self, record: Capture, selection: Selection, relu: bool) -> list[Tensor]:
        if selection.class_ids is None or selection.functions is not None:
            raise ArgumentError("targets", "CAM needs class ids, because it uses a class's weights")
        maps = []
        for layer, name in enumerate(record.layers):
            head = find_pooled_head(record, layer, selection)
            if head is None:
                raise ArgumentError(
                    "target_layers",
                    f"CAM needs global average pooling and one linear layer right "
                    f"after '{name}', but the network has another head there, or every image gave "
                    'NaN; use Grad-CAM ("gradcam")',
                )
            maps.append(ops.weighted_sum(head.pooled, head.weight[selection.class_ids], relu))
        return maps


class GradientMap(MapMethod):
    """A method of :func:`fastcam.ops.cam`."""

    averages: ClassVar[bool] = False
    """Whether w is the mean of g over the positions."""

    def finished(self, record: Capture, selection: Selection, wanted: Wanted) -> Any:
        one_map = len(record.layers) == 1 and selection.scores.dim() == 1
        if not one_map or wanted.size == "layer":
            return super().finished(record, selection, wanted)
        extents, relu = extents_of(record, wanted.size), self.rectifies(wanted)

        def map_of(a: Tensor, g: Tensor) -> Tensor:
            g = self._examined(g)
            return ops.saliency(a, g, self.name, extents, relu, wanted.normalize)

        return gradient_maps(record, selection, map_of)[0]

    def layer_maps(self, record: Capture, selection: Selection, relu: bool) -> list[Tensor]:
        return gradient_maps(
            record, selection, lambda a, g: ops.cam(a, self._examined(g), self.name, relu)
        )

    def _examined(self, gradients: Tensor) -> Tensor:
        """The gradients; warns on the first call if their means are only rounding errors."""
        if self.averages and not self._looked and gradients.numel():
            means = gradients.flatten(2).mean(-1).abs().amax()
            precision = torch.finfo(torch.promote_types(gradients.dtype, torch.float32)).eps
            if means <= 4 * precision * gradients.abs().amax() and gradients.any():
                warnings.warn(
                    "target_layers: the gradients average to 0 over the layer's positions, so the "
                    "map is rounding noise (a softmax over positions after the layer does that); "
                    "name another layer, or take HiResCAM or LayerCAM, which do not average",
                    stacklevel=2,
                )
        return gradients


class PooledGradientMap(GradientMap):
    """A method that is M = sum_k w_k A^k, w a function of g and sum(ReLU(A)), for constant g.

    That is the gradient of a head of global average pooling and one linear layer. One backward
    then serves all classes.
    """

    def layer_maps(self, record: Capture, selection: Selection, relu: bool) -> list[Tensor]:
        ids = selection.class_ids
        if len(record.layers) == 1 and ids is not None and ids.dim() == 2 and ids.shape[1] > 1:
            head = find_pooled_head(record, 0, selection)
            if head is not None and not head.rectified:
                return [self._pooled_maps(head, ids, relu)]
        return super().layer_maps(record, selection, relu)

    def _pooled_maps(self, head: PooledHead, class_ids: Tensor, relu: bool) -> Tensor:
        """The maps of K classes, (N, K, *S), without a backward: g = W[c] / Z at every position."""
        positions = head.pooled.shape[2:].numel()
        slopes = head.weight / positions
        total = ops.gap(head.pooled.relu()) * positions
        # classes in blocks, so that the weights (N, block, C) fit in a CPU's cache
        elements = 2**18 if total.device.type == "cpu" else 2**26
        blocks = torch.split(class_ids, max(1, elements // max(1, total.numel())), dim=1)
        same = bool((class_ids == class_ids[:1]).all())  # as for "all classes": one is enough
        maps = []
        for ids in blocks:
            gradients = slopes[ids[:1]].expand(*ids.shape, -1) if same else slopes[ids]
            weights = self._weights(gradients, total, positions)
            maps.append(ops.weighted_sum(head.pooled, weights, relu))
        return torch.cat(maps, 1)

    def _weights(self, slopes: Tensor, total: Tensor, positions: int) -> Tensor:
        """Channel weights (N, K, C) if the gradient is the same at all positions.

        Args:
            slopes: g, (N, K, C).
            total: sum(ReLU(A)), (N, C).
            positions: Z.
        """
        raise NotImplementedError


class GradCAM(PooledGradientMap):
    """M = ReLU(sum_k w_k A^k), w_k = (1/Z) sum_ij g_ij.

    Selvaraju et al. 2017, arXiv 1610.02391, equations 1 and 2.
    """

    name = "gradcam"
    averages = True

    def _weights(self, slopes: Tensor, total: Tensor, positions: int) -> Tensor:
        return slopes


class GradCAMPlusPlus(PooledGradientMap):
    """M = ReLU(sum_k w_k A^k), w_k = sum_ij alpha_ij ReLU(g_ij).

    alpha_ij = g_ij^2 / (2 g_ij^2 + sum_ab ReLU(A_ab) g_ij^3): Chattopadhyay et al. 2018, arXiv
    1710.11063, equations 5 and 19 with Y = exp(S), and ReLU(A) for A, which the paper assumes to
    be at least 0; see :func:`fastcam.ops.gradcam_plus_plus_weights`. The factor exp(S) of the raw
    map is left out.
    """

    name = "gradcam++"

    def _weights(self, slopes: Tensor, total: Tensor, positions: int) -> Tensor:
        # sum_ij ReLU(g) / (2 + g total): Z times that of a single position whose A is the total
        single = ops.gradcam_plus_plus_weights(total.unsqueeze(-1), slopes.unsqueeze(-1))
        return single.mul_(positions)


class XGradCAM(PooledGradientMap):
    """M = ReLU(sum_k w_k A^k), w_k = sum_ij g_ij A_ij / sum_ij A_ij, or 0 if sum_ij A_ij is 0.

    Fu et al. 2020, arXiv 2008.02312, equation 8.
    """

    name = "xgradcam"

    def _weights(self, slopes: Tensor, total: Tensor, positions: int) -> Tensor:
        return slopes


class HiResCAM(PooledGradientMap):
    """M = ReLU(sum_k g^k A^k), elementwise.

    Draelos and Carin 2020, arXiv 2011.08891; the ReLU is for display, ``relu=False`` leaves it out.
    """

    name = "hirescam"

    def _weights(self, slopes: Tensor, total: Tensor, positions: int) -> Tensor:
        return slopes


class LayerCAM(PooledGradientMap):
    """M = ReLU(sum_k ReLU(g^k) A^k), elementwise.

    Jiang et al. 2021, IEEE Transactions on Image Processing 30, equations 5 to 7.
    """

    name = "layercam"

    def _weights(self, slopes: Tensor, total: Tensor, positions: int) -> Tensor:
        return slopes.relu()


class GradCAMElementWise(GradientMap):
    """M = sum_k ReLU(g^k A^k), elementwise."""

    name = "gradcam-elementwise"


def gradient_maps(
    record: Capture,
    selection: Selection,
    to_map: Callable[[Tensor, Tensor], Tensor],
    retain: bool = False,
) -> list[Tensor]:
    """Maps of activations and gradients, one tensor per layer, (N, *S) or (N, K, *S).

    Computes one class at a time, to hold the gradients of one class only.
    """

    def maps_of(scores: Tensor, again: bool) -> list[Tensor]:
        gradients = record.gradients(scores, retain=retain or again)
        return [to_map(a, g) for a, g in zip(record.activations, gradients, strict=True)]

    return selection.by_class(maps_of)
