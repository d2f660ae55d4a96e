"""One explanation in one call, which shows itself in a notebook."""

from __future__ import annotations

import base64
import html
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fastcam import ops, pictures
from fastcam.engine.inputs import Argument, Inputs, images_of
from fastcam.engine.layers import Layers
from fastcam.engine.outputs import Output
from fastcam.engine.shapes import Reshape
from fastcam.errors import ArgumentError, FastcamError
from fastcam.methods import METHODS
from fastcam.models import LoadedModel, Transform
from fastcam.models.preprocessing import ASSUMED
from fastcam.pictures import Picture, render
from fastcam.pictures.given import pictures_of
from fastcam.pictures.render import Region, Title
from fastcam.targets import Targets

_IMAGES, _CLASSES = 8, 5  # the most that are shown
_SIDE = 320  # of a picture in a notebook, in pixels


class _Shown(NamedTuple):
    """One image and its heatmaps."""

    label: str
    picture: Picture
    overlays: list[tuple[Title, Picture]]


@dataclass(frozen=True, repr=False, eq=False)
class Explanation:
    """Maps, and the classes, scores and outputs of the same forward.

    A notebook shows the images with their heatmaps, classes and scores, at most 8 images with 5
    classes each. They are drawn when they are shown.
    """

    maps: Any
    """As the method returns them: usually (N, H, W), or (N, K, H, W) for K classes per image."""
    class_ids: Tensor | None
    """(N,) or (N, K); None if the targets were functions."""
    scores: Tensor
    """The explained scores, (N,) or (N, K)."""
    outputs: Any
    """The model's outputs, detached."""
    images: Any = None
    """What was explained: the object itself, not a copy."""
    method: str = ""
    """A key of :data:`fastcam.METHODS`."""
    layers: tuple[str, ...] = ()
    """The target layers' names."""
    classes: tuple[str, ...] = ()
    """The classes' names by id; empty if unknown."""
    preprocessing: Transform | None = None
    """What turned pictures into the network's input."""

    def __repr__(self) -> str:
        maps = self.maps if isinstance(self.maps, list) else [self.maps]
        shapes = ", ".join(str(tuple(each.shape)) for each in maps)
        layers = f" of {', '.join(self.layers)}" if self.layers else ""
        return f"Explanation({self.method}{layers}, maps {shapes}, {self._first_classes()})"

    def _first_classes(self) -> str:
        if self.class_ids is None:
            return "targets: functions"
        first = self.class_ids.reshape(len(self.class_ids), -1)[:3, :3].tolist()
        more = ", ..." if len(self.class_ids) > 3 else ""
        return f"classes {', '.join(str(ids[0] if len(ids) == 1 else ids) for ids in first)}{more}"

    def _repr_html_(self) -> str:
        rows = []
        for shown in self._shown():
            panels = [(shown.label, "", shown.picture)]
            panels += [(title.name, title.note, overlay) for title, overlay in shown.overlays]
            rows.append("".join(_figure(*panel) for panel in panels))
        count = 0 if self.class_ids is None else len(self.class_ids)
        note = f"<p>{count - _IMAGES} more images</p>" if rows and count > _IMAGES else ""
        body = "".join(f'<div style="display: flex; flex-wrap: wrap">{row}</div>' for row in rows)
        return f"<div><code>{html.escape(repr(self))}</code>{body}{note}</div>"

    def _repr_png_(self) -> bytes | None:
        sheet = self._sheet()
        return None if sheet is None else pictures.encoded(sheet, ".png")

    def plot(self) -> Any:
        """Plots the images with their heatmaps, classes and scores, with matplotlib.

        Returns:
            matplotlib axes (N, 1 + K), of at most 8 images and 5 classes each.

        Raises:
            FastcamError: if matplotlib is missing.
            ValueError: if there is nothing to draw: see :meth:`save`.
        """
        try:
            from matplotlib import pyplot
        except ImportError:
            raise FastcamError("plot requires matplotlib: pip install fastcam[plot]") from None

        rows = self._shown() or self._nothing_to_draw()
        columns = 1 + max(len(row.overlays) for row in rows)
        size = 3 * columns, 3.3 * len(rows)
        _, axes = pyplot.subplots(
            len(rows), columns, figsize=size, squeeze=False, layout="constrained"
        )
        for row, shown in zip(axes, rows, strict=True):
            panels = [(Title(shown.label), shown.picture), *shown.overlays]
            for ax in row:
                ax.set_axis_off()
            for ax, (title, picture) in zip(row, panels, strict=False):
                ax.imshow(picture)
                ax.set_title("\n".join(filter(None, title)), fontsize=10)
        return axes

    def save(self, path: str | Path) -> None:
        """Writes the pictures that a notebook shows, or the numbers.

        Args:
            path: a picture, such as .png or .jpg; or .npz, with ``maps``, ``class_ids`` and
                ``scores`` (``maps_0``, ``maps_1``, ... if there is one tensor for each layer).

        Raises:
            ValueError: for another suffix; for a picture, if there is nothing to draw, because the
                input is a signal or has no tensor with positions.
            FastcamError: if the file cannot be written.
        """
        path = Path(path)
        if path.suffix == ".npz":
            maps = self.maps if isinstance(self.maps, list) else [self.maps]
            names = ["maps"] if maps is not self.maps else [f"maps_{i}" for i in range(len(maps))]
            arrays = {name: each.cpu().numpy() for name, each in zip(names, maps, strict=True)}
            if self.class_ids is not None:
                arrays["class_ids"] = self.class_ids.cpu().numpy()
            with pictures.replacing(path) as temporary:
                np.savez(temporary, **arrays, scores=self.scores.float().cpu().numpy())
            return
        if not pictures.can_write(path):
            raise ArgumentError("path", f"got {path}, expected a picture's suffix or .npz")
        sheet = self._sheet()
        pictures.write(path, self._nothing_to_draw() if sheet is None else sheet)

    def _nothing_to_draw(self) -> Any:
        raise ArgumentError(
            "images", "there is nothing to draw: expected pictures, or tensors (N, C, H, W)"
        )

    def _sheet(self) -> Picture | None:
        """All that is shown in one picture: a grid for each image, one below the other."""
        grids = [
            render.grid([(Title(shown.label), shown.picture), *shown.overlays])
            for shown in self._shown()
        ]
        if not grids:
            return None
        width = max(grid.shape[1] for grid in grids)
        return np.concatenate(
            [
                np.pad(grid, ((0, 0), (0, width - grid.shape[1]), (0, 0)), constant_values=255)
                for grid in grids
            ]
        )

    def _shown(self) -> list[_Shown]:
        """The first images with the heatmaps of their first classes."""
        maps = self._drawable_maps()
        found = [] if maps is None else _drawable_images(self.images, self.preprocessing)
        shown = []
        for n, (label, picture, region) in enumerate(found):
            assert maps is not None
            overlays = []
            for k in range(min(maps.shape[1], _CLASSES)):
                heated = render.heat(torch.from_numpy(picture)[None], maps[n, k][None], region)
                overlays.append((self._title(n, k), heated[0].numpy()))
            shown.append(_Shown(label, picture, overlays))
        return shown

    def _title(self, n: int, k: int) -> Title:
        score = self.scores.reshape(len(self.scores), -1)[n, k].item()
        if self.class_ids is None:
            return Title("target", f"score {score:.3g}")
        class_id = int(self.class_ids.reshape(len(self.class_ids), -1)[n, k])
        named = class_id < len(self.classes)
        name = self.classes[class_id] if named else f"class {class_id}"
        return Title(name, f"score {score:.3g}")

    def _drawable_maps(self) -> Tensor | None:
        """(N, K, h, w) in [0, 1] on the CPU; the middle slice of a volume; None for other maps."""
        if not isinstance(self.maps, Tensor):
            return None
        maps = self.maps.detach().float().cpu()
        maps = maps.unsqueeze(1) if self.scores.dim() == 1 else maps
        if self.method in METHODS and METHODS[self.method].signed:
            maps = maps.abs().amax(2)
        if maps.dim() == 5:
            maps = maps[:, :, maps.shape[2] // 2]
        if maps.dim() != 4 or not maps.numel():
            return None
        return ops.normalize(maps[:_IMAGES].contiguous())


def explain(
    model: nn.Module | LoadedModel,
    images: Inputs,
    method: str = "gradcam++",
    target_layers: Layers | None = None,
    targets: Targets = None,
    *,
    reshape: Reshape | None = None,
    output: Output | None = None,
    per_image: Collection[Argument] | None = None,
    run: int | None = None,
    **options: Any,
) -> Explanation:
    """One explanation in one call: maps, class ids, scores and outputs from one forward.

    Args:
        model: as for the methods' constructors, or a :class:`fastcam.models.LoadedModel`, whose
            preprocessing then applies to pictures and whose class names are shown.
        images: as for the methods' calls; or a picture, a PIL image or an array (H, W, 3) of uint8,
            or a list of pictures.
        target_layers, reshape, output, per_image, run: as for the methods' constructors.
        method: a key of :data:`fastcam.METHODS`.
        targets: as for the methods' calls.
        options: the call's ``size``, ``normalize`` and ``relu``.

    Raises:
        ValueError, TypeError: as from the method; also for an unknown name, or for pictures that
            the preprocessing turns into inputs of different sizes.

    Warns:
        UserWarning: if pictures are given and the model's preprocessing is not known.
    """
    if method not in METHODS:
        raise ArgumentError("method", f"got '{method}', expected one of {', '.join(METHODS)}")
    loaded = model if isinstance(model, LoadedModel) else LoadedModel(model)
    cam: Any = METHODS[method](
        loaded.module, target_layers, reshape=reshape, output=output, per_image=per_image, run=run
    )
    _refuse_what_is_no_input(images)
    found = pictures_of(images)
    inputs = images
    if found is not None:
        if loaded.preprocessing is ASSUMED:
            warnings.warn(
                "images: the model's preprocessing is not known, assumed ImageNet's; to set it, "
                "pass fastcam.models.LoadedModel(model, Preprocessing(...)) as the model",
                stacklevel=2,
            )
        inputs = loaded.inputs_of(found)
    maps = cam(inputs, targets, **options)
    return Explanation(
        maps,
        cam.class_ids,
        cam.scores,
        cam.outputs,
        images,
        method,
        tuple(cam.layers),
        loaded.classes,
        loaded.preprocessing,
    )


def _refuse_what_is_no_input(images: Any) -> None:
    """Raises for what people pass by mistake, where a model would complain about its insides."""
    if isinstance(images, (str, Path)):
        raise TypeError(
            f"images: got the path {str(images)!r}, expected a picture or the model's inputs; read "
            "it first, with fastcam.pictures.read or PIL.Image.open"
        )
    if isinstance(images, (list, tuple)) and not images:
        raise ArgumentError("images", f"got an empty {type(images).__name__}, expected pictures")
    if isinstance(images, Tensor) and images.dim() == 3 and images.dtype == torch.uint8:
        raise ArgumentError(
            "images",
            f"got a uint8 tensor {tuple(images.shape)}, expected inputs (N, C, H, W); for a "
            "picture (H, W, 3), pass an array: images.numpy()",
        )


def _drawable_images(
    images: Any, preprocessing: Transform | None
) -> list[tuple[str, Picture, Region]]:
    """The first images with a label, and the part of each that the network sees."""
    found = pictures_of(images)
    if found is not None and preprocessing is not None:
        return [
            ("picture", picture, preprocessing.region(*picture.shape[:2]))
            for picture in found[:_IMAGES]
        ]
    batch = images_of(images)
    if batch is None or batch.dim() not in (4, 5):
        return []
    batch = batch[:_IMAGES].detach().cpu()
    middle = "" if batch.dim() == 4 else f", slice {batch.shape[2] // 2} of {batch.shape[2]}"
    batch = batch if batch.dim() == 4 else batch[:, :, batch.shape[2] // 2]
    whole = Region(0, 0, *batch.shape[2:])
    return [
        (f"{label}{middle}", picture, whole) for label, picture in map(_picture_of_input, batch)
    ]


def _picture_of_input(image: Tensor) -> tuple[str, Picture]:
    """(C, H, W) as a picture: RGB as it is; other values stretched to grey."""
    if image.shape[0] == 3 and image.dtype == torch.uint8:
        return "input", image.permute(1, 2, 0).contiguous().numpy()
    image = image.float()
    if image.shape[0] == 3 and image.amin() >= 0 and image.amax() <= 1:
        return "input", (image.permute(1, 2, 0) * 255).round().byte().contiguous().numpy()
    grey = ops.normalize(image.nan_to_num().mean(0, keepdim=True))[0]
    scaled = (grey * 255).round().byte().unsqueeze(-1).expand(-1, -1, 3)
    return "input, stretched to grey", scaled.contiguous().numpy()


def _figure(name: str, note: str, picture: Picture) -> str:
    import cv2

    share = _SIDE / max(picture.shape[:2])
    if share < 1:
        width, height = (max(round(side * share), 1) for side in picture.shape[1::-1])
        picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    data = base64.b64encode(pictures.encoded(picture, ".png")).decode()
    caption = "<br>".join(html.escape(each) for each in (name, note) if each)
    return (
        f'<figure style="margin: 4px"><img src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
