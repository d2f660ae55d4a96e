"""Draws boxes with their names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastcam.pictures import Picture

_COLOURS = (
    (255, 255, 255),
    (255, 196, 0),
    (0, 229, 255),
    (255, 105, 180),
    (118, 255, 3),
    (213, 128, 255),
)


def draw_boxes(picture: Picture, boxes: Sequence[Sequence[float]], names: Sequence[str]) -> Picture:
    """A copy of the picture with boxes, each in another colour and below its name.

    Args:
        picture: (H, W, 3), RGB.
        boxes: left, top, right, bottom in pixels.
        names: one per box; an empty one is not drawn.
    """
    import cv2

    drawn = picture.copy()
    height, width = picture.shape[:2]
    line = max(1, round(min(height, width) / 240))
    scale = max(min(height, width) / 900, 0.35)
    font = cv2.FONT_HERSHEY_SIMPLEX
    for number, (box, name) in enumerate(zip(boxes, names, strict=True)):
        colour = _COLOURS[number % len(_COLOURS)]
        left, top, right, bottom = (round(each) for each in box)
        cv2.rectangle(drawn, (left, top), (right, bottom), (0, 0, 0), line + 2)
        cv2.rectangle(drawn, (left, top), (right, bottom), colour, line)
        if not name:
            continue
        (across, up), down = cv2.getTextSize(name, font, scale, 1)
        # above the box, or inside if there is no room
        x = int(np.clip(left, 0, max(width - across - 4, 0)))
        y = top - down - 3 if top >= up + down + 4 else top + up + 4
        cv2.rectangle(drawn, (x, y - up - 2), (x + across + 3, y + down), colour, cv2.FILLED)
        cv2.putText(drawn, name, (x + 2, y - 1), font, scale, (0, 0, 0), 1, cv2.LINE_AA)
    return drawn
