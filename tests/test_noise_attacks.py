"""CAT-RS, the sphere attack and the stepped consistency against their formulas, in NumPy, on a linear classifier."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import small_classifier
from scipy.stats import binom, norm
from test_frontier import CLASSES, SIGMA, linear, nll, softmax

from covkeras import CertifiedTrainer, objectives
from covkeras.moments import Context
from covkeras.objectives.cat_rs import binomial

TRAINING = Context(training=True, epoch=30)


@pytest.fixture
def given(rng):
    model, weights = linear(rng)
    images, labels = rng.random((8, 4, 4, 1)).astype("float32"), rng.integers(0, CLASSES, 8)
    noise = rng.standard_normal((5, 8, 4, 4, 1)).astype("float32")
    flat = (images.reshape(8, 16).astype(np.float64), noise.reshape(5, 8, 16).astype(np.float64))
    return model, weights, (images, labels, noise), flat


def size(d):
    return np.linalg.norm(d, axis=-1, keepdims=True)


def uphill(x, d, weights, target):
    """The normalised gradient of KL(target || F(x + d)), or of the cross-entropy to a one-hot target."""
    g = (softmax((x + d) @ weights) - target) @ weights.T
    return g / size(g)


def kl(target, f):
    return (target * (np.log(target) - np.log(f))).sum(-1)


def test_cat_rs_is_its_formula(given, rng, tmp_path):
    model, weights, (images, labels, noise), (x, n) = given
    teacher, known = linear(np.random.default_rng(5))
    teacher.save(tmp_path / "teacher.keras")
    path, eps, count = str(tmp_path / "teacher.keras"), 0.7, 4
    objective = objectives.CatRs(SIGMA, teacher=path, eps=eps, steps=3, num_copies=count).attached(model)
    assert objective.copies == 5
    terms = objective(images, labels, noise, TRAINING)
    start = SIGMA * n[:4]
    f = softmax((x + start) @ weights)
    phat, each = (f.argmax(-1) == labels).mean(0), np.sort(nll(f, labels), axis=0)
    kept = np.maximum(1, binom.ppf(norm.cdf(n[4][:, 0]), count, phat)).astype(int)
    low = [each[:k, i].sum() / count for i, k in enumerate(kept)]
    np.testing.assert_allclose(terms.classification, low, rtol=2e-4)
    wanted, d = softmax((x + start) @ known).mean(0), start
    for _ in range(3):
        d = d + 2 * eps / 3 * uphill(x, d, weights, wanted)
        d = start + (d - start) * np.minimum(1, eps / size(d - start))
        centred, own = d - d.mean(-1, keepdims=True), start - start.mean(-1, keepdims=True)
        d = start.mean(-1, keepdims=True) + centred * size(own) / size(centred)
        np.testing.assert_allclose((d**2).mean(-1), (start**2).mean(-1))
    worst = kl(wanted, softmax((x + d) @ weights)).max(0)
    # It is an attack: larger than at the copies. And some images are unsure, some are not.
    assert (worst > kl(wanted, f).max(0)).all() and 0 < (kept == count).sum() < len(kept)
    np.testing.assert_allclose(terms.robustness, np.where(kept == count, worst, 0), rtol=2e-3, atol=1e-5)
    still = objective(images, labels, noise, Context())
    np.testing.assert_allclose(still.robustness, np.where(kept == count, kl(wanted, f).max(0), 0), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("p", [0.0, 0.25, 0.6, 1.0])
def test_the_binomial_is_scipys(rng, p):
    u = rng.uniform(0.001, 0.999, 200).astype("float32")
    got = binomial(4, keras.ops.convert_to_tensor(np.full(200, p, "float32")), keras.ops.convert_to_tensor(u))
    np.testing.assert_array_equal(got, binom.ppf(u, 4, p))


def test_the_sphere_attack_is_its_formula(given):
    model, weights, (images, labels, noise), (x, n) = given
    objective = objectives.SphereAttack(SIGMA, length=0.3, steps=3, num_copies=5).attached(model)
    terms = objective(images, labels, noise, TRAINING)
    d = start = SIGMA * n
    for _ in range(3):
        moved = d + 0.3 * uphill(x, d, weights, np.eye(CLASSES)[labels])
        right = softmax((x + d) @ weights).argmax(-1) == labels
        assert right.any() and not right.all()
        d = np.where(right[..., None], moved * size(start) / size(moved), d)
    expected = nll(softmax((x + d) @ weights), labels).mean(0)
    clean = nll(softmax((x + start) @ weights), labels).mean(0)
    assert (expected >= clean * (1 - 1e-9)).all() and (expected > clean).any()
    np.testing.assert_allclose(terms.classification, expected, rtol=5e-4)
    np.testing.assert_allclose(objective(images, labels, noise, Context()).classification, clean, rtol=5e-4)


@pytest.mark.parametrize("one_noise", [False, True])
@pytest.mark.parametrize("only_right", [False, True])
def test_the_stepped_consistency_is_consistency_of_the_stepped_copy(given, one_noise, only_right):
    model, weights, (images, labels, noise), (x, n) = given
    options = {"eps": 0.8, "one_noise": one_noise, "only_right": only_right, "detached": False}
    objective = objectives.SteppedConsistency(SIGMA, **options).attached(model)
    terms = objective(images, labels, noise[:2], TRAINING)
    first, second = SIGMA * n[0], SIGMA * n[0 if one_noise else 1]
    f = softmax((x + first) @ weights)
    moved = second + 0.8 * uphill(x, first, weights, np.eye(CLASSES)[labels])
    moved = moved * size(second) / size(moved)
    if only_right:
        moved = np.where((f.argmax(-1) == labels)[:, None], moved, second)
        assert 0 < (f.argmax(-1) == labels).sum() < len(labels)
    both = np.stack([f, softmax((x + moved) @ weights)])
    mean = both.mean(0)
    entropy = -(mean * np.log(mean)).sum(-1)
    np.testing.assert_allclose(terms.classification, nll(both, labels).mean(0) + 0.5 * entropy, rtol=5e-4)
    expected = (mean * (np.log(mean) - np.log(both))).sum(-1).mean(0)
    np.testing.assert_allclose(terms.robustness, expected, rtol=2e-3, atol=1e-5)
    # Without a step it is Consistency.
    plain = objectives.Consistency(SIGMA).attached(model)
    for context in (TRAINING, Context()):
        objective = objectives.SteppedConsistency(SIGMA, eps=0.0, detached=False).attached(model)
        still = objective(images, labels, noise[:2], context)
        for got, wanted in zip(still[:3], plain(images, labels, noise[:2], context)[:3], strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_the_detached_stepped_consistency_is_its_formula(given):
    model, weights, (images, labels, noise), (x, n) = given
    objective = objectives.SteppedConsistency(SIGMA, eps=0.8).attached(model)
    terms = objective(images, labels, noise[:2], TRAINING)
    first, second = SIGMA * n[0], SIGMA * n[1]
    moved = second + 0.8 * uphill(x, first, weights, np.eye(CLASSES)[labels])
    both = np.stack([softmax((x + d) @ weights) for d in (first, moved * size(second) / size(moved))])
    entropy = -(both.mean(0) * np.log(both.mean(0))).sum(-1)
    np.testing.assert_allclose(terms.classification, nll(both, labels).mean(0) + 0.5 * entropy, rtol=5e-4)
    np.testing.assert_allclose(terms.robustness, kl(both[0], both[1][None])[0], rtol=2e-3, atol=1e-5)
    still = objective(images, labels, noise[:2], Context())
    both = np.stack([softmax((x + d) @ weights) for d in (first, second)])
    np.testing.assert_allclose(still.robustness, kl(both[0], both[1][None])[0], rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("weights", [None, "ones", "some"])
def test_the_detached_step_is_the_gradient_of_its_loss(rng, weights):
    """One backward pass of the first copy, or with weights the trainer's own: the same weights after a step."""
    images = rng.random((12, 8, 8, 1)).astype("float32")
    labels, given = rng.integers(0, 3, 12), {None: None, "ones": np.ones(12), "some": rng.random(12)}[weights]
    noise = tf.random.stateless_normal((2, 12, 8, 8, 1), [0, 0], alg="philox")

    def trained(objective):
        trainer = CertifiedTrainer(small_classifier(classes=3), objective)
        trainer.compile(keras.optimizers.SGD(0.5))
        before = trainer.classifier.get_weights()
        trainer.train_on_batch(images, labels, sample_weight=given)
        return before, trainer.classifier.get_weights()

    objective = objectives.SteppedConsistency(0.5, lam=2.0, eps=0.4)
    before, after = trained(objective)
    model = small_classifier(classes=3)
    for variable, value in zip(model.weights, before, strict=True):
        variable.assign(value)
    plain = objective.attached(model)
    with tf.GradientTape() as tape:
        terms = plain(images, labels, noise, Context(training=True, weighted=True))
        each = terms.classification + 2.0 * terms.robustness
        loss = tf.reduce_mean(each if given is None else each * tf.cast(given, tf.float32))
    slopes = tape.gradient(loss, model.trainable_variables)
    for value, slope, now in zip(before, slopes, after, strict=True):
        np.testing.assert_allclose(now, value - 0.5 * slope, rtol=1e-4, atol=1e-6)
        assert np.abs(slope).max() > 1e-4


