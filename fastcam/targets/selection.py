"""Turns targets (class ids, or functions of the output) into the scores to explain."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastcam.errors import ArgumentError


class ClassChoice(ABC):
    """Targets that are chosen from the logits of the forward pass being explained."""

    @abstractmethod
    def ids(self, logits: Tensor) -> Tensor:
        """(N, K), for logits (N, classes) or (N, classes, *S); called once per forward pass."""


@dataclass(frozen=True)
class TopClasses(ClassChoice):
    """Targets: the classes with the highest scores of each image, from one forward pass.

    If the network has scores for each position, (N, classes, *S), these are the classes that are on
    top at the most positions. Each is explained as ``Segmentation(class_id)``; a class that is on
    top nowhere has the score 0.

    Args:
        count: K, the number of classes per image; all classes if the model has fewer.
        first: a class that comes first whatever its score; or one for each image.
    """

    count: int
    first: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ArgumentError("targets", f"got a count of {self.count}, expected at least 1")

    def ids(self, logits: Tensor) -> Tensor:
        """See :class:`ClassChoice`."""
        logits = shares(logits) if logits.dim() > 2 else logits
        classes = logits.shape[1]
        if self.first is not None:
            count = len(logits)
            first = self.first if isinstance(self.first, tuple) else (self.first,) * count
            front = class_ids(first, count, classes, logits.device)
            logits = logits.scatter(1, front.unsqueeze(1), torch.inf)
        return logits.topk(min(self.count, classes)).indices


Target = Callable[[Tensor], Tensor]


class OutputTarget(ABC):
    """A target whose scores are computed from the outputs of the forward pass being explained."""

    @abstractmethod
    def functions(self, outputs: Tensor, extents: Sequence[int] | None) -> list[Target]:
        """One function per image, from that image's output to its score, or to K scores (K,).

        What the outputs decide (the pixels of a class) is decided here: the functions keep it for
        further runs.

        Args:
            outputs: (N, ...), with their graph.
            extents: those of the images' positions, if they are known.
        """


class Watch(ABC):
    """What a :class:`ModelTarget` sees of the runs of one model."""

    hooks: list[tuple[nn.Module, Callable[..., None]]]
    """The forward hooks that have to be set during each run."""
    class_ids: Tensor
    """The class of each score, (N, K)."""

    @property
    @abstractmethod
    def levels(self) -> list[Tensor]:
        """The feature maps that the scores of the last run were computed from."""

    @property
    @abstractmethod
    def visible(self) -> tuple[float, float]:
        """The share of the height and width of the network's input that the image fills.

        It lies in the top left corner; the rest is padding.
        """

    @abstractmethod
    def scores(self, outputs: Any) -> Tensor:
        """The scores of the last run, (N, K), with their graph; used as ``output=``."""


class ModelTarget(ABC):
    """A target whose scores are computed from what modules inside of the model return."""

    @abstractmethod
    def watch(self, model: nn.Module, images: int) -> Watch:
        """Prepares for runs of the model, to explain this number of images."""


Targets = (
    int
    | Sequence[int]
    | Tensor
    | np.ndarray[Any, Any]
    | ClassChoice
    | OutputTarget
    | ModelTarget
    | Target
    | Sequence[Target | OutputTarget]
    | None
)


@dataclass(frozen=True)
class EveryScore(ClassChoice):
    """Targets: all columns of the logits."""

    def ids(self, logits: Tensor) -> Tensor:
        """(N, K), for logits (N, K)."""
        return torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)


@dataclass(frozen=True)
class Selection:
    """The scores to explain."""

    scores: Tensor
    """(N,) or (N, K), with their graph."""
    class_ids: Tensor | None
    """The shape of ``scores``, or None if the targets are functions."""
    functions: list[Target] | None = None
    """One per image, or None if the targets are class ids."""

    @cached_property
    def columns(self) -> list[Tensor]:
        """The scores (N,) of each class: the same tensors at each access."""
        with torch.enable_grad():
            return [self.scores] if self.scores.dim() == 1 else list(self.scores.unbind(1))

    def by_class(self, results_of: Callable[[Tensor, bool], list[Tensor]]) -> list[Tensor]:
        """Computes tensors (N, ...) class by class and stacks them to (N, K, ...).

        Scores (N,) give (N, ...).

        Args:
            results_of: returns tensors (N, ...); takes the scores (N,) of one class per image, with
                their graph, and whether to retain that graph.
        """
        columns = self.columns
        found = [results_of(scores, k < len(columns)) for k, scores in enumerate(columns, start=1)]
        if self.scores.dim() == 1:
            return found[0]
        return [torch.stack(each, 1) for each in zip(*found, strict=True)]

    def of(self, logits: Tensor, images: Tensor) -> Tensor:
        """The same scores of other logits, (R,) or (R, K).

        Args:
            logits: (R, ...), for any number of rows R.
            images: (R,), the image whose targets apply to each row.
        """
        if self.functions is not None:
            return _apply([self.functions[image] for image in images.tolist()], logits)
        assert self.class_ids is not None
        return _gather(logits, self.class_ids[images])


def select(
    logits: Tensor, targets: Targets = None, extents: Sequence[int] | None = None
) -> Selection:
    """The scores that the targets name.

    Args:
        logits: (N, classes), or (N,) or (N, 1) for a single logit, which is class 0. Other shapes
            need a function.
        targets: an int for every image; a list, array or 1-D tensor of N ints; ids (N, K), K
            classes per image (not one-hot rows), or :class:`TopClasses`; a function from one
            image's logits to a scalar or an :class:`OutputTarget`, or N of them; None for the top
            class. The range of ids on a GPU is not checked, because that would synchronize with
            it.
        extents: those of the images' positions, if they are known.

    Raises:
        ValueError, TypeError: if the targets do not fit the logits.
    """
    with torch.enable_grad():
        if isinstance(targets, ModelTarget):
            raise ArgumentError(
                "targets",
                f"{type(targets).__name__} is not supported here; call a method that returns maps "
                "of one run, such as GradCAM",
            )
        functions = _functions(targets, logits, extents)
        if functions is not None:
            return Selection(_apply(functions, logits), None, functions)
        if logits.dim() > 2 and isinstance(targets, ClassChoice):
            ids = targets.ids(logits.detach())
            functions = _sums_on_top(logits, ids)
            return Selection(_apply(functions, logits), ids, functions)
        if logits.dim() > 2:
            raise ArgumentError(
                "targets",
                "a class is not a single score in an output of shape "
                f"{tuple(logits.shape)}; pass Segmentation(class_id), TopClasses(1), or a function "
                "from one image's output to a scalar",
            )
        rows = logits if logits.dim() == 2 else logits.unsqueeze(1)
        if targets is None:
            ids = rows.argmax(1)
        elif isinstance(targets, ClassChoice):
            ids = targets.ids(rows.detach())
        else:
            ids = class_ids(targets, rows.shape[0], rows.shape[1], rows.device)
        return Selection(_gather(logits, ids), ids)


def on_top(logits: Tensor) -> Tensor:
    """Where each class is on top of (N, classes, *S), boolean; of a single class, above 0."""
    if logits.shape[1] == 1:
        return logits > 0
    classes = torch.arange(logits.shape[1], device=logits.device)
    return logits.argmax(1, keepdim=True) == classes.view(-1, *[1] * (logits.dim() - 2))


def shares(logits: Tensor) -> Tensor:
    """(N, classes): the share of the positions of (N, classes, *S) at which a class is on top."""
    return on_top(logits).flatten(2).sum(2) / logits.shape[2:].numel()


def _sums_on_top(logits: Tensor, ids: Tensor) -> list[Target]:
    """For each image, the sums of K classes' logits, (K,), over the positions they are on top at.

    Args:
        logits: (N, classes, *S).
        ids: (N, K).
    """

    def sums(kept: Tensor, masks: Tensor) -> Target:
        return lambda row: (row[kept] * masks).flatten(1).sum(1)

    masks = on_top(logits.detach())
    return [sums(kept, mask[kept]) for kept, mask in zip(ids, masks, strict=True)]


def look_like_probabilities(logits: Tensor) -> bool:
    """Whether softmax or sigmoid came last, or every row is non-negative and sums to 1."""
    last = "" if logits.grad_fn is None else logits.grad_fn.name()
    if last in ("SoftmaxBackward0", "SigmoidBackward0"):
        return True
    if logits.dim() != 2 or logits.shape[1] < 2 or logits.shape[0] == 0:
        return False
    rows = logits.detach().float()
    return bool(((rows >= 0).all(1) & ((rows.sum(1) - 1).abs() < 1e-2)).all())


def probabilities(logits: Tensor) -> Tensor:
    """Softmax over the classes of (N, classes, ...); of a single logit, (N,) or (N, 1), sigmoid."""
    return logits.softmax(1) if logits.dim() > 1 and logits.shape[1] > 1 else logits.sigmoid()


def _functions(targets: Any, logits: Tensor, extents: Sequence[int] | None) -> list[Target] | None:
    """One function per image, or None if the targets are class ids."""
    images = logits.shape[0]
    if isinstance(targets, OutputTarget):
        return targets.functions(logits, extents)
    if callable(targets):
        return [_one_score(targets)] * images
    if not isinstance(targets, (list, tuple)) or not any(map(_is_function, targets)):
        return None
    if len(targets) != images or not all(map(_is_function, targets)):
        raise ArgumentError(
            "targets", f"got a list of {len(targets)}, expected {images} functions, one per image"
        )
    return [
        each.functions(logits[i : i + 1], extents)[0]
        if isinstance(each, OutputTarget)
        else _one_score(each)
        for i, each in enumerate(targets)
    ]


def _is_function(target: Any) -> bool:
    return callable(target) or isinstance(target, OutputTarget)


def _one_score(function: Target) -> Target:
    """The user's function, whose result is checked."""

    def score(row: Tensor) -> Tensor:
        found = function(row)
        if not isinstance(found, Tensor) or found.numel() != 1:
            came = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ArgumentError(
                "targets", f"a function returned {came}, expected one value in a tensor"
            )
        return found.reshape(())

    return score


