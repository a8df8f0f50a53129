import numpy as np
import pytest
import scipy.stats
from conftest import small_classifier

from covkeras import objectives
from covkeras.datasets.labels import pair_flip
from covkeras.experiments import fitting, jobs, recipes
from covkeras.moments import Context, propagated_radius


def test_pair_flip_moves_to_the_next_class_at_its_rate(rng):
    labels = rng.integers(0, 10, 20_000)
    flipped = pair_flip(labels, 10, 0.45, seed=3)
    moved = flipped != labels
    assert np.array_equal(flipped[moved], (labels[moved] + 1) % 10)
    # Binomial: two-sided false alarm 2e-9.
    low, high = scipy.stats.binom.ppf([1e-9, 1 - 1e-9], 20_000, 0.45)
    assert low <= moved.sum() <= high
    assert np.array_equal(flipped, pair_flip(labels, 10, 0.45, seed=3))
    assert not np.array_equal(flipped, pair_flip(labels, 10, 0.45, seed=4))
    assert np.array_equal(labels, pair_flip(labels, 10, 0.0))


def test_a_recipe_flips_only_the_training_labels():
    recipe = recipes.find("digits").replace(label_noise=0.45)
    clean = jobs.Environment().load(recipe, "train").labels
    noisy = fitting.load_training(recipe, jobs.Environment()).labels
    assert 0.38 < (clean != noisy).mean() < 0.52
    with pytest.raises(ValueError, match=r"label_noise must be a number in \[0, 1\)"):
        recipe.replace(label_noise=1.0)


@pytest.mark.parametrize("smallest", [False, True])
def test_the_share_with_the_largest_radius_is_dropped_from_its_epoch_on(smallest, rng):
    classifier = small_classifier()
    kept = objectives.CovarianceRadius(0.5)
    dropping = objectives.CovarianceRadius(0.5, drop_share=0.25, drop_epoch=2, drop_smallest=smallest)
    images, labels = rng.random((8, 8, 8, 1)).astype("float32"), np.arange(8) % 3
    for objective in (kept, dropping):
        objective.attach(classifier)
    full = np.asarray(kept(images, labels, None, Context(training=True)).classification)
    radius = np.asarray(propagated_radius(dropping.network(images), 0.5))
    order = np.argsort(radius if smallest else -radius)
    for epoch in (0, 1, 2, 3):
        loss = np.asarray(dropping(images, labels, None, Context(training=True, epoch=epoch)).classification)
        expected = full.copy()
        if epoch >= 2:
            expected[order[:2]] = 0.0
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
    evaluated = np.asarray(dropping(images, labels, None, Context(epoch=5)).classification)
    np.testing.assert_allclose(evaluated, full, rtol=1e-5)


def test_truncated_lq_by_hand(rng):
    objective = objectives.TruncatedLq(lq=0.5, lq_floor=0.4, drop_epoch=1)
    objective.attach(small_classifier())
    images, labels = rng.random((6, 8, 8, 1)).astype("float32"), np.arange(6) % 3
    logits = np.asarray(objective.classifier(images), "float64")
    p = np.exp(logits)[np.arange(6), labels] / np.exp(logits).sum(1)
    lq = (1 - np.sqrt(p)) / 0.5
    before = objective(images, labels, None, Context(epoch=0)).classification
    after = objective(images, labels, None, Context(epoch=1)).classification
    np.testing.assert_allclose(before, lq, rtol=1e-5)
    np.testing.assert_allclose(after, np.where(p <= 0.4, (1 - np.sqrt(0.4)) / 0.5, lq), rtol=1e-5)
    plain = objectives.CrossEntropy()
    plain.attach(objective.classifier)
    np.testing.assert_allclose(plain(images, labels, None, Context()).classification, -np.log(p), rtol=1e-5)
