"""Networks of other libraries, random weights: three calls each, against whole-graph autograd."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastcam

Reshape = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    build: Callable[[], nn.Module]
    layers: tuple[str, ...]
    reshape: Reshape | None = None
    size: int = 32
    output: Callable[[Any], Tensor] | None = None
    dense: bool = False
    """Whether a score is a mean over one image's output; otherwise it is a class."""
    frozen: bool = False
    rounding: float = 0.0
    """How far outputs with a graph may be from those without one, relatively. Not 0 where torch
    attends by another kernel as soon as the bias of the positions requires a gradient."""


def tokens(prefix: int, rows: int) -> Reshape:
    """(N, prefix + rows², C) -> (N, C, rows, rows)"""
    return lambda t: t[:, prefix:].transpose(1, 2).unflatten(2, (rows, rows))


def hugging_face(name: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        library = pytest.importorskip("transformers", reason="transformers is missing")
        nested = {
            key: getattr(library, value[0])(**value[1]) if isinstance(value, tuple) else value
            for key, value in options.items()
        }
        return getattr(library, name)(getattr(library, config)(**nested))

    return build


def timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        library = pytest.importorskip("timm", reason="timm is missing")
        return library.create_model(name, **options)

    return build


def torchvision(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        library = pytest.importorskip("torchvision", reason="torchvision is missing")
        return getattr(library.models, name)(num_classes=5, **options)  # a function or a class

    return build


def small_vgg() -> nn.Module:
    """ReLUs in place behind every convolution."""
    library = pytest.importorskip("torchvision", reason="torchvision is missing")
    features = library.models.vgg.make_layers([8, "M", 12, "M", 16, 16])
    return nn.Sequential(features, nn.Flatten(), nn.Linear(16 * 64, 5))


class HookedUNet(nn.Module):
    """Skips are taken by hooks on an encoder that somebody else wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, padding=1),
        )
        self.up1, self.up2 = nn.Conv2d(16, 6, 3, padding=1), nn.Conv2d(12, 5, 3, padding=1)
        self.skips: dict[str, Tensor] = {}
        for name in ("1", "4"):
            self.encoder.get_submodule(name).register_forward_hook(self._keep(name))

    def _keep(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            self.skips[name] = output

        return hook

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(self.encoder(x), scale_factor=2)
        x = self.up1(torch.cat([x, self.skips["4"]], 1))
        x = F.interpolate(F.gelu(x), scale_factor=2)
        return self.up2(torch.cat([x, self.skips["1"]], 1))


TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 32,
    "patch_size": 8,
}
STAGES = {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 2, 1], "num_labels": 5}
DINO = {
    **{key: TINY[key] for key in TINY if key != "intermediate_size"},
    "mlp_ratio": 2,
    "num_hidden_layers": 4,
    "out_indices": [1, 2, 3, 4],
    "reshape_hidden_states": False,
}
EVERY_STAGE = {"fusion_hidden_size": 8, "neck_hidden_sizes": [6, 8, 10, 12]}

CASES = {
    "DPT": Case(
        hugging_face(
            "DPTForDepthEstimation",
            "DPTConfig",
            **{**TINY, "num_hidden_layers": 4},
            backbone_out_indices=[0, 1, 2, 3],
            is_hybrid=False,
            **EVERY_STAGE,
        ),
        ("dpt.encoder.layer.1", "dpt.encoder.layer.3"),
        tokens(1, 4),
        output=lambda out: out.predicted_depth,
        dense=True,
    ),
    "BEiT": Case(
        hugging_face(
            "BeitForSemanticSegmentation",
            "BeitConfig",
            **{**TINY, "num_hidden_layers": 4},
            out_indices=[1, 2, 3, 4],
            num_labels=5,
            use_auxiliary_head=False,
            pool_scales=[1, 2],
            use_relative_position_bias=True,
        ),
        ("beit.layers.1", "beit.layers.2"),
        tokens(1, 4),
        rounding=1e-13,
        output=lambda out: out.logits,
        dense=True,
    ),
    "DepthAnything": Case(
        hugging_face(
            "DepthAnythingForDepthEstimation",
            "DepthAnythingConfig",
            backbone_config=("Dinov2Config", DINO),
            patch_size=8,
            reassemble_hidden_size=16,
            **EVERY_STAGE,
            head_hidden_size=6,
        ),
        ("backbone.encoder.layer.0", "backbone.encoder.layer.1"),
        tokens(1, 4),
        output=lambda out: out.predicted_depth,
        dense=True,
    ),
    "ViT": Case(
        hugging_face("ViTForImageClassification", "ViTConfig", **TINY, num_labels=5),
        ("vit.layers.0", "vit.layers.1.mlp"),
        tokens(1, 4),
        output=lambda out: out.logits,
    ),
    "Dinov2": Case(
        hugging_face(
            "Dinov2ForImageClassification",
            "Dinov2Config",
            **{key: value for key, value in DINO.items() if key[:3] not in ("out", "res")},
            num_labels=5,
        ),
        ("dinov2.encoder.layer.1",),
        tokens(1, 4),
        output=lambda out: out.logits,
    ),
    "Siglip": Case(
        hugging_face(
            "SiglipForImageClassification",
            "SiglipConfig",
            vision_config=TINY,
            text_config={key: TINY[key] for key in list(TINY)[:4]},
            num_labels=5,
        ),
        ("vision_model.encoder.layers.1",),
        tokens(0, 4),
        output=lambda out: out.logits,
    ),
    "Swin": Case(
        hugging_face(
            "SwinForImageClassification",
            "SwinConfig",
            image_size=32,
            patch_size=2,
            embed_dim=8,
            depths=[1, 2],
            num_heads=[2, 2],
            window_size=4,
            num_labels=5,
        ),
        ("swin.encoder.layers.1.blocks.0", "swin.layernorm"),
        tokens(0, 8),
        rounding=1e-13,
        output=lambda out: out.logits,
    ),
    "ConvNeXtV2": Case(
        hugging_face("ConvNextV2ForImageClassification", "ConvNextV2Config", **STAGES),
        ("convnextv2.encoder.stages.1", "convnextv2.encoder.stages.2"),
        size=64,
        output=lambda out: out.logits,
    ),
    "ResNet": Case(
        hugging_face(
            "ResNetForImageClassification",
            "ResNetConfig",
            embedding_size=8,
            layer_type="basic",
            **STAGES,
        ),
        ("resnet.encoder.stages.2", "resnet.encoder.stages.1"),
        size=64,
        output=lambda out: out.logits,
    ),
    "Segformer": Case(
        hugging_face(
            "SegformerForSemanticSegmentation",
            "SegformerConfig",
            hidden_sizes=[8, 8, 16, 16],
            depths=[1, 1, 1, 1],
            num_attention_heads=[1, 1, 2, 2],
            decoder_hidden_size=8,
            num_labels=5,
        ),
        ("segformer.stages.1.blocks.0", "segformer.stages.2.layer_norm"),
        lambda t: t.transpose(1, 2).unflatten(2, (int(t.shape[1] ** 0.5), -1)),
        size=64,
        output=lambda out: out.logits,
        dense=True,
    ),
    "timm list": Case(
        timm("resnet10t", features_only=True, out_indices=(1, 2, 3)),
        ("layer2", "layer3"),
        size=64,
        output=lambda out: out[1].mean((2, 3))[:, :5] + out[2].amax((2, 3))[:, :5] * 2,
    ),
    "timm hooks": Case(
        timm(
            "vit_tiny_patch16_224",
            img_size=32,
            depth=3,
            num_classes=5,
            global_pool="avg",
            embed_dim=48,
        ),
        ("blocks.1", "blocks.2"),
        tokens(1, 2),
    ),
    "vgg": Case(
        small_vgg,
        ("0.0", "0.1", "0.3", "0.4", "0"),
    ),
    "frozen densenet": Case(
        torchvision(
            "DenseNet",
            growth_rate=4,
            block_config=(2, 3),
            num_init_features=8,
            memory_efficient=True,
        ),
        ("features.denseblock1", "features.denseblock1.denselayer2", "features"),
        frozen=True,
        size=32,
    ),
    "mobilenet": Case(
        torchvision("mobilenet_v3_small", width_mult=0.35), ("features.4", "features"), size=64
    ),
    "U-Net": Case(HookedUNet, ("encoder.1", "encoder.4", "encoder.6", "encoder.3"), dense=True),
}


def prepared(case: Case) -> tuple[nn.Module, list[Tensor]]:
    """A float64 network in evaluation mode and the images of three calls."""
    torch.manual_seed(0)
    images = torch.randn(3, 3, case.size, case.size, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = case.build().double()
        for parameter in model.parameters():
            spread = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.2
            parameter.data += spread * torch.randn_like(parameter)  # no head that ReLU silences
    return model.eval(), [images[:2], images[:2], images[1:]]


def scores_of(case: Case, outputs: Any) -> Tensor:
    """(N,)"""
    picked = outputs if case.output is None else case.output(outputs)
    if case.dense:
        return picked.flatten(1).mean(1)
    return picked[:, 1]


def judged(case: Case, images: Tensor, layer: str) -> tuple[Any, Tensor, Tensor]:
    """The outputs of plain inference, A and dS/dA at the edge that A has when it is returned."""
    model, _ = prepared(case)
    with torch.no_grad():
        outputs = model(images)  # hooks that are hung lazily now are
    edges, kept = [], []

    def take(module: nn.Module, args: Any, output: Any) -> None:
        tensor = output if isinstance(output, Tensor) else output[0]
        kept[:] = [tensor.detach().clone()]
        edges[:] = [torch.autograd.graph.get_gradient_edge(tensor)]

    model.get_submodule(layer).register_forward_hook(take)
    with torch.enable_grad():
        scores = scores_of(case, model(images))
    (gradient,) = torch.autograd.grad(scores.sum(), edges)
    read = case.reshape or (lambda tensor: tensor)
    return outputs, read(kept[0]), read(gradient)


def leaves(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    values = value.values() if hasattr(value, "values") else value
    return [] if value is None else [leaf for item in values for leaf in leaves(item)]


@pytest.mark.parametrize(
    ("name", "layer"), [(name, layer) for name, case in CASES.items() for layer in case.layers]
)
def test_three_calls_of_one_object(name: str, layer: str) -> None:
    case = CASES[name]
    model, calls = prepared(case)
    if case.frozen:
        model.requires_grad_(False)
    targets: Any = (lambda logits: logits.mean()) if case.dense else 1
    cam = fastcam.HiResCAM(model, layer, reshape=case.reshape, output=case.output)
    for images in calls:
        outputs, activations, gradients = judged(case, images, layer)
        maps = cam(images, targets, size="layer", normalize=False, relu=False)
        assert gradients.abs().max() > 1e-12
        expected = (activations * gradients).sum(1)
        assert (maps - expected).abs().max() <= 1e-9 * expected.abs().max()
        for came, right in zip(leaves(cam.outputs), leaves(outputs), strict=True):
            assert (came - right).abs().max() <= case.rounding * right.abs().max()
