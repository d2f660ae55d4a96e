"""The base class of all methods: the model, its layers, and how the network runs."""

from __future__ import annotations

import threading
import traceback
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, ClassVar, Literal, TypedDict, TypeGuard
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
from fastcam.engine.layers import Layers, find_layer, find_levels, layer_names
from fastcam.engine.layouts import Layouts, find_layouts
from fastcam.engine.outputs import (
    Output,
    logits_of,
)
from fastcam.engine.per_image import PerImage
from fastcam.engine.recorded_run import Graph
from fastcam.engine.repeats import Repeats
from fastcam.engine.running import Hooks, Loan, unwrap
from fastcam.engine.shapes import Reshape
from fastcam.engine.start import find_start
from fastcam.engine.trials import raise_out_of_memory
from fastcam.engine.values import tensors_of
from fastcam.errors import ArgumentError, first_line
from fastcam.methods.result import Result
from fastcam.targets import (
    ModelTarget,
    Selection,
    Targets,
    Watch,
    look_like_probabilities,
    select,
    watched,
)

Size = Sequence[int] | Literal["layer"] | None


class Reading(TypedDict, total=False):
    """How a method reads the model's inputs and outputs: see :class:`Method`."""

    reshape: Reshape | None
    output: Output | None
    per_image: Collection[Argument] | None
    run: int | None


