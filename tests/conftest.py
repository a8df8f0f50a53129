"""Shared by all tests: two logical CPU devices, fixed seeds, and what sampling tests need."""

import os

# Keras looks at the environment when it is imported; a test must not depend on the caller's.
os.environ["KERAS_BACKEND"] = "tensorflow"

from covkeras import startup

startup.quiet_tensorflow(logical_cpus=2)

import keras  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from covkeras import datasets  # noqa: E402


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def digits():
    return datasets.load("digits", "train")


def small_classifier(input_shape=(8, 8, 1), classes=3, activation="relu"):
    """Two convolutions with average pooling and a dense head: small enough for explicit Jacobians."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input(input_shape),
            layers.Conv2D(4, 3, padding="same", activation=activation),
            layers.AveragePooling2D(2),
            layers.Conv2D(5, 3, activation=activation),
            layers.Flatten(),
            layers.Dense(classes),
        ]
    )
