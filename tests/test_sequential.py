import mpmath
import numpy as np
import pytest
import scipy.stats
from conftest import grid_images

from covkeras.certification import sampling
from covkeras.certification.sampling import sample_until
from covkeras.certification.sequential import (
    Decision,
    anytime_lower,
    anytime_upper,
    decide,
    hits_to_decide,
    log_wealth,
    one_sided_log_wealth,
    required_probability,
)
from covkeras.certification.stopping import RadiiTest, RadiusPrecision, RadiusTest
from covkeras.certification.voting import BLOCK

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


@pytest.mark.parametrize("above", [True, False])
def test_one_sided_wealth_is_the_mixture_of_its_bettors(above):
    """The integral over the bettors of one side, by quadrature in 30 digits."""
    with mpmath.workdps(30):
        for p0, hits, trials, (a, b) in [(0.8, 70, 80, (0.5, 0.5)), (0.8, 55, 80, (0.5, 0.5)), (0.97, 90, 91, (19, 1))]:
            sides = [p0, (1 + p0) / 2, 1] if above else [0, p0 / 2, p0]

            def mixed(k, n, sides=sides, a=mpmath.mpf(a), b=mpmath.mpf(b)):
                return mpmath.quad(lambda q: q ** (k + a - 1) * (1 - q) ** (n - k + b - 1), sides)

            likelihood = mpmath.mpf(p0) ** hits * (1 - mpmath.mpf(p0)) ** (trials - hits)
            exact = mpmath.log(mixed(hits, trials) / mixed(0, 0) / likelihood)
            assert float(one_sided_log_wealth(hits, trials, p0, above, (a, b))) == pytest.approx(float(exact), rel=1e-6)


def test_one_sided_wealth_is_a_supermartingale_under_every_smaller_p(rng):
    """One more sample leaves its mean as it is at p0, and lowers it below."""
    for p0 in (0.6, 0.84, 0.977):
        trials = rng.integers(0, 3_000, 200)
        hits = rng.binomial(trials, np.clip(p0 + rng.normal(size=200) * 0.03, 0, 1))
        now, hit, miss = (one_sided_log_wealth(hits + h, trials + t, p0) for h, t in ((0, 0), (1, 1), (0, 1)))
        for p, equal in ((p0, True), (0.95 * p0, False), (0.3, False)):
            gain = p * np.exp(hit - now) + (1 - p) * np.exp(miss - now)
            assert (np.abs(gain - 1) < 1e-7).all() if equal else (gain <= 1 + 1e-9).all()


def test_one_side_needs_fewer_samples(rng):
    """At p0 = Phi(2), p = .99: the wealth is ten times Krichevsky and Trofimov's."""
    p0 = required_probability(1.0, 0.5)
    assert one_sided_log_wealth(1_980, 2_000, p0) - log_wealth(1_980, 2_000, p0) == pytest.approx(
        np.log(10.3), abs=0.05
    )


def ever_decided(rng, p, p0, alpha, runs, looks):
    """Whether each of `runs` simulated sequences is ever decided ABOVE or NOT_ABOVE, looked at every 64 samples."""
    hits = np.zeros(runs, np.int64)
    above, below = np.zeros(runs, bool), np.zeros(runs, bool)
    for look in range(1, looks + 1):
        hits += rng.binomial(LOOKS, p, runs)
        # At a look they have few different counts.
        counts, which = np.unique(hits, return_inverse=True)
        decision = decide(counts, look * LOOKS, p0, alpha)[which]
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


def test_lower_bound_is_where_the_wealth_turns(rng):
    trials = rng.integers(10, 100_000, 300)
    hits = np.maximum(rng.binomial(trials, rng.random(300)), 1)
    low = anytime_lower(hits, trials, 0.001)
    assert (low < hits / trials).all()
    for h, t, p in zip(hits, trials, low, strict=True):
        if p > 1e-6:
            assert log_wealth(h, t, p * (1 - 1e-6)) >= np.log(1_000)
            assert log_wealth(h, t, min(p * (1 + 1e-6), 1 - 1e-12)) <= np.log(1_000) + 2e-6


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
    images = grid_images(rng, 600, 4)
    radius, label = exact(images)
    seen = []
    d = SmoothedClassifier(model, 0.25, batch_size=512).certify_at(
        images,
        0.2,
        alpha=0.001,
        max_n=20_000,
        seed=3,
        give_up=0,
        progress=lambda i, d: seen.append((i, d.certified[0])),
    )
    wrong = d.certified & ((d.label != label) | (radius < 0.2))
    assert wrong.sum() <= scipy.stats.binom.ppf(1 - 1e-8, 600, 0.001)
    clear = np.abs(radius - 0.2) > 0.02
    assert (d.certified == (radius > 0.2))[clear].all() and d.decided[clear].all()
    assert np.median(d.samples[clear]) < 1_000
    assert dict(seen) == dict(enumerate(d.certified)) and len(seen) == 600


