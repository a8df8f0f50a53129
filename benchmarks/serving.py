"""Throughput of the exported `certify` signature, as a ratio to `SmoothedClassifier.certify` of the same images.

    python benchmarks/serving.py

In turns, in one process; the median of the rates' ratio within a round. Measured on two cores, n = 2,048:

    LeNet 28 x 28           1.05 (1.03 to 1.06)
    PreActResNet-18         1.00 (0.98 to 1.02)
"""

import argparse
import tempfile
from pathlib import Path

from covkeras.runtime import startup

startup.quiet_tensorflow()

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from covkeras import models  # noqa: E402
from covkeras.certification import SmoothedClassifier  # noqa: E402
from covkeras.exporting import export  # noqa: E402
from covkeras.reports import results as report  # noqa: E402
from covkeras.runtime.timing import interleave  # noqa: E402

CASES = {"lenet 28 x 28": (models.lenet, 8), "resnet 32 x 32": (models.preact_resnet18, 1)}


def measure(title: str, n: int, rounds: int) -> list[str]:
    build, count = CASES[title]
    smoothed = SmoothedClassifier(build(), 0.5)
    images = np.zeros((count, *smoothed.image_shape), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        served = tf.saved_model.load(str(export(smoothed, Path(folder) / "m" / "1"))).signatures["certify"]
        long = {k: tf.fill([count], tf.constant(v, tf.int64)) for k, v in {"n0": 100, "n": n, "seed": 0}.items()}
        alpha = tf.fill([count], tf.constant(0.001, tf.float64))
        sides = {
            "python": lambda: smoothed.certify(images, 100, n, 0.001, indices=np.zeros(count, int)),
            "served": lambda: served(images=tf.constant(images), alpha=alpha, **long)["p_lower"].numpy(),
        }
        seconds = interleave(sides, rounds)
    ratios = np.array(seconds["python"]) / np.array(seconds["served"])
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return [title, f"{middle:.2f}", f"{low:.2f} to {high:.2f}", str(rounds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=2_048, help="samples an image (default 2,048)")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds (default 9)")
    flags = parser.parse_args()
    rows = [["classifier", "served / python", "middle half", "rounds"]]
    print(report.plain(rows + [measure(title, flags.n, flags.rounds) for title in CASES]))


if __name__ == "__main__":
    main()
