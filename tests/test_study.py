"""The study of methods on digit scenes: statistics, controls, the rule, the page, a short run."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor, nn

pytest.importorskip("sklearn", reason="scikit-learn is missing, which has the handwriting")
from benchmarks.digits.networks import ARCHITECTURES, Coarse, FlatNet
from benchmarks.digits.study import __main__ as program
from benchmarks.digits.study import figures, page, plan, scenes
from benchmarks.digits.study.cache import ROOT, Cache
from benchmarks.digits.study.controls import CONTROLS
from benchmarks.digits.study.figures import Figure
from benchmarks.digits.study.measured import BOX_THRESHOLDS, box_auc, new_method
from benchmarks.digits.study.statistics import Draws, holm, interval, paired_p
from fastcam import demo, metrics
from fastcam.methods import METHODS

FILES = page.Files.of(ROOT)


# Statistics


@given(st.integers(1, 4), arrays.arrays(np.int64, st.integers(1, 9), elements=st.integers(1, 3)))
def test_means_of_draws_are_those_of_a_loop(seeds: int, strata: np.ndarray) -> None:
    draws = Draws.of(seeds, strata, 5)
    values = np.random.default_rng(1).random((seeds, len(strata), 2))
    found = draws.means(values)
    for draw in range(5):
        # the weights as numbers of copies: every seed and scene as often as it was drawn
        of_seeds = np.repeat(np.arange(seeds), np.rint(draws.seeds[draw] * seeds).astype(int))
        times = np.rint(draws.scenes[draw] * len(strata)).astype(int)
        of_scenes = np.repeat(np.arange(len(strata)), times)
        assert len(of_seeds) == seeds
        for stratum in set(strata):
            assert times[strata == stratum].sum() == (strata == stratum).sum()
        total = [values[s, n] for s in of_seeds for n in of_scenes]
        assert found[draw] == pytest.approx(sum(total) / len(total))


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(0).normal(3, 2, size=(1, 400))
    low, high = interval(Draws.of(1, np.ones(400, int), 10_000).means(values))
    error = values.std() / 20
    assert (low, high) == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.1 * error
    )


def test_seeds_that_differ_widen_the_interval() -> None:
    values = np.repeat([[0.0], [1.0]], 50, axis=1)
    drawn = Draws.of(2, np.ones(50, int), 4_000).means(values)
    assert set(drawn.round(9)) == {0, 0.5, 1}
    assert (drawn == 0).mean() == pytest.approx(1 / 4, abs=0.03)


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1, 1]


@given(st.lists(st.floats(0, 1), max_size=6))
def test_holm_is_its_definition(values: list[float]) -> None:
    """The largest of (m - j) p_j over all p_j that are not larger, j of them smaller, at most 1."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    for place, found in enumerate(holm(values)):
        steps = order[: order.index(place) + 1]
        assert found == max(min(1, (len(values) - j) * values[i]) for j, i in enumerate(steps))


def test_the_paired_test_counts_signs() -> None:
    """Against all assignments of signs, for differences without ties."""
    differences = np.array([0.3, -0.1, 0.7, 0.45, 0.2, -0.05, 0.9])
    ranks = np.argsort(np.argsort(abs(differences))) + 1

    def far(signs: np.ndarray) -> float:
        return abs((signs * ranks).sum())

    every = [far(np.array(signs)) for signs in itertools.product((-1, 1), repeat=7)]
    expected = np.mean([each >= far(np.sign(differences)) for each in every])
    assert paired_p(differences) == pytest.approx(expected)
    assert paired_p(np.zeros(5)) == 1
    assert paired_p(np.full(5, 1e-17)) == 1


