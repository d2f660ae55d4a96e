"""The network of a spec."""

from __future__ import annotations

import contextlib
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import weight_norm
from torch.nn.utils.parametrizations import weight_norm as parametrized
from torch.utils.checkpoint import checkpoint

from .spec import Spec

EXTENTS = (10, 8)
CLASSES = 5
Pair = namedtuple("Pair", "map pooled")


@dataclass
class Features:
    """What a layer may return."""

    map: Tensor
    pooled: Tensor


class Probe:
    """Where the explained activation comes into being, before anybody keeps or reads it."""

    def __init__(self) -> None:
        self.edit: Callable[[Tensor], Tensor] | None = None
        self.count = 0
        """How often the layer has run in this forward."""

    def __call__(self, made: Tensor) -> Tensor:
        self.count += 1
        return made if self.edit is None else self.edit(made)


class Residual(nn.Module):
    def __init__(self, channels: int, inplace: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(channels)
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn(self.conv(x))
        if self.inplace:
            out += x
            return F.relu_(out)
        return F.relu(out + x)


class Concat(nn.Module):
    """(N, C, H, W) -> (N, 2 C, H, W), as a DenseNet's block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(x))], 1)


class Nested(nn.Module):
    """A module that hands on what its child returned."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(channels, channels, 1), nn.Sequential(nn.BatchNorm2d(channels), nn.SiLU())
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class FunctionalReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x, inplace=True)


