"""Computes raw maps, classes and probabilities of pictures or clips with one model."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor, nn

from fastcam.engine.fast.options import preferred_dtype
from fastcam.engine.outputs import logits_of
from fastcam.engine.running import CopiedResults
from fastcam.errors import ArgumentError, FastcamError, UsageError, first_line, near
from fastcam.methods import METHODS, Several
from fastcam.methods.maps import MapMethod
from fastcam.models import LoadedModel
from fastcam.pictures import decoded
from fastcam.pictures.given import pictures_of
from fastcam.targets import ClassChoice, Negative, TopClasses

AUTO = "auto"
"""The layer that the method finds."""
TOP_CLASS = "top1"
AGAINST = "not:"
"""What a target begins with that asks for the evidence against a class."""
_TOP = TopClasses(1)


class Against(TopClasses):
    """Targets: what speaks against one class, for :class:`Explainer`."""


@dataclass(frozen=True)
class Explained:
    """K classes of N pictures, on the CPU."""

    by_method: dict[str, Tensor]
    """By method, (N, K, *S) at the layer's resolution, not normalized; (N, K, 3, *S) for guided
    methods. For several layers their mean as the methods return it: in [0, 1], at the input's
    resolution."""
    class_ids: Tensor
    """(N, K)."""
    scores: Tensor
    """(N, K), the logits."""
    probabilities: Tensor
    """(N, K)."""
    top_probabilities: Tensor
    """(N,), those of each picture's top class."""
    signed: bool
    """Whether the maps are signed gradients of the three channels."""

    @property
    def maps(self) -> Tensor:
        """Those of the first method."""
        return next(iter(self.by_method.values()))

    def heat(self, k: int) -> Tensor:
        """:attr:`maps` of the k-th class, (N, *S); the largest magnitude of a signed gradient."""
        maps = self.maps[:, k]
        return maps.abs().amax(1) if self.signed else maps


