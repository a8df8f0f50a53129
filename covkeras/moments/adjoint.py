"""Adjoint covariance propagation: J S J^T evaluated from the margin's end, by one backward pass per batch (ours).

The margin m = mu_c - mu_c~ is a function of the image through the propagated means, whose ReLUs have the derivative
Phi(z). To first order Var m = sigma^2 |grad_x m|^2, with every correlation between pixels in it. A ReLU adds, beyond
first order, (dm/da)^2 s^2 kappa(z) for each of its units. An estimate: never called certified.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
from keras import ops

from covkeras.moments.dispatch import Context
from covkeras.moments.gaussian import Gaussian, blocks, margin, standard_deviation, wide
from covkeras.moments.gradients import gradients_of
from covkeras.moments.network import MomentNetwork, check_network
from covkeras.runtime.validation import check_count, check_given, check_switch


class AdjointMargin(NamedTuple):
    """The top-2 margin of the smoothed network, estimated.

    mean, sd: (batch,), of the margin. label, runner_up: (batch,), c and c~. radius: (batch,), sigma mean / sd, the
    propagated radius in [0, 1] pixel units. logits: (batch, classes), the propagated mean.
    """

    mean: object
    sd: object
    label: object
    runner_up: object
    radius: object
    logits: object


def adjoint_margin(
    network: MomentNetwork,
    images,
    gates: Sequence | Callable | None = None,
    kappa: bool = True,
    labels=None,
    context: Context = Context(),
) -> AdjointMargin:
    """Estimates the margin's mean and standard deviation by one forward and one backward pass.

    Differentiable by the classifier's weights; the gates' s and, where it is asked for, kappa's are constants to it.

    Args:
        network: the classifier's moments.
        images: (batch, height, width, channels) in [0, 1]; as many as fit in memory at once.
        gates: the rectifiers' standard deviations, from `calibrate_gates`, or a function (position, Gaussian before
            the rectifier) -> (channels,); by default those of the propagated covariance. Where the function returns
            None, the rectifier itself is taken, s = 0.
        kappa: include what the rectifiers add beyond first order.
        labels: (batch,) integers, the class c; by default the class of the largest mean.
        context: of the rules; its `rectify` is not used.

    Returns:
        AdjointMargin, tensors of shape (batch,), and the logits'.

    Raises:
        ValueError: `gates` are not as many as the network has rectifiers. NotImplementedError: a layer with a rule of
            the user's that is neither linear nor element-wise.
    """
    check_network(network)
    check_switch("kappa", kappa)
    network.check_estimable()
    images = check_given(images, network.image_shape)
    gate = _gate(network, gates)
    images = ops.convert_to_tensor(images, _image_dtype(network))
    # Zeros added to every rectifier's output: their gradient is dm/da, on any backend.
    probes = [ops.zeros((ops.shape(images)[0], *shape), "float32") for shape in network.gate_shapes] if kappa else []

    def total_margin(images, *probes):
        units = []

        def rectify(gaussian, activation):
            sd = gate(len(units), gaussian)
            if sd is None:
                mean = activation.apply(gaussian.mean)
            else:
                sd = ops.stop_gradient(sd)
                mean = activation.gated(gaussian.mean, sd, context.kernels)
            mean = mean + ops.cast(probes[len(units)], mean.dtype) if kappa else mean
            units.append((gaussian.mean, sd, activation))
            # The covariance is read where gates are propagated: there as the activation's own rule has it.
            return Gaussian(mean, activation.spread(gaussian))

        given = dataclasses.replace(context, rectify=rectify, plain=True)
        logits = network(images, context=given)
        mean, _, label, runner_up = margin(logits, labels)
        return ops.sum(mean), (mean, label, runner_up, logits.mean, units)

    (mean, label, runner_up, logits, units), gradients = gradients_of(total_margin, images, *probes)
    variance = network.sigma**2 * _squares(gradients[0])
    for (pre, sd, activation), by_output in zip(units, gradients[1:], strict=kappa):
        if sd is None:
            continue
        excess = ops.stop_gradient(activation.excess(wide(pre), ops.cast(sd, wide(pre).dtype)))
        variance = variance + _squares(
            ops.cast(by_output, excess.dtype) * ops.cast(sd, excess.dtype) * ops.sqrt(excess)
        )
    sd = ops.cast(ops.sqrt(ops.maximum(variance, 1e-24)), mean.dtype)
    return AdjointMargin(mean, sd, label=label, runner_up=runner_up, radius=network.sigma * mean / sd, logits=logits)


def _gate(network, gates) -> Callable:
    """(position, Gaussian) -> (channels,), the s of the rectifier's gate."""
    if gates is None:
        network.check_gates_known()
        return lambda position, gaussian: standard_deviation(gaussian.cov, blocks(gaussian))
    if callable(gates):
        return gates
    given = len(gates) if hasattr(gates, "__len__") else repr(gates)
    if given != len(network.gate_shapes):
        raise ValueError(
            f"gates must hold one array for each of the network's {len(network.gate_shapes)} rectifiers, got "
            f"{given}. Make them with calibrate_gates(network, images)."
        )
    return lambda position, gaussian: ops.convert_to_tensor(gates[position])