class Squash(torch.autograd.Function):
    """A function with a backward of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.tanh()
        ctx.save_for_backward(y)
        return y + 0.1 * x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return g * (1.1 - y * y)


class OwnFunction(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Squash.apply(x)


class Contiguous(nn.Module):
    """Returns its very input, for it is contiguous already."""

    def forward(self, x: Tensor) -> Tensor:
        return x.contiguous()


class Scale(nn.Module):
    """A parameter times the input, in place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.rand(channels, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(self.factor)


def block(kind: str, channels: int) -> tuple[nn.Module, int]:
    """A module and the channels it returns."""
    c = channels
    conv = nn.Conv2d(c, c, 3, padding=1)
    modules: dict[str, Callable[[], nn.Module]] = {
        "conv": lambda: conv,
        "conv bn": lambda: nn.Sequential(conv, nn.BatchNorm2d(c)),
        "conv relu": lambda: nn.Sequential(conv, nn.ReLU()),
        "conv relu_": lambda: nn.Sequential(conv, nn.ReLU(inplace=True)),
        "conv bn relu_": lambda: nn.Sequential(conv, nn.BatchNorm2d(c), nn.ReLU(inplace=True)),
        "relu": nn.ReLU,
        "relu_": lambda: nn.ReLU(inplace=True),
        "functional relu_": FunctionalReLU,
        "gelu": nn.GELU,
        "identity": nn.Identity,
        "contiguous": Contiguous,
        "own function": OwnFunction,
        "dropout": lambda: nn.Dropout(0.5),
        "bn": lambda: nn.BatchNorm2d(c),
        "groupnorm": lambda: nn.GroupNorm(2, c),
        "depthwise": lambda: nn.Conv2d(c, c, 3, padding=1, groups=c),
        "residual": lambda: Residual(c),
        "residual_": lambda: Residual(c, inplace=True),
        "concat": lambda: Concat(c),
        "maxpool": lambda: nn.MaxPool2d(2),
        "weight norm": lambda: weight_norm(conv),
        "parametrized": lambda: parametrized(conv),
        "scale_": lambda: Scale(c),
        "nested": lambda: Nested(c),
    }
    return modules[kind](), 2 * c if kind == "concat" else c


class Layer(nn.Module):
    """A layer of the user's own: keeps, derives, returns views and containers."""

    def __init__(self, body: nn.Module, spec: Spec, channels: int, probe: Probe) -> None:
        super().__init__()
        self.body, self.spec = body, spec
        self.deeper = nn.Conv2d(channels, channels, 1)
        self.cls = nn.Parameter(torch.randn(1, 1, channels))
        self.__dict__["probe"] = probe
        self.__dict__["kept"] = []

    def forward(self, x: Tensor) -> Any:
        with grad_mode(self.spec, "body", self.training):
            raw = self.body(x)
        if self.spec.returns == "earlier":
            earlier, raw = (raw * 2).tanh(), (raw * 0.5).tanh()
        else:
            earlier = raw
        if self.spec.view == "chunk":
            y, rest = raw.chunk(2, 1)
        else:
            y, rest = self.view(raw), None
        if not self.spec.changing_hooks:
            y = self.probe(y)
        if self.spec.keep in ("attribute", "both"):
            self.feat = y
        if self.spec.keep in ("pooled", "both"):
            self.pooled = pooled(y)
        if self.spec.keep == "list":
            self.kept.append(y)
        return self.wrapped(y, earlier) if rest is None else (y, rest)

    def view(self, y: Tensor) -> Tensor:
        kind = self.spec.view
        if kind == "flatten":
            return y.flatten(2)
        if kind == "transpose":
            return y.flatten(2).transpose(1, 2)
        if kind == "permute":
            return y.permute(0, 2, 3, 1)
        if kind == "half":
            return y[:, : y.shape[1] // 2]
        if kind == "window":
            return y[..., 1:, 1:]
        if kind == "tokens":
            cls = self.cls.expand(len(y), -1, -1)
            return torch.cat([cls, y.flatten(2).transpose(1, 2)], 1)
        return y

    def wrapped(self, y: Tensor, earlier: Tensor) -> Any:
        kind = self.spec.returns
        if kind == "single":
            return (y,)
        if kind == "twice":
            return y, y
        if kind == "later":
            return [y, (y * 2).tanh()]
        if kind == "dict":
            return OrderedDict(map=y, pooled=pooled(y))
        if kind == "dataclass":
            return Features(y, pooled(y))
        if kind == "namedtuple":
            return Pair(y, pooled(y))
        if kind == "pooled first":
            return pooled(y), y
        if kind == "earlier":
            return y, earlier
        if kind == "nested":
            return {"maps": [y, y * 3], "pooled": (pooled(y),)}
        return y


def grad_mode(spec: Spec, place: str, training: bool) -> contextlib.AbstractContextManager[Any]:
    """The block that the spec has at this place."""
    name, _, where = spec.grad.rpartition(" ")
    if where != place:
        return contextlib.nullcontext()
    if name == "training decides":
        return torch.set_grad_enabled(training)
    return {
        "no_grad": torch.no_grad,
        "enable_grad": torch.enable_grad,
        "set_grad_enabled": lambda: torch.set_grad_enabled(True),
    }[name]()


def opened(value: Any) -> tuple[Tensor, list[Tensor]]:
    """The explained tensor in what the layer returned, and what else is there."""
    if isinstance(value, Tensor):
        return value, []
    if isinstance(value, Features):
        return value.map, [value.pooled]
    if isinstance(value, dict) and "maps" in value:
        return value["maps"][0], [value["maps"][1], value["pooled"][0]]
    values = list(value.values()) if isinstance(value, dict) else list(value)
    first = next(i for i, tensor in enumerate(values) if tensor.dim() > 2)
    return values.pop(first), values


def pooled(tensor: Tensor) -> Tensor:
    """(N, ...) -> (N, 1), by a way that saves nothing and is not linear."""
    return tensor.flatten(1).mean(1, keepdim=True).tanh()


class Network(nn.Module):
    """(N, 3, 10, 8) -> (N, 5).

    Args:
        spec: what it is made of.
        plain: whether checkpoints are plain calls: the same numbers and the whole graph.
    """

    def __init__(self, spec: Spec, plain: bool = False) -> None:
        super().__init__()
        self.spec, self.plain = spec, plain
        self.__dict__["probe"] = Probe()
        self.__dict__["store"] = {}
        c = spec.channels
        self.stem = nn.Conv2d(3, c, 3, padding=1)
        below, c = self._stack(spec.below, c)
        body, width = block(spec.layer, c)
        layer = Layer(body, spec, width, self.probe) if spec.custom else body
        self.below = nn.Sequential(*below)
        self.stage = nn.Sequential(nn.Conv2d(c, c, 1), layer)
        self.relu_ = nn.ReLU(inplace=True)
        self.width = width // 2 if spec.view in ("half", "chunk") else width
        self.scale = nn.Parameter(torch.rand(()) + 0.5)
        above, c = self._stack(spec.above, self.width)
        self.above = nn.Sequential(*above)
        c = self.width if spec.head == "early exit" else c
        self.head = nn.Linear(c, CLASSES)
        self.hidden = nn.Linear(c, c)
        self.extra = nn.Linear(1, CLASSES)
        self.gate = nn.Linear(c, c)
        self._hung = False
        if not spec.lazy:
            self._hang()

    @staticmethod
    def _stack(kinds: tuple[str, ...], channels: int) -> tuple[list[nn.Module], int]:
        modules = []
        for kind in kinds:
            module, channels = block(kind, channels)
            modules.append(module)
        return modules, channels

    @property
    def layer(self) -> nn.Module:
        return self.stage[1]

    @property
    def layer_name(self) -> str:
        return "stage" if self.spec.named == "stage" else "stage.1"

    def reshape(self) -> Callable[[Tensor], Tensor] | None:
        """What reads the layer's output as (N, C, H, W), where that is not its shape."""
        if self.spec.view in ("flatten", "transpose", "permute", "tokens"):
            return self.as_map
        return None

    def as_map(self, y: Tensor) -> Tensor:
        """The layer's tensor as (N, C, H, W)."""
        kind = self.spec.view
        if kind == "permute":
            return y.permute(0, 3, 1, 2)
        if kind == "tokens":
            y = y[:, 1:]
        if kind in ("transpose", "tokens"):
            y = y.transpose(1, 2)
        if kind in ("flatten", "transpose", "tokens"):
            half = 2 if self.spec.layer == "maxpool" else 1
            y = y.unflatten(2, (EXTENTS[0] // half, EXTENTS[1] // half))
        return y

    # hooks of the model's own ------------------------------------------------------------------

    def _hang(self) -> None:
        self._hung = True
        layer = self.layer
        changing = self.spec.changing_hooks
        if not self.spec.custom and not changing:
            self._register_probe(layer)
        for i, kind in enumerate(self.spec.hooks):
            self._register(layer, kind, probed=i == max(changing, default=None))

    def _register_probe(self, layer: nn.Module) -> None:
        """Hung on judges' copies alone: see ``instrument``."""

    def _register(self, layer: nn.Module, kind: str, probed: bool) -> None:
        store, probe = self.store, self.probe

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            store["map"] = opened(output)[0]

        def keep_with_kwargs(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            store["map"] = opened(output)[0]

        def keep_pooled(module: nn.Module, args: Any, output: Any) -> None:
            store["pooled"] = pooled(opened(output)[0])

        def keep_detached(module: nn.Module, args: Any, output: Any) -> None:
            store["detached"] = opened(output)[0].detach().clone()

        def substitute(module: nn.Module, args: Any, output: Any) -> Any:
            made = opened(output)[0] * 1.5 + 0.1
            return probe(made) if probed else made

        def same(module: nn.Module, args: Any, output: Any) -> Any:
            return output

        def overwrite(module: nn.Module, args: Any, output: Any) -> None:
            made = opened(output)[0].mul_(0.7)
            if probed:
                probe(made)

        def watch(module: nn.Module, args: Any, output: Any) -> None:
            made = opened(output)[0]
            if made.requires_grad:
                made.register_hook(lambda gradient: None)
                made.retain_grad()

        def before(module: nn.Module, args: Any) -> Any:
            return (args[0] + 0.3,)

        if kind == "store":
            layer.register_forward_hook(keep)
        elif kind == "store with kwargs":
            layer.register_forward_hook(keep_with_kwargs, with_kwargs=True)
        elif kind == "store pooled":
            layer.register_forward_hook(keep_pooled)
        elif kind == "store detached":
            layer.register_forward_hook(keep_detached)
        elif kind == "replace":
            layer.register_forward_hook(substitute)
        elif kind == "replace by itself":
            layer.register_forward_hook(same)
        elif kind == "inplace":
            layer.register_forward_hook(overwrite)
        elif kind == "watch gradient":
            layer.register_forward_hook(watch)
        elif kind == "pre":
            layer.register_forward_pre_hook(before)
        elif kind == "child store":
            child = list((layer.body if self.spec.custom else layer).children())[-1]
            child.register_forward_hook(keep)

    # running -----------------------------------------------------------------------------------

    def _mode(self, place: str) -> contextlib.AbstractContextManager[Any]:
        return grad_mode(self.spec, place, self.training)

    def _run(self, place: str, part: Callable[[Tensor], Any], x: Tensor) -> Any:
        kind, _, where = self.spec.checkpoint.rpartition(" ")
        both = where == "both" and place in ("layer", "below")
        with self._mode(place):
            if self.plain or not (where == place or both):
                return part(x)
            return checkpoint(part, x, use_reentrant=kind == "reentrant")

    def _behind(self, y: Tensor) -> Tensor:
        kind = self.spec.behind
        if kind == "relu_":
            return F.relu_(y)
        if kind == "module relu_":
            return self.relu_(y)
        if kind == "add_":
            y += self.scale
        elif kind == "mul_":
            y *= self.scale
        elif kind == "clamp_":
            return y.clamp_(min=-0.2)
        elif kind == "zero slice":
            y[:, :1] = 0
        elif kind == "double slice":
            y[:, 1:] *= 2
        elif kind == "relu_ of view":
            y.transpose(1, 2).relu_()
        return y

    def forward(self, x: Tensor) -> Any:
        self.probe.count = 0
        self.store.clear()
        if not self._hung:
            self._hang()
        with self._mode("all"):
            logits = self._forward(x)
        if self.spec.output == "tuple":
            return x.mean((1, 2, 3)), logits
        return {"features": x.mean(1), "logits": logits} if self.spec.output == "dict" else logits

    def _forward(self, x: Tensor) -> Tensor:
        x = self._run("below", lambda x: self.below(self.stem(x)), x)
        x = self.stage[0](x) if self.spec.named == "itself" else x
        given = x

        def stage(x: Tensor) -> Any:
            x = self.layer(x) if self.spec.named == "itself" else self.stage(x)
            for _ in range(self.spec.repeat - 1):
                x = self.layer(x) if self.spec.named == "itself" else self.stage(x)
            return x

        y, others = opened(self._run("layer", stage, x))
        read = [*others]
        y = self._behind(y)
        maps = []
        if self.spec.custom:
            layer = self.layer
            if self.spec.keep in ("attribute", "both"):
                maps.append(layer.feat)
            if self.spec.keep in ("pooled", "both"):
                read.append(layer.pooled)
            if self.spec.keep == "list":
                maps.append(layer.kept.pop())
                layer.kept.clear()
        x = self.as_map(y)
        if self.spec.head != "early exit":
            x = self._run("above", self.above, x)
        for name, kept in self.store.items():
            (maps if name in ("map", "detached") and kept.shape == y.shape else read).append(kept)
        if self.spec.reread:
            read.append(given)
        for kept in maps:
            kept = self.as_map(kept)
            if self.spec.skip == "map" and kept.shape == x.shape:
                x = x + kept * kept
            else:
                read.append(kept)
        with self._mode("head"):
            logits = self._head(x, given)
            for kept in read:
                with self._mode("branch"):
                    logits = logits + self.extra(pooled(kept * 2))
        return logits

    def _head(self, x: Tensor, given: Tensor) -> Tensor:
        kind = self.spec.head
        if kind == "unread":
            x = (
                given.new_ones(len(x), self.head.in_features, 1, 1)
                * given.mean((1, 2, 3))[:, None, None, None]
            )
        if kind == "detached":
            x = x.detach()
        if kind == "no_grad gate":
            with torch.no_grad():
                gate = self.gate(x.mean((2, 3))).sigmoid()
            x = x * gate[:, :, None, None]
        if kind == "attention":
            weights = x.sum(1, keepdim=True).flatten(2).softmax(2)
            return self.head((x.flatten(2) * weights).sum(2))
        if kind == "maximum":
            return self.head(x.amax((2, 3)))
        mean = x.mean((2, 3))
        if kind == "mlp":
            return self.head(F.gelu(self.hidden(mean)))
        if kind == "flat":
            position = torch.linspace(0.5, 1.5, x[0, 0].numel(), dtype=x.dtype)
            return self.head((x.flatten(2).tanh() * position).sum(2))
        if kind == "two":
            return self.head(mean) + self.head(self.hidden(x.relu().mean((2, 3))))
        return self.head(mean)


class Instrumented(Network):
    """The same network for a judge: checkpoints are plain calls, plain layers are probed too."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec, plain=True)

    def _register_probe(self, layer: nn.Module) -> None:
        def made(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            return self.probe(output)

        layer.register_forward_hook(made)


def build(spec: Spec, kind: type[Network] = Network) -> Network:
    """The network of a spec; every call gives the same weights in modules of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(spec.seed)
        model = kind(spec).double()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
                nn.init.normal_(module.running_mean, std=0.3)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def prepared(spec: Spec) -> Network:
    """The network as its user brings it: frozen, half in training, with gradients of its own."""
    model = build(spec).eval()
    if spec.mode != "eval":
        model.train()
    if spec.mode == "half":
        model.below.eval()
    if spec.frozen == "all":
        model.requires_grad_(False)
    elif spec.frozen == "below":
        model.stem.requires_grad_(False)
        model.below.requires_grad_(False)
        model.stage.requires_grad_(False)
    elif spec.frozen == "some":
        for i, parameter in enumerate(model.parameters()):
            parameter.requires_grad_(i % 3 == 0)
    for i, parameter in enumerate(model.parameters()):
        if i % 4 == 0 and parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    return model


def images_of(spec: Spec, which: int) -> Tensor:
    """The ``which``-th images: (2 or 3, 3, 10, 8)."""
    made = torch.Generator().manual_seed(1000 * spec.seed + which)
    return torch.randn(3 - which % 2, 3, *EXTENTS, generator=made, dtype=torch.float64)
