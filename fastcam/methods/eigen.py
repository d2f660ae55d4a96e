"""Maps that are first principal components, by way of the small Gram matrix."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastcam.engine.capture import Capture
from fastcam.methods.gradient import gradient_maps
from fastcam.methods.maps import MapMethod, for_every_class
from fastcam.targets import Selection

Orient = Callable[[Tensor, Tensor], Tensor]
"""Gives components (N, Z) their signs, for the centred features (N, Z, C) that they are of."""

_DENSE = 512  # up to this size all eigenvectors cost less than the iteration for one


def largest_positive(components: Tensor, features: Tensor) -> Tensor:
    """The value of the largest magnitude is positive."""
    largest = components.abs().argmax(1, keepdim=True)
    return torch.where(components.gather(1, largest) < 0, -components, components)


def principal_component(features: Tensor, orient: Orient = largest_positive) -> Tensor:
    """The projection of every position's channels on their first principal component.

    X v, X the (Z, C) matrix of positions and channels less each channel's mean, v its first right
    singular vector. The sign of v is free: ``orient`` decides. Features that are the same at all
    positions give 0. Of weighted activations w A this is eigen-smoothing.

    Args:
        features: (N, C, *S).
        orient: gives each component its sign.

    Returns:
        (N, *S), in float32, or float64 for such features.
    """
    x, finite = _rows(features)
    magnitude = x.square().sum((1, 2))
    x = x - x.mean(1, keepdim=True)
    # X X^T and X^T X have the same eigenvalues: the smaller one will do
    if x.shape[1] <= x.shape[2]:
        values, vectors = _largest_eigenpair(x @ x.mT)
        component = vectors * values.clamp(min=0).sqrt()[:, None]
    else:
        values, vectors = _largest_eigenpair(x.mT @ x)
        component = (x @ vectors.unsqueeze(2)).squeeze(2)
    constant = values <= (64 * torch.finfo(x.dtype).eps) ** 2 * magnitude  # but for rounding
    component = orient(component.masked_fill(constant[:, None], 0), x)
    return _as_maps(component, finite, features)


def kernel_component(features: Tensor) -> Tensor:
    """The same with X X^T replaced by the centred kernel tanh(x . y / C + 1) of its rows.

    Args:
        features: (N, C, *S).

    Returns:
        (N, *S), in float32, or float64 for such features; the largest magnitude is positive.
    """
    x, finite = _rows(features)
    x = x - x.mean(1, keepdim=True)
    kernel = torch.tanh(x @ x.mT / x.shape[2] + 1)
    means = kernel.mean(2, keepdim=True)
    kernel = kernel - means - means.mT + means.mean(1, keepdim=True)
    values, vectors = _largest_eigenpair(kernel)
    constant = values <= 64 * torch.finfo(x.dtype).eps * x.shape[1]  # the kernel is 1 at most
    component = vectors * values.clamp(min=0).sqrt()[:, None]
    component = largest_positive(component.masked_fill(constant[:, None], 0), x)
    return _as_maps(component, finite, features)


def _rows(features: Tensor) -> tuple[Tensor, Tensor]:
    """Positions as rows (N, Z, C), in float64, for a Gram matrix squares; and which are finite.

    An image with NaN or Inf becomes 0 until its map is NaN.
    """
    x = features.double().flatten(2).mT
    finite = x.isfinite().flatten(1).all(1)
    return x.where(finite[:, None, None], 0.0), finite


def _as_maps(component: Tensor, finite: Tensor, features: Tensor) -> Tensor:
    maps = component.where(finite[:, None], torch.nan).unflatten(1, features.shape[2:])
    return maps if features.dtype == torch.float64 else maps.float()


def _largest_eigenpair(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """The largest eigenvalue (N,) and its vector (N, n), for symmetric matrices (N, n, n).

    Large ones by Lanczos: an orthonormal basis Q of the span of v, M v, M^2 v, ... and the largest
    eigenpair within it, from which the next round begins.
    """
    count, size = matrices.shape[:2]
    if count == 0:
        return matrices.new_zeros(0), matrices.new_zeros(0, size)
    if size > _DENSE:
        # the row of the largest entry is no eigenvector of another eigenvalue, as a rule
        start = matrices.diagonal(dim1=1, dim2=2).argmax(1)
        vector = matrices[torch.arange(count, device=start.device), start]
        for _ in range(20):
            basis = matrices.new_zeros(count, size, 32)
            vector = _unit(vector)
            for i in range(32):
                for _ in range(2):  # once more, against rounding
                    vector = vector - (basis @ (basis.mT @ vector.unsqueeze(2))).squeeze(2)
                basis[:, :, i] = vector = _unit(vector)
                vector = (matrices @ vector.unsqueeze(2)).squeeze(2)
            values, vectors = torch.linalg.eigh(basis.mT @ matrices @ basis)
            value = values[:, -1]
            vector = (basis @ vectors[:, :, -1:]).squeeze(2)
            residual = (matrices @ vector.unsqueeze(2)).squeeze(2) - value[:, None] * vector
            if bool((residual.norm(dim=1) <= 1e-12 * value.abs()).all()):
                return value, vector
    values, vectors = torch.linalg.eigh(matrices)
    return values[:, -1], vectors[:, :, -1]


def _unit(vectors: Tensor) -> Tensor:
    length = vectors.norm(dim=1, keepdim=True)
    return vectors / length.where(length > 0, 1.0)


class EigenCAM(MapMethod):
    """M = ReLU(X v), X the activations (Z, C) less each channel's mean, v its first principal axis.

    Muhammad and Yeasin 2020, arXiv 2008.00299, with channels centred as pytorch-grad-cam has them.
    The sign of v is chosen so that the value of the largest magnitude is positive. No class plays a
    part: all K classes get the same map.
    """

    name = "eigencam"
    graph = None

    def layer_maps(self, record: Capture, selection: Selection, relu: bool) -> list[Tensor]:
        return [
            for_every_class(_rectified(self._component(a), relu), selection)
            for a in record.activations
        ]

    def _component(self, features: Tensor) -> Tensor:
        return principal_component(features)


class KPCACAM(EigenCAM):
    """M = ReLU(sqrt(l) u), l and u the first eigenpair of the centred kernel of the positions.

    Karmani et al. 2024, arXiv 2410.00267: kernel principal components, with the sigmoid kernel
    tanh(x . y / C + 1). No class plays a part; the sign as in :class:`EigenCAM`.
    """

    name = "kpcacam"

    def _component(self, features: Tensor) -> Tensor:
        return kernel_component(features)


class EigenGradCAM(MapMethod):
    """M = ReLU(X v) as in Eigen-CAM, with X the products g A: the class has a say.

    As pytorch-grad-cam has it, after Muhammad and Yeasin 2020, arXiv 2008.00299.
    """

    name = "eigengradcam"

    def layer_maps(self, record: Capture, selection: Selection, relu: bool) -> list[Tensor]:
        return gradient_maps(
            record, selection, lambda a, g: _rectified(self._component(a, g), relu)
        )

    def _component(self, activations: Tensor, gradients: Tensor) -> Tensor:
        return principal_component(activations.double() * gradients.double()).to(
            torch.promote_types(activations.dtype, torch.float32)
        )


class SegEigenCAM(EigenGradCAM):
    """M = ReLU(X v) as in Eigen-CAM, with X the products |g| A.

    As pytorch-grad-cam has it, made for segmentation: there the class is a sum over pixels.
    """

    name = "segeigencam"

    def _component(self, activations: Tensor, gradients: Tensor) -> Tensor:
        return super()._component(activations, gradients.abs())


def _rectified(maps: Tensor, relu: bool) -> Tensor:
    return maps.relu() if relu else maps
