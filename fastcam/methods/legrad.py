"""Maps of vision transformers from the gradients of attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode
from typing_extensions import Unpack

from fastcam import ops
from fastcam.engine.inputs import (
    Inputs,
)
from fastcam.engine.layers import Layers
from fastcam.engine.shapes import Reshape
from fastcam.engine.trials import trial
from fastcam.engine.values import first_with_positions
from fastcam.errors import ArgumentError
from fastcam.methods.base import Method, Reading
from fastcam.methods.maps import Size, extents_of
from fastcam.methods.result import Result
from fastcam.targets import Selection, Targets

Head = Callable[[Tensor], Tensor]


class LeGrad(Method):
    """M = mean over blocks l, heads and queries of ReLU(dS^l / dP^l), at the keys that are patches.

    P^l is the attention after softmax in block l, (heads, queries, keys); S^l is the score of the
    head for the mean of that block's tokens. Bousselham et al. 2024, arXiv 2404.03214, equations 6
    to 9. Attention is recognised as ``scaled_dot_product_attention``, as a softmax of a square
    matrix, and in ``nn.MultiheadAttention``.
    """

    name = "legrad"
    graph = "images"

    def __init__(
        self,
        model: nn.Module,
        target_layers: Layers | None = None,
        *,
        head: Head | None = None,
        **reading: Unpack[Reading],
    ) -> None:
        """As for the other methods.

        Args:
            target_layers: the blocks, each with one attention; all of them by default.
            head: turns mean tokens (N, C) into logits; not needed for the vision transformers of
                torchvision and timm.

        Raises:
            ValueError: for other transformers, if ``head`` is not given.
        """
        super().__init__(model, target_layers, **reading)
        self._head = head or _head_of(self.model)

    def __call__(
        self,
        images: Inputs,
        targets: Targets = None,
        *,
        size: Size = None,
        normalize: bool = True,
    ) -> Tensor:
        """Maps (N, *size) in float32 (float64 for a float64 model), or (N, K, *size).

        Args:
            images: floating point (N, C, H, W), or a tuple or mapping of the model's inputs.
            targets: see :func:`fastcam.targets.select`; None for the top class.
            size: the maps' extents, by default those of the images; "layer" for the grid of
                patches.
            normalize: whether to scale each map to [0, 1]; a constant map becomes 0.

        Raises:
            ValueError, TypeError: if there is no attention, or targets or sizes do not fit.
        """
        with self.calling(images):
            self.find_layers(images)
            attention = _Attention()
            last: dict[str, tuple[GradientEdge, torch.Size]] = {}
            returned: dict[str, Tensor] = {}
            notes = [
                (self.model.get_submodule(name), _note(name, attention, last, returned))
                for name in self.layers
            ]
            with attention:
                record, selection = self.capture_scores(images, targets, notes)
            count = len(record.logits)
            rows = torch.arange(count, device=record.logits.device)
            maps = []
            for i, name in enumerate(record.layers):
                read = record.reading_of_one_run(i)
                tokens = returned[name]
                if name not in last:
                    raise ArgumentError("target_layers", f"'{name}' has no attention")
                edge, shape = last[name]
                if tokens.dim() != 3 or shape[-1] != tokens.shape[1]:
                    raise ArgumentError(
                        "target_layers",
                        f"'{name}' attends {shape[-1]} keys, but returns "
                        f"{tuple(tokens.shape)}; LeGrad needs blocks that attend all tokens",
                    )
                with torch.enable_grad(), record.autocast():
                    scores = selection.of(self._head(tokens.mean(1)), rows)
                block = _Block(edge, shape, count, read)
                maps += Selection(scores, None).by_class(block.maps)
            mean = torch.stack(maps).mean(0)
            if size == "layer":
                mean = ops.normalize(mean) if normalize else mean
            else:
                mean = ops.upsample(mean, extents_of(record, size), normalize)
            return self.keep(Result.of(mean, record, selection))

    def find_layers(self, inputs: Inputs) -> None:
        if not self.layers:
            first = self.first_image(inputs)
            self.layers = _blocks(self.model, first)


class _Block(NamedTuple):
    """The attention of one block."""

    edge: GradientEdge
    """The attention's place in the graph."""
    shape: torch.Size
    """(N heads, queries, keys) or (N, heads, queries, keys)."""
    images: int
    """N."""
    read: Reshape
    """Turns tokens (N, T, C) into (N, C, *S)."""

    def maps(self, scores: Tensor, retain: bool) -> list[Tensor]:
        """The mean over heads and queries of ReLU(dS / dP), at the keys that are patches."""
        (gradient,) = torch.autograd.grad(
            scores, [self.edge], torch.ones_like(scores), retain_graph=True
        )
        gradient = gradient if gradient.dtype == torch.float64 else gradient.float()
        heads = gradient.shape[:-2].numel() // max(self.images, 1)
        gradient = gradient.reshape(self.images, heads, *self.shape[-2:]).relu().mean((1, 2))
        return [self.read(gradient.unsqueeze(2)).squeeze(1)]


