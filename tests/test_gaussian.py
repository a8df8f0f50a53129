import numpy as np
import pytest

from covkeras.diagnostics.joint import top_probability
from covkeras.moments.gaussian import Gaussian, margin, propagated_radius, square_root


def test_radius_of_a_hand_worked_three_class_case():
    # Classes 0 and 2 lead: m = 3 - 1 = 2, Var m = 4 + 2 - 2 * 1 = 4, sd 2, so the radius is 0.5 * 2 / 2.
    cov = np.array([[4.0, 0.5, 1.0], [0.5, 9.0, 0.0], [1.0, 0.0, 2.0]], np.float32)
    logits = Gaussian(np.array([[3.0, 0.0, 1.0]], np.float32), cov)
    assert [float(v[0]) for v in margin(logits)] == pytest.approx([2.0, 2.0, 0, 2])
    assert np.asarray(propagated_radius(logits, sigma=0.5)) == pytest.approx([0.5])


def test_margin_of_given_labels_is_negative_where_they_are_not_on_top():
    logits = Gaussian(np.array([[3.0, 0.0, 1.0]], np.float32), np.eye(3, dtype=np.float32))
    assert [float(v[0]) for v in margin(logits, np.array([1]))] == pytest.approx([-3.0, 2**0.5, 1, 0])


def test_margin_against_sampling(rng):
    factor = rng.normal(size=(4, 4))
    mean, cov = np.array([0.3, 1.0, -0.2, 0.8]), factor @ factor.T
    logits = Gaussian(mean[None].astype("float32"), cov.astype("float32"))
    samples = rng.multivariate_normal(mean, cov, size=1_000_000)
    differences = samples[:, 1] - samples[:, 3]
    value, sd, _, _ = margin(logits)
    # 6 standard errors each: false alarm below 1e-8.
    assert abs(value[0] - differences.mean()) < 6 * differences.std() / 1e3
    assert abs(sd[0] - differences.std()) < 6 * differences.std() / np.sqrt(2e6)


@pytest.mark.parametrize("sigma", [0, -0.5, float("nan"), "0.5", None])
def test_sigma_is_refused(sigma):
    with pytest.raises(ValueError, match="sigma must be a number in"):
        propagated_radius(Gaussian(np.zeros((1, 2), np.float32), np.eye(2, dtype=np.float32)), sigma)


@pytest.mark.parametrize(("classes", "rank"), [(10, 3), (365, 96), (1000, 512)])
def test_a_covariance_of_more_classes_than_units_has_a_root(classes, rank, rng):
    """As the heads of ImageNet and Places365 have: W S W^T, some directions a thousandfold, rounded to float32."""
    weights = rng.normal(size=(classes, rank)).astype(np.float32) * np.geomspace(1e-3, 3.0, rank).astype(np.float32)
    cov = weights @ weights.T
    root = np.asarray(square_root(cov), np.float64)
    assert np.isfinite(root).all() and np.allclose(np.triu(root, 1), 0)
    assert np.linalg.norm(root @ root.T - cov, 2) < 6e-7 * classes * np.linalg.norm(cov)
    label, probability = top_probability(Gaussian(np.zeros((1, classes), np.float32), cov), 100)
    assert 0 <= label[0] < classes and 0 < probability[0] < 1


@pytest.mark.parametrize(
    "cov", [np.ones(4), np.ones((3, 3)), np.ones((2, 2)), np.ones((2, 4, 4)), np.ones((4, 3)), np.ones((0, 0))]
)
def test_a_covariance_that_is_none_of_the_logits_is_refused(cov):
    with pytest.raises(ValueError, match="logits must have"):
        propagated_radius(Gaussian(np.ones((2, 4), np.float32), cov.astype(np.float32)), 0.5)


