"""Which axis of a layer is batch, which channels and which positions, whatever the extents are.

The judge is whole-graph autograd in float64, read by the axes that the network was built with.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastcam
from fastcam.engine.layouts import Reading, find_layouts
from fastcam.engine.per_image import PerImage
from fastcam.engine.shapes import is_ambiguous


class Case(NamedTuple):
    model: nn.Module
    images: Tensor
    layer: str
    positions: Callable[[Tensor], Tensor]
    """What the layer returns -> (N, C, *S), in the order of the images' axes."""
    extents: tuple[int, ...] | None
    """Of the images' positions."""


class Net(nn.Module):
    """Modules by name and a forward of them."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


def layouts_of(model: nn.Module, images: Any, layer: str) -> Any:
    return find_layouts(model, PerImage().pair(model, images), [layer])


def first(value: Any) -> Tensor:
    """The tensor that counts of what a layer returned."""
    while not isinstance(value, Tensor):
        value = next(iter(value.values())) if isinstance(value, dict) else value[0]
    return value


def whole_graph(case: Case, class_id: int) -> tuple[Tensor, Tensor]:
    """A and dS/dA, (N, C, *S), by a backward through everything."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        kept[:] = [first(output)]
        kept[0].retain_grad()

    handle = case.model.get_submodule(case.layer).register_forward_hook(keep)
    try:
        outputs = case.model(case.images.clone().requires_grad_())
        logits = getattr(outputs, "logits", outputs)
        logits[:, class_id].sum().backward()
    finally:
        handle.remove()
        case.model.zero_grad()
    assert kept[0].grad is not None
    return case.positions(kept[0].detach()), case.positions(kept[0].grad)


def randn(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def head(inputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 6), nn.Tanh(), nn.Linear(6, 3))


def last(x: Tensor) -> Tensor:
    """(N, positions, C) -> (N, C, positions)"""
    return x.movedim(-1, 1)


def grid(*extents: int, skip: int = 0, behind: int = 0) -> Callable[[Tensor], Tensor]:
    """(N, tokens, C) -> (N, C, *extents)"""
    return lambda x: last(x[:, skip : x.shape[1] - behind].unflatten(1, extents))


def signal_lstm(kind: type[nn.RNNBase], count: int, batch_first: bool) -> Case:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.conv(x).movedim(1, -1)  # (N, L, C)
        y, _ = net.rnn(x if batch_first else x.transpose(0, 1))
        y = y if batch_first else y.transpose(0, 1)
        return net.head(y.square().mean(1))

    rnn = kind(12, 12, batch_first=batch_first, bidirectional=True)
    model = Net(forward, conv=nn.Conv1d(4, 12, 4, stride=4), rnn=rnn, head=head(24))
    positions = last if batch_first else lambda y: y.permute(1, 2, 0)
    return Case(model, randn(count, 4, 96), "rnn", positions, (96,))


def sequence_encoder(count: int, steps: int, batch_first: bool, layer: str) -> Case:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.embed(x)
        y = net.encoder(x if batch_first else x.transpose(0, 1))
        return net.head((y if batch_first else y.transpose(0, 1)).square().mean(1))

    block = nn.TransformerEncoderLayer(16, 2, 24, batch_first=batch_first)
    encoder = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
    model = Net(forward, embed=nn.Linear(9, 16), encoder=encoder, head=head(16))
    positions = last if batch_first else lambda y: y.permute(1, 2, 0)
    return Case(model, randn(count, steps, 9), layer, positions, (steps,))


def spectrogram(channels: int, times: int, turned: bool, embedded: bool = False) -> Case:
    """(N, 1, T, F), or (N, T, F); a turned network works on (N, C, F, T)."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = x.unsqueeze(1) if embedded else x
        return net.head(net.conv(x.mT if turned else x).square().mean((2, 3)))

    model = Net(forward, conv=nn.Conv2d(1, channels, 4, stride=4), head=head(channels))
    shape = (2, 4 * times, 12) if embedded else (2, 1, 4 * times, 12)
    return Case(
        model, randn(*shape), "conv", lambda y: y.mT if turned else y, (4 * times, 12)
    )  # fmt: skip


def audio_norm() -> Case:
    """BatchNorm over frequencies, for which they are turned to axis 1 and back (PANNs)."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.norm(x.transpose(1, 3)).transpose(1, 3)
        return net.head(net.conv(x).square().mean((2, 3)))

    model = Net(forward, norm=nn.BatchNorm2d(12), conv=nn.Conv2d(1, 8, 4), head=head(8))
    return Case(model, randn(2, 1, 11, 12), "conv", lambda y: y, (11, 12))


def electrodes() -> Case:
    """Conv1d behind a convolution over all electrodes: (N, 16, 49), no grid of 4 x 4 tokens."""

    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(net.layer(net.space(x).squeeze(2)).square().mean(2))

    model = Net(
        forward, space=nn.Conv2d(1, 8, (4, 1)), layer=nn.Conv1d(8, 16, 3, padding=1), head=head(16)
    )
    return Case(model, randn(2, 1, 4, 49), "layer", lambda y: y, None)


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNextBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.depth = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm, self.first = nn.LayerNorm(width), nn.Linear(width, 2 * width)
        self.second = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        return x + self.second(F.gelu(self.first(y))).permute(0, 3, 1, 2)


def convnext(layer: str, height: int = 8) -> Case:
    """C = H = W = 8, and N too."""
    model = Net(
        lambda net, x: net.head(net.norm(net.block(net.stem(x))).square().mean((2, 3))),
        stem=nn.Conv2d(3, 8, 2, stride=2),
        block=ConvNextBlock(8),
        norm=LayerNorm2d(8),
        head=head(8),
    )
    inner = layer in ("block.norm", "block.first", "block.second")
    positions = last if inner else lambda y: y
    return Case(model, randn(8, 3, 2 * height, 16), layer, positions, (2 * height, 16))


class Block(nn.Module):
    """A transformer's block, with attention written out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.norm2, self.mlp = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        y = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v
        x = x + y.transpose(1, 2).flatten(2)
        return x + F.gelu(self.mlp(self.norm2(x)))


def vit(size: tuple[int, int], layer: str, before: int = 0, behind: int = 0) -> Case:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.embed(x).flatten(2).transpose(1, 2)
        one = net.token.expand(len(x), -1, -1)
        parts = [one.repeat(1, before, 1), x, one.repeat(1, behind, 1)]
        return net.head(net.norm(net.block(torch.cat(parts, 1))).square().mean(1))

    model = Net(
        forward, embed=nn.Conv2d(3, 16, 4, stride=4), block=Block(16), norm=nn.LayerNorm(16),
        head=head(16),
    )  # fmt: skip
    model.token = nn.Parameter(randn(1, 1, 16))
    rows, columns = size[0] // 4, size[1] // 4
    positions = grid(rows, columns, skip=before, behind=behind)
    return Case(model, randn(2, 3, *size), layer, positions, size)


def patches_by_view(columns_first: bool, block: nn.Module | None = None) -> Case:
    """Patches cut out by a view and embedded by a linear layer, in either order of tokens."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = x.unflatten(3, (-1, 4)).unflatten(2, (-1, 4))  # (N, C, h, 4, w, 4)
        x = x.permute(0, 4, 2, 3, 5, 1) if columns_first else x.permute(0, 2, 4, 3, 5, 1)
        return net.head(net.block(net.embed(x.flatten(3).flatten(1, 2))).square().mean(1))

    model = Net(forward, embed=nn.Linear(48, 12), block=block or Block(12), head=head(12))
    positions = (lambda y: grid(5, 3)(y).mT) if columns_first else grid(3, 5)
    return Case(model, randn(2, 3, 12, 20), "block", positions, (12, 20))


