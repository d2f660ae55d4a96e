"""Breaks the kernels, one change at a time, and counts the changes that their tests do not notice.

Every barrier and wait is taken out in turn, and bounds, offsets and shuffle distances are shifted (MUTANTS).
A mutant dies when a test that includes its header fails or takes too long: taken-out barriers under
ThreadSanitizer, the others plain and then under AddressSanitizer. All of it happens on a copy.
"""

# ruff: noqa: E501

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TIME_LIMIT = 150
BARRIER = re.compile(r"\b(?:__syncthreads|__syncwarp|wait_for_copies<\d>)\((?:[^;]*)\);")
# a test's source and its flags, the quick ones first
TESTS = {
    "arithmetic": ("arithmetic", []),
    "block": ("block", []),
    "guided_relu": ("guided_relu", []),
    "overlay": ("overlay", []),
    "normalize": ("normalize", []),
    "channel_weights": ("channel_weights", []),
    "cam": ("cam", ["-DELEMENT=float"]),
    "enlarge": ("enlarge", []),
    "cam of bfloat16": ("cam", ["-DELEMENT=bfloat16"]),
}
FLAGS = {
    "plain": ["-O1"],
    "thread": ["-O1", "-g1", "-fsanitize=thread"],
    "address": [
        *["-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize=null,object-size"],
        "-fno-sanitize-recover=undefined",
    ],
}