@given(st.integers(0, 10_000))
def test_summaries_of_means_are_the_metrics(seed: int) -> None:
    rng = np.random.default_rng(seed)
    histograms = rng.integers(0, 5, size=(3, 2, 6)).astype(float)
    histograms[:, 0, 0] += 1
    expected = metrics.px_ap(torch.from_numpy(histograms))
    assert figures.px_ap(histograms.mean(0)) == pytest.approx(float(expected))
    ious = torch.from_numpy(rng.random((4, 5)))
    reached = torch.stack([ious >= level for level in (0.3, 0.5, 0.7)], 1).double()
    found = figures.max_box_acc_v2(reached.mean(0).numpy())
    assert found == pytest.approx(float(metrics.max_box_acc_v2(ious)))


# Scenes and the AUC


def test_scenes() -> None:
    drawn = scenes.draw(40)
    assert drawn.counts.tolist() == [1, 2, 3, 4] * 10
    assert [len(boxes) for boxes in drawn.others] == [1] * 40
    assert (drawn.class_ids != drawn.other_ids).all()
    assert drawn.images.shape == (40, 3, 96, 96) and drawn.images.min() >= 0
    assert drawn.images.max() <= 1
    assert torch.equal(scenes.draw(8).images, drawn.first(8).images)


def test_places_do_not_tell_the_class() -> None:
    """The digit of another class is as often nearer to the middle."""
    drawn = scenes.draw(240)
    y, x = torch.meshgrid(*[torch.arange(96) - 47.5] * 2, indexing="ij")
    heat = -(x**2 + y**2).expand(240, -1, -1)
    assert box_auc(heat, drawn.own, drawn.others).mean() == pytest.approx(0.5, abs=0.08)


@given(st.integers(0, 10_000))
def test_auc_is_that_of_a_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    maps = rng.integers(0, 3, size=(2, 6, 6)).astype(np.float32)

    def boxes() -> tuple[tuple[int, int, int, int], ...]:
        corners = rng.integers(0, 5, size=(rng.integers(1, 4), 2)).tolist()
        return tuple((x, y, x + 1 + (x + y) % 2, y + 1) for x, y in corners)

    own, others = [boxes(), boxes()], [boxes(), boxes()]
    expected = []
    for heat, ours, theirs in zip(maps, own, others, strict=True):
        pairs = []
        for a, b in itertools.product(ours, theirs):
            (first, second) = (
                sum(float(heat[y, x]) for y in range(t, d) for x in range(le, r)) / (r - le)
                for le, t, r, d in (a, b)
            )
            pairs.append(1.0 if first > second else 0.5 if first == second else 0.0)
        expected.append(sum(pairs) / len(pairs))
    assert box_auc(torch.from_numpy(maps), own, others).tolist() == pytest.approx(expected)


# Methods and controls


@pytest.fixture(scope="module")
def few() -> scenes.Scenes:
    return scenes.draw(3)


def new(name: str, network: nn.Module, layer: str) -> Callable[..., Tensor]:
    return new_method(name, ARCHITECTURES["pooled"], layer, network)


def test_every_method_takes_part_or_says_why_not() -> None:
    placed = [*plan.FAST, *plan.SLOW, *plan.LEFT_OUT]
    assert sorted(placed) == sorted(METHODS)
    assert sorted(plan.CONTROLS) == sorted(CONTROLS)
    assert set(plan.CANDIDATES) <= set(plan.FAST)
    compared = {name for pair in plan.PAIRS for name in pair[:2]}
    assert compared <= {*plan.FAST, *plan.CONTROLS}
    assert {pair[2] for pair in plan.PAIRS} <= set(plan.LOCALISATION) - set(figures.SUMMARIES)


