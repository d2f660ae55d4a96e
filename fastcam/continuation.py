"""The part of a network above a layer, run again and again with other outputs of that layer.

The network runs once; what it computes from the layer's output is recorded operator by operator and
then replayed, so the part below does not run again, whatever the network's wiring. A replay is
proven on a changed output that went through the whole network before; where it gives anything
else, or the recording shows that it could (a number that was read out, memory that is shared with
the part below), every further run is one of the whole network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.weak import WeakTensorKeyDictionary

from fastcam.capture import (
    Capture,
    in_place,
)
from fastcam.engine.values import (
    close,
    replace_first,
    shares_input,
)

Change = Callable[[Tensor], None]
"""Writes to a layer's activations (R, C, *S)."""


class Continuation:
    """Logits of a captured network for changed activations of one of its layers.

    Args:
        record: what was captured.
        layer: the index of the layer.
        rows: (R,), the image that each row is of; every run has these rows.
    """

    def __init__(self, record: Capture, layer: int, rows: Tensor) -> None:
        self._record, self._layer, self._rows = record, layer, rows
        self._first: tuple[Tensor, Tensor] | None = None  # a changed output and its logits
        self._recorded: tuple[_Recording, Tensor] | None = None  # and the output as it was

    def __call__(self, change: Change) -> Tensor:
        """The logits (R, ...) with the activations changed.

        The first run is one of the whole network, the second one records it.

        Raises:
            ValueError: where the activations are not a view of what the layer returned.
        """
        if self._first is None:
            changed: list[Tensor] = []
            logits = self._whole(change, changed)
            self._first = changed[0], logits
            return logits
        if self._recorded is None:
            self._recorded = self._record_once()
        recording, output = self._recorded
        if not recording.sound:
            return self._whole(change, [])
        return recording.replay(self._changed(output, change))

    def _changed(self, output: Tensor, change: Change) -> Tensor:
        output = output.clone()
        activations = self._record.readings[self._layer](output)
        if activations.untyped_storage().data_ptr() != output.untyped_storage().data_ptr():
            raise ValueError(
                "reshape: got a function that copies, expected one that returns a view, for the "
                "layer's output is changed through it"
            )
        change(activations)
        return output

    def _whole(self, change: Change, changed: list[Tensor]) -> Tensor:
        def put(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            other = self._changed(output, change)
            changed[:] = [other.clone()]  # the network may write into it
            # as in capture: what was written to its input may be read from there
            return output.copy_(other) if in_place(module) and shares_input(output, args) else other

        return self._run(put)

    def _record_once(self) -> tuple[_Recording, Tensor]:
        recording = _Recording()
        kept: list[Tensor] = []

        def put(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            kept[:] = [output.clone()]
            given = output.clone()
            recording.start(given)
            recording.sound = not shares_input(output, args)
            return given

        with recording:
            recording.stop(self._run(put))
        assert self._first is not None
        changed, expected = self._first
        self._first = expected[:0], expected[:0]
        if recording.sound:
            recording.sound = close(recording.replay(changed), expected)
        return recording, kept[0]

    def _run(self, put: Callable[[nn.Module, Any, Tensor], Tensor]) -> Tensor:
        runs = 0

        def hook(module: nn.Module, args: Any, returned: Any) -> Any:
            def counted(output: Tensor) -> Tensor:
                nonlocal runs
                runs += 1
                wanted = runs - 1 == self._record.counted[self._layer]
                return put(module, args, output) if wanted else output

            return replace_first(returned, counted)

        return self._record.again(self._rows, hooks=[(self._record.module(self._layer), hook)])


class _Slot(NamedTuple):
    """In the place of a tensor that depends on the layer's output."""

    number: int


class _Call(NamedTuple):
    function: Any
    inputs: list[Any]  # slots, and what stays the same
    form: Any  # puts them into args and kwargs
    outputs: list[int | None]  # slots


class _Recording(TorchDispatchMode):
    """While entered, keeps every operator that takes what comes from a given tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.sound = True
        self._calls: list[_Call] = []
        self._slots: WeakTensorKeyDictionary | None = None
        self._count = 0
        self._constants: list[tuple[Tensor, int]] = []  # and their versions when they were read
        self._result: int | None = None
        self._last_use: dict[int, list[int]] = {}

    def start(self, tensor: Tensor) -> None:
        """What is computed from this tensor is what counts."""
        self._slots = WeakTensorKeyDictionary({tensor: 0})
        self._count = 1

    def stop(self, result: Tensor) -> None:
        """The recording is complete; this is what a replay gives."""
        slots, self._slots = self._slots, None
        self._result = None if slots is None else slots.get(result)
        unchanged = all(_version(tensor) == version for tensor, version in self._constants)
        self.sound = self.sound and self._result is not None and unchanged
        self._constants.clear()
        last: dict[int, int] = {}
        for i, call in enumerate(self._calls):
            for slot in [*(x.number for x in call.inputs if isinstance(x, _Slot)), *call.outputs]:
                if slot is not None:
                    last[slot] = i
        for slot, i in last.items():
            if slot != self._result:
                self._last_use.setdefault(i, []).append(slot)

    def replay(self, tensor: Tensor) -> Tensor:
        """The result for another tensor of the same shape."""
        values: dict[int, Any] = {0: tensor.clone()}  # it may be written to
        for i, call in enumerate(self._calls):
            inputs = [values[x.number] if isinstance(x, _Slot) else x for x in call.inputs]
            args, kwargs = tree_unflatten(inputs, call.form)
            outputs, _ = tree_flatten(call.function(*args, **kwargs))
            for slot, output in zip(call.outputs, outputs, strict=True):
                if slot is not None:
                    values[slot] = output
            for slot in self._last_use.get(i, ()):
                del values[slot]
        assert self._result is not None
        return values[self._result]

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        slots = self._slots
        if slots is None:
            return func(*args, **kwargs)
        found, form = tree_flatten((args, kwargs))
        inputs = [_Slot(slots[x]) if isinstance(x, Tensor) and x in slots else x for x in found]
        if not any(isinstance(x, _Slot) for x in inputs):
            return func(*args, **kwargs)
        constants = [x for x in inputs if isinstance(x, Tensor)]
        versions = [_version(constant) for constant in constants]
        output = func(*args, **kwargs)
        if [_version(constant) for constant in constants] != versions:
            self.sound = False  # memory of the part below was written to
        self._constants += zip(constants, versions, strict=True)
        outputs: list[int | None] = []
        for result in tree_flatten(output)[0]:
            if not isinstance(result, Tensor):
                self.sound = self.sound and result is None  # a number may decide what runs next
                outputs.append(None)
                continue
            if result not in slots:
                slots[result] = self._count
                self._count += 1
            outputs.append(slots[result])
        self._calls.append(_Call(func, inputs, form, outputs))
        return output


def _version(tensor: Tensor) -> int:
    """How often it was written to; tensors made in inference mode do not count that."""
    return 0 if tensor.is_inference() else tensor._version
