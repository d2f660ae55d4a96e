"""What every method shares: how it is called, how the network runs, how maps are finished."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, ClassVar, Literal, TypedDict
from weakref import ReferenceType

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastcam.engine.capture import Capture, capture
from fastcam.engine.graph import Start
from fastcam.engine.held import Held, held_with_graph, let_go
from fastcam.engine.inputs import (
    Argument,
    Inputs,
    rows_of,
)
from fastcam.engine.layers import Layers, find_layer, layer_names
from fastcam.engine.layouts import Layouts, find_layouts
from fastcam.engine.outputs import (
    Output,
    logits_of,
)
from fastcam.engine.per_image import PerImage
from fastcam.engine.recorded_run import Graph
from fastcam.engine.repeats import Repeats
from fastcam.engine.running import Hooks, unwrap
from fastcam.engine.shapes import Reshape
from fastcam.engine.start import find_start
from fastcam.engine.values import tensors_of
from fastcam.methods.explanation import Explanation
from fastcam.targets import (
    Selection,
    Targets,
    look_like_probabilities,
    select,
)

Size = Sequence[int] | Literal["layer"] | None


class Reading(TypedDict, total=False):
    """How a method reads what goes into the model and comes out: see :class:`Method`."""

    reshape: Reshape | None
    output: Output | None
    per_image: Collection[Argument] | None
    run: int | None


class Method:
    """What every method shares: the model, the layers and the last call's answers."""

    name: ClassVar[str]
    takes_layers: ClassVar[bool] = True
    """Whether there are target layers; otherwise the method ends at the images."""
    graph: Graph | None = "layers"
    """What it derives the score by: see :func:`fastcam.engine.capture.capture`."""
    reruns: ClassVar[bool] = False
    """Whether it runs the model again with other images or activations."""
    captures: ClassVar[bool] = False
    """Whether it captures further runs by itself, so that it is no base for another method."""
    twice: bool = False
    """Whether it derives the score twice."""

    def __init__(
        self,
        model: nn.Module,
        target_layers: Layers | None = None,
        *,
        reshape: Reshape | None = None,
        output: Output | None = None,
        per_image: Collection[Argument] | None = None,
        run: int | None = None,
    ) -> None:
        """Nothing is hooked until a call.

        Args:
            model: the classifier; torch.compile, DataParallel and DistributedDataParallel are
                looked through. It runs in evaluation mode and is left as it was found.
            target_layers: a module, a dotted name, or a list of those; None finds the last that
                counts on the first call (see :func:`fastcam.engine.layers.find_layer`).
            reshape: turns a layer's output, and its gradient, into (N, C, *S); needed only where
                token grids and (N, H, W, C) layouts are not recognised.
            output: picks the logits (N, classes) out of what the model returns; by default what
                is called ``logits`` or ``out``, or the only tensor with a row for each image.
            per_image: which inputs have a row for each image beside the images, by position or
                keyword; by default found by runs on single images where inputs have as many rows.
            run: of a layer that runs several times, the index of the run to explain; by default
                the last one, if it depends on all the others.

        Raises:
            ValueError, TypeError: if a layer is not in the model, hooks do not see it, or the
                method has none.
        """
        if not self.takes_layers and (target_layers is not None or reshape is not None):
            raise ValueError(f"target_layers: '{self.name}' has none, it ends at the images")
        for argument, given in (("reshape", reshape), ("output", output)):
            if given is not None and not callable(given):
                raise TypeError(f"{argument}: got {type(given).__name__}, expected a function")
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
        self.model = unwrap(model)
        self.layers = () if target_layers is None else layer_names(self.model, target_layers)
        """The target layers' names; found on the first call where none were given."""
        self.outputs: Any = None
        """What the model returned in the last call, detached."""
        self.class_ids: Tensor | None = None
        """The classes of the last call, (N,) or (N, K); None where targets were functions."""
        self.scores: Tensor | None = None
        """Their scores, in the same shape."""
        self._reshape = reshape
        self._output = output
        self._per_image = PerImage(per_image)
        self._repeats = Repeats(run)
        self._checked = False  # what the first call says of the outputs and the layers
        self._start: Start | None = None  # of the graph, found by the first call
        self._started: list[ReferenceType[Tensor]] = []
        self._turn = threading.RLock()
        self._keeps: bool | None = None  # whether the model keeps tensors; None: not known yet
        self._layouts: dict[Any, Layouts] = {}  # by the shapes of what goes in, None for all

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exception: object) -> None:
        """No hook outlives a call; this lets go of the last outputs."""
        self.outputs = self.class_ids = self.scores = None

    @property
    def is_ready(self) -> bool:
        """Whether the next call has nothing more to find out about the model."""
        return self._checked

    @property
    def networks(self) -> list[nn.Module]:
        """What runs, as far as it is known before a call."""
        return [self.model]

    def capture_scores(
        self, inputs: Inputs, targets: Targets, hooks: Hooks = ()
    ) -> tuple[Capture, Selection]:
        """One run, and the scores that the targets name; on the first call, what looks wrong.

        Args:
            inputs: what goes into the model.
            targets: see :func:`fastcam.targets.select`.
            hooks: further forward hooks, for this run.
        """
        record = self.capture(inputs, hooks)
        selection = select(record.logits, targets)
        if not self._checked:
            self._checked = True
            if look_like_probabilities(record.logits):
                warnings.warn(
                    "the model's outputs look like probabilities, whose gradients vanish where the "
                    "model is sure: explain the logits before softmax or sigmoid instead",
                    stacklevel=3,
                )
            for name, activations in zip(record.layers, record.activations, strict=True):
                if activations.shape[2:].numel() == 1:
                    warnings.warn(
                        f"target_layers: '{name}' has one position, so that its map is constant; "
                        "name a layer before the pooling, or give larger images",
                        stacklevel=3,
                    )
        return record, selection

    def keep(self, explanation: Explanation) -> Any:
        """The maps; the other answers become this object's."""
        self.outputs = explanation.outputs
        self.class_ids, self.scores = explanation.class_ids, explanation.scores
        return explanation.maps

    def capture(self, inputs: Inputs, hooks: Hooks = (), *, exact: bool = False) -> Capture:
        """One run.

        Args:
            inputs: what goes in.
            hooks: further forward hooks, for this run.
            exact: whether it is one of the model itself, with everything recorded.
        """
        layouts = self.find_layouts(inputs)
        model, start = self.model, self.find_start(inputs)
        if exact:
            passing_on = frozenset() if start is None else start.copying
            start = Start("model", passing_on)
        else:
            model, inputs = self.network(inputs)
        # the fused kinds of attention have no second derivative
        with sdpa_kernel(SDPBackend.MATH) if self.twice else nullcontext():
            record = capture(
                model,
                inputs,
                self.layers,
                reshape=self._reshape,
                output=self._output,
                graph=self.graph,
                start=start,
                hooks=hooks,
                per_image=self._per_image,
                repeats=self._repeats,
                layouts=layouts,
                reruns=self.reruns,
            )
        self._started += record.started
        return replace(record, exact=exact)

    def network(self, inputs: Inputs) -> tuple[nn.Module, Inputs]:
        """The network that runs, and its inputs: in the fast mode a copy's."""
        return self.model, inputs

    def find_layouts(self, inputs: Inputs) -> Layouts:
        """Where the layers have channels and positions; found for each size where that differs."""
        shapes = tuple(tensor.shape[1:] for tensor in tensors_of(inputs))
        found = self._layouts.get(None) or self._layouts.get(shapes)
        if found is None:
            pair = self._per_image.pair(self.model, inputs, self._output)
            chosen = self._repeats.chosen
            found = find_layouts(self.model, pair, self.layers, self._output, chosen)
            self._layouts[None if found.fits_all_sizes else shapes] = found
        return found

    def find_layers(self, inputs: Inputs) -> None:
        if self.takes_layers and not self.layers:
            found = find_layer(
                self.model,
                inputs,
                reshape=self._reshape,
                output=self._output,
                per_image=self._per_image,
            )
            self.layers = (found,)

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Around a call: one at a time, recording nothing unasked, leaving no graph behind."""
        with self._turn, torch.inference_mode(False), torch.no_grad():
            given, sizes = self.layers, set(self._layouts)
            before = self._held() if self._keeps is not False else []
            try:
                yield
            except BaseException:
                self._forget(given, sizes)
                raise
            finally:
                if self._keeps is not False:
                    users = {id(each.tensor) for each in before}
                    held = [each for each in self._held() if id(each.tensor) not in users]
                    for each in held:
                        each.let_go()
                    if self._checked:
                        self._keeps = self._keeps or bool(held)
                let_go(self._started)

    def _held(self) -> list[Held]:
        """What the networks keep that has a graph."""
        return [each for model in self.networks for each in held_with_graph(model)]

    def _forget(self, layers: tuple[str, ...], sizes: Collection[Any]) -> None:
        """What a call has found out that failed may be wrong."""
        if self._checked:
            self._layouts = {key: self._layouts[key] for key in sizes}
            return
        self.layers, self._start, self._keeps = layers, None, None
        self._layouts.clear()
        self._per_image.forget()
        self._repeats.forget()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_turn"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _turn=threading.RLock())  # a lock cannot be copied

    def first_image(self, inputs: Inputs) -> Inputs:
        """The inputs for one image."""
        return self._per_image.first(self.model, inputs, self._output)

    def logits_of(self, outputs: Any, inputs: Inputs) -> Tensor:
        """The logits (N, classes) among what the model returned for these inputs."""
        return logits_of(outputs, self._output, rows_of(inputs))

    def find_start(self, inputs: Inputs) -> Start | None:
        """Where the graph starts; found once. None if it does not start at the layers."""
        if self.graph == "layers" and self._start is None:
            first = self.first_image(inputs)
            chosen = self._repeats.chosen
            stepwise = self.find_layouts(inputs).stepwise if chosen is None else None
            self._start = find_start(self.model, first, self.layers, self._output, chosen, stepwise)
        return self._start
