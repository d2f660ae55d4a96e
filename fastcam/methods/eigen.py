"""Maps that are first principal components, computed from the smaller Gram matrix."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastcam.engine.capture import Capture
from fastcam.methods.gradient import gradient_maps
from fastcam.methods.maps import MapMethod, for_every_class
from fastcam.targets import Selection

Orient = Callable[[Tensor, Tensor], Tensor]
"""Gives components (N, Z) of centred features (N, Z, C) their signs."""

_DENSE = 512  # up to this size, all eigenvectors take less time than iterating for one


def largest_positive(components: Tensor, features: Tensor) -> Tensor:
    """Makes the value of the largest magnitude positive."""
    largest = components.abs().argmax(1, keepdim=True)
    return torch.where(components.gather(1, largest) < 0, -components, components)


def principal_component(features: Tensor, orient: Orient = largest_positive) -> Tensor:
    """The projection of every position's channels on their first principal component.

    X v, X the (Z, C) matrix of positions and channels minus each channel's mean, v its first right
    singular vector. ``orient`` decides the sign of v. Features that are the same at all positions
    give 0. For weighted activations w A, this is eigen-smoothing.

    Args:
        features: (N, C, *S).
        orient: gives each component its sign.

    Returns:
        (N, *S), in float32, or float64 for such features.
    """
    x, finite = _rows(features)
    magnitude = x.square().sum((1, 2))
    x = x - x.mean(1, keepdim=True)
    # X X^T and X^T X have the same nonzero eigenvalues: use the smaller one
    if x.shape[1] <= x.shape[2]:
        values, vectors = _largest_eigenpair(x @ x.mT)
        component = vectors * values.clamp(min=0).sqrt()[:, None]
    else:
        values, vectors = _largest_eigenpair(x.mT @ x)
        component = (x @ vectors.unsqueeze(2)).squeeze(2)
    constant = values <= (64 * torch.finfo(x.dtype).eps) ** 2 * magnitude  # up to rounding
    component = orient(component.masked_fill(constant[:, None], 0), x)
    return _as_maps(component, finite, features)


def kernel_component(features: Tensor) -> Tensor:
    """As :func:`principal_component`, with the centred kernel tanh(x . y / C + 1) for X X^T.

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
    """Positions as rows (N, Z, C), and which images are finite; others become 0, their maps NaN.

    The rows are float64, because a Gram matrix squares them.
    """
    x = features.double().flatten(2).mT
    finite = x.isfinite().flatten(1).all(1)
    return x.where(finite[:, None, None], 0.0), finite


def _as_maps(component: Tensor, finite: Tensor, features: Tensor) -> Tensor:
    maps = component.where(finite[:, None], torch.nan).unflatten(1, features.shape[2:])
    return maps if features.dtype == torch.float64 else maps.float()


def _largest_eigenpair(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """The largest eigenvalue (N,) and its vector (N, n), for symmetric matrices (N, n, n).

    Large matrices use Lanczos iteration: an orthonormal basis Q of the span of v, M v, M^2 v, ...
    gives an approximate largest eigenpair, from which the next round starts.
    """
    count, size = matrices.shape[:2]
    if count == 0:
        return matrices.new_zeros(0), matrices.new_zeros(0, size)
    if size > _DENSE:
        # the row of the largest entry is rarely orthogonal to the eigenvector
        start = matrices.diagonal(dim1=1, dim2=2).argmax(1)
        vector = matrices[torch.arange(count, device=start.device), start]
        for _ in range(20):
            basis = matrices.new_zeros(count, size, 32)
            vector = _unit(vector)
            for i in range(32):
                for _ in range(2):  # the second time against rounding
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
    """M = ReLU(X v), X the activations (Z, C) minus their channel means, v its principal axis.

    Muhammad and Yeasin 2020, arXiv 2008.00299, with centred channels as in pytorch-grad-cam. The
    sign of v makes the value of the largest magnitude positive. The map does not depend on the
    class: all K classes get the same map.
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
    tanh(x . y / C + 1). The map does not depend on the class; the sign is as in :class:`EigenCAM`.
    """

    name = "kpcacam"

    def _component(self, features: Tensor) -> Tensor:
        return kernel_component(features)


class EigenGradCAM(MapMethod):
    """M = ReLU(X v) as in Eigen-CAM, with X the products g A, which depend on the class.

    As in pytorch-grad-cam, after Muhammad and Yeasin 2020, arXiv 2008.00299.
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

    As in pytorch-grad-cam, for segmentation, with the score summed over pixels.
    """

    name = "segeigencam"

    def _component(self, activations: Tensor, gradients: Tensor) -> Tensor:
        return super()._component(activations, gradients.abs())


def _rectified(maps: Tensor, relu: bool) -> Tensor:
    return maps.relu() if relu else maps
