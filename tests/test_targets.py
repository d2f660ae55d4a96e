"""Targets: what is accepted, what it means and what the errors say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastcam.targets import TopClasses, look_like_probabilities, select

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
        (lambda row: row, ValueError, r"gave \(4,\), expected a tensor with one value"),
        (lambda row: 1.0, ValueError, "gave float"),
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
    with pytest.raises(ValueError, match=r"^targets: got one-hot rows, \(3, 4\), .*argmax\(1\)"):
        select(LOGITS, make(rows))
    rows[0] = [0, 1, 1, 0]
    assert select(LOGITS, make(rows)).class_ids.tolist() == rows
    two = [[0, 1], [1, 0], [0, 1]]  # both classes of each image
    assert select(LOGITS[:, :2], make(two)).class_ids.tolist() == two
    assert select(LOGITS[:1, :3], make([[0, 1, 2]])).class_ids.tolist() == [[0, 1, 2]]
    assert select(LOGITS[:0], torch.zeros(0, 4, dtype=torch.int64)).scores.shape == (0, 4)
