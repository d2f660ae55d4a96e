"""The benchmarks' own arithmetic, on the smallest cases; nothing here is about speed."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
from typing import Any

import pytest
import torch
from networks import small, small_images

from benchmarks import __main__ as program
from benchmarks import dropin, harness, implementations, ops, report
from benchmarks.harness import Result
from fastcam import ops as operators

CPU = torch.device("cpu")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One repetition is enough, a small copy is large, and nothing is compiled."""
    monkeypatch.setattr(harness, "_SHORTEST", 1e-6)
    for device in ("cpu", "cuda"):
        monkeypatch.setitem(harness._LARGE_COPY, device, 2**16)
    monkeypatch.setattr(ops, "can_compile", lambda device: False)


def result(implementation: str, median: float, case: str = "cam", **figures: Any) -> Result:
    return Result(
        suite="ops",
        case=case,
        shape=[8, 2, 3, 3],
        dtype="float32",
        layout="contiguous",
        device="a machine",
        implementation=implementation,
        median=median,
        min=median,
        spread=0.0,
        **figures,
    )


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_selection(device: str) -> None:
    cases = ops.selected_cases(torch.device(device))
    assert len(cases) <= 60
    assert len({case.name for case in cases}) == len(cases)
    # impute goes over its images until they are solved: nothing that a copy of them compares with
    assert {case.operator for case in cases} == set(operators.__all__) - {"impute"}
    shapes = {case.shape[1:] for case in cases}
    assert shapes >= set(ops.LAYERS.values())
    assert {case.method for case in cases} >= set(ops.METHODS)
    assert {(case.dtype, case.layout) for case in cases} >= set(
        itertools.product(ops.DTYPES, ops.LAYOUTS)
    )
    assert {case.shape[0] for case in cases} == {1, 8, 64}
    everything = ops.every_case()
    assert len({case.name for case in everything}) == len(everything)


def test_layouts() -> None:
    for case in (
        ops.Case("gap", (2, 3, 4, 5), layout="channels_last"),
        ops.Case("gap", (2, 3, 4), layout="channels_last", classes=2),
    ):
        (gradients,) = ops.ARGUMENTS["gap"](case, CPU)
        assert gradients.shape[0] == 2 and gradients.stride(-len(case.shape) + 1) == 1


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "case",
    [
        ops.Case("gap", (2, 3, 4, 4), "bfloat16", "channels_last"),
        ops.Case("cam", (2, 3, 4, 4), method="gradcam++", classes=2),
        ops.Case("upsample", (2, 3, 3), size=(7, 8)),
        ops.Case("overlay", (1, 8, 8, 3), "uint8"),
    ],
    ids=lambda case: case.name,
)
def test_lines(case: ops.Case) -> None:
    """Every line has every field, and the compulsory bytes are those of inputs and outputs."""
    lines = io.StringIO()
    results, failed = program.run({case.name: lambda: ops.measure(case, CPU)}, lines)
    assert not failed
    written = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert [line["implementation"] for line in written] == [r.implementation for r in results]
    assert {line["implementation"] for line in written} >= {"fastcam", "reference", "copy"}
    fields = {field.name for field in dataclasses.fields(Result)}
    expected = {
        "gap": 2 * 3 * 16 * 2 + 2 * 3 * 4,
        "cam": (1 + 2) * 2 * 3 * 16 * 4 + 2 * 2 * 16 * 4,
        "upsample": 2 * (9 + 56) * 4,
        "overlay": 2 * 8 * 8 * 3 + 49 * 4 + 256 * (3 + 4),
    }[case.operator]
    for line in written:
        assert line.keys() == fields
        assert line["bytes"] == expected
        rate = expected / line["median"] / 1e9
        assert line["gigabytes_per_second"] == pytest.approx(rate)
        assert 0 < line["min"] <= line["median"]


