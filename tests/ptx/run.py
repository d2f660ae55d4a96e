"""Runs the kernels' tests on what nvcc made of the kernels: their PTX, on the CPU.

run.py embedded          the PTX in fastcam/_ops_cuda.so
run.py compute_80 ...    compiled for these, with the flags that the library is built with
run.py --compile-only compute_90
run.py --mutants embedded

Every kernel of the PTX has to be launched by a test. FASTCAM_PTX_SEED seeds what is random. With
--mutants each launch also runs changes of the kernel's PTX, see mutants.h: all have to be noticed.
"""

import argparse
import contextlib
import io
import os
import re
import runpy
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import setuptools

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "ptx"
PROGRAMS = ROOT / "build" / "cmake-ptx" / "tests" / "ptx"
# the slowest first
TESTS = (
    *[f"cam_{element}" for element in ("float", "double", "float16", "bfloat16")],
    *["enlarge", "overlay", "channel_weights", "normalize", "guided_relu"],
)
AT_ONCE = 2
# Barriers that no test can miss: kernels whose name has this, how many in each, why
EQUIVALENT = (
    (
        "cam_kernelI",
        "GivenWeights",
        2,
        "the loop's barriers order the zeros and the copies too",
    ),
    ("cam_kernelI", "", 1, "the loop's barriers order the zeros too"),
    ("overlay_kernelI", "", 2, "one of two in a row: there are no slices to add up"),
    ("guided_product_kernelI", "", 2, "one of two in a row: there are no slices to add up"),
)


