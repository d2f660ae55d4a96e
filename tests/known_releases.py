"""Writes the fingerprints of the releases that the drop-in has been compared with.

    python tests/known_releases.py RELEASE FOLDER ...

FOLDER holds an unpacked release of one library. Each is read by a Python of its own, for only one
release of a library can be imported at a time.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

from fastcam.dropin.known import TABLE, fingerprint

MODULES = {
    "pytorch_grad_cam": (
        "ablation_cam",
        "ablation_layer",
        "activations_and_gradients",
        "base_cam",
        "eigen_cam",
        "eigen_grad_cam",
        "feature_factorization.deep_feature_factorization",
        "fem",
        "finer_cam",
        "fullgrad_cam",
        "grad_cam",
        "grad_cam_elementwise",
        "grad_cam_plusplus",
        "guided_backprop",
        "hirescam",
        "kpca_cam",
        "layer_cam",
        "metrics.perturbation_confidence",
        "metrics.road",
        "random_cam",
        "refine_cam",
        "score_cam",
        "sess",
        "shapley_cam",
        "utils.find_layers",
        "utils.image",
        "utils.model_targets",
        "utils.svd_on_activations",
        "xgrad_cam",
    ),
    "torchcam": (
        "explain",
        "methods._utils",
        "methods.activation",
        "methods.core",
        "methods.gradient",
        "metrics",
        "utils",
    ),
    "captum": (
        "_utils.common",
        "_utils.gradient",
        "attr._core.guided_backprop_deconvnet",
        "attr._core.guided_grad_cam",
        "attr._core.layer.grad_cam",
        "attr._utils.attribution",
    ),
}


def of_folder(folder: str) -> dict[str, str]:
    """By module, the fingerprint in the release that lies in a folder."""
    sys.path.insert(0, folder)
    (library,) = [name for name in MODULES if (Path(folder) / name).is_dir()]
    found = {}
    for name in MODULES[library]:
        try:
            module = importlib.import_module(f"{library}.{name}")
        except ModuleNotFoundError:  # this release has no such module
            continue
        assert module.__file__ is not None
        assert Path(module.__file__).is_relative_to(Path(folder).resolve())
        found[module.__name__] = fingerprint(module)
    return found


def main() -> None:
    """Adds releases to the table."""
    if sys.argv[1] == "--one":
        print(json.dumps(of_folder(sys.argv[2])))
        return
    table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    pairs = iter(sys.argv[1:])
    for release, folder in zip(pairs, pairs, strict=True):
        command = [sys.executable, __file__, "--one", folder]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        for module, found in json.loads(output).items():
            releases = table.setdefault(module, {}).setdefault(found, [])
            releases[:] = sorted({*releases, release})
    TABLE.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
