"""How many samples an estimate of the logits' distribution needs, as images grow (the paper's Figure 1b)."""

import dataclasses
from collections.abc import Sequence

import keras
import numpy as np

from covkeras.models import preact_resnet18
from covkeras.runtime.validation import check_between, check_count


@dataclasses.dataclass(frozen=True)
class Growth:
    """Samples until a covariance matrix is known to within a relative error (Frobenius norm).

    sizes: (k,) heights of square images. logits: (k,) of the logits, measured. pixels: (k,) of the pixels themselves,
    (d + 1) / error^2 with d = 3 size^2, in closed form. error: the accuracy asked for.
    """

    sizes: tuple[int, ...]
    logits: tuple[float, ...]
    pixels: tuple[float, ...]
    error: float


def samples_needed(values: np.ndarray, error: float) -> float:
    """Returns how many rows estimate the covariance of the rows to within a relative error (Frobenius norm).

    From the mean squared error of disjoint groups of 64 rows against all of them, and its fall as 1 / n.

    Args:
        values: (samples, dimensions), at least 256 samples.
    """
    group = 64
    groups = values[: len(values) // group * group].reshape(-1, group, values.shape[1])
    truth = np.cov(values.T)
    squares = np.mean([np.linalg.norm(np.cov(g.T) - truth) ** 2 for g in groups]) / np.linalg.norm(truth) ** 2
    # A group is part of the whole it is compared with: that takes group / samples of its error away.
    squares /= 1.0 - group / len(values)
    return float((group - 1) * squares / error**2)


def growth(
    sizes: Sequence[int] = (8, 16, 32, 64), sigma: float = 0.5, error: float = 0.1, samples: int = 2_048, seed: int = 0
) -> Growth:
    """Measures `samples_needed` of a narrow PreActResNet-18 with random weights, for one random image of each size.

    Args:
        sizes: heights of square images. sigma: noise level. error: relative accuracy. samples: drawn for each size.
        seed: of weights, images and noise.
    """
    check_between("error", error, 0, 1)
    check_count("samples", samples, 256)
    needed = []
    for size in sizes:
        keras.utils.set_random_seed(seed)
        classifier = preact_resnet18((size, size, 3), width=8)
        rng = np.random.Generator(np.random.Philox(seed))
        for weight in classifier.trainable_variables:
            # The second convolutions start at zero, and would leave the network linear.
            if not np.any(weight.numpy()) and len(weight.shape) == 4:
                weight.assign(rng.normal(size=weight.shape) * np.sqrt(2.0 / np.prod(weight.shape[:-1])))
        image, logits = rng.random((size, size, 3), np.float32), []
        for _ in range(0, samples, 64):
            noisy = image + sigma * rng.standard_normal((64, size, size, 3), np.float32)
            logits.append(np.asarray(classifier(noisy, training=False), np.float64))
        needed.append(samples_needed(np.concatenate(logits), error))
    return Growth(tuple(sizes), tuple(needed), tuple((3 * s * s + 1) / error**2 for s in sizes), error)
