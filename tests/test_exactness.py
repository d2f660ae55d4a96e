"""Random networks with the habits that networks have, against whole-graph autograd and NumPy.

``make fuzz N=10000`` runs more of them than these.
"""

from __future__ import annotations

import warnings

import pytest
from fuzz.check import Wrong, agree, check, shrunk
from fuzz.spec import draw, parse

CASES = 300

FOUND = [
    '{"seed": 1193, "view": "window", "hooks": ["inplace"], "head": "attention"}',
    '{"seed": 1650, "layer": "weight norm", "above": ["bn"]}',
    '{"seed": 3946, "layer": "parametrized", "above": ["bn"]}',
    '{"seed": 5818, "below": ["conv relu"], "layer": "conv relu_", "view": "window", '
    '"hooks": ["replace"]}',
    '{"seed": 40834, "channels": 8, "below": ["residual_"], "keep": "attribute", '
    '"above": ["bn", "conv bn relu_"], "head": "flat"}',
    '{"seed": 6187, "view": "chunk", "head": "unread", "grad": "enable_grad body"}',
]
"""What ``make fuzz`` has found beyond the first ones, shrunk."""


@pytest.mark.parametrize("seed", range(CASES))
def test_a_random_network_is_explained_exactly(seed: int) -> None:
    spec, wrong = draw(seed), None
    try:
        check(spec)
    except Wrong as raised:
        wrong = raised
    if wrong is not None:
        least = shrunk(spec, wrong.kind)
        pytest.fail(f"{wrong}\n{spec}\nalone: python -m tests.fuzz --spec '{least}'", pytrace=False)


@pytest.mark.parametrize("spec", FOUND)
def test_what_was_wrong_once_is_right(spec: str) -> None:
    check(parse(spec))


@pytest.mark.parametrize("seed", range(0, CASES, 6))
def test_the_judges_agree(seed: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        agree(draw(seed))


def test_a_printed_spec_is_read_again() -> None:
    for spec in map(draw, range(CASES)):
        assert parse(str(spec)) == spec