# header, what it says, what the mutant says
MUTANTS = [
    # block.cuh
    ("block.cuh", "i + (kChunk - 1) * stride < count", "i + (kChunk - 2) * stride < count"),
    ("block.cuh", "for (; i < count; i += stride)", "for (; i < count - 1; i += stride)"),
    ("block.cuh", "totals[j] += chunk[j]", "totals[j] = chunk[j]"),
    (
        "block.cuh",
        "value += __shfl_xor_sync(0xffffffffu, value, offset)",
        "value += __shfl_xor_sync(0xffffffffu, value, offset / 2)",
    ),
    (
        "block.cuh",
        "__shfl_xor_sync(0xffffffffu, extremes.low, offset)",
        "__shfl_xor_sync(0xffffffffu, extremes.low, offset / 2)",
    ),
    (
        "block.cuh",
        "__shfl_xor_sync(0xffffffffu, extremes.high, offset)",
        "__shfl_xor_sync(0xffffffffu, extremes.high, 1)",
    ),
    (
        "block.cuh",
        "for (int warp = 0; warp < kWarps; ++warp) sum +=",
        "for (int warp = 1; warp < kWarps; ++warp) sum +=",
    ),
    (
        "block.cuh",
        "for (int warp = 0; warp < kWarps; ++warp) extremes",
        "for (int warp = 0; warp < kWarps - 1; ++warp) extremes",
    ),
    ("block.cuh", "return threadIdx.y * kLanes + threadIdx.x", "return threadIdx.x"),
    ("block.cuh", "(address) % kBytes == 0", "(address) % 2 == 0"),
    ("block.cuh", "values[2 * j + 1] = float_from_bits(words.values[j] & 0xffff0000u)", "values[2 * j + 1] = float_from_bits(words.values[j])"),
    ("block.cuh", "if (j < count) pack.values[j]", "if (j <= count) pack.values[j]"),
    ("block.cuh", "if (j < count) target[j]", "if (j <= count) target[j]"),
    ("block.cuh", "stride = shares * kThreads * kCount", "stride = shares * kThreads"),
    ("block.cuh", "i < total; i += stride)", "i < total - 1; i += stride)"),
    ("block.cuh", "total - i < kCount ? total - i : kCount", "kCount"),
    # channel_weights.cuh
    ("channel_weights.cuh", "(extents.channels + channels - 1)", "(extents.channels)"),
    ("channel_weights.cuh", "image = map / extents.classes", "image = map % extents.classes"),
    ("channel_weights.cuh", "warp * kLanes + threadIdx.x;", "threadIdx.x;"),
    ("channel_weights.cuh", "kChannelsLast ? kWarps : warps * kLanes", "kChannelsLast ? kWarps : kLanes"),
    ("channel_weights.cuh", "kChannelsLast ? kLanes : kWarps / warps;", "kChannelsLast ? kLanes : kWarps;"),
    ("channel_weights.cuh", "strided_sums(begin + first,", "strided_sums(first,"),
    ("channel_weights.cuh", "stride, end, value", "stride, extents.positions, value"),
    ("channel_weights.cuh", "image * partial.slices *", "image *"),
    ("channel_weights.cuh", "map * partial.slices *", "map *"),
    ("channel_weights.cuh", "(map * slices + slice)", "map"),
    ("channel_weights.cuh", "partial[slice * channels + c]", "partial[c]"),
    ("channel_weights.cuh", ": extents.channels - 1;", ": extents.channels;"),
    ("channel_weights.cuh", "if (warps > 1)", "if (warps > 2 * kWarps)"),
    ("channel_weights.cuh", "c + j * apart < extents.channels)", "c < extents.channels)"),
    # cam.cuh
    ("cam.cuh", "ahead.number > step.number + 1", "ahead.number > step.number"),
    ("cam.cuh", "i < plan_.stages; ++i) stage_next()", "i <= plan_.stages; ++i) stage_next()"),
    ("cam.cuh", "(step.number & (plan_.stages - 1))", "0"),
    ("cam.cuh", "(step.tile & (plan_.stages - 1))", "0"),
    ("cam.cuh", "for (int group = 0; group < plan_.groups; ++group)", "for (int group = 1; group < plan_.groups; ++group)"),
    ("cam.cuh", "slice_ * plan_.slice_tiles + more", "slice_ * plan_.slice_tiles"),
    ("cam.cuh", "slice_ < plan_.longer_slices ? 1 : 0", "0"),
    ("cam.cuh", "more * rows.tile", "0"),
    ("cam.cuh", "window * rows.window", "0"),
    ("cam.cuh", "first_class_ * o_.gradients.klass", "0"),
    ("cam.cuh", "gradients_ = gradients_of_tile_ += o_.gradients.tile", "gradients_ += o_.gradients.tile"),
    ("cam.cuh", "between == e.positions && plan.windows == 1", "between == e.positions"),
    ("cam.cuh", "joined = !channels_last && along == 1", "joined = !channels_last"),
    ("cam.cuh", "packed = along == 1 &&", "packed = true ||"),
    ("cam.cuh", "between % kVector<T> == 0 && plan.pitch % kVector<T> == 0", "plan.pitch % kVector<T> == 0"),
    ("cam.cuh", "!kChannelsLast && rows.joined && aligned(from)", "!kChannelsLast && rows.joined"),
    ("cam.cuh", "rows.packed && valid == length", "rows.packed"),
    ("cam.cuh", "copied = length / kVector<T> * kVector<T>;", "copied = length;"),
    ("cam.cuh", "i < valid ? source", "i <= valid ? source"),
    ("cam.cuh", "(i ^ swizzle(row) * kVector<T>)", "i"),
    ("cam.cuh", "left < plan_.reads ? left : plan_.reads", "plan_.reads"),
    ("cam.cuh", "for (; missing > 0; --missing) {", "for (; missing > 1; --missing) {"),
    ("cam.cuh", "ai += kUnrolled * kCount;", "ai += kUnrolled;"),
    ("cam.cuh", "offset < kLanes; offset *= 2)", "offset < kLanes / 2; offset *= 2)"),
    ("cam.cuh", "partial[team_ * warps + i]", "partial[i]"),
    ("cam.cuh", "if (in_team_ == 0) weights()", "if (in_team_ == 0 && team_ > 0) weights()"),
    ("cam.cuh", "(kLanes / kVector<T> - 1) & -plan_.team", "(kLanes / kVector<T>) & -plan_.team"),
    ("cam.cuh", "(v ^ swizzled) * kVector<T>", "v * kVector<T>"),
    ("cam.cuh", "v < plan_.team; v += plan_.groups", "v < plan_.team - 1; v += plan_.groups"),
    ("cam.cuh", "left < plan_.group_channels ? left", "false ? left"),
    ("cam.cuh", "a += kThreads * apart;", "a += kThreads;"),
    ("cam.cuh", "if (group_ >= plan_.groups) return;", ""),
    ("cam.cuh", "const bool inside = i < total;", "const bool inside = i <= total;"),
    ("cam.cuh", "(threadIdx.y, kWarps, slices,", "(threadIdx.y, kWarps, slices - 1,"),
    ("cam.cuh", "partial + image * slices * size +", "partial + image * size +"),
    # plan.h
    ("plan.h", "filling < most ? filling : most;\n  return slices", "filling;\n  return slices"),
    ("plan.h", "needs.channels_last ? per_channel : 2 * needs.arithmetic", "needs.arithmetic"),
    ("plan.h", "ceil_div(e.classes, classes)", "e.classes / classes"),
    ("plan.h", "windows = ceil_div(e.positions, window)", "windows = e.positions / window"),
    ("plan.h", "narrow(tiles % slices)", "0"),
    ("plan.h", "positions % 2 == 0 ? 2 : 1", "true ? 2 : 1"),
    ("plan.h", "ceil_div(ceil_div(tile, groups), 4) * 4", "ceil_div(tile, groups) / 4 * 4"),
    ("plan.h", "narrow(ceil_div(window / at_once, team) | 1)", "narrow(window / at_once / team)"),
    ("plan.h", "static_bytes + dynamic_bytes > kUnasked", "dynamic_bytes > kUnasked"),
    ("plan.h", "(size + 15) / 16 * 16", "size / 16 * 16"),
    # enlarge.cuh
    ("enlarge.cuh", "return value < 0 ? 0 : value;", "return value;"),
    ("enlarge.cuh", "near + 1 < in ? near + 1 : near, F(rest)", "near + 1, F(rest)"),
    ("enlarge.cuh", "if (in == out) return", "if (false) return"),
    ("enlarge.cuh", "while (result * d > n) --result;", ""),
    ("enlarge.cuh", "of_cell == in ? out - 1", "of_cell > in ? out - 1"),
    ("enlarge.cuh", "cell == 0 || numerator <= 0) return 0;\n      return static_cast<int>(positions", "cell == 1) return 0;\n      return static_cast<int>(positions"),
    ("enlarge.cuh", "first_sample_of(of_cell) - j % 2", "first_sample_of(of_cell)"),
    ("enlarge.cuh", "(far > near ? 1 : 0)", "1"),
    ("enlarge.cuh", "column + t < area.last_column ? column + t", "true ? column + t"),
    ("enlarge.cuh", "row += kThreads) {", "row += kThreads + 1) {"),
    ("enlarge.cuh", "row < walk.rows_at_once ? chunk.last_column", "true ? chunk.last_column"),
    ("enlarge.cuh", "(rows_before + row) * walk.columns", "row * walk.columns"),
    ("enlarge.cuh", "if (height.near() != y) {", "if (y < 0) {"),
    ("enlarge.cuh", "if (apart > 0) latest", "if (apart < 0) latest"),
    ("enlarge.cuh", "if (range.range * scale_ < 1) scale_", "if (false) scale_"),
    ("enlarge.cuh", "scale_ >= std::numeric_limits<F>::min() &&", ""),
    ("enlarge.cuh", "behind < rows ? behind : rows", "behind"),
    ("enlarge.cuh", "saturated((value - range_.low) * scale_)", "(value - range_.low) * scale_"),
    ("enlarge.cuh", "slice * source.classes * size + p", "slice * size + p"),
    ("enlarge.cuh", "heat[(i + j) / 3]", "heat[(i + j) / 4]"),
    ("enlarge.cuh", "if (j < span.count)", "if (j <= span.count)"),
    ("enlarge.cuh", "width * sizeof(T) % kBytes == 0 &&", ""),
    ("enlarge.cuh", "(excess << 32) / divisor + 1", "(excess << 32) / divisor"),
    ("enlarge.cuh", "(int64_t{1} << shift) < d", "(int64_t{1} << shift) <= d"),
    ("enlarge.cuh", "2 * in * (out + 1) < INT32_MAX", "true"),
    ("enlarge.cuh", "channels == 3 && s.channel == 1", "s.channel == 1"),
    # overlay.cuh
    ("overlay.cuh", "colors[(i + j) % 3 * kColors + indices[(i + j) / 3]]", "colors[(i + j) % 2 * kColors + indices[(i + j) / 3]]"),
    ("overlay.cuh", "alpha * color + 0.5f", "alpha * color"),
    ("overlay.cuh", "color + kOne / 2", "color"),
    ("overlay.cuh", "rest(kOne - fixed(alpha))", "rest(kOne)"),
    ("overlay.cuh", "if (j < span.count)", "if (j <= span.count)"),
    ("overlay.cuh", "i < 3 * kColors; i += kThreads", "i < 255 * 3; i += kThreads"),
    # normalize.cuh
    ("normalize.cuh", "value = map[first]", "value = T{}"),
    ("normalize.cuh", "for (int64_t i = 1; i < shares; ++i)", "for (int64_t i = 1; i < shares - 1; ++i)"),
    ("normalize.cuh", "whole.high - whole.low + eps", "whole.high - whole.low"),
    ("normalize.cuh", "j < valid ? range", "j <= valid ? range"),
    # guided_relu.cuh
    ("guided_relu.cuh", "load_pack(gradient + first, valid, g)", "load_pack(gradient + first, valid - 1, g)"),
    ("guided_relu.cuh", "store_pack(result + first, valid, x);\n  });\n}\n\ntemplate", "store_pack(result + first, valid - 1, x);\n  });\n}\n\ntemplate"),
    # the arithmetic that the CPU kernels share
    ("guided.h", "return load(value) < 0", "return load(value) < -1"),
    ("guided.h", "return load(value) == 0", "return false"),
    ("guided.h", "value.bits <= 0xfc00u", "value.bits < 0xfc00u"),
    ("guided.h", "value.bits <= 0xff80u", "value.bits <= 0xffffu"),
    ("guided.h", "bool is_zero(float16 value) {\n  return (value.bits & 0x7fffu) == 0", "bool is_zero(float16 value) {\n  return value.bits == 0"),
    ("blend.h", "heat < 1 ? heat", "heat < 2 ? heat"),
    ("blend.h", "inside * 255 + 0.5f", "inside * 255"),
    ("blend.h", "(unit > 0 ?", "(unit > -1 ?"),
    ("blend.h", "(1 - alpha) * image + 0.5f", "(1 - alpha) * image"),
    ("interpolate.h", "((n | d) >> 32) == 0", "true"),
    ("interpolate.h", "(2 * index + 1) * in - out", "(2 * index + 1) * in"),
    ("interpolate.h", "if (numerator < 0) numerator = 0;", ""),
    ("interpolate.h", "cell + 1 < in ? cell + 1 : in - 1", "cell + 1"),
    ("interpolate.h", "out < 2 * in ? out : 2 * in", "out < 2 * in ? out : in"),
    ("interpolate.h", "numerator + 2 * in - 1, 2 * in", "numerator, 2 * in"),
    ("interpolate.h", "cell == 0 || numerator <= 0 ? 0", "cell == 1 ? 0"),
    ("interpolate.h", "j / 2 == in - 1 ? out", "j / 2 == in ? out"),
    ("interpolate.h", "range == 0 ? F(0)", "false ? F(0)"),
    ("methods.h", "F floor = 0", "F floor = 1"),
    ("methods.h", "return greater(value, F(0))", "return value"),
    ("methods.h", "return greater(a, floor)", "return a"),
    ("methods.h", "total >= F(0x1p-60)", "total >= 0"),
    ("methods.h", "total <= F(0x1p100)", "total <= F(0x1p127)"),
    ("methods.h", "eps == 0 && (total", "(total"),
    ("methods.h", "lesser(greater(g, F(0)), cap)", "greater(g, F(0))"),
    ("scalar.h", "return b < a || b != b ? b : a", "return b < a ? b : a"),
    ("scalar.h", "return b > a || b != b ? b : a", "return b > a ? b : a"),
    ("methods.h", "sum / F(positions)", "sum / F(positions + 1)"),
    ("methods.h", "if (eps != 0) denominator", "if (eps == 0) denominator"),
    ("methods.h", "g <= 0 ||", "g < -1 ||"),
    ("methods.h", "|| denominator == 0 ?", "?"),
    ("methods.h", "product > kMax || product < -kMax", "product > kMax"),
    ("methods.h", "overflows ? total : denominator", "denominator"),
    ("methods.h", "denominator == 0 ? F(0) : sum", "false ? F(0) : sum"),
    ("methods.h", "return relu(g) * a", "return relu(g * a)"),
    ("methods.h", "return relu(g * a)", "return relu(g) * a"),
    ("scalar.h", "scaled >= 0x1p16f", "scaled > 0x1p16f"),
    ("scalar.h", "0x7fffu + ((bits >> 16) & 1u)", "0x8000u"),
    ("scalar.h", "value != value ? 0x7fc0u", "false ? 0x7fc0u"),
    ("scalar.h", "0xfffu + ((magnitude >> 13) & 1u)", "0x1000u"),
    ("scalar.h", "magnitude < 0x38800000u", "magnitude < 0x38000000u"),
    ("scalar.h", "magnitude > 0x7f800000u", "magnitude > 0x7fffffffu"),
    ("layout.h", "channel * strides.channel;", "channel;"),
    ("layout.h", "klass * strides.klass +", "+"),
]  # fmt: skip

