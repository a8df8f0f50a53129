import mpmath
import numpy as np
import pytest
import scipy.stats

from covkeras.certification.sequential import Decision, anytime_lower, decide, log_wealth, required_probability

LOOKS = 64


def test_wealth_is_the_product_of_the_bets(rng):
    """The closed form against betting one sample at a time, in 40 digits."""
    with mpmath.workdps(40):
        for p in (0.2, 0.5, 0.9, 0.999):
            hits, wealth = 0, mpmath.mpf(1)
            for t, x in enumerate(rng.random(300) < 0.9):
                q = (mpmath.mpf(hits) + 0.5) / (t + 1)
                wealth *= (q / p) if x else (1 - q) / (1 - mpmath.mpf(p))
                hits += int(x)
            assert float(log_wealth(hits, 300, p)) == pytest.approx(float(mpmath.log(wealth)), rel=1e-9)


def ever_decided(rng, p, p0, alpha, runs, looks):
    """Whether each of `runs` simulated sequences is ever decided ABOVE or NOT_ABOVE, looked at every 64 samples."""
    hits = np.zeros(runs, np.int64)
    above, below = np.zeros(runs, bool), np.zeros(runs, bool)
    for look in range(1, looks + 1):
        hits += rng.binomial(LOOKS, p, runs)
        decision = decide(hits, look * LOOKS, p0, alpha)
        first = ~(above | below)
        above |= first & (decision == Decision.ABOVE)
        below |= first & (decision == Decision.NOT_ABOVE)
    return above, below


@pytest.mark.parametrize("radius", [0.5, 1.0])
def test_error_rate_at_the_boundary(radius, rng):
    """10^5 sequences at p = p0: at most alpha decided wrongly, either way. False alarm below 1e-8 each."""
    runs, alpha, p0 = 100_000, 0.01, required_probability(radius, 0.5)
    above, below = ever_decided(rng, p0, p0, alpha, runs, looks=300)
    limit = scipy.stats.binom.ppf(1 - 1e-8, runs, alpha)
    assert above.sum() <= limit and below.sum() <= limit
    # The test has power: the bound is not met by never deciding.
    assert above.sum() + below.sum() > 0


def test_it_decides_when_p_is_clear(rng):
    p0 = required_probability(0.5, 0.5)
    above, below = ever_decided(rng, 0.95, p0, 0.001, 2_000, looks=20)
    assert above.mean() > 0.99 and not below.any()
    above, below = ever_decided(rng, 0.6, p0, 0.001, 2_000, looks=20)
    assert below.mean() > 0.99 and not above.any()


def test_refuting_p0_refutes_every_smaller_p(rng):
    trials = rng.integers(1, 5_000, 500)
    hits = rng.binomial(trials, rng.random(500))
    for h, t in zip(hits, trials, strict=True):
        p = np.linspace(0.001, 0.999, 300)
        wealth = log_wealth(h, t, p)
        below = p < h / t
        assert (np.diff(wealth[below]) <= 1e-9).all() and (np.diff(wealth[~below]) >= -1e-9).all()


def test_lower_bound_is_where_the_decision_turns(rng):
    trials = rng.integers(10, 100_000, 300)
    hits = np.maximum(rng.binomial(trials, rng.random(300)), 1)
    low = anytime_lower(hits, trials, 0.001)
    assert (low < hits / trials).all()
    for h, t, p in zip(hits, trials, low, strict=True):
        if p > 1e-6:
            assert decide(h, t, p * (1 - 1e-6), 0.001) == Decision.ABOVE
            assert decide(h, t, min(p * (1 + 1e-6), 1 - 1e-12), 0.001) != Decision.ABOVE


def test_price_of_being_valid_at_all_times():
    """At n = 100,000, radius / sigma: 3.648 for all hits, 2.267 for 99 %, 1.254 for 90 %."""
    hits = np.array([100_000, 99_000, 90_000])
    radius = scipy.stats.norm.ppf(anytime_lower(hits, 100_000, 0.001))
    np.testing.assert_allclose(radius, [3.648, 2.267, 1.254], atol=6e-4)