def nvcc_command() -> list[str]:
    """nvcc, the flags and the folders that setup.py compiles csrc/cuda with"""
    environment = {"FASTCAM_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "8.0"}
    with (
        mock.patch.dict(os.environ, environment),
        mock.patch.object(setuptools, "setup"),
        contextlib.chdir(ROOT),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        variables = runpy.run_path("setup.py")
        from torch.utils import cpp_extension
    (library,) = (e for e in variables["extensions"] if e.name == "fastcam._ops_cuda")
    folders = [f"-I{folder}" for folder in library.include_dirs]
    flags = [*cpp_extension.COMMON_NVCC_FLAGS, *library.extra_compile_args["nvcc"]]
    return [variables["nvcc"], "-ptx", *flags, *folders]


def is_new(target: Path, listing: Path) -> bool:
    """Whether all that a file was made of, as nvcc has listed it, is older"""
    if not target.exists() or not listing.exists():
        return False
    names = listing.read_text().split(":", 1)[1].replace("\\\n", " ").split()
    # relative ones are of the project, as nvcc runs in its folder
    own = [path for path in (ROOT / name for name in names) if path.is_relative_to(ROOT)]
    return all(
        path.exists() and path.stat().st_mtime < target.stat().st_mtime
        for path in [*own, ROOT / "setup.py"]
    )


def compiled(architecture: str) -> Path:
    """The folder of PTX for compute_80 or the like, two files at a time"""
    folder = FOLDER / architecture
    folder.mkdir(parents=True, exist_ok=True)
    sources = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    for path in folder.glob("*.ptx"):
        if path.stem not in {source.stem for source in sources}:
            path.unlink()
    stale = [
        source
        for source in sources
        if not is_new(folder / f"{source.stem}.ptx", folder / f"{source.stem}.d")
    ]
    if not stale:
        return folder
    command = nvcc_command()

    def compile_one(source: Path) -> None:
        target, listing = folder / f"{source.stem}.ptx", folder / f"{source.stem}.d"
        ran = subprocess.run(
            [*command, f"-arch={architecture}", "-MD", "-MF", listing, "-o", target, source],
            cwd=ROOT,
            check=False,
            capture_output=True,
            text=True,
        )
        if ran.returncode:
            target.unlink(missing_ok=True)
            raise SystemExit(f"{source} is not compiled\n{ran.stderr}")

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(compile_one, stale))
    return folder


def embedded() -> Path | None:
    """The folder of the PTX in the library as it was built; None if there is none in it"""
    library = ROOT / "fastcam" / "_ops_cuda.so"
    if not library.exists():
        return None
    sys.path.insert(0, str(ROOT / "tests" / "kernels"))
    from resources import find_cuobjdump

    folder = FOLDER / "embedded"
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.ptx"):
        path.unlink()
    subprocess.run(
        [find_cuobjdump(), "-xptx", "all", library], cwd=folder, check=True, capture_output=True
    )
    return folder if any(folder.glob("*.ptx")) else None


def entries(folder: Path) -> set[str]:
    text = "".join(path.read_text() for path in folder.glob("*.ptx"))
    return set(re.findall(r"\.entry (\w+)\(", text))


def run_test(name: str, folder: Path, settings: dict[str, str]) -> str | None:
    """What a test says if it fails"""
    environment = {**os.environ, "FASTCAM_PTX": str(folder), **settings}
    program = subprocess.run(
        [PROGRAMS / f"ptx_{name}"], capture_output=True, text=True, env=environment, check=False
    )
    return program.stdout + program.stderr if program.returncode else None


def test(folder: Path) -> bool:
    """Whether all tests pass with the PTX of a folder, and launch all of its kernels"""
    start = time.monotonic()
    ran = folder / "ran.txt"
    ran.write_text("")
    settings = {"FASTCAM_PTX_RAN": str(ran)}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        said = list(pool.map(lambda name: run_test(name, folder, settings), TESTS))
    failed = {name: text for name, text in zip(TESTS, said, strict=True) if text}
    for name, text in failed.items():
        print(f"{folder.name}, {name} FAILED\n{text}")
    found = entries(folder)
    missing = sorted(found - set(ran.read_text().split()))
    if not failed and missing:
        print(f"{folder.name}: no test launches\n  " + "\n  ".join(missing))
    passed = bool(found) and not failed and not missing
    seconds = time.monotonic() - start
    print(
        f"{folder.name}: {len(found)} kernels {'passed' if passed else 'FAILED'}, {seconds:.0f} s"
    )
    return passed


def is_equivalent(kernel: str, barriers: int) -> bool:
    """Whether so many barriers of a kernel may be taken out unnoticed"""
    counts = (count for a, b, count, _ in EQUIVALENT if a in kernel and b in kernel)
    return barriers <= next(counts, 0)


def judge_mutants(folder: Path) -> bool:
    """Whether, by what the tests have written, all mutants died that can"""
    verdicts: dict[str, set[tuple[str, str]]] = {"mutant": set(), "ran": set(), "died": set()}
    for name in TESTS:
        for line in (folder / f"mutants_{name}.txt").read_text().splitlines():
            verdict, kernel, change, *_ = line.split("\t")
            verdicts[verdict].add((kernel, change))
    found, ran, died = verdicts.values()
    alive = ran - died
    barriers = {each for each in alive if re.search(r"bar\S*sync\s+0; is taken out$", each[1])}
    count = Counter(kernel for kernel, _ in barriers)
    same = {(kernel, change) for kernel, change in barriers if is_equivalent(kernel, count[kernel])}
    for kernel, change in sorted(alive - same):
        print(f"SURVIVED  {kernel}: {change}")
    print(
        f"{folder.name}: {len(died)} of {len(ran) - len(same)} mutants died; {len(same)} more are "
        f"equivalent, {len(found - ran)} change copies of a loop's body that no test reaches"
    )
    return bool(died) and alive == same


def find_mutants(folder: Path) -> bool:
    """Whether the launches of all tests notice all mutants of the PTX of a folder"""

    def run(name: str) -> tuple[str, str | None]:
        verdicts = folder / f"mutants_{name}.txt"
        verdicts.write_text("")
        return name, run_test(name, folder, {"FASTCAM_PTX_MUTANTS": str(verdicts)})

    with ThreadPoolExecutor(AT_ONCE) as pool:
        failed = [(name, said) for name, said in pool.map(run, TESTS) if said]
    for name, said in failed:
        print(f"{folder.name}, {name} FAILED\n{said}")
    return not failed and judge_mutants(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compile-only", action="store_true")
    parser.add_argument("--mutants", action="store_true")
    parser.add_argument("sources", nargs="+", help="embedded, or compute_80 and the like")
    options = parser.parse_args()

    passed = True
    for source in options.sources:
        folder = embedded() if source == "embedded" else compiled(source)
        if folder is None:
            print("no library with PTX of the CUDA kernels was built: there is nothing to run")
        elif not options.compile_only:
            passed &= find_mutants(folder) if options.mutants else test(folder)
    if not passed:
        sys.exit(1)


if __name__ == "__main__":
    main()
