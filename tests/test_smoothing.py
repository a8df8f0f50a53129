import functools

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from conftest import grid_images, small_classifier
from keras import layers

from covkeras import SmoothedClassifier, average_certified_radius, models, objectives
from covkeras.certification import GaussianNoise, cohen, records, voting
from covkeras.certification.noise import ESTIMATION, SELECTION
from covkeras.certification.smoothing import default_batch_size
from covkeras.runtime import devices


def linear_classifier(rng, shape=(4, 4, 1)):
    """w x + b with two classes: g's radius is |w x + b| / |w|, in closed form."""
    model = keras.Sequential([keras.Input(shape), layers.Flatten(), layers.Dense(2)])
    weights = rng.normal(size=(int(np.prod(shape)), 2))
    model.layers[-1].set_weights([weights, np.array([0.0, -0.5 * (weights[:, 1] - weights[:, 0]).sum()])])

    def radius(images):
        kernel, bias = (np.asarray(w, "float64") for w in model.layers[-1].get_weights())
        direction, offset = kernel[:, 1] - kernel[:, 0], bias[1] - bias[0]
        margin = images.reshape(len(images), -1).astype("float64") @ direction + offset
        return np.abs(margin) / np.linalg.norm(direction), (margin > 0).astype(int)

    return model, radius


def test_certificates_of_a_linear_classifier_hold(rng):
    """2,000 images: certificates above the true radius are at most Binomial(2000, alpha), limit at 1e-8."""
    model, exact = linear_classifier(rng)
    images = grid_images(rng, 2_000, 4)
    radius, label = exact(images)
    c = SmoothedClassifier(model, 0.25).certify(images, n0=50, n=2_000, alpha=0.001, seed=1)
    wrong = ((c.label != -1) & ((c.label != label) | (c.radius > radius))).sum()
    assert wrong <= scipy.stats.binom.ppf(1 - 1e-8, 2_000, 0.001)
    assert ((c.label == -1) == (c.radius == 0)).all()


@pytest.mark.slow
def test_certificates_of_a_linear_classifier_are_tight(rng):
    """The median certificate within 3 % of the true radius at n = 100,000, where n does not cap it."""
    model, exact = linear_classifier(rng)
    images = grid_images(rng, 300, 4)
    radius, _ = exact(images)
    chosen = (radius > 0.25) & (radius < 0.8)
    assert chosen.sum() > 50
    c = SmoothedClassifier(model, 0.25).certify(images[chosen], n0=100, n=100_000, alpha=0.001, seed=2)
    assert np.median(c.radius / radius[chosen]) > 0.97


def test_certificates_do_not_depend_on_what_else_is_certified(rng):
    """Bit for bit: any subset, order or grouping of the images."""
    classifier = models.lenet((8, 8, 1))
    images = grid_images(rng, 7, 8)
    smoothed = SmoothedClassifier(classifier, 0.5, batch_size=64)
    whole = smoothed.certify(images, n0=32, n=500, alpha=0.01, seed=9)
    order = np.array([5, 0, 3, 6])
    part = SmoothedClassifier(classifier, 0.5, batch_size=64).certify(
        images[order], n0=32, n=500, alpha=0.01, seed=9, indices=order
    )
    for name in ("label", "radius", "p_lower", "samples"):
        assert np.array_equal(getattr(whole, name)[order], getattr(part, name))
    other = smoothed.certify(images, n0=32, n=500, alpha=0.01, seed=10)
    assert not np.array_equal(whole.p_lower, other.p_lower)


def test_votes_are_the_classes_of_the_noisy_copies(rng):
    """The loop, its remainder and its noise against a plain evaluation of the same stream."""
    classifier = small_classifier()
    smoothed = SmoothedClassifier(classifier, 0.5, batch_size=32, noise="gaussian")
    images = grid_images(rng, 2, 8)
    both = smoothed.ballot.count(images, [11, 4], ESTIMATION, 75, seed=4)
    for image, index, votes in zip(images, (11, 4), both, strict=True):
        noise = [GaussianNoise(0.5).draw(4, index, ESTIMATION, block, (32, 8, 8, 1))[0] for block in range(3)]
        copies = image + np.concatenate(noise)[:75]
        assert np.array_equal(votes, np.bincount(np.argmax(classifier(copies), 1), minlength=3))
        assert votes.dtype == np.int64 and votes.sum() == 75


