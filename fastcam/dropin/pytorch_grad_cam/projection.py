"""Projects activations on their first principal component."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def get_2d_projection(activation_batch: Array) -> NDArray[np.float32]:
    """Eigen-CAM's maps: the activations at each position on the first principal component.

    The sign is that of LAPACK's first right singular vector of the centered (positions, C).

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
    """The same with scikit-learn's kernel PCA.

    Args:
        activation_batch: as for :func:`get_2d_projection`.
        kernel, gamma: as for ``sklearn.decomposition.KernelPCA``.
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
    """A context that limits BLAS to one thread, if threadpoolctl (of scikit-learn) is installed.

    For such small matrices more threads are slower: they wait for each other, and for cores on
    which torch's idle threads still spin.
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
    """(N, *S): project((positions, C)) of each image, centered, with NaN as 0."""
    zero = activation_batch.dtype.type(0)  # None raises AttributeError, as in pytorch-grad-cam
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

    The sign must be that of LAPACK's gesdd. If one side of the matrix is at least 11/6 times as
    long as the other, gesdd starts with a QR or LQ factorization, and the SVD of the triangle has
    the same sign. Otherwise, and if the rank is not full so that the sign depends on rounding, the
    thin SVD is used.
    """
    rows, columns = x.shape
    if rows >= columns * 11 // 6:
        _, values, right = np.linalg.svd(np.linalg.qr(x, mode="r"))
        if _clear(values[-1:], values[0]):
            return x @ right[0]
    elif columns >= rows * 11 // 6:
        left, values, _ = np.linalg.svd(np.transpose(np.linalg.qr(x.T, mode="r")))
        if _clear(values[-2:-1], values[0]):  # the last one is 0, because x is centered
            return left[:, 0] * values[0]
    _, _, right = np.linalg.svd(x, full_matrices=False)
    return x @ right[0]


def _clear(least: Array, largest: Any) -> bool:
    """Whether a singular value is far above the rounding error of 0."""
    return bool((least > 1000 * np.finfo(least.dtype).eps * largest).all())
