"""Noisy linear imputation: fills in missing pixels from their neighbours and adds noise."""

from __future__ import annotations

from torch import Tensor

from fastcam import ops
from fastcam.errors import ArgumentError


def impute(images: Tensor, known: Tensor, noise: Tensor | None = None) -> Tensor:
    """Fills in the missing pixels of images (:func:`fastcam.ops.impute`) and adds noise to them.

    Rong et al. 2022, arXiv 2202.00449, section 4.2.

    Args:
        images: (N, C, H, W).
        known: (N, H, W), True where a pixel is kept.
        noise: (N, C, H, W), added to the missing pixels; None for no noise.

    Returns:
        (N, C, H, W) in the images' dtype. An image without known pixels becomes 0 plus noise.

    Raises:
        ValueError: if the shapes do not fit.
    """
    if images.dim() != 4 or known.shape != (len(images), *images.shape[2:]):
        raise ArgumentError(
            "images, known",
            f"got shapes {tuple(images.shape)} and {tuple(known.shape)}, expected "
            "(N, C, H, W) and (N, H, W)",
        )
    filled = ops.impute(images, known)
    if noise is None:
        return filled
    return filled.where(known.unsqueeze(1), (filled + noise).to(images.dtype))
