"""What one training step costs, as a ratio to a plain Gaussian-augmentation step of the same classifier.

    python benchmarks/training_step.py                     LeNets (128; bfloat16, 256), PreActResNet-18 (64 and 128)
    python benchmarks/training_step.py --only lenet --rounds 31

All sides run in turn in one process; a figure is the median of the ratios within a round, the middle half of the rounds
in brackets. Measured on two cores with AVX-512 and AMX, by `--only NAME`:

    step                                              LeNet, 128            lenet_5x5, bfloat16, 256
    covariance_radius                                 1.28 (1.25 to 1.36)   1.90 (1.77 to 2.01)
    ... with the gradient stopped at the covariance   1.20 (1.13 to 1.27)   1.56 (1.46 to 1.65)
    Consistency, 2 copies                             1.76 (1.60 to 1.85)   1.69 (1.54 to 1.77)
    Consistency, antithetic                           1.74 (1.57 to 1.80)   1.56 (1.49 to 1.71)
    adjoint_radius of every image                     3.41 (3.25 to 3.64)   4.32 (3.97 to 4.55)
    adjoint_radius of every 2nd image                 2.32 (2.10 to 2.37)   2.59 (2.44 to 2.69)
    adjoint_radius of every 4th image                 1.57 (1.37 to 1.65)   1.89 (1.77 to 2.02)
    ... of every image, classified on the mean        2.79 (2.56 to 3.03)   3.55 (3.43 to 3.84)
    ... of every image, all noise sampled             1.88 (1.73 to 1.92)   2.08 (1.92 to 2.14)
    Consistency and it                                2.63 (2.46 to 2.72)   2.73 (2.51 to 2.93)
    Consistency and 0.9 sampled, every 4th image      2.54 (2.38 to 2.61)   2.56 (2.37 to 2.78)
    Consistency and 0.9 sampled, every 16th image     2.03 (1.84 to 2.14)   2.15 (1.95 to 2.21)
    MACER, 16 copies                                  14.1 (13.9 to 14.8)   11.5 (10.5 to 11.5)
    one covariance per image (published code)         23.9 (23.5 to 25.0)

The covariance step with erf and exp in the place of `moments.quick`, in one process with it (21 rounds, twice): LeNet
1.44 and 1.38 against 1.38 and 1.33; bfloat16 2.03 and 2.06 against 1.87 and 1.84. With both functions free of charge it
would be 1.28 and 1.61, without the covariance's gradient besides 1.19 and 1.28: what is left of it is the covariance's
own tower (.1 and .24 alone), the sums of phi over the batch, and the margin.

By its passes (a noisy copy's, the mean's, its gradient's, and the backward of all three) adjoint_radius of every image
counts 3.2 plain steps; the rest are the element-wise loops of Phi and its derivatives. Where all noise is sampled the
mean's pass is the copy's, and its gates are the ReLU's own: by its passes 2.2. PreActResNet-18, float32:
covariance_radius 1.28 (batch 64) and 1.19 (128), MACER's 16 copies without its loss 14.7 (64).

Behind batch normalisation covariance_radius has a noisy copy's pass more. narrow_resnet, float32, batch 128, quiet, two
cores with AVX-512, 5 rounds: covariance_radius 1.95, Consistency 1.87, stepped_consistency 2.07 (with both copies'
gradients 2.31), MACER 18.3; on another such machine, since radii take the copies' statistics, 9 rounds:
covariance_radius 2.02, Consistency 1.98, the adjoint radius of every 4th image alone 1.68, with Consistency of every
16th 2.23.
"""

import argparse

from covkeras.runtime import startup

startup.quiet_tensorflow()

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402
from per_image_covariance import PerImageCovariance  # noqa: E402

from covkeras import models, objectives  # noqa: E402
from covkeras.objectives.copies import batch_normalizations  # noqa: E402
from covkeras.reports import results as report  # noqa: E402
from covkeras.runtime.timing import interleave, ratio_rows  # noqa: E402
from covkeras.training.trainer import CertifiedTrainer  # noqa: E402

CASES = {
    "lenet": (models.lenet, 128),
    "lenet_5x5": (models.lenet_5x5, 256),
    "lenet_5x5 bfloat16": (models.lenet_5x5, 256),
    "narrow_resnet": (models.narrow_resnet, 128),
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


def repeated(call, times: int):
    return lambda: [call() for _ in range(times)]


def measure(title: str, rounds: int, match: list[str]) -> list[list[str]]:
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
        "stepped_consistency": objectives.SteppedConsistency(0.5, detached=False),
        "stepped_consistency, detached": objectives.SteppedConsistency(0.5),
        "adjoint_radius of every image": objectives.AdjointRadius(0.5),
        "adjoint_radius of every 2nd image": objectives.AdjointRadius(0.5, radius_every=2),
        "adjoint_radius of every 4th image": objectives.AdjointRadius(0.5, radius_every=4),
        "adjoint_radius of every 4th image, 0.9 of the noise sampled": objectives.AdjointRadius(
            0.5, radius_every=4, sampled_share=0.9
        ),
        "adjoint_radius of every image, all noise sampled": objectives.AdjointRadius(0.5, sampled_share=1.0),
        "Consistency and it": objectives.AdjointRadius(0.5, sampled_share=1.0, consistency=5.0),
    }
    normalised = bool(batch_normalizations(build()))
    if not normalised:
        on_the_mean = objectives.AdjointRadius(0.5, classify_on="mean")
        sides["adjoint_radius of every image, classified on the mean"] = on_the_mean
    for every in (4, 16):
        both = objectives.AdjointRadius(0.5, radius_every=every, consistency=5.0, sampled_share=0.9)
        sides[f"Consistency and adjoint_radius of every {every}th, 0.9 of the noise sampled"] = both
    if match:
        first = next(iter(sides))
        sides = {k: o for k, o in sides.items() if k == first or any(text in k for text in match)}
    fast = interleave({k: step(build, o, images, labels) for k, o in sides.items()}, rounds)
    rows = ratio_rows(title, fast)
    if match:
        return rows
    # Its steps differ: 16 of each side in a turn. Not behind batch normalisation.
    if not normalised:
        some = objectives.CovarianceRadius(0.5, covariance_gradient_every=4)
        mixed = {name: sides[name] for name in ("Gaussian augmentation", "covariance_radius")}
        mixed["covariance_radius, gradient in every 4th step"] = some
        several = {k: repeated(step(build, o, images, labels), 16) for k, o in mixed.items()}
        rows += ratio_rows(title, interleave(several, max(3, rounds // 3)))[2:]
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
    parser.add_argument(
        "--match", nargs="+", default=[], metavar="TEXT", help="only sides with one of these in the name"
    )
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds (default 15)")
    flags = parser.parse_args()
    rows = [["classifier", "step", "ratio", "middle half", "rounds"]]
    for title in [flags.only] if flags.only else CASES:
        rows += measure(title, flags.rounds, flags.match)
    print(report.plain(rows))


if __name__ == "__main__":
    main()
