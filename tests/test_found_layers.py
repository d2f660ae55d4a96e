"""The layer that is found, against those that the projects' own examples name."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastcam
from fastcam.engine.layers import find_layer

timm = pytest.importorskip("timm", reason="timm is missing")
torchvision = pytest.importorskip("torchvision", reason="torchvision is missing")
transformers = pytest.importorskip("transformers", reason="transformers is missing")

# In the place of a named layer what returns its very tensor may be found: its last block, say.
TORCHVISION = {
    "resnet18": (64, {"layer4.1"}),
    "resnext50_32x4d": (64, {"layer4.2"}),
    "densenet121": (64, {"features.norm5"}),
    "vgg11_bn": (64, {"features.28"}),
    "alexnet": (96, {"features.12"}),
    "squeezenet1_1": (64, {"features.12", "classifier.2"}),
    "googlenet": (64, {"inception5b"}),
    "inception_v3": (139, {"Mixed_7c"}),
    "mobilenet_v2": (64, {"features.18.2"}),
    "mobilenet_v3_small": (64, {"features.12.2"}),
    "efficientnet_b0": (64, {"features.8.2"}),
    "mnasnet0_5": (64, {"layers.16"}),
    "shufflenet_v2_x0_5": (64, {"conv5.2"}),
    "regnet_y_400mf": (64, {"trunk_output.block4.block4-5.activation"}),
    "convnext_tiny": (64, {"features.7.2"}),
    "swin_t": (64, {"norm", "features.7.1"}),
    "vit_b_16": (224, {"encoder.layers.encoder_layer_11.ln_1"}),
}
SEGMENTATION = {
    "deeplabv3_resnet50": {"backbone.layer4.2", "classifier.0", "classifier.3"},
    "fcn_resnet50": {"backbone.layer4.2", "classifier.2"},
    "lraspp_mobilenet_v3_large": {"backbone.16", "classifier.cbr.2"},
}
_VIT: dict[str, Any] = {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 3}
TIMM = {
    "resnet10t": ({}, {"layer4.0.act2"}),
    "resnetv2_50": ({}, {"norm.act"}),
    "convnext_atto": ({}, {"stages.3.blocks.1"}),
    "vit_tiny_patch16_224": (_VIT, {"blocks.1.norm1"}),
    "vit_small_patch16_224": (_VIT | {"global_pool": "avg"}, {"blocks.1"}),
    "vit_base_patch16_siglip_224": (_VIT, {"norm"}),
    "deit_tiny_distilled_patch16_224": (_VIT, {"blocks.1.norm1"}),
    "beit_base_patch16_224": (_VIT, {"blocks.1"}),
    "swin_tiny_patch4_window7_224": (
        {"img_size": 64, "window_size": 2, "depths": (1, 1, 1, 1)},
        {"norm", "layers.3.blocks.0.norm1"},
    ),
    "mixer_s32_224": ({"img_size": 64}, {"norm"}),
    "poolformer_s12": ({}, {"stages.3.blocks.1"}),
    "efficientformer_l1": ({}, {"norm"}),
    "xcit_nano_12_p16_224": ({"img_size": 64, "depth": 2}, {"cls_attn_blocks.1.norm1"}),
    "cait_xxs24_224": ({"img_size": 64, "depth": 2}, {"blocks_token_only.1.norm1"}),
    "levit_128s": ({}, {"stages.2.blocks.3"}),
    "pvt_v2_b0": ({}, {"stages.3"}),
    "resnet50_clip": ({}, {"stages.3.2.act", "stages.3.2.act3"}),
}
_STAGES: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 2]}
_TOKENS: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 64,
    "patch_size": 16,
}
_WINDOWS: dict[str, Any] = {
    "image_size": 64,
    "embed_dim": 16,
    "depths": [1, 1, 1],
    "num_heads": [1, 2, 4],
    "window_size": 2,
}
_HEADS: dict[str, Any] = {**_STAGES, "num_attention_heads": [1, 2, 3, 4]}
_MOBILEVIT: dict[str, Any] = {
    "image_size": 64,
    "hidden_sizes": [16, 24, 32],
    "neck_hidden_sizes": [8, 8, 16, 16, 24, 32, 64],
}
# the config's arguments; the layer below the backbone, as several versions of the library name it
TRANSFORMERS = {
    "ResNet": (_STAGES | {"embedding_size": 8}, r"encoder\.stages\.3\.layers\.1(\.activation)?"),
    "RegNet": (
        _STAGES | {"embedding_size": 8, "groups_width": 8},
        r"encoder\.stages\.3\.layers\.1(\.activation)?",
    ),
    "ConvNext": (_STAGES, r"encoder\.stages\.3\.layers\.1"),
    "ConvNextV2": (_STAGES, r"encoder\.stages\.3\.layers\.1"),
    "MobileNetV1": ({"depth_multiplier": 0.25}, r"layer\.25(\.activation)?"),
    "MobileNetV2": ({"depth_multiplier": 0.35}, r"conv_1x1(\.activation)?"),
    "MobileViT": (_MOBILEVIT, r"conv_1x1_exp(\.activation)?"),
    "ViT": (_TOKENS, r"layers?\.1\.layernorm_before"),
    "DeiT": (_TOKENS, r"layers?\.1\.layernorm_before"),
    "Beit": (_TOKENS, r"layers?\.1"),
    "Swin": (_WINDOWS, r"layernorm"),
    "Swinv2": (_WINDOWS, r"layernorm"),
    "Pvt": (_HEADS | {"image_size": 64}, r"encoder\.block\.3\.1\.layer_norm_1"),
    "Dinov2": (
        {name: value for name, value in _TOKENS.items() if name != "intermediate_size"},
        r"layernorm",
    ),
    "Segformer": (_HEADS | {"decoder_hidden_size": 16}, r"(stages|encoder\.layer_norm)\.3"),
    "Siglip": ({"vision_config": _TOKENS}, r"post_layernorm"),
}


def random(create: Callable[[], nn.Module]) -> nn.Module:
    """In evaluation mode, without heads of zeros."""
    torch.manual_seed(0)
    model = create().eval()
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.1)
    return model


def images(size: int = 64) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str) -> None:
    size, expected = TORCHVISION[name]
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = random(lambda: getattr(torchvision.models, name)(num_classes=10, **options))
    assert find_layer(model, images(size)) in expected


@pytest.mark.parametrize("name", SEGMENTATION)
def test_segmentation(name: str) -> None:
    create = getattr(torchvision.models.segmentation, name)
    model = random(lambda: create(weights=None, weights_backbone=None, num_classes=6))
    assert find_layer(model, images(), output=lambda out: out["out"]) in SEGMENTATION[name]


@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str) -> None:
    options, expected = TIMM[name]
    model = random(lambda: timm.create_model(name, num_classes=10, **options))
    size = 224 if name in ("efficientformer_l1", "levit_128s", "resnet50_clip") else 64
    assert find_layer(model, images(size)) in expected


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name: str) -> None:
    options, expected = TRANSFORMERS[name]
    config = getattr(transformers, f"{name}Config")(num_labels=10, **options)
    model = random(lambda: getattr(transformers, f"{name}ForImageClassification")(config))
    found = find_layer(model, images())
    assert re.fullmatch(rf"\w+\.{expected}", found), found


def test_segformer_for_segmentation() -> None:
    config = transformers.SegformerConfig(num_labels=10, decoder_hidden_size=16, **_HEADS)
    model = random(lambda: transformers.SegformerForSemanticSegmentation(config))
    found = find_layer(model, images())
    assert re.fullmatch(r"segformer\.(stages|encoder\.layer_norm)\.3", found), found


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("CLIP", r"vision_model\.encoder\.layers\.1\.layer_norm1"),
        ("Siglip", r"vision_model\.post_layernorm"),
    ],
)
def test_the_tower_of_the_images(name: str, expected: str, frozen: bool) -> None:
    text = {k: v for k, v in _TOKENS.items() if k not in ("image_size", "patch_size")}
    text |= {"vocab_size": 50, "max_position_embeddings": 16, "eos_token_id": 2}
    text |= {"bos_token_id": 0, "pad_token_id": 1}
    config = getattr(transformers, f"{name}Config")(text_config=text, vision_config=_TOKENS)
    model = random(lambda: getattr(transformers, f"{name}Model")(config))
    model.requires_grad_(not frozen)
    inputs = {"input_ids": torch.randint(3, 50, (5, 7)), "pixel_values": images()}
    for given in (inputs, dict(reversed(inputs.items()))):
        found = find_layer(model, given, output=lambda out: out.logits_per_image)
        assert re.fullmatch(expected, found), found


def test_a_detector_with_its_scores_named() -> None:
    model = random(
        lambda: torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
            weights=None, weights_backbone=None, box_score_thresh=-1.0
        )
    )
    given = ([torch.rand(3, 64, 64)],)
    found = find_layer(model, given, output=lambda out: out[0]["scores"][None])
    assert found.startswith("backbone.fpn.layer_blocks.")
    with pytest.raises(ValueError, match=r"output: found no logits"):
        find_layer(model, given)


class Net(nn.Module):
    """A stem, two branches of which the head may read either, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6)
        self.first, self.second = nn.Conv2d(6, 8, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1)
        self.relu, self.head = nn.ReLU(), nn.Linear(8, 5)

    def scores(self, features: Tensor) -> Tensor:
        return self.head(features.mean((2, 3)))