def test_candidates_depend_on_the_class_and_the_other_methods_say_why_not(
    few: scenes.Scenes,
) -> None:
    network = demo.digits()
    for name in plan.FAST:
        method = new(name, network, "last")
        same = torch.equal(*(method(few.images, ids) for ids in (few.class_ids, few.other_ids)))
        special = name in ("cam", "refinecam", "fullgrad")  # a head, several layers, no layer
        assert (name in plan.CANDIDATES) == (not same and not special), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_networks_have_their_layers(architecture: str, few: scenes.Scenes) -> None:
    network = ARCHITECTURES[architecture].new().eval()
    side = {"pooled": 24, "flat": 12}[architecture]
    for layer in ARCHITECTURES[architecture].layers:
        method = new_method("gradcam", ARCHITECTURES[architecture], layer, network)
        shape = method(few.images, few.class_ids, size="layer").shape
        assert shape == (3, side, side)
    assert network.features(few.images).shape[2:] == (side, side)
    assert torch.allclose(
        network.classify(network.features(few.images)), network(few.images), atol=1e-5
    )


def test_the_network_of_scenes_keeps_what_the_crops_taught() -> None:
    crops = Coarse()
    taught, kept = crops.state_dict(), FlatNet.after(crops).state_dict()
    trunk = [name for name in taught if not name.startswith("head.")]
    assert trunk and all(torch.equal(taught[name], kept[name]) for name in trunk)


def test_controls_are_their_definitions(few: scenes.Scenes) -> None:
    network = demo.digits().double()
    images = few.images.double()

    def raw(name: str) -> np.ndarray:
        made = new(name, network, "before")
        size = (96, 96) if name in ("edges", "centre-prior") else (24, 24)
        return made(images, few.class_ids, size=size, normalize=False).double().numpy()

    with torch.no_grad():
        activations = network.stages[1](network.stages[0](network.stem(2 * images - 1)))
    # the whole graph above the layer, one image at a time
    slopes = []
    for a, label in zip(activations, few.class_ids, strict=True):
        leaf = a[None].requires_grad_()
        network.head(network.pool(network.stages[2](leaf)).flatten(1))[0, label].backward()
        slopes.append(leaf.grad[0])
    for found, expected in (
        (raw("mean-activation"), activations.mean(1)),
        (
            raw("gradcam-relu-g"),
            torch.stack(
                [
                    sum(g[k].relu().mean() * a[k] for k in range(len(a)))
                    for a, g in zip(activations, slopes, strict=True)
                ]
            ).relu(),
        ),
    ):
        assert found == pytest.approx(expected.numpy(), rel=1e-4, abs=1e-9)
    grey = images.mean(1).numpy().astype(np.float32)
    edges = [
        np.hypot(
            cv2.Sobel(each, cv2.CV_32F, 1, 0, borderType=cv2.BORDER_REPLICATE),
            cv2.Sobel(each, cv2.CV_32F, 0, 1, borderType=cv2.BORDER_REPLICATE),
        )
        for each in grey
    ]
    assert raw("edges") == pytest.approx(np.stack(edges), abs=1e-5)
    centre = raw("centre-prior")[1]
    y, x = np.mgrid[:96, :96] - 47.5
    assert centre == pytest.approx(np.exp(-(x**2 + y**2) / 2 / 24**2), rel=1e-4)
    noise = raw("random-map")
    assert (noise == raw("random-map")).all() and (noise[0] != noise[1]).any()
    assert noise.mean() == pytest.approx(0.5, abs=0.03)


# The rule


def test_the_rule_of_the_default_method() -> None:
    recall = {"a": 0.95, "b": 0.931, "c": 0.929, "d": 0.94}
    auc = {"a": 0.8, "b": 0.9, "c": 0.99, "d": 0.85}
    assert plan.default_method(auc, recall) == "b"
    assert plan.default_method(auc, recall | {"a": 0.99}) == "a"


def test_the_rule_takes_both_networks_at_the_last_layer() -> None:
    def lines(method: str, *auc: float) -> list[Figure]:
        made = [
            Figure(metric, value, network=network, layer="last", method=method)
            for network, value in zip(ARCHITECTURES, auc, strict=True)
            for metric in ("auc", "recall")
        ]
        noise = [
            Figure("auc", 1 - auc[0], network="pooled", layer="before", method=method),
            Figure("auc", 1 - auc[0], network="pooled", layer="last", method=method, instances="1"),
            Figure("auc", 1, network="pooled", layer="last", method=method, other="gradcam"),
        ]
        return made + noise

    found = [*lines("gradcam", 0.9, 0.7), *lines("layercam", 0.8, 0.79), *lines("cam", 1, 1)]
    assert figures.default_of(found) == "gradcam"
    found = [*lines("gradcam", 0.9, 0.6), *lines("layercam", 0.8, 0.79)]
    assert figures.default_of(found) == "layercam"


