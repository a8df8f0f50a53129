import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from conftest import small_classifier
from keras import layers

from covkeras import MomentNetwork, objectives
from covkeras.moments import Context, propagated_radius
from covkeras.objectives.copies import copies_of
from covkeras.training.trainer import COMPILED


def test_gaussian_augmentation_is_cross_entropy_at_the_noisy_copy(rng):
    classifier = small_classifier()
    objective = objectives.GaussianAugmentation(sigma=0.5)
    objective.attach(classifier)
    images, noise = rng.random((4, 8, 8, 1)).astype("float32"), rng.normal(size=(1, 4, 8, 8, 1)).astype("float32")
    labels = np.array([0, 1, 2, 0])
    terms = objective(images, labels, noise, Context(training=True))
    logits = np.asarray(classifier(images + 0.5 * noise[0]), "float64")
    expected = np.log(np.exp(logits).sum(1)) - logits[np.arange(4), labels]
    np.testing.assert_allclose(terms.classification, expected, rtol=1e-5)
    assert terms.robustness is None and objective.copies == 1


def test_covariance_radius_against_a_hand_worked_case():
    """Identity classifier of two pixels: means x, covariance sigma^2 I, radius (x_y - x_other) / sqrt 2."""
    classifier = keras.Sequential(
        [keras.Input((1, 2, 1)), layers.Flatten(), layers.Dense(2, kernel_initializer="identity")]
    )
    objective = objectives.CovarianceRadius(sigma=0.5, gamma=1.0, r_max=0.0)
    objective.attach(classifier)
    images = np.array([[0.9, 0.1], [0.2, 0.6]], np.float32).reshape(2, 1, 2, 1)
    terms = objective(images, np.array([0, 0]), None, Context())
    np.testing.assert_allclose(terms.radius, [0.8 / 2**0.5, -0.4 / 2**0.5], rtol=1e-5)
    # The second image is misclassified: no hinge.
    np.testing.assert_allclose(terms.robustness, [1 - 0.8 / 2**0.5, 0.0], rtol=1e-5)
    np.testing.assert_allclose(terms.classification, np.log1p(np.exp([-0.8, 0.4])), rtol=1e-5)


def test_noisy_mean_moves_the_mean_alone(rng):
    classifier = small_classifier()
    objective = objectives.CovarianceRadius(sigma=0.5, noisy_mean=True)
    objective.attach(classifier)
    images, noise = rng.random((4, 8, 8, 1)).astype("float32"), rng.normal(size=(1, 4, 8, 8, 1)).astype("float32")
    terms = objective(images, np.zeros(4, int), noise, Context())
    network = MomentNetwork(classifier, 0.5, 0.1)
    np.testing.assert_allclose(terms.radius, propagated_radius(network(images + 0.5 * noise[0]), 0.5, np.zeros(4, int)))
    assert objective.copies == 1 and objectives.CovarianceRadius().copies == 0


def gradients(objective, classifier, images, labels):
    objective.attach(classifier)
    with tf.GradientTape() as tape:
        terms = objective(images, labels, None, Context(training=True))
        loss = tf.reduce_mean(terms.classification) + 4.0 * tf.reduce_mean(terms.robustness)
    return loss, tape.gradient(loss, classifier.trainable_variables)


def test_gradient_through_the_covariance_against_finite_differences(rng):
    classifier = small_classifier()
    images, labels = tf.constant(rng.random((16, 8, 8, 1)), tf.float32), np.arange(16) % 3
    objective = objectives.CovarianceRadius(sigma=0.5)
    _, slopes = gradients(objective, classifier, images, labels)
    for variable, slope in zip(classifier.trainable_variables, slopes, strict=True):
        direction = np.sign(np.asarray(slope)).astype("float32")
        value, h = np.asarray(variable), 2e-3
        variable.assign(value + h * direction)
        up, _ = gradients(objective, classifier, images, labels)
        variable.assign(value - h * direction)
        down, _ = gradients(objective, classifier, images, labels)
        variable.assign(value)
        assert float(up - down) / (2 * h) == pytest.approx(float(np.abs(slope).sum()), rel=0.03)