def test_a_copy_without_a_gradient_keeps_its_noise(rng):
    """A constant classifier."""
    model, _ = linear(rng)
    model.set_weights([np.zeros((16, CLASSES)), np.zeros(CLASSES)])
    images, labels = rng.random((2, 4, 4, 1)).astype("float32"), np.zeros(2, int)
    noise = rng.standard_normal((2, 2, 4, 4, 1)).astype("float32")
    for objective in (objectives.SphereAttack(SIGMA, num_copies=2), objectives.SteppedConsistency(SIGMA)):
        terms = objective.attached(model)(images, labels, noise, TRAINING)
        assert np.isfinite(terms.classification).all()


@pytest.mark.parametrize("method", ["SmoothAdv", "SmoothMix", "CatRs", "SphereAttack", "SteppedConsistency"])
def test_a_signal_is_an_image_of_one_axis_less(method, given, tmp_path):
    """The same 16 numbers as 4 x 4 pixels and as a signal: the same losses. Norms are an image's, whatever its axes."""
    model, _, (images, labels, noise), _ = given
    signals = keras.Sequential([keras.Input((16, 1)), keras.layers.Flatten(), keras.layers.Dense(CLASSES)])
    signals.set_weights(model.get_weights())
    found = []
    for one, shape in ((model, (4, 4, 1)), (signals, (16, 1))):
        one.save(tmp_path / "teacher.keras")
        options = {"teacher": str(tmp_path / "teacher.keras")} if method == "CatRs" else {}
        options |= {"only_right": True} if method == "SteppedConsistency" else {}
        objective = getattr(objectives, method)(SIGMA, **options).attached(one)
        count = objective.copies
        terms = objective(images.reshape(8, *shape), labels, noise[:count].reshape(count, 8, *shape), TRAINING)
        found.append([np.asarray(t) for t in terms[:3] if t is not None])
    for image, signal in zip(*found, strict=True):
        np.testing.assert_allclose(image, signal, rtol=1e-4, atol=1e-5)
