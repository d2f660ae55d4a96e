"""Targets: what is accepted, what it means and what the errors say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import fastcam
from fastcam.targets import (
    Boxes,
    Margin,
    Negative,
    Segmentation,
    Similarity,
    TopClasses,
    look_like_probabilities,
    select,
)

LOGITS = torch.tensor([[1.0, 5.0, 2.0, 0.0], [7.0, 4.0, 6.0, -1.0], [0.0, 1.0, 3.0, 2.0]])


@pytest.mark.parametrize(
    ("targets", "ids"),
    [
        (None, [1, 0, 2]),
        (3, [3, 3, 3]),
        (np.int64(3), [3, 3, 3]),
        (torch.tensor(3), [3, 3, 3]),
        ([0, 1, 2], [0, 1, 2]),
        ((0, 1, 2), [0, 1, 2]),
        ([np.int64(0), 1, torch.tensor(2)], [0, 1, 2]),
        (torch.tensor([0, 1, 2], dtype=torch.uint8), [0, 1, 2]),
        (np.array([2, 1, 0])[::-1], [0, 1, 2]),
        (torch.tensor([[0, 1], [1, 2], [2, 3]]), [[0, 1], [1, 2], [2, 3]]),
        ([[3], [2], [1]], [[3], [2], [1]]),
        (torch.arange(4).expand(3, -1), [[0, 1, 2, 3]] * 3),
    ],
)
def test_class_ids(targets, ids) -> None:
    selection = select(LOGITS, targets)
    assert selection.class_ids.tolist() == ids
    rows = [np.take(row, k).tolist() for row, k in zip(LOGITS.numpy(), np.array(ids), strict=True)]
    assert selection.scores.tolist() == rows


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
@pytest.mark.parametrize("targets", [None, 0, [0, 0, 0]])
def test_a_single_logit_is_class_0(shape, targets) -> None:
    logits = torch.tensor([1.0, -2.0, 3.0]).reshape(shape)
    selection = select(logits, targets)
    assert selection.class_ids.tolist() == [0, 0, 0]
    assert selection.scores.tolist() == [1.0, -2.0, 3.0]
    with pytest.raises(ValueError, match="expected 0 to 0"):
        select(logits, 1)


def test_functions() -> None:
    selection = select(LOGITS, lambda row: row[1] - row[0])
    assert selection.class_ids is None and selection.scores.tolist() == [4.0, -3.0, 1.0]
    functions = [lambda row, k=k: row[k : k + 1] for k in range(3)]
    assert select(LOGITS, functions).scores.tolist() == [1.0, 4.0, 3.0]
    maps = torch.arange(24.0).reshape(3, 2, 2, 2)
    assert select(maps, lambda row: row[0].sum()).scores.tolist() == [6.0, 38.0, 70.0]
    assert select(LOGITS[:0], lambda row: row[0]).scores.shape == (0,)


def test_scores_keep_their_graph_under_no_grad() -> None:
    logits = LOGITS.clone().requires_grad_()
    with torch.no_grad():
        for targets in (None, 1, lambda row: row[0], torch.tensor([[0, 1]] * 3)):
            selection = select(logits, targets)
            met: list[tuple[bool, bool]] = []

            def once(
                scores: torch.Tensor, again: bool, met: list[tuple[bool, bool]] = met
            ) -> list[torch.Tensor]:
                met.append((scores.requires_grad, again))
                return [scores.detach()]

            (stacked,) = selection.by_class(once)
            assert torch.equal(stacked, selection.scores)
            assert met == [(True, k < len(met)) for k in range(1, len(met) + 1)]


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        (4, ValueError, "got class 4, expected 0 to 3"),
        (-1, ValueError, "got class -1, expected 0 to 3"),
        ([0, 1, 9], ValueError, "got class 9"),
        ([0, 1], ValueError, r"got shape \(2,\), expected \(3,\)"),
        (torch.zeros(3, 0, dtype=torch.int64), ValueError, r"got shape \(3, 0\)"),
        (torch.zeros(3, 1, 1, dtype=torch.int64), ValueError, r"\(3, 1, 1\)"),
        ([0.5, 1.0, 2.0], TypeError, "float64, expected class ids"),
        ([True, False, True], TypeError, "bool, expected class ids"),
        (True, TypeError, "bool, expected class ids"),
        ("cat", TypeError, "'cat', expected class ids"),
        ([[0], [1, 2], [3]], TypeError, "expected class ids"),
        ([len, 1, 2], ValueError, "expected 3 functions"),
        ([len, len], ValueError, "list of 2, expected 3 functions"),
        (lambda row: row, ValueError, r"returned \(4,\), expected one value in a tensor"),
        (lambda row: 1.0, ValueError, "returned float"),
    ],
)
def test_errors_name_what_came_and_what_was_expected(targets, error, message) -> None:
    with pytest.raises(error, match=f"^targets: .*{message}"):
        select(LOGITS, targets)


def test_dense_outputs_need_a_function() -> None:
    with pytest.raises(ValueError, match="function"):
        select(torch.zeros(3, 4, 2, 2), 1)


def test_probabilities() -> None:
    assert look_like_probabilities(LOGITS.softmax(1))
    assert look_like_probabilities(LOGITS.clone().requires_grad_().sigmoid())
    assert not look_like_probabilities(LOGITS)
    assert not look_like_probabilities(LOGITS.requires_grad_())
    assert not look_like_probabilities(torch.ones(3, 1))


def test_top_classes_are_ranked_by_the_forward_itself():
    logits = torch.tensor([[0.1, 3.0, 2.0, -1.0], [5.0, 1.0, 4.0, 0.0]])
    assert select(logits, TopClasses(2)).class_ids.tolist() == [[1, 2], [0, 2]]
    assert select(logits, TopClasses(9)).class_ids.shape == (2, 4)
    chosen = select(logits, TopClasses(2, first=3))
    assert chosen.class_ids.tolist() == [[3, 1], [3, 0]]
    assert chosen.scores.tolist() == [[-1.0, 3.0], [0.0, 5.0]]
    with pytest.raises(ValueError, match="got class 4, expected 0 to 3"):
        select(logits, TopClasses(2, first=4))


@pytest.mark.parametrize("count", [0, -1])
def test_top_classes_are_at_least_one(count: int) -> None:
    with pytest.raises(ValueError, match=f"count of {count}, expected at least 1"):
        TopClasses(count)


@pytest.mark.parametrize("make", [torch.tensor, np.array, list])
def test_one_hot_rows_are_no_class_ids(make) -> None:
    rows = [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]]
    with pytest.raises(
        ValueError, match=r"^targets: got one-hot rows of shape \(3, 4\), .*argmax\(1\)"
    ):
        select(LOGITS, make(rows))
    rows[0] = [0, 1, 1, 0]
    assert select(LOGITS, make(rows)).class_ids.tolist() == rows
    two = [[0, 1], [1, 0], [0, 1]]  # both classes of each image
    assert select(LOGITS[:, :2], make(two)).class_ids.tolist() == two
    assert select(LOGITS[:1, :3], make([[0, 1, 2]])).class_ids.tolist() == [[0, 1, 2]]
    assert select(LOGITS[:0], torch.zeros(0, 4, dtype=torch.int64)).scores.shape == (0, 4)


class Dense(nn.Module):
    """Logits (N, classes, h, w) at half the images' size, in a container of some kind."""

    def __init__(self, classes: int = 4, wrap=lambda logits: logits) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Tanh())
        self.head = nn.Sequential(
            nn.Conv2d(8, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, classes, 1)
        )
        self.wrap = wrap

    def forward(self, images):
        return self.wrap(self.head(self.body(images)))


