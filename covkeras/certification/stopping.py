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


class RadiusTest:
    """Stops when it is decided whether p > p0, either way, or when max_n samples will hardly decide it.

    The last gives no verdict on p, only the image up: the chance that the wealth after max_n samples reaches 1 / alpha,
    given the samples so far (posterior of a Beta(1/2, 1/2) prior, normal approximation), is below `give_up`. Giving up
    loses at most certificates, never makes one.

    Args:
        p0: the probability to exceed. alpha: of a wrong ABOVE, and of a wrong NOT_ABOVE. max_n: samples at most.
        give_up: 0 never gives up. bets: None, or (images, 2), each image's (a, b).
    """

    def __init__(self, p0: float, alpha: float, max_n: int, give_up: float, bets: np.ndarray | None = None):
        self.p0, self.alpha, self.max_n, self.bets = p0, alpha, max_n, bets
        self._unlikely = -float(scipy.special.ndtri(give_up))
        self._needed = hits_to_decide(max_n, p0, alpha)

    def __call__(self, positions, hits, trials) -> list[Decision | None]:
        bet = UNINFORMED if self.bets is None else tuple(self.bets[positions].T)
        decisions = decide(hits, trials, self.p0, self.alpha, bet=bet)
        hopeless = self._lacking(hits, trials) > self._unlikely
        settled = (decisions != Decision.UNDECIDED) | hopeless
        return [Decision(int(d)) if s else None for d, s in zip(decisions, settled, strict=True)]

    def _lacking(self, hits, trials) -> np.ndarray:
        """How many standard deviations the hits still needed lie above those to be expected."""
        left = self.max_n - trials
        p = (hits + 0.5) / (trials + 1)
        deviation = np.sqrt(p * (1 - p) * left * (1 + left / trials))
        return (self._needed - hits - left * p) / np.maximum(deviation, 1e-9)


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

    def __call__(self, positions, hits, trials) -> list[float | None]:
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
