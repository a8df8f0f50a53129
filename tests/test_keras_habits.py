"""What Keras users bring: metrics, weights, callbacks, labels and images of all kinds, uneven batches, XLA.

The oracle is plain Keras wherever it does the same.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import small_classifier
from keras import layers

from covkeras import CertifiedTrainer, MomentNetwork, objectives
from covkeras.moments import Context
from covkeras.moments.adjoint import adjoint_margin
from covkeras.runtime import devices

SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture
def data(rng):
    return (rng.integers(0, 256, (26, 8, 8, 1)) / 255).astype("float32"), np.arange(26) % 3


def net(**head):
    keras.utils.set_random_seed(1)
    images = keras.Input((8, 8, 1))
    return keras.Model(images, layers.Dense(3, **head)(layers.Flatten()(images)))


def trainer_of(model, objective=None, **compiled):
    trainer = CertifiedTrainer(model, objective or objectives.CrossEntropy(0.25))
    trainer.compile(keras.optimizers.SGD(0.1), **compiled)
    return trainer


def plain_keras(model, **compiled):
    model.compile(keras.optimizers.SGD(0.1), SPARSE, **compiled)
    return model


def same_weights(a, b, atol=1e-6):
    for one, other in zip(a.get_weights(), b.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=atol)


def dataset(images, labels, batch=8, **options):
    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(batch, **options)


def fit(trainer, x, y=None, **options):
    return trainer.fit(x, y, verbose=0, shuffle=False, **options).history


@pytest.mark.parametrize("regulariser", [{}, {"kernel_regularizer": "l2", "activity_regularizer": "l1"}])
@pytest.mark.parametrize("weights", ["none", "class", "sample"])
def test_training_equals_plain_keras(data, weights, regulariser):
    """Cross-entropy without noise is what Keras trains: same weights, same losses, same metrics."""
    images, labels = data
    options = {"class": {"class_weight": {0: 1.0, 1: 3.0, 2: 0.5}}, "sample": {"sample_weight": np.linspace(0, 2, 26)}}
    given = options.get(weights, {})
    metrics = {"metrics": ["sparse_top_k_categorical_accuracy"], "weighted_metrics": ["accuracy"]}
    ours, theirs = net(**regulariser), net(**regulariser)
    history = fit(
        trainer_of(ours, weighted_metrics=["sparse_categorical_crossentropy"]), images, labels, epochs=2, **given
    )
    expected = fit(plain_keras(theirs, **metrics), images, labels, epochs=2, **given)
    same_weights(ours, theirs)
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-5)
    # Of the logits, as the loss is: without regularisers the same, but for where Keras divides by the weights.
    if weights == "none" and not regulariser:
        np.testing.assert_allclose(history["sparse_categorical_crossentropy"], expected["loss"], rtol=1e-5)
    assert ("regularization_loss" in history) == bool(regulariser)


def test_metrics_are_of_the_logits(data):
    images, labels = data
    own = [keras.metrics.TopKCategoricalAccuracy(2, name="top2"), "accuracy"]
    trainer = trainer_of(net(), metrics=own, weighted_metrics=[keras.metrics.MeanSquaredError(name="square")])
    got = trainer.evaluate(images, ONE_HOT, verbose=0, return_dict=True)
    logits = trainer.classifier.predict(images, verbose=0)
    top2 = (np.argsort(-logits, 1)[:, :2] == labels[:, None]).any(1).mean()
    assert got["top2"] == pytest.approx(top2) and got["accuracy"] == pytest.approx((logits.argmax(1) == labels).mean())
    assert got["square"] == pytest.approx(np.square(logits - ONE_HOT).mean(), rel=1e-4)
    assert {"top2", "square"} <= set(fit(trainer, images, ONE_HOT))


ONE_HOT = np.eye(3)[np.arange(26) % 3]
SAME = {
    "one-hot floats": lambda x, y: (x, ONE_HOT.astype("float32")),
    "one-hot integers": lambda x, y: (x, ONE_HOT.astype(int)),
    "one-hot booleans": lambda x, y: (x, ONE_HOT.astype(bool)),
    "a column": lambda x, y: (x, y[:, None]),
    "small integers": lambda x, y: (x, y.astype("uint8")),
    "a dictionary": lambda x, y: ({"image": x}, y),
    "a list": lambda x, y: ([x], y),
    "a labelled dictionary": lambda x, y: (x, {"label": y}),
    "float64": lambda x, y: (x.astype("float64"), y),
}


@pytest.mark.parametrize("kind", SAME)
def test_forms_of_the_same_data_train_the_same(data, kind):
    ours, theirs = net(), net()
    fit(trainer_of(ours), *SAME[kind](*data))
    fit(trainer_of(theirs), *data)
    same_weights(ours, theirs, 0)


@pytest.mark.parametrize("one_hot", [False, True])
def test_a_dataset_that_lost_its_shapes_trains_the_same(data, one_hot):
    images, labels = data[0], ONE_HOT.astype("float32") if one_hot else data[1]

    def forget(x, y):
        return tf.numpy_function(lambda *v: v, [x, y], [tf.float32, tf.as_dtype(labels.dtype)])

    ours, theirs = net(), net()
    fit(trainer_of(ours), dataset(images, labels, 32).map(forget))
    fit(trainer_of(theirs), dataset(*data, 32))
    same_weights(ours, theirs)


def test_tfds_dictionaries_train_the_same(data):
    records = tf.data.Dataset.from_tensor_slices({"image": data[0], "label": data[1]}).batch(8)
    ours, theirs = net(), net()
    fit(trainer_of(ours), records)
    fit(trainer_of(theirs), dataset(*data))
    same_weights(ours, theirs, 0)


REFUSED = {
    "labels must be class numbers or one-hot rows, a single 1": lambda x, y: (x, 0.9 * ONE_HOT + 0.1 / 3),
    r"labels must be class numbers \(batch,\), or one-hot rows \(batch, 3\), got shape": lambda x, y: (
        x,
        np.eye(5, dtype=int)[y],
    ),
    "labels must be integers": lambda x, y: (x, y.astype("float32")),
    "images must be one tensor, got a dict of": lambda x, y: ({"a": x, "b": x}, y),
    "Divide by 255": lambda x, y: ((255 * x).astype("uint8"), y),
    r"keras.Sequential\(\[keras.Input\(shape\), keras.layers.Rescaling\(255\), model\]\)": lambda x, y: (255 * x, y),
    r"labels must lie in \[0, 3\)": lambda x, y: (x, y + 1),
    "got no labels": lambda x, y: (x, None),
}


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("message", REFUSED)
def test_bad_data_are_refused_in_one_sentence_and_change_nothing(data, message, jit):
    trainer = trainer_of(net(), jit_compile=jit)
    before = trainer.classifier.get_weights()
    with pytest.raises((ValueError, TypeError, tf.errors.InvalidArgumentError), match=message) as caught:
        fit(trainer, *REFUSED[message](*data))
    assert "\n" not in str(caught.value) and "Exception encountered" not in str(caught.value)
    assert all(np.array_equal(a, b) for a, b in zip(before, trainer.classifier.get_weights(), strict=True))


def test_negative_sample_weights_are_refused(data):
    with pytest.raises(tf.errors.InvalidArgumentError, match="sample_weight must be finite and at least 0"):
        fit(trainer_of(net()), *data, sample_weight=-np.ones(26))


@pytest.mark.parametrize("shape", [(26, 2), (26, 1, 1), (26, 8, 8, 1)])
def test_weights_that_are_not_one_an_image_are_refused(data, shape):
    with pytest.raises(ValueError, match=r"sample_weight must be \(batch,\), one number an image, got shape"):
        fit(trainer_of(net()), *data, sample_weight=np.ones(shape))


def test_weights_in_a_column_are_those_in_a_row(data):
    weights = np.linspace(0, 1, 26)
    row, column = (fit(trainer_of(net()), *data, sample_weight=given) for given in (weights, weights[:, None]))
    assert row["loss"] == column["loss"]


@pytest.mark.parametrize(
    "method",
    ["GaussianAugmentation", "Consistency", "Macer", "CovarianceRadius", "AdjointRadius", "SteppedConsistency"],
)
def test_xla_trains_the_same(data, method):
    objective = getattr(objectives, method)(sigma=0.25)
    ours, theirs = small_classifier(), small_classifier()
    theirs.set_weights(ours.get_weights())
    history = fit(trainer_of(ours, objective, jit_compile=True), *data, batch_size=13)
    expected = fit(trainer_of(theirs, objective), *data, batch_size=13)
    same_weights(ours, theirs, 1e-4)
    for name in expected:
        np.testing.assert_allclose(history[name], expected[name], rtol=1e-3, atol=1e-4)


def mirrored(make):
    with devices.strategy("2").scope():
        return make()


@pytest.mark.parametrize(
    "method",
    ["CrossEntropy", "GaussianAugmentation", "Consistency", "CovarianceRadius", "AdjointRadius", "SteppedConsistency"],
)
def test_two_replicas_and_an_incomplete_batch_equal_one_device(data, method):
    """8 images a batch, and 1 (none for the second replica), 3 (two and one) or 0 in the last, one after the other; all
    but the first method have one of these."""
    options = {"AdjointRadius": {"gates": "propagated", "radius_every": 2}}
    objective = getattr(objectives, method)(sigma=0.25, **options.get(method, {}))

    def make():
        keras.utils.set_random_seed(1)
        return trainer_of(small_classifier(), objective, metrics=["sparse_categorical_accuracy"])

    alone, together = make(), mirrored(make)
    counts = {"CrossEntropy": (17, 19, 16), "GaussianAugmentation": (17,), "CovarianceRadius": (17,)}
    for count in counts.get(method, (19,)):
        # Each from the same weights: differences of rounding don't add up.
        together.classifier.set_weights(alone.classifier.get_weights())
        stream = dataset(data[0][:count], data[1][:count])
        expected = fit(alone, stream, epochs=2, validation_data=stream)
        history = fit(together, stream, epochs=2, validation_data=stream)
        same_weights(alone.classifier, together.classifier, 1e-5)
        assert set(history) == set(expected)
        for name in expected:
            np.testing.assert_allclose(history[name], expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
        assert count * history["accuracy"][0] == pytest.approx(round(count * history["accuracy"][0]), abs=1e-3)


def test_an_incomplete_batch_equals_plain_keras_on_one_device(data):
    ours, theirs = net(), net()
    fit(trainer_of(ours), dataset(*data))
    fit(plain_keras(theirs), dataset(*data))
    same_weights(ours, theirs)


def normalised(synchronized=False):
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3),
            layers.BatchNormalization(momentum=0.5, synchronized=synchronized),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )


@pytest.mark.parametrize(
    "objective",
    [
        objectives.GaussianAugmentation(0.25),
        objectives.CovarianceRadius(0.25),
        objectives.AdjointRadius(0.25, gates="propagated"),
    ],
)
def test_synchronized_batch_normalization_on_two_replicas_equals_one_device(data, objective):
    make = lambda: trainer_of(normalised(True), objective)  # noqa: E731
    alone, together = make(), mirrored(make)
    for trainer in (alone, together):
        fit(trainer, dataset(data[0][:24], data[1][:24]))
    same_weights(alone.classifier, together.classifier, 1e-5)
    # What was watched in each replica's thread is as it was.
    assert not any("_moments" in vars(layer) for t in (alone, together) for layer in t.classifier.layers)


def test_batch_normalization_needs_an_image_for_every_replica(data):
    together = mirrored(lambda: trainer_of(normalised(), objectives.GaussianAugmentation(0.25)))
    with pytest.raises(tf.errors.InvalidArgumentError, match="batch must have an image for every replica"):
        fit(together, dataset(data[0][:9], data[1][:9]))


def test_adjoint_radius_takes_the_copys_statistics_as_constants_to_an_image(data):
    """Image 0's margin has no gradient by image 1: it is that of a network whose averages are the copy's statistics.
    The averages move once a step, as by the copy's pass alone."""
    images, labels = data
    trainer = CertifiedTrainer(normalised(), objectives.AdjointRadius(0.25))
    trainer.compile(keras.optimizers.SGD(0.0))
    fit(trainer, images, labels, batch_size=26)
    twin = normalised()
    other = CertifiedTrainer(twin, objectives.GaussianAugmentation(0.25))
    other.compile(keras.optimizers.SGD(0.0))
    fit(other, images, labels, batch_size=26)
    same_weights(trainer.classifier, twin, 1e-5)

    objective = objectives.AdjointRadius(0.25, gates="propagated")
    noise = np.zeros((1, 2, 8, 8, 1), np.float32)
    pair = tf.constant(images[[0, 5]])
    terms = objective.attached(normalised())(pair, tf.constant([0, 1]), noise, Context(training=True))
    before = twin.layers[0](pair).numpy()
    twin.layers[1].moving_mean.assign(before.mean((0, 1, 2)))
    twin.layers[1].moving_variance.assign(before.var((0, 1, 2)))
    for i in (0, 1):
        alone = adjoint_margin(MomentNetwork(twin, 0.25), pair[i : i + 1], kappa=False, labels=np.array([i]))
        assert float(terms.radius[i]) == pytest.approx(float(alone.radius[0]), rel=1e-4)
    with pytest.raises(ValueError, match="classify_on must be 'copy'"):
        objectives.AdjointRadius(0.25, classify_on="mean").attach(normalised())


