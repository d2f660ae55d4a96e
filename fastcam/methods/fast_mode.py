"""The fast mode of a method: a copy of its network, and the whole step as a CUDA graph on a GPU."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from fastcam.engine.fast.cuda_graphs import CudaGraphs
from fastcam.engine.fast.model import FastModel
from fastcam.engine.fast.options import Options
from fastcam.engine.graph import OUTPUT, Start
from fastcam.engine.inputs import Inputs
from fastcam.methods.result import Result
from fastcam.targets import Targets, TopClasses, class_ids, name_classes

if TYPE_CHECKING:
    from fastcam.methods.maps import MapMethod, Wanted


class FastMode:
    """Explains as a method does, with a copy of its network that is prepared for inference.

    Args:
        options: how the copy is prepared.
        cuda_graph: whether to record the whole step on a GPU; True raises an error if it cannot
            be recorded.
        check: whether to compare the first explanation with exact mode.
    """

    def __init__(self, options: Options, cuda_graph: bool | Literal["auto"], check: bool) -> None:
        self._options, self._cuda_graph, self._check = options, cuda_graph, check
        self._copy: FastModel | None = None
        self._graphs: CudaGraphs | None = None
        self._classes = 0  # how many the model has

    def __getstate__(self) -> dict[str, Any]:
        """Without what is compiled, which cannot be pickled and is made again."""
        return {**vars(self), "_copy": None, "_graphs": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> FastMode:
        """With what is compiled."""
        memo[id(self)] = made = object.__new__(type(self))
        vars(made).update(copy.deepcopy(vars(self), memo))
        return made

    @property
    def is_stale(self) -> bool:
        """Whether the next explanation makes the copy, or makes it anew."""
        return self._copy is None or self._copy.is_stale

    @property
    def model(self) -> nn.Module | None:
        """The copy; None before the first explanation."""
        return None if self._copy is None else self._copy.model

    def report(self) -> dict[str, str]:
        """By part of the model, the step that was taken, or the reason why not."""
        if self._copy is None:
            return {}
        graphs = {} if self._graphs is None else {"CUDA graph": self._graphs.state}
        return {**self._copy.report(), **graphs}

    @property
    def start(self) -> Start | None:
        """Where the graph of the copy starts; None before the first explanation."""
        return None if self._copy is None else self._copy.start

    def prepared(self, inputs: Inputs) -> Inputs:
        """The inputs for the copy."""
        return inputs if self._copy is None else self._copy.prepared(inputs)

    def explained(
        self, method: MapMethod, images: Inputs, targets: Targets, wanted: Wanted
    ) -> Result:
        """The method's explanation with the copy, from a CUDA graph if that is possible.

        Raises:
            ValueError: if the model cannot be copied.
            RuntimeError: if the check fails, or a CUDA graph is required and impossible.
        """
        if self.is_stale:
            self._renew(method, images)
            explanation = method.explained(images, targets, wanted)
            logits = method.logits_of(explanation.outputs, images)
            self._classes = logits.shape[1] if logits.dim() == 2 else 1
            if self._check:
                self._check = False
                with method.exactly():
                    exact = method.explained(images, targets, wanted)
                expected = method.logits_of(exact.outputs, images)
                _compare(explanation.maps, exact.maps, logits, expected)
            return explanation
        if self._graphs is None:
            return method.explained(images, targets, wanted)
        if name_classes(targets):
            ids = class_ids(targets, len(images), self._classes, images.device)
            step = lambda i, c: method.explained(i, c, wanted)  # noqa: E731
            return self._graphs(step, images, ids, wanted)
        if targets is None or isinstance(targets, TopClasses):
            step = lambda i, _: method.explained(i, targets, wanted)  # noqa: E731
            return self._graphs(step, images, None, (wanted, targets))
        return method.explained(images, targets, wanted)  # functions run on the host

    def _renew(self, method: MapMethod, images: Inputs) -> None:
        """Makes the copy from the first image, and drops the graphs of an older copy."""
        on_gpu = isinstance(images, Tensor) and images.is_cuda
        if self._cuda_graph is True and not on_gpu:
            raise RuntimeError("cuda_graph: got True, but the images are not a tensor on a GPU")
        start = method.find_start(images)
        first = method.first_image(images)
        last = method.last_run_counts(images)
        self._copy = FastModel(
            method.model, first, method.layers, self._options, start or OUTPUT, last
        )
        if self._copy.start.skipped:
            with method.exactly():
                method.capture(first)  # checks that the last runs may count
        wanted = on_gpu and self._cuda_graph
        self._graphs = CudaGraphs(self._cuda_graph is True) if wanted else None


def _compare(maps: Any, expected: Any, logits: Tensor, exactly: Tensor) -> None:
    """Raises RuntimeError if the maps or top classes differ from those of exact mode."""
    correlation = _correlation(maps, expected)
    same = (logits.argmax(-1) == exactly.argmax(-1)).float().mean()
    if not (correlation >= 0.99 and same >= 0.99):
        raise RuntimeError(
            f"compile(check=True): the maps correlate with those of exact mode by "
            f"{correlation:.3f}, expected 0.99, and {same:.1%} of the top classes are the same"
            ", expected 99 %; choose a higher precision as dtype"
        )


def _correlation(maps: Any, expected: Any) -> float:
    """Pearson's correlation, the mean over images and layers; 1 for constant maps."""
    if isinstance(maps, list):
        pairs = zip(maps, expected, strict=True)
        return sum(_correlation(m, e) for m, e in pairs) / len(maps)
    rows = [each.reshape(each.shape[0], -1).double() for each in (maps, expected)]
    deviations = [each - each.mean(1, keepdim=True) for each in rows]
    lengths = [each.norm(dim=1) for each in deviations]
    product = (deviations[0] * deviations[1]).sum(1)
    constant = (lengths[0] == 0) & (lengths[1] == 0)
    return float(
        torch.where(constant, 1.0, product / (lengths[0] * lengths[1])).nan_to_num().mean()
    )
