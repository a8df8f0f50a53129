"""When to stop sampling an image. Whatever a rule says, the bounds of `sequential` hold at the time it stops."""

import math

import numpy as np
import scipy.special

from covkeras.certification.confidence import OTHERS, certified_radius, two_sided_radius
from covkeras.certification.sequential import (
    UNINFORMED,
    Decision,
    anytime_lower,
    anytime_upper,
    decide,
    hits_to_decide,
)
from covkeras.certification.voting import BLOCK
from covkeras.runtime.validation import check_between, check_sigma


def levels(alpha: float, twice: bool) -> np.ndarray:
    """Returns the alphas of an image's first and second class: where one may be tried, nine tenths and a tenth."""
    return np.array([0.9 * alpha, 0.1 * alpha]) if twice else np.array([alpha, alpha])


class RadiusTest:
    """Stops when it is decided whether p > p0, either way, or when max_n samples will hardly decide it.

    The last gives no verdict on p, only the image up: the chance that the wealth after max_n samples reaches 1 / alpha,
    given the samples so far (posterior of a Beta(1/2, 1/2) prior, normal approximation), is below `give_up`. Giving up
    loses at most certificates, never makes one.

    Args:
        p0: the probability to exceed. alpha: of a wrong ABOVE, and of a wrong NOT_ABOVE. max_n: samples at most.
        give_up: 0 never gives up. bets: None, or (images, 2), each image's (a, b). twice: whether a second class may be
            tried: the first is tested at 0.9 alpha, the second at 0.1 alpha; together at alpha.
    """

    def __init__(self, p0: float, alpha: float, max_n: int, give_up: float, bets=None, twice: bool = False):
        self.p0, self.max_n, self.bets = p0, max_n, bets
        self.alpha, self.levels = alpha, levels(alpha, twice)
        self._unlikely = -float(scipy.special.ndtri(give_up))
        self._needed = np.array([hits_to_decide(max_n, p0, level) for level in self.levels])

    def __call__(self, positions, hits, trials, again=None) -> list[Decision | None]:
        bet = UNINFORMED if self.bets is None else tuple(self.bets[positions].T)
        second = np.zeros(len(hits), int) if again is None else np.asarray(again, int)
        decisions = decide(hits, trials, self.p0, self.levels[second], self.alpha, bet=bet)
        hopeless = self._lacking(hits, trials, self._needed[second]) > self._unlikely
        settled = (decisions != Decision.UNDECIDED) | hopeless
        return [Decision(int(d)) if s else None for d, s in zip(decisions, settled, strict=True)]

    def may_gain(self, votes, verdict) -> bool:
        """Whether the class with most votes may have p > p0, where the first one has not: it costs samples, no more."""
        return verdict != Decision.ABOVE and promising(votes, self.p0)

    def _lacking(self, hits, trials, needed) -> np.ndarray:
        """How many standard deviations the hits still needed lie above those to be expected."""
        left = self.max_n - trials
        p = (hits + 0.5) / (trials + 1)
        deviation = np.sqrt(p * (1 - p) * left * (1 + left / trials))
        return (needed - hits - left * p) / np.maximum(deviation, 1e-9)


class RadiiTest:
    """Decides a whole grid of radii on the same samples: the largest one up to which all are certified.

    The radii are tested in their order, each at alpha, on all samples so far, and the first that is not certified ends
    it: to certify falsely, the smallest radius beyond the image's own must be certified, and that has probability at
    most alpha (fixed-sequence testing). The verdict is the number of radii certified.

    Args:
        p0s: the probabilities to exceed, increasing. Others as `RadiusTest`'s.
    """

    def __init__(self, p0s, alpha: float, max_n: int, give_up: float, twice: bool = False):
        self.tests = [RadiusTest(p0, alpha, max_n, give_up, twice=twice) for p0 in p0s]
        self.certified: dict[tuple[int, bool], int] = {}

    def __call__(self, positions, hits, trials, again=None) -> list[int | None]:
        again = np.zeros(len(hits), bool) if again is None else np.asarray(again, bool)
        verdicts: list[int | None] = [None] * len(hits)
        # Image by image in the order of its samples; an image's radii, as long as one after the other is certified.
        open_ = list(range(len(hits)))
        while open_:
            at = np.array([self.certified.get((int(positions[i]), bool(again[i])), 0) for i in open_])
            later = []
            for k in np.unique(at):
                these = np.array(open_)[at == k]
                if k == len(self.tests):
                    # Looks after the one that certified the last radius.
                    for i in these:
                        verdicts[i] = int(k)
                    continue
                decided = self.tests[k](positions[these], hits[these], trials[these], again[these])
                later += self._taken(k, these, decided, positions, again, verdicts)
            open_ = sorted(later)
        return verdicts

    def _taken(self, k: int, these, decided, positions, again, verdicts) -> list[int]:
        """Notes the verdicts on radius k; returns the looks that the next radius must be asked about."""
        later = []
        for i, verdict in zip(these, decided, strict=True):
            key = (int(positions[i]), bool(again[i]))
            if self.certified.get(key, 0) > k:
                # An earlier look of this round has certified it.
                later.append(int(i))
            elif verdict == Decision.ABOVE:
                self.certified[key] = k + 1
                if k + 1 == len(self.tests):
                    verdicts[i] = k + 1
                else:
                    later.append(int(i))
            elif verdict is not None:
                verdicts[i] = k
        return later

    def may_gain(self, votes, verdict) -> bool:
        """Whether the class with most votes may have the smallest radius, where the first one has none."""
        return verdict == 0 and promising(votes, self.tests[0].p0)


