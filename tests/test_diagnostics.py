"""The diagnostics: sampled moments against closed forms, boxes against draws, the program as a user runs it."""

from pathlib import Path

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from conftest import call_program, small_classifier
from keras import layers

from covkeras import MomentNetwork, models
from covkeras.diagnostics.growth import growth, samples_needed
from covkeras.diagnostics.intervals import interval_bounds
from covkeras.diagnostics.layerwise import gaussianity, gaussianity_floor, layer_moments, pre_activations
from covkeras.diagnostics.toy import planes, two_layer_network
from covkeras.reports.diagnosis import verdict
from covkeras.reports.diagnosis_pictures import ellipse

PROGRAM = Path(__file__).parent.parent / "training" / "diagnose.py"


def linear_network():
    """Two convolutions and a head without rectifiers: pre-activations are linear in the noise."""
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(3, 3, name="first"),
            layers.Conv2D(4, 3, padding="same", name="second"),
            layers.Flatten(),
            layers.Dense(5, name="head"),
        ]
    )


def test_sampled_moments_of_a_linear_network_are_those_of_its_jacobian(rng):
    """2,000 samples: a variance's relative error is sqrt(2 / 2000) = 3.2 % at most for one unit; the mean over a
    layer's 4 to 48 units and pixels must lie within 6.5 of its own standard errors (8e-11 each, below 1e-9 in all)."""
    classifier, image = linear_network(), rng.random((1, 6, 6, 2)).astype("float32")
    network, samples = MomentNetwork(classifier, 0.3), 2_000
    rows = layer_moments(network, image, samples, seed=1)
    assert [r.name for r in rows] == ["first", "second", "head"]
    x = tf.constant(image)
    for row in rows:
        part = keras.Model(classifier.inputs, classifier.get_layer(row.name).output)
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = tf.reshape(part(x), (1, -1))
        jacobian = tape.batch_jacobian(value, x).numpy().reshape(value.shape[1], -1).astype("float64")
        cov = 0.3**2 * jacobian @ jacobian.T
        variance = np.diag(cov).mean()
        # Var of the mean of sampled variances: 2 sum_ij cov_ij^2 / units^2 / samples (Gaussian, Isserlis).
        error = np.sqrt(2 * (cov**2).sum() / len(cov) ** 2 / (samples - 20))
        assert abs(row.sampled.mean() - variance) < 6.5 * error
        assert row.interval[0] < row.sampled.mean() < row.interval[1]
        # The interval is about 2 x 2.09 standard errors wide, itself known to a sixth.
        assert 0.3 < (row.interval[1] - row.interval[0]) / (4.2 * error) < 2.0
        if row.name != "head":
            h, w, c = row.shape
            grid = cov.reshape(h, w, c, h, w, c)
            scale = np.sqrt(np.diag(cov)).reshape(h, w, c)
            at = np.arange(c)
            pairs = [
                (grid[i, j, at, k, m, at], (scale[i, j] * scale[k, m]))
                for i in range(h)
                for j in range(w)
                for k, m in ((i + 1, j), (i, j + 1))
                if k < h and m < w
            ]
            correlation = sum(p.sum() for p, _ in pairs) / sum(s.sum() for _, s in pairs)
            assert row.correlation == pytest.approx(correlation, abs=0.03)
        assert row.gaussianity < 1.5 * gaussianity_floor(samples, row.cloud.shape[1])


def test_pre_activations_are_the_layers_own(rng):
    """Of samples: what the layer gives its activation, fused or not, in nested models too."""
    classifier, images = small_classifier(), rng.random((3, 8, 8, 1)).astype("float32")
    seen = pre_activations(MomentNetwork(classifier, 0.3), images)
    first = classifier.layers[0]
    expected = tf.nn.convolution(images, first.kernel, padding="SAME") + first.bias
    np.testing.assert_allclose(seen[first.name].mean, expected, rtol=1e-4, atol=1e-5)
    assert seen[first.name].cov.shape == (4, 4) and len(seen) == 3
    inputs = keras.Input((8, 8, 1))
    nested = keras.Model(inputs, layers.Dense(4, name="after")(small_classifier()(inputs)))
    assert list(pre_activations(MomentNetwork(nested, 0.3), images))[-1] == "after"
    assert len(pre_activations(MomentNetwork(nested, 0.3), images)) == 4


