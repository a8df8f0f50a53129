"""Two actors of a local Ray cluster against one process, on the same processor: images a second, as a ratio.

    python benchmarks/scattered.py            two actors of one thread each, a process of as many threads as cores
    python benchmarks/scattered.py --record

A LeNet on 28 x 28 images, n samples an image, both sides in turns in one run; a figure is the median of the rates'
ratio within a round. The cluster is started before, its seconds are printed apart. The certificates must be the same.
Figures: docs/results/certification.md.
"""

import argparse
import functools
import json
import os
import time
from pathlib import Path

from covkeras.runtime import startup

startup.quiet_tensorflow()

import numpy as np  # noqa: E402

from covkeras.certification import SmoothedClassifier, cohen  # noqa: E402
from covkeras.experiments import scattered  # noqa: E402
from covkeras.models import lenet  # noqa: E402
from covkeras.runtime.timing import interleave  # noqa: E402

OUT = Path(__file__).parent.parent / "docs" / "results" / "data" / "scattered.json"


def make(n: int):
    """(images, indices) -> certificates, of the same classifier wherever it is made."""
    import keras

    keras.utils.set_random_seed(0)
    smoothed = SmoothedClassifier(lenet((28, 28, 1)), 0.5)
    return lambda images, indices: cohen.certify_each(smoothed, images, n0=100, n=n, alpha=0.001, indices=indices)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--block", type=int, default=8, help="images of a task (default: 8)")
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--record", action="store_true", help=f"write {OUT.name}")
    flags = parser.parse_args()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (flags.images, 28, 28, 1)).astype(np.float32) / np.float32(255)
    indices, local, start = np.arange(flags.images), make(flags.n), time.perf_counter()
    cluster = scattered.Cluster(actors=flags.actors, images=flags.block)
    found = {}

    def certify(name, work):
        found[name] = sorted((position, float(c.radius[0])) for position, c in work(images, indices))

    with scattered.Scattered(cluster, functools.partial(make, flags.n), local) as work:
        certify("actors", work)
        certify("alone", local)
        started = time.perf_counter() - start
        sides = {"alone": lambda: certify("alone", local), "actors": lambda: certify("actors", work)}
        seconds = interleave(sides, flags.rounds)
    assert found["alone"] == found["actors"], "the actors' certificates are not those of one process"
    ratios = np.array(seconds["alone"]) / np.array(seconds["actors"])
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    print(f"{flags.actors} actors / one process: {middle:.2f} ({low:.2f} to {high:.2f}), {os.cpu_count()} cores")
    print(f"the same certificates; the cluster, its actors and the first traces took {started:.0f} s")
    if flags.record:
        given = {name: getattr(flags, name) for name in ("actors", "images", "block", "n", "rounds")}
        row = {"classifier": "LeNet, 28 x 28", "ratio": middle, "low": low, "high": high, "start": started, **given}
        record = {"command": "python benchmarks/scattered.py --record", "machine": "two cores", "rows": [row]}
        OUT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