class ReadsTheFirst(Net):
    """The second branch, which runs last, is an auxiliary one."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        first, _ = self.first(x), self.second(x)
        return self.scores(first)


class Boxes(Net):
    """A detector: the boxes come last, the scores are picked by position."""

    def __init__(self) -> None:
        super().__init__()
        self.classes, self.box = nn.Conv2d(8, 5, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        classes, boxes = self.classes(self.first(x)), self.box(self.second(x))
        return torch.cat([boxes, classes], 1).flatten(2).mT, boxes


class Stages(nn.Module):
    """Returns a list; of the last item only its convolution is a module's."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        first = F.relu(self.a(x))
        return [first, F.relu(self.b(first))]


class ReadsTheLastOfAList(Net):
    def __init__(self) -> None:
        super().__init__()
        self.stages = Stages()

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(self.stages(x)[-1])


class SharedActivation(Net):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(self.first, self.relu)

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(self.block(self.relu(self.norm(self.stem(x)))))


class Frozen(Net):
    """Its features have no graph, by its own choice."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.first(self.stem(x))
        return self.scores(x)


class WritesToItsInput(Net):
    def forward(self, x: Tensor) -> Tensor:
        x.sub_(0.5)
        return self.scores(self.relu(self.first(self.stem(x))))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1)
        self.middle, self.up = nn.Conv2d(14, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        half = self.down(x).relu()
        deep = F.interpolate(self.deep(half).relu(), half.shape[2:])
        half = self.middle(torch.cat([half, deep], 1)).relu()
        return self.head(self.up(F.interpolate(half, x.shape[2:])).relu())


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    ("create", "expected", "output"),
    [
        (ReadsTheFirst, "first", None),
        (Boxes, "first", lambda out: out[0][..., 4:].amax(1)),
        (ReadsTheLastOfAList, "stages.b", None),
        (SharedActivation, "block", None),
        (Frozen, "first", None),
        (WritesToItsInput, "relu", None),
        (UNet, "middle", None),
    ],
)
def test_small_networks(
    create: Callable[[], nn.Module],
    expected: str,
    output: Callable[[Any], Tensor] | None,
    frozen: bool,
) -> None:
    model = random(create).requires_grad_(not frozen)
    given = images()
    before = given.clone()
    assert find_layer(model, given, output=output) == expected
    assert given.equal(before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_only_maps_of_scores() -> None:
    model = random(lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Upsample(scale_factor=2)))
    with pytest.raises(ValueError, match=r"target_layers: .* name a layer"):
        find_layer(model, images())


def test_no_score() -> None:
    model = random(ReadsTheFirst)
    with pytest.raises(ValueError, match=r"output: got \(1, 0\)"):
        find_layer(model, images(), output=lambda out: out[:, :0])


def test_an_empty_batch_finds_the_same() -> None:
    model = random(ReadsTheFirst)
    assert find_layer(model, images()[:0]) == "first"


def test_one_position_is_warned_of_once() -> None:
    model = random(lambda: torchvision.models.resnet18(num_classes=10))
    cam = fastcam.GradCAM(model, "avgpool")
    with pytest.warns(UserWarning, match="'avgpool' has one position") as raised:
        cam(images())
    assert len(raised) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cam(images())
        cam = fastcam.GradCAM(model)
        cam(images())
    assert cam.layers == ("layer4.1",)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("method", [fastcam.GradCAM, fastcam.HiResCAM, fastcam.LayerCAM])
def test_constant_maps_are_warned_of_once(method: Any, normalize: bool) -> None:
    model = random(SharedActivation)
    nn.init.constant_(model.get_submodule("head").weight, -1.0)
    cam = method(model)
    with pytest.warns(UserWarning, match=r"every map of 'block' is constant.*relu=False") as raised:
        cam(images(), normalize=normalize)
    assert len(raised) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cam(images(), normalize=normalize)


def test_a_head_of_zeros_is_named() -> None:
    model = torchvision.models.vit_b_32()  # its head begins with zeros
    with pytest.raises(ValueError, match=r"weights of 'heads\.head' are all 0"):
        fastcam.GradCAM(model)(torch.randn(1, 3, 224, 224))


class _Pair(nn.Module):
    """A Siamese network."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
        self.head = nn.Linear(6, 4)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head((self.body(a).mean((2, 3)) - self.body(b).mean((2, 3))).abs())


