"""The fast mode: a copy of a network that takes less time below the target layer.

What runs before the target layer needs no gradient, so a copy of it is prepared for inference:
BatchNorm folded into convolutions, channels_last, a lower precision, compiled. From the layer up
the copy computes as the network itself does. A part that does not allow a step goes without it, and
:meth:`FastModel.report` says which and why.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastcam.engine.inputs import Inputs
from fastcam.engine.recording import OUTPUT, Start
from fastcam.engine.running import FLAGS, copied, hooks_of, modules_of, run
from fastcam.engine.trials import OF_EVERY_MODULE, raise_out_of_memory, trial
from fastcam.engine.values import agree, rebuild, tensors_of, version
from fastcam.errors import first_line

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Options:
    """Which steps are wanted; None as the precision for the network's own.

    Compiling takes seconds to a minute for each shape: not worth it for one call's runs.
    """

    dtype: torch.dtype | None = None
    channels_last: bool = True
    fold_batchnorm: bool = True
    compile: bool = True

    def __post_init__(self) -> None:
        if self.dtype not in (None, *DTYPES):
            expected = ", ".join(map(str, DTYPES))
            raise ValueError(f"dtype: got {self.dtype!r}, expected None or one of {expected}")


def is_emulated(dtype: torch.dtype | None, device: torch.device) -> bool:
    """Whether a device has no instructions for a precision, so that it takes longer; if known."""
    if dtype not in (torch.bfloat16, torch.float16):
        return False
    if device.type == "cuda":
        return dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported(False)
    found = _capabilities() if device.type == "cpu" else {}
    names = {
        torch.bfloat16: ("avx512_bf16", "amx_bf16"),
        torch.float16: ("avx512_fp16", "amx_fp16"),
    }
    return found.get("architecture") == "x86_64" and not any(map(found.get, names[dtype]))


def preferred_dtype(device: torch.device) -> torch.dtype | None:
    """bfloat16 where the device is known to have instructions for it, else None."""
    known = device.type == "cuda" or (device.type == "cpu" and "avx512_bf16" in _capabilities())
    return torch.bfloat16 if known and not is_emulated(torch.bfloat16, device) else None


def _capabilities() -> Mapping[str, Any]:
    """Of the processor; empty where torch does not tell."""
    find: Callable[[], Mapping[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
    return find()


class FastModel:
    """A copy of a network, fast below the first of the target layers.

    Args:
        model: stays as it is; how it is changed later shows in :attr:`is_stale`.
        inputs: of one image, as the copy will be called with.
        layers: the target layers' dotted names; without any, all of the network is prepared.
        options: the steps to take.
        start: where the graph starts (:func:`fastcam.engine.recording.find_start`); what is
            recorded stays as it is.

    Raises:
        ValueError: the model cannot be copied.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        layers: Sequence[str],
        options: Options,
        start: Start = OUTPUT,
    ) -> None:
        self._source = model
        self._parts, self._versions = self._parts_and_versions()
        self._settings = _settings(model)
        self._written: set[_Place] | None = None  # the attributes that runs write to
        self._channels_last = options.channels_last
        self._notes: dict[str, str] = {}
        self._units: list[_Unit] = []
        self._start = start
        self._one = one = self.prepared(inputs)
        reason = _why_not_copied(model, one)
        if reason:
            self._notes["model"] = f"the model itself runs: {reason}"
            self._channels_last = False
            self.model = model
            return
        self._build(model, one, layers, options)
        if options.dtype is not None:
            try:
                run(self.model, one, [])
            except Exception as error:  # whatever a part raises that expects another precision
                self._build(model, one, layers, replace(options, dtype=None))
                self._notes["precision"] = f"the network's own: {first_line(error)}"
        if options.compile:
            for unit in self._units:
                unit.allow_compilation()

    @property
    def is_stale(self) -> bool:
        """Whether the network was changed since the copy was made.

        Parameters, buffers, modules and other attributes that were exchanged or written to, but for
        those that the network writes itself; hooks and forwards that were set. Of writes through
        ``.data``, which PyTorch does not count, only those on a CPU to a whole tensor.
        """
        parts, versions = self._parts_and_versions()
        same = len(parts) == len(self._parts) and all(
            now is then for now, then in zip(parts, self._parts, strict=True)
        )
        if not same or versions != self._versions:
            return True
        if self.model is self._source:
            return False
        changed = _differences(self._settings, _settings(self._source))
        if changed and self._written is None:
            self._written = _written(self._source, self._one)
        return not changed <= (self._written or set())

    def prepared(self, inputs: Inputs) -> Inputs:
        """The inputs in the copy's memory format."""
        return rebuild(inputs, _in_channels_last) if self._channels_last else inputs

    def report(self) -> dict[str, str]:
        """By part of the network: what was done, or why not."""
        return {**self._notes, **{unit.name: unit.state for unit in self._units}}

    def _parts_and_versions(self) -> tuple[list[Any], list[Any]]:
        """What the network is made of, and how often and by which hooks that was changed."""
        parts: list[Any] = []
        versions: list[Any] = []
        for module in modules_of(self._source):
            parts += module, vars(module).get("forward")
            versions.append(tuple(hooks_of(module)))
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None and not tensor.is_inference():
                    parts.append(tensor)
                    versions += _state_of(tensor)
        return parts, versions

    def _build(
        self, model: nn.Module, inputs: Inputs, layers: Sequence[str], options: Options
    ) -> None:
        self._units = []
        self.model = _copied(model)
        """What runs in the network's place; its modules have the same names."""
        if self._start.place == "model":
            self._notes["model"] = "left as it is: all of it is recorded, as it sets grad modes"
            return
        trace = _Trace(self.model, inputs)
        ran = [name for name in layers if name in trace.calls]
        if layers and not ran:
            return  # the call will say so
        layer = min(ran, key=trace.end) if ran else None  # where the graph starts
        if layer is not None and len(trace.calls[layer]) > 1:
            self._notes[layer] = "runs several times: nothing below it was changed"
            return
        if options.fold_batchnorm:
            self._notes["BatchNorm"] = self._fold(model, trace, layer, layers, inputs)
        if options.channels_last:
            for parameter in self.model.parameters():
                parameter.data = _in_channels_last(parameter.data)
        # parameters have it until their unit lowers them
        restored = next((p.dtype for p in self.model.parameters()), None)
        if layer is None:
            self._units.append(_replace(self.model, "network", options.dtype, restored))
        else:
            self._add_units("", trace, layer, options.dtype, restored)
        if options.dtype is not None:
            lowered = {id(p) for unit in self._units for m in unit.modules for p in m.parameters()}
            for module in self.model.modules():
                own = next(module.parameters(recurse=False), None)
                if own is not None and id(own) not in lowered:
                    _keep_precision(module, own.dtype)

    def _fold(
        self,
        model: nn.Module,
        trace: _Trace,
        layer: str | None,
        layers: Sequence[str],
        inputs: Inputs,
    ) -> str:
        """Every BatchNorm that ends before the layer does, into the convolution in front of it."""
        pairs, reasons = [], Counter[str]()
        for norm in trace.norms:
            if layer is None or trace.end(norm) <= trace.end(layer):
                reason = _unfoldable(self.model, trace, norm, layers)
                if reason is None:
                    pairs.append((trace.producers[norm], norm))
                else:
                    reasons[reason] += 1
        if pairs and _are_read_elsewhere(self.model, inputs, pairs):
            shared = [pair for pair in pairs if _are_read_elsewhere(self.model, inputs, [pair])]
            pairs = [pair for pair in pairs if pair not in shared]
            reasons["something else reads the convolution's output"] += len(shared)
        given = inputs, _changed(inputs)
        before = [run(self.model, each) for each in given]
        for convolution, norm in pairs:
            _fold_pair(self.model, convolution, norm)
        after = [run(self.model, each) for each in given]
        if not _agree(before, after):
            self.model = _copied(model)
            return "not folded: the folded network gave another answer"
        return ", ".join([f"{len(pairs)} folded", *(f"{n} not: {r}" for r, n in reasons.items())])

    def _add_units(
        self,
        name: str,
        trace: _Trace,
        layer: str,
        dtype: torch.dtype | None,
        restored: torch.dtype | None,
    ) -> None:
        """Units of what runs below the layer, inside of a module around it, and of the layer."""
        parent = self.model.get_submodule(name)
        children = [f"{name}.{child}" if name else child for child in parent._modules]
        if type(parent).forward is nn.Sequential.forward:
            below = [child for child in children if trace.is_unit(child, layer)]
            if len(below) > 1 and below == children[: len(below)]:
                self._units.append(_replace_first(parent, below, dtype))
                children = children[len(below) :]
        for child in children:
            module = self.model.get_submodule(child)
            if child == layer and self._start.place == "layer":
                self._notes[child] = "left as it is: what it computes on the way is read later"
            elif child == layer:
                self._units.append(_replace(module, child, dtype, restored))
            elif not trace.is_unit(child, layer):
                self._add_units(child, trace, layer, dtype, restored)
            elif _has_parameters(module):
                self._units.append(_replace(module, child, dtype))