def test_giving_up_saves_samples_and_certifies_nothing_more(rng):
    """Against the same votes without it: no image more, hardly one less, the hopeless ones sooner."""
    p0, max_n, blocks = required_probability(0.5, 0.5), 20_000, 20_000 // 32
    p = np.linspace(p0 - 0.05, p0 + 0.05, 400)
    hits = np.cumsum(rng.binomial(32, p[:, None], (400, blocks)), 1)
    trials = 32 * np.arange(1, blocks + 1)
    certified, spent = {}, {}
    for give_up in (0.0, 0.01):
        rule = RadiusTest(p0, 0.001, max_n, give_up)
        verdicts = [rule(np.zeros(blocks, int), h, trials) for h in hits]
        first = [next((i for i, v in enumerate(row) if v is not None), blocks - 1) for row in verdicts]
        certified[give_up] = np.array([row[i] == Decision.ABOVE for row, i in zip(verdicts, first, strict=True)])
        spent[give_up] = trials[first].mean()
    assert not (certified[0.01] & ~certified[0.0]).any()
    # Each loses at most about 1 in 100 of those near the boundary: 20 of 400 is 1e-8 away.
    assert (certified[0.0] & ~certified[0.01]).sum() <= 20
    assert spent[0.01] < 0.8 * spent[0.0]


def test_hits_to_decide_are_the_fewest():
    for trials, p0 in ((1_000, 0.8), (100_000, 0.977), (50, 0.99)):
        k = hits_to_decide(trials, p0, 0.001)
        assert k == trials + 1 or decide(k, trials, p0, 0.001) == Decision.ABOVE
        assert decide(k - 1, trials, p0, 0.001) != Decision.ABOVE


def test_certify_at_does_not_depend_on_company(rng):
    from test_smoothing import linear_classifier

    from covkeras import SmoothedClassifier

    model, _ = linear_classifier(rng)
    images = grid_images(rng, 40, 4)
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
            hits, open_, trials = np.zeros(4_000, np.int64), np.ones(4_000, bool), np.zeros(4_000)
            wrong = 0
            for look in range(1, 60):
                hits += rng.binomial(LOOKS, p, 4_000)
                above = open_ & (decide(hits, look * LOOKS, p0, 0.01, bet=bet) == Decision.ABOVE)
                wrong += above.sum()
                open_ &= ~above
                trials += LOOKS * open_
            counts[name] = trials.mean()
            if error:
                assert wrong <= scipy.stats.binom.ppf(1 - 1e-8, 4_000, error)
        if not error:
            assert counts["informed"] < counts["uninformed"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"radius": -0.1}, "radius must be a number"),
        ({"max_n": 1}, "max_n must be a whole number from 16"),
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
            np.full((2, 8, 8, 1), 0.2, np.float32), **{"radius": 0.5, **change}
        )


def test_radii_to_a_precision_on_a_linear_classifier(rng):
    """At most alpha too large (limit at 1e-8); no further than the tolerance below what fixed n gives; fewer samples
    the larger the tolerance."""
    from test_smoothing import linear_classifier

    from covkeras import SmoothedClassifier

    model, exact = linear_classifier(rng)
    images = grid_images(rng, 100, 4)
    radius, label = exact(images)
    smoothed, spent, seen = SmoothedClassifier(model, 0.25, batch_size=512), [], []
    fixed = smoothed.certify(images, n=5_000, alpha=0.001, seed=5)
    for tolerance in (0.02, 0.1):
        c = smoothed.certify_to(images, tolerance, max_n=5_000, seed=3, progress=lambda *a: seen.append(a))
        wrong = (c.label != -1) & ((c.label != label) | (c.radius > radius))
        assert wrong.sum() <= scipy.stats.binom.ppf(1 - 1e-8, 100, 0.001)
        # The price of being valid at all times is .163 sigma at most (REFERENCES: 3.811 against 3.648), noise aside.
        assert (c.radius > fixed.radius - tolerance - 0.25 * 0.25).all()
        assert (c.samples <= 5_000 + 64 + 512).all()
        spent.append(c.samples.mean())
    assert spent[1] < 0.7 * spent[0] < 0.7 * 5_000
    assert len(seen) == 200 and all(len(c) == 1 for _, c in seen)