# A short run


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cache, list[Figure]]:
    """One training of a few seconds for each network, 50 scenes."""
    cache = Cache(tmp_path_factory.mktemp("digits"), plan.SMOKE)
    threads = torch.get_num_threads()
    found = program.run(cache, 1)
    torch.set_num_threads(threads)
    return cache, found


def test_a_run_has_every_figure_once(short: tuple[Cache, list[Figure]], tmp_path: Path) -> None:
    _cache, found = short
    names = [figure.name for figure in found]
    assert len(set(names)) == len(names)
    assert all(np.isfinite(figure.value) for figure in found)
    assert all(figure.low <= figure.high for figure in found if figure.low is not None)
    assert [f.p is not None for f in found].count(True) == len(plan.COMPARISONS)
    for method, (network, layer) in itertools.product(
        plan.SMOKE.methods, itertools.product(ARCHITECTURES, ("last", "before"))
    ):
        expected = plan.takes_part(method, network, layer)
        assert (f"{method} px_ap {network} {layer}" in names) == expected
    path = tmp_path / "figures.jsonl"
    path.write_bytes(figures.to_lines(found))
    for read, figure in zip(figures.from_lines(path), found, strict=True):
        rounded = {
            name: pytest.approx(getattr(figure, name), abs=1e-5)
            for name in ("value", "low", "high")
            if getattr(figure, name) is not None
        }
        assert read == replace(figure, **{name: getattr(read, name) for name in rounded})
        assert all(getattr(read, name) == value for name, value in rounded.items())


def test_figures_are_means_of_rows(short: tuple[Cache, list[Figure]]) -> None:
    """Of the files, with numpy: one metric, all scenes and those with three instances."""
    cache, found = short
    by_name = {figure.name: figure for figure in found}
    recall = cache.load(cache.path("flat", 0, "before", "gradcam"), "recall")
    assert by_name["gradcam recall flat before"].value == pytest.approx(recall.mean())
    assert by_name["gradcam recall flat before k=3"].value == pytest.approx(recall[2::4].mean())
    other = cache.load(cache.path("flat", 0, "before", "gradcam++"), "recall")
    several = np.arange(50) % 4 > 0
    assert by_name["gradcam++ - gradcam recall flat before"].value == pytest.approx(
        (other - recall)[several].mean()
    )