# What no test can notice, and why: not run
EQUIVALENT = [
    ("plan.h", "tile * bytes % 16 != 0", "false", "tiles are copied an element at a time then; tests/test_plan.py sees it"),
    ("channel_weights.cuh", "positions < kLong ? 1 : kWarps", "1", "how many threads share a channel changes the time alone"),
    ("plan.h", "count < kThreads ? kThreads / count : 1", "1", "how many groups share the channels changes the time alone"),
    ("plan.h", "with_two == kResident || resident() <= with_two", "true", "one stage or two changes the time alone"),
    ("normalize.cuh", "if (thread_number() == 0) extremes", "if (threadIdx.x == 0) extremes", "every row of the block writes the same values"),
    ("cam.cuh", "i + kVector<T> <= values; i +=", "i + kVector<T> < values; i +=", "the last vector is copied an element at a time, by the thread that is at it"),
    ("cam.cuh", "team_ < channels(step) ? positions_ / kCount - first : 0", "positions_ / kCount - first", "nobody reads the weights of channels that a tile lacks"),
    ("cam.cuh", "(threadIdx.x & kOffset) != 0", "(threadIdx.x & kOffset) == 0", "either of two lanes may keep the upper half"),
    ("scalar.h", "magnitude >= 0x477ff000u", "magnitude > 0x477ff000u", "at that very value rounding carries into infinity by itself"),
]  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    header: str
    start: int
    old: str
    new: str
    modes: tuple[str, ...]

    def text(self, source: str) -> str:
        return source[: self.start] + self.new + source[self.start + len(self.old) :]

    def describe(self, source: str) -> str:
        line = source[: self.start].count("\n") + 1
        what = f"without {self.old}" if not self.new.strip("; ") else f"{self.old} -> {self.new}"
        return f"{self.header}:{line}: {' '.join(what.split())}"