def test_what_a_layer_is_given_and_what_a_rule_returns_must_be_a_pair():
    import keras

    import covkeras as ck

    class Twice(keras.layers.Layer):
        def call(self, x):
            return 2.0 * x

    images = np.ones((2, 4, 4, 3), np.float32)
    good = ck.Gaussian(images, np.eye(3, dtype=np.float32))
    with pytest.raises(TypeError, match=r"what layer 'twice' is given must be a Gaussian\(mean, cov\).*got 'tuple'"):
        ck.propagate(Twice(name="twice"), tuple(good))
    with pytest.raises(ValueError, match=r"what layer 'add' is given .*Of variances v alone cov is the diagonal"):
        ck.propagate(keras.layers.Add(name="add"), [good, ck.Gaussian(images, np.ones(3, np.float32))])
    for wrong, error in ((tuple, TypeError), (lambda g: ck.Gaussian(g.mean, 4.0 * np.diag(g.cov)), ValueError)):
        ck.propagate.register(Twice, override=True)(lambda layer, gaussian, context, wrong=wrong: wrong(gaussian))
        with pytest.raises(error, match=r"what the rule of Twice \(layer 'twice'\) returns must"):
            ck.propagate(Twice(name="twice"), good)
    ck.propagate.register(Twice, override=True)(lambda layer, g, context: ck.Gaussian(2.0 * g.mean, 4.0 * g.cov))
    assert np.array_equal(ck.propagate(Twice(), good).cov, 4.0 * np.eye(3))


def test_its_distribution_is_the_normal_distribution(rng):
    """Against scipy's density, and a singular covariance, as of two classes that move together."""
    import scipy.stats

    factor = rng.normal(size=(4, 4))
    mean, cov = rng.normal(size=(3, 4)), factor @ factor.T
    distribution = Gaussian(mean.astype("float32"), cov.astype("float32")).distribution()
    points = rng.normal(size=(3, 4)).astype("float32")
    expected = [scipy.stats.multivariate_normal(m, cov).logpdf(p) for m, p in zip(mean, points, strict=True)]
    np.testing.assert_allclose(distribution.log_prob(points), expected, rtol=1e-3)
    assert distribution.batch_shape == (3,) and distribution.event_shape == (4,)
    together = np.array([[1.0, 1.0], [1.0, 1.0]], np.float32)
    sample = Gaussian(np.zeros((1, 2), np.float32), together).distribution().sample(1_000, seed=(0, 0)).numpy()
    assert np.abs(sample[..., 0] - sample[..., 1]).max() < 0.02
    with pytest.raises(ValueError, match="2 blocks of 2: take it at the logits"):
        Gaussian(np.zeros((1, 4), np.float32), together).distribution()


def test_the_top_class_over_all_classes_against_scipy(rng):
    """Two classes: Phi of the margin. Four: the normal orthant's probability. Five standard errors of 10^5 samples."""
    import scipy.stats

    from covkeras.diagnostics.joint import all_class_radius, top_probability

    mean = np.array([[0.4, 0.0], [-0.2, 0.3]], np.float32)
    label, p = top_probability(Gaussian(mean, np.eye(2, dtype=np.float32)), 100_000)
    assert list(label) == [0, 1]
    np.testing.assert_allclose(p, scipy.stats.norm.cdf(np.array([0.4, 0.5]) / 2**0.5), atol=5 * 0.5 / 316)
    factor = rng.normal(size=(4, 4))
    mean, cov = np.array([0.5, 0.1, -0.3, 0.2]), factor @ factor.T
    contrasts = np.array([[1.0, -1, 0, 0], [1, 0, -1, 0], [1, 0, 0, -1]])
    expected = scipy.stats.multivariate_normal(-contrasts @ mean, contrasts @ cov @ contrasts.T).cdf(np.zeros(3))
    logits = Gaussian(mean[None].astype("float32"), cov.astype("float32"))
    drawn = logits.distribution().sample(100_000, seed=(0, 0)).numpy()[:, 0].argmax(-1)
    assert (drawn == 0).mean() == pytest.approx(expected, abs=5 * 0.5 / 316)
    radius, label = all_class_radius(logits, 0.5, 100_000)
    best = np.bincount(drawn, minlength=4)
    assert label[0] == best.argmax()
    assert radius[0] == pytest.approx(0.5 * scipy.stats.norm.ppf(best.max() / 1e5), abs=0.01)


def test_nothing_heavy_is_imported_before_it_is_used():
    import subprocess
    import sys

    program = (
        "import sys, covkeras; assert 'tensorflow' not in sys.modules\n"
        "from covkeras import certification, exporting, moments, objectives\n"
        "assert 'tensorflow_probability' not in sys.modules and 'tf_keras' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
