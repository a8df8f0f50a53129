"""Sequential tests of "is p above p0?" that are valid however they stop: betting martingales (Voracek, NeurIPS 2024).

Whoever bets on each sample, a hit with probability q, has after H hits in T samples the wealth

    W_T(p) = prod q^x (1 - q)^(1 - x) / (p^x (1 - p)^(1 - x)),

a martingale with mean 1 if p is the truth, so that it ever reaches 1/alpha with probability at most alpha (Ville). A
mixture of such bettors is one too. Weighted by Beta(a, b) it has a closed form,

    W_T(p) = B(H + a, T - H + b) / B(a, b) / (p^H (1 - p)^(T - H)),

which is Krichevsky and Trofimov's bet q = (H + 1/2) / (T + 1) for a = b = 1/2. To decide one radius only the bettors
on the side in question are of use: those with q > p0 against p <= p0. Their mixture multiplies the wealth by
P(Beta(H + a, T - H + b) > p0) / P(Beta(a, b) > p0), ten times at p0 = .977, and it is a supermartingale under every
p <= p0, each bettor's gain q x / p0 + (1 - q)(1 - x) / (1 - p0) having a mean that grows with p and is 1 at p0.
"""

import enum
import math

import numpy as np
import scipy.special

from covkeras.certification.special import SCIPY, Functions

# Logarithms of gamma functions are off by about 1e-16 of their value, below 1e-7 at 10^9 samples.
_MARGIN = 1e-6


class Decision(enum.IntEnum):
    UNDECIDED = 0
    ABOVE = 1
    NOT_ABOVE = -1


# (a, b) of the bets: Krichevsky and Trofimov's.
UNINFORMED = (0.5, 0.5)


def log_wealth(hits, trials, p, bet: tuple[float, float] = UNINFORMED, on: Functions = SCIPY):
    """Returns log W_T(p), float64.

    hits, trials: integers, any shapes that broadcast. p: in (0, 1). bet: (a, b). on: the functions it is made of.
    """
    hits, trials, p = on.float64(hits), on.float64(trials), on.float64(p)
    a, b = map(on.float64, bet)
    bets = on.betaln(hits + a, trials - hits + b) - on.betaln(a, b)
    return bets - hits * on.log(p) - (trials - hits) * on.log1p(-p)


def one_sided_log_wealth(
    hits, trials, p0, above: bool = True, bet: tuple[float, float] = UNINFORMED, on: Functions = SCIPY
):
    """Returns the logarithm of the wealth against p <= p0 of the bettors above it; against p >= p0 with above=False.

    hits, trials: integers, any shapes that broadcast. p0: in (0, 1). bet: (a, b). float64; -inf where it underflows.
    """
    hits, trials, p0 = on.float64(hits), on.float64(trials), on.float64(p0)
    a, b = map(on.float64, bet)
    side = on.betaincc if above else on.betainc
    share = on.log(side(hits + a, trials - hits + b, p0)) - on.log(side(a, b, p0))
    return log_wealth(hits, trials, p0, bet, on) + share


def wealth_limit(alpha, on: Functions = SCIPY):
    """Returns log(1 / alpha), rounded up: the wealth that refutes."""
    return _MARGIN - on.log(on.float64(alpha))


def decide(hits, trials, p0, alpha, alpha_stop=None, bet: tuple[float, float] = UNINFORMED) -> np.ndarray:
    """Decides "p > p0", as far as the samples go.

    ABOVE: the wealth against p <= p0 has reached 1 / alpha: wrong with probability at most alpha, whatever the number
    of looks. NOT_ABOVE: the same the other way at `alpha_stop` (default alpha); it only saves samples, and costs the
    first test nothing.

    Args:
        hits, trials: integers, same shape. p0, alpha, alpha_stop: in (0, 1), numbers or of that shape. bet: (a, b) of
            the test for ABOVE; the other always bets uninformed.

    Returns:
        int array of `Decision`, the shape of `hits`.
    """
    above = _reached(hits, trials, p0=p0, above=True, bet=bet, alpha=alpha)
    stop = alpha if alpha_stop is None else alpha_stop
    below = _reached(hits, trials, p0=p0, above=False, bet=UNINFORMED, alpha=stop)
    return np.where(above, Decision.ABOVE, np.where(below, Decision.NOT_ABOVE, Decision.UNDECIDED)).astype(int)


def _reached(hits, trials, p0, above, bet, alpha) -> np.ndarray:
    """Whether the one-sided wealth has reached 1 / alpha."""
    hits, trials, p0, limit, a, b = np.broadcast_arrays(hits, trials, p0, wealth_limit(alpha), *bet)
    # Leaving out the other side's bettors gains at most this; most sequences are further from the limit.
    side = scipy.special.betaincc if above else scipy.special.betainc
    near = log_wealth(hits, trials, p0, (a, b)) - np.log(side(a, b, p0)) >= limit
    reached = np.zeros(near.shape, bool)
    wealth = one_sided_log_wealth(hits[near], trials[near], p0[near], above, (a[near], b[near]))
    reached[near] = wealth >= limit[near]
    return reached


def hits_to_decide(trials: int, p0: float, alpha: float) -> int:
    """Returns the fewest hits in so many trials that decide "p > p0"; trials + 1 where none do."""
    low, high = math.ceil(trials * p0), trials + 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if decide(middle, trials, p0, alpha) == Decision.ABOVE else (middle + 1, high)
    return low


def required_probability(radius, sigma: float, on: Functions = SCIPY):
    """Returns p0 = Phi(radius / sigma), rounded up: p > p0 certifies the radius."""
    return on.minimum(on.normal_cdf(on.float64(radius) / sigma) * (1.0 + 4e-15), on.float64(1.0 - 1e-16))


def anytime_lower(hits, trials, alpha: float) -> np.ndarray:
    """Returns the anytime-valid lower bound: the smallest p against which the wealth is below 1 / alpha, rounded down.

    Its running maximum is a lower bound on p at all times together, with probability 1 - alpha. float64.
    """
    hits, trials = np.broadcast_arrays(np.asarray(hits, np.float64), np.asarray(trials, np.float64))
    low, high = np.zeros(hits.shape), hits / np.maximum(trials, 1.0)
    limit = wealth_limit(alpha)
    for _ in range(100):
        middle = 0.5 * (low + high)
        # Below the share of hits the wealth falls with p: `low` stays refuted.
        refuted = log_wealth(hits, trials, np.clip(middle, 1e-300, 1 - 1e-16)) >= limit
        low, high = np.where(refuted, middle, low), np.where(refuted, high, middle)
    return np.where(hits > 0, low, 0.0)


def anytime_upper(hits, trials, alpha: float) -> np.ndarray:
    """Returns the anytime-valid upper bound, rounded up: 1 minus the lower bound of the misses. float64."""
    return 1.0 - anytime_lower(np.asarray(trials) - np.asarray(hits), trials, alpha)
