"""Networks with several ways from a layer to the score, against whole-graph autograd."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils.checkpoint import checkpoint

import fastcam
from fastcam.engine.capture import capture
from fastcam.engine.start import find_start


def stem(into: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(into, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())


class Layer(nn.Module):
    """A layer that does more than to return its output."""

    def __init__(self, forward: Callable[[Layer, Tensor], Any]) -> None:
        super().__init__()
        self.body, self.more, self.way = stem(), stem(6), forward

    def forward(self, x: Tensor) -> Any:
        return self.way(self, x)


class Net(nn.Module):
    """Two branches that are read out together: what lies above the layer, and a second reader."""

    def __init__(self, layer: nn.Module, branches: Callable[[Net, Tensor], tuple[Tensor, Tensor]]):
        super().__init__()
        self.layer, self.above, self.head = layer, nn.Conv2d(6, 6, 3), nn.Linear(12, 4)
        self.act, self.store = nn.ReLU(inplace=True), {}
        self.branches = branches

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.branches(self, x)
        pooled = [first.mean((2, 3)), second.square().mean((2, 3))]
        return self.head(torch.cat(pooled, 1))


def keeps(layer: Layer, x: Tensor) -> Tensor:
    layer.kept = layer.body(x)
    return layer.kept


def keeps_a_value_of_it(layer: Layer, x: Tensor) -> Tensor:
    x = layer.body(x)
    layer.kept = x.square()
    return x


def turns(layer: Layer, x: Tensor) -> Tensor:
    return layer.body(x).permute(0, 1, 3, 2)


def through(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    x = net.layer(x)
    return net.above(x), x


def kept(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    return net.above(net.layer(x)), net.layer.kept


def stored(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    return net.above(net.layer(x)), net.store["map"]


def stored_by_a_late_hook(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    if not net.layer._forward_hooks or "hung" not in net.store:
        net.store["hung"] = True
        net.layer.register_forward_hook(lambda module, args, output: keep_map(net, output))
    return stored(net, x)


def keep_map(net: Net, output: Tensor) -> None:
    net.store["map"] = output


def both_of_two(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    first, second = net.layer(x)
    return net.above(first), second


def by_name(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    found = net.layer(x)
    return net.above(found["first"]), found["second"]


def overwritten(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    x = net.layer(x)
    x += 1
    x.mul_(2)
    return net.above(x), x


def activated_in_place(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    x = net.layer(x) - 0.2
    net.act(x)
    return net.above(x), x


def in_a_block_with_grad(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        x = net.layer(x)
        second = x.exp()
    return net.above(x), second


def checkpointed(net: Net, x: Tensor, reentrant: bool = False) -> tuple[Tensor, Tensor]:
    return checkpoint(lambda y: through(net, y), x, use_reentrant=reentrant)


def checkpointed_reentrant(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    return checkpointed(net, x, True)


def hooked() -> Net:
    net = Net(stem(), stored)
    net.layer.register_forward_hook(lambda module, args, output: keep_map(net, output))
    return net


# kind -> the network, and the names of the layer to explain
KINDS: dict[str, tuple[Callable[[], Net], tuple[str, ...]]] = {
    "plain": (lambda: Net(stem(), through), ("layer", "layer.2")),
    "an attribute": (lambda: Net(Layer(keeps), kept), ("layer", "layer.body", "layer.body.2")),
    "a value derived within": (
        lambda: Net(Layer(keeps_a_value_of_it), kept),
        ("layer", "layer.body"),
    ),
    "a hook": (hooked, ("layer", "layer.2")),
    "a hook hung late": (lambda: Net(stem(), stored_by_a_late_hook), ("layer", "layer.2")),
    "the same twice": (
        lambda: Net(Layer(lambda self, x: (self.body(x),) * 2), both_of_two),
        ("layer",),
    ),
    "a list of features": (
        lambda: Net(Layer(lambda self, x: [y := self.body(x), self.more(y)]), both_of_two),
        ("layer", "layer.body"),
    ),
    "a dict of features": (
        lambda: Net(
            Layer(lambda self, x: {"first": (y := self.body(x)), "second": self.more(y)}), by_name
        ),
        ("layer",),
    ),
    "overwritten": (lambda: Net(stem(), overwritten), ("layer", "layer.2")),
    "a view, overwritten": (lambda: Net(Layer(turns), overwritten), ("layer",)),
    "a ReLU in place behind": (lambda: Net(stem(), activated_in_place), ("layer",)),
    "a ReLU in place": (lambda: Net(stem(), activated_in_place), ("act",)),
    "a block with grad": (lambda: Net(stem(), in_a_block_with_grad), ("layer",)),
    "checkpoints": (lambda: Net(stem(), checkpointed), ("layer", "above")),
    "reentrant checkpoints": (lambda: Net(stem(), checkpointed_reentrant), ("layer", "above")),
}
CASES = [(kind, layer) for kind, (_, layers) in KINDS.items() for layer in layers]


def made(kind: str, frozen: bool = False) -> Net:
    torch.manual_seed(0)
    net = KINDS[kind][0]().double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return net.requires_grad_(not frozen)


def pictures() -> Tensor:
    return torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def whole_graph(kind: str, layer: str, class_id: int) -> tuple[Tensor, Tensor]:
    """A and dS/dA of a network of its own that is recorded as in training."""
    net = made("checkpoints" if "checkpoints" in kind else kind)
    found: list[Any] = []

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        first = output if isinstance(output, Tensor) else next(iter(values(output)))
        base = first if first._base is None else first._base  # a view moves when it is overwritten
        place = first.shape, first.stride(), first.storage_offset()
        found[:] = [first.detach().clone(), get_gradient_edge(base), place]

    net(pictures())  # hooks that are hung late
    net.get_submodule(layer).register_forward_hook(hook)
    score = net(pictures().requires_grad_())[:, class_id].sum()
    activations, edge, place = found
    (gradient,) = torch.autograd.grad(score, [edge])
    return activations, gradient.contiguous().as_strided(*place)


def upright(kind: str, maps: Tensor) -> Tensor:
    """Maps have the images' axes in their order, also those of a layer that turns them."""
    return maps.mT if "view" in kind else maps