def test_upper_bound_is_the_lower_bound_of_the_misses(rng):
    """It covers p at all times: of 2,000 sequences at most alpha are ever below it, limit at 1e-8."""
    hits, missed = np.zeros(2_000, np.int64), np.zeros(2_000, bool)
    for look in range(1, 100):
        hits += rng.binomial(LOOKS, 0.9, 2_000)
        missed |= anytime_upper(hits, look * LOOKS, 0.01) < 0.9
    assert 0 < missed.sum() <= scipy.stats.binom.ppf(1 - 1e-8, 2_000, 0.01)


@pytest.mark.parametrize("tolerance", [0, -0.1, float("nan")])
def test_bad_tolerances_are_refused(tolerance):
    from conftest import small_classifier

    from covkeras import SmoothedClassifier

    with pytest.raises(ValueError, match=r"tolerance must be a number in \(0, inf\)"):
        SmoothedClassifier(small_classifier(), 0.5).certify_to(np.zeros((1, 8, 8, 1), np.float32), tolerance)


class Urns:
    """A ballot whose images are urns: `shares` (images, classes) of their votes, `own` their classes without noise."""

    replicas, slots = 1, 512

    def __init__(self, shares, own):
        self.shares, self.own, self.num_classes = np.asarray(shares), np.asarray(own), len(shares[0])
        self.rng = np.random.default_rng(0)

    def count_blocks(self, images, indices, phases, blocks, seed):
        return self.rng.multinomial(BLOCK, self.shares[indices])


def decided_of(shares, own, rule, max_n=3_000):
    """Every image's end: {position: Sampled}."""
    urns, count = Urns(shares, own), len(shares)
    images = np.zeros((count, 1, 1, 1), np.float32)
    each = sample_until(urns, images, np.arange(count), seed=0, n0=0, max_n=max_n, rule=rule, labels=urns.own)
    return {image.position: image for image in each}


class WatchedUrns(Urns):
    """Keeps each call's size, and what was asked of each image: {image: blocks}."""

    slots = 8

    def __init__(self, *how):
        super().__init__(*how)
        self.sizes, self.asked = [], {}

    def count_blocks(self, images, indices, phases, blocks, seed):
        self.sizes.append(len(blocks))
        for image, block in zip(indices.tolist(), blocks, strict=True):
            self.asked.setdefault(image, []).append(block)
        return super().count_blocks(images, indices, phases, blocks, seed)


def test_whole_batches_the_oldest_images_first_and_little_drawn_in_vain(monkeypatch):
    monkeypatch.setattr(sampling, "_MOST", 4)
    count = 40
    urns, images = WatchedUrns([[0.99, 0.01]] * count, np.zeros(count, int)), np.zeros((count, 1, 1, 1), np.float32)
    how = {"seed": 0, "n0": 32, "max_n": 20_000, "rule": RadiusPrecision(1e-6, 0.5, 0.001, 20_000)}
    done, in_work = [], []
    for image in sample_until(urns, images, np.arange(count), **how):
        done.append(image)
        in_work.append(len(urns.asked) - len(done))
    assert set(urns.sizes) <= {8, 16, 24, 32} and urns.sizes[0] == 32
    # Each image's blocks in their order, those that choose its class first.
    assert all(asked == [0, 1, *range(len(asked) - 2)] for asked in urns.asked.values())
    # 32 begin together; the next ones wait until those that have had a thousand blocks leave room.
    assert [image.position for image in done] == list(range(count))
    assert max(in_work) < 32 and in_work[24] < 10
    assert all(image.trials == 20_000 for image in done)
    assert sum(image.given * BLOCK for image in done[:-4]) < 1.02 * (32 + 20_000) * (count - 4)


@pytest.mark.parametrize("side, batches", [(1, 16), (32, 8), (64, 4), (256, 4)])
def test_more_batches_go_in_a_call_where_images_are_small(side, batches):
    urns, images = WatchedUrns([[0.99, 0.01]] * 130, np.zeros(130, int)), np.zeros((130, side, side, 1), np.float32)
    how = {"seed": 0, "n0": 0, "max_n": 100, "rule": RadiusPrecision(1e-6, 0.5, 0.001, 100), "labels": urns.own}
    next(sample_until(urns, images, np.arange(130), **how))
    assert urns.sizes[0] == batches * urns.slots


def test_batches_counted_together_are_those_counted_one_by_one(rng):
    from conftest import grid_images, small_classifier

    from covkeras import SmoothedClassifier

    ballot = SmoothedClassifier(small_classifier(), 0.5, batch_size=64).ballot
    images, places = grid_images(rng, 12, 8), [rng.integers(0, 4, 12) for _ in range(3)]
    together = ballot.count_blocks(images, *places, 5)
    parts = [ballot.count_blocks(images[i : i + 4], *(p[i : i + 4] for p in places), 5) for i in (0, 4, 8)]
    np.testing.assert_array_equal(together, np.concatenate(parts))
    assert together.sum() == 12 * BLOCK and len(np.unique(together, axis=0)) > 1


