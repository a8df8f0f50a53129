"""The other classes' bound at any time, together with the first's: simulated where the truth is known, and sampled."""

import numpy as np
import pytest
import scipy.stats
from conftest import grid_images, small_classifier

from covkeras import SmoothedClassifier
from covkeras.certification.stopping import RadiusPrecision
from covkeras.certification.voting import BLOCK

ALPHA, SIGMA = 0.05, 0.5


def test_the_bounds_hold_together_at_every_look(rng):
    """4,000 images of known shares, looked at over and over: p_A ever below its bound, or another class ever above its
    own, in at most alpha of them (limit at 1e-8); no radius beyond the exact one but in those, and many where p_A alone
    certifies nothing."""
    images, looks = 4_000, 60
    shares = np.where(rng.random((images, 1)) < 0.5, [[0.45, 0.2, 0.2, 0.15]], [[0.4, 0.3, 0.2, 0.1]])
    rule = RadiusPrecision(1e-9, SIGMA, ALPHA, looks * BLOCK, classes=4)
    votes, positions = np.zeros((images, 4), np.int64), np.arange(images)
    for look in range(1, looks + 1):
        votes += rng.multinomial(BLOCK, shares)
        others = votes[:, 1:].max(1)
        rule(positions, votes[:, 0], np.full(images, look * BLOCK), others=others)
    low, high, radius = np.transpose([rule.certified(i) for i in range(images)])
    wrong = (low > shares[:, 0]) | (high < shares[:, 1])
    exact = 0.5 * SIGMA * (scipy.stats.norm.ppf(shares[:, 0]) - scipy.stats.norm.ppf(shares[:, 1]))
    assert wrong.sum() <= scipy.stats.binom.isf(1e-8, images, ALPHA)
    assert (radius[~wrong] <= exact[~wrong]).all()
    assert (radius[shares[:, 0] == 0.45] > 0).mean() > 0.5


def test_the_hard_images_gain(rng):
    """Against the same samples without: the bounds are reported, no radius is above what both bounds say, and where
    p_A < 1/2 there is one. Fixed n agrees within what the two spend on their looks."""
    model, images = small_classifier(classes=5), grid_images(rng, 12, 8)
    smoothed = SmoothedClassifier(model, SIGMA)
    how = {"alpha": 0.01, "seed": 3}
    alone = smoothed.certify_to(images, 0.01, max_n=4_000, **how)
    found = smoothed.certify_to(images, 0.01, max_n=4_000, runner_up=True, **how)
    fixed = smoothed.certify(images, n=4_000, runner_up=True, **how)
    assert np.isnan(alone.p_upper).all() and np.isfinite(found.p_upper).all()
    both = 0.5 * SIGMA * (scipy.stats.norm.ppf(found.p_lower) - scipy.stats.norm.ppf(found.p_upper))
    np.testing.assert_allclose(found.radius, np.maximum(both, 0), rtol=1e-9, atol=1e-12)
    certified = found.radius > 0
    assert (certified & (found.p_lower < 0.5)).any()
    np.testing.assert_allclose(found.radius[certified], fixed.radius[certified], atol=0.08)
    assert (found.radius >= alone.radius - 0.02).all()


def test_a_void_vote_may_be_the_runner_ups(rng):
    """A classifier that answers half of the copies with NaN: it could have been another class every time."""
    import keras

    image = keras.Input((8, 8, 1))
    total = keras.ops.mean(image, axis=(1, 2, 3))[:, None]
    first = keras.ops.where(total > keras.ops.mean(total), 5.0, np.nan)
    model = keras.Model(image, keras.ops.concatenate([first, 0 * total, 0 * total - 1], axis=-1))
    smoothed = SmoothedClassifier(model, SIGMA, batch_size=64)
    with pytest.warns(RuntimeWarning, match="void"):
        found = smoothed.certify_to(grid_images(rng, 1, 8), 0.01, max_n=2_000, runner_up=True)
    assert found.radius[0] == 0 and found.p_upper[0] > 0.4
