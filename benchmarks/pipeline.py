"""Whether the data keeps up: a training step fed by the pipeline, as a ratio to the same step on one fixed batch.

    python benchmarks/pipeline.py --data mnist --data-dir DIR

Both sides run in turn in one process, LeNet, batch 128, Gaussian augmentation; the median of the ratios. 1 means that
data time is hidden behind the step. Measured on two cores, MNIST:

    without augmentation 1.02 (1.00 to 1.03); with --augmentation crop 1.03 (1.01 to 1.05)
"""

from flags import parser_of

from covkeras.runtime import startup

startup.quiet_tensorflow()

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402

from covkeras import datasets, models, objectives  # noqa: E402
from covkeras.reports import results as report  # noqa: E402
from covkeras.runtime.timing import interleave, ratio_rows  # noqa: E402
from covkeras.training.trainer import CertifiedTrainer  # noqa: E402


def main() -> None:
    parser = parser_of(__doc__, sigma=0)
    parser.add_argument("--augmentation", default="none", choices=("none", "crop", "crop_flip"))
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds of 20 steps (default 15)")
    flags = parser.parse_args()
    data = datasets.load(flags.data, "train", flags.data_dir)
    trainer = CertifiedTrainer(models.lenet(data.image_shape), objectives.GaussianAugmentation(0.5))
    trainer.compile(optimizer=keras.optimizers.SGD(0.001))
    step = tf.function(trainer.train_step, autograph=False)
    stream = iter(data.batches(128, augmentation=flags.augmentation))
    fixed = next(stream)

    def steps(batch):
        for _ in range(20):
            step(batch())["loss"].numpy()

    sides = {"fixed batch": lambda: steps(lambda: fixed), "pipeline": lambda: steps(lambda: next(stream))}
    rows = ratio_rows(flags.data, interleave(sides, flags.rounds))
    print(report.plain([["data", "step", "ratio", "middle half", "rounds"], *rows]))


if __name__ == "__main__":
    main()