def test_non_finite_logits_vote_for_nobody(rng):
    images = keras.Input((2, 2, 1))
    x = layers.Flatten()(images)
    x = layers.Lambda(lambda t: tf.where(t > 0.5, t * np.nan, t))(x)
    model = keras.Model(images, layers.Dense(2, kernel_initializer="zeros", bias_initializer="ones")(x))
    smoothed = SmoothedClassifier(model, 0.5)
    votes = smoothed.ballot.count(np.full((1, 2, 2, 1), 0.4, np.float32), [0], SELECTION, 1_000, 0)[0]
    assert 0 < votes[0] < 400 and votes[1] == 0
    with pytest.warns(RuntimeWarning, match="votes for image 5 are void: the classifier's logits are NaN"):
        c = smoothed.certify(np.full((1, 2, 2, 1), 0.4, np.float32), 10, 1_000, 0.001, index=5)
    assert c.label[0] == -1 and c.samples[0] == 1_010 and 600 < c.void[0] < 1_010


def test_predict_abstains_or_is_right(rng):
    """On a linear classifier g's class is known: a wrong answer has probability alpha, limit at 1e-8."""
    model, exact = linear_classifier(rng)
    images = grid_images(rng, 300, 4)
    _, label = exact(images)
    p = SmoothedClassifier(model, 0.25).predict(images, n=200, alpha=0.001, seed=0)
    assert ((p.label != -1) & (p.label != label)).sum() <= scipy.stats.binom.ppf(1 - 1e-8, 300, 0.001)
    assert (p.label == label).mean() > 0.7
    assert (p.counts.sum(1) == 200).all()


def test_progress_and_empty_batches(rng):
    smoothed = SmoothedClassifier(small_classifier(), 0.5)
    seen = []
    c = smoothed.certify(grid_images(rng, 2, 8), 10, 10, 0.01, progress=lambda *a: seen.append(a))
    assert (
        [position for position, _ in seen] == [0, 1]
        and len(seen[1][1]) == 1
        and len(c) == 2
        and (c.samples == 20).all()
    )
    assert len(smoothed.certify(np.zeros((0, 8, 8, 1), np.float32), 10, 10, 0.01)) == 0
    with pytest.raises(ValueError, match="at least one image"):
        average_certified_radius(smoothed.certify(np.zeros((0, 8, 8, 1), np.float32), 10, 10, 0.01), [])


GOOD = np.full((2, 8, 8, 1), 0.2, np.float32)
BAD_IMAGES = {
    "Divide 8-bit images by 255": (GOOD.astype(np.uint8), TypeError),
    r"must lie in \[0, 1\], got values from 0.2 to 1.2": (np.concatenate([GOOD, GOOD * 6]), ValueError),
    "got NaN": (GOOD * np.nan, ValueError),
    "got rank 3": (GOOD[0], ValueError),
    r"must have shape \(batch, 8, 8, 1\), got \(2, 8, 8, 3\)": (np.repeat(GOOD, 3, -1), ValueError),
}


@pytest.mark.parametrize("message", BAD_IMAGES)
def test_bad_images_are_refused(message):
    images, kind = BAD_IMAGES[message]
    with pytest.raises(kind, match=message):
        SmoothedClassifier(small_classifier(), 0.5).certify(images, 10, 10, 0.01)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"alpha": 0}, r"alpha must be a number in \(0, 1\), got 0"),
        ({"alpha": 1.0}, "alpha must be"),
        ({"n": 0}, "n must be a whole number from 1 to 10000000, got 0"),
        ({"n": 10.5}, "n must be a whole number"),
        ({"n0": 0}, "n0 must be a whole number"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"indices": [0]}, "indices must be 2 whole numbers"),
        ({"indices": [0, -1]}, "indices must be 2 whole numbers"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(change, message, monkeypatch):
    smoothed = SmoothedClassifier(small_classifier(), 0.5)
    monkeypatch.setattr(smoothed.ballot, "count", lambda *a: pytest.fail("work was done"))
    with pytest.raises(ValueError, match=message):
        smoothed.certify(GOOD, **{"n0": 10, "n": 10, "alpha": 0.01, **change})


def test_bad_classifiers_are_refused():
    softmax = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(3, activation="softmax")])
    with pytest.raises(ValueError, match="ends in probabilities"):
        SmoothedClassifier(softmax, 0.5)
    with pytest.raises(ValueError, match="sigma must be a number in"):
        SmoothedClassifier(small_classifier(), 0.0)
    with pytest.raises(ValueError, match="batch_size must be a whole number"):
        SmoothedClassifier(small_classifier(), 0.5, batch_size=0)


