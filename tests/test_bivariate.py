"""The covariance of two ReLUs against samples and a closed form; the network, the diagnosis and the objective with it.

False alarms: bounds are 7 standard errors, below 1e-8 a test.
"""

import keras
import numpy as np
import pytest
from conftest import small_classifier

from covkeras import CertifiedTrainer, MomentNetwork
from covkeras.diagnostics.layerwise import layer_moments
from covkeras.moments import Gaussian
from covkeras.moments.activations import activation_of
from covkeras.moments.bivariate import bivariate
from covkeras.moments.rectifiers import Rectifier
from covkeras.objectives import CovarianceRadius


@pytest.mark.parametrize("slope", [0.0, 0.2])
@pytest.mark.parametrize("correlation", [-0.9, -0.4, 0.0, 0.6, 0.9])
def test_the_covariance_against_samples(slope, correlation, rng):
    """Two units at nine positions: variances, and the covariance off the diagonal, in the mean over the positions."""
    sd = np.array([0.7, 1.6])
    cov = np.outer(sd, sd) * [[1, correlation], [correlation, 1]]
    mean = rng.normal(size=(1, 3, 3, 2)) * 1.5
    result = bivariate(Gaussian(mean.astype(np.float32), cov.astype(np.float32)), Rectifier(slope))
    noise = rng.multivariate_normal(np.zeros(2), cov, 200_000)
    products, means = [], []
    for at in mean.reshape(-1, 2):
        f = np.maximum(at + noise, slope * (at + noise))
        means.append(f.mean(0))
        centred = f - f.mean(0)
        products.append([(centred[:, i] * centred[:, j]) for i, j in ((0, 0), (1, 1), (0, 1))])
    products = np.mean(products, 0)
    expected, error = products.mean(1), 7 * products.std(1) / np.sqrt(200_000)
    found = np.asarray(result.cov)[[0, 1, 0], [0, 1, 1]]
    # The expansion's rest, off the diagonal: below 1 % of the standard deviations' product at .9.
    rest = np.array([0, 0, 0.01 * sd.prod()])
    assert (abs(found - expected) <= error + rest).all(), (found, expected)
    spread = 7 * sd / np.sqrt(200_000)
    assert (abs(np.asarray(result.mean).reshape(-1, 2) - means) <= spread).all()


def test_at_mean_zero_it_is_the_arc_cosine_kernel():
    """Cho and Saul 2009: E u+ v+ = s t (sin a + (pi - a) cos a) / (2 pi), cos a = rho; E u+ = s / sqrt(2 pi)."""
    rho = np.array([[1, 0.5, -0.3], [0.5, 1, 0.1], [-0.3, 0.1, 1]])
    sd = np.array([1.0, 2.0, 0.5])
    angle = np.arccos(rho)
    exact = (np.sin(angle) + (np.pi - angle) * rho - 1) / (2 * np.pi) * np.outer(sd, sd)
    given = Gaussian(np.zeros((1, 3), np.float32), (rho * np.outer(sd, sd)).astype(np.float32))
    np.testing.assert_allclose(bivariate(given, Rectifier()).cov, exact, rtol=2e-4, atol=1e-5)


def test_other_activations_keep_their_rule(rng):
    given = Gaussian(rng.normal(size=(2, 3)).astype(np.float32), np.eye(3, dtype=np.float32))
    tanh = activation_of(keras.activations.tanh)
    for one, other in zip(bivariate(given, tanh), tanh.propagated(given), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_network_with_it_is_nearer_to_its_samples(rng):
    """One image: the logits' standard deviations, over those of 20,000 samples, in the mean of their logarithms."""
    classifier = small_classifier()
    image = rng.random((1, 8, 8, 1)).astype(np.float32)
    noisy = image + 0.5 * rng.normal(size=(20_000, 8, 8, 1)).astype(np.float32)
    sampled = np.asarray(classifier(noisy)).std(0)
    off = {}
    for rectifier in ("unchanged", "bivariate"):
        cov = MomentNetwork(classifier, 0.5, r_max=0.0, rectifier=rectifier)(image).cov
        off[rectifier] = abs(np.log(np.sqrt(np.diag(cov)) / sampled).mean())
    assert off["bivariate"] < 0.5 * off["unchanged"]
    with pytest.raises(ValueError, match="rectifier must be one of unchanged, bivariate"):
        MomentNetwork(classifier, 0.5, rectifier="exact")


def test_the_layers_table_has_it_as_a_third_column(rng):
    network = MomentNetwork(small_classifier(), 0.25)
    rows = layer_moments(network, rng.random((1, 8, 8, 1)), samples=400)
    for row in rows:
        assert row.bivariate.shape == row.propagated.shape and np.isfinite(row.bivariate_ratio)
    # The first layer stands before any ReLU; behind one the covariance can only be smaller than unchanged.
    np.testing.assert_allclose(rows[0].bivariate, rows[0].propagated, rtol=1e-5)
    assert rows[-1].bivariate_ratio < rows[-1].ratio


def test_the_objective_trains_with_it(rng):
    images, labels = rng.random((16, 8, 8, 1)).astype(np.float32), rng.integers(0, 3, 16)
    losses = {}
    for rectifier in ("unchanged", "bivariate"):
        keras.utils.set_random_seed(0)
        objective = CovarianceRadius(0.25, lam=1.0, rectifier=rectifier)
        trainer = CertifiedTrainer(small_classifier(), objective)
        trainer.compile(optimizer=keras.optimizers.SGD(0.05))
        losses[rectifier] = trainer.fit(images, labels, epochs=4, verbose=0).history["loss"]
        assert np.isfinite(losses[rectifier]).all() and losses[rectifier][-1] < losses[rectifier][0]
    assert losses["unchanged"] != losses["bivariate"]
    with pytest.raises(ValueError, match="rectifier must be unchanged with stop_covariance_gradient"):
        CovarianceRadius(0.25, rectifier="bivariate", relu_inflation=0.1)
