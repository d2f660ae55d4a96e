"""Which of a network's arguments have a row for each image, and which belong to all of them."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

from fastcam.engine.inputs import (
    Argument,
    Inputs,
    arguments,
    has_rows,
    image_argument,
    images_of,
    rows_of,
    select_rows,
    with_images,
)
from fastcam.engine.outputs import Output, logits_of
from fastcam.engine.trials import raise_out_of_memory, trial
from fastcam.engine.values import agree, rebuild
from fastcam.errors import ArgumentError

_MOST_SUBSETS_OF = 4  # arguments: at most 16 runs of one image


class PerImage:
    """Finds the arguments with a row for each image by runs on single images.

    The logits of a single image have to be its row of the batch's logits. Each argument with as
    many rows as there are images is tested once: this distinguishes a mask for each image from
    texts that every image is compared with.

    Args:
        named: the arguments with a row for each image, besides the images; None to find them.
    """

    def __init__(self, named: Collection[Argument] | None = None) -> None:
        self._named = None if named is None else frozenset(named)
        self._found: dict[Argument, bool] = {}
        self._independent: bool | None = None
        self._alone: bool | None = None  # whether the model takes a single image

    def forget(self) -> None:
        """Drops all findings, so that they are made again."""
        self._found.clear()
        self._independent = self._alone = None

    def of(
        self,
        model: nn.Module,
        inputs: Inputs,
        output: Output | None = None,
        logits: Tensor | None = None,
    ) -> frozenset[Argument]:
        """The arguments that have a row for each image, the images included.

        Args:
            model, inputs: the model and its inputs.
            output: as for :func:`fastcam.engine.outputs.logits_of`.
            logits: the model's logits for the inputs, if they are known.

        Raises:
            ValueError: for names that are not among the inputs, or if no choice of arguments gives
                the rows of the batch's logits.
        """
        count, image = rows_of(inputs), image_argument(inputs)
        values = arguments(inputs)
        if self._named is not None and not self._named <= values.keys():
            missing = ", ".join(map(repr, self._named - values.keys()))
            raise ArgumentError(
                "per_image", f"got {missing}, but the inputs are {', '.join(map(repr, values))}"
            )
        if count is None or image is None:
            return frozenset()
        others = [
            name for name, value in values.items() if name != image and has_rows(value, count)
        ]
        if self._named is not None:
            chosen = [name for name in others if name in self._named]
        elif count == 0:
            chosen = others
        else:
            if not self._found.keys() >= set(others):
                found = self._find(model, inputs, output, logits, count, image, others)
                self._found.update((name, name in found) for name in others)
            chosen = [name for name in others if self._found[name]]
        return frozenset((image, *chosen))

    def first(self, model: nn.Module, inputs: Inputs, output: Output | None = None) -> Inputs:
        """A copy of the first image and its rows of other inputs.

        Copies all images if the model fails on a single one.
        """
        count, image = rows_of(inputs), image_argument(inputs)
        if count is None or count < 2 or image is None:
            return rebuild(inputs, Tensor.clone)
        names = self.of(model, inputs, output)
        one = select_rows(inputs, names, count, torch.zeros(1, dtype=torch.int64))
        return rebuild(one if self._takes(model, one) else inputs, Tensor.clone)

    def _takes(self, model: nn.Module, one: Inputs) -> bool:
        """Whether the model runs on a single image; cached."""
        if self._alone is None:
            self._alone = _runs(model, one)
        return self._alone

    def check_rows(self, model: nn.Module, inputs: Inputs, output: Output | None = None) -> None:
        """Checks that images may run together, by runs of an image beside itself and another.

        Raises:
            ValueError: if an image's logits depend on the others in its batch.
        """
        if self._independent is None and self._named is not None:
            self._independent = True  # as the user says
        if self._independent is None:
            one = self.first(model, inputs, output)
            images = images_of(one)
            if self._alone is False:
                self._independent = False
            elif images is None or len(images) != 1:
                self._independent = True
            else:
                twice = select_rows(one, self.of(model, one, output), 1, torch.tensor([0, 0]))
                other = with_images(rebuild(twice, Tensor.clone), _beside_another(images))
                beside_itself = logits_of(trial(model, twice), output, 2).detach()
                beside = logits_of(trial(model, other), output, 2).detach()
                self._independent = agree(beside[:1], beside_itself[:1], None)
        if not self._independent:
            raise ArgumentError(
                "images",
                "the model's output for an image depends on the others in its batch (as "
                "with BatchNorm without running statistics), but this method runs many changed "
                "images; explain one image at a time, with batch_size=1",
            )

    def pair(self, model: nn.Module, inputs: Inputs, output: Output | None = None) -> Inputs:
        """Copies of the first two images, or of the only one twice, and their rows of other inputs.

        Copies all images if the model fails on a single one.
        """
        count, image = rows_of(inputs), image_argument(inputs)
        if count == 0:  # blank ones instead
            return rebuild(
                inputs, lambda t: t if t.dim() == 0 or len(t) else t.new_zeros(2, *t.shape[1:])
            )
        if count is None or image is None:
            return rebuild(inputs, Tensor.clone)
        names = self.of(model, inputs, output)
        one, two = (
            select_rows(inputs, names, count, torch.tensor(rows))
            for rows in ([0], [0, min(1, count - 1)])
        )
        together = count > 1 and not self._takes(model, one)
        return rebuild(inputs if together else two, Tensor.clone)

    @staticmethod
    def _find(
        model: nn.Module,
        inputs: Inputs,
        output: Output | None,
        logits: Tensor | None,
        count: int,
        image: Argument,
        others: list[Argument],
    ) -> Collection[Argument]:
        def answer(given: Inputs, rows: int) -> Tensor:
            # the model may write to its inputs
            outputs = trial(model, rebuild(given, Tensor.clone), ())
            return logits_of(outputs, output, rows).detach()

        expected = answer(inputs, count) if logits is None else logits.detach()
        # the first and the last image; a single image twice
        samples = [[0, 0]] if count == 1 else [[0], [count - 1]]
        candidates = list(_subsets(others))
        for limit in (1e-5, None):  # equal, or else up to the rounding of a whole network
            for chosen in candidates:
                for sample in samples:
                    rows = torch.tensor(sample)
                    try:
                        given = select_rows(inputs, (image, *chosen), count, rows)
                        same = agree(
                            answer(given, len(sample)), expected[rows.to(expected.device)], limit
                        )
                    except Exception as error:  # of a model whose inputs do not fit
                        raise_out_of_memory(error)
                        same = False
                    if not same:
                        break
                else:
                    return chosen
        raise ArgumentError(
            "per_image",
            f"of the inputs {', '.join(map(repr, others))}, which have as many rows as "
            f"there are images ({count}), it is unclear which have a row for each image, because "
            "no choice of them gives a single image its row of the output; name those that do, "
            "or give per_image=[] if none does",
        )


def _runs(model: nn.Module, inputs: Inputs) -> bool:
    try:
        trial(model, rebuild(inputs, Tensor.clone))
    except Exception as error:  # of a model with a fixed number of images
        raise_out_of_memory(error)
        return False
    return True


def _beside_another(images: Tensor) -> Tensor:
    """(1, C, *S) to (2, C, *S): the image, and another one like it."""
    return torch.cat([images, images.flip(-1) * 0.5 if images.is_floating_point() else images])


def _subsets(names: list[Argument]) -> Iterator[tuple[Argument, ...]]:
    """Subsets, the largest first; of many names only those of all, all but one, one, and none."""
    sizes = range(len(names), -1, -1)
    for size in sizes:
        if len(names) <= _MOST_SUBSETS_OF or size in (len(names), len(names) - 1, 1, 0):
            yield from itertools.combinations(names, size)
