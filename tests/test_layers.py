"""Layers by name, found automatically, and how their outputs are read."""

from __future__ import annotations

import pytest
import torch
from networks import full_backward, literal_map, network, small, small_images
from torch import Tensor, nn

import fastcam
from fastcam.engine.layers import find_layer, layer_names
from fastcam.engine.shapes import reading, token_grid


def test_names() -> None:
    model, _ = network("resnet18")
    assert layer_names(model, "layer4.1") == ("layer4.1",)
    assert layer_names(model, model.layer4) == ("layer4",)  # iterable, and one layer all the same
    assert layer_names(model, [model.layer3, "layer4"]) == ("layer3", "layer4")


def test_errors_name_what_is_near() -> None:
    model, _ = network("resnet18")
    with pytest.raises(ValueError, match=r"no 'layer5'.*near names: .*layer4"):
        layer_names(model, "layer5")
    with pytest.raises(ValueError, match="this Conv2d is not a layer of the model"):
        layer_names(model, nn.Conv2d(1, 1, 1))
    with pytest.raises(ValueError, match="this ResNet is not a layer"):
        layer_names(model, model)
    with pytest.raises(ValueError, match="empty"):
        layer_names(model, [])
    with pytest.raises(TypeError, match="got int"):
        layer_names(model, [3])
    with pytest.raises(TypeError, match="got function"):
        fastcam.GradCAM(lambda x: x)


def test_the_last_layer_with_positions_is_found_once() -> None:
    model, images = small(), small_images()
    runs: list[int] = []
    model.register_forward_hook(lambda *_: runs.append(1))
    cam = fastcam.GradCAM(model)
    assert cam.layers == ()
    cam(images)
    assert (
        cam.layers == ("features",) and len(runs) == 8
    )  # one image, layer and axes, axes, start, map
    cam(images)
    assert len(runs) == 9


def test_an_operation_in_place_makes_another_output() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Dropout(), nn.AdaptiveAvgPool2d(7),
        nn.Flatten(), nn.Linear(4 * 49, 5),
    ).eval()  # fmt: skip
    assert find_layer(model, small_images()) == "1"


def test_a_network_without_positions() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(960, 5))
    with pytest.raises(ValueError, match="no layer of the model"):
        fastcam.GradCAM(model)(small_images())


def test_tokens_that_do_not_bear_on_the_output() -> None:
    class Blind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.norm = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8)
            self.head = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.embed(x).flatten(2).mT
            tokens = torch.cat([torch.ones_like(tokens[:, :1]), tokens], 1)
            return self.head(self.norm(tokens)[:, 0])

    with pytest.raises(ValueError, match="name a layer"):
        fastcam.GradCAM(Blind())(small_images())


@pytest.mark.parametrize(
    ("tokens", "extents", "grid"),
    [
        (196, (224, 224), (0, 14, 14)),
        (197, (224, 224), (1, 14, 14)),
        (198, (224, 224), (2, 14, 14)),
        (201, (224, 224), (5, 14, 14)),
        (1 + 37 * 37, (518, 518), (1, 37, 37)),
        (1 + 8 * 12, (128, 192), (1, 8, 12)),
        (1 + 14 * 21, (230, 340), (1, 14, 21)),
        (9, (28, 28), (5, 2, 2)),
        (48, (224, 224), None),
    ],
)
def test_token_grids(tokens, extents, grid) -> None:
    assert token_grid(tokens, extents) == grid


@pytest.mark.parametrize(
    ("shape", "extents", "positions"),
    [
        ((2, 768, 7, 7), (224, 224), (7, 7)),
        ((2, 7, 7, 768), (224, 224), (7, 7)),
        ((2, 7, 7, 7), (224, 224), (7, 7)),
        ((2, 8, 10, 96), (225, 300), (8, 10)),
        ((2, 96, 8, 10), (225, 300), (8, 10)),
        ((2, 64, 1, 100), (64, 800), (1, 100)),
        ((2, 512, 2, 7, 7), (16, 112, 112), (2, 7, 7)),
        ((2, 8, 7, 7, 768), (16, 224, 224), (8, 7, 7)),
        ((2, 50, 32), (224, 224), (7, 7)),
        ((2, 16, 25), (100,), (25,)),
        ((2, 16, 5, 5), None, (5, 5)),
    ],
)
def test_readings_are_views(shape, extents, positions) -> None:
    output = torch.randn(shape)
    read = reading(output.shape, extents)
    assert read is not None
    activations = read(output)
    assert tuple(activations.shape[2:]) == positions
    assert activations.untyped_storage().data_ptr() == output.untyped_storage().data_ptr()


