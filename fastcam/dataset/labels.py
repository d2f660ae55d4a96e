"""From the labels of a data set to class ids of a model."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from fastcam.dataset.inputs import Inputs, joined
from fastcam.errors import UsageError
from fastcam.models import LoadedModel


def class_ids(inputs: Inputs, model: LoadedModel, classes: int) -> list[int | None]:
    """The class id of each picture's label; None for a picture without one.

    Folders' names and those of a Hugging Face data set are looked up among the names of the model's
    classes. If they are not all there, but as many as the model has classes, the first is class 0
    and so on, as in the training of torchvision and Hugging Face.

    Args:
        inputs: the pictures.
        model: names the classes.
        classes: how many the model has.

    Raises:
        UsageError: if there are no labels, or one of them is not a class of the model.

    Warns:
        UserWarning: if names are numbered although the model's classes have other names.
    """
    if not inputs.has_labels:
        raise UsageError(f"targets label: the pictures of {inputs.source} have no labels")
    numbers = _numbers(inputs.label_names, model, classes)
    found: list[int | None] = []
    for item in inputs.items:
        label = item.label
        if isinstance(label, str):
            try:
                label = model.class_id(label)
            except UsageError as error:
                raise UsageError(f"targets label: {item.key}: {error}") from None
        elif label is not None and numbers:
            label = numbers[label]
        if label is not None and not 0 <= label < classes:
            raise UsageError(
                f"targets label: {item.key} has the label {label}, expected 0 to {classes - 1}"
            )
        found.append(label)
    return found


def class_ids_of(
    names: Iterable[str], inputs: Inputs, model: LoadedModel, classes: int
) -> dict[str, int]:
    """The class ids of the names in annotations: those of classes or of labels, or class ids.

    Args:
        names: the names.
        inputs: has the names of labels, such as ImageNet's folders.
        model, classes: as for :func:`class_ids`.

    Raises:
        UsageError: if some are none of these.
    """
    found: dict[str, int] = {}
    unknown: dict[str, str] = {}
    for name in names:
        try:
            found[name] = model.class_id(name)
        except UsageError as error:
            if name in inputs.label_names:
                numbers = _numbers(inputs.label_names, model, classes)
                found[name] = numbers[inputs.label_names.index(name)]
            else:
                unknown[name] = str(error)
            continue
        if found[name] >= classes:
            unknown[name] = f"class {name} is out of range: the ids are 0 to {classes - 1}"
    if unknown:
        first = next(iter(unknown.values()))
        rest = f" ({len(unknown)} names are unknown: {joined(unknown)})" if len(unknown) > 1 else ""
        raise UsageError(f"annotations: {first}{rest}; rename or remove what is not a class")
    return found


def _numbers(names: tuple[str, ...], model: LoadedModel, classes: int) -> list[int]:
    """The class id of each name; empty if there are no names."""
    known = [name.casefold() for name in model.classes]
    wanted = [name.casefold() for name in names]
    if all(known.count(name) == 1 for name in wanted):
        return [known.index(name) for name in wanted]
    if len(names) != classes:
        missing = joined(
            name for name, folded in zip(names, wanted, strict=True) if known.count(folded) != 1
        )
        raise UsageError(
            f"targets label: {missing}: not the name of one class, and the {len(names)} labels "
            f"cannot be numbered, because the model has {classes} classes; give a table with the "
            "columns path and label"
        )
    if model.classes:
        warnings.warn(
            f"targets label: the names of labels are not those of classes, so they are numbered: "
            f"{names[0]} is class 0, {model.classes[0]}",
            stacklevel=2,
        )
    return list(range(classes))
