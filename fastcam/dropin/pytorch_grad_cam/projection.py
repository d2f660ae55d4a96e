"""Activations on their first principal component."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def get_2d_projection(activation_batch: Array) -> NDArray[np.float32]:
    """Eigen-CAM's maps: each position's activations on the first principal component.

    With the sign that LAPACK gives the first right singular vector of the centered (positions, C).

    Args:
        activation_batch: (N, C, *S); NaN counts as 0.

    Returns:
        (N, *S).
    """
    with _one_thread():
        return _each(activation_batch, _first_component)


def get_2d_projection_kernel(
    activation_batch: Array, kernel: str = "sigmoid", gamma: float | None = None
) -> NDArray[np.float32]:
    """The same by a kernel principal component analysis, scikit-learn's.

    Args:
        activation_batch: as for :func:`get_2d_projection`.
        kernel, gamma: as ``sklearn.decomposition.KernelPCA`` takes them.
    """
    from sklearn.decomposition import KernelPCA

    def project(centered: Array) -> Array:
        projection: Array = KernelPCA(1, kernel=kernel, gamma=gamma).fit_transform(centered)
        return projection

    with _one_thread():
        return _each(activation_batch, project)


def get_2d_projection_with_sign_correction(activation_batch: Array) -> NDArray[np.float32]:
    """:func:`get_2d_projection` with the sign that makes the largest magnitude positive.

    Chung and Ying 2025, Seg-Eigen-CAM, Applied Sciences 15, 7562, equation 13.

    Args:
        activation_batch: as for :func:`get_2d_projection`.
    """
    maps = get_2d_projection(activation_batch)
    for projection in maps:
        if projection.size and abs(projection.min()) > abs(projection.max()):
            projection *= -1
    return maps


def _one_thread() -> AbstractContextManager[Any]:
    """While entered, BLAS takes no further threads, where scikit-learn's threadpoolctl is there.

    For matrices this small they cost more than they save: they wait for each other, and for the
    cores on which torch's own threads still wait for the next operation.
    """
    controller = _thread_pools()
    return nullcontext() if controller is None else controller.limit(limits=1, user_api="blas")


@functools.cache
def _thread_pools() -> Any:
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    return ThreadpoolController()


def _each(activation_batch: Array, project: Callable[[Array], Array]) -> NDArray[np.float32]:
    """(N, *S): of each image, project((positions, C), centered), NaN as 0."""
    zero = activation_batch.dtype.type(0)  # of None, an AttributeError as there
    nan = np.isnan(activation_batch)
    if nan.any():
        activation_batch = np.where(nan, zero, activation_batch)
    maps = []
    for activations in activation_batch:
        positions = activations.reshape(len(activations), -1).transpose()
        projection = project(positions - positions.mean(axis=0))
        maps.append(projection.reshape(activations.shape[1:]))
    return np.array(maps, np.float32)


def _first_component(x: Array) -> Array:
    """X v, v the first right singular vector.

    Its sign is what LAPACK's gesdd happens to give. For a matrix that is 11/6 times as long as wide
    that begins with a QR factorization, for one as much wider than long with an LQ factorization:
    then the triangle is all it takes. Else, and where the rank is not full so that the sign comes
    from what was rounded, the thin factorization has the same sign.
    """
    rows, columns = x.shape
    if rows >= columns * 11 // 6:
        _, values, right = np.linalg.svd(np.linalg.qr(x, mode="r"))
        if _clear(values[-1:], values[0]):
            return x @ right[0]
    elif columns >= rows * 11 // 6:
        left, values, _ = np.linalg.svd(np.transpose(np.linalg.qr(x.T, mode="r")))
        if _clear(values[-2:-1], values[0]):  # the last one is 0, for x is centered
            return left[:, 0] * values[0]
    _, _, right = np.linalg.svd(x, full_matrices=False)
    return x @ right[0]


def _clear(least: Array, largest: Any) -> bool:
    """Whether a singular value lies far above what rounding leaves of 0."""
    return bool((least > 1000 * np.finfo(least.dtype).eps * largest).all())