@pytest.mark.parametrize(
    "method", ["CrossEntropy", "GaussianAugmentation", "Consistency", "Macer", "CovarianceRadius", "AdjointRadius"]
)
def test_regularisers_count_in_every_objective_and_in_the_reported_loss(data, method):
    """With a large enough regulariser the loss is the losses' sum, and its gradient pulls the weights down."""
    objective = getattr(objectives, method)(sigma=0.25)
    head = {"kernel_regularizer": keras.regularizers.L2(0.5), "activity_regularizer": keras.regularizers.L2(0.01)}
    trainer = CertifiedTrainer(net(**head), objective)
    trainer.compile(keras.optimizers.SGD(1e-3))
    before = trainer.classifier.get_weights()[0]
    got = trainer.train_on_batch(*data, return_dict=True)
    parts = (
        got["classification_loss"] + trainer.current_lam * got.get("robustness_loss", 0) + got["regularization_loss"]
    )
    assert got["loss"] == pytest.approx(parts, rel=1e-5)
    assert got["regularization_loss"] > 0.5 * np.square(before).sum() + 1e-4
    still = net(**head)
    still.set_weights([before, np.zeros(3)])
    unregularised = net()
    unregularised.set_weights([before, np.zeros(3)])
    other = CertifiedTrainer(unregularised, objective)
    other.compile(keras.optimizers.SGD(1e-3))
    other.train_on_batch(*data)
    # 2 x .5 x weights x the learning rate, and the activities' pull.
    difference = unregularised.get_weights()[0] - trainer.classifier.get_weights()[0]
    assert np.corrcoef(difference.ravel(), before.ravel())[0, 1] > 0.9
    assert np.linalg.norm(difference) > 0.9e-3 * np.linalg.norm(before)


