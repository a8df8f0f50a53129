import numpy as np
import pytest

from covkeras.moments.gaussian import Gaussian, margin, propagated_radius


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