@pytest.mark.usefixtures("quick")
def test_a_case_on_cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: graphs and events are not timed")
    case = ops.Case("cam", (2, 3, 4, 4), method="gradcam++")
    results = ops.measure(case, torch.device("cuda"))
    times = {measured.implementation: measured.median for measured in results}
    assert times.keys() == {"fastcam", "reference", "copy", "launch"}
    assert all(1e-7 < seconds < 1e-3 for seconds in times.values())


@pytest.mark.usefixtures("quick")
def test_unequal_results_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = ops.Case("gap", (2, 3, 4, 4))
    right = ops.Case("normalize", (2, 4, 4))
    gap = operators.gap
    monkeypatch.setattr(ops.ops, "gap", lambda gradients: gap(gradients) * 1.001)
    cases = {case.name: lambda case=case: ops.measure(case, CPU) for case in (wrong, right)}
    results, failed = program.run(cases, io.StringIO())
    assert failed == [wrong.name]
    assert {r.case for r in results} == {right.name}
    assert "fastcam: differs by" in capsys.readouterr().err


def test_nan_is_not_equal() -> None:
    with pytest.raises(AssertionError):
        harness.check_equal("maps", torch.tensor([torch.nan]), torch.ones(1), 1e-4)
    with pytest.raises(AssertionError):
        harness.check_equal("maps", torch.ones(1, 2), torch.ones(2), 1e-4)


def test_what_is_cut_off_keeps_what_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    def cut() -> list[Result]:
        raise KeyboardInterrupt

    lines = io.StringIO()
    results, failed = program.run({"a": lambda: [result("fastcam", 1.0)], "b": cut}, lines)
    assert len(results) == len(lines.getvalue().splitlines()) == 1 and not failed
    assert "cut off: 1 of 2 cases" in capsys.readouterr().out


def test_summary_of_times() -> None:
    figures = harness.summary([4.0, 1.0, 3.0, 2.0, 5.0])
    assert figures == {"median": 3.0, "min": 1.0, "spread": 3.0}
    rates = harness.bandwidth(10**9, 0.5, 0.4, CPU)
    assert rates["gigabytes_per_second"] == 2 and rates["fraction_of_copy"] == 0.8


def test_targets() -> None:
    cases = report.by_case(
        [
            *(result(name, seconds, "gap a") for name, seconds in (("fastcam", 1), ("read", 1.2))),
            *(result(name, seconds, "gap b") for name, seconds in (("fastcam", 2), ("read", 1))),
            *(result(name, seconds, "cam gradcam++ a") for name, seconds in
              (("fastcam", 1), ("reference", 4))),
        ]
    )  # fmt: skip
    rows = [target.judge(cases) for target in report.TARGETS["cpu"] if target.suite == "ops"]
    judged = {row[0]: row[1:] for row in rows if row is not None}
    assert judged == {
        "cam gradcam++: times faster than reference": [
            ">= 3", "4.00", "4.00 (cam gradcam++ a)", "1", "met",
        ],
        "gap, weighted_sum: time over reading the input once": [
            "<= 1.3", "1.42", "2.00 (gap b)", "2", "MISSED",
        ],
        "any operator: times faster than reference": [
            ">= 0.95 in every case", "4.00", "4.00 (cam gradcam++ a)", "1", "met",
        ],
    }  # fmt: skip


def test_targets_of_a_gpu() -> None:
    def case(name: str, moved: int, fastcam: float) -> list[Result]:
        copy = moved / 4e12
        return [
            result("fastcam", fastcam, name, bytes=moved, fraction_of_copy=copy / fastcam),
            result("copy", copy, name),
            result("launch", 2e-6, name),
        ]

    cases = report.by_case([*case("small", 10**6, 2.2e-6), *case("large", 10**9, 1e9 / 3.6e12)])
    rows = [target.judge(cases) for target in report.TARGETS["cuda"] if target.suite == "ops"]
    assert [row[-4:] for row in rows if row is not None] == [
        ["1.10", "1.10 (small)", "1", "met"],
        ["0.90", "0.90 (large)", "1", "met"],
    ]