def folded(model: nn.Module, inputs: Inputs) -> nn.Module:
    """A copy for many runs without a gradient: BatchNorm folded, on a CPU channels last.

    The model itself where it cannot be copied.

    Args:
        inputs: of one image.
    """
    on_cpu = next((p.device.type == "cpu" for p in model.parameters()), True)
    try:
        copied = FastModel(model, inputs, (), Options(channels_last=on_cpu, compile=False))
    except ValueError:
        return model
    return copied.model


@dataclass(frozen=True)
class _Call:
    start: int
    end: int


class _Trace:
    """In which order the modules of a network ran, and what was normalized by which."""

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        self._model = model
        self._owners: dict[nn.Parameter, set[str]] = {}  # the modules that hold it
        for name, module in model.named_modules():
            for parameter in module.parameters(recurse=False):
                self._owners.setdefault(parameter, set()).add(name)
        self.calls: dict[str, list[_Call]] = {}
        self.norms: list[str] = []
        """BatchNorm layers that ran."""
        self.producers: dict[str, str] = {}
        """norm -> the convolution whose output it took."""
        clock = 0
        started: dict[str, list[int]] = {}
        returned: list[tuple[str, Tensor]] = []  # by convolutions; held, so that each is itself

        def enter(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
                nonlocal clock
                clock += 1
                started.setdefault(name, []).append(clock)

            return hook

        def leave(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                nonlocal clock
                clock += 1
                self.calls.setdefault(name, []).append(_Call(started[name].pop(), clock))
                if isinstance(module, _CONVOLUTIONS):
                    returned.append((name, output))
                elif isinstance(module, _BatchNorm):
                    self.norms.append(name)
                    for producer, tensor in returned:
                        if args and args[0] is tensor:
                            self.producers[name] = producer

            return hook

        named = [(name, module) for name, module in model.named_modules() if name]
        run(
            model,
            inputs,
            [(module, leave(name)) for name, module in named],
            before=[(module, enter(name)) for name, module in named],
        )

    def end(self, name: str) -> int:
        """When its last call ended."""
        return self.calls[name][-1].end

    def is_unit(self, name: str, layer: str) -> bool:
        """Whether it runs once, before the layer, and nothing in it runs or lies elsewhere too."""
        calls = self.calls.get(name, ())
        if len(calls) != 1 or calls[0].end > self.calls[layer][0].start:
            return False
        module = self._model.get_submodule(name)
        parts = {part for part, _ in module.named_modules(prefix=name)}
        return all(
            calls[0].start <= inner.start and inner.end <= calls[0].end
            for part in parts
            for inner in self.calls.get(part, ())
        ) and all(self._owners.get(p, set()) <= parts for p in module.parameters())


class BatchSizes:
    """Which batch sizes are worth being prepared for: the first, and any that comes again."""

    def __init__(self) -> None:
        self._ready: set[int] = set()
        self._met: set[int] = set()

    def choose(self, size: int) -> int | None:
        """The size to run ``size`` images at: its own, or a larger one to be filled up to.

        None where neither is worth it: for a small last batch of a kind that has come once.
        """
        larger = [ready for ready in self._ready if size <= ready < 2 * size]
        if larger:
            return min(larger)
        if self._ready and size not in self._met:
            self._met.add(size)
            return None
        self._ready.add(size)
        return size


def filled(tensor: Tensor, size: int) -> Tensor:
    """(n, ...) to (size, ...), by repeating the last row."""
    missing = size - tensor.shape[0]
    if missing == 0:
        return tensor
    return torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])])