class Mixer(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(tokens, 10), nn.GELU(), nn.Linear(10, tokens))
        self.channels = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).mT).mT
        return x + self.channels(self.norm2(x))


def mixer(layer: str) -> Case:
    model = Net(
        lambda net, x: net.head(net.mixer(net.embed(x).flatten(2).mT).square().mean(1)),
        embed=nn.Conv2d(3, 12, 4, stride=4),
        mixer=Mixer(12, 12),
        head=head(12),
    )
    return Case(model, randn(2, 3, 12, 16), layer, grid(3, 4), (12, 16))


def clip(layer: str, steps: int = 3) -> Case:
    """(B, T, C, H, W), whose pictures a 2-D network takes as one batch; T = C = 3."""

    def forward(net: Any, x: Tensor) -> Tensor:
        count, steps = x.shape[:2]
        x = net.norm(net.conv(x.flatten(0, 1)).relu())
        y, _ = net.rnn(x.mean((2, 3)).view(count, steps, -1))
        return net.head(y.square().mean(1) + x.view(count, steps, *x.shape[1:]).mean((1, 3, 4)))

    model = Net(
        forward, conv=nn.Conv2d(3, 8, 4, stride=2), norm=nn.BatchNorm2d(8),
        rnn=nn.GRU(8, 8, batch_first=True), head=head(8),
    )  # fmt: skip
    positions = last if layer == "rnn" else lambda y: y.unflatten(0, (-1, steps)).transpose(1, 2)
    extents = None if layer == "rnn" else (steps, 12, 16)
    return Case(model, randn(2, steps, 3, 12, 16), layer, positions, extents)


def volume_vit(order: tuple[int, int, int]) -> Case:
    """Tokens of a volume in any order of its axes."""

    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.embed(x).permute(0, *(2 + axis for axis in order), 1).flatten(1, 3)
        x = torch.cat([net.token.expand(len(x), -1, -1), x], 1)
        return net.head(net.block(x).square().mean(1))

    model = Net(forward, embed=nn.Conv3d(1, 8, (2, 4, 4), (2, 4, 4)), block=Block(8), head=head(8))
    model.token = nn.Parameter(randn(1, 1, 8))
    extents = (2, 3, 4)
    shape = [extents[axis] for axis in order]
    back = [2 + order.index(axis) for axis in range(3)]
    return Case(
        model,
        randn(2, 1, 4, 12, 16),
        "block",
        lambda y: grid(*shape, skip=1)(y).permute(0, 1, *back),
        (4, 12, 16),
    )


def transformers_case(name: str) -> Case:
    library = pytest.importorskip("transformers", reason="transformers is missing")
    sizes: dict[str, Any] = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 16, "num_labels": 3,
    }  # fmt: skip
    if name == "ast":
        config = library.ASTConfig(
            patch_size=4, time_stride=4, frequency_stride=4, max_length=20, num_mel_bins=12, **sizes
        )
        model = library.ASTForAudioClassification(config)
        layer = named(model, "layernorm_before")
        return Case(model, randn(2, 20, 12), layer, lambda y: grid(3, 5, skip=2)(y).mT, (20, 12))
    if name == "wav2vec2":
        config = library.Wav2Vec2Config(
            conv_dim=(8, 8), conv_kernel=(4, 3), conv_stride=(3, 3), num_feat_extract_layers=2,
            num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, **sizes,
        )  # fmt: skip
        model = library.Wav2Vec2ForSequenceClassification(config)
        return Case(model, randn(2, 160), "wav2vec2.encoder.layers.1.layer_norm", last, None)
    if name == "swin":
        config = library.SwinConfig(
            image_size=16, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[2, 2],
            window_size=4, num_labels=3,
        )  # fmt: skip
        model = library.SwinForImageClassification(config)
        return Case(model, randn(2, 3, 16, 24), "swin.layernorm", grid(4, 6), (16, 24))
    if name == "timesformer":
        config = library.TimesformerConfig(image_size=8, patch_size=4, num_frames=3, **sizes)
        model = library.TimesformerForVideoClassification(config)
        layer = "timesformer.encoder.layer.0"
        positions: Any = lambda y: grid(2, 2, 3, skip=1)(y).movedim(-1, 2)  # noqa: E731
        return Case(model, randn(2, 3, 3, 8, 8), layer, positions, (3, 8, 8))
    config = library.VideoMAEConfig(
        image_size=12, patch_size=4, num_frames=4, tubelet_size=2, **sizes
    )
    model = library.VideoMAEForVideoClassification(config)
    layer = named(model, "layernorm_before")
    return Case(model, randn(2, 4, 3, 12, 12), layer, grid(2, 3, 3), (4, 12, 12))


def named(model: nn.Module, end: str) -> str:
    return [name for name, _ in model.named_modules() if name.endswith(end)][-1]


def torchvision_case(name: str) -> Case:
    library = pytest.importorskip("torchvision", reason="torchvision is missing").models
    if name == "swin":
        model = library.SwinTransformer([2, 2], 8, [2, 2], [2, 2], [4, 4], num_classes=3)
        return Case(model, randn(2, 3, 16, 24), "norm", last, (16, 24))
    if name == "vit":
        model = library.VisionTransformer(16, 4, 2, 2, 16, 16, num_classes=3)
        layer = "encoder.layers.encoder_layer_1.ln_1"
        return Case(model, randn(2, 3, 16, 16), layer, grid(4, 4, skip=1), (16, 16))
    blocks = [
        library.video.mvit.MSBlockConfig(
            num_heads=heads, input_channels=inputs, output_channels=outputs,
            kernel_q=[3, 3, 3], kernel_kv=[3, 3, 3], stride_q=[1, stride, stride],
            stride_kv=[1, 2, 2],
        )
        for heads, inputs, outputs, stride in ((1, 8, 8, 1), (2, 8, 16, 2), (2, 16, 16, 1))
    ]  # fmt: skip
    model = library.video.MViT(
        (24, 24), 4, blocks, residual_pool=True, residual_with_cls_embed=False,
        rel_pos_embed=True, proj_after_attn=True, num_classes=3, dropout=0.0,
        attention_dropout=0.0, stochastic_depth_prob=0.0,
    )  # fmt: skip
    return Case(model, randn(2, 3, 4, 24, 24), "blocks.2.norm1", grid(2, 3, 3, skip=1), (4, 24, 24))


def timm_case(name: str, size: int, layer: str, positions: Any, **options: Any) -> Case:
    library = pytest.importorskip("timm", reason="timm is missing")
    model = library.create_model(name, num_classes=3, **options)
    return Case(model, randn(1, 3, size, size), layer, positions, (size, size))


