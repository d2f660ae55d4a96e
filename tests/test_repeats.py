"""A layer that runs several times: which run counts, and what is said if that cannot be known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import literal_map, small_images
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

import fastcam
from fastcam.engine.repeats import is_ancestor_of_last, whole_graph

CLASSES = torch.tensor([1, 4, 2])


class Shared(nn.Module):
    """One convolution or activation that runs several times, in the order that a kind says."""

    def __init__(self, kind: str, inplace: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.conv = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
        self.act, self.head, self.kind = nn.ReLU(inplace), nn.Linear(4, 5), kind
        self.forwards = 0

    def forward(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        self.forwards += 1
        x = self.act(self.stem(a))
        if self.kind == "activation":
            x = self.act(self.conv(x) + x)
        elif self.kind == "loop":
            for _ in range(3):
                x = self.conv(x).sin()
        elif self.kind == "branches that meet":
            x = self.conv(self.conv(x).tanh() + self.conv(-x).sin())
        elif self.kind == "siamese":
            x = self.conv(x).sin() * self.conv(self.stem(b)).cos()
        elif self.kind == "towers":
            x, y = (self.conv(self.conv(z).sin()) for z in (x, self.stem(b)))
            x = x * y.tanh()
        elif self.kind == "levels":
            pooled = nn.functional.avg_pool2d(x, 2)
            return self.head(self.conv(x).sin().mean((2, 3)) + self.conv(pooled).cos().mean((2, 3)))
        return self.head((x**2).mean((2, 3)))


DEPENDENT = [("activation", "act"), ("loop", "conv"), ("branches that meet", "conv")]
INDEPENDENT = [("siamese", "conv", 2), ("towers", "conv", 4), ("levels", "conv", 2)]


def images_for(kind: str) -> Any:
    images = small_images().double()
    return (images, images.flip(-1) * 2) if kind in ("siamese", "towers") else images


def expected_map(model: nn.Module, inputs: Any, layer: str, run: int) -> Tensor:
    """By the whole graph: a zero is added to what that run returns."""
    kept: list[Tensor] = []

    def add(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        zero = torch.zeros_like(output, requires_grad=True)
        kept.extend([output.detach().clone(), zero])
        return output + zero

    handle = model.get_submodule(layer).register_forward_hook(add)
    logits = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    handle.remove()
    activations, zero = kept[2 * run : 2 * run + 2] if run >= 0 else kept[-2:]
    (gradient,) = torch.autograd.grad(logits.gather(1, CLASSES[:, None]).sum(), zero)
    return literal_map("hirescam", activations, gradient)


def raw_map(model: nn.Module, inputs: Any, layer: str, **options: Any) -> Tensor:
    cam = fastcam.HiResCAM(model, layer, **options)
    return cam(inputs, CLASSES, size="layer", normalize=False)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("kind", "layer"), DEPENDENT)
@pytest.mark.parametrize("inplace", [False, True])
def test_the_last_run_counts_if_it_depends_on_the_others(kind, layer, frozen, inplace) -> None:
    model = Shared(kind, inplace).double().requires_grad_(not frozen).eval()
    images = images_for(kind)
    expected = expected_map(model, images, layer, -1)
    assert expected.any()
    torch.testing.assert_close(raw_map(model, images, layer), expected)
    torch.testing.assert_close(raw_map(model, images, layer, run=-1), expected)
    assert fastcam.EigenCAM(model, layer)(images).any()


def test_that_is_found_once_for_each_object() -> None:
    model = Shared("loop").double().eval()
    images, counts = images_for("loop"), []
    cam = fastcam.GradCAM(model, "conv")
    for _ in range(3):
        before = model.forwards
        cam(images)
        counts.append(model.forwards - before)
    assert counts == [1, 1, 1]  # further runs leave no trace in the model


@pytest.mark.parametrize("method", ["hirescam", "eigencam", "ablationcam", "guided-gradcam"])
@pytest.mark.parametrize(("kind", "layer", "runs"), INDEPENDENT)
def test_independent_runs_are_listed(kind: str, layer: str, runs: int, method: str) -> None:
    model, inputs = Shared(kind).double().eval(), images_for(kind)
    with pytest.raises(ValueError, match=rf"'{layer}' runs {runs} times .* run=") as raised:
        fastcam.METHODS[method](model, layer)(inputs, CLASSES)
    assert str(raised.value).startswith("target_layers: ")
    assert f"0: (3, 4, 14, 18), 1: {(3, 4, 7, 9) if kind == 'levels' else (3, 4, 14, 18)}" in str(
        raised.value
    )


@pytest.mark.parametrize(("kind", "layer", "runs"), INDEPENDENT)
def test_run_chooses(kind: str, layer: str, runs: int) -> None:
    model, inputs = Shared(kind).double().eval(), images_for(kind)
    found = []
    for run in range(runs):
        expected = expected_map(model, inputs, layer, run)
        torch.testing.assert_close(raw_map(model, inputs, layer, run=run), expected)
        torch.testing.assert_close(raw_map(model, inputs, layer, run=run - runs), expected)
        found.append(expected)
    assert len({float(each.sum()) for each in found}) == runs


@pytest.mark.parametrize("run", [0, 1])
def test_ablation_of_the_chosen_run(run: int) -> None:
    """By a run for each channel that sets it to zero in the layer."""
    model, inputs = Shared("siamese").double().eval(), images_for("siamese")
    rows = torch.arange(3)
    runs: list[Tensor] = []
    ablated: list[int] = []

    def ablate(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        runs.append(output.detach())
        if not ablated or len(runs) - 1 != run:
            return None
        changed = output.clone()
        changed[:, ablated[0]] = 0
        return changed

    handle = model.conv.register_forward_hook(ablate)
    with torch.no_grad():
        scores = model(*inputs)[rows, CLASSES]
        activations, drops = runs[run], []
        for channel in range(4):
            runs.clear()
            ablated[:] = [channel]
            drops.append(scores - model(*inputs)[rows, CLASSES])
    handle.remove()
    weights = torch.stack(drops, 1) / scores[:, None]
    expected = (weights[:, :, None, None] * activations).sum(1).relu()
    cam = fastcam.AblationCAM(model, "conv", run=run, batch_size=6)
    torch.testing.assert_close(cam(inputs, CLASSES, size="layer", normalize=False), expected)


def test_runs_that_are_not_there() -> None:
    model, images = Shared("loop").double().eval(), images_for("loop")
    with pytest.raises(ValueError, match=r"^run: got 3, but 'conv' ran 3 times, expected -3 to 2"):
        raw_map(model, images, "conv", run=3)
    with pytest.raises(ValueError, match=r"^run: got 1, but 'stem' ran once"):
        raw_map(model, images, "stem", run=1)
    with pytest.raises(TypeError, match=r"^run: got 'last'"):
        raw_map(model, images, "conv", run="last")


def test_runs_of_a_factorization() -> None:
    model, inputs = Shared("siamese").double().eval(), images_for("siamese")
    with pytest.raises(ValueError, match="run="):
        fastcam.deep_feature_factorization(model, inputs, 2, "conv")
    first, second = (
        fastcam.deep_feature_factorization(model, inputs, 2, "conv", run=run) for run in (0, 1)
    )
    assert not first.maps.equal(second.maps)


def edges_of(*tensors: Tensor) -> list[Any]:
    return [get_gradient_edge(t) if t.requires_grad else None for t in tensors]


def test_ancestors() -> None:
    x = torch.randn(3, requires_grad=True)
    a, b = x.sin(), x.cos()
    assert is_ancestor_of_last(edges_of(a, a * 2))
    assert is_ancestor_of_last(edges_of(a, b, (a + b).exp()))
    assert is_ancestor_of_last(edges_of(a, a))
    assert not is_ancestor_of_last(edges_of(a, b))
    assert not is_ancestor_of_last(edges_of(a, b, b * 2))
    assert not is_ancestor_of_last(edges_of(a, a.detach()))
    assert not is_ancestor_of_last(edges_of(a.detach(), a * 2))
    deep = a
    for _ in range(20000):  # more than Python's stack has room for
        deep = deep + 1
    assert is_ancestor_of_last(edges_of(a, deep))


def test_the_graph_is_whole_and_the_model_left_as_it_was() -> None:
    model, images = Shared("loop", inplace=True).requires_grad_(False), small_images()
    before = images.clone()
    edges = whole_graph(model, images, ["conv", "act", "head"])
    assert [len(edges[name]) for name in ("conv", "act", "head")] == [3, 1, 0]
    assert all(edge is not None for each in edges.values() for edge in each)
    assert images.equal(before) and not images.requires_grad and model.training
    assert not any(module._forward_hooks for module in model.modules())
