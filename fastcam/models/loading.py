"""Loads models by name with their weights, preprocessing and class names."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastcam.errors import FastcamError, UsageError, near
from fastcam.models import detection, functions, hugging_face
from fastcam.models.loaded import LoadedModel
from fastcam.models.preprocessing import Preprocessing, Transform
from fastcam.models.weights import build, fill, read_state

_CLIP_LENGTH = 16  # frames per clip in the training of torchvision's video networks ...
_CLIP_LENGTHS = {f"swin3d_{size}": 32 for size in "tsb"}  # ... except for these

_DIGITS = {
    "digits": ("digits", "DigitsNet"),
    "digits-unet": ("digits_unet", "DigitsUNet"),
    "digits-vit": ("digits_vit", "DigitsViT"),
}
"""The included networks: what makes them with their weights, and without."""


def load(
    name: str,
    weights: str = "DEFAULT",
    device: torch.device | str = "cpu",
    *,
    processor: str | None = None,
    preprocess: str | None = None,
) -> LoadedModel:
    """Loads a model with its weights, in evaluation mode.

    Args:
        name: "digits", "digits-vit" or "digits-unet" (included; the last one has a logit per
            pixel), the name of a torchvision classifier or segmentation network, "timm:NAME",
            "hf:FOLDER-OR-NAME" for a Hugging Face image classifier, or "package.module:function"
            for a function that returns a module or a LoadedModel.
        weights: "DEFAULT" for the pretrained weights, "none" for random ones (not supported for a
            function, which sets its own), or a file with a state dict, .safetensors or written by
            torch.save. The file determines the number of classes.
        device: the device to put the model on.
        processor: the folder or name of a Hugging Face image processor to use as preprocessing.
        preprocess: "package.module:function", a function to use as preprocessing; see
            :class:`fastcam.models.MeasuredTransform`.

    Raises:
        UsageError: if a name is unknown, "none" is given for a function, or both ``processor`` and
            ``preprocess`` are given.
        FastcamError: if something cannot be read or downloaded, or weights do not fit the model.
    """
    transform: Transform | None = None
    if preprocess is not None:
        if processor is not None:
            raise UsageError("preprocess: got a processor too, expected one of them")
        transform = functions.transform_of(preprocess)
    elif processor is not None:
        transform = hugging_face.transform_of(processor)
    state = None if weights in ("DEFAULT", "none") else read_state(Path(weights))
    if name in _DIGITS:
        model = _digits(name, weights)
    elif ":" not in name:
        model = _torchvision(name, weights, state)
    elif name.startswith("timm:"):
        model = _timm(name.removeprefix("timm:"), weights, state)
    elif name.startswith("hf:"):
        model = hugging_face.model_of(name.removeprefix("hf:"), weights, state)
        transform = transform or hugging_face.transform_of(name.removeprefix("hf:"))
    else:
        model = functions.model_of(name, weights)
    if state is not None:
        fill(model.module, state, f"{weights} does not fit {name}")
    model.module.eval().to(device)
    return model if transform is None else replace(model, preprocessing=transform)


def read_classes(path: Path) -> tuple[str, ...]:
    """Reads class names from a text file, one per line."""
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise FastcamError(f"{path}: cannot read the class names: {error}") from None


def _digits(name: str, weights: str) -> LoadedModel:
    from fastcam import demo

    unchanged = Preprocessing(
        resize=None, crop=None, mean=(0, 0, 0), std=(1, 1, 1), origin="the included network's"
    )
    trained, untrained = _DIGITS[name]
    module = getattr(demo, trained if weights == "DEFAULT" else untrained)()
    dense = name == "digits-unet"
    names = (*demo.DIGITS_CLASSES, "background") if dense else demo.DIGITS_CLASSES
    return LoadedModel(module, unchanged, names, multilabel=not dense)


def _torchvision(name: str, weights: str, state: dict[str, Tensor] | None) -> LoadedModel:
    try:
        from torchvision import models
    except ImportError:
        raise FastcamError(f"model {name} requires torchvision: pip install torchvision") from None

    of_clips = models.list_models(module=models.video)
    of_pixels = models.list_models(module=models.segmentation)
    known = [*models.list_models(module=models), *of_clips, *of_pixels]
    if name in detection.names():
        raise UsageError(f"model {name} is a detector: add --target boxes to explain its boxes")
    if name not in known:
        hint = near(name, [*_DIGITS, *known])
        raise UsageError(
            f"unknown model {name}{hint} (or timm:NAME, hf:FOLDER-OR-NAME, "
            "or package.module:function)"
        )
    default: Any = models.get_model_weights(name)["DEFAULT"]
    options = {"weights_backbone": None} if name in of_pixels else {}
    module, is_usual = build(
        name,
        partial(
            models.get_model, name, weights=default if weights == "DEFAULT" else None, **options
        ),
        state,
        usual=len(default.meta["categories"]),
    )
    transform = default.transforms()
    # one number: the shorter side; networks with scores for each pixel see the whole picture
    resize, crop = transform.resize_size, getattr(transform, "crop_size", None)
    preprocessing = Preprocessing(
        resize=(resize[0], resize[-1]),
        crop=None if crop is None else (crop[0], crop[-1]),
        stretch=len(resize) == 2,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        interpolation=transform.interpolation.value,
        origin=f"torchvision's {default}",
        assumed=weights != "DEFAULT",
    )
    classes = tuple(default.meta["categories"]) if is_usual else ()
    clip_length = _CLIP_LENGTHS.get(name, _CLIP_LENGTH) if name in of_clips else None
    return LoadedModel(module, preprocessing, classes, clip_length=clip_length)


def _timm(name: str, weights: str, state: dict[str, Tensor] | None) -> LoadedModel:
    try:
        import timm
    except ImportError:
        raise FastcamError(f"model timm:{name} requires timm: pip install timm") from None

    if not timm.is_model(name):
        raise UsageError(f"unknown model timm:{name}{near(name, timm.list_models())}")
    module, usual = build(
        f"timm:{name}", partial(timm.create_model, name, pretrained=weights == "DEFAULT"), state
    )
    data: Any = timm.data
    config = data.resolve_model_data_config(module)
    height, width = config["input_size"][1:]
    share = config["crop_pct"]
    preprocessing = Preprocessing(
        resize=(int(height / share), int(width / share)),
        crop=(height, width),
        stretch=config["crop_mode"] == "squash",
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        origin=f"timm's data config of {name}",
        assumed=weights != "DEFAULT",
    )
    subset = data.infer_imagenet_subset(module)  # None if not an ImageNet model
    names = data.ImageNetInfo(subset).label_descriptions() if subset and usual else ()
    first_synonyms = tuple(name.partition(",")[0] for name in names)
    return LoadedModel(module, preprocessing, first_synonyms)