def noisy_pass(network: MomentNetwork, noisy, context: Context = Context()) -> tuple:
    """Evaluates the classifier itself at noisy images, and keeps what its rectifiers saw.

    Args:
        network: the classifier's moments. noisy: (batch, height, width, channels). context: of the rules.

    Returns:
        Logits (batch, classes), and per rectifier, in the network's order, its inputs (batch, ..., channels).
    """
    units = []

    def rectify(gaussian, activation):
        units.append(gaussian.mean)
        return Gaussian(activation.apply(gaussian.mean), gaussian.cov)

    network.check_estimable()
    sample = Gaussian(noisy, ops.zeros_like(network.gaussian_input(noisy)[1]))
    logits = network.propagate(sample, dataclasses.replace(context, rectify=rectify, plain=True))
    return logits.mean, units


def measured_gates(units: Sequence, copies: int = 1) -> Callable:
    """Returns the gates that noisy copies show: per channel the root mean square of h(x + eps) - mu(x).

    Args:
        units: per rectifier, what the copies brought there, (copies * images, ..., channels), from `noisy_pass`.
        copies: of each image, one after the other along the first axis.

    Returns:
        A function (position, Gaussian) -> (channels,), for `adjoint_margin`, whose images begin with those copied.
    """

    def gate(position, gaussian):
        samples = wide(units[position])
        mean = wide(gaussian.mean)[: ops.shape(samples)[0] // copies]
        if copies == 1:
            # Twenty thousand numbers of a channel tell its scale to half a percent; more would only cost.
            use = max(8, 20_000 // math.prod(mean.shape[1:-1]))
            mean, samples = mean[:use], samples[:use]
        residual = ops.reshape(samples, (copies, -1)) - ops.reshape(mean, (1, -1))
        squares = ops.reshape(ops.square(residual), (-1, samples.shape[-1]))
        return ops.sqrt(ops.maximum(ops.mean(squares, axis=0), 1e-12))

    return gate


def calibrate_gates(network: MomentNetwork, images, copies: int = 4, seed: int = 0) -> list:
    """Measures the rectifiers' standard deviations: per channel the root mean square of h(x + eps) - mu(x).

    Args:
        network: the classifier's moments.
        images: (batch, height, width, channels) in [0, 1]; a few dozen suffice.
        copies: noisy copies of each image.
        seed: of the noise.

    Returns:
        A list, per rectifier in the network's order, of (channels,) arrays: `gates` of `adjoint_margin`.
    """
    check_network(network)
    check_count("copies", copies)
    images = check_given(images, network.image_shape)
    if images.shape[0] == 0:
        raise ValueError("images must be a few dozen, got none.")
    images = ops.convert_to_tensor(images, _image_dtype(network))
    noise = keras.random.normal((copies, *ops.shape(images)), seed=seed)
    noisy = ops.reshape(images + network.sigma * ops.cast(noise, images.dtype), (-1, *images.shape[1:]))
    measure, gates = measured_gates(noisy_pass(network, noisy)[1], copies), []

    def rectify(gaussian, activation):
        gates.append(measure(len(gates), gaussian))
        return Gaussian(activation.gated(gaussian.mean, gates[-1]), gaussian.cov)

    network(images, context=Context(rectify=rectify, plain=True))
    return gates


def _image_dtype(network) -> str:
    """float32 whatever the policy, but for a float64 classifier."""
    return "float64" if network.classifier.compute_dtype == "float64" else "float32"


def _squares(x):
    """Sum of squares over all but the first axis."""
    return ops.sum(ops.square(x), axis=tuple(range(1, len(x.shape))))
