"""What every method shares: how it is called, how the network runs, how maps are finished."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypedDict
from weakref import ReferenceType

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastcam import ops
from fastcam.engine.capture import Capture, capture
from fastcam.engine.fast.cuda_graphs import CudaGraphs
from fastcam.engine.fast.model import FastModel
from fastcam.engine.fast.options import Options, is_emulated
from fastcam.engine.graph import OUTPUT, Start
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
from fastcam.methods.verification import Verification, verify
from fastcam.targets import (
    Selection,
    Targets,
    TopClasses,
    class_ids,
    look_like_probabilities,
    name_classes,
    select,
)

Size = Sequence[int] | Literal["layer"] | None
_Answer = tuple[Any, Any, Tensor | None, Tensor | None]
"""Maps, outputs, class ids and scores."""
_Step = Callable[[Any, Any], _Answer]
"""What a call does with images and targets."""


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

    def _run(
        self, inputs: Inputs, targets: Targets, hooks: Hooks = ()
    ) -> tuple[Capture, Selection]:
        record = self._record(inputs, hooks)
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
        self.outputs = record.outputs
        self.class_ids, self.scores = selection.class_ids, selection.scores.detach()
        return record, selection

    def _record(self, inputs: Inputs, hooks: Hooks = (), *, exact: bool = False) -> Capture:
        """One run.

        Args:
            inputs: what goes in.
            hooks: further forward hooks, for this run.
            exact: whether it is one of the model itself, with everything recorded.
        """
        layouts = self._find_layouts(inputs)
        self._find_start(inputs)
        model, start = self.model, self._start
        if exact:
            passing_on = frozenset() if start is None else start.copying
            start = Start("model", passing_on)
        else:
            model, inputs = self._network(inputs)
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

    def _network(self, inputs: Inputs) -> tuple[nn.Module, Inputs]:
        """What to run, and on what."""
        return self.model, inputs

    def _find_layouts(self, inputs: Inputs) -> Layouts:
        """Where the layers have channels and positions; found for each size where that differs."""
        shapes = tuple(tensor.shape[1:] for tensor in tensors_of(inputs))
        found = self._layouts.get(None) or self._layouts.get(shapes)
        if found is None:
            pair = self._per_image.pair(self.model, inputs, self._output)
            chosen = self._repeats.chosen
            found = find_layouts(self.model, pair, self.layers, self._output, chosen)
            self._layouts[None if found.fits_all_sizes else shapes] = found
        return found

    def _find_layers(self, inputs: Inputs) -> None:
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
    def _calling(self) -> Iterator[None]:
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

    def _find_start(self, inputs: Inputs) -> None:
        if self.graph == "layers" and self._start is None:
            first = self._per_image.first(self.model, inputs, self._output)
            chosen = self._repeats.chosen
            stepwise = self._find_layouts(inputs).stepwise if chosen is None else None
            self._start = find_start(self.model, first, self.layers, self._output, chosen, stepwise)


@dataclass
class _FastMode:
    """What :meth:`MapMethod.compile` asked for, and what came of it."""

    options: Options
    cuda_graph: bool | Literal["auto"]
    check: bool
    copy: FastModel | None = None
    graphs: CudaGraphs | None = None
    classes: int = 0
    """How many the model has."""

    @property
    def is_stale(self) -> bool:
        """Whether the copy is still to be made, or to be made anew."""
        return self.copy is None or self.copy.is_stale

    def renew(
        self,
        model: nn.Module,
        images: Inputs,
        first: Inputs,
        layers: Sequence[str],
        start: Start | None,
    ) -> None:
        """Makes the copy, by the first of the images; graphs of an older one go."""
        on_gpu = isinstance(images, Tensor) and images.is_cuda
        if self.cuda_graph is True and not on_gpu:
            raise RuntimeError("cuda_graph: got True, but the images are no tensor on a GPU")
        self.copy = FastModel(model, first, layers, self.options, start or OUTPUT)
        self.graphs = CudaGraphs(self.cuda_graph is True) if on_gpu and self.cuda_graph else None

    def report(self) -> dict[str, str]:
        if self.copy is None:
            return {}
        graphs = {} if self.graphs is None else {"CUDA graph": self.graphs.state}
        return {**self.copy.report(), **graphs}


class MapMethod(Method):
    """A method that gives one map an image and class."""

    relu: bool = True

    _fast: _FastMode | None = None  # None: exact mode
    _looked = False  # at the maps, for being constant

    def compile(
        self,
        *,
        dtype: torch.dtype | None = None,
        channels_last: bool = True,
        fold_batchnorm: bool = True,
        cuda_graph: bool | Literal["auto"] = "auto",
        check: bool = False,
    ) -> None:
        """From the next call on, takes the fast mode: a copy of the model, prepared for inference.

        Below the first target layer BatchNorm is folded into convolutions and the network compiled
        by torch.compile, for each shape, which takes from seconds to a minute; batches of one size
        are best, and a shorter last one is filled up to it. From the layer up, gradients included,
        the copy computes as the model does. The model itself stays as it is; if its parameters,
        attributes or modules change, the next call makes a new copy. PyTorch does not count what is
        written through ``.data``: on a GPU, call this again after it. :attr:`compiled` tells what
        was done.

        Args:
            dtype: the precision below the layer, float32, bfloat16 or float16; None for the
                model's own.
            channels_last: whether channels lie next to each other in memory, as most devices like.
            fold_batchnorm: whether to fold BatchNorm.
            cuda_graph: whether on a GPU the whole step, maps included, is recorded and replayed;
                "auto" where it can be, True that an error says where it cannot.
            check: whether the first call compares with exact mode: the maps have to correlate by
                0.99 in the mean, and 99 % of the top classes to be the same.

        Raises:
            ValueError: for another dtype; in a later call, where the model cannot be copied.
            RuntimeError: in a later call, where ``check`` or ``cuda_graph=True`` fails.

        Warns:
            UserWarning: the processor has no instructions for ``dtype``.
        """
        options = Options(dtype, channels_last, fold_batchnorm)
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        if is_emulated(dtype, device):
            warnings.warn(
                f"dtype: this processor has no instructions for {dtype}; None takes less time",
                stacklevel=2,
            )
        self._fast = _FastMode(options, cuda_graph, check)

    @property
    def is_ready(self) -> bool:
        return super().is_ready and (self._fast is None or not self._fast.is_stale)

    @property
    def networks(self) -> list[nn.Module]:
        own = super().networks
        fast = self._fast
        return own if fast is None or fast.copy is None else [*own, fast.copy.model]

    @property
    def compiled(self) -> dict[str, str]:
        """By part of the model, what the fast mode made of it, or why not; empty before a call."""
        return {} if self._fast is None else self._fast.report()

    def __call__(
        self,
        images: Inputs,
        targets: Targets = None,
        *,
        size: Size = None,
        normalize: bool = True,
        relu: bool | None = None,
    ) -> Any:
        """Maps; ``outputs``, ``class_ids`` and ``scores`` come from the same forward.

        Args:
            images: (N, C, *S), or what else the model takes: a tuple of positional arguments, a
                list as one argument, a mapping by keyword. The images are the first tensor with
                positions there, or a list of pictures (C, H, W) of one size.
            targets: see :func:`fastcam.targets.select`; None for the top class.
            size: the maps' extents, by default those of the images; "layer" for the layer's own.
            normalize: whether each map is brought to [0, 1], a constant one to 0.
            relu: whether negative values become 0; by default what the method's paper does.

        Returns:
            (N, *size) float32 on the images' device (float64 for a float64 model), or (N, K, *size)
            for targets (N, K). Several layers: each map normalized at its layer's resolution, then
            enlarged, and their mean normalized again; a list with one tensor a layer where
            ``size="layer"`` or not ``normalize``.

        Raises:
            ValueError, TypeError: if layers, targets or sizes do not fit the model and the images.
        """
        with self._calling():
            self._find_layers(images)
            rectify = self.relu if relu is None else relu

            def step(images: Inputs, targets: Targets) -> _Answer:
                record, selection = self._run(images, targets)
                with torch.autocast(record.logits.device.type, enabled=False):
                    maps = self._finished(record, selection, rectify, size, normalize)
                    self._look(maps, record, rectify)
                return maps, self.outputs, self.class_ids, self.scores

            if self._fast is None:
                answer = step(images, targets)
            else:
                extents = tuple(size) if isinstance(size, Sequence) else size  # hashable
                options = extents, normalize, relu
                answer = self._fast_answer(self._fast, step, images, targets, options)
            maps, self.outputs, self.class_ids, self.scores = answer
            return maps

    def verify(self, images: Inputs, targets: Targets = None) -> Verification:
        """Compares this method, as it is set up, with the network itself.

        The network runs once more without a copy and with everything recorded, as autograd does in
        training, in its own precision; for a method without gradients no run is taken from a
        recording or a copy. Worth a call for an unusual network.

        Args:
            images, targets: as for a call.

        Returns:
            The errors, to rounding 0 for exact mode.

        Raises:
            ValueError: if the whole graph has no answer: the score does not depend on a layer.
        """
        return verify(self, images, targets)

    def _network(self, inputs: Inputs) -> tuple[nn.Module, Inputs]:
        if self._fast is None or self._fast.copy is None:
            return super()._network(inputs)
        return self._fast.copy.model, self._fast.copy.prepared(inputs)

    def _fast_answer(
        self, fast: _FastMode, step: _Step, images: Inputs, targets: Targets, options: Any
    ) -> _Answer:
        """``step`` with the model's copy, from a CUDA graph where that is wanted and possible."""
        if fast.is_stale:
            self._find_start(images)
            first = self._per_image.first(self.model, images, self._output)
            fast.renew(self.model, images, first, self.layers, self._start)
            answer = step(images, targets)
            logits = logits_of(answer[1], self._output, rows_of(images))
            fast.classes = logits.shape[1] if logits.dim() == 2 else 1
            if fast.check:
                fast.check = False
                self._compare(answer, logits, step, images, targets)
            return answer
        if fast.graphs is None:
            return step(images, targets)
        if name_classes(targets):
            ids = class_ids(targets, len(images), fast.classes, images.device)
            return fast.graphs(step, images, ids, options)
        if targets is None or isinstance(targets, TopClasses):
            return fast.graphs(lambda i, _: step(i, targets), images, None, (options, targets))
        return step(images, targets)  # the host has a say in what is explained

    def _compare(
        self, answer: _Answer, logits: Tensor, step: _Step, images: Inputs, targets: Targets
    ) -> None:
        """Raises RuntimeError where the fast mode's answer is not that of exact mode."""
        fast, self._fast = self._fast, None
        try:
            exact = step(images, targets)
        finally:
            self._fast = fast
        correlation = _correlation(answer[0], exact[0])
        exactly = logits_of(exact[1], self._output, rows_of(images))
        same = (logits.argmax(-1) == exactly.argmax(-1)).float().mean()
        if not (correlation >= 0.99 and same >= 0.99):
            raise RuntimeError(
                f"compile(check=True): the maps correlate with those of exact mode by "
                f"{correlation:.3f}, expected 0.99, and {same:.1%} of the top classes are the same"
                ", expected 99 %; choose a higher precision as dtype"
            )

    def _finished(
        self, record: Capture, selection: Selection, relu: bool, size: Size, normalize: bool
    ) -> Any:
        """What the call returns."""
        maps = self._maps(record, selection, relu)
        if size != "layer":
            return self._joined(maps, extents_of(record, size), normalize)
        if normalize:
            dims = [activations.dim() - 2 for activations in record.activations]
            maps = [ops.normalize(m, d) for m, d in zip(maps, dims, strict=True)]
        return maps[0] if len(maps) == 1 else maps

    def _joined(self, maps: list[Tensor], extents: tuple[int, ...], normalize: bool) -> Any:
        """Enlargement, then min-max; of several layers the mean (:func:`mean_of_layers`)."""
        if normalize and len(maps) > 1:
            return mean_of_layers(maps, extents)
        maps = [ops.upsample(m, extents, normalize) for m in maps]
        return maps[0] if len(maps) == 1 else maps

    def _look(self, maps: Any, record: Capture, relu: bool) -> None:
        """Warns if all maps of the first call are constant; later calls do not wait for theirs."""
        if self._looked:
            return
        self._looked = True
        dims = min(activations.dim() for activations in record.activations) - 2
        every = [each.flatten(-dims) for each in (maps if isinstance(maps, list) else [maps])]
        if (
            not any(each.numel() for each in every)
            # one position has had its warning
            or any(activations.shape[2:].numel() == 1 for activations in record.activations)
            or any(bool((each != each[..., :1]).any()) for each in every)
        ):
            return
        reason = (
            "nothing there speaks for the class (relu=False shows what speaks against it), or "
            if relu
            else ""
        )
        names = ", ".join(f"'{name}'" for name in record.layers)
        warnings.warn(
            f"target_layers: every map of {names} is constant, probably because {reason}the score "
            "does not depend on what is where; try another layer",
            stacklevel=4,
        )

    def _maps(self, record: Capture, selection: Selection, relu: bool) -> list[Tensor]:
        """One a layer, at the layer's resolution: (N, *S) or (N, K, *S)."""
        raise NotImplementedError


