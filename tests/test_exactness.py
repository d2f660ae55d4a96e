"""Random networks with the habits that networks have, against whole-graph autograd and NumPy.

``make fuzz N=10000`` runs more of them than these.
"""

from __future__ import annotations

import warnings

import pytest
from fuzz.check import Wrong, agree, check, shrunk
from fuzz.spec import draw, parse

CASES = 300


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


@pytest.mark.parametrize("seed", range(0, CASES, 6))
def test_the_judges_agree(seed: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        agree(draw(seed))


def test_a_printed_spec_is_read_again() -> None:
    for spec in map(draw, range(CASES)):
        assert parse(str(spec)) == spec