@pytest.mark.parametrize("sigma", [64, 127.5, 10])
def test_a_level_of_8_bit_images_is_refused(sigma):
    for made in (objectives.GaussianAugmentation, functools.partial(SmoothedClassifier, small_classifier())):
        with pytest.raises(ValueError, match=r"sigma must be a number in \(0, 10\).*is divided by 255"):
            made(sigma=sigma)


def test_max_pooling_is_no_obstacle_to_certification(rng):
    """Certification runs the plain network: any Keras classifier will do."""
    model = keras.Sequential([keras.Input((8, 8, 1)), layers.MaxPooling2D(), layers.Flatten(), layers.Dense(3)])
    assert len(SmoothedClassifier(model, 0.5).certify(GOOD, 10, 10, 0.01)) == 2


def test_default_batch_shrinks_with_the_image():
    sizes = [default_batch_size(s) for s in ((8, 8, 1), (28, 28, 1), (32, 32, 3), (224, 224, 3), (784,))]
    assert sizes == [1024, 512, 512, 16, 512]


def test_it_says_what_it_is():
    smoothed = SmoothedClassifier(small_classifier(), sigma=0.25, batch_size=64, precision="bfloat16")
    name = smoothed.classifier.name
    options = "sigma=0.25, batch_size=64, noise='lattice', shared_noise=False, precision='bfloat16'"
    assert repr(smoothed) == f"SmoothedClassifier({name!r}, {options})"


def test_shared_noise_is_that_of_index_0_whatever_the_group(rng):
    """Any image, in any group, is certified as alone; at index 0 as without sharing."""
    classifier, images = small_classifier(), grid_images(rng, 20, 8)
    smoothed = SmoothedClassifier(classifier, 0.5, batch_size=64, shared_noise=True)
    whole = smoothed.certify(images, n0=32, n=500, alpha=0.01, seed=9)
    order = np.array([17, 0, 5])
    part = smoothed.certify(images[order], n0=32, n=500, alpha=0.01, seed=9, indices=order)
    alone = [SmoothedClassifier(classifier, 0.5, batch_size=64).certify(i[None], 32, 500, 0.01, 9) for i in images]
    for name in ("label", "radius", "p_lower", "samples"):
        assert np.array_equal(getattr(whole, name)[order], getattr(part, name))
        assert np.array_equal(getattr(whole, name), [getattr(c, name)[0] for c in alone])


def test_a_certificate_is_the_same_whatever_its_group(rng, monkeypatch):
    """With noise of its own an image is certified alone while that is slow, and with others where it is quick."""
    smoothed, images, runs = SmoothedClassifier(small_classifier(), 0.5, batch_size=64), grid_images(rng, 40, 8), []
    for seconds, sizes in ((0.0, [1] * 40), (1e9, [1, 2, 4, 8, 16, 9])):
        monkeypatch.setattr(cohen, "GROUP_SECONDS", seconds)
        assert [p.stop - p.start for p in cohen.groups(False, 40)] == sizes
        runs.append(smoothed.certify(images, n0=32, n=500, alpha=0.01, seed=9))
    for name in ("label", "radius", "p_lower", "samples"):
        assert np.array_equal(*(getattr(c, name) for c in runs))


@pytest.mark.parametrize("shared", [False, True])
def test_two_devices_count_as_one(shared, rng):
    """Which replica draws a block does not change it: the same certificates and decisions."""
    classifier, images = small_classifier(), grid_images(rng, 6, 8)
    one = SmoothedClassifier(classifier, 0.5, batch_size=64, shared_noise=shared)
    two = SmoothedClassifier(classifier, 0.5, batch_size=64, shared_noise=shared, strategy=devices.strategy("2"))
    a, b = (s.certify(images, n0=50, n=1_000, alpha=0.01, seed=2) for s in (one, two))
    for name in ("label", "radius", "p_lower", "samples"):
        assert np.array_equal(getattr(a, name), getattr(b, name))
    a, b = (s.certify_at(images, 0.1, max_n=2_000, seed=2) for s in (one, two))
    for name in ("label", "certified", "decided", "hits", "trials"):
        assert np.array_equal(getattr(a, name), getattr(b, name))