class _Unit:
    """The forward of a part of the network, in a precision of its own and compiled."""

    def __init__(
        self,
        name: str,
        modules: Sequence[nn.Module],
        forward: Callable[..., Any],
        dtype: torch.dtype | None,
        restored: torch.dtype | None = None,
    ) -> None:
        """Lowers the modules to ``dtype``; what comes out is brought to ``restored``."""
        self.name = name
        self.modules = modules
        self.state = "not compiled: it has no parameters"
        self._forward = forward
        self._dtype = dtype
        self._restored = None if dtype is None else restored
        self._compiled: Callable[..., Any] | None = None
        self._ways: list[bool] = []  # fullgraph=
        self._sizes: dict[Any, BatchSizes] = {}
        self._ready: set[Any] = set()
        if dtype is not None:
            for module in modules:
                module.to(dtype)

    def allow_compilation(self) -> None:
        """From the next call on, unless there is nothing to win."""
        if any(map(_has_parameters, self.modules)):
            self.state = "not called yet"
            self._ways = [False, True]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._dtype is not None:
            args, kwargs = rebuild((args, kwargs), _cast(self._dtype))
        returned = self._batched(args, kwargs)
        return returned if self._restored is None else rebuild(returned, _cast(self._restored))

    def _batched(self, args: Any, kwargs: Any) -> Any:
        """Compiled where the batch size is worth it, filled up to one that is."""
        given = tensors_of((args, kwargs))
        # a dispatch mode is there to see every operator, and compiled code has none to show
        watched = torch._C._len_torch_dispatch_stack() > 0
        if watched or not self._ways or not given or given[0].dim() == 0:
            return self._forward(*args, **kwargs)
        count = given[0].shape[0]
        rows = [tensor.dim() > 0 and tensor.shape[0] == count for tensor in given]
        kind = tuple((t.shape[row:], t.dtype, t.device) for t, row in zip(given, rows, strict=True))
        size = self._sizes.setdefault(kind, BatchSizes()).choose(count)
        if size is None:
            return self._forward(*args, **kwargs)
        if size == count:
            return self._run(args, kwargs, (kind, size))

        def fill(tensor: Tensor) -> Tensor:
            return filled(tensor, size) if tensor.dim() and tensor.shape[0] == count else tensor

        def cut(tensor: Tensor) -> Tensor:
            return tensor[:count] if tensor.dim() and tensor.shape[0] == size else tensor

        args, kwargs = rebuild((args, kwargs), fill)
        return rebuild(self._run(args, kwargs, (kind, size)), cut)

    def _run(self, args: Any, kwargs: Any, key: Any) -> Any:
        """By what torch.compile makes of it: in one graph, in several, or as it is."""
        while self._ways:
            try:
                if self._compiled is None:
                    self._compiled = _compiled(self._forward, fullgraph=self._ways[-1])
                if key in self._ready:
                    return self._compiled(*args, **kwargs)
                with _compiling, _freezing():
                    returned = self._compiled(*args, **kwargs)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # a compiler's, of any kind
                reason = first_line(error)
                self._compiled = None
                self._ways.pop()
                self.state = f"not compiled: {reason}"
            else:
                self._ready.add(key)
                whole = self._ways[-1]
                self.state = (
                    "compiled"
                    if whole
                    else self.state.replace("not compiled", "compiled in parts", 1)
                )
                return returned
        return self._forward(*args, **kwargs)


