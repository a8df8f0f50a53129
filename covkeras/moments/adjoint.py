"""Adjoint covariance propagation: J S J^T evaluated from the margin's end, by one backward pass per batch (ours).

The margin m = mu_c - mu_c~ is a function of the image through the propagated means, whose ReLUs have the derivative
Phi(z). To first order Var m = sigma^2 |grad_x m|^2, with every correlation between pixels in it. A ReLU adds, beyond
first order, (dm/da)^2 s^2 kappa(z) for each of its units. An estimate: never called certified.
"""

from collections.abc import Sequence
from typing import NamedTuple

import keras
from keras import ops

from covkeras.moments.dispatch import Context
from covkeras.moments.gaussian import Gaussian, blocks, margin, standard_deviation
from covkeras.moments.network import MomentNetwork
from covkeras.moments.rectifiers import leaky_mean, relu_excess
from covkeras.validation import check_count


class AdjointMargin(NamedTuple):
    """The top-2 margin of the smoothed network, estimated.

    mean, sd: (batch,), of the margin. label, runner_up: (batch,), c and c~. radius: (batch,), sigma mean / sd, the
    propagated radius in [0, 1] pixel units.
    """

    mean: object
    sd: object
    label: object
    runner_up: object
    radius: object


def adjoint_margin(network: MomentNetwork, images, gates: Sequence | None = None, kappa: bool = True) -> AdjointMargin:
    """Estimates the margin's mean and standard deviation by one forward and one backward pass.

    Args:
        network: the classifier's moments.
        images: (batch, height, width, channels) in [0, 1]; as many as fit in memory at once.
        gates: the rectifiers' standard deviations, from `calibrate_gates`; by default those of the propagated
            covariance.
        kappa: include what the rectifiers add beyond first order.

    Returns:
        AdjointMargin, five tensors of shape (batch,).

    Raises:
        ValueError: `gates` are not as many as the network has rectifiers.
    """
    if gates is not None and len(gates) != len(network.gate_shapes):
        raise ValueError(
            f"gates must hold one array for each of the network's {len(network.gate_shapes)} rectifiers, got "
            f"{len(gates)}. Make them with calibrate_gates(network, images)."
        )
    images = ops.convert_to_tensor(images, "float32")
    # Zeros added to every rectifier's output: their gradient is dm/da, on any backend.
    probes = [ops.zeros((ops.shape(images)[0], *shape), "float32") for shape in network.gate_shapes] if kappa else []

    def total_margin(images, *probes):
        units = []

        def rectify(gaussian, slope):
            count = blocks(gaussian)
            sd = standard_deviation(gaussian.cov, count) if gates is None else ops.convert_to_tensor(gates[len(units)])
            mean = leaky_mean(gaussian.mean, sd, slope)
            mean = mean + ops.cast(probes[len(units)], mean.dtype) if kappa else mean
            units.append((gaussian.mean, sd, slope))
            return Gaussian(mean, gaussian.cov)

        mean, _, label, runner_up = margin(network(images, context=Context(rectify=rectify)))
        return ops.sum(mean), (mean, label, runner_up, units)

    (mean, label, runner_up, units), gradients = _gradients(total_margin, images, *probes)
    variance = network.sigma**2 * _squares(gradients[0])
    for (pre, sd, slope), by_output in zip(units, gradients[1:], strict=kappa):
        pre = ops.cast(pre, "float32")
        variance = variance + _squares((1.0 - slope) * by_output * sd * ops.sqrt(relu_excess(pre, sd)))
    sd = ops.sqrt(ops.maximum(variance, 1e-24))
    return AdjointMargin(mean, sd, label, runner_up, network.sigma * mean / sd)


def calibrate_gates(network: MomentNetwork, images, copies: int = 4, seed: int = 0) -> list:
    """Measures the rectifiers' standard deviations: per channel the root mean square of h(x + eps) - mu(x).

    Args:
        network: the classifier's moments.
        images: (batch, height, width, channels) in [0, 1]; a few dozen suffice.
        copies: noisy copies of each image.
        seed: of the noise.

    Returns:
        A list, per rectifier in the network's order, of (channels,) float32 arrays: `gates` of `adjoint_margin`.
    """
    check_count("copies", copies)
    images = ops.convert_to_tensor(images, "float32")
    noise = keras.random.normal((copies, *ops.shape(images)), seed=seed)
    noisy = ops.reshape(images + network.sigma * noise, (-1, *images.shape[1:]))
    batch, gates = ops.shape(images)[0], []

    def rectify(gaussian, slope):
        # The batch is the images' means, then their noisy copies: both go through the same linear layers.
        mean, samples = gaussian.mean[:batch], gaussian.mean[batch:]
        residual = ops.reshape(ops.cast(samples, "float32"), (copies, -1)) - ops.reshape(
            ops.cast(mean, "float32"), (1, -1)
        )
        squares = ops.reshape(ops.square(residual), (-1, mean.shape[-1]))
        sd = ops.sqrt(ops.maximum(ops.mean(squares, axis=0), 1e-12))
        gates.append(sd)
        rectified = ops.where(samples > 0, samples, slope * samples)
        return Gaussian(ops.concatenate([leaky_mean(mean, sd, slope), rectified], axis=0), gaussian.cov)

    network(ops.concatenate([images, noisy], axis=0), context=Context(rectify=rectify))
    return gates


def _squares(x):
    """Sum of squares over all but the first axis."""
    return ops.sum(ops.square(x), axis=tuple(range(1, len(x.shape))))


def _gradients(function, *tensors):
    """Returns function's auxiliary value and the gradients of its scalar by `tensors`, on Keras' backend."""
    backend = keras.config.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(tensors)
            value, extra = function(*tensors)
        return extra, tape.gradient(value, tensors)
    if backend == "jax":
        import jax

        gradients, extra = jax.grad(function, argnums=tuple(range(len(tensors))), has_aux=True)(*tensors)
        return extra, gradients
    raise NotImplementedError(f"adjoint_margin needs Keras' tensorflow or jax backend, got {backend!r}.")
