"""The part of a network above a layer, run again and again with other outputs of that layer.

The network runs once; what it computes from the layer's output is recorded operator by operator and
then replayed, so the part below does not run again, whatever the network's wiring. A change goes
into the tensor that everybody reads, at the moment when the layer has computed it. A replay is
proven on a changed output that went through the whole network before; if it gives anything else, or
the recording shows that it could (a number that was read out, memory that is shared with the part
below), every further run is one of the whole network.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.weak import WeakTensorKeyDictionary

from fastcam.engine.capture import Capture
from fastcam.engine.recorder import Given
from fastcam.engine.values import close, rebuild, replace_first, storage, tensors_of, version

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
        self._read = record.reading_of_one_run(layer)
        self._record, self._layer, self._rows = record, layer, rows
        self._output: _Output | None = None
        self._first: tuple[Tensor, Tensor] | None = None  # changed memory and its logits
        self._recorded: tuple[_Tape, Tensor] | None = None  # and the memory as it was

    def __call__(self, change: Change) -> Tensor:
        """The logits (R, ...) with the activations changed.

        The first run is one of the whole network, the second one records it.

        Raises:
            ValueError: where the activations are not a view of what the layer returned.
        """
        if self._output is None:
            self._output = self._find_output()
        if self._first is None:
            changed: list[Tensor] = []
            logits = self._whole(change, changed)
            self._first = changed[0], logits
            return logits
        if self._recorded is None:
            self._recorded = self._record_once()
        recording, memory = self._recorded
        if not recording.sound:
            return self._whole(change, [])
        memory = _cloned(memory)
        self._change(memory, change)
        return recording.replay(memory)

    def _find_output(self) -> _Output:
        """Which operator within the layer writes its output last.

        If none does, the layer returns what it got, and the change is made on the way in.
        """
        operators = _Operators()
        found: list[_Output] = []

        def returned(output: Tensor, given: Given) -> Tensor:
            number = operators.last.get(storage(output))
            argument = None
            if number is None:
                for i, tensor in enumerate(tensors_of(given.arguments)):
                    if storage(tensor) == storage(output) and given.unwritten(output):
                        argument = i
            place = output.size(), output.stride(), int(output.storage_offset())
            found[:] = [_Output(number, argument, *place)]
            return output

        with operators:
            self._run(returned, operators)
        return found[0]

    def _change(self, memory: Tensor, change: Change) -> None:
        assert self._output is not None
        output = self._output.within(memory)
        activations = self._read(output)
        if activations.untyped_storage().data_ptr() != memory.untyped_storage().data_ptr():
            raise ValueError(
                "reshape: got a function that copies, expected one that returns a view, for the "
                "layer's output is changed through it"
            )
        change(activations)

    def _whole(self, change: Change, changed: list[Tensor]) -> Tensor:
        def put(memory: Tensor) -> None:
            self._change(memory, change)
            changed[:] = [_cloned(memory)]  # the network may write into it

        return self._at_output(put)

    def _record_once(self) -> tuple[_Tape, Tensor]:
        recording = _Tape()
        kept: list[Tensor] = []

        def put(memory: Tensor) -> None:
            kept[:] = [_cloned(memory)]
            recording.start(memory)

        with recording:
            recording.stop(self._at_output(put))
        assert self._first is not None
        changed, expected = self._first
        self._first = expected[:0], expected[:0]
        if recording.sound:
            recording.sound = close(recording.replay(changed), expected)
        recording.sound = recording.sound and not self._record.exact
        return recording, kept[0]

    def _at_output(self, put: Callable[[Tensor], None]) -> Tensor:
        """The logits of a run in which ``put`` gets the memory of the layer's output."""
        assert self._output is not None
        operators = _Operators(self._output.operator, put)

        def entered(number: int, tensor: Tensor) -> Tensor:
            if number != self._output_argument:
                return tensor
            tensor = _cloned(tensor)
            put(tensor)
            return tensor

        with operators:
            return self._run(lambda output, given: output, operators, entered)

    def _run(
        self,
        returned: Callable[[Tensor, Given], Tensor],
        operators: _Operators,
        entered: Callable[[int, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The logits of a run, with hooks for the time that counts of those that the layer runs.

        Args:
            returned: gets the output.
            operators: counts those of the layer.
            entered: changes the tensors among the arguments, by number.
        """
        runs, counted = 0, self._record.counted[self._layer]
        given: list[Given] = []

        def enter(module: nn.Module, args: Any, kwargs: Any) -> Any:
            nonlocal runs
            runs += 1
            if runs - 1 != counted:
                return None
            arguments = args, kwargs
            if entered is not None:
                numbers = itertools.count()
                arguments = rebuild(arguments, lambda tensor: entered(next(numbers), tensor))
            given.append(Given(module, arguments))
            operators.begin()
            return arguments

        def leave(module: nn.Module, args: Any, output: Any) -> Any:
            if runs - 1 != counted:
                return output
            operators.end()
            last = given.pop()
            return replace_first(output, lambda tensor: returned(tensor, last))

        module = self._record.module(self._layer)
        return self._record.again(self._rows, hooks=[(module, leave)], before=[(module, enter)])

    @property
    def _output_argument(self) -> int | None:
        return None if self._output is None else self._output.argument


class _Output(NamedTuple):
    """Where a layer's output is made, and how it lies in its storage."""

    operator: int | None
    """The number of the operator within the layer that writes it last."""
    argument: int | None
    """The number of the argument that it is, if the layer returns what it got."""
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def within(self, memory: Tensor) -> Tensor:
        """The output, as a view; the memory may be another view of the same storage."""
        return memory.as_strided(self.size, self.stride, self.offset)


def _cloned(tensor: Tensor) -> Tensor:
    """A copy that lies in a copy of its whole storage as the tensor does in its own."""
    elements = tensor.untyped_storage().nbytes() // tensor.element_size()
    if elements == tensor.numel():
        return tensor.clone()
    whole = tensor.as_strided((elements,), (1,), 0).clone()
    return whole.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())


class _Operators(TorchDispatchMode):
    """While entered, counts the operators of a layer that write to memory.

    Args:
        number: of the operator whose memory, just written, ``met`` is called with.
    """

    def __init__(
        self, number: int | None = None, met: Callable[[Tensor], None] | None = None
    ) -> None:
        super().__init__()
        self.last: dict[int, int] = {}
        """By storage, the last operator that wrote to it."""
        self._number, self._met = number, met
        self._count: int | None = None

    def begin(self) -> None:
        self._count = 0

    def end(self) -> None:
        self._count = None

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if self._count is not None:
            for tensor in _written(func, args, kwargs or {}, output):
                self.last[storage(tensor)] = self._count
                if self._met is not None and self._count == self._number:
                    self._met(tensor)
                self._count += 1
        return output


def _written(func: Any, args: Any, kwargs: Any, output: Any) -> list[Tensor]:
    """The tensors that an operator made or wrote to; not views."""
    schema = func._schema
    found = []
    for i, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found += tensors_of(args[i] if i < len(args) else kwargs.get(argument.name))
    outputs = output if isinstance(output, (tuple, list)) else (output,)
    for value, returned in zip(outputs, schema.returns, strict=False):
        if returned.alias_info is None:
            found += tensors_of(value)
    return found


class _Slot(NamedTuple):
    """In the place of a tensor that depends on the layer's output."""

    number: int


class _Call(NamedTuple):
    function: Any
    inputs: list[Any]  # slots, and what stays the same
    form: Any  # puts them into args and kwargs
    outputs: list[int | None]  # slots


class _Tape(TorchDispatchMode):
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
        unchanged = all(version(tensor) == before for tensor, before in self._constants)
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
        values: dict[int, Any] = {0: _cloned(tensor)}  # it may be written to
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
        versions = [version(constant) for constant in constants]
        output = func(*args, **kwargs)
        if [version(constant) for constant in constants] != versions:
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
