"""What runs on Keras' JAX backend, too (`benchmarks/jax_training.py`): in its own process, where JAX is installed."""

import importlib.util
import os
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed: pip install jax"),
]

MOVING_AVERAGES = """
import jax, keras, numpy as np
from keras import layers
from covkeras.moments.gradients import gradients_of

images = keras.Input((6,))
model = keras.Model(images, layers.Dense(3)(layers.BatchNormalization()(images)))
x = jax.numpy.asarray(np.random.default_rng(0).normal(size=(32, 6)), "float32")
loss = lambda x: ((model(x, training=True) ** 2).sum(), None)
averaged = model.layers[1].non_trainable_variables
moved = [0.99 * np.asarray(v) + 0.01 * f(x, 0) for v, f in zip(averaged, (np.mean, np.var))]

def step(values, x):
    with keras.StatelessScope(list(zip(model.variables, values))) as scope:
        _, (slope,) = gradients_of(loss, x)
        return slope, [scope.get_current_value(v) for v in averaged]

slope, averages = jax.jit(step)([v.value for v in model.variables], x)
for mine, theirs in zip(averages, moved, strict=True):
    np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)
# Outside a scope they are the model's own; and no tracer stays in them.
_, (eager,) = gradients_of(loss, x)
np.testing.assert_allclose(eager, slope, rtol=1e-4, atol=1e-6)
for mine, theirs in zip(averaged, moved, strict=True):
    np.testing.assert_allclose(np.asarray(mine), theirs, rtol=1e-4, atol=1e-6)
direction = np.random.default_rng(1).normal(size=x.shape).astype("float32")
up, down = (float(loss(x + h * direction)[0]) for h in (1e-2, -1e-2))
assert abs((up - down) / 2e-2 - float((slope * direction).sum())) < 2e-2 * abs((up - down) / 2e-2) + 1e-2
print("done")
"""


def test_moving_averages_leave_a_gradient_within_a_step():
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", MOVING_AVERAGES], capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stdout.strip() == "done", done.stderr