def test_unread_tokens_ask_for_reshape() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mix = nn.Conv2d(3, 8, 4, 4), nn.Identity()
            self.head = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.embed(x).flatten(2).mT
            tokens = tokens.flip(1)  # no order that could be known
            extra = torch.ones_like(tokens[:, :1]).expand(-1, 30, -1)
            return self.head(self.mix(torch.cat([extra, tokens], 1)).mean(1))

    torch.manual_seed(0)
    model, images = Tokens(), small_images()
    with pytest.raises(ValueError, match="reshape="):
        fastcam.GradCAM(model, "mix")(images)
    cam = fastcam.GradCAM(
        model, "mix", reshape=lambda tokens: tokens[:, 30:].unflatten(1, (4, 5)).movedim(-1, 1)
    )
    assert cam(images, size="layer").shape == (3, 4, 5)
    assert cam(images).shape == (3, 16, 20)


def test_reshape_need_not_fit_the_layers_before() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.keep = nn.Conv2d(3, 8, 4, 4), nn.Identity()
            self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.embed(x).flatten(2).mT
            extra = torch.ones_like(tokens[:, :1]).expand(-1, 30, -1)
            tokens = self.keep(torch.cat([extra, extra, extra, tokens], 1))
            return self.head(self.norm(tokens[:, 60:]).square().mean(1))

    torch.manual_seed(0)
    cam = fastcam.GradCAM(
        Tokens(), reshape=lambda tokens: tokens[:, 30:].unflatten(1, (4, 5)).movedim(-1, 1)
    )
    assert cam(small_images(), size="layer").shape == (3, 4, 5) and cam.layers == ("norm",)


def test_another_batch_inside_the_layer_is_an_error() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            twice = self.layer(torch.cat([x, x * 0.5]))
            return self.head(sum(twice.chunk(2)).mean((2, 3)))

    with pytest.raises(ValueError, match="N = 3"):
        fastcam.GradCAM(Twice(), "layer")(small_images())


class Queries(nn.Module):
    """Patches that are read by queries, of which the strongest counts, as in DETR."""

    def __init__(self, queries: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.queries = nn.Parameter(torch.randn(1, queries, 16))
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).mT
        read, _ = self.attention(self.queries.expand(len(x), -1, -1), tokens, tokens)
        return self.head(self.norm(read)).amax(1)


@pytest.mark.parametrize("queries", [64, 6, 4])
def test_queries_are_no_positions(queries: int) -> None:
    images = torch.randn(2, 3, 32, 32)
    cam = fastcam.GradCAM(Queries(queries).eval())
    assert cam(images, size="layer").shape == (2, 8, 8)
    assert cam.layers == ("patches",)
    with pytest.raises(ValueError, match=rf"'norm' returned \(2, {queries}, 16\).*give reshape="):
        fastcam.GradCAM(Queries(queries).eval(), "norm")(images)


class Frozen(nn.Module):
    """The lower part runs in inference mode."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.ReLU())
        self.top = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            features = self.body(x)
        return self.head(self.top(features.clone()).square().mean((2, 3)))


def test_a_part_in_inference_mode() -> None:
    model, images = Frozen().double().eval(), torch.randn(2, 3, 17, 17).double()
    cam = fastcam.HiResCAM(model)
    maps = cam(images, torch.tensor([1, 1]), size="layer", normalize=False)
    assert cam.layers == ("top",)
    expected = full_backward(model, images, "top", torch.tensor([1, 1]))
    torch.testing.assert_close(maps, literal_map("hirescam", *expected))
    with pytest.raises(ValueError, match=r"'body' returned.*cuts the graph.*inference_mode"):
        fastcam.GradCAM(model, "body")(images)


class Augmented(nn.Module):
    """The mean of what it says of a picture and of its mirror image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 5)

    def one(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).square().mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + self.one(x.flip(3))


@pytest.mark.parametrize("layer", [None, "conv"])
def test_one_of_several_runs_is_mirrored(layer: str | None) -> None:
    images = torch.randn(2, 3, 9, 9)
    with pytest.raises(ValueError, match=r"'conv' runs 2 times .* choose one by run="):
        fastcam.GradCAM(Augmented().eval(), layer)(images)
    assert fastcam.GradCAM(Augmented().eval(), layer, run=0)(images).shape == (2, 9, 9)
    with pytest.raises(ValueError, match="are mirrored"):
        fastcam.GradCAM(Augmented().eval(), "conv", run=1)(images)


class Pooled(nn.Module):
    """Frames in reverse order, of which a recurrent layer reads the means."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.rnn = nn.Conv2d(3, 6, 3), nn.LSTM(6, 6, batch_first=True)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        frames = self.conv(x.flip(1).flatten(0, 1)).mean((2, 3)).view(*x.shape[:2], 6)
        return self.head(self.rnn(frames)[0][:, -1])


def test_the_reason_is_that_of_the_layer_that_could_not_be_read() -> None:
    with pytest.raises(ValueError, match=r"'rnn' returned .*are mirrored"):
        fastcam.GradCAM(Pooled().eval())(torch.randn(2, 4, 3, 9, 9))
