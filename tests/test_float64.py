"""A classifier in float64, by Keras' own setting: every rule, estimate and objective is what it is in float32."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import grid_images
from keras import layers as k

import covkeras as ck
from covkeras.training.trainer import CertifiedTrainer

LAYERS = {
    **{
        name: lambda name=name: k.Activation(name)
        for name in ("silu", "elu", "hard_sigmoid", "softplus", "tanh", "gelu")
    },
    "PReLU": lambda: k.PReLU(alpha_initializer="ones"),
    "LeakyReLU": k.LeakyReLU,
    "ReLU6": lambda: k.ReLU(6.0),
    "BatchNormalization": k.BatchNormalization,
    "LayerNormalization": k.LayerNormalization,
    "GroupNormalization": lambda: k.GroupNormalization(2),
    "RMSNormalization": k.RMSNormalization,
    "UnitNormalization": k.UnitNormalization,
    "SpectralNormalization": lambda: k.SpectralNormalization(k.Conv2D(4, 1)),
    "Normalization": lambda: k.Normalization(mean=0.5, variance=2.0),
    "Softmax": k.Softmax,
    "MaxPooling2D": k.MaxPooling2D,
    "GlobalMaxPooling2D": k.GlobalMaxPooling2D,
    "AdaptiveAveragePooling2D": lambda: k.AdaptiveAveragePooling2D((2, 1)),
    "AdaptiveMaxPooling2D": lambda: k.AdaptiveMaxPooling2D((2, 2)),
    "AlphaDropout": lambda: k.AlphaDropout(0.5),
    "AveragePooling2D": lambda: k.AveragePooling2D(2),
    "DepthwiseConv2D": lambda: k.DepthwiseConv2D(3),
    "SeparableConv2D": lambda: k.SeparableConv2D(4, 3),
    "Conv2DTranspose": lambda: k.Conv2DTranspose(4, 3),
    "UpSampling2D": lambda: k.UpSampling2D(interpolation="bilinear"),
    "GaussianNoise": lambda: k.GaussianNoise(0.1),
    "SpatialDropout2D": lambda: k.SpatialDropout2D(0.5),
    "a residual": lambda: lambda h: k.Add()([h, k.Conv2D(4, 1)(h)]),
    "a maximum": lambda: lambda h: k.Maximum()([h, k.Conv2D(4, 1)(h)]),
    "a product": lambda: lambda h: k.Multiply()([h, k.Conv2D(4, 1)(h)]),
    "a concatenation": lambda: lambda h: k.Concatenate()([h, k.Conv2D(4, 1)(h)]),
    "an operation": lambda: lambda h: 0.5 * (h + 1.0) * keras.ops.sigmoid(k.Conv2D(4, 1)(h)),
    "squeeze and excite": lambda: (
        lambda h: h * k.Dense(4, activation="sigmoid")(k.GlobalAveragePooling2D(keepdims=True)(h))
    ),
    "attention": lambda: lambda h: k.MultiHeadAttention(2, 4)(*[k.Reshape((9, 4))(h)] * 2),
    "a layer without a rule": lambda: k.Lambda(lambda h: h * h, output_shape=(3, 3, 4)),
}


@pytest.fixture
def float64():
    def switch():
        keras.config.set_floatx("float64")
        keras.config.set_dtype_policy("float64")

    yield switch
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


def classifier_with(layer) -> keras.Model:
    start = keras.Input((8, 8, 1))
    inside = k.Conv2D(4, 3, strides=2)(start)
    return keras.Model(start, k.Dense(3)(k.Flatten()(LAYERS[layer]()(inside))))


def estimates(classifier, images):
    network = ck.MomentNetwork(classifier, sigma=0.2, r_max=0.1, unknown="linearise")
    logits = network(images)
    margin = ck.adjoint_margin(network, images)
    return {"mean": logits.mean, "cov": logits.cov, "margin": margin.mean, "sd": margin.sd, "radius": margin.radius}


@pytest.mark.parametrize("layer", LAYERS)
def test_every_rule_and_estimate(layer, float64, rng):
    images = grid_images(rng, 6, 8)
    narrow = classifier_with(layer)
    expected = estimates(narrow, images)
    float64()
    wide = classifier_with(layer)
    wide.set_weights(narrow.get_weights())
    assert wide.compute_dtype == "float64"
    for name, value in estimates(wide, images).items():
        np.testing.assert_allclose(value, expected[name], rtol=2e-3, atol=2e-4, err_msg=name)


@pytest.mark.parametrize("layer", ["ReLU6", "BatchNormalization"])
def test_every_objective_trains(layer, float64, rng, tmp_path):
    images, labels = grid_images(rng, 8, 8), rng.integers(0, 3, 8)
    float64()
    classifier_with("ReLU6").save(tmp_path / "teacher.keras")
    for method in ck.objectives.METHODS.values():
        if method in ck.objectives.DENOISING:
            continue
        taught = {"teacher": str(tmp_path / "teacher.keras")} if hasattr(method, "teacher") else {}
        trainer = CertifiedTrainer(classifier_with(layer), method(sigma=0.2, **taught))
        trainer.compile(optimizer="sgd")
        assert np.isfinite(trainer.train_on_batch(images, labels)).all(), method.name
        assert trainer.classifier.trainable_variables[0].dtype == tf.float64


def test_one_layer_in_float64(rng):
    """What comes before and after it is in float32."""
    images = grid_images(rng, 6, 8)
    models = [
        keras.Sequential([keras.Input((8, 8, 1)), k.Conv2D(4, 3, activation="relu"), k.Conv2D(4, 3, dtype=dtype)])
        for dtype in ("float32", "float64")
    ]
    for model in models:
        for layer in (k.BatchNormalization(), k.ReLU(), k.MaxPooling2D(), k.Flatten(), k.Dense(3)):
            model.add(layer)
    models[1].set_weights(models[0].get_weights())
    expected, found = (estimates(model, images) for model in models)
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], rtol=2e-3, atol=2e-4, err_msg=name)
