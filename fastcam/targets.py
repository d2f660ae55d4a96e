"""What to explain: class ids, or functions of the output, turned into scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor


class ClassChoice(ABC):
    """As targets: classes that are chosen by the logits of the forward that explains."""

    @abstractmethod
    def ids(self, logits: Tensor) -> Tensor:
        """(N, K), for logits (N, classes); asked once for every forward."""


@dataclass(frozen=True)
class TopClasses(ClassChoice):
    """As targets: each image's classes of the highest scores, ranked by the forward that explains.

    Args:
        count: K, how many classes an image; all where the model has fewer.
        first: a class to put in front of the others, whatever its score.
    """

    count: int
    first: int | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"targets: got a count of {self.count}, expected at least 1")

    def ids(self, logits: Tensor) -> Tensor:
        """(N, K), for logits (N, classes)."""
        classes = logits.shape[1]
        if self.first is not None:
            if not 0 <= self.first < classes:
                raise ValueError(f"targets: got class {self.first}, expected 0 to {classes - 1}")
            front = torch.full((1,), self.first, device=logits.device)
            logits = logits.index_fill(1, front, torch.inf)
        return logits.topk(min(self.count, classes)).indices


Target = Callable[[Tensor], Tensor]
Targets = (
    int
    | Sequence[int]
    | Tensor
    | np.ndarray[Any, Any]
    | ClassChoice
    | Target
    | Sequence[Target]
    | None
)


@dataclass(frozen=True)
class Selection:
    """The scores to explain."""

    scores: Tensor
    """(N,) or (N, K), with their graph."""
    class_ids: Tensor | None
    """The shape of ``scores``; None where the targets were functions."""
    functions: list[Target] | None = None
    """One an image; None where the targets were class ids."""

    def by_class(self, results_of: Callable[[Tensor, bool], list[Tensor]]) -> list[Tensor]:
        """Tensors (N, ...) computed class by class, stacked to (N, K, ...) for scores (N, K).

        Args:
            results_of: gives tensors (N, ...) from the scores (N,) of one class per image, which
                have their graph, and from whether that graph is needed again.
        """
        with torch.enable_grad():
            columns = [self.scores] if self.scores.dim() == 1 else list(self.scores.unbind(1))
        found = [results_of(scores, k < len(columns)) for k, scores in enumerate(columns, start=1)]
        if self.scores.dim() == 1:
            return found[0]
        return [torch.stack(each, 1) for each in zip(*found, strict=True)]

    def of(self, logits: Tensor, images: Tensor) -> Tensor:
        """The same scores of other logits, (R,) or (R, K).

        Args:
            logits: (R, ...), of any number of rows.
            images: (R,), the image whose classes a row has.
        """
        if self.functions is not None:
            return _apply([self.functions[image] for image in images.tolist()], logits)
        assert self.class_ids is not None
        return _gather(logits, self.class_ids[images])


def select(logits: Tensor, targets: Targets = None) -> Selection:
    """The scores that the targets name.

    Args:
        logits: (N, classes), or (N,) or (N, 1) for a single logit, which is class 0. Other shapes
            need a function.
        targets: an int for every image; a list, array or 1-D tensor of N ints; (N, K) ids of K
            classes an image (no one-hot rows), or :class:`TopClasses`; a function from one image's
            logits to a scalar, or N of them; None for the top class. Ids on a GPU are not checked
            against the range, for that would wait for it.

    Raises:
        ValueError, TypeError: if the targets do not fit the logits.
    """
    with torch.enable_grad():
        functions = _functions(targets, logits.shape[0])
        if functions is not None:
            return Selection(_apply(functions, logits), None, functions)
        if logits.dim() > 2:
            raise ValueError(
                f"targets: for an output of shape {tuple(logits.shape)} a class is no single "
                "score; give a function from one image's output to a scalar"
            )
        rows = logits if logits.dim() == 2 else logits.unsqueeze(1)
        if targets is None:
            ids = rows.argmax(1)
        elif isinstance(targets, ClassChoice):
            ids = targets.ids(rows.detach())
        else:
            ids = class_ids(targets, rows.shape[0], rows.shape[1], rows.device)
        return Selection(_gather(logits, ids), ids)


def look_like_probabilities(logits: Tensor) -> bool:
    """Whether softmax or sigmoid came last, or every row is positive and sums to 1."""
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


def _functions(targets: Any, images: int) -> list[Target] | None:
    """One function an image, None where the targets are no functions."""
    if callable(targets):
        return [targets] * images
    if not isinstance(targets, (list, tuple)) or not any(map(callable, targets)):
        return None
    if len(targets) != images or not all(map(callable, targets)):
        raise ValueError(
            f"targets: got a list of {len(targets)}, expected {images} functions, one an image"
        )
    return list(targets)


def _apply(functions: list[Target], logits: Tensor) -> Tensor:
    if not functions:
        return logits.new_zeros(0)
    scores = []
    for function, row in zip(functions, logits, strict=True):
        score = function(row)
        if not isinstance(score, Tensor) or score.numel() != 1:
            came = tuple(score.shape) if isinstance(score, Tensor) else type(score).__name__
            raise ValueError(f"targets: a function gave {came}, expected a tensor with one value")
        scores.append(score.reshape(()))
    return torch.stack(scores)


def _gather(logits: Tensor, ids: Tensor) -> Tensor:
    """The scores of classes (R,) or (R, K) in logits (R, classes) or (R,), in the ids' shape."""
    rows = logits if logits.dim() == 2 else logits.unsqueeze(1)
    return rows.gather(1, ids if ids.dim() == 2 else ids.unsqueeze(1)).reshape(ids.shape)


def name_classes(targets: Targets) -> bool:
    """Whether the targets are class ids, which no answer of the model changes."""
    if targets is None or isinstance(targets, ClassChoice) or callable(targets):
        return False
    return not isinstance(targets, (list, tuple)) or not any(map(callable, targets))


def class_ids(targets: Any, images: int, classes: int, device: torch.device) -> Tensor:
    """Ids (N,) or (N, K) on the device, checked as far as the host knows them."""
    ids = targets if isinstance(targets, Tensor) else _tensor(targets)
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"targets: got values of type {ids.dtype}, expected class ids (integers)")
    ids = ids.expand(images) if ids.dim() == 0 else ids
    if ids.dim() > 2 or ids.shape[0] != images or ids.shape[1:].numel() == 0:
        raise ValueError(
            f"targets: got shape {tuple(ids.shape)}, expected ({images},), one class an image, "
            f"or ({images}, K) for K classes an image"
        )
    if ids.dim() == 2 and ids.shape[1] == classes > 2 and _are_one_hot(ids):
        raise ValueError(
            f"targets: got one-hot rows, {tuple(ids.shape)}, expected class ids; give "
            "targets.argmax(1)"
        )
    if ids.device.type == "cpu" and ids.numel() and not 0 <= ids.min() <= ids.max() < classes:
        outside = ids[(ids < 0) | (ids >= classes)][0]
        raise ValueError(f"targets: got class {outside}, expected 0 to {classes - 1}")
    ids = ids.clone() if ids.is_inference() else ids
    return ids.to(device, torch.int64)


def _are_one_hot(ids: Tensor) -> bool:
    """Whether each row has a single 1 and else 0; not asked of a GPU that is recording."""
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