class Logits:
    def __init__(self, logits):
        self.logits = logits


WRAPS = {
    "tensor": lambda logits: logits,
    "torchvision": lambda logits: {"out": logits, "aux": 2 * logits},
    "transformers": Logits,
}
IMAGES = torch.rand(2, 3, 12, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def dense(classes: int = 4, wrap: str = "tensor") -> Dense:
    torch.manual_seed(5)
    return Dense(classes, WRAPS[wrap]).double().eval()


def whole_graph(model: Dense, score_of) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (N,) and HiResCAM's maps (N, h, w) by plain autograd."""
    activations = model.body(IMAGES).detach().requires_grad_()
    logits = model.head(activations)
    scores = torch.stack([score_of(row, i) for i, row in enumerate(logits)])
    (gradients,) = torch.autograd.grad(scores.sum(), activations)
    return scores.detach(), (gradients * activations.detach()).sum(1)


def explained(model: nn.Module, targets) -> tuple[torch.Tensor, torch.Tensor]:
    cam = fastcam.HiResCAM(model, "body")
    maps = cam(IMAGES, targets, size="layer", normalize=False, relu=False)
    assert cam.class_ids is None
    return cam.scores, maps


def assert_same(found, expected) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def rounded(mask: torch.Tensor) -> torch.Tensor:
    """A mask (12, 16) at (6, 8), by the rule in the docstring."""
    rows, columns = (torch.arange(6) + 0.5) * 2, (torch.arange(8) + 0.5) * 2
    return mask[rows.long()][:, columns.long()]


@pytest.mark.parametrize("wrap", WRAPS)
def test_segmentation_is_that_of_the_whole_graph(wrap) -> None:
    model = dense(wrap=wrap)
    class_id = int(model.head(model.body(IMAGES)).argmax(1)[0, 0, 0])
    top = model.head(model.body(IMAGES)).argmax(1) == class_id
    if not top.flatten(1).any(1).all():
        pytest.fail("the class has to be on top in both images")
    expected = whole_graph(model, lambda row, i: (row[class_id] * top[i]).sum())
    assert_same(explained(model, Segmentation(class_id)), expected)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_segmentation_masks(dtype) -> None:
    model, generator = dense(), torch.Generator().manual_seed(2)
    small, large = (torch.rand(2, *size, generator=generator) > 0.5 for size in ((6, 8), (12, 16)))
    for mask, of in (
        (small[0], lambda i: small[0]),
        (small, lambda i: small[i]),
        (large[1], lambda i: rounded(large[1])),
        (large, lambda i: rounded(large[i])),
        (large[1].numpy(), lambda i: rounded(large[1])),
    ):
        expected = whole_graph(model, lambda row, i, of=of: (row[2] * of(i)).sum())
        given = mask if isinstance(mask, np.ndarray) else mask.to(dtype)
        assert_same(explained(model, Segmentation(2, given)), expected)
    chosen = [(1, small[0]), (3, rounded(large[1]))]
    expected = whole_graph(model, lambda row, i: (row[chosen[i][0]] * chosen[i][1]).sum())
    each = [Segmentation(1, small[0]), Segmentation(3, large[1])]
    assert_same(explained(model, each), expected)


def test_segmentation_with_one_logit_per_pixel() -> None:
    model = dense(classes=1)
    model.head[2].bias.data -= (
        model.head(model.body(IMAGES)).mean().item()
    )  # some above, some below
    on = model.head(model.body(IMAGES))[:, 0] > 0
    assert on.flatten(1).any(1).all() and not on.flatten(1).all(1).any()
    expected = whole_graph(model, lambda row, i: (row[0] * on[i]).sum())
    assert_same(explained(model, Segmentation(0)), expected)
    with pytest.raises(
        ValueError, match=r"^class_id: got 1, expected 0: there is one logit per pixel"
    ):
        explained(model, Segmentation(1))


def test_masking_methods_keep_the_pixels_of_the_unmasked_image() -> None:
    model = dense()
    logits = model(IMAGES)
    class_id = int(logits.argmax(1)[0, 0, 0])
    selection = select(logits, Segmentation(class_id))
    blank = torch.zeros_like(logits)
    blank[:, class_id] = 1
    pixels = (logits.argmax(1) == class_id).flatten(1).sum(1)
    assert selection.of(blank, torch.tensor([1, 0])).tolist() == pixels[[1, 0]].tolist()
    assert fastcam.ScoreCAM(model, "body")(IMAGES, Segmentation(class_id)).shape == (2, 12, 16)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (lambda: Segmentation(9), r"^class_id: got 9, expected 0 to 3"),
        (
            lambda: Segmentation(1, torch.ones(5, 8)),
            r"^mask: got shape \(5, 8\), expected the logits' or the images' size, "
            r"\(6, 8\) or \(12, 16\), with 2 in front",
        ),
        (lambda: Segmentation(1, torch.ones(3, 6, 8)), r"^mask: got shape \(3, 6, 8\)"),
        (lambda: Segmentation(1, torch.ones(1, 2, 6, 8)), r"^mask: got shape \(1, 2, 6, 8\)"),
    ],
)
def test_wrong_segmentations(target, message) -> None:
    with pytest.raises(ValueError, match=message):
        explained(dense(), target())