class Method:
    """The base class of all methods: holds the model, the layers and the last call's results."""

    name: ClassVar[str]
    takes_layers: ClassVar[bool] = True
    """Whether there are target layers; otherwise the method ends at the images."""
    graph: Graph | None = "layers"
    """Where the graph of its first run starts: see :func:`fastcam.engine.capture.capture`."""
    signed: ClassVar[bool] = False
    """Whether the maps are signed gradients of each of the images' channels."""
    reruns: bool = False
    """Whether it runs the model again with other images or activations."""
    captures: ClassVar[bool] = False
    """Whether it captures further runs itself, and so cannot be the base of another method."""
    twice: bool = False
    """Whether it needs second derivatives of the score."""

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
        """Registers no hook until a call.

        Args:
            model: the classifier, possibly wrapped in torch.compile, DataParallel or
                DistributedDataParallel. It runs in evaluation mode; its state is restored.
            target_layers: a module, a dotted name, or a list of those; if None, the first call
                chooses a layer (see :func:`fastcam.engine.layers.find_layer`).
            reshape: turns a layer's output, and its gradient, into (N, C, *S); needed only if
                the layout, such as a token grid or (N, H, W, C), is not recognised.
            output: picks the logits (N, classes) from the model's outputs; by default the entry
                ``logits`` or ``out``, or the only tensor with a row for each image.
            per_image: which inputs besides the images have a row for each image, by position or
                keyword; by default, inputs with as many rows are tested by runs on single images.
            run: the index of the run to explain, for a layer that runs several times; by default
                the last one, if it depends on all the others.

        Raises:
            ValueError, TypeError: if a layer is not in the model or hidden from hooks, or the
                method takes no layers.
        """
        if not self.takes_layers and (target_layers is not None or reshape is not None):
            raise ArgumentError("target_layers", f"'{self.name}' has none, it ends at the images")
        for argument, given in (("reshape", reshape), ("output", output)):
            if given is not None and not callable(given):
                raise TypeError(f"{argument}: got {type(given).__name__}, expected a function")
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
        self.model = unwrap(model)
        self.reading: Reading = {
            "reshape": reshape,
            "output": output,
            "per_image": per_image,
            "run": run,
        }
        """The arguments of these names."""
        self.layers = () if target_layers is None else layer_names(self.model, target_layers)
        """The target layers' names; found on the first call if none were given."""
        self.outputs: Any = None
        """The model's outputs in the last call, detached."""
        self.class_ids: Tensor | None = None
        """The classes of the last call, (N,) or (N, K); None if the targets were functions."""
        self.scores: Tensor | None = None
        """Their scores, in the same shape."""
        self.output = output
        """The argument of that name: picks the logits from the model's outputs."""
        self.per_image = PerImage(per_image)
        """Which inputs besides the images have a row for each image, as far as it is known."""
        self._reshape = reshape
        self._repeats = Repeats(run)
        self._checked = False  # whether a call has checked the outputs and the layers
        self._start: Start | None = None  # of the graph, found by the first call
        self._started: list[ReferenceType[Tensor]] = []
        self._watch: Watch | None = None  # of the targets, during a call
        self._levels: tuple[str, ...] = ()  # layers that were found as those of a pyramid
        self._turn = threading.RLock()
        self._keeps: bool | None = None  # whether the model keeps tensors; None: not known yet
        self._layouts: dict[Any, Layouts] = {}  # by the inputs' shapes; None for all shapes

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exception: object) -> None:
        """Drops the last results; hooks were removed after each call."""
        self.outputs = self.class_ids = self.scores = None

    @property
    def is_ready(self) -> bool:
        """Whether the next call needs no further preparation."""
        return self._checked

    @property
    def differentiates(self) -> bool:
        """Whether it uses gradients at the layers, in its first run or in later ones."""
        return self.graph == "layers"

    @property
    def networks(self) -> list[nn.Module]:
        """The networks that run, as far as they are known before a call."""
        return [self.model]

    def capture_scores(
        self, inputs: Inputs, targets: Targets, hooks: Hooks = ()
    ) -> tuple[Capture, Selection]:
        """One run, and the scores that the targets name; warns about problems on the first call.

        Args:
            inputs: the model's inputs.
            targets: see :func:`fastcam.targets.select`.
            hooks: further forward hooks, for this run.
        """
        if isinstance(targets, ModelTarget):
            raise self._needs_maps(targets)
        record = self.capture(inputs, hooks)
        selection = select(record.logits, targets, record.extents)
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

    def keep(self, result: Result) -> Any:
        """Stores the other results in this object's attributes, and returns the maps."""
        self.outputs = result.outputs
        self.class_ids, self.scores = result.class_ids, result.scores
        return result.maps

    def capture(
        self,
        inputs: Inputs,
        hooks: Hooks = (),
        *,
        exact: bool = False,
        gradients: bool = False,
    ) -> Capture:
        """One run.

        Args:
            inputs: the model's inputs.
            hooks: further forward hooks, for this run.
            exact: whether to run the model itself, with autograd recording all of it.
            gradients: whether to record from the layers up, even if :attr:`graph` is None.
        """
        graph = "layers" if gradients else self.graph
        layouts = self.find_layouts(inputs)
        model, start = self.model, self.find_start(inputs)
        if exact:
            passing_on = frozenset() if start is None else start.copying
            start = Start("model", passing_on)
        else:
            model, inputs = self.network(inputs)
        # (N, C, H, W), whatever their extents look like
        are_levels = self.layers == self._levels != ()
        # fused attention has no second derivative
        with sdpa_kernel(SDPBackend.MATH) if self.twice else nullcontext():
            record = capture(
                model,
                inputs,
                self.layers,
                reshape=_unchanged if are_levels else self._reshape,
                output=self.output,
                graph=graph,
                start=start,
                hooks=hooks,
                per_image=self.per_image,
                repeats=self._repeats,
                layouts=layouts,
                reruns=self.reruns,
            )
        self._started += record.started
        return replace(record, exact=exact)

    def network(self, inputs: Inputs) -> tuple[nn.Module, Inputs]:
        """The network that runs, and its inputs; in the fast mode a copy and its inputs."""
        return self.model, inputs

    def find_layouts(self, inputs: Inputs) -> Layouts:
        """Which axes of the layers are channels and positions; cached, by size if they differ."""
        shapes = tuple(tensor.shape[1:] for tensor in tensors_of(inputs))
        found = self._layouts.get(None) or self._layouts.get(shapes)
        if found is None:
            pair = self.per_image.pair(self.model, inputs, self.output)
            chosen = self._repeats.chosen
            found = find_layouts(self.model, pair, self.layers, self.output, chosen)
            self._layouts[None if found.fits_all_sizes else shapes] = found
        return found

    def find_layers(self, inputs: Inputs) -> None:
        if not self.takes_layers or self.layers:
            return
        if self._watch is not None and self.output is not None:
            watch, output = self._watch, self.output
            one = self.per_image.first(self.model, inputs, output)
            self.layers = find_levels(self.model, one, lambda: watch.levels, output)
            self._levels = () if self._reshape else self.layers
            return
        found = find_layer(
            self.model,
            inputs,
            reshape=self._reshape,
            output=self.output,
            per_image=self.per_image,
        )
        self.layers = (found,)

    @contextmanager
    def watching(self, inputs: Inputs, targets: Targets) -> Iterator[Targets]:
        """Within the context, runs give the scores of targets that come from inside of the model.

        Yields:
            The targets for these scores; other targets as they are.

        Raises:
            ValueError: if the method cannot explain such targets.
        """
        target, rest = watched(targets)
        if target is None:
            yield targets
            return
        if self.reruns or self.captures or not self.takes_layers:
            raise self._needs_maps(target)
        kind = type(target).__name__
        if self.output is not None:
            raise ArgumentError("output", f"got a function, but {kind} picks the scores itself")
        images = rows_of(inputs)
        self._watch = target.watch(self.model, 0 if images is None else images)
        self.output = self._watch.scores
        try:
            with Loan(self._watch.hooks):
                yield rest
        finally:
            self._watch = self.output = None

    def _needs_maps(self, target: ModelTarget) -> ArgumentError:
        return ArgumentError(
            "targets",
            f"{type(target).__name__} needs a method that returns maps of one run, but "
            f"'{self.name}' is none; take GradCAM, HiResCAM or LayerCAM",
        )

    @contextmanager
    def calling(self, inputs: Inputs) -> Iterator[None]:
        """The context of a call: one call at a time, no grad by default, no graph kept after it.

        Raises:
            TypeError: if the model fails on inputs without a tensor, such as a picture.
            ValueError: if it fails on what may be one picture without the axis of images.
        """
        with self._turn, torch.inference_mode(False), torch.no_grad():
            given, sizes = self.layers, set(self._layouts)
            before = self._held() if self._keeps is not False else []
            try:
                yield
            except BaseException as error:
                self._forget(given, sizes)
                if _may_be_one_picture(inputs) and _is_from_outside(error):
                    raise_out_of_memory(error)
                    raise ArgumentError(
                        "images",
                        f"got shape {tuple(inputs.shape)}, on which the model fails "
                        f"({first_line(error)}); if this is one picture (C, H, W), give it as "
                        "images[None]",
                    ) from error
                if isinstance(error, (TypeError, AttributeError)) and not tensors_of(inputs):
                    raise TypeError(
                        f"images: got {type(inputs).__name__}, which the model does not take "
                        f"({first_line(error)}); expected its inputs, such as a tensor "
                        "(N, C, H, W); fastcam.explain also takes pictures"
                    ) from error
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
        """The tensors that the networks keep and that have a graph."""
        return [each for model in self.networks for each in held_with_graph(model)]

    def _forget(self, layers: tuple[str, ...], sizes: Collection[Any]) -> None:
        """Drops the findings of a failed call, which may be wrong."""
        if self._checked:
            self._layouts = {key: self._layouts[key] for key in sizes}
            return
        self.layers, self._start, self._keeps = layers, None, None
        self._layouts.clear()
        self.per_image.forget()
        self._repeats.forget()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_turn"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _turn=threading.RLock())  # a lock cannot be copied

    def first_image(self, inputs: Inputs) -> Inputs:
        """The inputs for one image."""
        return self.per_image.first(self.model, inputs, self.output)

    def logits_of(self, outputs: Any, inputs: Inputs) -> Tensor:
        """The logits (N, classes) from the model's outputs for these inputs."""
        return logits_of(outputs, self.output, rows_of(inputs))

    def last_run_counts(self, inputs: Inputs) -> bool:
        """Whether the last run counts of layers that run several times, and that alone."""
        return self._repeats.chosen is None and not self.find_layouts(inputs).stepwise

    def find_start(self, inputs: Inputs) -> Start | None:
        """Where the graph starts; found once. None if it does not start at the layers."""
        if self.differentiates and self._start is None:
            first = self.first_image(inputs)
            chosen = self._repeats.chosen
            stepwise = self.find_layouts(inputs).stepwise if chosen is None else None
            self._start = find_start(self.model, first, self.layers, self.output, chosen, stepwise)
        return self._start


def _may_be_one_picture(inputs: Inputs) -> TypeGuard[Tensor]:
    """Whether these are (C, H, W) with the channels of a picture."""
    return isinstance(inputs, Tensor) and inputs.dim() == 3 and len(inputs) in (1, 3, 4)


def _is_from_outside(error: BaseException) -> TypeGuard[Exception]:
    """Whether the model, or what it calls, raised it."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    raiser = frame.f_globals.get("__name__", "")
    return isinstance(error, (RuntimeError, ValueError)) and not raiser.startswith("fastcam.")


def _unchanged(activations: Tensor) -> Tensor:
    return activations
