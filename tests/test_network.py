import re

import keras
import numpy as np
import pytest
from conftest import small_classifier
from keras import layers

from covkeras import MomentNetwork, Moments, models
from covkeras.moments import Context, Gaussian, GaussianInput, propagate
from covkeras.moments.network import walk


def branching_classifier():
    """Several branches, a shared layer, a nested model: what a graph walk can get wrong."""
    images = keras.Input((6, 6, 2))
    shared = layers.Conv2D(3, 3, padding="same", name="shared")
    inner_in = keras.Input((6, 6, 3))
    inner = keras.Model(inner_in, layers.ReLU()(layers.Conv2D(3, 1)(inner_in)), name="inner")
    left = shared(images)
    right = shared(layers.Rescaling(0.5)(images))
    joined = layers.Add()([inner(left), inner(right)])
    joined = layers.Concatenate()([joined, images])
    return keras.Model(images, layers.Dense(4)(layers.Flatten()(joined)))


def test_walk_visits_every_use_of_every_layer_in_order():
    """Pins the one function that knows Keras' private graph."""
    model = branching_classifier()
    visited = []

    def visit(layer, given, position, options):
        assert options == {}
        assert position == len(visited)
        visited.append(layer.name)
        return f"{layer.name}({','.join(given) if isinstance(given, list) else given})"

    result = walk(model, "x", visit)
    names = re.sub(r"_\d+", "", result)
    assert names == "dense(flatten(concatenate(add(inner(shared(x)),inner(shared(rescaling(x)))),x)))"
    assert len(visited) == 9


@pytest.mark.parametrize("make", [branching_classifier, small_classifier, lambda: models.lenet((8, 8, 1))])
def test_walk_computes_what_the_model_computes(make, rng):
    model = make()
    images = rng.random((3, *model.input_shape[1:])).astype("float32")
    result = walk(model, images, lambda layer, given, *_: layer(given))
    np.testing.assert_allclose(result, model(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [branching_classifier, small_classifier, models.lenet, models.preact_resnet18])
def test_mean_without_noise_is_the_classifier(make, rng):
    classifier = make()
    network = MomentNetwork(classifier, sigma=1e-4)
    images = rng.random((2, *classifier.input_shape[1:])).astype("float32")
    logits = network(images)
    assert isinstance(logits, Gaussian)
    classes = classifier.output_shape[-1]
    assert logits.mean.shape == (2, classes) and logits.cov.shape == (classes, classes)
    # Keras' zero-initialised last convolutions leave ReLUs at 0 exactly, where smoothing shifts by sigma phi(0).
    np.testing.assert_allclose(logits.mean, classifier(images), atol=2e-3)


def test_weights_are_shared_both_ways(rng):
    classifier = small_classifier()
    network = MomentNetwork(classifier, sigma=0.5)
    images = rng.random((2, 8, 8, 1)).astype("float32")
    before = np.asarray(network(images).mean)
    assert {id(v) for v in network.trainable_variables} == {id(v) for v in classifier.trainable_variables}
    classifier.layers[0].bias.assign_add([1.0] * 4)
    assert not np.allclose(before, network(images).mean)


def test_moments_against_sampling_of_a_smoothed_network(rng):
    """A one-hidden-layer network, where the first covariance is exact: means within 7 standard errors (2.6e-12)."""
    images_in = keras.Input((4, 4, 1))
    x = layers.Conv2D(3, 4, activation="relu")(images_in)
    classifier = keras.Model(images_in, layers.Dense(2)(layers.Flatten()(x)))
    network = MomentNetwork(classifier, sigma=0.3, r_max=0.0)
    image = rng.random((1, 4, 4, 1)).astype("float32")
    noisy = image + 0.3 * rng.standard_normal((400_000, 4, 4, 1), dtype=np.float32)
    logits = classifier.predict(noisy, batch_size=50_000, verbose=0).astype("float64")
    errors = logits.std(0) / np.sqrt(len(logits))
    assert (np.abs(np.asarray(network(image).mean)[0] - logits.mean(0)) < 7 * errors + 1e-5).all()
    # The paper's covariance after a ReLU is an upper bound here: its diagonal is never below the sampled one.
    assert (np.diag(network(image).cov) > 0.98 * logits.var(0)).all()


def test_layers_by_hand_in_a_functional_model_survive_saving(tmp_path, rng):
    images = keras.Input((4, 4, 1))
    pair = GaussianInput(0.5)(images)
    pair = Moments(layers.Conv2D(3, 3, activation="relu"), r_max=0.2)(pair)
    pair = Moments(layers.GlobalAveragePooling2D())(pair)
    mean, cov = Moments(layers.Dense(2))(pair)
    model = keras.Model(images, [mean, cov])
    x = rng.random((3, 4, 4, 1)).astype("float32")
    model.save(tmp_path / "pairs.keras")
    loaded = keras.models.load_model(tmp_path / "pairs.keras")
    for before, after in zip(model(x), loaded(x), strict=True):
        np.testing.assert_allclose(before, after, rtol=1e-6)
    assert loaded(x)[1].shape == (2, 2)


def test_hand_laid_layers_equal_the_network(rng):
    classifier = small_classifier()
    x = rng.random((2, 8, 8, 1)).astype("float32")
    pair = GaussianInput(0.5)(x)
    for layer in classifier.layers:
        pair = Moments(layer, r_max=0.1)(pair)
    network = MomentNetwork(classifier, 0.5, r_max=0.1)(x)
    np.testing.assert_allclose(pair[0], network.mean, rtol=1e-5)
    np.testing.assert_allclose(pair[1], network.cov, rtol=1e-5)


def test_covariance_stays_float32_under_mixed_precision(rng):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        classifier = models.lenet((8, 8, 1))
    finally:
        keras.config.set_dtype_policy("float32")
    network = MomentNetwork(classifier, 0.5)
    dtypes = []

    def rectify(gaussian, activation):
        dtypes.append((gaussian.mean.dtype.name, gaussian.cov.dtype.name))
        return gaussian

    logits = network(rng.random((2, 8, 8, 1)).astype("float32"), context=Context(rectify=rectify))
    assert set(dtypes) == {("bfloat16", "float32")}
    assert logits.mean.dtype.name == logits.cov.dtype.name == "float32"


def with_end(*end):
    return lambda: keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), *end])