def promising(votes, p0: float) -> bool:
    """Whether the class with most votes is within three standard errors of p0, or above."""
    total = max(int(votes.sum()), 1)
    return votes.max() / total + 3 * np.sqrt(p0 * (1 - p0) / total) >= p0


class RadiusPrecision:
    """Stops when the bounds' radius is within `tolerance` of what max_n samples could still give.

    What they could give are the bounds after max_n samples with as many hits as the upper bound on p_A allows, and as
    few of the runner-up as the lower bound on p_B does; no more than those there are plus all that are left, and no
    fewer than those there are. Looks when the samples have grown by a tenth: each look costs bisections. The bounds
    are running ones, the best so far: each holds at all times together.

    Args:
        tolerance: in the units of sigma. sigma: noise level. alpha: of the bounds, and of missing the tolerance.
        max_n: samples at most. classes: their number, where every other class is bounded, too, each by a wealth of its
            own: p_A at nine tenths of alpha, the classes at equal shares of the last. 0: p_B is taken as 1 - p_A.
    """

    def __init__(self, tolerance: float, sigma: float, alpha: float, max_n: int, classes: int = 0):
        self.tolerance, self.sigma, self.max_n = tolerance, sigma, max_n
        self.runner_up = classes > 0
        self.alpha = (1.0 - OTHERS) * alpha if classes else alpha
        self.alpha_other = OTHERS * alpha / max(classes - 1, 1)
        self.bounds: dict[int, tuple[float, float]] = {}
        self._next: dict[int, float] = {}

    def __call__(self, positions, hits, trials, again=None, others=None) -> list[float | None]:
        """others: (looks,), the most votes that another class may have of the trials; needed with `classes`."""
        verdicts: list[float | None] = [None] * len(hits)
        due = [i for i, t in enumerate(trials) if self._is_due(positions[i], t)]
        if due:
            hits, trials = hits[due], trials[due]
            others = others[due] if self.runner_up else trials
            running = [
                self._kept(int(positions[i]), *now)
                for i, *now in zip(due, *self._bounds(hits, others, trials), strict=True)
            ]
            radii = self._radius(*np.transpose(running))
            could = self._radius(*self._bounds(*self._could(hits, others, trials), self.max_n))
            for i, radius, best in zip(due, radii, could, strict=True):
                verdicts[i] = float(radius) if best - radius <= self.tolerance else None
        return verdicts

    def certified(self, position: int) -> tuple[float, float, float]:
        """p_lower, p_upper (NaN without the runner-up) and the radius of the bounds so far; all rounded down, or up."""
        low, high = self.bounds.get(position, (0.0, 1.0))
        return low, high if self.runner_up else math.nan, float(self._radius(low, high))

    def _kept(self, position: int, low: float, high: float) -> tuple[float, float]:
        """The running bounds. Nobody has more than what p_A leaves."""
        before = self.bounds.get(position, (0.0, 1.0))
        low = max(low, before[0])
        self.bounds[position] = low, min(high, before[1], (1.0 - low) * (1.0 + 1e-15))
        return self.bounds[position]

    def _is_due(self, position: int, trials: int) -> bool:
        # The last look is always due.
        due = trials >= self._next.get(int(position), 0) or trials + BLOCK > self.max_n
        if due:
            self._next[int(position)] = 1.1 * trials
        return due

    def _bounds(self, hits, others, trials):
        """Of p_A from below and of every other class' p from above."""
        low = anytime_lower(hits, trials, self.alpha)
        if not self.runner_up:
            return low, np.ones_like(low)
        return low, anytime_upper(others, trials, self.alpha_other)

    def _could(self, hits, others, trials):
        """The hits, and the runner-up's, that max_n samples may still bring."""
        most = np.ceil(anytime_upper(hits, trials, self.alpha) * self.max_n)
        least = np.floor(anytime_lower(others, trials, self.alpha_other) * self.max_n)
        return np.clip(most, hits, hits + self.max_n - trials), np.maximum(least, others)

    def _radius(self, low, high):
        one = np.asarray(certified_radius(low, self.sigma))
        return np.maximum(one, two_sided_radius(low, high, self.sigma)) if self.runner_up else one


def informed_bet(radius: float, sigma: float, weight: float) -> tuple[float, float]:
    """Returns the (a, b) of a bet that expects p = Phi(radius / sigma) as surely as `weight` samples would show it.

    radius: a guess fixed before any sample is seen, such as the propagated radius, in the units of sigma.
    """
    check_between("radius", radius, -math.inf, math.inf)
    check_between("weight", weight, 0, math.inf)
    check_sigma(sigma)
    p = float(np.clip(scipy.special.ndtr(radius / sigma), 1e-3, 1 - 1e-3))
    return max(weight * p, 1e-3), max(weight * (1 - p), 1e-3)
