"""Sequential tests of "is p above p0?" that are valid however they stop: a betting martingale (Voracek, NeurIPS 2024).

Before each sample, bet on a hit with q = (H + 1/2) / (T + 1), H hits in T samples so far. The wealth against a fixed p,

    W_T(p) = prod q^x (1 - q)^(1 - x) / (p^x (1 - p)^(1 - x)),

is a martingale with mean 1 if p is the truth, so it ever reaches 1/alpha with probability at most alpha (Ville). The
bets' product has a closed form, B(H + 1/2, T - H + 1/2) / B(1/2, 1/2): the wealth depends on H and T alone.
"""

import enum
import math

import numpy as np
import scipy.special

# Logarithms of gamma functions are off by about 1e-16 of their value, below 1e-7 at 10^9 samples.
_MARGIN = 1e-6


class Decision(enum.IntEnum):
    UNDECIDED = 0
    ABOVE = 1
    NOT_ABOVE = -1


# (a, b) of the bets: Krichevsky and Trofimov's.
UNINFORMED = (0.5, 0.5)


def log_wealth(hits, trials, p, bet: tuple[float, float] = UNINFORMED):
    """Returns log W_T(p), float64. hits, trials: integers, any shapes that broadcast. p: in (0, 1). bet: (a, b)."""
    hits, trials = np.asarray(hits, np.float64), np.asarray(trials, np.float64)
    a, b = bet
    bets = scipy.special.betaln(hits + a, trials - hits + b) - scipy.special.betaln(a, b)
    return bets - hits * np.log(p) - (trials - hits) * np.log1p(-np.asarray(p, np.float64))


def decide(
    hits, trials, p0: float, alpha: float, alpha_stop: float | None = None, bet: tuple[float, float] = UNINFORMED
) -> np.ndarray:
    """Decides "p > p0", as far as the samples go.

    ABOVE: the wealth against p0 has reached 1 / alpha, and hits are more than p0 of the trials. It is then at least as
    large against every smaller p, so p <= p0 is refuted: wrong with probability at most alpha, whatever the number of
    looks. NOT_ABOVE: the same the other way at `alpha_stop` (default alpha); it only saves samples, and costs the first
    test nothing.

    Args:
        hits, trials: integers, same shape. p0: in (0, 1). alpha, alpha_stop: in (0, 1). bet: (a, b) of the test for
            ABOVE; the other always bets uninformed.

    Returns:
        int array of `Decision`, the shape of `hits`.
    """
    wealth, other = log_wealth(hits, trials, p0, bet), log_wealth(hits, trials, p0)
    share = np.asarray(hits) / np.maximum(trials, 1)
    above = (wealth >= -math.log(alpha) + _MARGIN) & (share > p0)
    below = (other >= -math.log(alpha_stop or alpha) + _MARGIN) & (share < p0)
    return np.where(above, Decision.ABOVE, np.where(below, Decision.NOT_ABOVE, Decision.UNDECIDED)).astype(int)


def required_probability(radius: float, sigma: float) -> float:
    """Returns p0 = Phi(radius / sigma), rounded up: p > p0 certifies the radius."""
    return min(float(scipy.special.ndtr(radius / sigma)) * (1.0 + 4e-15), 1.0 - 1e-16)


def anytime_lower(hits, trials, alpha: float) -> np.ndarray:
    """Returns the anytime-valid lower bound: the smallest p against which the wealth is below 1 / alpha, rounded down.

    Its running maximum is a lower bound on p at all times together, with probability 1 - alpha. float64.
    """
    hits, trials = np.broadcast_arrays(np.asarray(hits, np.float64), np.asarray(trials, np.float64))
    low, high = np.zeros(hits.shape), hits / np.maximum(trials, 1.0)
    limit = -math.log(alpha) + _MARGIN
    for _ in range(100):
        middle = 0.5 * (low + high)
        # Below the share of hits the wealth falls with p: `low` stays refuted.
        refuted = log_wealth(hits, trials, np.clip(middle, 1e-300, 1 - 1e-16)) >= limit
        low, high = np.where(refuted, middle, low), np.where(refuted, high, middle)
    return np.where(hits > 0, low, 0.0)