REFUSED = {
    "No moment rule for Softmax": (
        lambda: keras.Sequential([keras.Input((8, 8, 2)), layers.Softmax(), layers.Flatten(), layers.Dense(2)]),
        NotImplementedError,
    ),
    "ends in probabilities": (with_end(layers.Dense(3, activation="softmax")), ValueError),
    "layer 'soft' ends in": (with_end(layers.Dense(3), layers.Softmax(name="soft")), ValueError),
    "without inputs": (lambda: keras.Sequential([layers.Dense(3)]), ValueError),
    "classes >= 2": (with_end(layers.Dense(1)), ValueError),
}


@pytest.mark.parametrize("message", REFUSED)
def test_classifiers_are_refused_with_the_remedy(message):
    make, kind = REFUSED[message]
    with pytest.raises(kind, match=message):
        MomentNetwork(make(), sigma=0.5)


@pytest.mark.parametrize("r_max", [-0.1, 1.0, float("nan"), "0.1"])
def test_r_max_is_refused(r_max):
    with pytest.raises(ValueError, match=r"r_max must be a number in \[0, 1\)"):
        MomentNetwork(small_classifier(), 0.5, r_max)


def test_operations_on_tensors_are_the_layers_that_do_the_same(rng):
    images = keras.Input((4, 4, 1))
    conv, end = layers.Conv2D(2, 3), layers.Dense(2)
    x = conv(images)
    written = keras.Model(images, end(layers.Flatten()(x + x)))
    laid = keras.Model(images, end(layers.Flatten()(layers.Add()([x, x]))))
    batch = rng.random((2, 4, 4, 1)).astype("float32")
    one, two = MomentNetwork(written, 0.5)(batch), MomentNetwork(laid, 0.5)(batch)
    np.testing.assert_allclose(one.mean, two.mean, rtol=1e-6)
    np.testing.assert_allclose(one.cov, two.cov, rtol=1e-6)


def test_images_of_another_shape_are_refused(rng):
    network = MomentNetwork(small_classifier(), 0.5)
    with pytest.raises(ValueError, match="got rank 3"):
        network(rng.random((8, 8, 1)).astype("float32"))
    with pytest.raises(ValueError, match=r"must have shape \(batch, 8, 8, 1\)"):
        network(rng.random((2, 8, 8, 3)).astype("float32"))


def test_a_model_is_a_layer_with_a_rule(rng):
    classifier = small_classifier()
    images = rng.random((2, 8, 8, 1)).astype("float32")
    direct = propagate(classifier, Gaussian(images, 0.25 * np.eye(1, dtype="float32")))
    np.testing.assert_allclose(direct.mean, MomentNetwork(classifier, 0.5, r_max=0.0)(images).mean, rtol=1e-5)
