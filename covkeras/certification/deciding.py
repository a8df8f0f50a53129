"""Sequential certification, an image at a time as each is decided: one radius, a grid of them, or to a precision.

The work is lazy; the arguments are checked at once. See `SmoothedClassifier.certify_at`,
`certify_grid` and `certify_to`.
"""

import itertools
import math
from collections.abc import Iterable, Iterator

import numpy as np

from covkeras.certification.certificates import ABSTAIN, Certificates, RadiusDecisions
from covkeras.certification.noise import check_seed
from covkeras.certification.sampling import Sampled, sample_until
from covkeras.certification.sequential import Decision, anytime_lower, hits_to_decide, required_probability
from covkeras.certification.stopping import RadiiTest, RadiusPrecision, RadiusTest, levels
from covkeras.certification.voting import BLOCK
from covkeras.runtime.validation import check_alpha, check_between, check_count, check_switch


def certify_at_each(
    smoothed, images, radius, alpha=0.001, max_n=100_000, n0=0, seed=0, indices=None, bets=None, give_up=0.01, index=0
) -> Iterator[tuple[int, RadiusDecisions]]:
    """Yields (position, RadiusDecisions of length 1) as the images are decided, in any order."""
    check_between("radius", radius, 0, math.inf, closed="left")
    images, indices = _checked(smoothed, images, indices=indices, index=index, alpha=alpha, max_n=max_n, n0=n0)
    check_between("give_up", give_up, 0, 0.5, closed="left")
    _check_reach(max_n, required_probability(radius, smoothed.sigma), levels(alpha, n0 == 0)[0], f"radius {radius:g}")
    if bets is not None:
        bets = np.asarray(bets, np.float64)
        if bets.shape != (len(images), 2) or not np.isfinite(bets).all() or (bets <= 0).any():
            raise ValueError(f"bets must be {len(images)} pairs (a, b) above 0, one for each image, got {bets!r}.")
    p0 = required_probability(radius, smoothed.sigma)
    rule = RadiusTest(p0, alpha, max_n=max_n, give_up=give_up, bets=bets, twice=n0 == 0)
    sampled = _sampled(smoothed, images, indices=indices, seed=seed, n0=n0, max_n=max_n, rule=rule)
    return ((image.position, _decision(image, radius)) for image in _reported(smoothed, sampled, indices))


def certify_grid_each(
    smoothed, images, radii, alpha=0.001, max_n=100_000, n0=0, seed=0, indices=None, give_up=0.01, index=0
) -> Iterator[tuple[int, Certificates]]:
    """Yields (position, Certificates of length 1) as the images' places among the radii are decided, in any order."""
    if isinstance(radii, str) or not isinstance(radii, Iterable):
        raise ValueError(f"radii must be a list of numbers, such as [0.0, 0.25, 0.5], got {radii!r}.")
    radii = [check_between("radii", radius, 0, math.inf, closed="left") for radius in radii]
    if not radii or any(b <= a for a, b in itertools.pairwise(radii)):
        raise ValueError(f"radii must be increasing, and at least one, got {radii}.")
    images, indices = _checked(smoothed, images, indices=indices, index=index, alpha=alpha, max_n=max_n, n0=n0)
    check_between("give_up", give_up, 0, 0.5, closed="left")
    p0s = [required_probability(radius, smoothed.sigma) for radius in radii]
    _check_reach(max_n, p0s[-1], levels(alpha, n0 == 0)[0], f"radius {radii[-1]:g}")
    rule = RadiiTest(p0s, alpha, max_n=max_n, give_up=give_up, twice=n0 == 0)
    sampled = _sampled(smoothed, images, indices=indices, seed=seed, n0=n0, max_n=max_n, rule=rule)
    return ((image.position, _placed(image, rule, radii, p0s)) for image in _reported(smoothed, sampled, indices))


