"""The gradient by a grey image in blocks of its pixels, against TensorFlow's own."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from covkeras import models
from covkeras.moments.image_gradients import by_image, quick_to_image


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("kernel", [(5, 5), (6, 6), (7, 5), (5, 8)])
@pytest.mark.parametrize("size", [(28, 28), (9, 14)])
def test_blocks_are_the_gradient_of_a_convolution(rng, size, kernel, padding):
    images, weights = tf.constant(rng.normal(size=(3, *size, 1))), tf.constant(rng.normal(size=(*kernel, 1, 6)))
    with tf.GradientTape() as tape:
        tape.watch(images)
        out = tf.nn.conv2d(images, weights, 1, padding)
        slopes = tf.constant(rng.normal(size=out.shape))
        value = tf.reduce_sum(out * slopes)
    found = by_image(slopes, weights, size, padding)
    np.testing.assert_allclose(found, tape.gradient(value, images), rtol=0, atol=1e-12)


def network(policy="float32", padding="valid", size=(28, 28), channels=1, **options):
    keras.utils.set_random_seed(3)
    keras.config.set_dtype_policy(policy)
    try:
        layers = [
            keras.layers.Rescaling(2.0, -1.0),
            keras.layers.Conv2D(8, 5, padding=padding, activation="relu", **options),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3),
        ]
        return keras.Sequential([keras.Input((*size, channels)), *layers])
    finally:
        keras.config.set_dtype_policy("float32")


def gradients(model, images, quick: bool, compiled=None):
    """By the images and the weights, and the names of the operations that were traced."""

    @tf.function(jit_compile=compiled)
    def slopes(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            if quick:
                with quick_to_image(model):
                    logits = model(x, training=True)
            else:
                logits = model(x, training=True)
            value = tf.reduce_sum(tf.cast(logits, tf.float32)[:, 0] ** 2)
        return tape.gradient(value, [x, *model.trainable_variables])

    traced = slopes.get_concrete_function(tf.TensorSpec([None, *images.shape[1:]], tf.float32))
    return slopes(images), {operation.type for operation in traced.graph.get_operations()}


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_a_networks_gradients_are_the_same(rng, policy, padding):
    model, images = network(policy, padding), tf.constant(rng.random((4, 28, 28, 1)), tf.float32)
    (plain, seen), (quick, others) = gradients(model, images, False), gradients(model, images, True)
    assert "Conv2DBackpropInput" in seen and "Conv2DBackpropInput" not in others
    for one, other in zip(plain, quick, strict=True):
        scale = np.abs(one).max()
        np.testing.assert_allclose(other, one, rtol=0, atol=scale * (1e-5 if policy == "float32" else 0.02))
    assert not any("convolution_op" in vars(layer) for layer in model.layers)


def test_compiled_by_xla_they_are_the_same(rng):
    model, images = network(), tf.constant(rng.random((4, 28, 28, 1)), tf.float32)
    plain, quick = gradients(model, images, False)[0], gradients(model, images, True, compiled=True)[0]
    for one, other in zip(plain, quick, strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-5 * np.abs(one).max())


class Own(keras.layers.Conv2D):
    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, kernel * 2.0)


def test_other_convolutions_are_left_alone(rng):
    """Colours, strides, dilation, and a layer with an operation of its own, of its class or set on it."""
    rgb = tf.constant(rng.random((2, 28, 28, 3)), tf.float32)
    for options in ({"channels": 3}, {"strides": 2}, {"dilation_rate": 2}):
        model = network(**options)
        images = rgb if "channels" in options else rgb[..., :1]
        for one, other in zip(gradients(model, images, False)[0], gradients(model, images, True)[0], strict=True):
            assert np.array_equal(one, other), options
    own = keras.Sequential([keras.Input((28, 28, 1)), Own(4, 5), keras.layers.GlobalAveragePooling2D()])
    plain = own(rgb[..., :1]).numpy()
    with quick_to_image(own):
        assert np.array_equal(own(rgb[..., :1]), plain)
    model = network()
    model.layers[1].convolution_op = lambda inputs, kernel: tf.zeros((len(inputs), 24, 24, 8))
    with quick_to_image(model), quick_to_image(model):
        assert "convolution_op" in vars(model.layers[1])
    assert not model.layers[1](rgb[..., :1]).numpy().any()


def test_images_of_any_size_are_taken_by_the_layers_own_operation(rng):
    model = network(size=(None, None))
    images = tf.constant(rng.random((2, 15, 17, 1)), tf.float32)
    with quick_to_image(model):
        traced = tf.function(lambda x: model(x)).get_concrete_function(tf.TensorSpec([None, None, None, 1]))
        assert np.allclose(traced(images), model(images), atol=1e-6)


def test_without_a_graph_they_are_the_same(rng):
    """As `run_eagerly` has it."""
    model, images = network("mixed_bfloat16"), tf.constant(rng.random((4, 28, 28, 1)), tf.float32)
    found = []
    for within in (quick_to_image(model), contextlib.nullcontext()):
        with tf.GradientTape() as tape, within:
            tape.watch(images)
            value = tf.reduce_sum(model(images, training=True) ** 2)
        found.append(tape.gradient(value, [images, *model.trainable_variables]))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=0.02 * np.abs(one).max())


def test_an_error_inside_leaves_the_network_as_it_was():
    model = models.lenet_5x5()
    with pytest.raises(KeyError), quick_to_image(model):
        raise KeyError("mine")
    assert not any("convolution_op" in vars(layer) for layer in model._flatten_layers())