def values(output: Any) -> Any:
    return output.values() if isinstance(output, dict) else output


@pytest.mark.parametrize("kind", list(KINDS))
def test_no_graph_stays_in_the_model(kind: str) -> None:
    net = made(kind)
    # a graph from the images on stays in a hook's own store, and what is overwritten has none
    from_images = ["guided-gradcam"] if not {"hook", "overwritten"} & set(kind.split()) else []
    for method in ("gradcam", *from_images):
        cam = fastcam.METHODS[method](net, "layer")
        for _ in range(2):
            cam(pictures(), 1)
            held = [*net.store.values(), *vars(net.layer).values()]
            assert not any(each.requires_grad for each in held if isinstance(each, Tensor))
    if "hook" not in kind:
        copy.deepcopy(net)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("kind", "layer"), CASES)
def test_gradients_count_every_reader(kind: str, layer: str, frozen: bool) -> None:
    net, images = made(kind, frozen), pictures()
    activations, gradient = whole_graph(kind, layer, 1)
    expected = upright(kind, (activations * gradient).sum(1))
    with torch.no_grad():
        plain = made(kind)(images)
    cam = fastcam.HiResCAM(net, layer)
    for _ in range(3):
        found = cam(images, 1, size="layer", normalize=False, relu=False)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        assert torch.equal(cam.outputs, plain)
    verified = cam.verify(images, 1)
    assert verified.layer == layer and verified.outputs_equal
    assert verified.gradient_error == pytest.approx(0, abs=1e-12)
    assert verified.map_error == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "ReLU" not in kind])
def test_ablation_reaches_every_reader(kind: str) -> None:
    net, images = made(kind), pictures()
    activations, _ = whole_graph(kind, "layer", 1)
    with torch.no_grad():
        scores = made(kind)(images)[:, 1]
        expected = torch.zeros_like(activations[:, 0])
        for k in range(6):
            other = made(kind)
            other(images)
            body = other.layer.body if isinstance(other.layer, Layer) else other.layer

            def ablate(module: nn.Module, args: Any, output: Tensor, k: int = k) -> Tensor:
                output = output.clone()
                output[:, k] = 0
                return output

            body[2].register_forward_hook(ablate, prepend=True)
            left = other(images)[:, 1]
            expected += ((scores - left) / scores)[:, None, None] * activations[:, k]
    cam = fastcam.AblationCAM(net, "layer", batch_size=4)
    found = cam(images, 1, size="layer", normalize=False, relu=False)
    torch.testing.assert_close(found, upright(kind, expected), rtol=1e-8, atol=1e-12)


