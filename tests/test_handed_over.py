"""A certificate speaks of the model that was handed over: copies, inputs and heads work, or are refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import grid_images, small_classifier
from keras import layers

from covkeras import SmoothedClassifier, models
from covkeras.certification import clopper_pearson_lower
from covkeras.runtime import devices
from covkeras.runtime.validation import least_samples


def dense(*before, classes=3, shape=(8, 8, 1), **head):
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input(shape), *before, layers.Flatten(), layers.Dense(classes, **head)])


def behind(model, *more):
    return keras.Sequential([keras.Input((8, 8, 1)), *model.layers, *more])


def adapted(images):
    normal = layers.Normalization(axis=-1)
    normal.adapt(0.2 * images)
    return normal


COPIES = {
    "float32": lambda: {"precision": "float32"},
    "bfloat16": lambda: {"precision": "bfloat16"},
    "one device": lambda: {"strategy": tf.distribute.OneDeviceStrategy("CPU:0")},
    "two devices": lambda: {"strategy": devices.strategy("2")},
}


@pytest.mark.parametrize("copy", COPIES)
@pytest.mark.parametrize("nested", [False, True])
def test_a_copy_keeps_an_adapted_normalization(copy, nested, rng):
    images = grid_images(rng, 48, 8)
    model = dense(adapted(images))
    model = keras.Sequential([keras.Input((8, 8, 1)), model]) if nested else model
    smoothed = SmoothedClassifier(model, 0.05, **COPIES[copy]())
    rounding = 0.02 * np.abs(model(images)).max() if copy == "bfloat16" else 0.0
    np.testing.assert_allclose(smoothed.classifier(images), model(images), atol=rounding)
    a, b = (s.certify(images[:4], 32, 200, 0.01) for s in (smoothed, SmoothedClassifier(model, 0.05)))
    if copy != "bfloat16":
        assert np.array_equal(a.p_lower, b.p_lower)


def test_a_normalization_that_is_adapted_again_is_certified_as_it_is_now(rng):
    images = grid_images(rng, 48, 8)
    normal = adapted(images)
    model = dense(normal)
    smoothed = SmoothedClassifier(model, 0.05)
    smoothed.certify(images[:2], 32, 200, 0.01)
    normal.adapt(5 * images)
    now = smoothed.certify(images[:8], 32, 200, 0.01)
    fresh = SmoothedClassifier(model, 0.05).certify(images[:8], 32, 200, 0.01)
    assert np.array_equal(now.p_lower, fresh.p_lower) and np.array_equal(now.label, fresh.label)


@keras.saving.register_keras_serializable("tests")
class Held(layers.Layer):
    """Holds a number outside its weights and its configuration."""

    factor = 1.0

    def call(self, inputs):
        return self.factor * inputs + (self.factor - 1.0)


@keras.saving.register_keras_serializable("tests")
class Tripled(keras.Sequential):
    def call(self, inputs, training=None, mask=None):
        return inputs[:, 0, 0, :] - 3.0 * super().call(inputs, training=training)


def with_hidden_state():
    held = Held()
    held.factor = 3.0
    return dense(held)


def with_own_call():
    inner = Tripled([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(3)])
    return keras.Sequential([keras.Input((8, 8, 1)), inner])


@pytest.mark.parametrize("make", [with_hidden_state, with_own_call])
@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_that_is_another_function_is_refused(make, copy, rng):
    model = make()
    with pytest.raises(ValueError, match="Certify it as it is: leave out precision, and devices or strategy"):
        SmoothedClassifier(model, 0.25, **COPIES[copy]())
    # As it is, it is certified by its own call.
    image = grid_images(rng, 1, 8)
    expected = int(np.asarray(model(image)).argmax())
    assert SmoothedClassifier(model, 0.004).predict(image, 100).label[0] in (expected, -1)


def test_float16_that_overflows_is_refused():
    model = dense(layers.Rescaling(1e6))
    with pytest.raises(ValueError, match="in float16 is another function"):
        SmoothedClassifier(model, 0.25, precision="float16")


def test_a_lambda_layer_is_copied(rng):
    images, factor = grid_images(rng, 4, 8), 0.5
    model = dense(layers.Lambda(lambda x: factor - x))
    copy = SmoothedClassifier(model, 0.25, precision="float32").classifier
    assert np.array_equal(copy(images), model(images))


def test_the_last_layer_of_a_nested_head_stays_float32():
    """By where it stands, not by its name: the head may be inside another model, whose inner names may be its own."""
    inner = keras.Sequential([keras.Input((64,)), layers.Dense(8, name="head"), layers.Dense(3, name="last")])
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Conv2D(1, 1, name="last"), layers.Flatten(name="flatten"), inner]
    )
    model.add(layers.Activation("linear"))
    copy = SmoothedClassifier(model, 0.25, precision="bfloat16").classifier
    dtypes = [(x.name, x.compute_dtype) for x in copy._flatten_layers() if not isinstance(x, keras.Model)]
    assert {("head", "bfloat16"), ("flatten", "bfloat16"), ("last", "bfloat16"), ("last", "float32")} <= set(dtypes)
    assert [dtype for name, dtype in dtypes if name.startswith("activation")] == ["float32"]


def integers(shape=(8, 8, 1), dtype="uint8"):
    """Class 1 where the 0..255 image is bright."""
    images = keras.Input(shape, dtype=dtype)
    head = layers.Dense(2)
    model = keras.Model(images, head(layers.Flatten()(layers.Rescaling(1 / 255)(images))))
    size = int(np.prod(shape))
    head.set_weights([np.stack([np.zeros(size), np.ones(size)], 1), np.array([size / 4, 0.0])])
    return model


def test_integer_inputs_are_refused_with_a_remedy_that_works():
    from covkeras import CertifiedTrainer, MomentNetwork, objectives

    model = integers()
    with pytest.raises(ValueError, match=r"must take floating-point images, but the input of .* is uint8") as caught:
        SmoothedClassifier(model, 0.05)
    with pytest.raises(ValueError, match="floating-point images"):
        CertifiedTrainer(model, objectives.GaussianAugmentation(0.05))
    with pytest.raises(ValueError, match="floating-point images"):
        MomentNetwork(model, 0.05)
    with pytest.raises(ValueError, match="is int32"):
        SmoothedClassifier(keras.Sequential([keras.Input((8, 8, 1)), integers(dtype="int32")]), 0.05)
    remedy = str(caught.value).partition("float input: ")[2].partition(", without")[0]
    names = {"keras": keras, "model": model}
    exec(remedy, names)
    image = np.full((1, 8, 8, 1), 200 / 255)
    c = SmoothedClassifier(names["classifier"], 0.05).certify(image, 64, 1_000)
    assert c.label[0] == model.predict(np.full((1, 8, 8, 1), 200, "uint8"), verbose=0).argmax() and c.radius[0] > 0.1


def expecting_255():
    twin = keras.models.clone_model(integers(), input_tensors=keras.Input((8, 8, 1)))
    twin.set_weights(integers().get_weights())
    return twin


def test_a_classifier_of_0_to_255_is_warned_of_and_told_the_remedy():
    model = expecting_255()
    with pytest.warns(UserWarning, match=r"keras.Sequential\(\[keras.Input\(shape\), keras.layers.Rescaling\(255\)"):
        smoothed = SmoothedClassifier(model, 0.05)
    with pytest.raises(ValueError, match=r"keras.layers.Rescaling\(255\), model\]\)"):
        smoothed.certify(np.full((1, 8, 8, 1), 200.0))
    inside = keras.Sequential([keras.Input((8, 8, 1)), layers.Rescaling(255), model])
    c = SmoothedClassifier(inside, 0.05).certify(
        np.array([[0.0], [1.0]]).reshape(2, 1, 1, 1) * np.ones((1, 8, 8, 1)), n=500
    )
    assert list(c.label) == [0, 1]


@pytest.mark.parametrize("make", [models.lenet, small_classifier, lambda s: models.preact_resnet18((16, 16, 1))])
def test_a_classifier_of_0_to_1_is_not_warned_of(make):
    keras.utils.set_random_seed(0)
    SmoothedClassifier(make((8, 8, 1)), 0.25)


@pytest.mark.parametrize("masked", [1, 2])
def test_masked_classes_vote_for_the_others(masked, rng):
    """Logits of -inf void nothing; the certificates are those of the model without the masked classes."""
    mask = np.zeros(3, np.float32)
    mask[-masked:] = -np.inf
    plain = dense()
    model = behind(plain, layers.Lambda(lambda x: x + mask))
    small = behind(plain, layers.Lambda(lambda x: x + np.where(np.isinf(mask), -1e6, 0.0).astype("float32")))
    images = grid_images(rng, 5, 8)
    a, b = (SmoothedClassifier(m, 0.5).certify(images, 50, 500, 0.01) for m in (model, small))
    assert np.array_equal(a.p_lower, b.p_lower) and np.array_equal(a.label, b.label) and (a.void == 0).all()


def test_all_classes_masked_is_void_and_said():
    model = behind(dense(), layers.Lambda(lambda x: x - np.inf))
    smoothed = SmoothedClassifier(model, 0.5)
    with pytest.warns(RuntimeWarning, match="200 of 200 votes for image 3 are void"):
        p = smoothed.predict(np.zeros((1, 8, 8, 1), np.float32), 200, index=3)
    assert p.label[0] == -1


def test_nan_weights_are_said():
    model = dense()
    smoothed = SmoothedClassifier(model, 0.5)
    weights = model.get_weights()
    weights[0][3, 1] = np.nan
    model.set_weights(weights)
    for refused in (lambda: smoothed.certify(np.zeros((1, 8, 8, 1))), lambda: SmoothedClassifier(model, 0.5)):
        with pytest.raises(ValueError, match="kernel has 1 NaN of 192: its training diverged"):
            refused()


PROBABILITIES = {
    "operation": lambda: behind(dense(), layers.Lambda(lambda x: tf.nn.softmax(x))),
    "softmax, linear": lambda: behind(dense(), layers.Softmax(), layers.Activation("linear")),
    "nested": lambda: behind(dense(), keras.Sequential([keras.Input((3,)), layers.Softmax(), layers.Dropout(0.5)])),
    "sigmoid": lambda: behind(dense(), layers.Lambda(lambda x: tf.sigmoid(5 * x))),
    "float16": lambda: dense(activation=lambda x: tf.nn.softmax(x), dtype="mixed_float16"),
}


@pytest.mark.parametrize("head", PROBABILITIES)
def test_heads_that_answer_probabilities_are_refused(head):
    model = PROBABILITIES[head]()
    with pytest.raises(ValueError, match="must end in logits"):
        SmoothedClassifier(model, 0.25)


LOGITS = {
    "small": lambda: dense(kernel_initializer=keras.initializers.RandomUniform(0, 1e-3), bias_initializer="ones"),
    "constant": lambda: dense(kernel_initializer="zeros", bias_initializer=keras.initializers.Constant(1 / 3)),
    "bounded": lambda: dense(activation="tanh"),
    "rectified": lambda: dense(activation="relu"),
}


@pytest.mark.parametrize("head", LOGITS)
def test_unusual_logits_are_accepted(head):
    SmoothedClassifier(LOGITS[head](), 0.25)


def test_too_few_samples_are_refused_with_the_least_that_do():
    """At alpha .001 unanimous votes certify from 10 samples on: .001^(1/10) = .5012."""
    assert [least_samples(a) for a in (0.001, 0.05, 0.5, 1e-6)] == [10, 5, 2, 20]
    assert clopper_pearson_lower(10, 10, 0.001) > 0.5 >= clopper_pearson_lower(9, 9, 0.001)
    smoothed = SmoothedClassifier(dense(kernel_initializer="zeros", bias_initializer=lambda s, **_: np.eye(3)[1]), 0.25)
    image = np.zeros((1, 8, 8, 1), np.float32)
    for refused, message in (
        (lambda: smoothed.certify(image, n=9), "n must be at least 10 at alpha 0.001, got 9"),
        (lambda: smoothed.predict(image, n=10), "n must be at least 11 at alpha 0.001, got 10"),
        (lambda: smoothed.certify_at(image, 0.9, max_n=256), r"max_n must be at least \S+ to certify radius 0.9"),
        (
            lambda: smoothed.certify_to(image, 0.1, alpha=1e-9, max_n=32),
            "max_n must be at least 48 to certify any radius",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            refused()
    assert smoothed.certify(image, n=10).label[0] == 1 and smoothed.predict(image, n=11).label[0] == 1
    with pytest.raises(ValueError) as caught:
        smoothed.certify_at(image, 0.9, max_n=256)
    least = int(str(caught.value).split()[5].replace(",", ""))
    assert smoothed.certify_at(image, 0.9, max_n=least).certified[0]
    with pytest.raises(ValueError, match="max_n"):
        smoothed.certify_at(image, 0.9, max_n=least - 16)


def test_a_loop_with_index_gives_each_image_its_own_noise(rng):
    smoothed, images = SmoothedClassifier(models.lenet((8, 8, 1)), 0.5), grid_images(rng, 4, 8)
    whole = smoothed.certify(images, 32, 500, 0.01)
    alone = [smoothed.certify(images[k : k + 1], 32, 500, 0.01, index=k) for k in range(4)]
    assert np.array_equal(whole.p_lower, [c.p_lower[0] for c in alone])
    votes = [smoothed.predict(images[k : k + 1], 500, index=k).counts[0] for k in range(4)]
    assert np.array_equal(smoothed.predict(images, 500).counts, votes)
    decided = smoothed.certify_at(images, 0.05, max_n=2_000)
    for k in range(4):
        assert smoothed.certify_at(images[k : k + 1], 0.05, max_n=2_000, index=k).hits[0] == decided.hits[k]
    same = np.repeat(images[:1], 2, 0)
    assert smoothed.predict(same, 2_000).counts.std(0).max() > 0
    with pytest.raises(ValueError, match="give index or indices, not both"):
        smoothed.certify(images, 32, 500, 0.01, indices=np.arange(4), index=1)
    with pytest.raises(ValueError, match="index must be a whole number"):
        smoothed.certify(images, 32, 500, 0.01, index=-1)


def test_a_dictionary_of_outputs_and_any_size_are_refused_with_the_remedy():
    plain = dense()
    answers = keras.Model(plain.inputs[0], {"logits": plain.outputs[0]})
    with pytest.raises(
        ValueError, match=r"got a dict. Wrap it: keras.Model\(classifier.inputs\[0\], classifier.outputs\[0\]\)"
    ):
        SmoothedClassifier(answers, 0.25)
    SmoothedClassifier(keras.Model(answers.inputs[0], answers.outputs[0]), 0.25)
    images = keras.Input((None, None, 1))
    free = keras.Model(images, layers.Dense(3)(layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(images))))
    with pytest.raises(ValueError, match=r"Fix it: keras.Sequential\(\[keras.Input\(\(32, 32, 1\)\), classifier\]\)"):
        SmoothedClassifier(free, 0.25)
    SmoothedClassifier(keras.Sequential([keras.Input((32, 32, 1)), free]), 0.25)


@pytest.mark.parametrize("form", [dict, list])
def test_an_input_in_a_dictionary_or_list_is_refused_with_the_remedy(form, rng):
    images = keras.Input((8, 8, 1), name="image")
    model = keras.Model(
        form([("image", images)]) if form is dict else [images], layers.Dense(3)(layers.Flatten()(images))
    )
    with pytest.raises(
        ValueError, match=r"of one. Wrap it: keras.Model\(classifier.inputs\[0\], classifier.outputs\[0\]\)"
    ):
        SmoothedClassifier(model, 0.25)
    wrapped = keras.Model(model.inputs[0], model.outputs[0])
    SmoothedClassifier(wrapped, 0.25).certify(grid_images(rng, 1, 8), 16, 64, 0.01)


def test_many_classifiers_in_one_process_make_no_noise(rng):
    import logging

    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("tensorflow").addHandler(handler)
    try:
        traced = tf.function(lambda x: x + 1, reduce_retracing=False)
        for i in range(12):  # what TensorFlow says of one that is traced over and over
            traced(tf.zeros(i + 1))
        assert any("retracing" in text for text in said)
        said.clear()
        images = grid_images(rng, 1, 8)
        for _ in range(8):
            SmoothedClassifier(small_classifier(), 0.25).certify(images, 16, 64, 0.01)
        assert not any("retracing" in text for text in said)
    finally:
        logging.getLogger("tensorflow").removeHandler(handler)