class Explainer:
    """Explains pictures with one model, by one method or by several from one forward.

    It can be pickled. Called with a dict of arrays, it returns a dict of arrays, which is what
    engines such as Ray Data and Spark map over a data set.

    Args:
        model: from :func:`fastcam.models.load`.
        method: a key of :data:`fastcam.METHODS`, or several: see :class:`fastcam.Several`.
        layer: a dotted name, several of them, or "auto".
        fast: whether to use the fast mode, in bfloat16 if the device supports it; see
            :meth:`fastcam.GradCAM.compile`.

    Raises:
        UsageError: if the method or layer is unknown, or the method does not support ``fast``.
    """

    def __init__(
        self,
        model: LoadedModel,
        method: str | Sequence[str] = "gradcam++",
        layer: str | Sequence[str] = "auto",
        fast: bool = False,
    ) -> None:
        self.names = (method,) if isinstance(method, str) else tuple(method)
        """The names of the methods."""
        for name in self.names:
            if name not in METHODS:
                hint = near(name, METHODS) or f"; choose from {', '.join(METHODS)}"
                raise UsageError(f"unknown method {name}{hint}")
        self.model = model
        options: dict[str, Any] = {} if layer == AUTO else {"target_layers": layer}

        def made() -> Any:
            each = [METHODS[name](model.module, **options) for name in self.names]
            return each[0] if isinstance(method, str) else Several(each)  # type: ignore[arg-type]

        self._method: Any = _as_usage_error(made)
        self._signed = bool(self._method.signed)
        if fast:
            if not isinstance(self._method, MapMethod):
                raise UsageError(f"fast: not supported for {method}, which does not return maps")
            self._method.compile(dtype=preferred_dtype(self.device))
        self._fast_is_new = fast  # whether it has not been said yet that it does nothing
        joined = self._signed or len(self.layers) > 1
        self._raw: dict[str, Any] = {} if joined else {"size": "layer", "normalize": False}

    @property
    def device(self) -> torch.device:
        """The network's device."""
        return self.model.device

    @property
    def is_ready(self) -> bool:
        """Whether a call has resolved the layer and prepared the fast mode."""
        return bool(self._method.is_ready)

    @property
    def networks(self) -> list[nn.Module]:
        """The modules that run: the model's, and its replacement in fast mode."""
        return list(self._method.networks)

    def twin(self) -> Explainer:
        """A copy for another thread, with separate networks and hooks but shared weights.

        Compiled parts of the fast mode are shared too. Raises if the network cannot be copied.
        """
        weights = (
            tensor
            for network in self.networks
            for tensor in (*network.parameters(), *network.buffers())
        )
        with CopiedResults():
            return copy.deepcopy(self, {id(tensor): tensor for tensor in weights})

    @property
    def layers(self) -> tuple[str, ...]:
        """The target layers' names; none before an automatic choice, or if there is no layer."""
        return tuple(self._method.layers)

    @property
    def compiled(self) -> dict[str, str]:
        """What the fast mode did, by part of the network; empty before the first fast call."""
        return self._method.compiled if isinstance(self._method, MapMethod) else {}

    def targets(self, name: str = TOP_CLASS, top_k: int = 1) -> TopClasses:
        """The classes to explain: "top1", a class id or name, then the most probable others.

        "not:" and an id or name explains what speaks against that class, and no other class.

        Args:
            name: the first class.
            top_k: the number of classes.

        Raises:
            UsageError: if the class is unknown.
        """
        if name.startswith(AGAINST):
            return Against(1, self.model.class_id(name.removeprefix(AGAINST)))
        return TopClasses(top_k, None if name == TOP_CLASS else self.model.class_id(name))

    def title(self, class_id: int, targets: ClassChoice) -> str:
        """The name of a class as a caption of its map."""
        name = self.model.class_name(class_id)
        return f"against {name}" if isinstance(targets, Against) else name

    @overload
    def __call__(self, images: Mapping[str, Any], targets: ClassChoice = ...) -> dict[str, Any]: ...

    @overload
    def __call__(self, images: Any, targets: ClassChoice = ...) -> Explained: ...

    def __call__(self, images: Any, targets: ClassChoice = _TOP) -> Explained | dict[str, Any]:
        """Explains K classes of each image in one forward pass.

        Args:
            images: network inputs, (N, 3, h, w), or (N, 3, T, h, w) for clips; or a picture, a PIL
                image or an array (H, W, 3) of uint8, or a list of pictures, which the model's
                :attr:`~fastcam.models.LoadedModel.preprocessing` turns into inputs; or a dict of
                arrays with N rows, of which ``image`` has the pictures, or ``bytes`` those of their
                files.
            targets: selects the K classes.

        Returns:
            An :class:`Explained`. For a dict, its other entries and, as numpy arrays,
            ``class_ids``, ``scores`` and ``probabilities`` (N, K), and ``maps_METHOD`` (N, K, *S)
            for each method.

        Raises:
            UsageError: if the layer, class or method does not fit the model.
            TypeError, ValueError: if the images are none of these, or several pictures become
                inputs of different sizes.
            FastcamError: if the model fails on inputs of this size.

        Warns:
            UserWarning: at the first call, if the fast mode could not do anything.
        """
        if isinstance(images, Mapping):
            return self._arrays(images, targets)
        found = None if isinstance(images, Tensor) else pictures_of(images)
        if found is not None:
            images = self.model.inputs_of(found)
        elif not isinstance(images, Tensor):
            raise TypeError(
                f"images: got {type(images).__name__}, expected a tensor (N, 3, H, W), a PIL image "
                "or an array (H, W, 3) of uint8"
            )
        images = images.to(self.device)
        with self._failures(images):
            against = isinstance(targets, Against)
            asked = Negative(targets) if against else targets
            maps = _as_usage_error(lambda: self._method(images, asked, **self._raw))
        if self._fast_is_new:
            self._fast_is_new = False
            self._say_if_nothing_is_fast()
        ids, scores = self._method.class_ids, self._method.scores
        probabilities = self._probabilities(self._method.outputs, len(images))
        if against:
            ids, scores = targets.ids(probabilities), -scores
        by_method = maps if isinstance(maps, dict) else {self.names[0]: maps}
        return Explained(
            {name: each.float().cpu() for name, each in by_method.items()},
            ids.cpu(),
            scores.float().cpu(),
            probabilities.gather(1, ids).cpu(),
            probabilities.amax(1).cpu(),
            self._signed,
        )

    def _arrays(self, given: Mapping[str, Any], targets: ClassChoice) -> dict[str, Any]:
        """:meth:`__call__` for a dict of arrays."""
        names = ("class_ids", "scores", "probabilities", *(f"maps_{each}" for each in self.names))
        twice = [each for each in names if each in given]
        if twice or {"bytes", "image"} <= given.keys():
            raise ArgumentError(
                "images",
                f"got a dict with {', '.join(twice) or 'bytes and image'}, expected pictures in "
                "bytes or in image, and no column that the result has too; rename yours",
            )
        if "bytes" in given:
            pictures = [decoded(data, f"row {n}") for n, data in enumerate(given["bytes"])]
        elif "image" in given:
            pictures = [np.asarray(each) for each in given["image"]]
        else:
            raise ArgumentError(
                "images",
                f"got a dict with {', '.join(map(str, given)) or 'nothing'}, expected pictures in "
                '"image" or the bytes of their files in "bytes"',
            )
        explained = self(pictures, targets)
        found = {
            "class_ids": explained.class_ids.numpy(),
            "scores": explained.scores.numpy(),
            "probabilities": explained.probabilities.numpy(),
            **{f"maps_{name}": maps.numpy() for name, maps in explained.by_method.items()},
        }
        others = {name: each for name, each in given.items() if name not in ("bytes", "image")}
        return {**others, **found}

    def probabilities(self, images: Tensor) -> Tensor:
        """The probabilities (N, classes) of network inputs, on the CPU."""
        images = images.to(self.device)
        with self._failures(images), torch.no_grad():
            return self._probabilities(self.model.module(images), len(images)).cpu()

    def _say_if_nothing_is_fast(self) -> None:
        compiled = self.compiled
        if any(map(_is_a_gain, compiled.values())):
            return
        reasons = {part: state for part, state in compiled.items() if state != "0 folded"}
        why = "; ".join(f"{part}: {state}" for part, state in reasons.items())
        why = why or f"nothing that could be prepared comes before {', '.join(self.layers)}"
        device = " A C++ compiler has to be installed." if "ompiler" in why else ""
        warnings.warn(
            f"fast: it saves no time here ({why}).{device} A later layer, a network without hooks "
            "and loops, or no fast mode would help",
            stacklevel=3,
        )

    def _probabilities(self, outputs: Any, images: int) -> Tensor:
        found = _as_usage_error(lambda: logits_of(outputs, count=images))
        logits = (found if found.dim() > 2 else found.reshape(images, -1)).float()
        names, classes = len(self.model.classes), logits.shape[1]
        if names not in (0, classes):
            raise UsageError(f"classes: got {names} names, expected {classes}, one per class")
        return self.model.probabilities(logits)

    @contextmanager
    def _failures(self, images: Tensor) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, AssertionError) as error:
            height, width = images.shape[-2:]
            raise FastcamError(
                f"the model fails on an input of {width}x{height} pixels: {first_line(error)}"
                + _other_channels(self.model.module, images)
            ) from error