def test_one_objective_serves_several_trainers(data):
    objective = objectives.GaussianAugmentation(0.25)
    a, b = trainer_of(net(), objective), trainer_of(net(), objective)
    b.classifier.set_weights([w + 1 for w in b.classifier.get_weights()])
    for trainer in (a, b):
        alone = trainer_of(trainer.classifier, objectives.GaussianAugmentation(0.25))
        assert trainer.evaluate(*data, verbose=0) == pytest.approx(alone.evaluate(*data, verbose=0))
    before = a.classifier.get_weights()
    fit(a, *data)
    assert not np.array_equal(before[0], a.classifier.get_weights()[0])
    with pytest.raises(RuntimeError, match="attached to no classifier"):
        objective(data[0], data[1], np.zeros((1, *data[0].shape), np.float32), None)


class Seen(objectives.GaussianAugmentation):
    """Keeps a number of each step's noise."""

    def __call__(self, images, labels, noise, context):
        tf.py_function(lambda value: self.drawn.append(float(value)), [noise[0, 0, 0, 0, 0]], [])
        return super().__call__(images, labels, noise, context)


def seen_by(optimizer, data, again=False, batches=8):
    objective = Seen(0.25)
    objective.drawn = []
    trainer = CertifiedTrainer(net(), objective)
    trainer.compile(optimizer)
    fit(trainer, dataset(*data, 2), steps_per_epoch=batches)
    if again:
        trainer.compile(keras.optimizers.SGD(0.1))
        fit(trainer, dataset(*data, 2), steps_per_epoch=batches)
    return objective.drawn


