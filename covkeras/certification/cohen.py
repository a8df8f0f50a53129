"""PREDICT and CERTIFY of Cohen, Rosenfeld, Kolter (ICML 2019), whole: Monte Carlo with the number of samples fixed.

SAMPLE_UNDER_NOISE is `Ballot.count`: how often each class wins among n noisy copies of an image.
"""

import time
from collections.abc import Iterator

import numpy as np

from covkeras.certification.certificates import ABSTAIN, Certificates, Predictions
from covkeras.certification.confidence import (
    MAX_TRIALS,
    OTHERS,
    certified_radius,
    clopper_pearson_lower,
    clopper_pearson_upper,
    top_two_differ,
    two_sided_radius,
)
from covkeras.certification.noise import ESTIMATION, PREDICTION, SELECTION, check_seed
from covkeras.runtime.validation import (
    check_alpha,
    check_count,
    check_enough,
    check_enough_to_predict,
    check_switch,
)

# Images certified together where they share their noise, and where all of them take no longer than so many seconds:
# between groups no noise is drawn while a batch is classified. A certificate does not hang on its group.
GROUP, GROUP_SECONDS = 16, 0.25


def predict(smoothed, images, n, alpha, seed=0, indices=None, index=0) -> Predictions:
    """PREDICT: the class with the most votes, or abstention. See `SmoothedClassifier.predict`."""
    check_count("n", n)
    check_alpha(alpha)
    check_enough_to_predict("n", n, alpha)
    images, indices = smoothed.checked(images, indices, index)
    seed, counts = check_seed(seed), np.zeros((len(images), smoothed.num_classes), np.int64)
    for part in groups(smoothed.shared_noise, len(images)):
        counts[part] = smoothed.ballot.count(images[part], indices[part], PREDICTION, n, seed)
    smoothed.report_void(n - counts.sum(1), n, indices)
    second, first = np.sort(counts, 1)[:, -2:].T
    label = np.where(top_two_differ(first, second, alpha), counts.argmax(1), ABSTAIN)
    return Predictions(label, counts)


def certify_each(
    smoothed, images, n0, n, alpha, seed=0, indices=None, index=0, runner_up=False
) -> Iterator[tuple[int, Certificates]]:
    """CERTIFY: yields (position, Certificates of length 1). The arguments are checked at once, the work is lazy."""
    check_count("n0", n0)
    check_count("n", n, high=MAX_TRIALS)
    check_alpha(alpha)
    check_enough("n", n, alpha)
    check_switch("runner_up", runner_up)
    seed = check_seed(seed)
    images, indices = smoothed.checked(images, indices, index)
    parts = groups(smoothed.shared_noise, len(images))
    how = {"n0": n0, "n": n, "alpha": alpha, "seed": seed, "runner_up": runner_up}
    done = (c for part in parts for c in _certify_group(smoothed, images[part], indices=indices[part], **how))
    return enumerate(done)


def bounds_of(votes, labels, n: int, alpha: float, sigma: float, runner_up: bool = False):
    """Returns what n votes say of each image: p_lower, p_upper (NaN without the runner-up), radius; float64 (images,).

    With the runner-up p_A is bounded at nine tenths of alpha, and every other class at its share of the last: together
    they hold with probability 1 - alpha. A vote that was void may have been any class'.

    Args:
        votes: int (images, classes). labels: (images,), chosen on other samples. n, alpha, sigma: as of `certify_each`.
    """
    rows = np.arange(len(labels))
    hits, void = votes[rows, labels], n - votes.sum(1)
    if not runner_up:
        p_lower = clopper_pearson_lower(hits, n, alpha)
        return p_lower, np.full(len(labels), np.nan), np.asarray(certified_radius(p_lower, sigma))
    p_lower = clopper_pearson_lower(hits, n, (1.0 - OTHERS) * alpha)
    others = votes + void[:, None]
    others[rows, labels] = 0
    p_upper = clopper_pearson_upper(others.max(1), n, OTHERS * alpha / (votes.shape[1] - 1))
    # Nobody has more than what is left.
    p_upper = np.minimum(p_upper, (1.0 - p_lower) * (1.0 + 1e-15))
    return p_lower, p_upper, two_sided_radius(p_lower, p_upper, sigma)


def _certify_group(smoothed, images, indices, n0, n, alpha, seed, runner_up) -> Iterator[Certificates]:
    start = time.perf_counter()
    # n0 samples choose the class, n others bound its probability: chosen on the same, the bound would not hold.
    choice = smoothed.ballot.count(images, indices, SELECTION, n0, seed)
    votes = smoothed.ballot.count(images, indices, ESTIMATION, n, seed)
    labels = choice.argmax(1)
    void = n0 + n - choice.sum(1) - votes.sum(1)
    smoothed.report_void(void, n0 + n, indices)
    bounds = bounds_of(votes, labels, n=n, alpha=alpha, sigma=smoothed.sigma, runner_up=runner_up)
    seconds = (time.perf_counter() - start) / len(images)
    for label, p, other, radius, lost in zip(labels, *bounds, void, strict=True):
        # p_lower <= 1/2 abstains. So does a radius of 0: it claims nothing.
        known = {"p_lower": p, "p_upper": other, "samples": n0 + n, "seconds": seconds, "void": lost}
        yield Certificates.single(label if radius > 0 else ABSTAIN, radius, **known)


def groups(shared_noise: bool, count: int) -> Iterator[slice]:
    """The images that are sampled together: `GROUP` where they share their noise, else as many as are done soon."""
    size, first = GROUP if shared_noise else 1, 0
    while first < count:
        start = time.perf_counter()
        yield slice(first, min(first + size, count))
        first += size
        if not shared_noise:
            each = (time.perf_counter() - start) / size
            size = min(2 * size, GROUP, max(1, int(GROUP_SECONDS / each)))