def _other_channels(module: nn.Module, images: Tensor) -> str:
    """The end of an error message, if the first convolution takes another number of channels."""
    convolutions = (each for each in module.modules() if hasattr(each, "in_channels"))
    wanted = getattr(next(convolutions, None), "in_channels", images.shape[1])
    if wanted == images.shape[1]:
        return ""
    return (
        f"; it takes {wanted} channel: give --preprocess, a function that returns ({wanted}, h, w)"
        if wanted == 1
        else f"; it takes {wanted} channels and not pictures"
    )


def _is_a_gain(state: str) -> bool:
    """Whether the fast mode did something, by an entry of ``compiled``."""
    folded = state[:1].isdecimal() and not state.startswith("0 ") and " folded" in state
    return folded or state.startswith("compiled") or "recorded" in state[-9:]


def _as_usage_error(call: Callable[[], Any]) -> Any:
    """The call's result; converts ValueError to UsageError.

    On the command line, layers and targets are not called ``target_layers`` and ``targets``.
    """
    try:
        return call()
    except ArgumentError as error:
        unnamed = error.argument in ("target_layers", "targets")
        message = error.problem if unnamed else str(error)
        raise UsageError(" ".join(message.split())) from error
    except ValueError as error:
        raise UsageError(" ".join(str(error).split())) from error