def test_a_class_on_top_nowhere_is_an_error() -> None:
    logits = torch.zeros(2, 3, 2, 2)
    logits[0, 1] = logits[:, 2, 0] = 1
    with pytest.raises(
        ValueError, match=r"^mask: got None, but class 1 is on top at no pixel of im"
    ):
        select(logits, Segmentation(1))
    with pytest.raises(ValueError, match=r"^targets: Segmentation expects an output"):
        select(LOGITS, Segmentation(1))
    with pytest.raises(TypeError, match=r"^class_id: got 'cat', expected one class id"):
        Segmentation("cat")


class Pooled(nn.Module):
    def __init__(self, kind: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Tanh())
        heads = [
            lambda: nn.Linear(8, 5),
            lambda: nn.Sequential(nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 5)),
            lambda: nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 5)),
        ]
        self.last = heads[kind]()

    def head(self, activations):
        return self.last(activations.mean((2, 3)))

    def forward(self, images):
        return self.head(self.body(images))


@pytest.fixture(params=range(3))
def pooled(request) -> Pooled:
    torch.manual_seed(request.param)
    return Pooled(request.param).double().eval()


def test_similarity_is_that_of_the_whole_graph(pooled) -> None:
    each = torch.randn(2, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def cosine(row, embedding):
        return row @ embedding / (row.norm() * embedding.norm())

    expected = whole_graph(pooled, lambda row, i: cosine(row, each[0]))
    assert_same(explained(pooled, Similarity(each[0])), expected)
    expected = whole_graph(pooled, lambda row, i: cosine(row, each[i]))
    assert_same(explained(pooled, Similarity(each)), expected)


def test_wrong_embeddings() -> None:
    with pytest.raises(ValueError, match=r"^embedding: got shape \(5,\) for an output \(3, 4\)"):
        select(LOGITS, Similarity(torch.rand(5)))
    with pytest.raises(ValueError, match=r"^embedding: got shape \(3,\) of torch.int64"):
        Similarity([1, 2, 3])


def test_margins_and_negatives_are_those_of_the_whole_graph(pooled) -> None:
    assert_same(
        explained(pooled, Margin(1, 3)), whole_graph(pooled, lambda row, i: row[1] - row[3])
    )
    assert_same(explained(pooled, Margin(np.int64(1), 3)), explained(pooled, Margin(1, 3)))
    ids = torch.tensor([4, 2])
    minus = whole_graph(pooled, lambda row, i: -row[ids[i]])
    assert_same(explained(pooled, Negative(ids)), minus)
    assert_same(explained(pooled, Negative([lambda row: row[4], lambda row: row[2]])), minus)
    plus = whole_graph(pooled, lambda row, i: row[ids[i]])
    assert_same(explained(pooled, Negative(Negative(ids))), plus)
    assert_same(
        explained(pooled, Negative(Margin(3, 1))), whole_graph(pooled, lambda r, i: r[1] - r[3])
    )
    several = torch.tensor([[4, 1], [2, 0]])
    scores, maps = explained(pooled, Negative(several))
    for k in range(2):
        expected = whole_graph(pooled, lambda row, i, k=k: -row[several[i, k]])
        assert_same((scores[:, k], maps[:, k]), expected)
    top = explained(pooled, Negative(None))
    best = pooled(IMAGES).argmax(1)
    assert_same(top, whole_graph(pooled, lambda row, i: -row[best[i]]))


def test_negative_segmentation_and_a_single_logit() -> None:
    model = dense()
    mask = torch.ones(6, 8)
    assert_same(
        explained(model, Negative(Segmentation(1, mask))),
        whole_graph(model, lambda row, i: -row[1].sum()),
    )
    assert select(LOGITS[:, 0], Negative(0)).scores.tolist() == [-1, -7, 0]


def test_wrong_margins() -> None:
    with pytest.raises(ValueError, match=r"^targets: got class 9, expected 0 to 3"):
        select(LOGITS, Margin(0, 9))
    with pytest.raises(TypeError, match=r"^b: got 'dog', expected one class id"):
        Margin(0, "dog")


def test_boxes_are_for_methods_that_watch_the_model() -> None:
    with pytest.raises(ValueError, match=r"^targets: Boxes is not supported here"):
        select(LOGITS, Boxes([[0, 0, 1, 1]], [0]))


@pytest.mark.parametrize("classes", [1, 4])
def test_classes_of_dense_scores_are_their_pixels(classes: int) -> None:
    torch.manual_seed(3)
    body, head = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, classes, 1)
    head.bias.data[-1] -= 0 if classes == 1 else 9  # the last class is on top nowhere
    model = nn.Sequential(body, nn.Tanh(), head).double()
    images = torch.rand(2, 3, 6, 7, dtype=torch.float64)
    cam = fastcam.HiResCAM(model, "1")
    maps = cam(images, TopClasses(4), size="layer", normalize=False, relu=False)

    activations = model[1](body(images)).detach().requires_grad_()
    logits = head(activations)
    winners = logits.argmax(1, keepdim=True)
    counts = [(winners == k).flatten(1).sum(1) for k in range(classes)]
    if classes == 1:
        winners = (logits <= 0).long()  # a single class wins where its logit is above 0
        counts = [(winners == 0).flatten(1).sum(1)]
    for image in range(2):
        ids = cam.class_ids[image].tolist()
        assert ids == sorted(range(classes), key=lambda k: -int(counts[k][image]))
        for k, class_id in enumerate(ids):
            own = winners[image, 0] == class_id
            score = logits[image, class_id][own].sum()
            assert torch.allclose(cam.scores[image, k], score.detach())
            (gradient,) = torch.autograd.grad(score, activations, retain_graph=True)
            expected = (gradient * activations)[image].sum(0).detach()
            assert torch.allclose(maps[image, k], expected)
            if counts[class_id][image]:
                one = fastcam.HiResCAM(model, "1")(
                    images[image : image + 1],
                    Segmentation(class_id),
                    size="layer",
                    normalize=False,
                    relu=False,
                )
                assert torch.allclose(one[0], maps[image, k])
    if classes > 1:
        assert not maps[:, -1].any() and not cam.scores[:, -1].any()