def test_every_step_has_noise_of_its_own(data):
    """Gradient accumulation, a new compile, and steps that mixed precision leaves out."""
    plain = seen_by(keras.optimizers.SGD(0.1), data)
    assert len(set(plain)) == 8
    assert seen_by(keras.optimizers.SGD(0.1, gradient_accumulation_steps=4), data) == plain
    twice = seen_by(keras.optimizers.SGD(0.1), data, again=True)
    assert twice[:8] == plain and len(set(twice)) == 16
    # The first scaled losses overflow, and their steps are left out.
    skipping = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=1e38)
    assert seen_by(skipping, data) == plain


class Record(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.lams = []

    def on_epoch_end(self, epoch, logs=None):
        self.lams.append(self.model.current_lam)


@pytest.mark.parametrize("form", ["one", "list", "tuple", "CallbackList"])
def test_callbacks_in_every_form(data, form):
    trainer = trainer_of(net(), objectives.Consistency(0.25, lam=3.0, switch_epoch=1))
    record = Record()
    forms = {"one": lambda r: r, "list": lambda r: [r], "tuple": lambda r: (r,)}
    forms["CallbackList"] = lambda r: keras.callbacks.CallbackList([r], add_history=True, model=trainer)
    callbacks = forms[form](record)
    trainer.fit(*data, epochs=3, verbose=0, callbacks=callbacks)
    assert record.lams == [0, 3, 3]
    trainer.fit(*data, verbose=0, callbacks=callbacks)
    assert record.lams == [0, 3, 3, 0]


def test_model_checkpoint_writes_the_stock_classifier(data, tmp_path):
    trainer = trainer_of(net())
    best = keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", monitor="loss", save_best_only=True)
    weights = keras.callbacks.ModelCheckpoint(tmp_path / "last.weights.h5", save_weights_only=True)
    trainer.fit(*data, verbose=0, callbacks=[best, weights])
    loaded = keras.models.load_model(tmp_path / "best.keras")
    assert type(loaded) is type(trainer.classifier)
    np.testing.assert_allclose(loaded(data[0]), trainer.classifier(data[0]), rtol=1e-6)
    other = trainer_of(net())
    other.load_weights(tmp_path / "last.weights.h5")
    same_weights(other.classifier, trainer.classifier, 0)
    assert int(other.noise_step) == 1


@pytest.mark.parametrize(
    "method",
    [
        "CrossEntropy",
        "TruncatedLq",
        "GaussianAugmentation",
        "Consistency",
        "Macer",
        "CovarianceRadius",
        "AdjointRadius",
    ],
)
def test_trainers_and_objectives_have_a_config(data, method):
    kind = getattr(objectives, method)
    objective = kind(sigma=0.125)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(objective))
    assert type(again) is kind and again.get_config() == objective.get_config() and again.sigma == 0.125
    trainer = CertifiedTrainer(net(), objective, seed=5)
    twin = CertifiedTrainer.from_config(trainer.get_config())
    twin.classifier.set_weights(trainer.classifier.get_weights())
    trainer.compile(), twin.compile()
    assert twin.seed == 5 and twin.evaluate(*data, verbose=0) == pytest.approx(trainer.evaluate(*data, verbose=0))


