"""Noisy linear imputation: missing pixels from their neighbours, and noise that marks them."""

from __future__ import annotations

from torch import Tensor

from fastcam import ops
from fastcam.errors import ArgumentError


def impute(images: Tensor, known: Tensor, noise: Tensor | None = None) -> Tensor:
    """Images with their missing pixels filled in (:func:`fastcam.ops.impute`), plus noise there.

    Rong et al. 2022, arXiv 2202.00449, section 4.2.

    Args:
        images: (N, C, H, W).
        known: (N, H, W), True where a pixel stays.
        noise: (N, C, H, W), added to what is filled in.

    Returns:
        (N, C, H, W) in the images' dtype. Where no pixel is known, 0 and the noise.

    Raises:
        ValueError: for other shapes.
    """
    if images.dim() != 4 or known.shape != (len(images), *images.shape[2:]):
        raise ArgumentError(
            "images, known",
            f"got {tuple(images.shape)} and {tuple(known.shape)}, expected "
            "(N, C, H, W) and (N, H, W)",
        )
    filled = ops.impute(images, known)
    if noise is None:
        return filled
    return filled.where(known.unsqueeze(1), (filled + noise).to(images.dtype))