def test_selection_of_scripts() -> None:
    short, everything = dropin.selected(False), dropin.selected(True)
    names = [case.name for case in everything]
    assert len(set(names)) == len(names)
    assert {case.name for case in short} <= set(names)
    assert {case.network for case in everything} == {"resnet18", "resnet50", "vit_b_16"}
    assert {case.batch for case in everything} == {1, 16}
    assert {case.method for case in everything} == {case.method for case in short}
    assert all(case.memory for case in short if case.library == "captum")


@pytest.mark.parametrize(
    ("library", "method", "script"),
    [
        ("pytorch_grad_cam", "GradCAM", dropin._pytorch_grad_cam("GradCAM")),
        ("pytorch_grad_cam", "ScoreCAM", dropin._pytorch_grad_cam("ScoreCAM")),
        ("torchcam", "LayerCAM", dropin._torchcam("LayerCAM")),
        ("captum", "GuidedGradCam", dropin._captum("GuidedGradCam")),
    ],
)
def test_a_script_beside_itself(
    library: str, method: str, script: dropin.Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(library, reason=f"{library} is missing: its scripts are not timed")
    net = implementations.Network(small(), small_images(2), "features", None)
    monkeypatch.setattr(implementations, "network", lambda *args: net)
    case = dropin.Case(library, method, "small", 2, script, memory=library != "pytorch_grad_cam")
    lines = io.StringIO()
    results, failed = program.run({case.name: lambda: dropin.measure(case, CPU)}, lines)
    assert not failed
    *results, floor = results
    assert [each.implementation for each in (*results, floor)] == [library, "fastcam", "forwards"]
    assert {each.case for each in results} == {f"{library} {method} small batch 2"}
    assert all((each.peak_memory is not None) == case.memory for each in results)
    assert not any(net.model.features._forward_hooks), "a copy of the model has the hooks"


def test_a_method_that_no_other_library_has_is_timed_alone() -> None:
    net = implementations.Network(small(), small_images(2), "features", None)
    for library in (implementations.pytorch_grad_cam, implementations.torchcam):
        assert library(net, "a new method") is None


def test_a_script_that_gives_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    net = implementations.Network(small(), small_images(2), "features", None)
    monkeypatch.setattr(implementations, "network", lambda *args: net)
    monkeypatch.setattr(implementations, "installed", lambda name: True)
    calls = itertools.count()

    def script(net: implementations.Network) -> dropin.Call:
        return lambda: torch.full((2, 3), 1.0 + next(calls))

    case = dropin.Case("captum", "LayerGradCam", "small", 2, script)
    with pytest.raises(AssertionError, match="captum LayerGradCam small batch 2, answer 0"):
        dropin.measure(case, CPU)


def test_targets_of_scripts() -> None:
    def case(name: str, peer: float, **peaks: int) -> list[Result]:
        library = name.partition(" ")[0]
        seconds = {library: peer, "fastcam": 1.0}
        return [
            result(each, median, name, peak_memory=peaks.get(each))
            for each, median in seconds.items()
        ]

    cases = report.by_case(
        [
            *case("pytorch_grad_cam GradCAM resnet50 batch 1", 3.0),
            *case("pytorch_grad_cam EigenCAM resnet50 batch 1", 19.0),
            *case("pytorch_grad_cam ScoreCAM resnet18 batch 1", 1.4),
            *case("pytorch_grad_cam AblationCAM resnet18 batch 1", 6.0),
            *case("torchcam GradCAM resnet50 batch 1", 0.9, torchcam=100, fastcam=50),
        ]
    )
    rows = [target.judge(cases) for target in report.TARGETS["cpu"] if target.suite == "dropin"]
    judged = {row[0]: (row[2], row[-1]) for row in rows if row is not None}
    assert judged == {
        "any script: times faster": ("3.00", "MISSED"),
        "ScoreCAM, AblationCAM": ("3.70", "MISSED"),  # each of them has to reach it
        "gradient methods of pytorch_grad_cam": ("3.00", "met"),
        "EigenCAM": ("19.00", "MISSED"),
        "torchcam: never slower": ("0.90", "MISSED"),
        "torchcam, captum: peak memory over the library's": ("0.50", "met"),
    }
