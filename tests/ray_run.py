"""Explains SRC to OUT on a cluster of two machines, of which one is lost on the way.

python ray_run.py SRC OUT
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from fastcam import dataset, models
from fastcam.explainer import Explainer


def lose(cluster: Cluster, node: object, out: Path) -> None:
    """Ends the machine without grace once a shard is there."""
    while not list(out.glob("shards/0*")):
        time.sleep(0.02)
    cluster.remove_node(node, allow_graceful=False)
    print("lost a machine", file=sys.stderr)


def main(source: Path, out: Path) -> None:
    checks = {"health_check_initial_delay_ms": 2000, "health_check_period_ms": 1000}
    head = {"num_cpus": 2, "_system_config": checks}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    second = cluster.add_node(num_cpus=2)
    ray.init(cluster.address, log_to_driver=False)
    threading.Thread(target=lose, args=(cluster, second, out), daemon=True).start()
    explainer = Explainer(models.load("digits"), ["gradcam", "layercam"])
    report = dataset.explain(
        source, out, explainer, top_k=3, shard=16, batch=4, workers=0, engine="ray"
    )
    assert (report.explained, report.failed) == (120, 1)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
