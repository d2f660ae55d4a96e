"""Image classifiers and image processors of Hugging Face, from folders or from the hub."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from fastcam.errors import FastcamError, first_line
from fastcam.models.loaded import LoadedModel
from fastcam.models.measured import MeasuredTransform

T = TypeVar("T")

_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_SAFETENSORS = ("model.safetensors*", "model-*.safetensors")
_PICKLES = ("pytorch_model*.bin*",)


def model_of(name: str, weights: str, state: dict[str, Tensor] | None) -> LoadedModel:
    """A network with the class names of its configuration, without preprocessing.

    Code in the folder is never run. Weights are read from safetensors, or from pickles of tensors.

    Args:
        name: a folder, or a name on the hub.
        weights, state: see :func:`fastcam.models.load`; ``state`` is not loaded here.

    Raises:
        FastcamError: if transformers is missing, if the folder is not found, cannot be downloaded
            or read, or is not an image classifier with all its weights.
    """
    what = f"model hf:{name}"
    with _library(what) as transformers:
        folder = _folder(what, name, "config.json")
        config = _read(what, lambda: _config(transformers, folder))
        if type(config) not in transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
            raise FastcamError(f"{what}: expected an image classifier, got {config.model_type}")
        classifier = transformers.AutoModelForImageClassification
        if weights == "none" or state is not None:
            module = _read(what, lambda: classifier.from_config(config, trust_remote_code=False))
        else:
            folder = _folder(what, name, "config.json", *_SAFETENSORS)
            if not any(folder.glob("model*.safetensors")):
                folder = _folder(what, name, "config.json", *_PICKLES)
            module = _read(what, lambda: _pretrained(what, classifier, folder))
    names = config.id2label or {}
    classes = tuple(str(names[index]) for index in range(len(names)) if index in names)
    multilabel = config.problem_type == "multi_label_classification"
    return LoadedModel(module, classes=classes, multilabel=multilabel)


def transform_of(name: str) -> MeasuredTransform:
    """The image processor in a folder, or of a name on the hub.

    Raises:
        FastcamError: if transformers is missing, or the processor is not found or cannot be read.
    """
    what = f"processor {name}"
    with _library(what) as transformers:
        folder = _folder(what, name, "config.json", *_PROCESSORS)
        is_timm = '"architecture"' in _text(folder / "config.json")  # the model's has it all
        if not is_timm and not any((folder / each).exists() for each in _PROCESSORS):
            raise FastcamError(
                f"{what}: has no {_PROCESSORS[0]}: give --processor FOLDER-OR-NAME, or "
                "--preprocess package.module:function"
            )
        processor: Any = _read(
            what,
            lambda: transformers.AutoImageProcessor.from_pretrained(
                folder, trust_remote_code=False
            ),
        )

    def pixel_values(picture: Any) -> Any:
        return processor(images=picture, return_tensors="pt")["pixel_values"]

    return MeasuredTransform(pixel_values, f"{type(processor).__name__} of {name}")


def _config(transformers: Any, folder: Path) -> Any:
    return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)


def _pretrained(what: str, classifier: Any, folder: Path) -> nn.Module:
    module, info = classifier.from_pretrained(
        folder, trust_remote_code=False, weights_only=True, output_loading_info=True
    )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise FastcamError(
            f"{what}: expected the weights of an image classifier, which lack "
            f"{', '.join(missing[:3])}{more}"
        )
    return module


@contextmanager
def _library(what: str) -> Iterator[Any]:
    """Yields transformers, which shows no messages and bars of its own during the block."""
    try:
        import transformers
    except ImportError:
        raise FastcamError(f"{what}: requires transformers: pip install transformers") from None
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield transformers
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _folder(what: str, name: str, *files: str) -> Path:
    """The folder itself, or one into which these files were downloaded."""
    if Path(name).is_dir():
        return Path(name)
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise FastcamError(f"{what}: no such folder")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(files)))
    except (OSError, ValueError, RuntimeError) as error:
        raise FastcamError(
            f"{what}: neither a folder nor to be had from the Hugging Face hub "
            f"({first_line(error)})"
        ) from None


def _read(what: str, read: Callable[[], T]) -> T:
    try:
        return read()
    except FastcamError:
        raise
    except pickle.UnpicklingError:
        raise FastcamError(
            f"{what}: not loaded because its weights contain objects other than tensors: save "
            "them as safetensors instead"
        ) from None
    except Exception as error:  # transformers raises many types for a broken file
        raise FastcamError(f"{what}: cannot be read: {first_line(error)}") from error


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
