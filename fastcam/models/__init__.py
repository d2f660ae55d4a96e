"""Loads models by name with their weights, preprocessing and class names."""

from __future__ import annotations

import importlib
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcam.errors import ArgumentError, FastcamError, UsageError, first_line, near
from fastcam.pictures import Picture
from fastcam.pictures.render import Region

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_LARGEST = 2**27  # pixels of a resized picture
_CLIP_LENGTH = 16  # frames per clip in the training of torchvision's video networks ...
_CLIP_LENGTHS = {f"swin3d_{size}": 32 for size in "tsb"}  # ... except for these


@dataclass(frozen=True)
class Preprocessing:
    """Converts pictures to the network's input: resize, centre crop, normalize.

    Attributes:
        resize: (height, width) that the resized picture covers, keeping its aspect ratio; None to
            keep the size.
        crop: (height, width) of the centre crop; None for no crop.
        stretch: whether to resize to exactly ``resize``, ignoring the aspect ratio.
        mean, std: of the three channels, for values in [0, 1].
        interpolation: "bilinear" or "bicubic".
    """

    resize: tuple[int, int] | None = (256, 256)
    crop: tuple[int, int] | None = (224, 224)
    stretch: bool = False
    mean: tuple[float, ...] = _IMAGENET_MEAN
    std: tuple[float, ...] = _IMAGENET_STD
    interpolation: str = "bilinear"

    def __call__(self, pictures: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 -> (N, 3, h, w) float32."""
        return self.normalized(self.fitted(pictures))

    def fitted(self, pictures: Tensor) -> Tensor:
        """Resizes and crops: (N, H, W, 3) -> (N, 3, h, w), uint8."""
        images = pictures.permute(0, 3, 1, 2)
        size = self._resized(*images.shape[2:])
        if size != images.shape[2:]:
            images = resized(images, size, self.interpolation)
        if self.crop is not None:
            top, left = self._offset(size)
            images = images[:, :, top : top + self.crop[0], left : left + self.crop[1]]
        return images

    def normalized(self, images: Tensor) -> Tensor:
        """Normalizes by ``mean`` and ``std``: (N, 3, h, w), uint8 -> float32."""
        mean, std = (
            torch.tensor(each, device=images.device).view(3, 1, 1) for each in (self.mean, self.std)
        )
        return (images / 255 - mean) / std

    def region(self, height: int, width: int) -> Region:
        """The part of a picture of this size that is inside the network's input."""
        if self.crop is None:
            return Region(0, 0, height, width)
        resized = self._resized(height, width)
        top, left = self._offset(resized)
        down, across = height / resized[0], width / resized[1]  # picture pixels per resized pixel
        return Region(
            round(top * down),
            round(left * across),
            round((top + self.crop[0]) * down),
            round((left + self.crop[1]) * across),
        )

    def sized(self, side: int) -> Preprocessing:
        """The same preprocessing for a square input, with the same crop ratio."""
        if self.crop is None:
            return replace(self, resize=(side, side))
        resize = self.resize and (
            round(side * self.resize[0] / self.crop[0]),
            round(side * self.resize[1] / self.crop[1]),
        )
        return replace(self, resize=resize, crop=(side, side))

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if self.resize is None:
            return height, width
        if self.stretch:
            return self.resize
        # integer arithmetic, as in torchvision
        if self.resize[0] * width >= self.resize[1] * height:
            return self.resize[0], self.resize[0] * width // height
        return self.resize[1] * height // width, self.resize[1]

    def _offset(self, resized: tuple[int, int]) -> tuple[int, int]:
        assert self.crop is not None
        return round((resized[0] - self.crop[0]) / 2), round((resized[1] - self.crop[1]) / 2)


@dataclass(frozen=True)
class LoadedModel:
    """A network in evaluation mode with its preprocessing and class names.

    Attributes:
        module: (N, 3, h, w) -> logits (N, classes).
        preprocessing: converts pictures to the module's input.
        classes: the names by class id; empty if unknown.
        multilabel: whether classes are independent (sigmoid) or exclusive (softmax).
        clip_length: T if the network takes clips, (N, 3, T, h, w); None if it takes pictures.
    """

    module: nn.Module
    preprocessing: Preprocessing = Preprocessing()
    classes: tuple[str, ...] = ()
    multilabel: bool = False
    clip_length: int | None = None

    def inputs_of(self, pictures: Sequence[Picture]) -> Tensor:
        """Preprocesses pictures (H, W, 3), each of any size: (N, 3, h, w) on the module's device.

        Raises:
            ValueError: if the inputs differ in size, or the module takes clips.
        """
        if self.clip_length is not None:
            raise ArgumentError(
                "images",
                f"got pictures, but the network takes clips of {self.clip_length} frames; pass a "
                "tensor (N, 3, T, H, W)",
            )
        inputs = [self.preprocessing(torch.from_numpy(each)[None]) for each in pictures]
        for picture, image in zip(pictures, inputs, strict=True):
            if image.shape != inputs[0].shape:
                raise ArgumentError(
                    "images",
                    f"pictures of {_extents(pictures[0].shape)} and {_extents(picture.shape)} "
                    f"pixels become inputs of {_extents(inputs[0].shape[2:])} and "
                    f"{_extents(image.shape[2:])} pixels; explain them one at a time",
                )
        parameter = next(self.module.parameters(), None)
        return torch.cat(inputs).to(None if parameter is None else parameter.device)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits (N, classes) -> probabilities (N, classes)."""
        if self.multilabel or logits.shape[1] == 1:
            return logits.sigmoid()
        return logits.softmax(1)

    def class_name(self, class_id: int) -> str:
        return self.classes[class_id] if self.classes else f"class {class_id}"

    def class_id(self, text: str) -> int:
        """The class id for a number or a class name.

        Raises:
            UsageError: if the number is out of range, or the name is unknown or ambiguous.
        """
        if text.isdecimal() and len(text) < 19:  # no class id has more digits
            if self.classes and int(text) >= len(self.classes):
                ids = f"the ids are 0 to {len(self.classes) - 1}"
                raise UsageError(f"class {text} is out of range: {ids}")
            return int(text)
        names = [name.casefold() for name in self.classes]
        found = [index for index, name in enumerate(names) if name == text.casefold()]
        if len(found) > 1:
            raise UsageError(f"class {text} is ambiguous: give one of the ids {found}")
        if not found:
            hint = (
                near(text, self.classes) if names else ": the model has no class names, give an id"
            )
            raise UsageError(f"unknown class {text}{hint}")
        return found[0]


def _extents(shape: Sequence[int]) -> str:
    return f"{shape[1]}x{shape[0]}"


def resized(images: Tensor, size: tuple[int, int], interpolation: str = "bilinear") -> Tensor:
    """Resizes with antialiasing ("bilinear" or "bicubic"): (N, C, H, W) -> (N, C, *size), uint8.

    Raises:
        FastcamError: if the result is huge, as for a picture that is long and one pixel wide.
    """
    if size[0] * size[1] > _LARGEST:
        before, after = (f"{width}x{height}" for height, width in (images.shape[2:], size))
        raise FastcamError(
            f"a picture of {before} pixels would be resized to {after}: cut a less narrow part out"
        )
    if images.is_cuda:  # torch interpolates uint8 only on a CPU
        large = F.interpolate(images.float(), size, mode=interpolation, antialias=True)
        return large.round_().clamp_(0, 255).byte()
    return F.interpolate(images, size, mode=interpolation, antialias=True)


def load(name: str, weights: str = "DEFAULT", device: torch.device | str = "cpu") -> LoadedModel:
    """Loads a model with its weights, in evaluation mode.

    Args:
        name: "digits" (included), the name of a torchvision classifier, "timm:NAME", or
            "package.module:function" for a function that returns a module or a LoadedModel.
        weights: "DEFAULT" for the pretrained weights, "none" for random ones (not supported for a
            function, which sets its own), or a file with a state dict, .safetensors or written by
            torch.save. The file determines the number of classes.
        device: the device to put the model on.

    Raises:
        UsageError: if the name is unknown, or "none" is given for a function.
        FastcamError: if the weights cannot be read or downloaded, or do not fit the model.
    """
    state = None if weights in ("DEFAULT", "none") else _read_state(Path(weights))
    if name == "digits":
        model = _digits(weights)
    elif ":" not in name:
        model = _torchvision(name, weights, state)
    elif name.startswith("timm:"):
        model = _timm(name.removeprefix("timm:"), weights, state)
    else:
        model = _function(name, weights)
    if state is not None:
        _fill(model.module, state, f"{weights} does not fit {name}")
    model.module.eval().to(device)
    return model


def read_classes(path: Path) -> tuple[str, ...]:
    """Reads class names from a text file, one per line."""
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise FastcamError(f"{path}: cannot read the class names: {error}") from None


def _digits(weights: str) -> LoadedModel:
    from fastcam import demo

    unchanged = Preprocessing(resize=None, crop=None, mean=(0, 0, 0), std=(1, 1, 1))
    names = demo.DIGITS_CLASSES
    module = demo.digits() if weights == "DEFAULT" else demo.DigitsNet(len(names))
    return LoadedModel(module, unchanged, names, multilabel=True)


def _torchvision(name: str, weights: str, state: dict[str, Tensor] | None) -> LoadedModel:
    try:
        from torchvision import models
    except ImportError:
        raise FastcamError(f"model {name} requires torchvision: pip install torchvision") from None

    pictures = models.list_models(module=models)
    known = [*pictures, *models.list_models(module=models.video)]
    if name not in known:
        hint = near(name, ["digits", *known])
        raise UsageError(f"unknown model {name}{hint} (or timm:NAME, or package.module:function)")
    default: Any = models.get_model_weights(name)["DEFAULT"]
    module, is_usual = _build(
        name,
        partial(models.get_model, name, weights=default if weights == "DEFAULT" else None),
        state,
        usual=len(default.meta["categories"]),
    )
    transform = default.transforms()
    resize, crop = transform.resize_size, transform.crop_size  # one number: the shorter side
    preprocessing = Preprocessing(
        resize=(resize[0], resize[-1]),
        crop=(crop[0], crop[-1]),
        stretch=len(resize) == 2,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        interpolation=transform.interpolation.value,
    )
    classes = tuple(default.meta["categories"]) if is_usual else ()
    clip_length = None if name in pictures else _CLIP_LENGTHS.get(name, _CLIP_LENGTH)
    return LoadedModel(module, preprocessing, classes, clip_length=clip_length)


def _timm(name: str, weights: str, state: dict[str, Tensor] | None) -> LoadedModel:
    try:
        import timm
    except ImportError:
        raise FastcamError(f"model timm:{name} requires timm: pip install timm") from None

    if not timm.is_model(name):
        raise UsageError(f"unknown model timm:{name}{near(name, timm.list_models())}")
    module, usual = _build(
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
    )
    subset = data.infer_imagenet_subset(module)  # None if not an ImageNet model
    names = data.ImageNetInfo(subset).label_descriptions() if subset and usual else ()
    first_synonyms = tuple(name.partition(",")[0] for name in names)
    return LoadedModel(module, preprocessing, first_synonyms)


def _function(name: str, weights: str) -> LoadedModel:
    path, _, attribute = name.partition(":")
    if not path or not attribute:
        raise UsageError(f"model {name}: expected package.module:function")
    if weights == "none":
        raise UsageError(
            f"model {name}: weights none is not supported for a function, which sets its own"
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(path)
    except Exception as error:  # user code may raise anything
        raise UsageError(f"model {name}: {_of_kind(error)}") from error
    function: Any = getattr(module, attribute, None)
    if function is None:
        raise UsageError(f"model {name}: {path} has no {attribute}{near(attribute, dir(module))}")
    if not callable(function):
        raise UsageError(f"model {name}: expected a function, got {type(function).__name__}")
    try:
        made = function()
    except Exception as error:
        raise FastcamError(f"model {name}: {_of_kind(error)}") from error
    if isinstance(made, LoadedModel):
        return made
    if isinstance(made, nn.Module):
        return LoadedModel(made)
    raise UsageError(
        f"model {name}: the function returned {type(made).__name__}, expected a torch.nn.Module"
    )


def _of_kind(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def _build(
    name: str,
    create: Callable[..., nn.Module],
    state: dict[str, Tensor] | None,
    usual: int = 1000,
) -> tuple[nn.Module, bool]:
    """Creates the module with as many classes as ``state`` has.

    Returns:
        The module, and whether it has the ``usual`` number of classes.
    """
    try:
        module = create()
    except (OSError, RuntimeError) as error:  # download or checksum errors
        raise FastcamError(
            f"the weights of {name} cannot be downloaded ({first_line(error)}): "
            "use --weights FILE or --weights none"
        ) from None
    for key, value in module.state_dict().items():
        given = state.get(key) if state is not None else None
        if value.dim() and len(value) == usual and isinstance(given, Tensor):
            count = given.shape[:1].numel()
            if count != usual:
                return create(num_classes=count), False
    return module, True


def _read_state(path: Path) -> dict[str, Tensor]:
    """Reads the state dict from a file and unwraps it from a training checkpoint."""
    if not path.is_file():
        raise FastcamError(f"weights: no such file: {path}; expected a file, DEFAULT or none")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise FastcamError(
            f"{path}: not loaded because it contains objects other than tensors: "
            "save model.state_dict() instead"
        ) from None
    except Exception as error:  # safetensors and torch raise many types for a broken file
        raise FastcamError(f"{path}: not a weights file ({first_line(error)})") from None
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict):
            state = state.get(wrapper, state)
    if not isinstance(state, dict):
        raise FastcamError(f"{path}: expected a state dict, got {type(state).__name__}")
    if not all(isinstance(key, str) for key in state):
        raise FastcamError(f"{path}: not a state dict: its keys are not strings")
    return {key.removeprefix("module."): value for key, value in state.items()}


def _fill(module: nn.Module, state: dict[str, Tensor], complaint: str) -> None:
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except RuntimeError as error:  # wrong shapes; the first line is only a heading
        raise FastcamError(f"{complaint}: {str(error).splitlines()[-1].strip()}") from None
    for keys, kind in ((missing, "missing"), (unexpected, "unexpected")):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise FastcamError(f"{complaint}: {kind} keys {', '.join(keys[:3])}{more}")
