"""The operators, from activations and gradients to maps and pictures.

Each function calls ``torch.ops.fastcam.<name>``, the C++ kernel on a CPU and the CUDA kernel on a
GPU, or :mod:`fastcam.reference` if the device has no kernels.

Shapes: activations A (N, C, *S) with one to three spatial dimensions S; gradients g = dS/dA
(N, C, *S), or (N, K, C, *S) for K classes; weights (N, C) or (N, K, C); maps (N, *S) or (N, K, *S).
Any strides. float32, float16 and bfloat16 are computed in float32 and give float32 maps and
weights; float64 stays float64. NaN in an image gives NaN in its map and in no other. Only
guided_relu has a backward; the functions of :mod:`fastcam.reference` are differentiable.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastcam._kernels import operator

__all__ = [
    "cam",
    "gap",
    "gradcam_plus_plus_weights",
    "guided_product",
    "guided_relu",
    "guided_relu_backward",
    "impute",
    "normalize",
    "overlay",
    "saliency",
    "upsample",
    "weighted_sum",
]


def gap(gradients: Tensor, spatial_dims: int | None = None) -> Tensor:
    """Global average pooling: the mean over positions, Grad-CAM's channel weights.

    w_k = (1/Z) sum_ij g_ij (Selvaraju et al. 2017, arXiv 1610.02391, equation 1).

    Args:
        gradients: (N, C, *S), or (N, K, C, *S) with ``spatial_dims`` given.
        spatial_dims: how many of the last dimensions are positions; all but two by default.

    Returns:
        (N, C) or (N, K, C).
    """
    return operator("gap", gradients)(gradients, spatial_dims)


def gradcam_plus_plus_weights(activations: Tensor, gradients: Tensor, eps: float = 0.0) -> Tensor:
    """Grad-CAM++'s channel weights.

    w_k = sum_ij alpha_ij ReLU(g_ij), alpha_ij = g_ij^2 / (2 g_ij^2 + sum_ab ReLU(A_ab) g_ij^3 +
    eps), 0 where the denominator is 0 (Chattopadhyay et al. 2018, arXiv 1710.11063, equations 5 and
    19, with Y = exp(S): its derivatives are exp(S) g, exp(S) g^2, exp(S) g^3; the factor exp(S),
    constant over an image, is left out).

    The paper has sum_ab A_ab and assumes A >= 0; after a ReLU both are the same. With negative
    activations the paper's denominator can come near 0, and one channel then outweighs all others.

    Args:
        activations: (N, C, *S).
        gradients: (N, C, *S) or (N, K, C, *S).
        eps: added to the denominator.

    Returns:
        (N, C) or (N, K, C).
    """
    return operator("gradcam_plus_plus_weights", activations, gradients)(
        activations, gradients, eps
    )


def weighted_sum(activations: Tensor, weights: Tensor, relu: bool = True) -> Tensor:
    """The channel sum M = sum_k w_k A^k, followed by ReLU.

    Args:
        activations: (N, C, *S).
        weights: (N, C) or (N, K, C).
        relu: whether negative values become 0.

    Returns:
        (N, *S) or (N, K, *S).
    """
    return operator("weighted_sum", activations, weights)(activations, weights, relu)


def cam(
    activations: Tensor, gradients: Tensor, method: str, relu: bool = True, eps: float = 0.0
) -> Tensor:
    """Channel weights, channel sum and ReLU of one method, fused.

    ======================= ===================================================================
    ``gradcam``             sum_k w_k A^k, w_k = mean_ij g_ij
    ``gradcam++``           sum_k w_k A^k, w_k as in :func:`gradcam_plus_plus_weights`
    ``gradcam++-signed``    the same with sum_ab A_ab, as in other libraries
    ``xgradcam``            sum_k w_k A^k, w_k = sum_ij g_ij A_ij / (sum_ij A_ij + eps); 0 / 0 = 0
    ``hirescam``            sum_k g A
    ``layercam``            sum_k ReLU(g) A
    ``gradcam-elementwise`` sum_k ReLU(g A)
    ======================= ===================================================================

    Args:
        activations: (N, C, *S).
        gradients: (N, C, *S) or (N, K, C, *S).
        method: a name from the table.
        relu: whether negative values of the map become 0.
        eps: added to the denominator of Grad-CAM++ and XGrad-CAM.

    Returns:
        (N, *S) or (N, K, *S).
    """
    return operator("cam", activations, gradients)(activations, gradients, method, relu, eps)


def saliency(
    activations: Tensor,
    gradients: Tensor,
    method: str,
    size: Sequence[int],
    relu: bool = True,
    normalize: bool = True,
    eps: float = 0.0,
) -> Tensor:
    """The finished map: :func:`cam`, then :func:`upsample`; two kernel launches on a GPU.

    Args:
        activations: (N, C, *S).
        gradients: (N, C, *S) or (N, K, C, *S).
        method: as for :func:`cam`.
        size: the enlarged size, one value per dimension of S.
        relu: whether negative values of the map become 0.
        normalize: whether to scale each enlarged map to [0, 1].
        eps: as for :func:`cam`.

    Returns:
        (N, *size) or (N, K, *size).
    """
    return operator("saliency", activations, gradients)(
        activations, gradients, method, list(size), relu, normalize, eps
    )


def normalize(maps: Tensor, spatial_dims: int = 2, eps: float = 0.0) -> Tensor:
    """(x - min) / (max - min + eps) over each map; a constant map gives 0.

    Args:
        maps: (*L, *S), any leading dimensions L.
        spatial_dims: how many of the last dimensions belong to one map.
        eps: added to the range.

    Returns:
        The shape of ``maps``.
    """
    return operator("normalize", maps)(maps, spatial_dims, eps)


def upsample(maps: Tensor, size: Sequence[int], normalize: bool = True, eps: float = 0.0) -> Tensor:
    """Linear interpolation to ``size`` with half-pixel centres, then :func:`normalize`.

    The same samples as ``F.interpolate(..., mode="linear" | "bilinear" | "trilinear",
    align_corners=False)``.

    Args:
        maps: (*L, *S), any leading dimensions L.
        size: the new size, one value per dimension of S.
        normalize: whether to scale each enlarged map to [0, 1].
        eps: added to the range.

    Returns:
        (*L, *size).
    """
    return operator("upsample", maps)(maps, list(size), normalize, eps)


def guided_relu(input: Tensor) -> Tensor:
    """ReLU with the backward of guided backpropagation.

    The gradient passes where both the input and the incoming gradient are positive
    (Springenberg et al. 2015, arXiv 1412.6806, section 3.4). Any shape.
    """
    return operator("guided_relu", input)(input)


def guided_relu_backward(grad_output: Tensor, input: Tensor) -> Tensor:
    """The gradient through :func:`guided_relu`: ReLU(grad_output) where ``input`` > 0, else 0."""
    return operator("guided_relu_backward", input, grad_output)(grad_output, input)


def guided_product(maps: Tensor, guided: Tensor, spatial_dims: int = 2, eps: float = 0.0) -> Tensor:
    """Guided Grad-CAM: the map, enlarged and normalized, times the guided gradient.

    The enlarged map is never stored (Selvaraju et al. 2017, arXiv 1610.02391, section 3.2).

    Args:
        maps: (N, *S) or (N, K, *S).
        guided: (N, C, *T) or (N, K, C, *T), signed.
        spatial_dims: the number of dimensions of S and T.
        eps: added to the range of the map.

    Returns:
        The shape and dtype of ``guided``.
    """
    return operator("guided_product", guided, maps)(maps, guided, spatial_dims, eps)


def overlay(images: Tensor, maps: Tensor, colormap: Tensor, opacities: Tensor) -> Tensor:
    """Draws maps over images: interpolates, colours and blends in one pass.

    Args:
        images: (N, H, W, 3) or (N, 3, H, W); uint8, or floating point in [0, 1].
        maps: (N, h, w) in [0, 1], enlarged linearly; NaN counts as 0.
        colormap: (256, 3) uint8, in the channel order of the images.
        opacities: (256,), of each colour; clamped to [0, 1], NaN counts as 0.

    Returns:
        uint8 in the shape of ``images``: opacity colour + (1 - opacity) image, rounded.
    """
    return operator("overlay", images, maps)(images, maps, colormap, opacities)


def impute(images: Tensor, known: Tensor) -> Tensor:
    """Fills in missing pixels: each becomes the weighted mean of its eight neighbours.

    Rong et al. 2022, arXiv 2202.00449, section 4.2: weights of 1/6 at the sides and 1/12 at the
    corners, divided by their sum over the neighbours inside the image. The error is below 1e-7 of
    the largest known magnitude of a channel, in float64 below 1e-11.

    Args:
        images: (N, C, H, W), contiguous or not.
        known: (N, H, W) bool, True where a pixel is kept. An image without known pixels becomes 0.

    Returns:
        The shape and dtype of ``images``, contiguous. If a known pixel of a channel is NaN or
        infinite, its missing pixels become NaN.

    Raises:
        RuntimeError: if the shapes do not fit, or the solver does not reach that error.
    """
    return operator("impute", images)(images, known)