def test_lam_is_switched_in_loops_of_ones_own(data):
    trainer = trainer_of(net(), objectives.Consistency(0.25, lam=3.0, switch_epoch=1))
    with pytest.raises(ValueError, match=r"trainer.begin_epoch\(epoch\)"):
        trainer.train_on_batch(*data)
    for epoch, lam in ((0, 0.0), (1, 3.0)):
        trainer.begin_epoch(epoch)
        got = trainer.train_on_batch(*data, return_dict=True)
        trainer.reset_metrics()
        assert got["loss"] == pytest.approx(got["classification_loss"] + lam * got["robustness_loss"], rel=1e-5)
    trainer_of(net(), objectives.Consistency(0.25)).train_on_batch(*data)


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_the_drop_share_of_an_incomplete_batch(data, share):
    trainer = trainer_of(net(), objectives.CovarianceRadius(0.25, lam=0.0, drop_share=share))
    history = fit(trainer, dataset(data[0][:10], data[1][:10]))
    assert np.isfinite(history["loss"]).all()
    full = trainer_of(net(), objectives.CovarianceRadius(0.25, lam=0.0))
    # Of 8 and of 2 images the share with the largest radius is dropped: the mean is smaller by their losses.
    assert history["loss"][0] < fit(full, dataset(data[0][:10], data[1][:10]))["loss"][0]