def _note(
    name: str,
    attention: _Attention,
    last: dict[str, tuple[GradientEdge, torch.Size]],
    returned: dict[str, Tensor],
) -> Callable[..., None]:
    """A hook that keeps the block's tokens, and the last attention before the block ended."""

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        for tokens in first_with_positions(output):
            returned[name] = tokens.clone()  # with its graph; the model may write to the tokens
        if attention.edges:
            last[name] = attention.edges.pop()
            attention.edges.clear()

    return hook


def _head_of(model: nn.Module) -> Head:
    encoder = getattr(model, "encoder", None)
    if hasattr(model, "heads") and hasattr(encoder, "ln"):  # torchvision
        norm, head = model.get_submodule("encoder.ln"), model.get_submodule("heads")
        return lambda tokens: head(norm(tokens))
    if all(isinstance(getattr(model, name, None), nn.Module) for name in ("norm", "head")):  # timm
        second = getattr(model, "fc_norm", None) or nn.Identity()
        return lambda tokens: model.get_submodule("head")(
            second(model.get_submodule("norm")(tokens))
        )
    raise ArgumentError(
        "head",
        f"unknown for {type(model).__name__}; give a function from mean tokens (N, C) to "
        "logits, or use another method if this is not a vision transformer",
    )


def _blocks(model: nn.Module, inputs: Inputs) -> tuple[str, ...]:
    """The blocks of a transformer: modules in a list of modules that contain attention."""
    lists = (nn.Sequential, nn.ModuleList)
    inside: list[str] = []
    found: list[str] = []

    def attended() -> None:
        for name in reversed(inside):
            parent = name.rpartition(".")[0]
            if name and isinstance(model.get_submodule(parent), lists):
                found.append(name)
                return

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: inside.append(name)

    named = list(model.named_modules())
    leave: list[tuple[nn.Module, Any]] = [
        (module, lambda *_: inside.pop() and None) for _, module in named
    ]
    with _Attention(attended):
        trial(model, inputs, leave, before=[(module, enter(name)) for name, module in named])
    if not found:
        raise ArgumentError(
            "target_layers", "found no attention in a list of blocks; name the blocks"
        )
    return tuple(dict.fromkeys(found))


class _Attention(TorchFunctionMode):
    """Within the context, keeps the graph edge of every attention matrix.

    Args:
        met: called for every attention matrix.
    """

    def __init__(self, met: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.edges: list[tuple[GradientEdge, torch.Size]] = []
        self._met = met

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._product(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            return self._module(*args, **kwargs)
        output = func(*args, **kwargs)
        if func in _SOFTMAX and output.dim() >= 3 and output.shape[-1] == output.shape[-2]:
            self._keep(output)
        return output

    def _keep(self, attention: Tensor) -> None:
        self._met()
        if attention.requires_grad:
            self.edges.append((get_gradient_edge(attention), attention.shape))

    def _product(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """softmax(Q K^T / sqrt(d) + mask) V, with the matrix in the graph."""
        if enable_gqa:
            groups = query.shape[-3] // key.shape[-3]
            key, value = (x.repeat_interleave(groups, -3) for x in (key, value))
        scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
        scores = query @ key.mT * scale
        if is_causal:
            attn_mask = torch.ones_like(scores[0, 0], dtype=torch.bool).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -math.inf)
        elif attn_mask is not None:
            scores = scores + attn_mask
        attention = scores.softmax(-1)
        self._keep(attention)
        return attention @ value

    def _module(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Runs nn.MultiheadAttention's function with weights, which it omits by default."""
        wanted, mean = kwargs.get("need_weights", True), kwargs.get("average_attn_weights", True)
        kwargs |= {"need_weights": True, "average_attn_weights": False}
        output, weights = F.multi_head_attention_forward(*args, **kwargs)
        assert weights is not None
        self._met()
        if weights.grad_fn is not None:
            # the returned weights are a view of the matrix in the graph
            node, number = weights.grad_fn.next_functions[0]
            assert node is not None
            self.edges.append((GradientEdge(node, number), weights.shape))
        if not wanted:
            return output, None
        return output, weights.mean(1) if mean else weights


_SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)
