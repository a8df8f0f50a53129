"""What one training step costs, as a ratio to a plain Gaussian-augmentation step of the same classifier.

    python benchmarks/training_step.py                     LeNets (128; bfloat16, 256), PreActResNet-18 (64 and 128)
    python benchmarks/training_step.py --only lenet --rounds 31

All sides run in turn in one process; a figure is the median of the ratios within a round, the middle half of the rounds
in brackets. Measured on two cores with AVX-512 and AMX, by `--only NAME`:

    step                                              LeNet, 128            lenet_5x5, bfloat16, 256
    covariance_radius                                 1.36 (1.26 to 1.41)   1.97 (1.88 to 2.00)
    ... with the gradient stopped at the covariance   1.26 (1.13 to 1.31)   1.63 (1.53 to 1.72)
    Consistency, 2 copies                             1.84 (1.75 to 1.96)   1.70 (1.65 to 1.82)
    Consistency, antithetic                           1.86 (1.79 to 1.98)   1.63 (1.56 to 1.77)
    adjoint_radius of every image                     3.53 (3.37 to 3.67)   4.26 (3.96 to 4.64)
    adjoint_radius of every 2nd image                 2.29 (2.09 to 2.47)   2.56 (2.39 to 2.73)
    adjoint_radius of every 4th image                 1.58 (1.42 to 1.70)   1.77 (1.68 to 1.99)
    ... of every image, classified on the mean        2.99 (2.69 to 3.12)   3.40 (3.28 to 3.43)
    ... of every image, all noise sampled             1.97 (1.82 to 2.18)   2.06 (1.94 to 2.11)
    Consistency and it                                2.63 (2.55 to 2.82)   2.66 (2.52 to 2.80)
    Consistency and 0.9 sampled, every 4th image      2.46 (2.37 to 2.64)   2.43 (2.34 to 2.56)
    Consistency and 0.9 sampled, every 16th image     2.15 (1.98 to 2.19)   2.07 (1.92 to 2.17)
    MACER, 16 copies                                  14.6 (14.4 to 14.6)   10.4 (10.2 to 11.0)
    one covariance per image (published code)         24.8 (24.2 to 25.0)

By its passes (a noisy copy's, the mean's, its gradient's, and the backward of all three) adjoint_radius of every image
counts 3.2 plain steps; the rest are the element-wise loops of Phi and its derivatives. Where all noise is sampled the
mean's pass is the copy's, and its gates are the ReLU's own: by its passes 2.2. PreActResNet-18, float32:
covariance_radius 1.29 (batch 64) and 1.21 (128), MACER's 16 copies without its loss 14.7 (64).
"""

import argparse

from covkeras.runtime import startup

startup.quiet_tensorflow()

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402
from per_image_covariance import PerImageCovariance  # noqa: E402

from covkeras import models, objectives  # noqa: E402
from covkeras.reports import results as report  # noqa: E402
from covkeras.runtime.timing import interleave, ratio_rows  # noqa: E402
from covkeras.training.trainer import CertifiedTrainer  # noqa: E402

CASES = {
    "lenet": (models.lenet, 128),
    "lenet_5x5 bfloat16": (models.lenet_5x5, 256),
    "resnet 64": (models.preact_resnet18, 64),
    "resnet": (models.preact_resnet18, 128),
}


def step(build, objective, images, labels):
    """A compiled train_step of its own trainer, as `fit` runs it."""
    trainer = CertifiedTrainer(build(), objective)
    trainer.compile(optimizer=keras.optimizers.SGD(0.001, momentum=0.9))
    trainer.optimizer.build(trainer.classifier.trainable_variables)
    # Traced by hand: TensorFlow would warn of one function, several trainers' method, that is traced over and over.
    compiled = tf.function(trainer.train_step, autograph=False).get_concrete_function((images, labels))
    return lambda: compiled((images, labels))["loss"].numpy()


def measure(title: str, rounds: int) -> list[list[str]]:
    build, batch = CASES[title]
    keras.config.set_dtype_policy("mixed_bfloat16" if "bfloat16" in title else "float32")
    images = tf.random.stateless_uniform((batch, *build().input_shape[1:]), [0, 0])
    labels = tf.random.stateless_uniform((batch,), [0, 1], 0, 10, tf.int64)
    sides = {
        "Gaussian augmentation": objectives.GaussianAugmentation(0.5),
        "covariance_radius": objectives.CovarianceRadius(0.5),
        "covariance_radius, gradient stopped at the covariance": objectives.CovarianceRadius(
            0.5, stop_covariance_gradient=True
        ),
        "Consistency, 2 copies": objectives.Consistency(0.5),
        "Consistency, antithetic": objectives.Consistency(0.5, antithetic=True),
        "adjoint_radius of every image": objectives.AdjointRadius(0.5),
        "adjoint_radius of every 2nd image": objectives.AdjointRadius(0.5, radius_every=2),
        "adjoint_radius of every 4th image": objectives.AdjointRadius(0.5, radius_every=4),
        "adjoint_radius of every image, classified on the mean": objectives.AdjointRadius(0.5, classify_on="mean"),
        "adjoint_radius of every image, all noise sampled": objectives.AdjointRadius(0.5, sampled_share=1.0),
        "Consistency and it": objectives.AdjointRadius(0.5, sampled_share=1.0, consistency=5.0),
    }
    for every in (4, 16):
        both = objectives.AdjointRadius(0.5, radius_every=every, consistency=5.0, sampled_share=0.9)
        sides[f"Consistency and adjoint_radius of every {every}th, 0.9 of the noise sampled"] = both
    fast = interleave({k: step(build, o, images, labels) for k, o in sides.items()}, rounds)
    rows = ratio_rows(title, fast)
    # The slow ones apart, in fewer rounds. A covariance per image of PreActResNet-18 takes tens of GB.
    slow = {"Gaussian augmentation": sides["Gaussian augmentation"], "MACER, 16 copies": objectives.Macer(0.5)}
    if title == "lenet":
        slow["one covariance per image (published code)"] = PerImageCovariance(0.5, 0.1)
    if title != "resnet":
        timed = interleave({k: step(build, o, images, labels) for k, o in slow.items()}, max(3, rounds // 5))
        rows += ratio_rows(title, timed)[1:]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=CASES, help="one case")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds (default 15)")
    flags = parser.parse_args()
    rows = [["classifier", "step", "ratio", "middle half", "rounds"]]
    for title in [flags.only] if flags.only else CASES:
        rows += measure(title, flags.rounds)
    print(report.plain(rows))


if __name__ == "__main__":
    main()
