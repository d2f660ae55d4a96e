"""Builds the kernels: `_ops` (schemas, CPU), `_ops_cuda` (CUDA), `_C` (what is no tensor operator).

Environment: FASTCAM_CUDA=1|0 forces CUDA on or off; TORCH_CUDA_ARCH_LIST, MAX_JOBS, NVCC_FLAGS and
DEBUG=1 are honoured.
"""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pybind11
import torch
from setuptools import Extension, setup

ROOT = Path(__file__).parent
STABLE_ABI_TARGET = (2, 11)
DEFAULT_ARCHITECTURES = "8.0+PTX"  # every GPU since Ampere, newer ones through PTX


def sources(folder: str) -> list[str]:
    return sorted(
        str(path.relative_to(ROOT))
        for path in (ROOT / "csrc" / folder).iterdir()
        if path.suffix in (".cpp", ".cu")
    )


def find_nvcc() -> str | None:
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    paths = [shutil.which("nvcc", path=f"{home}/bin") for home in homes if home]
    return next(filter(None, [*paths, shutil.which("nvcc")]), None)


def cuda_decision(nvcc: str | None) -> tuple[bool, str]:
    """Whether to build the CUDA kernels, and why. A GPU need not be there."""
    forced = os.environ.get("FASTCAM_CUDA")
    if forced == "0":
        return False, "FASTCAM_CUDA=0"
    if torch.version.cuda is None or nvcc is None:
        missing = "nvcc was not found" if torch.version.cuda else "this torch is built without CUDA"
        if forced == "1":
            raise SystemExit(f"fastcam: FASTCAM_CUDA=1, but {missing}")
        return False, missing
    return True, f"torch has CUDA {torch.version.cuda}, nvcc is {nvcc}"


def toolkit_root(nvcc: str) -> str:
    """The folder of the CUDA toolkit; nvcc knows it even where a script or link stands for it."""
    plan = subprocess.run([nvcc, "--dryrun", "x.cu"], capture_output=True, text=True, check=False)
    found = re.search(r"^#\$ TOP=(.+)$", plan.stderr, re.MULTILINE)
    return str(Path(found[1]).resolve()) if found else str(Path(nvcc).resolve().parent.parent)


def default_architectures() -> str:
    """Those of all GPUs in this machine, and PTX of the newest for GPUs that it may get."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = sorted({torch.cuda.get_device_capability(i) for i in range(count)})
    return (
        ";".join("{}.{}".format(*each) for each in found) + "+PTX"
        if found
        else (DEFAULT_ARCHITECTURES)
    )


nvcc = find_nvcc()
with_cuda, reason = cuda_decision(nvcc)
print(f"fastcam: CUDA kernels {'on' if with_cuda else 'off'} ({reason})", flush=True)
architectures = ""
if with_cuda:
    os.environ["CUDA_HOME"] = toolkit_root(nvcc)
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", default_architectures())
    architectures = os.environ["TORCH_CUDA_ARCH_LIST"]
    print(f"fastcam: CUDA architectures {architectures}", flush=True)
    if architectures == DEFAULT_ARCHITECTURES:
        print(
            "fastcam: no GPU was found to build for; on one newer than 8.0 the first call compiles "
            "the kernels, some 20 s. TORCH_CUDA_ARCH_LIST names other architectures.",
            flush=True,
        )

# reads CUDA_HOME when imported
from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension  # noqa: E402

optimization = ["-O0", "-g"] if os.environ.get("DEBUG") == "1" else ["-O3", "-g0"]
target = "-DTORCH_TARGET_VERSION=0x{:02x}{:02x}000000000000".format(*STABLE_ABI_TARGET)
cxx_flags = [
    *optimization,
    target,
    "-std=c++17",
    "-Wall",
    "-fvisibility=hidden",
    "-fopenmp-simd",
    "-fno-math-errno",
    "-fno-trapping-math",  # so that both sides of a condition may be computed, and loops vectorised
    "-ffp-contract=off",  # the same bits on every instruction set
]
nvcc_flags = [
    optimization[0],
    target,
    "-std=c++17",
    "-DUSE_CUDA",
    *shlex.split(os.environ.get("NVCC_FLAGS", "")),
]
include_dirs = [str(ROOT / "csrc")]

extensions: list[Extension] = [
    CppExtension(
        "fastcam._ops",
        ["csrc/schema.cpp", *sources("cpu")],
        include_dirs=include_dirs,
        extra_compile_args={"cxx": cxx_flags},
        py_limited_api=True,
    ),
    Extension(
        "fastcam._C",
        sources("python"),
        include_dirs=[pybind11.get_include(), *include_dirs],
        extra_compile_args=["-O2", "-g0", "-std=c++17", "-fvisibility=hidden"],
        define_macros=[
            ("FASTCAM_STABLE_ABI_TARGET", '"{}.{}"'.format(*STABLE_ABI_TARGET)),
            ("FASTCAM_TORCH_VERSION", f'"{torch.__version__}"'),
            ("FASTCAM_CUDA_VERSION", f'"{torch.version.cuda if with_cuda else ""}"'),
            ("FASTCAM_CUDA_ARCHITECTURES", f'"{architectures}"'),
        ],
        language="c++",
    ),
]
if with_cuda:
    extensions.append(
        CUDAExtension(
            "fastcam._ops_cuda",
            sources("cuda"),
            include_dirs=include_dirs,
            extra_compile_args={"cxx": cxx_flags, "nvcc": nvcc_flags},
            py_limited_api=True,
        )
    )

setup(
    ext_modules=extensions,
    # _ops and _ops_cuda are libraries of operators, not Python modules: one name for every Python
    cmdclass={"build_ext": BuildExtension.with_options(no_python_abi_suffix=True)},
)