@pytest.mark.parametrize("noise", ["lattice", "gaussian"])
def test_noise_drawn_for_several_batches_at_once_is_the_same(noise, rng, monkeypatch):
    """Whether the batches, 1 to 48 of them, are a multiple of so many, or few."""
    classifier, images = small_classifier(), grid_images(rng, 3, 8)
    found = {}
    for many in (4, 1):
        monkeypatch.setattr(voting, "_DRAWN_AT_ONCE", many)
        ballot = SmoothedClassifier(classifier, 0.5, batch_size=64, noise=noise).ballot
        found[many] = [
            ballot.count(images[:count], 7 * np.arange(count), ESTIMATION, n, seed=3)
            for count, n in ((1, 10), (2, 128), (1, 1_100), (3, 400), (3, 1_000))
        ]
        slots = np.arange(18 * ballot.slots)
        found[many].append(ballot.count_blocks(images[slots % 3], slots, slots % 2, slots // 2, seed=3))
        assert {f"count by {many}", f"blocks by {many}"} <= set(ballot._compiled)
    for several, one in zip(*found.values(), strict=True):
        assert np.array_equal(several, one)
    expected = [[10], [128] * 2, [1_100], [400] * 3, [1_000] * 3, [voting.BLOCK] * len(slots)]
    assert [counts.sum(1).tolist() for counts in found[4]] == expected


def test_precision_makes_another_classifier_with_the_same_weights(rng):
    classifier, images = models.lenet((8, 8, 1)), grid_images(rng, 4, 8)
    smoothed = SmoothedClassifier(classifier, 0.5, precision="bfloat16")
    policies = [layer.compute_dtype for layer in smoothed.classifier.layers if layer.weights]
    assert set(policies[:-1]) == {"bfloat16"} and policies[-1] == "float32"
    assert all(
        np.array_equal(a, b) for a, b in zip(classifier.get_weights(), smoothed.classifier.get_weights(), strict=True)
    )
    assert {layer.compute_dtype for layer in classifier.layers} == {"float32"}
    logits, rounded = classifier(images), smoothed.classifier(images)
    np.testing.assert_allclose(rounded, logits, atol=0.05 * np.abs(logits).max())
    assert not np.array_equal(rounded, logits)
    assert records.settings_of(smoothed)["precision"] == "bfloat16 and float32"
    assert records.settings_of(smoothed)["classifier"] != records.classifier_digest(classifier)
    with pytest.raises(ValueError, match="precision must be one of float32, bfloat16, float16, float64, got 'int8'"):
        SmoothedClassifier(classifier, 0.5, precision="int8")


def test_deterministic_votes_do_not_depend_on_the_batch(rng):
    """In float64, of the same weights: the same counts whatever the batch's shape, for an image where many votes are
    close; its certificates say that they are float64's."""
    classifier, images = models.lenet((8, 8, 1)), grid_images(rng, 2, 8)
    each = [SmoothedClassifier(classifier, 0.5, batch_size=b, deterministic=True) for b in (100, 500)]
    assert {layer.compute_dtype for layer in each[0].classifier.layers if layer.weights} == {"float64"}
    assert records.settings_of(each[0])["precision"] == "float64"
    np.testing.assert_allclose(each[0].classifier(images), classifier(images), rtol=1e-4, atol=1e-5)
    # Two streams of blocks of another length are other noise; that of a whole block of 500 is the same 5 of 100.
    noise, _ = each[0].noise.draw(0, 0, phase=0, block=0, shape=(500, 8, 8, 1))
    copies = each[0].noise.add(images[0], noise)
    wanted = np.ones(500, bool)
    whole = np.asarray(each[1].ballot.votes_of(copies, wanted))
    parts = [np.asarray(each[0].ballot.votes_of(copies[i : i + 100], wanted[:100])) for i in range(0, 500, 100)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    with pytest.raises(ValueError, match="precision must be float64 where deterministic is true"):
        SmoothedClassifier(classifier, 0.5, precision="bfloat16", deterministic=True)


class Counting(keras.layers.Layer):
    """Answers otherwise every time."""

    def build(self, shape):
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        self.calls.assign_add(1.0)
        return x * self.calls


class Always(keras.layers.Layer):
    """A layer that trains always. (Written into a functional graph, training=True gives way to what the model is called
    with.)"""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def call(self, x):
        return self.layer(x, training=True)


NO_FUNCTIONS = {
    "dropout": (lambda x: Always(layers.Dropout(0.3))(x), "asked twice"),
    "gaussian noise": (lambda x: Always(layers.GaussianNoise(0.1))(x), "asked twice"),
    "random flip": (lambda x: Always(layers.RandomFlip())(x), "asked twice"),
    "counting": (lambda x: Counting()(x), "asked twice"),
    "batch statistics": (lambda x: Always(layers.BatchNormalization())(x), "asked twice|on the others in its batch"),
    "batch's mean": (lambda x: x - keras.ops.mean(x, axis=0, keepdims=True), "depends on the others in its batch"),
}


@pytest.mark.parametrize("kind", NO_FUNCTIONS)
def test_what_is_no_function_of_its_image_is_refused(kind):
    layer, message = NO_FUNCTIONS[kind]
    image = keras.Input((8, 8, 1))
    logits = layers.Dense(4)(layers.Flatten()(layer(image)))
    with pytest.raises(ValueError, match=message):
        SmoothedClassifier(keras.Model(image, logits), 0.25)


def test_layers_that_are_random_in_training_alone_are_taken():
    image = keras.Input((8, 8, 1))
    x = layers.BatchNormalization()(layers.GaussianNoise(0.1)(layers.Dropout(0.3)(image)), training=True)
    SmoothedClassifier(keras.Model(image, layers.Dense(4)(layers.Flatten()(x))), 0.25)


def test_the_bounds_of_all_classes_hold_together(rng):
    """20,000 images of known shares that leave a runner-up little less than the first: p_A below its lower bound, or
    any other class above its own, in at most alpha of them (limit at 1e-8); never a radius beyond the exact one but in
    those."""
    from covkeras.certification.cohen import bounds_of

    runs, n, alpha, sigma = 20_000, 500, 0.05, 0.5
    shares = np.where(rng.random((runs, 1)) < 0.5, [[0.4, 0.35, 0.25]], [[0.45, 0.3, 0.25]])
    votes = rng.multinomial(n, shares)
    low, high, radius = bounds_of(votes, np.zeros(runs, int), n, alpha, sigma, runner_up=True)
    wrong = (low > shares[:, 0]) | (high < shares[:, 1])
    exact = 0.5 * sigma * (scipy.stats.norm.ppf(shares[:, 0]) - scipy.stats.norm.ppf(shares[:, 1]))
    assert wrong.sum() <= scipy.stats.binom.ppf(1 - 1e-8, runs, alpha)
    assert (radius[~wrong] <= exact[~wrong]).all() and (radius > 0).mean() > 0.2
    # One class alone has none: p_A is below 1/2.
    assert (bounds_of(votes, np.zeros(runs, int), n, alpha, sigma)[2] > 0).sum() <= wrong.sum()


def test_the_runner_up_is_scipys(rng):
    """Against scipy's beta quantiles; a void vote may be the runner-up's; where one class is left, as without it, but
    for nine tenths of alpha."""
    from covkeras.certification.cohen import bounds_of

    votes = np.array([[600, 200, 150], [950, 30, 20], [990, 0, 0]])
    low, high, radius = bounds_of(votes, np.zeros(3, int), 1_000, 0.001, 0.5, runner_up=True)
    k, others = votes[:, 0], np.array([250, 30, 10])
    exact_low = scipy.stats.beta.ppf(0.0009, k, 1_000 - k + 1)
    exact_high = np.minimum(scipy.stats.beta.ppf(1 - 0.0001 / 2, others + 1, 1_000 - others), 1 - exact_low)
    np.testing.assert_allclose(low, exact_low, rtol=1e-6)
    np.testing.assert_allclose(high, exact_high, rtol=1e-6)
    assert (low <= exact_low).all() and (high >= exact_high * (1 - 1e-15)).all()
    exact = 0.25 * (scipy.stats.norm.ppf(exact_low) - scipy.stats.norm.ppf(exact_high))
    np.testing.assert_allclose(radius, exact, rtol=1e-5)
    assert (radius <= exact).all()


def test_the_runner_up_is_written_and_read(tmp_path, rng):
    classifier, images = small_classifier(classes=3), grid_images(rng, 3, 8)
    smoothed = SmoothedClassifier(classifier, 0.5)
    found = smoothed.certify(images, n=500, runner_up=True)
    alone = smoothed.certify(images, n=500)
    assert np.isfinite(found.p_upper).all() and np.isnan(alone.p_upper).all()
    assert (found.p_lower <= alone.p_lower).all()
    with records.open_records(tmp_path / "c.tsv", {"runner_up": True}) as file:
        for i in range(3):
            file.append(i, 0, found.take([i]))
    _, _, read = records.read_certificates(tmp_path / "c.tsv")
    np.testing.assert_array_equal(read.p_upper, found.p_upper)
    np.testing.assert_array_equal(read.radius, found.radius)