def test_dense_scores_have_classes_in_every_method_that_can() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 3, 1))
    images = torch.rand(2, 3, 9, 9)
    for name in ("gradcam++", "layercam", "scorecam", "ablationcam", "eigencam"):
        cam = fastcam.METHODS[name](model, "1")
        assert cam(images, TopClasses(2)).shape == (2, 2, 9, 9), name
        assert cam.class_ids.shape == (2, 2)
    cam = fastcam.GradCAM(model, "1")
    negative = cam(images, Negative(TopClasses(2)), size="layer", normalize=False, relu=False)
    positive = cam(images, TopClasses(2), size="layer", normalize=False, relu=False)
    assert torch.allclose(negative, -positive, atol=1e-6)
    with pytest.raises(ValueError, match="CAM needs class ids"):
        fastcam.CAM(model, "1")(images, TopClasses(2))
    assert cam.verify(images, TopClasses(2)).map_error < 1e-5


def test_masks_of_any_type() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1)).double()
    images = torch.rand(1, 3, 6, 7, dtype=torch.float64)
    inside = torch.zeros(6, 7, dtype=torch.bool)
    inside[2:4, 3:6] = True
    cam = fastcam.GradCAM(model, "1")
    expected = model(images)[0, 1][inside].sum().detach()
    for mask in (inside, inside.to(torch.uint8) * 255, inside.int(), inside.double()):
        cam(images, Segmentation(1, mask))
        assert torch.allclose(cam.scores, expected)
    cam(images, Segmentation(1, inside.double() / 2))
    assert torch.allclose(cam.scores, expected / 2)
    with pytest.raises(ValueError, match=r"^mask: got no pixel but zeros for image 0"):
        cam(images, Segmentation(1, torch.zeros(6, 7)))


@pytest.mark.parametrize("name", ["fullgrad", "guided-backprop", "scorecam", "sess"])
def test_boxes_need_a_method_of_maps(name: str) -> None:
    model = fastcam.demo.digits_detector()
    method = fastcam.METHODS[name](model)
    boxes = Boxes([[0, 0, 20, 20]], [1])
    with pytest.raises(ValueError, match=r"^targets: Boxes needs a method that returns maps"):
        method([torch.rand(3, 64, 64)], boxes)


def test_an_embedding_is_finite() -> None:
    with pytest.raises(ValueError, match=r"^embedding: got values that are not finite"):
        Similarity(torch.tensor([1.0, torch.nan]))
