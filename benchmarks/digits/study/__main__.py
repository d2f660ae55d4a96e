"""Runs the study: trainings, maps, metrics, figures and the page."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import torch

from benchmarks.digits.networks import ARCHITECTURES, LAYERS
from benchmarks.digits.study import figures, page, plan, scenes
from benchmarks.digits.study.cache import ROOT, Cache
from benchmarks.digits.study.measured import classification, measure
from benchmarks.digits.train import write

OUT = ROOT / "out" / "digits"
Job = tuple[str, int]
"""A network and the seed of its training."""


def explain(cache: Cache, job: Job) -> None:
    """Trains one network and measures all methods on it, as far as that is not done yet."""
    torch.set_num_threads(1)
    network, seed = job
    settings = cache.settings
    report = partial(tell, f"{network} {seed}", time.monotonic())
    drawn = scenes.draw(settings.scenes)
    model = cache.network(network, seed, report)
    path = cache.path(network, seed)
    if not path.exists():
        cache.store(path, classification(model, drawn, settings))
    places = [
        (layer, method)
        for layer in LAYERS
        for method in settings.methods
        if plan.takes_part(method, network, layer) and (seed == 0 or method not in settings.slow)
    ]
    for number, (layer, method) in enumerate(places, start=1):
        path = cache.path(network, seed, layer, method)
        if not path.exists():
            rows = measure(method, ARCHITECTURES[network], layer, model, drawn, settings)
            cache.store(path, rows)
            report(f"[{number}/{len(places)}] {method}, layer {layer}")


def tell(job: str, began: float, line: str) -> None:
    """Prints a line of progress."""
    print(f"{job}: {time.monotonic() - began:6.0f} s  {line}", flush=True)


def run(cache: Cache, processes: int) -> list[figures.Figure]:
    """All figures; what earlier runs have left in the cache is not computed again."""
    jobs: list[Job] = [
        (network, seed) for seed in range(cache.settings.seeds) for network in ARCHITECTURES
    ]
    if processes == 1:
        for job in jobs:
            explain(cache, job)
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, mp_context=context) as pool:
            for _ in pool.map(partial(explain, cache), jobs):
                pass
    return figures.all_figures(cache, scenes.draw(cache.settings.scenes).counts)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks digits", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="one short training, few scenes")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="one per core")
    options = parser.parse_args(arguments)
    settings = plan.SMOKE if options.smoke else plan.FULL
    cache = Cache(OUT, settings)  # its folders have the names of the sources as they are now
    found = run(cache, options.processes)
    # only the full run may replace what the repository has
    where = page.Files.of(OUT / "smoke" if options.smoke else ROOT)
    write(where.figures, figures.to_lines(found))
    page.write_page(where, found, cache)
    print(f"{where.figures}, {where.page}\ndefault method: {figures.default_of(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
