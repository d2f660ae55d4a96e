"""Few cases that hold every pair of two factors' values, instead of the full product."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Any


def pairwise(factors: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Cases such that any two values of different factors meet in at least one; greedy, ordered."""
    names = list(factors)
    missing = {
        (a, i, b, j)
        for a, b in combinations(names, 2)
        for i, j in product(range(len(factors[a])), range(len(factors[b])))
    }

    def covered(case: dict[str, int]) -> set[tuple[str, int, str, int]]:
        known = [name for name in names if name in case]
        return {(a, case[a], b, case[b]) for a, b in combinations(known, 2)} & missing

    cases = []
    while missing:
        a, i, b, j = min(missing)
        case = {a: i, b: j}
        for name in names:
            if name not in case:
                values = range(len(factors[name]))
                case[name] = max(values, key=lambda v, name=name: len(covered({**case, name: v})))
        missing -= covered(case)
        cases.append({name: factors[name][index] for name, index in case.items()})
    return cases