def test_a_classifier_of_any_image_size_trains(data):
    images = keras.Input((None, None, 1))
    model = keras.Model(images, layers.Dense(3)(layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(images))))
    trainer = trainer_of(model, objectives.Consistency(0.25))
    for size in (8, 12):
        assert np.isfinite(fit(trainer, np.full((4, size, size, 1), 0.5, np.float32), np.arange(4) % 3)["loss"]).all()
    with pytest.raises(ValueError, match=r"any size.*keras.Sequential\(\[keras.Input\(\(32, 32, 1\)\), classifier\]\)"):
        CertifiedTrainer(model, objectives.CovarianceRadius(0.25))


def test_layers_called_by_name_and_with_training(data):
    """`layer(inputs=x)`, and a layer that is frozen, and that the graph itself calls with training=False, as
    fine-tuning does."""
    images = keras.Input((8, 8, 1))
    normal = layers.BatchNormalization(momentum=0.5)
    x = normal(layers.Conv2D(4, 3)(inputs=images), training=False)
    model = keras.Model(images, layers.Dense(3)(layers.Flatten()(layers.ReLU()(x))))
    normal.trainable = False
    trainer = trainer_of(model, objectives.CovarianceRadius(0.25))
    fit(trainer, *data)
    assert (np.asarray(normal.moving_mean) == 0).all()
    # Set free, it trains as in Keras, where the call of the whole model has the last word.
    normal.trainable = True
    fit(trainer_of(model, objectives.CovarianceRadius(0.25)), *data)
    assert (np.asarray(normal.moving_mean) != 0).all()
    queries = keras.Input((8, 8, 1))
    flat = layers.Reshape((64, 1))(queries)
    attended = layers.Attention()([flat, flat])
    other = keras.Model(queries, layers.Dense(3)(layers.Flatten()(attended)))
    with pytest.raises(NotImplementedError, match="No moment rule for Attention"):
        CertifiedTrainer(other, objectives.CovarianceRadius(0.25))
    masked = keras.Model(queries, layers.Dense(3)(layers.Flatten()(layers.MultiHeadAttention(1, 2)(flat, value=flat))))
    for objective in (objectives.AdjointRadius(0.25), objectives.CovarianceRadius(0.25)):
        assert np.isfinite(fit(trainer_of(masked, objective), *data)["loss"])


