"""Samples per second of certification, as a ratio to bare forward passes of the same batches with noise already drawn.

    python benchmarks/certification.py
    python benchmarks/certification.py --only "resnet" --rounds 15

Both sides run in turn in one process; a figure is the median of the rates' ratio within a round. 1 means that drawing
the noise, counting the votes and looping cost nothing. Measured on two cores with AVX-512, by the first command:

    LeNet 28 x 28, batch 512             0.93 (0.90 to 0.94)
    PreActResNet-18 32 x 32, batch 512   1.00 (0.97 to 1.01)
"""

import argparse

from covkeras import startup

startup.quiet_tensorflow()

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from timing import interleave  # noqa: E402

from covkeras import models, report  # noqa: E402
from covkeras.certification import SmoothedClassifier  # noqa: E402
from covkeras.certification.noise import ESTIMATION  # noqa: E402

CASES = {"lenet": (models.lenet, 16), "resnet": (models.preact_resnet18, 2)}


def measure(title: str, rounds: int) -> list[str]:
    build, batches = CASES[title]
    classifier = build()
    smoothed = SmoothedClassifier(classifier, 0.5)
    batch, n = smoothed.batch_size, batches * smoothed.batch_size
    image = np.full(smoothed.image_shape, 0.5, np.float32)
    noisy = image + 0.5 * tf.random.stateless_normal((batch, *smoothed.image_shape), [0, 0])

    @tf.function
    def bare():
        loop = tf.while_loop(
            lambda i, _: i < batches,
            lambda i, total: (i + 1, total + tf.reduce_sum(classifier(noisy + tf.cast(i, tf.float32) * 0.0))),
            (tf.constant(0), tf.constant(0.0)),
        )
        return loop[1]

    sides = {"certify": lambda: smoothed.votes(image, n, 0, 0, ESTIMATION), "bare": lambda: bare().numpy()}
    seconds = interleave(sides, rounds)
    ratios = np.array(seconds["bare"]) / np.array(seconds["certify"])
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return [title, str(batch), f"{middle:.2f}", f"{low:.2f} to {high:.2f}", str(rounds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=CASES, help="one case")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds (default 15)")
    flags = parser.parse_args()
    rows = [["classifier", "batch", "certify / bare forward", "middle half", "rounds"]]
    rows += [measure(title, flags.rounds) for title in ([flags.only] if flags.only else CASES)]
    print(report.plain(rows))


if __name__ == "__main__":
    main()