@dataclass(frozen=True)
class _Sequence:
    """What nn.Sequential does; a function would keep its modules where the network is copied."""

    parts: Sequence[Callable[[Any], Any]]

    def __call__(self, value: Any) -> Any:
        for part in self.parts:
            value = part(value)
        return value


def _compiled(forward: Callable[..., Any], fullgraph: bool) -> Callable[..., Any]:
    def unit(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    # torch.compile counts recompilations by code object: each unit gets one of its own
    unit.__code__ = unit.__code__.replace(co_name=f"unit_{id(unit)}")
    return torch.compile(unit, dynamic=False, fullgraph=fullgraph)


_compiling = threading.Lock()  # threads with copies of one network compile it once


def _freezing() -> Any:
    """While it lives: what is compiled takes weights as constants, in the layout it likes best.

    As an option of torch.compile it would have no effect.
    """
    import torch._inductor.config as inductor

    return inductor.patch(freezing=True)


def _replace(
    module: nn.Module, name: str, dtype: torch.dtype | None, restored: torch.dtype | None = None
) -> _Unit:
    """A unit in the place of a module's forward; hooks on the module stay outside of it."""
    unit = _Unit(name, [module], module.forward, dtype, restored)
    module.forward = unit
    return unit


def _replace_first(parent: nn.Module, names: Sequence[str], dtype: torch.dtype | None) -> _Unit:
    """One unit in the place of the first children of an nn.Sequential."""
    children = list(parent.children())
    first, rest = children[: len(names)], children[len(names) :]
    unit = _Unit(f"{names[0]} to {names[-1]}", first, nn.Sequential(*first), dtype)

    parent.forward = _Sequence([unit, *rest])
    return unit


def _keep_precision(module: nn.Module, dtype: torch.dtype) -> None:
    """Brings the inputs of a module that is in no unit to what its parameters have."""

    def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return rebuild((args, kwargs), _cast(dtype))

    module.register_forward_pre_hook(hook, with_kwargs=True)


def _cast(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _in_channels_last(tensor: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    memory_format = formats.get(tensor.dim(), torch.contiguous_format)
    return tensor.contiguous(memory_format=memory_format)


def _why_not_copied(model: nn.Module, inputs: Inputs) -> str:
    """Why a copy would not do what the model does, or would do it to the model; empty if it may."""
    for module in model.modules():
        if any(isinstance(hook, FunctionType) for hook in hooks_of(module).values()):
            return "its hooks are functions, which a copy shares with it"
    made = _copied(model)
    before = _identities(model)
    given = inputs, _changed(inputs)
    answers = [run(made, each) for each in given]
    if before != _identities(model):
        return "a copy of it writes to its attributes"
    if not _agree([trial(model, each) for each in given], answers):
        return "a copy of it gives another answer"
    return ""


_PLAIN = {type(None), bool, int, float, str}
_Place = tuple[int, str]
"""The number of a module, and the name of an attribute."""


def _settings(model: nn.Module) -> dict[_Place, Any]:
    """The attributes of all modules that are no module's own, to be compared with later ones."""
    met: set[int] = set()
    return {
        (number, name): value if type(value) in _PLAIN else _comparable(value, met)
        for number, module in enumerate(modules_of(model))
        for name, value in list(vars(module).items())
        if name not in OF_EVERY_MODULE
    }


def _comparable(value: Any, met: set[int], inside: bool = False) -> Any:
    """Something that compares equal until somebody writes to the value or to what it holds.

    Args:
        met: the objects that have been looked into already.
        inside: whether this is held by another object, of which only values and containers count.
    """
    if type(value) in _PLAIN or (type(value) is tuple and {*map(type, value)} <= _PLAIN):
        return value
    if isinstance(value, Tensor):
        return tuple(value.shape), *_state_of(value)
    parts: Any = ()
    if isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, (tuple, list)):
        parts = enumerate(value)
    elif not inside and not callable(value):
        parts = vars(value).items() if hasattr(value, "__dict__") else ()
    if id(value) in met:
        return id(value)
    met.add(id(value))
    return id(value), *((key, _comparable(part, met, True)) for key, part in list(parts))


def _state_of(tensor: Tensor) -> tuple[int, int, str]:
    """Its memory, how often it was written to, and a value."""
    value = ""
    if tensor.device.type == "cpu" and tensor.numel():
        # writes through .data count nowhere: one value tells of most of them
        value = repr(tensor[tuple(extent // 2 for extent in tensor.shape)].item())
    return tensor.data_ptr(), version(tensor), value


def _differences(before: dict[_Place, Any], after: dict[_Place, Any]) -> set[_Place]:
    missing = object()
    return {
        place
        for place in before.keys() | after.keys()
        if before.get(place, missing) != after.get(place, missing)
    }


def _written(model: nn.Module, inputs: Inputs) -> set[_Place]:
    """The attributes that a run writes to."""
    made = _copied(model)
    before = _settings(made)
    run(made, inputs)
    return _differences(before, _settings(made))


def _identities(model: nn.Module) -> list[dict[str, int]]:
    """Of the attributes of all modules."""
    return [
        {key: id(value) for key, value in list(vars(module).items()) if key not in FLAGS}
        for module in model.modules()
    ]


def _changed(inputs: Inputs) -> Inputs:
    """Other inputs of the same kind."""
    return rebuild(inputs, lambda t: t.flip(-1) * 0.7 if t.is_floating_point() and t.dim() else t)


def _copied(model: nn.Module) -> nn.Module:
    try:
        made = copied(model)
    except Exception as error:  # whatever a user's class raises
        raise ValueError(
            f"model: the fast mode works on a copy, and this one cannot be copied "
            f"({first_line(error)}); explain it without compile()"
        ) from error
    return made.eval().requires_grad_(False)


def _unfoldable(model: nn.Module, trace: _Trace, norm: str, layers: Sequence[str]) -> str | None:
    """Why a BatchNorm stays; None where it can go."""
    convolution = trace.producers.get(norm)
    module = model.get_submodule(norm)
    if convolution is None:
        return "no convolution in front"
    if len(trace.calls[norm]) > 1 or len(trace.calls[convolution]) > 1:
        return "called several times"
    if norm in layers or convolution in layers:
        return "a target layer"
    if module.running_mean is None:
        return "no running statistics"
    if type(module).forward is not _BatchNorm.forward and not _is_timm(module):
        return f"{type(module).__name__} has a forward of its own"
    if "weight" not in model.get_submodule(convolution)._parameters:  # normed, parametrized, pruned
        return "the convolution's weight is computed"
    return None


def _are_read_elsewhere(model: nn.Module, inputs: Inputs, pairs: Sequence[tuple[str, str]]) -> bool:
    """Whether anything but the norm behind it reads what one of the convolutions returns.

    All others get NaN in its place.
    """
    returned: dict[str, Tensor] = {}

    def spoil(norm: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            returned[norm] = output
            return torch.full_like(output, torch.nan)

        return hook

    def restore(norm: str) -> Callable[..., Any]:
        return lambda module, args, kwargs: ((returned[norm],), {})

    hooks = [(model.get_submodule(conv), spoil(norm)) for conv, norm in pairs]
    before = [(model.get_submodule(norm), restore(norm)) for _, norm in pairs]
    try:
        found = trial(model, inputs, hooks, before=before)
    except Exception as error:  # a model's that looks at what it computes
        raise_out_of_memory(error)
        return True
    return not _agree(found, trial(model, inputs))


def _is_timm(norm: nn.Module) -> bool:
    """timm's BatchNorm with an activation."""
    return type(norm).__name__ == "BatchNormAct2d"


def _fold_pair(model: nn.Module, convolution: str, norm: str) -> None:
    """bn(conv(x)) as one convolution: weight s W, bias s (b - mean) + shift, computed in double.

    s = scale / sqrt(variance + eps), by output channel.
    """
    conv: Any = model.get_submodule(convolution)
    bn: Any = model.get_submodule(norm)
    factor = (bn.running_var.double() + bn.eps).rsqrt()
    factor = factor if bn.weight is None else factor * bn.weight.double()
    bias = -bn.running_mean.double() if conv.bias is None else conv.bias.double() - bn.running_mean
    bias = factor * bias if bn.bias is None else factor * bias + bn.bias
    weight = conv.weight.double() * factor.reshape(-1, *(1,) * (conv.weight.dim() - 1))
    dtype = conv.weight.dtype
    conv.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
    rest = nn.Sequential(OrderedDict(drop=bn.drop, act=bn.act)) if _is_timm(bn) else nn.Identity()
    model.set_submodule(norm, rest)


def _agree(values: Any, expected: Any) -> bool:
    """Whether all tensors in them are equal but for the rounding of a whole network."""
    found, wanted = tensors_of(values), tensors_of(expected)
    return len(found) == len(wanted) and all(map(agree, found, wanted))