def find_mutants(kernels: Path, only: str) -> list[Mutant]:
    mutants = []
    for path in sorted(kernels.glob("*.cuh")):
        if path.name == "device.cuh":
            continue
        for found in BARRIER.finditer(path.read_text()):
            mutants.append(Mutant(path.name, found.start(), found[0], ";", ("thread",)))
    for header, old, new in MUTANTS:
        source = (kernels / header).read_text()
        if source.count(old) != 1:
            raise SystemExit(f"{header} has {source.count(old)} times what is to be changed: {old}")
        mutants.append(Mutant(header, source.index(old), old, new, ("plain", "address")))
    return [mutant for mutant in mutants if only in mutant.header]


def includes(test: str) -> set[str]:
    """The kernel headers that a test includes, directly or not"""
    listed = subprocess.run(
        [*compiler(ROOT, "plain", test), "-MM", str(source(ROOT, test))],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return {Path(name).name for name in listed.split() if "csrc/kernels" in name}


def compiler(root: Path, mode: str, test: str) -> list[str]:
    folders = [f"-I{root}/csrc", f"-I{root}/tests/kernels"]
    return ["g++", "-std=c++20", "-w", *FLAGS[mode], *folders, "-pthread", *TESTS[test][1]]


def source(root: Path, test: str) -> Path:
    return root / "tests" / "kernels" / f"test_{TESTS[test][0]}.cpp"


def verdict(mutant: Mutant, tests: list[str]) -> str | None:
    """Which test noticed the mutant, and how; None where none did"""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shutil.copytree(ROOT / "csrc" / "kernels", root / "csrc" / "kernels")
        shutil.copytree(ROOT / "tests" / "kernels", root / "tests" / "kernels")
        header = root / "csrc" / "kernels" / mutant.header
        header.write_text(mutant.text(header.read_text()))
        environment = {
            **os.environ,
            "TSAN_OPTIONS": "halt_on_error=1 atexit_sleep_ms=0 symbolize=0",
        }
        for mode in mutant.modes:
            for test in tests:
                binary = root / f"{test.replace(' ', '_')}_{mode}"
                command = [*compiler(root, mode, test), str(source(root, test))]
                built = subprocess.run(
                    [*command, "-o", str(binary)], capture_output=True, text=True, check=False
                )
                if built.returncode:
                    raise SystemExit(
                        f"a mutant of {mutant.header} does not compile\n{built.stderr}"
                    )
                try:
                    ran = subprocess.run(
                        [binary],
                        capture_output=True,
                        timeout=TIME_LIMIT,
                        env=environment,
                        check=False,
                    )
                except subprocess.TimeoutExpired:
                    return f"{test}, {mode}: too slow"
                if ran.returncode:
                    return f"{test}, {mode}"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="?", default="", help="headers whose name contains this")
    only = parser.parse_args().only

    kernels = ROOT / "csrc" / "kernels"
    headers = {test: includes(test) for test in TESTS}
    mutants = find_mutants(kernels, only)
    survivors = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        verdicts = pool.map(
            lambda m: verdict(m, [test for test in TESTS if m.header in headers[test]]), mutants
        )
        for mutant, noticed in zip(mutants, verdicts, strict=True):
            text = mutant.describe((kernels / mutant.header).read_text())
            survivors += noticed is None
            print(f"died      {text}  ({noticed})" if noticed else f"SURVIVED  {text}", flush=True)
    same = [mutant for mutant in EQUIVALENT if only in mutant[0]]
    for header, old, new, reason in same:
        print(f"same      {header}: {old} -> {new}  ({reason})")
    print(
        f"{len(mutants) - survivors} of {len(mutants)} mutants died; "
        f"{len(same)} more are equivalent"
    )
    if survivors:
        sys.exit(1)


if __name__ == "__main__":
    main()
