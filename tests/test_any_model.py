"""Any Keras model: training by every objective, the instant estimate, certificates, exports (benchmarks/models.py's
table, of which the cheap half runs always)."""

import importlib.util
import json
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import grid_images
from keras import layers

from covkeras import CertifiedTrainer, MomentNetwork, SmoothedClassifier, objectives
from covkeras.moments.adjoint import adjoint_margin

ROOT = Path(__file__).parent.parent
SPEC = importlib.util.spec_from_file_location("models_benchmark", ROOT / "benchmarks" / "models.py")
table = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(table)
CHEAP = ("transformer", "1-D convolution", "subclassed")
# A minute each: by night, `pytest -m nightly`.
COSTLY = [pytest.param(name, marks=pytest.mark.nightly) for name in table.MODELS if name not in CHEAP]


def known(name):
    """The table's row of a model."""
    rows = json.loads(table.OUT.read_text())["rows"]
    return next(row for row in rows if row["model"] == name)


@pytest.mark.parametrize("name", [*CHEAP, *COSTLY])
def test_the_table_holds(name):
    found = table.examine(table.MODELS[name], rounds=0)
    expected = known(name)
    for column, value in found.items():
        assert value == expected[column], column


def test_the_table_says_what_works():
    """Everything does, but the covariance where a layer has no rule."""
    rows = json.loads(table.OUT.read_text())["rows"]
    names = [row["model"] for row in rows]
    assert set(CHEAP) <= set(names) and names == [name for name in table.MODELS if name in names]
    for row in rows:
        columns = [*table.OBJECTIVES, "instant estimate", "certified", "exported"]
        refused = {c for c in columns if row[c] != "yes"}
        assert refused <= ({"covariance_radius"} if row["rules"] == "no" else set()), row["model"]


def test_a_subclassed_model_is_trained_and_certified_as_the_functional_one(rng):
    """The same weights, noise and steps: the same weights after, the same certificates."""

    class Mine(keras.Model):
        def __init__(self, first, second):
            super().__init__()
            self.first, self.flat, self.second = first, layers.Flatten(), second

        def call(self, images):
            return self.second(self.flat(self.first(images)))

    images, labels = grid_images(rng, 32, 8), rng.integers(0, 3, 32)
    results = []
    for kind in ("subclassed", "functional"):
        keras.utils.set_random_seed(3)
        first, second = layers.Conv2D(4, 3, activation="relu"), layers.Dense(3)
        if kind == "subclassed":
            model = Mine(first, second)
            model(images[:2])
        else:
            inputs = keras.Input((8, 8, 1))
            model = keras.Model(inputs, second(layers.Flatten()(first(inputs))))
        trainer = CertifiedTrainer(model, objectives.Consistency(0.25, lam=1.0), seed=1)
        trainer.compile(keras.optimizers.SGD(0.1))
        trainer.fit(images, labels, batch_size=16, epochs=2, verbose=0, shuffle=False)
        c = SmoothedClassifier(model, 0.25, batch_size=64).certify(images[:4], n0=20, n=200, seed=1)
        results.append(([np.asarray(w) for w in model.weights], c.radius, c.label))
    for one, two in zip(results[0][0], results[1][0], strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(results[0][1], results[1][1])
    np.testing.assert_array_equal(results[0][2], results[1][2])


def test_a_subclassed_model_that_never_saw_an_image_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match="call a subclassed model once on a batch of images"):
        SmoothedClassifier(table.Subclassed(), 0.25)


def test_the_adjoint_estimate_of_a_linear_model_is_exact_whatever_hides_it(rng):
    """m / sd of a linear classifier: the closed form sigma |w_c - w_c~|, through a subclassed model."""

    class Hidden(keras.Model):
        def __init__(self):
            super().__init__()
            self.flat, self.end = layers.Flatten(), layers.Dense(4)

        def call(self, images):
            return self.end(self.flat(images))

    model = Hidden()
    images = rng.random((5, 4, 4, 1)).astype("float32")
    model(images)
    network = MomentNetwork(model, 0.5, unknown="adjoint")
    margin = adjoint_margin(network, images, gates=())
    logits, kernel = np.asarray(model(images), np.float64), np.asarray(model.end.kernel, np.float64)
    order = np.argsort(logits, 1)
    for i in range(5):
        top, second = order[i, -1], order[i, -2]
        norm = np.linalg.norm(kernel[:, top] - kernel[:, second])
        assert float(margin.radius[i]) == pytest.approx((logits[i, top] - logits[i, second]) / norm, rel=1e-4)
