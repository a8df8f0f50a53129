"""A two-layer network on points of the plane: boxes, samples and tracked covariances side by side (Figure 1a)."""

import dataclasses

import keras
import numpy as np
from keras import layers, ops

from covkeras.diagnostics.intervals import interval_bounds
from covkeras.diagnostics.layerwise import pre_activations
from covkeras.moments.network import MomentNetwork


@dataclasses.dataclass(frozen=True)
class Plane:
    """What one layer's first two units hold around one input. name: of the layer. samples: (samples, 2). mean (2,), cov
    (2, 2): propagated. low, high: (2,) interval bounds for the input within 3 sigma of the point in each coordinate."""

    name: str
    samples: np.ndarray
    mean: np.ndarray
    cov: np.ndarray
    low: np.ndarray
    high: np.ndarray


def two_layer_network(seed: int = 0, hidden: int = 8) -> keras.Model:
    """Trains Dense(hidden, relu), Dense(2) to tell two clouds of points in [0, 1]^2 apart."""
    keras.utils.set_random_seed(seed)
    rng = np.random.Generator(np.random.Philox(seed))
    labels = rng.integers(0, 2, 512)
    points = np.array([[0.35, 0.35], [0.65, 0.65]])[labels] + 0.1 * rng.standard_normal((512, 2))
    network = keras.Sequential(
        [keras.Input((2,)), layers.Dense(hidden, activation="relu", name="hidden"), layers.Dense(2, name="output")]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.Adam(0.01), loss)
    network.fit(points.astype(np.float32), labels, batch_size=64, epochs=40, verbose=0)
    return network


def planes(network, point=(0.4, 0.4), sigma: float = 0.05, samples: int = 2_000, seed: int = 0) -> list[Plane]:
    """Follows N(point, sigma^2 I) through a network of dense layers: input, then every layer before its activation.

    Args:
        network: a Sequential or Functional model of Dense layers with at least two units each, (batch, 2) in.
        point: the input. sigma: of the noise. samples: drawn. seed: of the noise.
    """
    rng = np.random.Generator(np.random.Philox(seed))
    point = np.asarray(point, np.float32)
    noisy = (point + sigma * rng.standard_normal((samples, 2))).astype(np.float32)
    moments = MomentNetwork(network, sigma, r_max=0.0)
    propagated, sampled = pre_activations(moments, point[None], sampled=False), pre_activations(moments, noisy)
    boxes = {}
    low, high = point[None] - 3 * sigma, point[None] + 3 * sigma
    for name, layer in ((layer.name, layer) for layer in network.layers if isinstance(layer, layers.Dense)):
        # The box before the layer's own activation: the same layer without it.
        linear = layers.Dense(layer.units)
        linear.build((None, layer.kernel.shape[0]))
        linear.set_weights(layer.get_weights())
        before = keras.Sequential([keras.Input((layer.kernel.shape[0],)), linear])
        boxes[name] = interval_bounds(before, low, high)
        low, high = (layer.activation(ops.convert_to_tensor(b)) for b in boxes[name])
    made = [Plane("input", noisy, point, sigma**2 * np.eye(2), point - 3 * sigma, point + 3 * sigma)]
    for name, gaussian in propagated.items():
        mean, cov = (ops.convert_to_numpy(t) for t in gaussian)
        values, box = ops.convert_to_numpy(sampled[name].mean), [ops.convert_to_numpy(b)[0, :2] for b in boxes[name]]
        made.append(Plane(name, values[:, :2], mean[0, :2], cov[:2, :2], *box))
    return made
