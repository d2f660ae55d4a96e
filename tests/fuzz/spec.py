"""What a random network is made of: drawn from a seed, printed and read as one line."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

LAYERS = (
    "conv", "conv", "conv bn", "conv relu_", "relu", "relu_", "functional relu_", "identity",
    "dropout", "bn", "groupnorm", "depthwise", "residual", "residual_", "concat", "maxpool",
    "weight norm", "parametrized", "scale_", "gelu", "nested",
    "contiguous", "own function",
)  # fmt: skip
"""The kind of the layer that is explained; a trailing underscore marks an operation in place."""
BLOCKS = (
    "conv relu",
    "conv bn relu_",
    "residual",
    "residual_",
    "depthwise",
    "concat",
    "bn",
    "gelu",
)
SAME_OBJECT = {"identity", "dropout", "contiguous"}
"""Layers that return their very input."""
OVERWRITES_INPUT = {"relu_", "functional relu_", "scale_"}
VIEWS = ("flatten", "transpose", "permute", "half", "window", "chunk", "tokens")
RETURNS = (
    "twice", "single", "later", "dict", "dataclass", "namedtuple", "pooled first", "earlier",
    "nested",
)  # fmt: skip
KEEPS = ("attribute", "pooled", "both", "list")
HOOKS = (
    "store", "store pooled", "store detached", "store with kwargs", "replace", "replace by itself",
    "inplace", "pre", "child store", "watch gradient",
)  # fmt: skip
BEHIND = (
    "relu_", "add_", "mul_", "zero slice", "double slice", "relu_ of view", "clamp_",
    "module relu_",
)  # fmt: skip
HEADS = (
    "pooled", "pooled", "mlp", "flat", "maximum", "attention", "two", "no_grad gate", "early exit",
    "unread", "detached",
)  # fmt: skip
GRAD = (
    "no_grad below", "enable_grad layer", "set_grad_enabled layer", "enable_grad all",
    "enable_grad above", "no_grad head", "no_grad all", "no_grad layer", "no_grad branch",
    "training decides below", "enable_grad below", "no_grad body", "enable_grad body",
)  # fmt: skip
CHECKPOINTS = (
    "reentrant layer", "plain layer", "reentrant below", "plain below", "reentrant above",
    "plain above", "reentrant both", "plain both",
)  # fmt: skip


@dataclass(frozen=True)
class Spec:
    """One network and how it is called. Every field but the first two has a plain default."""

    seed: int
    """Of weights and images."""
    channels: int = 4
    below: tuple[str, ...] = ()
    layer: str = "conv"
    named: str = "itself"
    """Which module is explained: the layer itself or the ``stage`` that ends with it."""
    view: str = "none"
    """The view of its result that the layer returns."""
    returns: str = "tensor"
    keep: str = "none"
    """What the layer keeps on itself, for the head to read."""
    hooks: tuple[str, ...] = ()
    """Forward hooks of the model's own on the layer, in their order."""
    lazy: bool = False
    """Whether those are hung in the first forward."""
    skip: str = "vector"
    """How what was kept is read: pooled into the head, or as a map added further up."""
    repeat: int = 1
    """How often the layer runs in a row."""
    reread: bool = False
    """Whether the head reads the layer's input too."""
    behind: str = "none"
    """An operation in place on what the layer returned."""
    above: tuple[str, ...] = ()
    head: str = "pooled"
    output: str = "tensor"
    """What the model returns: logits, or a ``tuple`` or ``dict`` that holds them."""
    grad: str = "none"
    """A block of the model that sets the grad mode."""
    checkpoint: str = "none"
    frozen: str = "none"
    mode: str = "eval"
    around: str = "none"
    """The grad mode that the caller has."""

    def __str__(self) -> str:
        said = asdict(self)
        plain = {field.name: field.default for field in fields(self)}
        return json.dumps({k: v for k, v in said.items() if v != plain[k]})

    @property
    def custom(self) -> bool:
        """Whether the layer is a module of the project's own around a plain one."""
        returns = self.view != "none" or self.returns != "tensor"
        return returns or self.keep != "none" or self.grad.endswith("body")

    @property
    def changing_hooks(self) -> tuple[int, ...]:
        """Those of the hooks that change what the caller receives."""
        return tuple(i for i, h in enumerate(self.hooks) if h in ("replace", "inplace"))

    @property
    def reads_input(self) -> bool:
        """Whether somebody besides the layer reads its input later."""
        return self.reread or self.head == "unread"

    @property
    def stored(self) -> bool:
        """Whether somebody besides the caller holds what the layer returned."""
        return self.keep != "none" or any("store" in hook for hook in self.hooks)