def _placed(image: Sampled, rule: RadiiTest, radii, p0s) -> Certificates:
    """The certificate of the largest radius up to which all are certified; an abstention where none is."""
    count = image.verdict if image.verdict is not None else rule.certified.get((image.position, image.again), 0)
    return Certificates.single(
        image.label if count else ABSTAIN,
        radii[count - 1] if count else 0.0,
        p_lower=p0s[count - 1] if count else 0.0,
        samples=image.given * BLOCK,
        seconds=image.seconds,
        void=image.void,
    )


def _sampled(smoothed, images, indices, seed, n0: int, max_n: int, rule) -> Iterator[Sampled]:
    """Samples the images, the class chosen by n0 samples, or by the classifier's own answer for the image."""
    check_seed(seed)
    labels = None if n0 else smoothed.ballot.classes(images)
    how = {"seed": seed, "n0": n0, "max_n": max_n, "rule": rule, "labels": labels}
    return sample_until(smoothed.ballot, images, indices=indices, **how)


def _decision(image: Sampled, radius: float) -> RadiusDecisions:
    certified, decided = image.verdict == Decision.ABOVE, image.verdict not in (None, Decision.UNDECIDED)
    return RadiusDecisions.single(
        label=image.label,
        certified=certified,
        decided=decided,
        samples=image.given * BLOCK,
        hits=image.hits,
        trials=image.trials,
        seconds=image.seconds,
        radius=radius,
        void=image.void,
    )


def certify_to_each(
    smoothed, images, tolerance, alpha=0.001, max_n=100_000, n0=64, seed=0, indices=None, index=0, runner_up=False
) -> Iterator[tuple[int, Certificates]]:
    """Yields (position, Certificates of length 1) as the images' radii are precise enough, in any order."""
    check_between("tolerance", tolerance, 0, math.inf)
    check_switch("runner_up", runner_up)
    images, indices = _checked(smoothed, images, indices=indices, index=index, alpha=alpha, max_n=max_n, n0=n0, least=1)
    _check_reach(max_n, 0.5, alpha, "any radius")
    rule = RadiusPrecision(tolerance, smoothed.sigma, alpha, max_n, smoothed.num_classes if runner_up else 0)
    sampled = sample_until(
        smoothed.ballot, images, indices=indices, seed=check_seed(seed), n0=n0, max_n=max_n, rule=rule
    )
    done = _reported(smoothed, sampled, indices)
    return ((image.position, _certificate(image, rule)) for image in done)


def _reported(smoothed, sampled, indices) -> Iterator[Sampled]:
    for image in sampled:
        smoothed.report_void([image.void], image.given * BLOCK, [indices[image.position]])
        yield image


def _certificate(image: Sampled, rule: RadiusPrecision) -> Certificates:
    p_lower, p_upper, radius = rule.certified(image.position)
    label = image.label if radius > 0 else ABSTAIN
    known = {"samples": image.given * BLOCK, "seconds": image.seconds, "void": image.void}
    return Certificates.single(label, radius, p_lower=p_lower, p_upper=p_upper, **known)


def _checked(smoothed, images, indices, index, alpha, max_n, n0, least: int = 0):
    check_alpha(alpha)
    check_count("n0", n0, least)
    check_count("max_n", max_n, BLOCK, 10**9)
    return smoothed.checked(images, indices, index)


def _check_reach(max_n: int, p0: float, alpha: float, what: str) -> None:
    """Refuses a max_n at which not even a hit with every sample would decide for the image."""

    def reaches(blocks):
        n = blocks * BLOCK
        return anytime_lower(n, n, alpha) > 0.5 if p0 <= 0.5 else hits_to_decide(n, p0, alpha) <= n

    low = max_n // BLOCK
    if reaches(low):
        return
    high = 2 * low
    while not reaches(high) and high < 10**9:
        high = 2 * high
    while high > low + 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    raise ValueError(
        f"max_n must be at least {high * BLOCK:,} to certify {what} at alpha {alpha:g}: with {max_n:,} samples every "
        "image would be refused, whatever its votes."
    )
