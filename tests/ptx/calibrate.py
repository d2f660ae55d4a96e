"""Holds the table of costs against what ptxas makes of the kernels for sm_90, kernel by kernel.

calibrate.py FOLDER      with the PTX of run.py in it, as build/ptx/compute_90

Both sides count the text of a kernel. Loops are kept from being unrolled, or their bodies would
count as often as ptxas repeats them.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from run import PROGRAMS, ROOT, entries

sys.path.insert(0, str(ROOT / "tests" / "kernels"))
from resources import find_cuobjdump

LABEL = re.compile(r"^(\$L__BB\d+_\d+:)", re.MULTILINE)
INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")


def assembled(folder: Path) -> dict[str, int]:
    """How many instructions each kernel has for sm_90"""
    counts: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for path in sorted(folder.glob("*.ptx")):
            text, binary = Path(temporary) / "kernels.ptx", Path(temporary) / "kernels.cubin"
            text.write_text(LABEL.sub(r'\1\n.pragma "nounroll";', path.read_text()))
            subprocess.run(["ptxas", "-arch=sm_90", text, "-o", binary], check=True)
            listing = subprocess.run(
                [find_cuobjdump(), "-sass", binary], check=True, capture_output=True, text=True
            ).stdout
            name = ""
            for line in listing.splitlines():
                if found := re.search(r"Function : (\w+)", line):
                    name = found[1]
                    counts[name] = 0
                elif (found := INSTRUCTION.match(line)) and found[1] != "NOP":
                    counts[name] += 1
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder

    listing = subprocess.run(
        [PROGRAMS / "ptx_slots", "--static", *sorted(entries(folder))],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "FASTCAM_PTX": str(folder)},
    ).stdout
    counts = assembled(folder)
    errors = {}
    for line in listing.splitlines():
        name, slots = line.split()
        errors[name] = float(slots) / counts[name] - 1
    for name, error in sorted(errors.items(), key=lambda item: item[1]):
        print(f"{100 * error:+6.1f} %  {counts[name]:6}  {name}")
    values = list(errors.values())
    print(
        f"{len(values)} kernels: {100 * statistics.mean(values):+.1f} % on average, "
        f"standard deviation {100 * statistics.pstdev(values):.1f} %, "
        f"from {100 * min(values):+.0f} to {100 * max(values):+.0f} %"
    )


if __name__ == "__main__":
    main()