def test_a_siamese_network_asks_for_a_run() -> None:
    pair = torch.randn(2, 3, 9, 9), torch.randn(2, 3, 9, 9)
    with pytest.raises(ValueError, match=r"'body\.1' runs 2 times.*choose one by run="):
        fastcam.GradCAM(_Pair())(pair)
    assert fastcam.GradCAM(_Pair(), run=0)(pair).shape == (2, 9, 9)


def test_pictures_of_a_clip_before_what_runs_over_time() -> None:
    class Clip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
            self.rnn = nn.GRU(6, 6, batch_first=True)
            self.head = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            seen = torch.stack([self.body(y).mean((2, 3)) for y in x.unbind(1)], 1)
            return self.head(self.rnn(seen)[0][:, -1])

    cam = fastcam.GradCAM(Clip())
    assert cam(torch.randn(2, 4, 3, 9, 9)).shape == (2, 4, 9, 9)
    assert cam.layers == ("body.1",)


def test_text_read_out_at_one_word() -> None:
    config = transformers.BertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=40,
        num_labels=3,
    )
    model = random(lambda: transformers.BertForSequenceClassification(config))
    cam = fastcam.GradCAM(model)
    assert cam(torch.randint(0, 40, (2, 9))).shape == (2, 9)
    assert cam.layers == ("bert.encoder.layer.0.output.LayerNorm",)


def test_bags_are_no_networks_without_positions() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x.squeeze(0)).mean((0, 2, 3))[None])

    with pytest.raises(ValueError, match=r"'body' returned \(5, 6, 7, 7\).*give reshape="):
        fastcam.GradCAM(Bag())(torch.randn(1, 5, 3, 9, 9))
