"""Sequential certification, an image at a time as each is decided: one radius, or radii to a precision.

The work is lazy; the arguments are checked at once. See `SmoothedClassifier.certify_at` and `certify_to`.
"""

import math
from collections.abc import Iterator

import numpy as np

from covkeras.certification.certificates import ABSTAIN, Certificates, RadiusDecisions
from covkeras.certification.confidence import certified_radius
from covkeras.certification.noise import check_seed
from covkeras.certification.sampling import Sampled, sample_until
from covkeras.certification.sequential import Decision, required_probability
from covkeras.certification.stopping import RadiusPrecision, RadiusTest
from covkeras.certification.voting import BLOCK
from covkeras.validation import check_alpha, check_between, check_count


def decide_each(
    smoothed, images, radius, alpha=0.001, max_n=100_000, n0=64, seed=0, indices=None, bets=None, give_up=0.01
) -> Iterator[tuple[int, RadiusDecisions]]:
    """Yields (position, RadiusDecisions of length 1) as the images are decided, in any order."""
    check_between("radius", radius, 0, math.inf, closed="left")
    images, indices = _checked(smoothed, images, indices, alpha, max_n, n0)
    check_between("give_up", give_up, 0, 0.5, closed="left")
    if bets is not None:
        bets = np.asarray(bets, np.float64)
        if bets.shape != (len(images), 2) or not np.isfinite(bets).all() or (bets <= 0).any():
            raise ValueError(f"bets must be {len(images)} pairs (a, b) above 0, one for each image, got {bets!r}.")
    rule = RadiusTest(required_probability(radius, smoothed.sigma), alpha, max_n, give_up, bets)
    sampled = sample_until(smoothed.ballot, images, indices, check_seed(seed), n0, max_n, rule)
    return ((image.position, _decision(image, radius)) for image in sampled)


def _decision(image: Sampled, radius: float) -> RadiusDecisions:
    certified, decided = image.verdict == Decision.ABOVE, image.verdict not in (None, Decision.UNDECIDED)
    values = (image.label, certified, decided, image.given * BLOCK, image.hits, image.trials, image.seconds)
    return RadiusDecisions.single(*values, radius)


def certify_to_each(
    smoothed, images, tolerance, alpha=0.001, max_n=100_000, n0=64, seed=0, indices=None
) -> Iterator[tuple[int, Certificates]]:
    """Yields (position, Certificates of length 1) as the images' radii are precise enough, in any order."""
    check_between("tolerance", tolerance, 0, math.inf)
    images, indices = _checked(smoothed, images, indices, alpha, max_n, n0)
    rule = RadiusPrecision(tolerance, smoothed.sigma, alpha, max_n)
    sampled = sample_until(smoothed.ballot, images, indices, check_seed(seed), n0, max_n, rule)
    return ((image.position, _certificate(image, rule, smoothed.sigma)) for image in sampled)


def _certificate(image: Sampled, rule: RadiusPrecision, sigma: float) -> Certificates:
    p_lower = rule.best.get(image.position, 0.0)
    radius = float(certified_radius(p_lower, sigma))
    label = image.label if radius > 0 else ABSTAIN
    return Certificates.single(label, radius, p_lower, image.given * BLOCK, image.seconds)


def _checked(smoothed, images, indices, alpha, max_n, n0):
    check_alpha(alpha)
    check_count("n0", n0)
    check_count("max_n", max_n, BLOCK, 10**9)
    return smoothed.checked(images, indices)
