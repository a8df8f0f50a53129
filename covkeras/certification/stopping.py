"""When to stop sampling an image. Whatever a rule says, the bounds of `sequential` hold at the time it stops."""

import numpy as np
import scipy.special

from covkeras.certification.sequential import (
    UNINFORMED,
    Decision,
    anytime_lower,
    anytime_upper,
    decide,
    hits_to_decide,
)
from covkeras.certification.voting import BLOCK


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
    """Stops when the lower bound's radius is within `tolerance` of what max_n samples could still give.

    What they could give is the bound after max_n samples with as many hits as the upper bound on p allows, and no more
    than those there are plus all that are left. Looks when the samples have grown by a tenth: each look costs two
    bisections. The verdict is the running maximum of the lower bounds.

    Args:
        tolerance: in the units of sigma. sigma: noise level. alpha: of the lower bound, and of missing the tolerance.
        max_n: samples at most.
    """

    def __init__(self, tolerance: float, sigma: float, alpha: float, max_n: int):
        self.tolerance, self.sigma, self.alpha, self.max_n = tolerance, sigma, alpha, max_n
        self.best: dict[int, float] = {}
        self._next: dict[int, float] = {}

    def __call__(self, positions, hits, trials, again=None) -> list[float | None]:
        verdicts: list[float | None] = [None] * len(hits)
        due = [i for i, t in enumerate(trials) if self._is_due(positions[i], t)]
        if due:
            low = anytime_lower(hits[due], trials[due], self.alpha)
            could = self._could(hits[due], trials[due])
            for j, i in enumerate(due):
                at = int(positions[i])
                self.best[at] = max(self.best.get(at, 0.0), float(low[j]))
                if self._radius(could[j]) - self._radius(self.best[at]) <= self.tolerance:
                    verdicts[i] = self.best[at]
        return verdicts

    def _is_due(self, position: int, trials: int) -> bool:
        # The last look is always due.
        due = trials >= self._next.get(int(position), 0) or trials + BLOCK > self.max_n
        if due:
            self._next[int(position)] = 1.1 * trials
        return due

    def _could(self, hits, trials) -> np.ndarray:
        most = np.ceil(anytime_upper(hits, trials, self.alpha) * self.max_n)
        return anytime_lower(np.clip(most, hits, hits + self.max_n - trials), self.max_n, self.alpha)

    def _radius(self, p: float) -> float:
        return self.sigma * float(scipy.special.ndtri(p)) if p > 0.5 else 0.0


def informed_bet(radius: float, sigma: float, weight: float) -> tuple[float, float]:
    """Returns the (a, b) of a bet that expects p = Phi(radius / sigma) as surely as `weight` samples would show it.

    radius: a guess fixed before any sample is seen, such as the propagated radius, in the units of sigma.
    """
    p = float(np.clip(scipy.special.ndtr(radius / sigma), 1e-3, 1 - 1e-3))
    return max(weight * p, 1e-3), max(weight * (1 - p), 1e-3)