def test_a_second_run_computes_nothing(
    short: tuple[Cache, list[Figure]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, found = short

    def refuse(*_: object) -> None:
        raise AssertionError("this was done before")

    monkeypatch.setattr(program, "measure", refuse)
    monkeypatch.setattr("benchmarks.digits.study.cache.trained", refuse)
    assert program.run(cache, 1) == found
    with pytest.raises(AssertionError, match="before"):
        program.run(Cache(tmp_path, replace(plan.SMOKE, scenes=51)), 1)


def test_the_page_shows_the_figures(short: tuple[Cache, list[Figure]], tmp_path: Path) -> None:
    """Every cell of the tables, read back, is a figure of the file."""
    cache, found = short
    files = page.Files.of(tmp_path)
    page.write_page(files, found, cache)
    files.figures.parent.mkdir(parents=True)
    files.figures.write_bytes(figures.to_lines(found))
    text = files.page.read_text()
    for target in re.findall(r"\]\(([^)#]+)", text.partition(page.BEGIN)[2]):
        assert (files.page.parent / target).is_file(), target
    values = [json.loads(line) for line in files.figures.read_text().splitlines()]
    keyed = {
        (v.get("network"), v.get("layer"), v.get("method"), v["metric"]): v
        for v in values
        if "other" not in v and "instances" not in v
    }
    metric_of = {name: metric for metric, name in page.NAMES.items()}
    layer_of = {place: layer for layer, place in page.PLACES.items()}
    cells = 0
    for section in text.partition(page.BEGIN)[2].split("### ")[2:6]:
        network, layer = re.match(r"`(\w+)`, (.*)", section).groups()
        for block in re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE):
            heads, _, *rows = ([c.strip() for c in r.split("|")[1:-1]] for r in block.splitlines())
            for row in rows:
                for head, cell in zip(heads[1:], row[1:], strict=True):
                    metric = metric_of.get(head.rpartition(" (")[0])
                    if metric is not None:
                        key = (network, layer_of[layer], row[0].strip("*"), metric)
                        numbers = [float(n) for n in re.findall(r"-?\d+\.\d+", cell)]
                        fields = ("value", "low", "high")[: len(numbers)]
                        expected = [keyed[key][field] for field in fields]
                        assert numbers == pytest.approx(expected, abs=5.1e-4), (key, cell)
                        cells += 1
    assert cells > 300
    shown = re.findall(
        r"^\| `(\w+)`, (\w+) \| (\S+) - (\S+) \| (.+?) \| (.+?) \|", text, re.MULTILINE
    )
    tests = {(f.network, f.layer, f.method, f.other, f.metric): f for f in found if f.other}
    assert len(shown) == len(tests) == len(plan.COMPARISONS)
    for *names, metric, cell in shown:
        figure = tests[(*names, metric_of[metric])]
        assert cell == page.shown(figure)
        assert float(cell.split()[0]) == pytest.approx(figure.value, abs=5.1e-4)
    before = text.partition(page.BEGIN)[0]
    assert before == FILES.page.read_text().partition(page.BEGIN)[0]
    assert page.replaced(text, found, files) == text


def test_numbers_in_words_have_to_be_figures() -> None:
    known = [
        Figure("recall", 0.8314, 0.79, 0.866, network="flat", layer="last", method="gradcam"),
        Figure("recall", -0.0312, network="flat", method="gradcam++", other="gradcam"),
    ]
    right = (
        "Grad-CAM finds 83 %<!--gradcam recall flat last--> "
        "[.79<!--gradcam recall flat last: low-->, .866<!--gradcam recall flat last: high-->], "
        "Grad-CAM++ changes that by -.031<!-- gradcam++ - gradcam recall flat -->."
    )
    assert page.unproven(right, known) == []
    for before, after in (
        ("83 %", "84 %"),
        (".79", ".78"),
        ("-.031", ".031"),
        ("flat last:", "x:"),
    ):
        assert page.unproven(right.replace(before, after, 1), known), after
    assert page.unproven("It finds 3 more, or .5.", known) == [
        "3: names no figure",
        ".5: names no figure",
    ]


def test_the_page_of_the_repository() -> None:
    text = " ".join(FILES.page.read_text().split())
    full = plan.FULL
    assert f"**Scenes.** {full.scenes} scenes" in text and full.seeds == 5  # "five times each"
    assert re.findall(r"first (\d+) scenes", text) == [str(full.first_scenes)] * 2
    assert f"{full.draws:,} draws" in text and f"{BOX_THRESHOLDS} thresholds" in text
    assert all(f"| *{name}* |" in text for name in plan.CONTROLS)
    answer = page.answer_of(FILES.page.read_text())
    if not FILES.figures.exists():
        assert page.NUMBER.findall(answer) == []
        pytest.skip("the full run has not been made: there are no figures to compare the page with")
    known = figures.from_lines(FILES.figures)
    assert page.unproven(answer, known) == []
    between = FILES.page.read_text().partition(page.BEGIN)[2].partition(page.END)[0]
    assert between.strip() == "\n".join(page.generated(known, FILES)).strip()
