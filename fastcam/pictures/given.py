"""Pictures as people hold them in Python: PIL images and arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastcam.pictures import Picture


def pictures_of(given: Any) -> list[Picture] | None:
    """The pictures in a PIL image, an array, or a list of those; None for anything else.

    Args:
        given: a PIL image of any mode, which is turned upright by its EXIF orientation; a uint8
            array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), of which the alpha channel is ignored;
            or a list or tuple of them.

    Returns:
        (H, W, 3) uint8, RGB, each.

    Raises:
        TypeError: for an array of another type or shape, or a PIL image of more than 8 bits.
    """
    if isinstance(given, (list, tuple)) and given:
        found = [_picture_of(each) for each in given]
        return None if any(each is None for each in found) else found  # type: ignore[return-value]
    picture = _picture_of(given)
    return None if picture is None else [picture]


def _picture_of(given: Any) -> Picture | None:
    if is_pil(given):
        if given.mode.startswith(("I", "F")):  # PIL cuts values above 255 off
            raise TypeError(
                f"images: got a PIL image of mode {given.mode}, expected 8 bits per channel"
            )
        from PIL import ImageOps

        return np.array(ImageOps.exif_transpose(given).convert("RGB"))  # a copy that torch may use
    if not isinstance(given, np.ndarray):
        return None
    channels = given.shape[2] if given.ndim == 3 else 1
    if given.dtype != np.uint8 or given.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise TypeError(
            f"images: got an array {given.shape} of {given.dtype}, expected a picture "
            "(H, W, 3) of uint8, or a tensor with the network's input"
        )
    if channels == 1:
        return np.repeat(given.reshape(*given.shape[:2], 1), 3, 2)
    picture = given[..., :3]
    # torch wants neither, and RGB made of OpenCV's BGR by [..., ::-1] has a negative stride
    unfit = not picture.flags.writeable or min(picture.strides) < 0
    return picture.copy() if unfit else picture


def is_pil(given: Any) -> bool:
    """Whether this is a PIL image; PIL itself is not imported."""
    return any(kind.__module__ == "PIL.Image" for kind in type(given).__mro__)


def as_pil(picture: Picture) -> Any:
    """(H, W, 3) as a PIL image."""
    from PIL import Image

    return Image.fromarray(picture)