def test_two_classes_in_turn_err_no_more_than_alpha():
    """At p = p0 = 1/2 for the image's own class and for the other, where both tests are as likely to err as they can:
    at most alpha of 4,000 images certified (limit at 1e-8); and the second is tried."""
    runs, alpha = 4_000, 0.05
    rule = RadiusTest(0.5, alpha, 3_000, 0.0, twice=True)
    ends = decided_of([[0.5, 0.5]] * runs, np.zeros(runs, int), rule).values()
    assert sum(e.verdict == Decision.ABOVE for e in ends) <= scipy.stats.binom.ppf(1 - 1e-8, runs, alpha)
    assert any(e.again for e in ends) and any(e.verdict == Decision.ABOVE for e in ends)


def test_another_class_is_tried_where_the_images_own_fails():
    """The class that noise gives is certified, on fresh samples; where there is none to gain, no sample is spent."""
    p0 = required_probability(0.5, 0.5)
    shares = [[0.02, 0.98, 0.0], [0.98, 0.02, 0.0], [0.4, 0.3, 0.3]]
    ends = decided_of(shares, [0, 0, 0], RadiusTest(p0, 0.001, 3_000, 0.01, twice=True))
    assert [ends[i].verdict for i in range(3)] == [Decision.ABOVE, Decision.ABOVE, Decision.NOT_ABOVE]
    assert [ends[i].label for i in range(3)] == [1, 0, 0] and [ends[i].again for i in range(3)] == [True, False, False]
    assert ends[0].given * BLOCK >= ends[0].spent + ends[0].trials > ends[0].trials


@pytest.mark.parametrize("place", [1, 2])
def test_a_grid_of_radii_errs_no_more_than_alpha(place):
    """With p at the place-th radius' p0, less a millionth: certified there, or beyond, in at most alpha of 4,000
    images (limit at 1e-8), however often the radii before it are."""
    runs, alpha = 4_000, 0.05
    p0s = [required_probability(r, 0.5) for r in (0.0, 0.1, 0.2)]
    p = p0s[place] * (1 - 1e-6)
    rule = RadiiTest(p0s, alpha, 2_000, 0.0)
    ends = decided_of([[p, 1 - p]] * runs, np.zeros(runs, int), rule, max_n=2_000).values()
    counts = np.array(
        [e.verdict if e.verdict is not None else rule.certified.get((e.position, e.again), 0) for e in ends]
    )
    assert (counts > place).sum() <= scipy.stats.binom.ppf(1 - 1e-8, runs, alpha)
    assert (counts > place).any() and (counts >= place).mean() > 0.4


def test_a_grid_on_a_linear_classifier(rng):
    """The true radius is known: at most alpha too large (limit at 1e-8); where it is clear of the grid, the largest
    radius below it; alone and in any company the same; each radius as `certify_at` decides it."""
    from test_smoothing import linear_classifier

    from covkeras import SmoothedClassifier

    model, exact = linear_classifier(rng)
    images, grid = grid_images(rng, 200, 4), [0.0, 0.1, 0.2, 0.3]
    radius, label = exact(images)
    smoothed = SmoothedClassifier(model, 0.25, batch_size=512)
    found = smoothed.certify_grid(images, grid, max_n=20_000, seed=3)
    wrong = (found.label != -1) & ((found.label != label) | (found.radius > radius))
    assert wrong.sum() <= scipy.stats.binom.ppf(1 - 1e-8, 200, 0.001)
    clear = np.abs(radius[:, None] - np.array(grid)).min(1) > 0.02
    below = np.array([max(r for r in grid if r <= one) for one in radius])
    np.testing.assert_array_equal(found.radius[clear], below[clear])
    assert found.samples[clear].mean() < 3_000
    part = smoothed.certify_grid(images[[31, 2]], grid, max_n=20_000, seed=3, indices=[31, 2])
    np.testing.assert_array_equal(part.radius, found.radius[[31, 2]])
    # Given up, an image may be lost here and not there.
    how = {"max_n": 20_000, "seed": 3, "indices": np.flatnonzero(clear), "give_up": 0}
    at, on_grid = smoothed.certify_at(images[clear], 0.2, **how), smoothed.certify_grid(images[clear], grid, **how)
    np.testing.assert_array_equal(at.certified, on_grid.radius >= 0.2)
    for radii in ([], [0.2, 0.1], [-0.1, 0.2], [0.1, 0.1]):
        with pytest.raises(ValueError, match="radii must be"):
            smoothed.certify_grid(images, radii)