@keras.saving.register_keras_serializable("tests")
class Twice(keras.Sequential):
    """Its call is not its graph."""

    def call(self, inputs, training=None, mask=None):
        return 2.0 * super().call(inputs, training=training)


def test_a_model_whose_call_is_not_its_graph_is_refused_by_the_moments(data):
    model = Twice([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(3)])
    nested = keras.Sequential([keras.Input((8, 8, 1)), model])
    for one in (model, nested):
        with pytest.raises(NotImplementedError, match="changes the call of"):
            CertifiedTrainer(one, objectives.CovarianceRadius(0.25))
    # The adjoint estimate takes it as one layer, with its own Jacobian.
    adjoint = objectives.AdjointRadius(0.25).attached(model)
    images = data[0][:4]
    np.testing.assert_allclose(adjoint.network.classifier(images), model(images), rtol=1e-6)
    margin = adjoint_margin(adjoint.network, images, gates=())
    gaps = np.sort(np.asarray(model(images)), 1)
    np.testing.assert_allclose(margin.mean, gaps[:, -1] - gaps[:, -2], rtol=1e-4, atol=1e-5)
    got = trainer_of(model).evaluate(*data, verbose=0, return_dict=True)["loss"]
    assert got == pytest.approx(float(SPARSE(data[1], model(data[0]))), rel=1e-5)


def test_truncated_lq_checks_its_drop_epoch():
    with pytest.raises(ValueError, match="drop_epoch must be a whole number"):
        objectives.TruncatedLq(drop_epoch=-1)


class Rows(keras.utils.PyDataset):
    """Batches as a loader of one's own gives them: their shapes are not known beforehand."""

    def __init__(self, images, labels):
        super().__init__()
        self.images, self.labels = images, labels

    def __len__(self):
        return -(-len(self.images) // 8)

    def __getitem__(self, i):
        return self.images[8 * i : 8 * i + 8], self.labels[8 * i : 8 * i + 8]


@pytest.mark.parametrize("form", ["PyDataset", "generator"])
@pytest.mark.parametrize("labels", ["numbers", "one-hot"])
def test_loaders_of_ones_own_train_the_same(data, form, labels):
    targets = ONE_HOT.astype("float32") if labels == "one-hot" else data[1]
    rows = Rows(data[0], targets)
    ours, theirs = net(), net()
    fit(
        trainer_of(ours),
        rows if form == "PyDataset" else (rows[i] for i in range(len(rows))),
        steps_per_epoch=len(rows),
    )
    fit(trainer_of(theirs), dataset(*data))
    same_weights(ours, theirs)


def test_an_objective_of_ones_own_needs_only_attach_and_call(data):
    """The protocol, without the base class."""
    from covkeras.objectives import Terms

    class Own:
        name, sigma, lam, switch_epoch, copies = "own", 0.25, 0.0, 0, 1

        def attach(self, classifier):
            self.classifier = classifier

        def __call__(self, images, labels, noise, context):
            logits = self.classifier(images + self.sigma * noise[0], training=context.training)
            return Terms(keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True), logits=logits)

    ours, theirs = net(), net()
    fit(trainer_of(ours, Own()), *data)
    fit(trainer_of(theirs, objectives.GaussianAugmentation(0.25)), *data)
    same_weights(ours, theirs)