def test_stopped_covariance_gradient_keeps_the_loss_and_changes_the_gradient(rng):
    classifier = small_classifier()
    images, labels = tf.constant(rng.random((16, 8, 8, 1)), tf.float32), np.arange(16) % 3
    loss, full = gradients(objectives.CovarianceRadius(0.5), classifier, images, labels)
    stopped_objective = objectives.CovarianceRadius(0.5, stop_covariance_gradient=True)
    stopped_loss, stopped = gradients(stopped_objective, classifier, images, labels)
    assert float(loss) == pytest.approx(float(stopped_loss), rel=1e-6)
    assert not np.allclose(full[0], stopped[0])
    # The head's bias reaches the loss by the mean alone.
    np.testing.assert_allclose(full[-1], stopped[-1], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("first, taken", [(-0.68, True), (-0.67, False)])
def test_the_covariance_gradient_of_every_fourth_step_is_one_or_the_other(rng, first, taken):
    """Phi(-.6745) = 1/4: by the noise's first number the step is the full one's, or the stopped one's."""
    classifier = small_classifier()
    images, labels = tf.constant(rng.random((16, 8, 8, 1)), tf.float32), np.arange(16) % 3
    noise = np.zeros((1, 16, 8, 8, 1), "float32")
    noise[0, 0, 0, 0, 0] = first

    def slopes(**options):
        bound = objectives.CovarianceRadius(0.5, **options).attached(classifier)

        @tf.function
        def step():
            with tf.GradientTape() as tape:
                # The trainer's kernels: in a branch they were not found by its gradient.
                terms = bound(images, labels, tf.constant(noise), Context(training=True, kernels=COMPILED))
                loss = tf.reduce_mean(terms.classification + terms.robustness)
            return loss, tape.gradient(loss, classifier.trainable_variables)

        return step()

    loss, now = slopes(covariance_gradient_every=4)
    same, wanted = slopes(stop_covariance_gradient=not taken)
    other = slopes(stop_covariance_gradient=taken)[1]
    assert float(loss) == pytest.approx(float(same), rel=1e-6)
    for mine, theirs in zip(now, wanted, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-7)
    assert not np.allclose(now[0], other[0])


def test_the_covariance_gradient_option_refuses_what_it_cannot_do():
    for other in ({"stop_covariance_gradient": True}, {"rectifier": "bivariate"}):
        with pytest.raises(ValueError, match="covariance_gradient_every must be 1 with"):
            objectives.CovarianceRadius(0.5, covariance_gradient_every=2, **other)
    for watched in (layers.Dense(3, activity_regularizer="l2"), layers.BatchNormalization()):
        classifier = keras.Sequential([keras.Input((4, 4, 1)), watched, layers.Flatten(), layers.Dense(2)])
        with pytest.raises(ValueError, match=f"must be 1 for a classifier with {watched.name} "):
            objectives.CovarianceRadius(0.5, covariance_gradient_every=2).attached(classifier)
        objectives.CovarianceRadius(0.5).attached(classifier)


@pytest.mark.parametrize("noisy_mean", [False, True])
def test_with_batch_normalization_the_classifier_itself_is_trained(noisy_mean, rng):
    """The batch's statistics, and the cross-entropy, are those of a noisy copy in the classifier; the radius is of the
    moments by the same statistics."""
    normal = layers.BatchNormalization(momentum=0.5)
    body = [layers.Conv2D(3, 3), normal, layers.ReLU(), layers.Flatten(), layers.Dense(3)]
    classifier = keras.Sequential([keras.Input((6, 6, 1)), *body])
    normal.moving_variance.assign([0.5, 2.0, 1.0])
    images, labels = rng.random((8, 6, 6, 1)).astype("float32"), np.arange(8) % 3
    noise = rng.normal(size=(1, *images.shape)).astype("float32")
    twin = keras.models.clone_model(classifier)
    twin.set_weights(classifier.get_weights())
    logits = twin(images + 0.25 * noise[0], training=True)
    objective = objectives.CovarianceRadius(0.25, noisy_mean=noisy_mean, r_max=0.1).attached(classifier)
    assert objective.copies == 1
    terms = objective(images, labels, noise, Context(training=True))
    start = images + 0.25 * noise[0] if noisy_mean else images
    # The moments of a network that has the copy's statistics for its averages.
    by_copy = keras.models.clone_model(twin)
    by_copy.set_weights(twin.get_weights())
    before = np.asarray(by_copy.layers[0](images + 0.25 * noise[0]))
    by_copy.layers[1].moving_mean.assign(before.mean((0, 1, 2)))
    by_copy.layers[1].moving_variance.assign(before.var((0, 1, 2)))
    radius = propagated_radius(MomentNetwork(by_copy, 0.25, 0.1)(start), 0.25, labels)
    np.testing.assert_allclose(terms.radius, radius, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(terms.logits, logits, rtol=1e-5, atol=1e-6)
    expected = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    np.testing.assert_allclose(terms.classification, expected, rtol=1e-5)
    for ours, theirs in zip(classifier.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize(
    "objective",
    [
        objectives.CovarianceRadius(0.25),
        objectives.AdjointRadius(0.25, sampled_share=0.9),
        objectives.AdjointRadius(0.25, sampled_share=1.0),
        objectives.AdjointRadius(0.25, consistency=1.0, radius_every=2),
    ],
)
def test_a_radius_sees_no_gain_where_batch_normalization_has_none(objective, rng):
    """A kernel's scale and a bias before a normalisation are taken out by it: a radius's gradient has no share along
    them, where a step would only outrun the moving averages. So of a normalisation in a nested model, and of one that
    is called twice."""
    inner = keras.Sequential(
        [keras.Input((6, 6, 4)), layers.Conv2D(5, 3, name="b"), layers.BatchNormalization(epsilon=1e-7), layers.ReLU()]
    )
    image = keras.Input((8, 8, 1))
    twice = layers.BatchNormalization(epsilon=1e-7)
    other = layers.Conv2D(4, 3, bias_initializer="ones")(image)
    x = layers.ReLU()(layers.Add()([twice(layers.Conv2D(4, 3, name="a")(image)), twice(other)]))
    classifier = keras.Model(image, layers.Dense(3)(layers.Flatten()(inner(x))))
    images, labels = rng.random((16, 8, 8, 1)).astype("float32"), np.arange(16) % 3
    bound = objective.attached(classifier)
    noise = rng.normal(size=(max(bound.copies, 1), *images.shape)).astype("float32")
    weights = [classifier.get_layer("a").kernel, classifier.get_layer("a").bias]
    weights += [inner.get_layer("b").kernel, inner.get_layer("b").bias]

    def gradients(training):
        with tf.GradientTape() as tape:
            terms = bound(tf.constant(images), tf.constant(labels), tf.constant(noise), Context(training=training))
            total = tf.reduce_sum(terms.radius)
        return tape.gradient(total, [w.value for w in weights])

    for kernel in (0, 2):
        by_kernel, by_bias = gradients(True)[kernel : kernel + 2]
        size = float(tf.norm(by_kernel) * tf.norm(weights[kernel]))
        along = np.abs(np.sum(by_kernel * weights[kernel], (0, 1, 2))).max()
        assert along < 1e-4 * size and float(tf.norm(by_bias)) < 1e-4 * size
        # By the averages a bias counts.
        moving, by_moving_bias = gradients(False)[kernel : kernel + 2]
        assert float(tf.norm(by_moving_bias)) > 1e-2 * float(tf.norm(moving))


@pytest.mark.parametrize("method", [objectives.CovarianceRadius, objectives.AdjointRadius])
def test_activity_regularisers_are_the_noisy_copys_with_batch_normalization(method, rng):
    head = layers.Dense(3, activity_regularizer=keras.regularizers.L2(0.01))
    body = [layers.Conv2D(3, 3), layers.BatchNormalization(), layers.ReLU(), layers.Flatten(), head]
    classifier = keras.Sequential([keras.Input((6, 6, 1)), *body])
    images, labels = rng.random((8, 6, 6, 1)).astype("float32"), np.arange(8) % 3
    noise = rng.normal(size=(1, *images.shape)).astype("float32")
    terms = method(0.25).attached(classifier)(images, labels, noise, Context(training=True, regularise=True))
    assert float(sum(classifier.losses)) == pytest.approx(0.01 * np.sum(np.square(terms.logits)) / 8, rel=1e-5)


def test_the_published_codes_options_against_their_formulas(rng):
    """|S_12|, the sigma-free hinge, and .1 I after each ReLU, on a linear head over one hidden layer."""
    classifier = keras.Sequential([keras.Input((1, 2, 1)), layers.Flatten(), layers.Dense(3, "relu"), layers.Dense(2)])
    images, labels = rng.random((6, 1, 2, 1)).astype("float32"), np.arange(6) % 2
    first, _, second, _ = (np.asarray(w, "float64") for w in classifier.get_weights())
    cov = second.T @ (0.25 * first.T @ first + 0.1 * np.eye(3)) @ second
    sd = np.sqrt(cov[0, 0] + cov[1, 1] + 2 * abs(cov[0, 1]))
    means = MomentNetwork(classifier, 0.5)(images).mean.numpy()
    objective = objectives.CovarianceRadius(
        0.5, gamma=2.0, r_max=0.0, relu_inflation=0.1, covariance_bound=True, sigma_free_hinge=True
    )
    objective.attach(classifier)
    terms = objective(images, labels, None, Context(training=True))
    ratio = (means[np.arange(6), labels] - means[np.arange(6), 1 - labels]) / sd
    np.testing.assert_allclose(terms.radius, 0.5 * ratio, rtol=1e-4)
    np.testing.assert_allclose(terms.robustness, np.where(ratio > 0, np.maximum(2 - ratio, 0), 0), rtol=1e-4)
    plain = objectives.CovarianceRadius(0.5, gamma=2.0, r_max=0.0)
    plain.attach(classifier)
    assert (np.abs(terms.radius) < np.abs(plain(images, labels, None, Context(training=True)).radius)).all()


@pytest.mark.parametrize("field, value", [("sigma", 0), ("lam", -1), ("gamma", 0), ("r_max", 1), ("switch_epoch", -1)])
def test_bad_values_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} must be a"):
        objectives.CovarianceRadius(**{field: value})


def test_copies_are_copies_of_the_same_image(rng):
    """Row i batch + j is image j and its own noise: a bug that repeats another axis than the batch's would show."""
    images, noise = rng.random((5, 4, 3, 2)).astype("float32"), rng.normal(size=(3, 5, 4, 3, 2)).astype("float32")
    copies = np.asarray(copies_of(images, noise, 0.5))
    assert copies.shape == (15, 4, 3, 2)
    for i in range(3):
        for j in range(5):
            np.testing.assert_allclose(copies[5 * i + j], images[j] + 0.5 * noise[i, j], rtol=1e-6)
    # Without noise every copy is the image itself.
    assert np.array_equal(np.asarray(copies_of(images, 0 * noise, 0.5))[7], images[2])


def identity_classifier():
    """Two pixels are the two logits."""
    return keras.Sequential([keras.Input((1, 2, 1)), layers.Flatten(), layers.Dense(2, kernel_initializer="identity")])


def test_macer_against_a_hand_worked_case():
    """Two copies of three images, worked in float64: one right, one wrong, one beyond gamma."""
    objective = objectives.Macer(sigma=0.5, gamma=2.0, num_copies=2)
    objective.attach(identity_classifier())
    images = np.array([[0.5, 0.45], [0.4, 0.5], [0.9, 0.1]], np.float32).reshape(3, 1, 2, 1)
    noise = np.array([[[0.02, 0.0]] * 3, [[0.0, 0.04]] * 3], np.float32).reshape(2, 3, 1, 2, 1)
    terms = objective(images, np.array([0, 0, 0]), noise, Context(training=True))
    logits = images.reshape(1, 3, 2).astype("float64") + 0.5 * noise.reshape(2, 3, 2)

    def softmax(x):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    np.testing.assert_allclose(terms.classification, -np.log(softmax(logits).mean(0)[:, 0]), rtol=1e-5)
    q = softmax(16 * logits).mean(0)
    difference = scipy.stats.norm.ppf(q[:, 0]) - scipy.stats.norm.ppf(q[:, 1])
    assert 0 < difference[0] < 2.0 < difference[2] and difference[1] < 0
    np.testing.assert_allclose(terms.robustness, [0.25 * (2.0 - difference[0]), 0.0, 0.0], rtol=1e-4, atol=1e-7)
    assert objective.copies == 2 and objectives.Macer().copies == 16


def test_macers_gradient_is_finite_where_a_quantile_is_not():
    """A softmax of one in float32: the term doesn't count, and must not make the gradient NaN."""
    classifier = identity_classifier()
    objective = objectives.Macer(sigma=0.5, num_copies=1)
    objective.attach(classifier)
    classifier.set_weights([100 * np.eye(2, dtype="float32"), np.zeros(2, "float32")])
    images = np.array([1.0, 0.0], np.float32).reshape(1, 1, 2, 1)
    with tf.GradientTape() as tape:
        terms = objective(images, np.array([0]), np.zeros((1, 1, 1, 2, 1), np.float32), Context(training=True))
        loss = tf.reduce_sum(terms.classification) + tf.reduce_sum(terms.robustness)
    assert float(terms.robustness[0]) == 0
    assert all(np.isfinite(g).all() for g in tape.gradient(loss, classifier.trainable_variables))


@pytest.mark.parametrize("antithetic", [False, True])
def test_consistency_against_its_formula(antithetic, rng):
    classifier = small_classifier()
    objective = objectives.Consistency(sigma=0.5, eta=0.3, antithetic=antithetic)
    objective.attach(classifier)
    images = rng.random((4, 8, 8, 1)).astype("float32")
    noise = rng.normal(size=(objective.copies, 4, 8, 8, 1)).astype("float32")
    labels = np.array([0, 1, 2, 0])
    terms = objective(images, labels, noise, Context(training=True))
    both = np.stack([noise[0], -noise[0]]) if antithetic else noise
    logits = np.stack([np.asarray(classifier(images + 0.5 * one), "float64") for one in both])
    each = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    mean = each.mean(0)
    entropy = scipy.stats.entropy(mean, axis=-1)
    divergence = np.mean([scipy.stats.entropy(mean, one, axis=-1) for one in each], 0)
    losses = -np.log(each[:, np.arange(4), labels]).mean(0)
    np.testing.assert_allclose(terms.classification, losses + 0.3 * entropy, rtol=1e-5)
    np.testing.assert_allclose(terms.robustness, divergence, rtol=1e-4, atol=1e-6)
    assert both.shape[0] == 2 and terms.radius is None


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: objectives.Macer(num_copies=-1), "num_copies must be a whole number"),
        (lambda: objectives.Macer(gamma=0), "gamma must be a"),
        (lambda: objectives.Consistency(num_copies=1), "num_copies must be at least 2"),
        (lambda: objectives.Consistency(num_copies=4, antithetic=True), "2 where they are antithetic"),
        (lambda: objectives.Consistency(eta=-1), "eta must be a"),
    ],
)
def test_bad_values_of_the_sampling_methods_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
