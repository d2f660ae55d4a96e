"""Prints what each kernel of a compiled library takes: registers, shared memory, stack (bytes).

A stack holds spilled registers and arrays that did not fit into them: where there is one, it fails.
"""

import argparse
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path


def find_cuobjdump() -> str:
    """Of the toolkit, or the one that triton brings."""
    found = shutil.which("cuobjdump")
    triton = importlib.util.find_spec("triton")
    if found is None and triton is not None and triton.submodule_search_locations:
        found = shutil.which(
            "cuobjdump", path=f"{triton.submodule_search_locations[0]}/backends/nvidia/bin"
        )
    if found is None:
        raise SystemExit("cuobjdump was found neither in the toolkit nor in triton")
    return found


def short(name: str) -> str:
    """cam_kernel<true, float, GradCAM> of a demangled kernel with its namespaces and parameters"""
    name = re.sub(r"^void |fastcam::", "", name)
    name = re.sub(r"\(bool\)([01])", lambda found: ("false", "true")[int(found[1])], name)
    depth = 0
    for i, character in enumerate(name):
        depth += {"<": 1, ">": -1}.get(character, 0)
        if character == "(" and depth == 0:
            name = name[:i]
            break
    return re.sub(r"(\w)<(?:float|double)>", r"\1", name).replace(" >", ">")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("libraries", nargs="+", type=Path)
    libraries = parser.parse_args().libraries

    cuobjdump = find_cuobjdump()
    kernels: dict[str, dict[str, tuple[int, int, int]]] = {}
    for library in libraries:
        dump = subprocess.run(
            [cuobjdump, "-res-usage", library], capture_output=True, text=True, check=True
        ).stdout
        names = subprocess.run(["c++filt"], input=dump, capture_output=True, text=True, check=True)
        architecture = name = ""
        for line in names.stdout.splitlines():
            if found := re.match(r"arch = sm_(\w+)", line):
                architecture = found[1]
            elif found := re.match(r" Function (.+):$", line):
                name = short(found[1])
            elif found := re.match(r"\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
                registers, stack, shared, local = map(int, found.groups())
                kernels.setdefault(name, {})[architecture] = (registers, shared, stack + local)

    architectures = sorted({a for usage in kernels.values() for a in usage}, key=int)
    width = max(map(len, kernels), default=0)
    heads = [f"sm_{architecture}: registers, shared, stack" for architecture in architectures]
    print("  ".join(["kernel".ljust(width), *heads]))
    spilled = []
    for name, usage in sorted(kernels.items()):
        cells = []
        for architecture, head in zip(architectures, heads, strict=True):
            cell = usage.get(architecture)
            text = f"{cell[0]:4} {cell[1]:6} {cell[2]:5}" if cell else "-"
            cells.append(text.rjust(len(head)))
            if cell and cell[2]:
                spilled.append(f"{name} on sm_{architecture}: {cell[2]} bytes of stack")
        print("  ".join([name.ljust(width), *cells]))
    print(f"{len(kernels)} kernels, {len(spilled)} of them with a stack")
    if spilled or not kernels:
        sys.exit("\n".join(spilled) or "no kernels")


if __name__ == "__main__":
    main()
