"""``python -m tests.fuzz --cases 10000 --seed 0``: many cases, and what is wrong with them.

``python -m tests.fuzz --spec '{"seed": 7, "keep": "attribute"}'`` runs one.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import Counter

import torch

from .check import Wrong, agree, check, shrunk
from .spec import draw, parse


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1000, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="the first one's")
    parser.add_argument("--spec", help="one case, as a failure prints it")
    parser.add_argument("--judges", action="store_true", help="compare the judges alone")
    parser.add_argument("--shown", type=int, default=20, help="how many failures to print")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    specs = (
        [parse(options.spec)]
        if options.spec
        else (draw(seed) for seed in range(options.seed, options.seed + options.cases))
    )
    kinds: Counter[str] = Counter()
    begun, count = time.perf_counter(), 0
    for spec in specs:
        count += 1
        try:
            agree(spec) if options.judges else check(spec)
        except Wrong as wrong:
            kinds[wrong.kind] += 1
            if kinds.total() <= options.shown:
                least = shrunk(spec, wrong.kind)
                print(f"{spec}\n  {wrong}\n  least: --spec '{least}'", flush=True)
        except Exception as error:
            kinds["generator"] += 1
            if kinds.total() <= options.shown:
                print(f"{spec}\n  {type(error).__name__}: {error}", flush=True)
    taken = time.perf_counter() - begun
    print(f"{count} cases in {taken:.0f} s, {kinds.total()} wrong: {dict(kinds.most_common())}")
    return bool(kinds)


if __name__ == "__main__":
    sys.exit(main())