CASES: dict[str, Callable[[], Case]] = {
    "Conv1d and LSTM": lambda: signal_lstm(nn.LSTM, 2, True),
    "LSTM of one signal": lambda: signal_lstm(nn.LSTM, 1, True),
    "GRU, steps first": lambda: signal_lstm(nn.GRU, 2, False),
    "GRU, as many steps as signals": lambda: signal_lstm(nn.GRU, 24, False),
    "RNN": lambda: signal_lstm(nn.RNN, 3, True),
    "encoder": lambda: sequence_encoder(2, 16, True, "encoder"),
    "encoder, steps first": lambda: sequence_encoder(2, 10, False, "encoder.layers.1"),
    "encoder, N = T = D": lambda: sequence_encoder(16, 16, False, "encoder.layers.0.norm2"),
    "encoder of one sequence": lambda: sequence_encoder(1, 8, False, "encoder.layers.0.linear1"),
    "spectrogram": lambda: spectrogram(8, 8, False),
    "long spectrogram": lambda: spectrogram(12, 40, False),
    "spectrogram, turned": lambda: spectrogram(3, 3, True),
    "spectrogram without channels": lambda: spectrogram(8, 5, False, True),
    "spectrogram without channels, turned": lambda: spectrogram(8, 5, True, True),
    "norm over frequencies": audio_norm,
    "Conv1d of electrodes": electrodes,
    "ConvNeXt block": lambda: convnext("block"),
    "ConvNeXt block's norm": lambda: convnext("block.norm"),
    "ConvNeXt block's linear layer": lambda: convnext("block.second", 5),
    "LayerNorm2d": lambda: convnext("norm"),
    "ViT": lambda: vit((16, 16), "block"),
    "ViT with a class token": lambda: vit((16, 28), "block.norm2", 1),
    "ViT with registers on both sides": lambda: vit((16, 16), "norm", 3, 12),
    "ViT with more extra tokens than a guess would try": lambda: vit((12, 20), "block", 30),
    "patches by a view": lambda: patches_by_view(False),
    "patches by a view, columns first": lambda: patches_by_view(True),
    "MLP-Mixer": lambda: mixer("mixer"),
    "MLP-Mixer's norm": lambda: mixer("mixer.norm2"),
    "MLP-Mixer of patches by a view": lambda: patches_by_view(True, Mixer(15, 12)),
    "clip": lambda: clip("norm"),
    "clip of 5 pictures": lambda: clip("conv", 5),
    "clip's recurrent layer": lambda: clip("rnn"),
    "volume": lambda: volume_vit((0, 1, 2)),
    "volume, depth last": lambda: volume_vit((1, 2, 0)),
    "volume, columns first": lambda: volume_vit((2, 1, 0)),
    **{
        f"transformers {name}": lambda name=name: transformers_case(name)
        for name in ("ast", "wav2vec2", "swin", "timesformer", "videomae")
    },
    **{
        f"torchvision {name}": lambda name=name: torchvision_case(name)
        for name in ("swin", "vit", "mvit")
    },
    "timm ViT": lambda: timm_case(
        "vit_tiny_patch16_224", 32, "blocks.1.norm1", grid(2, 2, skip=1), img_size=32, depth=2
    ),
    "timm ViT with registers": lambda: timm_case(
        "vit_small_patch14_reg4_dinov2", 42, "blocks.1.norm1", grid(3, 3, skip=5), img_size=42,
        depth=2,
    ),
    "timm Swin": lambda: timm_case(
        "swin_tiny_patch4_window7_224", 56, "layers.1", last, img_size=56, depths=(1, 2),
        num_heads=(3, 6), embed_dim=24,
    ),
    "timm PoolFormer": lambda: timm_case(
        "poolformer_s12", 64, "stages.3", lambda y: y
    ),
    "timm ConvNeXt": lambda: timm_case("convnext_atto", 64, "stages.3", lambda y: y),
    "timm EdgeNeXt": lambda: timm_case("edgenext_xx_small", 64, "stages.2.blocks.3", lambda y: y),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_maps_are_those_of_the_axes_that_the_network_was_built_with(name: str) -> None:
    torch.manual_seed(0)
    case = CASES[name]()
    case.model.double().eval()
    with torch.no_grad():
        for parameter in case.model.parameters():
            if not parameter.any():  # heads and scales that begin at 0
                nn.init.normal_(parameter, std=0.1)
    activations, gradients = whole_graph(case, 1)
    assert gradients.any()
    weights = gradients.flatten(2).mean(2).unflatten(1, (-1, *[1] * (activations.dim() - 2)))
    expected = {
        "gradcam": (weights * activations).sum(1).relu(),
        "hirescam": (gradients * activations).sum(1).relu(),
    }
    for method, maps in expected.items():
        cam = fastcam.METHODS[method](case.model, case.layer)
        raw = cam(case.images, 1, size="layer", normalize=False)
        torch.testing.assert_close(raw, maps, rtol=1e-6, atol=1e-9 * float(maps.abs().max()))
    if case.extents is not None:
        assert cam(case.images, 1).shape == (len(case.images), *case.extents)


def test_any_number_of_images_and_any_size() -> None:
    """What was found with one batch serves others, and other sizes are looked at anew."""
    torch.manual_seed(0)
    models = {
        (rows, columns): vit((rows, columns), "block", 1) for rows, columns in ((16, 16), (12, 28))
    }
    model = models[16, 16].model.double()
    runs: list[int] = []
    model.register_forward_hook(lambda *_: runs.append(1))
    cam = fastcam.HiResCAM(model, "block")
    for count, (size, known) in zip((1, 3, 2, 5), [*models.items()] * 2, strict=True):
        case = known._replace(model=model, images=randn(count, 3, *size))
        activations, gradients = whole_graph(case, 1)
        before = len(runs)
        raw = cam(case.images, 1, size="layer", normalize=False)
        torch.testing.assert_close(raw, (activations * gradients).sum(1).relu())
        # the first call also finds where the graph starts; another size has axes of its own, and
        # the first batch of several shows whether one image can run alone
        assert len(runs) - before == {1: 3 + 1 + 1, 3: 1 + 1 + 1}.get(count, 1)


def test_positions_that_are_not_in_the_images_order() -> None:
    def change(how: Callable[[Tensor], Tensor]) -> nn.Module:
        def forward(net: Any, x: Tensor) -> Tensor:
            tokens = net.embed(x).flatten(2).mT
            return net.head(net.block(how(tokens)).square().mean(1))

        torch.manual_seed(0)
        return Net(forward, embed=nn.Conv2d(3, 16, 4, stride=4), block=Block(16), head=head(16))

    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    changes: list[Callable[[Tensor], Tensor]] = [
        lambda x: x.flip(1),
        lambda x: x[:, order],
        lambda x: x.index_select(1, order),
        lambda x: x.gather(1, order[None, :, None].expand(len(x), -1, 16)),
        lambda x: x.roll(3, 1),
        lambda x: torch.cat([x[:, 8:], x[:, :8]], 1),
        # windows of 2 x 2, one behind the other
        lambda x: x.view(-1, 2, 2, 2, 2, 16).transpose(2, 3).reshape(-1, 16, 16),
    ]
    for how in changes:
        with pytest.raises(ValueError, match=r"'block' returned \(2, 16, 16\).*give reshape="):
            fastcam.GradCAM(change(how).double(), "block")(randn(2, 3, 16, 16))

    def back(x: Tensor) -> Tensor:
        rolled = x.view(-1, 4, 4, 16).roll((1, 2), (1, 2)) * 2
        return rolled.roll((-1, -2), (1, 2)).view(-1, 16, 16)

    assert fastcam.GradCAM(change(back).double(), "block")(randn(2, 3, 16, 16)).any()


def pooled_tokens(pool: nn.Module) -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        tokens = net.pool(net.embed(x).flatten(2)).mT
        return net.head(net.norm(tokens).square().mean(1))

    torch.manual_seed(0)
    embed, norm = nn.Conv2d(3, 6, 4, stride=4), nn.LayerNorm(6)
    return Net(forward, embed=embed, pool=pool, norm=norm, head=head(6)).double()


@pytest.mark.parametrize(
    ("pool", "extents"),
    [
        (nn.AvgPool1d(4), (8, 2)),
        (nn.Conv1d(6, 6, 4, stride=4), (8, 2)),
        (nn.AdaptiveAvgPool1d(16), (8, 2)),
        (nn.AdaptiveAvgPool1d(64), (8, 8)),
        (nn.AvgPool1d(3, stride=2, padding=1), (8, 4)),
        (nn.MaxPool1d(2), (8, 4)),
    ],
)
def test_neighbours_in_a_row_of_the_grid_are_pooled(
    pool: nn.Module, extents: tuple[int, int]
) -> None:
    case = Case(pooled_tokens(pool), randn(2, 3, 32, 32), "norm", grid(*extents), (32, 32))
    activations, gradients = whole_graph(case, 1)
    maps = fastcam.HiResCAM(case.model, "norm")(
        case.images, 1, size="layer", normalize=False, relu=False
    )
    torch.testing.assert_close(maps, (activations * gradients).sum(1))


def test_pools_across_rows_of_the_grid_are_refused() -> None:
    for pool in (
        nn.AvgPool1d(3),
        nn.AdaptiveAvgPool1d(21),
        nn.AvgPool1d(24, stride=12),
        nn.AvgPool1d(8),
    ):
        with pytest.raises(
            ValueError, match=r"'norm' returned .*not in the input's order.*reshape="
        ):
            fastcam.GradCAM(pooled_tokens(pool), "norm")(randn(2, 3, 32, 32))


@pytest.mark.parametrize("layer", [None, "conv"])
def test_a_picture_that_the_model_mirrors(layer: str | None) -> None:
    def net(change: Callable[[Tensor], Tensor]) -> nn.Module:
        torch.manual_seed(0)
        conv = nn.Conv2d(3, 8, 3, stride=2)
        return Net(
            lambda net, x: (
                net.head(change(net.conv(x)).relu().mean((2, 3)))
                if change is twice
                else net.head(net.conv(change(x)).relu().mean((2, 3)))
            ),
            conv=conv,
            head=head(8),
        ).double()

    def one_side(x: Tensor) -> Tensor:
        right = x[..., 8:].mean((1, 2, 3)) > x[..., :8].mean((1, 2, 3))
        return torch.where(right[:, None, None, None], x.flip(3), x)

    def twice(x: Tensor) -> Tensor:
        return x.flip(2, 3).flip(3).flip(2)

    for change in (lambda x: x.flip(3), lambda x: x.flip(1, 2), lambda x: x.rot90(1, (2, 3))):
        with pytest.raises(ValueError, match=r"'conv' returned .*are mirrored.*give reshape="):
            fastcam.GradCAM(net(change), layer)(randn(2, 3, 16, 16))
    with pytest.raises(ValueError, match=r"'conv' returned .*not in the input's order"):
        fastcam.GradCAM(net(one_side), layer)(randn(2, 3, 16, 16))
    # the colours' order is no position's, and what is mirrored twice is as it was
    for change in (lambda x: x.flip(1), twice, lambda x: twice(x) + x):
        assert fastcam.GradCAM(net(change), layer)(randn(2, 3, 16, 16)).any()


def test_experts_that_get_the_images_one_by_one() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        features = net.body(x)
        expert = net.gate(features.mean((2, 3))).argmax(1)
        out = torch.zeros_like(features)
        for i, each in enumerate(net.experts):
            rows = (expert == i).nonzero()[:, 0]
            if len(rows):
                out[rows] = each(features[rows])
        return net.head(out.square().mean((2, 3)))

    torch.manual_seed(0)
    experts = nn.ModuleList([nn.Conv2d(6, 6, 3, padding=1) for _ in range(2)])
    body, gate = nn.Conv2d(3, 6, 3, stride=2), nn.Linear(6, 2)
    nn.init.constant_(gate.bias, 0)
    gate.bias.data[0] = 100
    model = Net(forward, body=body, gate=gate, experts=experts, head=head(6)).double()
    case = Case(model, randn(4, 3, 17, 17), "experts.0", lambda x: x, (17, 17))
    activations, gradients = whole_graph(case, 1)
    for layer in ("experts.0", None):
        maps = fastcam.HiResCAM(model, layer)(
            case.images, 1, size="layer", normalize=False, relu=False
        )
        torch.testing.assert_close(maps, (activations * gradients).sum(1))
    gate.bias.data.zero_()
    cam = fastcam.GradCAM(model, "experts.0")
    images = torch.cat([case.images, -case.images])
    used = gate(body(images).mean((2, 3))).argmax(1)
    assert 0 < used.sum() < len(images)
    with pytest.raises(ValueError, match=r"'experts\.0'"):
        cam(images)


def test_mixed_positions_are_none() -> None:
    case = mixer("mixer.tokens")
    with pytest.raises(ValueError, match="give reshape="):
        fastcam.GradCAM(case.model.double(), "mixer.tokens")(case.images)


class Opaque(torch.autograd.Function):
    """Something that no operator tells about."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().numpy().copy())

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient


def opaque(width: int) -> nn.Module:
    def forward(net: Any, x: Tensor) -> Tensor:
        tokens = net.embed(x).flatten(2).mT
        return net.head(net.keep(Opaque.apply(tokens)).square().mean(1))

    torch.manual_seed(0)
    embed = nn.Conv2d(3, width, 4, stride=4)
    return Net(forward, embed=embed, keep=nn.Identity(), head=head(width)).double()


def test_extents_decide_where_the_chain_is_lost() -> None:
    images = randn(2, 3, 16, 16)
    assert fastcam.GradCAM(opaque(40), "keep")(images, size="layer").shape == (2, 4, 4)
    with pytest.raises(ValueError, match=r"could not be followed.*two ways; .* give reshape="):
        fastcam.GradCAM(opaque(16), "keep")(images)
    cam = fastcam.GradCAM(opaque(16), "keep", reshape=lambda x: x.mT.unflatten(2, (4, 4)))
    assert cam(images, size="layer").shape == (2, 4, 4)


@pytest.mark.parametrize(
    ("shape", "extents", "ambiguous"),
    [
        ((2, 256, 49), (224, 224), True),
        ((2, 197, 700), (224, 224), False),
        ((2, 8, 8, 8), (64, 64), True),
        ((2, 512, 7, 7), (224, 224), False),
        ((2, 64, 8, 62), (128, 1000), False),
        ((2, 24, 100), (400,), True),
        ((2, 24, 100), None, True),
    ],
)
def test_two_readings(shape: Any, extents: Any, ambiguous: bool) -> None:
    assert is_ambiguous(torch.Size(shape), extents) == ambiguous


def _unbound(net: Any, x: Tensor) -> Tensor:
    seen = torch.stack([net.conv(y).tanh() for y in x.unbind(1)], 1)  # (B, T, C, H, W)
    return net.head(seen.square().mean((1, 3, 4)) * seen.mean((1, 3, 4)))


def _indexed(net: Any, x: Tensor) -> Tensor:
    seen = [net.conv(x[:, t]).square().mean((2, 3)) for t in range(x.shape[1])]
    return net.head(net.rnn(torch.stack(seen, 1))[0][:, -1])


def _sliced(net: Any, x: Tensor) -> Tensor:
    seen = [net.conv(x[:, t : t + 1].squeeze(1)).square() for t in range(x.shape[1])]
    return net.head(torch.cat([y.unsqueeze(2) for y in seen], 2).mean((2, 3, 4)))


def _split(net: Any, x: Tensor) -> Tensor:
    seen = [net.conv(y.flatten(0, 1)).square().mean((2, 3)) for y in x.split(1, 1)]
    return net.head(torch.stack(seen).amax(0))


def _time_behind_colours(net: Any, x: Tensor) -> Tensor:
    seen = [net.conv(x[:, :, t]).square().mean((2, 3)) for t in range(x.shape[2])]
    return net.head(sum(y * (t + 1) for t, y in enumerate(seen)))


def _with_a_state(net: Any, x: Tensor) -> Tensor:
    state: Any = 0.0
    for t in range(x.shape[1]):
        state = net.conv(x[:, t] + state).tanh()
        state = torch.cat([state, state.square()], 1)[:, :3] * 0.5
    return net.head(state.square().repeat(1, 3, 1, 1)[:, :8].mean((2, 3)))


def _ranked(net: Any, x: Tensor) -> Tensor:
    scores = [net.head(net.conv(y).relu().square().mean((2, 3))) for y in x.transpose(0, 1)]
    return torch.stack(scores, 1).logsumexp(1)


LOOPS = [_unbound, _indexed, _sliced, _split, _time_behind_colours, _with_a_state, _ranked]


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("forward", LOOPS, ids=lambda forward: forward.__name__)
def test_a_layer_that_runs_once_for_each_picture_of_a_clip(
    forward: Callable[..., Tensor], steps: int
) -> None:
    torch.manual_seed(0)
    parts: Any = {"conv": nn.Conv2d(3, 8, 3, padding=1), "head": head(8)}
    if forward is _indexed:
        parts["rnn"] = nn.LSTM(8, 8, batch_first=True)
    model = Net(forward, **parts).double().eval()
    shape = (2, 3, steps, 9, 7) if forward is _time_behind_colours else (2, steps, 3, 9, 7)
    images, classes = randn(*shape), torch.tensor([[1, 2], [0, 1]])
    runs: list[Tensor] = []
    hook = model.conv.register_forward_hook(lambda module, args, output: runs.append(output))
    logits = model(images)
    hook.remove()
    for method in (fastcam.GradCAM, fastcam.LayerCAM, fastcam.EigenCAM, fastcam.ShapleyCAM):
        cam = method(model, "conv")
        for k in (0, 1) if method is not fastcam.EigenCAM else ():
            score = logits.gather(1, classes)[:, k]
            gradients = torch.autograd.grad(score.sum(), runs, retain_graph=True)
            activations, slopes = torch.stack(runs, 2), torch.stack(gradients, 2)
            if method is fastcam.ShapleyCAM:
                with torch.enable_grad():
                    slopes = torch.stack(
                        torch.autograd.grad(score.sum(), runs, create_graph=True), 2
                    )
                second = torch.autograd.grad(
                    (slopes * activations.detach()).sum(),
                    runs,
                    retain_graph=True,
                    allow_unused=True,
                )
                second = [torch.zeros_like(runs[0]) if each is None else each for each in second]
                slopes = slopes.detach() - torch.stack(second, 2) / 2
            weights = slopes.relu() if method is fastcam.LayerCAM else slopes.mean((2, 3, 4), True)
            expected = (activations * weights).sum(1).relu()
            found = cam(images, classes, size="layer", normalize=False)[:, k]
            torch.testing.assert_close(found, expected.detach())
        assert cam(images, 1).shape == (2, steps, 9, 7)
        other = randn(*(each if each != steps or i == 0 else 5 for i, each in enumerate(shape)))
        assert cam(other, 1).shape == (2, 5, 9, 7)  # a longer clip
    masked = fastcam.ScoreCAM(model, "conv", batch_size=1)(images, classes)
    assert masked.shape == (2, 2, steps, 9, 7)


def test_an_activation_that_runs_several_times_for_each_picture() -> None:
    def shared(net: Any, x: Tensor) -> Tensor:
        seen = [net.act(net.more(net.act(net.conv(y)))) for y in x.unbind(1)]
        return net.head(torch.stack(seen, 1).square().mean((1, 3, 4)))

    def apart(net: Any, x: Tensor) -> Tensor:
        seen = [net.act(net.conv(y)) * net.act(net.conv(-y)) for y in x.unbind(1)]
        return net.head(torch.stack(seen, 1).mean((1, 3, 4)))

    torch.manual_seed(0)
    parts = {"conv": nn.Conv2d(3, 8, 3), "more": nn.Conv2d(8, 8, 3), "head": head(8)}
    model = Net(shared, **parts, act=nn.ReLU()).double().eval()
    images, runs = randn(2, 5, 3, 9, 9), []
    hook = model.act.register_forward_hook(lambda module, args, output: runs.append(output))
    score = model(images)[:, 1].sum()
    hook.remove()
    gradients = torch.stack(torch.autograd.grad(score, runs[1::2]), 2)
    expected = (torch.stack(runs[1::2], 2) * gradients).sum(1).relu()
    cam = fastcam.HiResCAM(model, "act")
    found = cam(images, 1, size="layer", normalize=False)
    torch.testing.assert_close(found, expected.detach())
    with pytest.raises(ValueError, match="'act' runs 10 times"):
        fastcam.HiResCAM(Net(apart, **parts, act=nn.ReLU()).double(), "act")(images, 1)


def test_runs_in_another_order_than_the_pictures() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(torch.stack([net.conv(y) for y in x.flip(1).unbind(1)]).mean((0, 3, 4)))

    def backwards(net: Any, x: Tensor) -> Tensor:
        seen = [net.conv(x[:, t]) for t in reversed(range(x.shape[1]))]
        return net.head(torch.stack(seen).mean((0, 3, 4)))

    for each in (forward, backwards):
        model = Net(each, conv=nn.Conv2d(3, 8, 3), head=head(8)).double()
        with pytest.raises(ValueError, match=r"'conv'.*run="):
            fastcam.GradCAM(model, "conv")(randn(2, 5, 3, 8, 8))
        one = fastcam.GradCAM(model, "conv", run=1)(randn(2, 5, 3, 8, 8), size=(8, 8))
        assert one.shape == (2, 8, 8)


def test_branches_for_the_colours_are_no_clip() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(sum(net.conv(x[:, c : c + 1]) for c in range(3)).mean((2, 3)))

    model = Net(forward, conv=nn.Conv2d(1, 8, 3), head=head(8)).double()
    with pytest.raises(ValueError, match="'conv' runs 3 times"):
        fastcam.GradCAM(model, "conv")(randn(2, 3, 8, 8))


def test_methods_that_need_one_run_say_so() -> None:
    model = Net(_ranked, conv=nn.Conv2d(3, 8, 3), head=head(8)).double()
    with pytest.raises(ValueError, match="'conv' runs once for each picture of a clip"):
        fastcam.AblationCAM(model, "conv")(randn(1, 4, 3, 8, 8))


def test_pictures_seen_one_by_one_and_put_together() -> None:
    """Behind the loop, a layer has a position for each picture."""

    def forward(net: Any, x: Tensor) -> Tensor:
        seen = torch.stack([net.conv(x[:, t]).mean((2, 3)) for t in range(x.shape[1])], 1)
        return net.head(net.rnn(seen)[0].square().mean(1))

    torch.manual_seed(0)
    rnn = nn.LSTM(8, 8, batch_first=True)
    model = Net(forward, conv=nn.Conv2d(3, 8, 3), rnn=rnn, head=head(8)).double()
    case = Case(model, randn(2, 5, 3, 8, 8), "rnn", last, None)
    activations, gradients = whole_graph(case, 1)
    raw = fastcam.HiResCAM(model, "rnn")(case.images, 1, size="layer", normalize=False)
    torch.testing.assert_close(raw, (activations * gradients).sum(1).relu())


def test_methods_without_a_graph_read_in_the_same_way() -> None:
    torch.manual_seed(0)
    case = signal_lstm(nn.LSTM, 2, True)
    model = case.model.double().eval()
    activations, _ = whole_graph(case, 1)
    score = model(case.images)[:, 1]
    drops = []
    for channel in range(activations.shape[1]):

        def ablate(module: nn.Module, args: Any, output: Any, channel: int = channel) -> Any:
            kept = output[0].clone()
            kept[:, :, channel] = 0
            return kept, output[1]

        handle = model.rnn.register_forward_hook(ablate)
        drops.append((score - model(case.images)[:, 1]) / score)
        handle.remove()
    weights = torch.stack(drops, 1).detach()
    expected = torch.einsum("nc,ncl->nl", weights, activations).relu()
    cam = fastcam.AblationCAM(model, "rnn")
    raw = cam(case.images, 1, size="layer", normalize=False)
    torch.testing.assert_close(raw, expected)

    features = activations.flatten(2)
    eigen = fastcam.EigenCAM(model, "rnn")(case.images, size="layer", normalize=False)
    for image, found in zip(features, eigen, strict=True):
        _, _, basis = torch.linalg.svd(image.T - image.T.mean(0), full_matrices=False)
        plain, centred = image.T @ torch.linalg.svd(image.T)[2][0], image.T @ basis[0]
        assert any(
            torch.allclose(found.abs(), way.abs()) or torch.allclose(found, way.relu())
            or torch.allclose(found, (-way).relu())
            for way in (plain, centred, centred - centred.mean())
        )  # fmt: skip


def test_masks_of_a_clip_cover_all_colours_of_a_picture() -> None:
    torch.manual_seed(0)
    case = clip("norm")
    model = case.model.double().eval()
    activations, _ = whole_graph(case, 1)
    masks = F.interpolate(activations, case.extents, mode="trilinear")  # (N, C, T, H, W)
    low, high = masks.amin((2, 3, 4), keepdim=True), masks.amax((2, 3, 4), keepdim=True)
    masks = (masks - low) / (high - low)
    with torch.no_grad():
        scores = [model(case.images * mask.unsqueeze(2))[:, 1] for mask in masks.unbind(1)]
    weights = torch.stack(scores, 1).softmax(1)
    expected = torch.einsum("nc,ncthw->nthw", weights, activations).relu()
    raw = fastcam.ScoreCAM(model, "norm")(case.images, 1, size="layer", normalize=False)
    torch.testing.assert_close(raw, expected, rtol=1e-5, atol=1e-8)
    several = fastcam.GradCAM(model, "norm")(case.images, torch.tensor([[0, 1, 2, 0]] * 2))
    assert several.shape == (2, 4, 3, 12, 16)
    with pytest.raises(ValueError, match=r"images: got \(2, 3, 3, 12, 16\) with positions"):
        fastcam.FullGrad(model)(case.images)


def test_the_fast_mode_reads_in_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    torch.manual_seed(0)
    case = spectrogram(8, 8, True)
    model, images = case.model.float().eval(), case.images.float()
    exact = fastcam.GradCAM(model, "conv")
    fast = fastcam.GradCAM(model, "conv")
    fast.compile()
    torch.testing.assert_close(
        fast(images, 1), exact(images, 1), rtol=1e-3, atol=1e-4
    )  # fmt: skip


def test_a_model_that_fails_when_it_is_looked_at_is_read_by_extents() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        if torch.utils._python_dispatch._len_torch_dispatch_stack():
            raise NotImplementedError("not under a mode")
        return net.head(net.conv(x).square().mean((2, 3)))

    model = Net(forward, conv=nn.Conv2d(3, 40, 3), head=head(40)).double()
    images = randn(2, 3, 12, 12)
    assert layouts_of(model, images, "conv").layers == {}
    assert fastcam.GradCAM(model, "conv")(images, size="layer").shape == (2, 10, 10)


def test_a_reading_is_a_view() -> None:
    case = vit((16, 28), "block", 2, 1)
    found = layouts_of(case.model.double(), case.images, "block").layers["block"]
    assert isinstance(found, Reading)
    output = torch.randn(5, 31, 16)
    found(output).zero_()
    assert not output[:, 2:-1].any() and output[:, :2].all() and output[:, -1].all()


@pytest.mark.parametrize("name", ["torchvision mvit", "transformers videomae", "volume"])
def test_the_layer_that_is_found_for_tokens_of_clips(name: str) -> None:
    torch.manual_seed(0)
    case = CASES[name]()
    model = case.model.double().eval()
    cam = fastcam.HiResCAM(model)
    maps = cam(case.images, 1, size="layer", normalize=False)
    assert maps.any()
    assert cam(case.images, 1).shape == (len(case.images), *(case.extents or ()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_in_one_operator(kind: type[nn.RNNBase], dtype: torch.dtype) -> None:
    case = signal_lstm(kind, 2, False)
    found = layouts_of(case.model.to(dtype).eval(), case.images.to(dtype), "rnn")
    reading = found.layers["rnn"]
    assert isinstance(reading, Reading)
    assert reading(torch.empty(24, 7, 12)).shape == (7, 12, 24)


def test_signals_and_words_have_their_extents() -> None:
    def signal(net: Any, x: Tensor) -> Tensor:
        return net.head(net.conv(x[:, None]).relu().square().mean(2))

    def words(net: Any, x: Tensor) -> Tensor:
        return net.head(net.body(net.embedding(x)).square().mean(1))

    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    heard = Net(signal, conv=nn.Conv1d(1, 8, 9, 4), head=head(8))
    read = Net(words, embedding=nn.Embedding(30, 8), body=encoder, head=head(8))
    assert fastcam.GradCAM(heard, "conv")(torch.randn(2, 90), 1).shape == (2, 90)
    ids = torch.randint(0, 30, (2, 11))
    assert fastcam.GradCAM(read.eval(), "body")(ids, 1).shape == (2, 11)
    with pytest.raises(ValueError, match="no floating-point tensor"):
        fastcam.ScoreCAM(read, "body")(ids, 1)


def _sorted_by_brightness(net: Any, x: Tensor) -> Tensor:
    order = x.mean((1, 2, 3)).argsort()
    return net.head(net.conv(x[order]).relu().mean((2, 3)))[order.argsort()]


def _backwards(net: Any, x: Tensor) -> Tensor:
    return net.head(net.conv(x.flip(0)).relu().mean((2, 3))).flip(0)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("forward", [_sorted_by_brightness, _backwards])
def test_rows_in_another_order_are_refused(forward: Callable[..., Tensor], count: int) -> None:
    torch.manual_seed(0)
    model = Net(forward, conv=nn.Conv2d(3, 8, 3), head=head(8)).double()
    for images in (randn(count, 3, 9, 9), randn(count, 3, 9, 9).flip(0)):
        with pytest.raises(ValueError, match="rows are not the images in their order"):
            fastcam.GradCAM(model, "conv")(images, 1)


def test_images_one_by_one_are_no_clip() -> None:
    def looped(net: Any, x: Tensor) -> Tensor:
        return net.head(torch.stack([net.conv(x[i]).mean((2, 3)).mean(0) for i in range(len(x))]))

    def chunked(net: Any, x: Tensor) -> Tensor:
        steps = x.shape[1]
        seen = [net.conv(part).mean((2, 3)) for part in x.flatten(0, 1).split(steps)]
        return net.head(torch.cat(seen).unflatten(0, (-1, steps)).mean(1))

    for forward in (looped, chunked):
        model = Net(forward, conv=nn.Conv2d(3, 8, 3), head=head(8)).double()
        for count in (2, 3):  # as many images as pictures, too
            with pytest.raises(ValueError, match="give one image at a time"):
                fastcam.GradCAM(model, "conv")(randn(count, 3, 3, 8, 8), 1)


def _spectrogram(net: Any, x: Tensor) -> Tensor:
    """(N, T, F), which the model turns."""
    return net.head(net.conv(x.transpose(1, 2).unsqueeze(1)).square().mean((2, 3)))


def test_a_call_that_fails_leaves_nothing_behind() -> None:
    torch.manual_seed(0)
    model = Net(_spectrogram, conv=nn.Conv2d(1, 8, 3, padding=1), head=head(8)).double()
    images = randn(2, 12, 7)
    expected = fastcam.HiResCAM(model, "conv")(images, 1)
    assert expected.shape == (2, 12, 7)
    for wrong in (images.float(), images[:, :, None], images[0, 0], (images, images), images.int()):
        for layer in ("conv", None):
            cam = fastcam.HiResCAM(model, layer)
            with pytest.raises((ValueError, TypeError, RuntimeError, IndexError)):
                cam(wrong, 1)
            assert torch.equal(cam(images, 1), expected)
            with pytest.raises((ValueError, TypeError, RuntimeError, IndexError)):
                cam(wrong, 1)
            assert torch.equal(cam(images, 1), expected)


@pytest.mark.parametrize("call", range(1, 8))
def test_out_of_memory_in_any_forward_is_told(call: int) -> None:
    runs = 0

    def forward(net: Any, x: Tensor) -> Tensor:
        nonlocal runs
        runs += 1
        if runs == call:
            raise torch.OutOfMemoryError("out of memory")
        return _spectrogram(net, x)

    torch.manual_seed(0)
    model = Net(forward, conv=nn.Conv2d(1, 8, 3, padding=1), head=head(8)).double()
    images, cam = randn(2, 12, 7), fastcam.HiResCAM(model, "conv")
    try:
        first = cam(images, 1)
    except torch.OutOfMemoryError:
        first = None
    assert first is None or runs < call
    runs = 100
    fresh = fastcam.HiResCAM(Net(_spectrogram, conv=model.conv, head=model.head), "conv")
    assert torch.equal(cam(images, 1), fresh(images, 1))


def test_layers_under_vmap_are_refused() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(torch.func.vmap(net.conv)(x).mean((2, 3)))

    model = Net(forward, conv=nn.Conv2d(3, 8, 3), head=head(8)).double()
    with pytest.raises(ValueError, match=r"^target_layers: 'conv' runs within torch\.func"):
        fastcam.GradCAM(model, "conv")(randn(2, 3, 8, 8), 1)


def test_an_encoder_with_padding() -> None:
    """Without a graph PyTorch packs the words into a nested tensor, which has no shape."""

    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.embedding, self.head = nn.Embedding(30, 8), head(8)
            self.body = nn.TransformerEncoder(layer, 2)

        def forward(self, x: Tensor, padding: Tensor) -> Tensor:
            seen = self.body(self.embedding(x), src_key_padding_mask=padding)
            return self.head(seen.masked_fill(padding[..., None], 0).square().mean(1))

    torch.manual_seed(0)
    model = Text().eval()
    body = model.body
    words, padding = torch.randint(0, 30, (3, 11)), torch.zeros(3, 11, dtype=torch.bool)
    padding[0, -4:] = True
    seen: list[Tensor] = []
    hook = body.layers[0].register_forward_hook(lambda module, args, output: seen.append(output))
    score = model(words, padding)[:, 1].sum()
    hook.remove()
    (gradient,) = torch.autograd.grad(score, seen)
    expected = (seen[0] * gradient).sum(2).relu().detach()
    found = fastcam.HiResCAM(model, "body.layers.0")((words, padding), 1, normalize=False)
    torch.testing.assert_close(found, expected)
    assert body.use_nested_tensor and fastcam.EigenCAM(model)((words, padding)).shape == (3, 11)


def _vectors(net: Any, x: Tensor) -> list[Tensor]:
    return [branch(x).relu().mean((2, 3)) for branch in net.branches]


@pytest.mark.parametrize("join", ["stack", "cat"])
@pytest.mark.parametrize("mix", [nn.Linear(6, 6), nn.LayerNorm(6), nn.LSTM(6, 6, batch_first=True)])
def test_vectors_side_by_side_are_no_positions(join: str, mix: nn.Module) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        vectors = _vectors(net, x)
        rows = (
            torch.stack(vectors, 1)
            if join == "stack"
            else torch.cat([v[:, None] for v in vectors], 1)
        )
        mixed = net.mix(rows)
        mixed = mixed[0] if isinstance(mixed, tuple) else mixed
        return net.head(mixed.square().mean(1))

    branches = nn.ModuleList([nn.Conv2d(3, 6, 3, stride=2) for _ in range(4)])
    model = Net(forward, branches=branches, mix=mix, head=head(6)).double()
    with pytest.raises(ValueError, match=r"'mix' returned \(2, 4, 6\).*give reshape="):
        fastcam.GradCAM(model, "mix")(randn(2, 3, 16, 16))
    cam = fastcam.GradCAM(model)
    assert cam(randn(2, 3, 16, 16), size="layer").shape == (2, 7, 7)
    assert cam.layers == ("branches.3",)


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        (lambda x: x[..., 16:, :16], False),
        (lambda x: x[..., 8:-8, 8:-8], False),
        (lambda x: F.pad(x, (0, 0, 0, 32)), False),
        (lambda x: F.pad(x, (16, 16, 16, 16), mode="reflect"), False),
        (lambda x: F.interpolate(x[..., :16, :16], size=(32, 32)), False),
        (lambda x: x.chunk(2, 3)[1], False),
        (lambda x: F.grid_sample(x, F.affine_grid(_mirror(x), list(x.shape))), False),
        (lambda x: F.pad(x, (0, 2, 0, 2)), True),
        (lambda x: F.pad(x, (3, 3, 3, 3), mode="reflect"), True),
        (lambda x: F.pad(x[..., 8:, :], (0, 0, 8, 0)), True),
        (lambda x: x[..., ::2, ::2], True),
        (lambda x: x[:, :2], True),
    ],
)
def test_a_part_of_the_picture(change: Callable[[Tensor], Tensor], kept: bool) -> None:
    images = randn(2, 3, 32, 32)
    colours = change(images).shape[1]
    model = Net(
        lambda net, x: net.head(net.conv(change(x)).relu().mean((2, 3))),
        conv=nn.Conv2d(colours, 8, 4, stride=4),
        head=head(8),
    ).double()
    cam = fastcam.GradCAM(model, "conv")
    if kept:
        assert cam(images).shape == (2, 32, 32)
        return
    with pytest.raises(ValueError, match=r"does not cover the input|not in the input's order"):
        cam(images)
    as_it_is = fastcam.GradCAM(model, "conv", reshape=lambda x: x)
    assert as_it_is(images, size="layer").dim() == 3


def _mirror(x: Tensor) -> Tensor:
    return torch.tensor([[-1.0, 0, 0], [0, 1, 0]], dtype=x.dtype).expand(len(x), -1, -1)


def test_some_frames_of_a_clip() -> None:
    def net(change: Callable[[Tensor], Tensor]) -> nn.Module:
        def forward(net: Any, x: Tensor) -> Tensor:
            x = change(x)
            return net.head(net.conv(x.flatten(0, 1)).mean((2, 3)).view(len(x), -1, 8).mean(1))

        return Net(forward, conv=nn.Conv2d(3, 8, 3), head=head(8)).double()

    clip = randn(2, 8, 3, 8, 8)
    for change in (lambda x: x[:, 4:], lambda x: x[:, :4]):
        with pytest.raises(ValueError, match="does not cover the input"):
            fastcam.GradCAM(net(change), "conv")(clip)
    order = torch.arange(8)
    for change in (lambda x: x[:, order], lambda x: x.index_select(1, order)):
        assert fastcam.GradCAM(net(change), "conv")(clip).shape == (2, 8, 8, 8)


def test_frames_within_the_channels() -> None:
    def net(split: Callable[[Tensor], Tensor]) -> nn.Module:
        def forward(net: Any, x: Tensor) -> Tensor:
            seen = net.conv(split(x).flatten(0, 1)).mean((2, 3))
            return net.head(seen.view(len(x), 4, 8).mean(1))

        return Net(forward, conv=nn.Conv2d(3, 8, 3), head=head(8)).double()

    images = randn(2, 12, 8, 8)
    one_by_one = net(lambda x: x.view(-1, 4, 3, 8, 8))
    assert fastcam.GradCAM(one_by_one, "conv")(images, size="layer").shape == (2, 4, 6, 6)
    with pytest.raises(ValueError, match="lie apart along one axis"):
        fastcam.GradCAM(net(lambda x: x.view(-1, 3, 4, 8, 8).transpose(1, 2)), "conv")(images)


@pytest.mark.parametrize("change", ["flipped rows", "swapped columns"])
def test_an_order_that_is_assigned(change: str) -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.embed(x)
        if change == "flipped rows":
            x[:, :, 1::2] = x[:, :, 1::2].flip(-1)
        else:
            kept = x[..., 0].clone()
            x[..., 0] = x[..., 2]
            x[..., 2] = kept
        return net.head(net.norm(x.flatten(2).mT).square().mean(1))

    model = Net(forward, embed=nn.Conv2d(3, 6, 4, stride=4), norm=nn.LayerNorm(6), head=head(6))
    with pytest.raises(ValueError, match=r"'norm' returned .*not in the input's order"):
        fastcam.GradCAM(model.double(), "norm")(randn(2, 3, 16, 24))


@pytest.mark.parametrize(("kernel", "shape"), [((4, 64), (8, 1)), ((32, 5), (1, 60))])
@pytest.mark.parametrize("colours", [1, 3])
def test_an_axis_with_one_position(
    kernel: tuple[int, int], shape: tuple[int, int], colours: int
) -> None:
    stride = (4, 1) if kernel[0] == 4 else (1, 1)
    conv = nn.Conv2d(colours, 6, kernel, stride=stride)
    model = Net(lambda net, x: net.head(net.conv(x).square().mean((2, 3))), conv=conv, head=head(6))
    cam = fastcam.HiResCAM(model.double())
    images = randn(2, colours, 32, 64)
    assert cam(images, size="layer").shape == (2, *shape)
    assert cam(images).shape == (2, 32, 64)


def test_a_bag_of_pictures_with_reshape() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(net.conv(x.squeeze(0)).mean((2, 3)).amax(0, keepdim=True))

    model = Net(forward, conv=nn.Conv2d(3, 8, 3), head=head(8)).double()
    cam = fastcam.GradCAM(model, "conv", reshape=lambda x: x[None].transpose(1, 2))
    assert cam(randn(1, 7, 3, 12, 16)).shape == (1, 7, 12, 16)


def test_patches_that_the_model_cuts_out() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        patches = F.unfold(x, 12, stride=12).transpose(1, 2)
        seen = net.conv(patches.reshape(-1, 3, 12, 12)).square().mean((2, 3))
        return net.head(seen.view(len(x), -1, 8).mean(1))

    def together(x: Tensor) -> Tensor:
        return x.view(-1, 2, 3, 8, 4, 4).permute(0, 3, 1, 4, 2, 5).reshape(-1, 8, 8, 12)

    model, images = (
        Net(forward, conv=nn.Conv2d(3, 8, 3, 3), head=head(8)).double(),
        randn(2, 3, 24, 36),
    )
    with pytest.raises(ValueError, match="give reshape="):
        fastcam.GradCAM(model, "conv")(images)
    case = Case(model, images, "conv", together, (24, 36))
    activations, gradients = whole_graph(case, 1)
    for layer in ("conv", None):
        cam = fastcam.HiResCAM(model, layer, reshape=together)
        maps = cam(images, 1, size="layer", normalize=False, relu=False)
        torch.testing.assert_close(maps, (activations * gradients).sum(1))


def test_the_logits_of_attention_are_no_target() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.body(x)
        weights = net.gate(x).flatten(2).softmax(2)
        return net.head((x.flatten(2) * weights).sum(2))

    model = Net(forward, body=nn.Conv2d(3, 6, 3), gate=nn.Conv2d(6, 1, 1), head=head(6)).double()
    cam = fastcam.GradCAM(model)
    cam(randn(2, 3, 12, 12))
    assert cam.layers == ("body",)


def test_a_softmax_over_positions_leaves_no_grad_cam() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = net.body(x)
        places = x.flatten(2).softmax(2) * torch.linspace(-1, 1, 100, dtype=x.dtype)
        return net.head(places.sum(2))

    model = Net(forward, body=nn.Conv2d(3, 6, 3), head=head(6))
    with pytest.warns(UserWarning, match="average to 0 over the layer's positions"):
        fastcam.GradCAM(model, "body")(randn(2, 3, 12, 12).float())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastcam.HiResCAM(model, "body")(randn(2, 3, 12, 12).float())


def test_a_kernel_as_wide_as_the_words() -> None:
    """Kim 2014, arXiv 1408.5882: a convolution (N, 1, words, channels) -> (N, C, words, 1)."""

    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(net.conv(net.words(x)[:, None]).relu().amax((2, 3)))

    torch.manual_seed(0)
    parts = {"words": nn.Embedding(30, 12), "conv": nn.Conv2d(1, 6, (3, 12)), "head": head(6)}
    model, ids = Net(forward, **parts).double(), torch.randint(0, 30, (2, 20))
    for layer in ("conv", None):
        cam = fastcam.GradCAM(model, layer)
        assert cam(ids, size="layer").shape == (2, 18)
        assert cam(ids).shape == (2, 20)