def test_weights_on_two_replicas_equal_one_device(data):
    weights = np.linspace(0, 2, 26).astype("float32")
    whole = tf.data.Dataset.from_tensor_slices((*data, weights))
    for method in ("CrossEntropy", "AdjointRadius"):
        options = {"gates": "propagated", "radius_every": 2} if method == "AdjointRadius" else {}
        make = lambda m=method, o=options: trainer_of(  # noqa: E731
            net(), getattr(objectives, m)(sigma=0.25, **o), weighted_metrics=["sparse_categorical_accuracy"]
        )
        alone, together = make(), mirrored(make)
        # Every second image of each replica's own is the batch's second where its part begins at an even place.
        stream = whole.take(24 if method == "AdjointRadius" else 26).batch(8)
        one, two = fit(alone, stream), fit(together, stream)
        same_weights(alone.classifier, together.classifier, 1e-5)
        for name in one:
            np.testing.assert_allclose(two[name], one[name], rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("options", [{"run_eagerly": True}, {"steps_per_execution": 2}, {"jit_compile": "auto"}])
def test_ways_to_compile_train_the_same(data, options):
    ours, theirs = net(), net()
    fit(trainer_of(ours, **options), dataset(*data), class_weight={0: 1.0, 1: 2.0, 2: 0.5})
    fit(plain_keras(theirs), dataset(*data), class_weight={0: 1.0, 1: 2.0, 2: 0.5})
    same_weights(ours, theirs)


def test_what_cannot_be_trained_is_said(data):
    for objective in ("macer", objectives.Macer, None):
        with pytest.raises(TypeError, match=r"objective must be one of covkeras.objectives, .* such as Macer"):
            CertifiedTrainer(net(), objective)
    frozen = net()
    frozen.trainable = False
    with pytest.raises(ValueError, match="must have weights to train, but all its layers are frozen"):
        fit(trainer_of(frozen), *data)
    words = np.array(["zero", "one", "two"])[data[1]]
    trainer = trainer_of(net())
    for call in (trainer.fit, trainer.evaluate, trainer.train_on_batch, trainer.test_on_batch):
        with pytest.raises(TypeError, match=r"got text or objects .* return_inverse=True"):
            call(data[0], words)


def test_a_trainer_saves_and_exports_its_classifier(data, tmp_path):
    trainer = trainer_of(net())
    fit(trainer, *data)
    trainer.save(tmp_path / "t.keras")
    assert np.array_equal(keras.models.load_model(tmp_path / "t.keras")(data[0]), trainer.classifier(data[0]))
    trainer.export(str(tmp_path / "exported"), verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "exported"))
    np.testing.assert_allclose(loaded.serve(data[0]), trainer.classifier(data[0]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("devices_", ["cpu", "2"])
def test_saved_weights_resume_the_optimizer_too(data, tmp_path, devices_):
    """Keras makes an optimizer its variables at the first step, and leaves a file's out before."""

    def made():
        with devices.strategy(devices_).scope():
            trainer = CertifiedTrainer(net(), objectives.Consistency(0.25))
            trainer.compile(keras.optimizers.Adam(0.01))
            return trainer

    trainer, resumed = made(), made()
    trainer.save_weights(tmp_path / "fresh.weights.h5")
    fit(trainer, *data)
    trainer.save_weights(tmp_path / "half.weights.h5")
    fit(trainer, *data)
    resumed.load_weights(tmp_path / "fresh.weights.h5")
    resumed.load_weights(tmp_path / "half.weights.h5")
    fit(resumed, *data)
    same_weights(resumed.classifier, trainer.classifier, 1e-6)


@pytest.mark.filterwarnings("ignore:Skipping nested container")
def test_a_classifiers_weights_are_told_from_a_trainers(data, tmp_path):
    trainer = trainer_of(net())
    trainer.classifier.save_weights(tmp_path / "classifier.weights.h5")
    trainer.save_weights(tmp_path / "trainer.weights.h5")
    fit(trainer, *data)
    with pytest.raises(ValueError, match=r"classifier's: trainer\.classifier\.load_weights takes it\.$"):
        CertifiedTrainer(net(), objectives.CrossEntropy(0.25)).load_weights(tmp_path / "classifier.weights.h5")
    trainer.load_weights(tmp_path / "trainer.weights.h5")
    same_weights(trainer.classifier, net(), atol=0)
