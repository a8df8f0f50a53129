"""Noisy labels (the paper's Sec. 4.2)."""

import numpy as np

from covkeras.runtime.validation import check_between, check_labels


def pair_flip(labels, classes: int, rate: float, seed: int = 0) -> np.ndarray:
    """Flips label i to i + 1 (the last to 0) with probability `rate`, each label for itself.

    Args:
        labels: (count,) integers. classes: their number. rate: in [0, 1). seed: of the flips.

    Returns:
        (count,) int64.
    """
    check_between("label_noise", rate, 0, 1, closed="left")
    labels = check_labels(labels, classes)
    flipped = np.random.default_rng([seed, 20_210]).random(len(labels)) < rate
    return np.where(flipped, (labels + 1) % classes, labels)