def _correlation(maps: Any, expected: Any) -> float:
    """Pearson's, in the mean over images, of one layer or of several; 1 for constant maps."""
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


def for_every_class(maps: Tensor, selection: Selection) -> Tensor:
    """One map an image, (N, *S), as that of each of its K classes, (N, K, *S)."""
    if selection.scores.dim() == 1:
        return maps
    count, classes = selection.scores.shape
    return maps.unsqueeze(1).expand(count, classes, *maps.shape[1:])


def mean_of_layers(maps: list[Tensor], extents: tuple[int, ...]) -> Tensor:
    """The mean of several layers' maps, normalized: each was so before its enlargement too."""
    dims = len(extents)
    enlarged = [ops.upsample(ops.normalize(m, dims), extents, normalize=False) for m in maps]
    return ops.normalize(torch.stack(enlarged).mean(0), dims)


def extents_of(record: Capture, size: Size) -> tuple[int, ...]:
    """The extents to enlarge to, as many as the layers have."""
    extents = record.extents if size is None else size
    if not (extents is None or isinstance(extents, Sequence)):
        raise TypeError(f'size: got {extents!r}, expected a list of integers or "layer"')
    for name, activations in zip(record.layers, record.activations, strict=True):
        dims = activations.dim() - 2
        if extents is None or isinstance(extents, str) or len(extents) != dims or min(extents) < 1:
            source = "the inputs have positions" if size is None else "got"
            raise ValueError(
                f"size: {source} {extents!r}, but '{name}' has {dims} dimensions of "
                f'positions; give {dims} positive integers or "layer"'
            )
    return tuple(int(extent) for extent in extents or ())