def test_required_probability_is_rounded_up():
    with mpmath.workdps(40):
        for ratio in np.linspace(0.01, 6, 200):
            assert required_probability(ratio * 0.5, 0.5) >= mpmath.ncdf(ratio)


def test_certify_at_on_a_linear_classifier(rng):
    """The true radius is known: at most alpha wrong (limit at 1e-8), and the decisions are nearly all made."""
    from test_smoothing import linear_classifier

    from covkeras import SmoothedClassifier

    model, exact = linear_classifier(rng)
    images = rng.random((600, 4, 4, 1)).astype("float32")
    radius, label = exact(images)
    seen = []
    d = SmoothedClassifier(model, 0.25, batch_size=512).certify_at(
        images, 0.2, alpha=0.001, max_n=20_000, seed=3, progress=lambda i, c: seen.append((i, c))
    )
    wrong = d.certified & ((d.label != label) | (radius < 0.2))
    assert wrong.sum() <= scipy.stats.binom.ppf(1 - 1e-8, 600, 0.001)
    clear = np.abs(radius - 0.2) > 0.02
    assert (d.certified == (radius > 0.2))[clear].all() and d.decided[clear].all()
    assert np.median(d.samples[clear]) < 1_000
    assert dict(seen) == dict(enumerate(d.certified)) and len(seen) == 600


def test_certify_at_does_not_depend_on_company(rng):
    from test_smoothing import linear_classifier

    from covkeras import SmoothedClassifier

    model, _ = linear_classifier(rng)
    images = rng.random((40, 4, 4, 1)).astype("float32")
    smoothed = SmoothedClassifier(model, 0.25, batch_size=256)
    whole = smoothed.certify_at(images, 0.2, max_n=5_000, seed=1)
    order = np.array([31, 2, 17])
    part = smoothed.certify_at(images[order], 0.2, max_n=5_000, seed=1, indices=order)
    for name in ("label", "certified", "decided", "hits", "trials"):
        assert np.array_equal(getattr(whole, name)[order], getattr(part, name))


def test_an_informed_bet_is_valid_and_shorter_when_it_guesses_well(rng):
    p0 = required_probability(0.5, 0.5)
    for p, error in ((p0, 0.01), (0.97, None)):
        counts = {}
        for name, bet in (("uninformed", (0.5, 0.5)), ("informed", (9.7, 0.3))):
            hits, open_, trials = np.zeros(20_000, np.int64), np.ones(20_000, bool), np.zeros(20_000)
            wrong = 0
            for look in range(1, 60):
                hits += rng.binomial(LOOKS, p, 20_000)
                above = open_ & (decide(hits, look * LOOKS, p0, 0.01, bet=bet) == Decision.ABOVE)
                wrong += above.sum()
                open_ &= ~above
                trials += LOOKS * open_
            counts[name] = trials.mean()
            if error:
                assert wrong <= scipy.stats.binom.ppf(1 - 1e-8, 20_000, error)
        if not error:
            assert counts["informed"] < counts["uninformed"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"radius": -0.1}, "radius must be a number"),
        ({"max_n": 1}, "max_n must be a whole number from 32"),
        ({"bets": [[1.0, 1.0]]}, "bets must be 2 pairs"),
        ({"bets": [[1.0, 0.0], [1.0, 1.0]]}, "bets must be 2 pairs"),
        ({"alpha": 2}, "alpha must be"),
    ],
)
def test_certify_at_refuses_bad_arguments(change, message):
    from conftest import small_classifier

    from covkeras import SmoothedClassifier

    with pytest.raises(ValueError, match=message):
        SmoothedClassifier(small_classifier(), 0.5).certify_at(
            np.full((2, 8, 8, 1), 0.5, np.float32), **{"radius": 0.5, **change}
        )
