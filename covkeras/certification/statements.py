"""What certificates of some images say of all: over the images *and* the noise, with a stated confidence.

A certificate speaks of one image. Let a(r) be the share, among all the images that the test images were drawn from, of
those whose label the classifier gives under noise with probability at least Phi(r / sigma): on each of these the
smoothed classifier is right within r. An image of the others is counted as certified with probability at most alpha.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

from covkeras.certification.certificates import Certificates, counted_at
from covkeras.certification.confidence import clopper_pearson_lower
from covkeras.runtime.validation import check_alpha, check_between, check_count, check_radii, check_switch

# A little less is not too much: float64's last digits.
_DOWN = 1.0 - 1e-12


def certified_accuracy_lower(
    certificates: Certificates,
    labels,
    radii: Sequence[float],
    alpha: float,
    beta: float = 0.05,
    shared_noise: bool = False,
) -> np.ndarray:
    """Returns, for each of `radii` by itself, a lower bound on a(r), wrong with probability at most beta.

    Each image counts with probability at most q = a + (1 - a) alpha, so that the number K that does has P(K >= k) at
    most the binomial's; of q's Clopper-Pearson bound L follows a >= (L - alpha) / (1 - alpha).

    With noise shared by the images they are independent only given the noise, and an unlucky draw counts many falsely:
    the share of false ones exceeds alpha / (beta / 2) with probability at most beta / 2 (Markov), so that a >= L - 2
    alpha / beta with L at level beta / 2.

    Args:
        certificates: of images that were drawn at random and chosen without regard to what they are; labels: (images,).
        radii: in [0, 1] pixel units. alpha: of each certificate. beta: the probability that a bound is wrong.
        shared_noise: whether the images were certified with one stream of noise.

    Returns:
        float64 (radii,), in [0, 1].

    Raises:
        ValueError: alpha, beta in (0, 1); labels of another length; no images.
    """
    check_alpha(alpha)
    check_between("beta", beta, 0, 1)
    check_switch("shared_noise", shared_noise)
    counted = np.array([counted_at(certificates, labels, radius).sum() for radius in check_radii(radii)], np.int64)
    images = len(certificates)
    level = clopper_pearson_lower(counted, images, beta / 2 if shared_noise else beta) if len(counted) else counted
    bound = level - 2 * alpha / beta if shared_noise else (level - alpha) / (1.0 - alpha)
    return np.clip(bound * _DOWN, 0.0, 1.0)


class Paired(NamedTuple):
    """Two classifiers on the same images at one radius.

    first_only, second_only: images that one certifies (rightly) and the other does not. images: all. p_value: of
    McNemar's exact test that both are as likely. difference: of the certified accuracies, first less second; error: its
    standard error over the images.
    """

    first_only: int
    second_only: int
    images: int
    p_value: float
    difference: float
    error: float


def compare_certified(first: Certificates, second: Certificates, labels, radius: float) -> Paired:
    """Compares two classifiers' certified accuracies at a radius, image by image (McNemar's exact test).

    Args:
        first, second: certificates of the same images in the same order. labels: (images,). radius: >= 0.

    Raises:
        ValueError: lengths that differ; no images.
    """
    for name, given in (("first", first), ("second", second)):
        if not isinstance(given, Certificates):
            raise TypeError(f"{name} must be Certificates, got {type(given).__name__}.")
    if len(first) != len(second):
        raise ValueError(f"second must have the first's {len(first)} images, got {len(second)}.")
    check_between("radius", radius, 0, math.inf, closed="left")
    here, there = (counted_at(c, labels, radius) for c in (first, second))
    b, c, images = int((here & ~there).sum()), int((there & ~here).sum()), len(first)
    p_value = float(scipy.stats.binomtest(b, b + c, 0.5).pvalue) if b + c else 1.0
    error = math.sqrt(max(b + c - (b - c) ** 2 / images, 0.0)) / images
    return Paired(b, c, images, p_value, (b - c) / images, error)


def images_needed(accuracy: float = 0.5, within: float = 0.01, beta: float = 0.05) -> int:
    """Returns how many images to certify to know a certified accuracy to +- `within`, with confidence 1 - beta: from
    there on both ends of Clopper and Pearson's two-sided interval are that near.

    Args:
        accuracy: about what it is; 0.5 needs the most.

    Raises:
        ValueError: accuracy in [0, 1]; within, beta in (0, 1).
    """
    check_between("accuracy", accuracy, 0, 1, closed="both")
    check_between("within", within, 0, 1)
    check_between("beta", beta, 0, 1)

    def near(images: int) -> bool:
        k = round(accuracy * images)
        low = scipy.stats.beta.ppf(beta / 2, k, images - k + 1) if k else 0.0
        high = scipy.stats.beta.ppf(1 - beta / 2, k + 1, images - k) if k < images else 1.0
        return max(k / images - low, high - k / images) <= within

    high = check_count("images", 1)
    while not near(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if near(middle) else (middle, high)
    # Rounding k moves the ends a little to and fro: from here on all are near.
    while not all(near(images) for images in range(high, high + max(2, math.ceil(1 / max(accuracy, 0.1))))):
        high += 1
    return high