def boxed():
    images = keras.Input((6, 6, 2))
    x = layers.Rescaling(-2.0, offset=1.0)(images)
    x = layers.Conv2D(4, 3, strides=2, padding="same", activation="leaky_relu")(x)
    y = layers.DepthwiseConv2D(3, padding="same")(layers.ReLU()(layers.BatchNormalization()(x)))
    x = layers.Concatenate()([layers.Add()([x, y]), x])
    x = layers.Flatten()(layers.AveragePooling2D(3, padding="same")(x))
    return keras.Model(images, layers.Dense(3)(layers.Dense(6, activation="relu")(x)))


def test_boxes_contain_every_sample_and_are_tight_for_one_layer(rng):
    """10^5 draws, corners among them; a single linear layer's box is reached by a corner."""
    classifier = boxed()
    for weight in classifier.weights:
        weight.assign(
            np.abs(rng.normal(size=weight.shape)) if "variance" in weight.name else rng.normal(size=weight.shape)
        )
    centre = rng.random((1, 6, 6, 2)).astype("float32")
    low, high = centre - 0.1, centre + 0.1
    seen = []
    box = interval_bounds(classifier, low, high, lambda layer, interval: seen.append(layer.name))
    assert len(seen) == len(classifier.layers) - 1
    slack = 1e-4 * (1 + np.abs(np.asarray(box.high)))
    for i in range(20):
        uniform = rng.uniform(-1, 1, (5_000, 6, 6, 2))
        values = classifier(centre + 0.1 * (np.sign(uniform) if i % 2 else uniform).astype("float32")).numpy()
        assert np.all(values >= box.low - slack) and np.all(values <= box.high + slack)
    dense = keras.Sequential([keras.Input((5,)), layers.Dense(1)])
    corner = np.sign(dense.layers[0].kernel.numpy()).T
    box = interval_bounds(dense, -np.ones((1, 5), "float32"), np.ones((1, 5), "float32"))
    np.testing.assert_allclose(box.high, dense(corner), rtol=1e-5)
    with pytest.raises(ValueError, match="low must not be above high"):
        interval_bounds(dense, np.ones((1, 5)), np.zeros((1, 5)))
    falls = keras.Sequential([keras.Input((5,)), keras.layers.Dense(2, activation="gelu")])
    with pytest.raises(NotImplementedError, match="No interval rule for activation 'gelu'"):
        interval_bounds(falls, np.zeros((1, 5), "float32"), np.ones((1, 5), "float32"))


def test_the_plane_holds_its_samples(rng):
    """Input, hidden and output: the boxes are sound for inputs within 3 sigma; the input's ellipse is exact."""
    network = two_layer_network()
    rows = planes(network, samples=500)
    assert [r.name for r in rows] == ["input", "hidden", "output"]
    inside = (np.abs(rows[0].samples - rows[0].mean) <= 3 * 0.05).all(1)
    for row in rows:
        assert (row.samples[inside] >= row.low - 1e-5).all() and (row.samples[inside] <= row.high + 1e-5).all()
    # The hidden layer is linear in the input: its covariance is the sampled one, to 6.5 standard errors of 500 samples.
    sampled = np.cov(rows[1].samples.T)
    error = np.sqrt((rows[1].cov ** 2 + np.outer(np.diag(rows[1].cov), np.diag(rows[1].cov))) / 499)
    assert (np.abs(sampled - rows[1].cov) < 6.5 * error).all()


def test_samples_needed_is_the_closed_form_of_a_normal(rng):
    """d independent normals need (d + 1) / error^2: within 15 % from 4,096 samples of 10 dimensions."""
    needed = samples_needed(rng.standard_normal((4_096, 10)), 0.1)
    assert needed == pytest.approx(11 / 0.01, rel=0.15)
    measured = growth(sizes=(8, 16), samples=256)
    assert measured.pixels == pytest.approx((19_300, 76_900)) and min(measured.logits) > 10