def _apply(functions: list[Target], logits: Tensor) -> Tensor:
    if not functions:
        return logits.new_zeros(0)
    return torch.stack([of(row) for of, row in zip(functions, logits, strict=True)])


def _gather(logits: Tensor, ids: Tensor) -> Tensor:
    """The scores of class ids (R,) or (R, K) in logits (R, classes) or (R,); shape of ``ids``."""
    rows = logits if logits.dim() == 2 else logits.unsqueeze(1)
    return rows.gather(1, ids if ids.dim() == 2 else ids.unsqueeze(1)).reshape(ids.shape)


def name_classes(targets: Targets) -> bool:
    """Whether the targets are class ids, which do not depend on the model's output."""
    chosen = isinstance(targets, (ClassChoice, ModelTarget)) or _is_function(targets)
    if targets is None or chosen:
        return False
    return not isinstance(targets, (list, tuple)) or not any(map(_is_function, targets))


def class_ids(targets: Any, images: int, classes: int, device: torch.device) -> Tensor:
    """Ids (N,) or (N, K) on the device; the range is checked if they come from the CPU."""
    ids = targets if isinstance(targets, Tensor) else _tensor(targets)
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"targets: got values of type {ids.dtype}, expected class ids (integers)")
    ids = ids.expand(images) if ids.dim() == 0 else ids
    if ids.dim() > 2 or ids.shape[0] != images or ids.shape[1:].numel() == 0:
        raise ArgumentError(
            "targets",
            f"got shape {tuple(ids.shape)}, expected ({images},), one class per image, "
            f"or ({images}, K) for K classes per image",
        )
    if ids.dim() == 2 and ids.shape[1] == classes > 2 and _are_one_hot(ids):
        raise ArgumentError(
            "targets",
            f"got one-hot rows of shape {tuple(ids.shape)}, expected class ids; pass "
            "targets.argmax(1)",
        )
    if ids.device.type == "cpu" and ids.numel() and not 0 <= ids.min() <= ids.max() < classes:
        outside = ids[(ids < 0) | (ids >= classes)][0]
        raise ArgumentError("targets", f"got class {outside}, expected 0 to {classes - 1}")
    ids = ids.clone() if ids.is_inference() else ids
    return ids.to(device, torch.int64)


def _are_one_hot(ids: Tensor) -> bool:
    """Whether each row is one-hot; False while a CUDA graph is captured."""
    if ids.numel() == 0 or (ids.is_cuda and torch.cuda.is_current_stream_capturing()):
        return False
    return bool(((ids == 0) | (ids == 1)).all() & (ids.sum(1) == 1).all())


def _tensor(targets: Any) -> Tensor:
    if isinstance(targets, Integral) and not isinstance(targets, bool):
        return torch.tensor(int(targets))
    try:
        array = np.asarray(targets)
    except ValueError:  # rows of different lengths
        array = np.empty(0, dtype=object)
    if array.dtype == object or array.dtype.kind in "USMm":
        raise TypeError(
            f"targets: got {targets!r}, expected class ids (an int, N ints or (N, K)) or functions "
            "of one image's output"
        )
    return torch.from_numpy(array.astype(np.int64) if array.size == 0 else array.copy())
