"""The scores of a batch and of changed copies of its images, for metrics of faithfulness."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from fastcam.engine.capture import Capture, capture
from fastcam.engine.fast.model import folded
from fastcam.engine.inputs import Argument, Inputs
from fastcam.engine.outputs import Output
from fastcam.engine.per_image import PerImage
from fastcam.engine.running import unwrap
from fastcam.errors import ArgumentError, check_positive
from fastcam.metrics.maps import check_floating
from fastcam.targets import Selection, Targets, probabilities, select


class Scorer:
    """A context that scores one class per image, for the images and for changed copies of them.

    It takes one forward of the images; each copy takes another.

    Args:
        model, images, targets, probabilities, output, per_image: as for
            :func:`fastcam.metrics.confidence`.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Inputs,
        targets: Targets = None,
        *,
        probabilities: bool = True,
        output: Output | None = None,
        per_image: PerImage | Collection[Argument] | None = None,
    ) -> None:
        self._probabilities = probabilities
        if not isinstance(per_image, PerImage):
            per_image = PerImage(per_image)
        self._modes = torch.inference_mode(False), torch.no_grad()
        with self:
            self.record: Capture = capture(
                unwrap(model),
                images,
                (),
                output=output,
                graph=None,
                per_image=per_image,
                reruns=True,
            )
            if self.record.images is None or not self.record.images.is_floating_point():
                raise ArgumentError(
                    "images",
                    "this metric masks images, but the model's inputs contain no floating-point "
                    "tensor (N, C, *S)",
                )
            self.images: Tensor = self.record.images
            self._selection: Selection = select(self.record.logits, targets, self.record.extents)
            if self._selection.scores.dim() != 1:
                raise ArgumentError(
                    "targets",
                    f"got {self._selection.scores.shape[1]} classes per image, expected 1",
                )
            self.rows = torch.arange(len(self.record.logits), device=self.images.device)
            self.before = self._confidence(self.record.logits, self.rows)

    def __enter__(self) -> Scorer:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*exception)

    def after(self, images: Tensor) -> Tensor:
        """(N,): the scores of changed images, (N, C, *S)."""
        return self._confidence(self.record.again(self.rows, images), self.rows)

    def of_copies(
        self, rows: Tensor, batch_size: int, changed: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """(R,): the scores of changed copies of the images, ``batch_size`` of them in one run.

        Args:
            rows: (R,), the image that each copy is made from.
            batch_size: the number of copies that run together.
            changed: a function (copies, rows) of some copies r, numbered in ``rows``, and of the
                images that they are made from, both (r,); it returns the copies, (r, C, *S).
        """
        check_positive(batch_size=batch_size)
        if len(rows) == 0:
            return self.before.new_zeros(0)
        record = self.record.for_runs_of(folded)
        copies = torch.arange(len(rows), device=rows.device)
        scores = [
            self._confidence(record.again(rows[some], changed(some, rows[some])), rows[some])
            for some in copies.split(batch_size)
        ]
        return torch.cat(scores)

    def check(self, maps: Tensor) -> None:
        """Raises an error unless there is one map for each image, and of its size."""
        check_floating(maps)
        assert self.record.extents is not None
        expected = (len(self.images), *self.record.extents)
        if tuple(maps.shape) != expected:
            raise ArgumentError(
                "maps",
                f"got shape {tuple(maps.shape)}, expected {expected}, one map per image and "
                "of its size",
            )

    def masked(self, maps: Tensor) -> Tensor:
        """The images times their maps."""
        self.check(maps)
        return self.images * self.record.over_images(maps.to(self.images.dtype))

    def _confidence(self, logits: Tensor, rows: Tensor) -> Tensor:
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if self._probabilities and self._selection.class_ids is not None and logits.dim() == 2:
            logits = probabilities(logits)
        return self._selection.of(logits, rows)


class Explained:
    """A method's maps of a batch, and of changed copies of its images for the same classes.

    Args:
        method: a method that returns one map per image, such as ``fastcam.GradCAM(model)``.
        images, targets, probabilities: as for :func:`fastcam.metrics.confidence`.
        output: the output to score; by default the one that the method explains.
    """

    def __init__(
        self,
        method: Any,
        images: Inputs,
        targets: Targets = None,
        *,
        probabilities: bool = True,
        output: Output | None = None,
    ) -> None:
        self.method = method
        self.maps: Tensor = method(images, targets)
        """(N, *S)."""
        self.targets: Targets = method.class_ids if targets is None else targets
        """The targets; the top classes if none were given."""
        self.scorer = Scorer(
            method.model,
            images,
            self.targets,
            probabilities=probabilities,
            output=method.output if output is None else output,
            per_image=method.per_image,
        )
        self.scorer.check(self.maps)

    def again(self, images: Tensor) -> Tensor:
        """(N, *S): the maps of changed images, (N, C, *S)."""
        with self.scorer:
            inputs = self.scorer.record.inputs(self.scorer.rows, images)
        maps: Tensor = self.method(inputs, self.targets)
        return maps
