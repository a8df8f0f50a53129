"""Samples per second of certification, as a ratio to bare forward passes of the same batches with noise already
drawn.

    python benchmarks/certification.py
    python benchmarks/certification.py --only "resnet" --rounds 15

Both sides run in turn in one process; a figure is the median of the rates' ratio within a round. 1 means that
drawing the noise, counting the votes and looping cost nothing. Measured on two cores with AVX-512, `--rounds 9`:

    LeNet 28 x 28, float32               0.94 (0.93 to 0.94), shared noise 0.96
    LeNet 28 x 28, bfloat16, no AMX      0.90 (0.86 to 0.92), shared noise 0.98
    PreActResNet-18 32 x 32, float32     0.97 (0.95 to 1.00), shared noise 0.98
    LeNet 8 x 8, float32 (21 rounds)     0.89 (0.87 to 0.91), shared noise 0.95

With a loop over the images inside the one over their blocks, where no batch's noise was drawn while another was
classified, the first figure was 0.87 (0.85 to 0.89) on that machine. At 8 x 8 an operation costs as much as what it
does: with one image after the other instead of in groups the last was 0.79 (0.78 to 0.83); with the noise of one
batch drawn at a time, 0.84 (0.83 to 0.85 in three runs, in turns with four of this); of eight at a time instead of
four, 0.88. In a loop of its own over the four, instead of four times in the graph, the classifier waits for the
draw again: 0.86. Nothing was gained by TF_NUM_INTEROP_THREADS of four or eight (0.91 to 0.95, by slower forward
passes), by XLA for a single stream's bits, nor by a table of 16-bit numbers, nor by naming the classes of four
batches' logits at once (0.89, 0.89 and 0.90 at 8 x 8, in turns with 0.91, 0.88 and 0.91 without). On one core
(taskset -c 0) it was 0.90 to 0.94 before, where two gave 0.86: of 5.35 microseconds of a copy there the draw by
itself takes 0.28, adding it and counting the vote 0.07. Batches of 256 bring 5 % more votes a second at 8 x 8, and
lower the ratio; on the field's LeNet 512 is within a hundredth of the best in bfloat16, and within a tenth in
float32 (128 on one core).

"Blocks of 16" are a sequential test's batches, each slot another image's: 0.92 (8 x 8; 0.85 with one batch drawn at
a time, in turns), 0.91 (LeNet), 0.86 (bfloat16, before the bits were compiled; since then 0.83, 0.77 to 0.89, on a
busy day; 0.85 on a quiet one, with two to sixteen batches in a call 0.82 to 0.86; drawn in two or four parts at
once, not beside the classifier, 0.79 and 0.82). With TensorFlow's own bits, two operations a slot, and four batches
a call on 8 x 8 pixels it was 0.80 there; with a draw for each slot, traced as often, and one batch a call 0.55 and
0.81, and the first batch of 64 slots took 2.7 seconds to trace, then 0.35 (0.6 on that busy day, compiled bits or
not).
"""

import argparse

from covkeras.runtime import startup

startup.quiet_tensorflow()

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from covkeras import models  # noqa: E402
from covkeras.certification import SmoothedClassifier  # noqa: E402
from covkeras.certification.cohen import groups  # noqa: E402
from covkeras.certification.noise import ESTIMATION, SEQUENTIAL  # noqa: E402
from covkeras.certification.sampling import batches_at_once  # noqa: E402
from covkeras.reports import results as report  # noqa: E402
from covkeras.runtime.timing import interleave  # noqa: E402

CASES = {
    "lenet 8x8": (lambda: models.lenet((8, 8, 1)), "float32", 4),
    "lenet": (models.lenet, "float32", 4),
    "lenet bfloat16": (models.lenet, "bfloat16", 16),
    "resnet": (models.preact_resnet18, "float32", 1),
}
IMAGES = 16
BLOCKS = "lattice, blocks of 16"


def measure(title: str, rounds: int) -> list[list[str]]:
    build, precision, batches = CASES[title]
    options = [("gaussian", False), ("gaussian", True), ("lattice", False), ("lattice", True)]
    smoothed = [SmoothedClassifier(build(), 0.5, None, *option, precision) for option in options]
    classifier, batch = smoothed[0].classifier, smoothed[0].batch_size
    count = IMAGES if title != "resnet" else 4
    images = np.zeros((count, *smoothed[0].image_shape), np.float32)
    noisy = 0.5 * tf.random.stateless_normal((batch, *smoothed[0].image_shape), [0, 0])

    @tf.function
    def bare():
        loop = tf.while_loop(
            lambda i, _: i < batches * count,
            lambda i, total: (i + 1, total + tf.reduce_sum(classifier(noisy + tf.cast(i, tf.float32) * 0.0))),
            (tf.constant(0), tf.constant(0.0)),
        )
        return loop[1]

    sides = {"bare": lambda: bare().numpy()}
    for option, one in zip(options, smoothed, strict=True):
        name = f"{option[0]}, shared" if option[1] else option[0]
        sides[name] = lambda one=one: certify(one, images, batches * batch)
    sides[BLOCKS] = lambda: test(smoothed[2], images[:1], batches * count)
    seconds, rows = interleave(sides, rounds), []
    for name in list(sides)[1:]:
        ratios = np.array(seconds["bare"]) / np.array(seconds[name])
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        rows.append([title, str(batch), name, f"{middle:.2f}", f"{low:.2f} to {high:.2f}", str(rounds)])
    return rows


def test(smoothed, image, batches: int) -> None:
    """So many batches of a sequential test, as many in a call as it takes: in each slot another image's block."""
    together = batches_at_once(smoothed.ballot, image)
    slots = range(together * smoothed.ballot.slots)
    images = np.repeat(image, len(slots), 0)
    for call in range(batches // together):
        smoothed.ballot.count_blocks(images, slots, [SEQUENTIAL] * len(slots), [call] * len(slots), 0)


def certify(smoothed, images, n: int) -> None:
    """The votes of every image, as `certify` counts them: together where they share the noise, or are soon done."""
    indices = np.arange(len(images))
    for part in groups(smoothed.shared_noise, len(images)):
        smoothed.ballot.count(images[part], indices[part], ESTIMATION, n, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=CASES, help="one case")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds (default 15)")
    flags = parser.parse_args()
    rows = [["classifier", "batch", "noise", "certify / bare forward", "middle half", "rounds"]]
    rows += [row for title in ([flags.only] if flags.only else CASES) for row in measure(title, flags.rounds)]
    print(report.plain(rows))


if __name__ == "__main__":
    main()