def test_the_graph_starts_as_close_as_it_may() -> None:
    places = {
        (kind, layer): find_start(made(kind), pictures()[:1], [layer]).place
        for kind, layer in CASES
    }
    assert places["plain", "layer"] == places["a hook", "layer"] == "output"
    assert places["an attribute", "layer"] == places["a ReLU in place", "act"] == "output"
    assert places["a value derived within", "layer"] == "layer"
    assert places["a value derived within", "layer.body"] == "output"
    assert places["a list of features", "layer"] == "layer"
    assert places["a block with grad", "layer"] == "model"


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_nothing_is_invented_in_a_block_of_the_models_own(around: Any) -> None:
    def branches(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        with around():
            x = net.layer(x)
            second = x.exp()
        return net.above(x.clone()), second.clone()

    net = Net(stem(), branches).double().eval()
    with pytest.raises(ValueError, match="the score does not depend on what 'layer' returned"):
        fastcam.GradCAM(net, "layer")(pictures(), 1)
    with pytest.raises(ValueError, match="the score does not depend"):
        fastcam.GradCAM(net, "layer").verify(pictures(), 1)
    verified = fastcam.EigenCAM(net, "layer").verify(pictures(), 1)
    assert verified.gradient_error is None and verified.map_error == 0


def test_a_constant_of_the_model_gets_no_graph() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.randn(1, 6, 9, 9).double())

        def forward(self, x: Tensor) -> Tensor:
            return self.table

    class Positioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.positions, self.head = stem(), Positions(), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x) + self.positions(x).expand(len(x), -1, -1, -1)
            return self.head(x.mean((2, 3)))

    model = Positioned().double().eval()
    with pytest.raises(ValueError, match="the score does not depend on what 'positions' returned"):
        fastcam.GradCAM(model, "positions")(pictures()[:1], 1)
    assert not model.positions.table.requires_grad and model.positions.table._version == 0


def test_random_numbers_are_left_to_the_user() -> None:
    net, images = made("plain"), pictures()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fastcam.GradCAM(net)(images)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("kind", ["a hook", "an attribute", "a hook hung late"])
def test_copies_leave_the_original_alone(kind: str) -> None:
    """Masked runs of Score-CAM and the fast mode: a copy's hooks would write into the store."""
    net, images = made(kind), pictures()
    net(images)
    found = fastcam.ScoreCAM(net, "layer")(images, 1, size="layer", normalize=False, relu=False)
    activations, _ = whole_graph(kind, "layer", 1)
    low, high = (f(activations, (2, 3)) for f in (torch.amin, torch.amax))
    masks = (activations - low[..., None, None]) / (high - low).clamp_min(1e-300)[..., None, None]
    with torch.no_grad():
        scores = [made(kind)(images * masks[:, k : k + 1])[:, 1] for k in range(6)]
    weights = torch.stack(scores, 1).softmax(1)
    expected = (weights[..., None, None] * activations).sum(1)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    cam = fastcam.HiResCAM(net, "layer")
    exact = cam(images, 1, size="layer", normalize=False, relu=False)
    cam.compile()
    fast = cam(images, 1, size="layer", normalize=False, relu=False)
    torch.testing.assert_close(fast, exact, rtol=1e-5, atol=1e-7)
    if "hook" in kind:
        assert "its hooks are functions" in cam.compiled["model"]


def test_second_derivatives_at_an_edge() -> None:
    net, images = made("an attribute"), pictures()
    fresh = copy.deepcopy(net)
    record = capture(net, images, ["layer"])
    with torch.enable_grad():
        score = record.logits[:, 1].square()
    ((gradient, product),) = record.hessian_products(score)
    step = 1e-5 * record.activations[0]

    def gradient_at(sign: int) -> Tensor:
        other = copy.deepcopy(fresh)
        other.layer.body[2].register_forward_hook(lambda m, a, output: output + sign * step)
        found = capture(other, images, ["layer"])
        with torch.enable_grad():
            return found.gradients(found.logits[:, 1].square())[0]

    difference = (gradient_at(1) - gradient_at(-1)) / 2e-5
    torch.testing.assert_close(product, difference, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(gradient, record.gradients(score)[0])