def parse(line: str) -> Spec:
    said = json.loads(line)
    return Spec(**{key: tuple(v) if isinstance(v, list) else v for key, v in said.items()})


def draw(seed: int) -> Spec:
    """The spec of a seed."""
    chance = random.Random(seed)

    def some(values: tuple[str, ...], probability: float, otherwise: str = "none") -> str:
        return chance.choice(values) if chance.random() < probability else otherwise

    hooks = tuple(chance.sample(HOOKS, chance.randint(1, 2))) if chance.random() < 0.35 else ()
    return legal(
        Spec(
            seed=seed,
            channels=chance.choice((4, 6, 8)),
            below=tuple(chance.choices(BLOCKS, k=chance.randint(0, 2))),
            layer=chance.choice(LAYERS),
            named=some(("stage",), 0.2, "itself"),
            view=some(VIEWS, 0.2),
            returns=some(RETURNS, 0.25, "tensor"),
            keep=some(KEEPS, 0.25),
            hooks=hooks,
            lazy=chance.random() < 0.3,
            skip=some(("map",), 0.4, "vector"),
            repeat=chance.choice((1, 1, 1, 1, 1, 2, 3)),
            reread=chance.random() < 0.25,
            behind=some(BEHIND, 0.3),
            above=tuple(chance.choices(BLOCKS, k=chance.randint(0, 2))),
            head=chance.choice(HEADS),
            output=some(("tuple", "dict"), 0.1, "tensor"),
            grad=some(GRAD, 0.25),
            checkpoint=some(CHECKPOINTS, 0.2),
            frozen=some(("all", "some", "below"), 0.35),
            mode=some(("train", "half"), 0.25, "eval"),
            around=some(("no_grad", "inference_mode", "enable_grad"), 0.4),
        )
    )


def legal(spec: Spec) -> Spec:
    """The nearest spec that is a network which runs, and whose right answer is beyond doubt."""
    change: dict[str, Any] = {}

    def has(name: str) -> Any:
        return change.get(name, getattr(spec, name))

    if spec.layer in ("maxpool", "concat"):  # they change the shape
        change["repeat"] = 1
    if spec.view != "none" or spec.returns != "tensor":
        change["repeat"] = 1
    if spec.view == "chunk":  # torch forbids to write to one of several views
        change["behind"] = "none"
        change["hooks"] = tuple(h for h in spec.hooks if h != "inplace")
        change["returns"] = "tensor"
    if spec.layer in SAME_OBJECT and not spec.custom:
        # The result is the input: who reads which of them is one question, asked either way.
        if spec.reads_input:
            change["behind"], change["hooks"] = "none", ()
        change["repeat"] = 1
    if spec.layer in SAME_OBJECT | OVERWRITES_INPUT and spec.custom:
        change["reread"] = False  # the input is the memory behind the view
        change["head"] = "pooled" if spec.head == "unread" else spec.head
    if spec.layer in OVERWRITES_INPUT and spec.repeat > 1 and "checkpoint" in spec.checkpoint:
        change["repeat"] = 1
    if spec.checkpoint.endswith(("layer", "both", "below")) and spec.layer in (
        SAME_OBJECT | OVERWRITES_INPUT
    ):
        change["checkpoint"] = "none"  # a checkpoint whose input is overwritten recomputes rubbish
    if spec.checkpoint.endswith("above") and spec.behind != "none":
        change["checkpoint"] = "none"
    if spec.checkpoint.startswith("reentrant") and spec.view != "none":
        change["behind"] = "none"  # torch forbids to write to a view that a checkpoint has returned
    ungraphed = spec.grad in ("no_grad layer", "no_grad below", "training decides below")
    if ungraphed and spec.view != "none":  # torch forbids to write to a view that no_grad has made
        change["behind"] = "none"
        change["hooks"] = tuple(h for h in has("hooks") if h != "inplace")
    if spec.grad in ("no_grad layer", "no_grad all"):
        change["repeat"] = 1  # without a graph nothing tells which run is made of which
    if spec.lazy and not spec.hooks:
        change["lazy"] = False
    if not (spec.stored or spec.reread):
        change["skip"] = "vector"
    parents = spec.layer in ("conv bn", "conv relu_", "nested") and spec.view == "none"
    if "child store" in spec.hooks and not parents:
        change["hooks"] = tuple(h for h in has("hooks") if h != "child store")
    return replace(spec, **change)


def smaller(spec: Spec) -> Iterator[Spec]:
    """Specs with one habit less."""
    for field in fields(spec):
        value = getattr(spec, field.name)
        if field.name == "seed" or value == field.default:
            continue
        yield replace(spec, **{field.name: field.default})
        if isinstance(value, tuple):
            for i in range(len(value)):
                yield replace(spec, **{field.name: value[:i] + value[i + 1 :]})
