"""Draws gradients and scales and overlays maps, with the results of pytorch-grad-cam."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def deprocess_image(img: Array) -> NDArray[np.uint8]:
    """A gradient as a picture: mean 0.5, standard deviation 0.1, clipped to [0, 1], as uint8."""
    centered = img - np.mean(img)
    picture = centered / (np.std(centered) + 1e-5) * 0.1 + 0.5
    return (np.clip(picture, 0, 1) * 255).astype(np.uint8)


def show_cam_on_image(
    img: Array,
    mask: Array,
    use_rgb: bool = False,
    colormap: int = cv2.COLORMAP_JET,
    image_weight: float = 0.5,
) -> NDArray[np.uint8]:
    """The map as a heatmap over the image, scaled so that the largest value is 255.

    Args:
        img: (H, W, 3), floating point in [0, 1].
        mask: (H, W) in [0, 1].
        use_rgb: whether the colours are RGB instead of BGR; use the order of the image.
        colormap: a constant of OpenCV.
        image_weight: the weight of the image, in [0, 1].

    Raises:
        Exception: if the image exceeds 1, or the weight is outside [0, 1].
    """
    colors = cv2.applyColorMap(np.asarray(255 * mask).astype(np.uint8), colormap)
    if np.max(img) > 1:
        raise Exception(f"img: got a maximum of {np.max(img)}, expected np.float32 in [0, 1]")
    if image_weight < 0 or image_weight > 1:
        raise Exception(f"image_weight: got {image_weight}, expected a weight in [0, 1]")
    if use_rgb:
        colors = cv2.cvtColor(colors, cv2.COLOR_BGR2RGB)
    heat = (1 - image_weight) * (np.arange(256, dtype=np.float32) / 255)  # of each level
    picture = cv2.LUT(colors, heat) + image_weight * img
    picture /= np.max(picture)
    picture *= 255
    return picture.astype(np.uint8)


def show_factorization_on_image(
    img: Array,
    explanations: Array,
    colors: Sequence[Array] | None = None,
    image_weight: float = 0.5,
    concept_labels: Sequence[str] | None = None,
) -> NDArray[np.uint8]:
    """Concepts over an image: each position has the colour of its strongest concept.

    The brightness is the value of that concept.

    Args:
        img: (H, W, 3), RGB in [0, 1].
        explanations: (K, H, W) in [0, 1].
        colors: K colours (R, G, B) in [0, 1]; matplotlib's gist_rainbow by default.
        image_weight: the weight of the image, in [0, 1].
        concept_labels: K labels; if given, a legend as large as the image is added on its right.
    """
    count = explanations.shape[0]
    if colors is None:
        from matplotlib import colormaps

        rainbow = colormaps["gist_rainbow"]
        colors = [np.array(rainbow(i)) for i in np.arange(0, 1, 1.0 / count)]
    strongest = explanations.argmax(axis=0)
    heat = np.zeros((*img.shape[:2], 3), np.float32)
    for k, color in enumerate(colors[:count]):
        pixel = (np.reshape(color[:3], (1, 1, 3)) * 255).astype(np.uint8)
        concept = np.empty((*img.shape[:2], 3), np.uint8)
        concept[:] = cv2.cvtColor(pixel, cv2.COLOR_RGB2HSV)
        concept[:, :, 2] = 255 * np.where(strongest == k, explanations[k], 0)
        heat += cv2.cvtColor(concept, cv2.COLOR_HSV2RGB).astype(np.float32) / 255
    result = ((img * image_weight + heat * (1 - image_weight)) * 255).astype(np.uint8)
    if concept_labels is None:
        return result
    return np.hstack((result, _legend(result.shape[:2], colors[:count], concept_labels)))


def _legend(
    size: Sequence[int], colors: Sequence[Array], labels: Sequence[str]
) -> NDArray[np.uint8]:
    """(height, width, 3): a line in the colour of each concept, with its label."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    height, width = size
    dpi = matplotlib.rcParams["figure.dpi"]
    figure = Figure(figsize=(width / dpi, height / dpi), dpi=dpi)
    canvas, axes = FigureCanvasAgg(figure), figure.subplots()
    axes.legend(
        [Line2D([0], [0], color=tuple(color), lw=5 * height / 256) for color in colors],
        labels,
        mode="expand",
        fancybox=True,
        shadow=True,
        fontsize=int(14 * height / 256 / max(1, len(colors) / 6)),
    )
    figure.tight_layout(pad=0, w_pad=0, h_pad=0)
    axes.axis("off")
    canvas.draw()
    drawn = np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[:, :, :3])
    return np.asarray(cv2.resize(drawn, (width, height)), np.uint8)


def scale_cam_image(cam: Any, target_size: Sequence[int] | None = None) -> NDArray[np.float32]:
    """Normalizes each map of a batch, x - min over 1e-7 + (max - min); resizes it.

    Args:
        cam: (N, H, W) or (N, D, H, W).
        target_size: (width, height), linear interpolation; (width, height, depth), cubic, by
            scipy; None for no resizing.
    """
    result = []
    for values in cam:
        values = values - np.min(values)
        values = values / (1e-7 + np.max(values))
        if target_size is None:
            pass
        elif values.ndim > 2:
            from scipy.ndimage import zoom

            factors = [t / s for s, t in zip(values.shape, target_size[::-1], strict=False)]
            values = zoom(values.astype(np.float32), factors)
        else:
            values = cv2.resize(values.astype(np.float32), tuple(target_size))
        result.append(values)
    return np.array(result, np.float32)


def scale_accross_batch_and_channels(
    tensor: Array, target_size: Sequence[int]
) -> NDArray[np.float32]:
    """Applies :func:`scale_cam_image` to each channel, (N, C, H, W) to (N, C, height, width)."""
    images, channels = tensor.shape[:2]
    maps = tensor.reshape(images * channels, *tensor.shape[2:])
    return scale_cam_image(maps, target_size).reshape(
        images, channels, target_size[1], target_size[0]
    )