def test_gaussianity(rng):
    normal, uniform = rng.standard_normal((1_000, 8)), rng.uniform(size=(1_000, 8))
    assert gaussianity(normal) < 1.3 * gaussianity_floor(1_000, 8)
    z = (uniform[:, 0] - uniform[:, 0].mean()) / uniform[:, 0].std(ddof=1)
    assert gaussianity(uniform[:, :1]) == pytest.approx(scipy.stats.kstest(z, "norm").statistic)
    assert gaussianity(uniform) > 2 * gaussianity_floor(1_000, 8)
    assert np.isnan(gaussianity(np.zeros((10, 2))))


def test_an_ellipse_holds_its_share(rng):
    """95 % of 10^5 normal points: 6.5 standard errors are .0045."""
    cov = np.array([[2.0, 0.6], [0.6, 0.5]])
    points = rng.multivariate_normal([1, 2], cov, 100_000)
    inside = (np.linalg.solve(cov, (points - [1, 2]).T) * (points - [1, 2]).T).sum(0) < 2.448**2
    assert abs(inside.mean() - 0.95) < 0.0045
    line = ellipse([1, 2], cov) - [1, 2]
    np.testing.assert_allclose((np.linalg.solve(cov, line.T) * line.T).sum(0), 2.448**2, rtol=1e-9)


def test_bad_input_is_refused(rng, tmp_path):
    network = MomentNetwork(small_classifier(), 0.3)
    images = rng.random((1, 8, 8, 1))
    with pytest.raises(ValueError, match=r"layers \['conv9'\] are not linear layers of the network, which has \['conv"):
        layer_moments(network, images, 40, layers=["conv9"])
    with pytest.raises(ValueError, match="samples must be a multiple of 20, got 50"):
        layer_moments(network, images, 50)
    with pytest.raises(ValueError, match=r"network too large: .* would take .* GB, more than memory_gb 1e-06"):
        layer_moments(network, images, 40, memory_gb=1e-6)
    classifier = tmp_path / "classifier.keras"
    models.lenet((8, 8, 1)).save(classifier)
    result = call_program(PROGRAM, "--classifier", classifier, "--data", "digits", "--show", "conv1", "conv9")
    assert (
        result.returncode == 2 and "no linear layers ['conv9'] in the classifier, which has ['conv1'" in result.stderr
    )
    result = call_program(PROGRAM, "--classifier", classifier, "--data", "digits", "--comparison", tmp_path)
    assert result.returncode == 2 and "holds no steps.json" in result.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["classifier.keras"]


def test_diagnose_writes_one_page_with_every_figure(tmp_path):
    classifier, compared = tmp_path / "classifier.keras", tmp_path / "compared"
    models.lenet((8, 8, 1)).save(classifier)
    compared.mkdir()
    (compared / "steps.json").write_text('{"gaussian_augmentation": {"ratios": [1, 1]}, "macer": {"ratios": [14, 15]}}')
    result = call_program(
        *(PROGRAM, "--classifier", classifier, "--data", "digits", "--images", 2, "--samples", 100),
        *("--sigma", 0.25, "--comparison", compared, "--out", tmp_path / "out"),
    )
    assert result.returncode == 0, result.stderr
    assert "The propagated variance is" in result.stdout and "conv1" in result.stdout
    for name in ("ratio", "clouds", "planes", "growth", "cost"):
        assert (tmp_path / "out" / f"{name}.png").stat().st_size > 10_000
        assert (tmp_path / "out" / f"{name}.svg").read_text().startswith("<?xml")
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("data:image/png") == 5 and "Cost of a training step" in page


def test_the_verdict_says_where_and_which_way(rng):
    rows = layer_moments(MomentNetwork(models.lenet((8, 8, 1)), 0.3), rng.random((1, 8, 8, 1)), 100)
    text = verdict(rows)
    below = sum(r.ratio < 1 for r in rows)
    assert f"Too small at {below} of 5 layers" in text and f"{rows[0].ratio:.2f}" in text
