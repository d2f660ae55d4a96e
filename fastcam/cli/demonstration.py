"""The outputs of ``fastcam demo``, made with the included network, picture and clip.

The pictures are small: heat is drawn over an enlarged copy; the network gets the original size.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from fastcam import demo, models, pictures, video
from fastcam.cli import image
from fastcam.explainer import Explainer
from fastcam.pictures import Picture

_DIGIT = "3"  # in the scene and in every frame of the clip
_ZOOM = 3


def scene(path: Path) -> str:
    """Writes the heatmap of one digit over the scene and returns a caption."""
    pictures.write(path, _explained_scene().overlay)
    return f"the evidence for a {_DIGIT}: the {_DIGIT} is hot, the other digits are cold"


def grid(path: Path) -> str:
    """Writes the scene beside the heatmap of each of its digits and returns a caption."""
    explanation = _explained_scene(top_k=len(_about("scene.json")["digits"]))
    pictures.write(path, explanation.grid)
    names = ", ".join(each["name"] for each in explanation.classes)
    return f"each digit in the scene ({names}): the heat moves from one to the next"


def clip(path: Path) -> str:
    """Writes the clip with the heatmap of one digit over every frame and returns a caption."""
    with video.open_source(demo.asset("clip.mp4")) as source:
        large = (replace(frame, pixels=_enlarged(frame.picture)) for frame in source)
        video.explain(large, path, _explainer("clip.json"), target=_DIGIT)
    return f"the heat follows the {_DIGIT} from frame to frame"


MAKERS: Final = {"scene.png": scene, "grid.png": grid, "clip.mp4": clip}


def inputs() -> list[Path]:
    """The files that are read."""
    return [demo.asset(name) for name in ("scene.png", "scene.json", "clip.mp4", "clip.json")]


def _explained_scene(top_k: int = 1) -> image.ImageExplanation:
    picture = pictures.read(demo.asset("scene.png"))
    explainer = _explainer("scene.json")
    return image.explain(_enlarged(picture), explainer, explainer.targets(_DIGIT, top_k))


def _explainer(about: str) -> Explainer:
    """An explainer that shrinks enlarged pictures back to the size in the description."""
    size = _about(about)
    model = models.load("digits")
    back = models.Preprocessing(
        resize=(size["height"], size["width"]), crop=None, mean=(0, 0, 0), std=(1, 1, 1)
    )
    return Explainer(replace(model, preprocessing=back), "gradcam")


def _about(name: str) -> dict[str, Any]:
    about: dict[str, Any] = json.loads(demo.asset(name).read_text())
    return about


def _enlarged(picture: Picture) -> Picture:
    import cv2

    return cv2.resize(picture, None, fx=_ZOOM, fy=_ZOOM, interpolation=cv2.INTER_CUBIC)  # type: ignore[return-value]
