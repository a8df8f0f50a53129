"""The pair (mean, covariance) that flows through a network, and what is read off it at the logits.

One covariance serves the whole batch and every pixel: under the paper's assumptions (Obs. 2, and a covariance
unchanged by ReLU) it depends on the weights alone.
"""

import warnings
from typing import NamedTuple

import keras
from keras import ops

from covkeras.runtime.validation import check_given_labels, check_sigma


class Gaussian(NamedTuple):
    """Mean and covariance of noisy activations.

    mean: (batch, ..., P * channels), one mean per image and unit.
    cov: (channels, channels), float32 (float64 behind a layer that computes in it), in squared units of the mean;
    shared by all images and pixels. Where the last axis of `mean` is P times as long as `cov` (after Flatten), the
    covariance is block-diagonal: P blocks.
    """

    mean: object
    cov: object

    def distribution(self):
        """Returns it as a tensorflow-probability distribution: sample, log_prob, kl_divergence and all else.

        Returns:
            tfd.MultivariateNormalTriL with batch shape (batch, ...) and event shape (channels,), float32. A covariance
            that is singular, as of classes that move together, gets a millionth of its mean variance on the diagonal.

        Raises:
            ValueError: several blocks, where `cov` is no covariance of the last axis. ImportError: without
            tensorflow-probability, or Keras on another backend than TensorFlow.
        """
        if blocks(self) != 1:
            raise ValueError(
                f"distribution needs one covariance for the last axis, got {blocks(self)} blocks of "
                f"{self.cov.shape[-1]}: take it at the logits, not behind a Flatten."
            )
        factor = square_root(self.cov)
        return probability().distributions.MultivariateNormalTriL(ops.cast(self.mean, factor.dtype), factor)


def check_pair(name: str, gaussian) -> None:
    """Refuses what is no mean and covariance that fit each other, such as a variance per unit; sizes that a graph
    doesn't know are passed over. gaussian: a pair, or a list of them."""
    if isinstance(gaussian, list):
        for one in gaussian:
            check_pair(name, one)
        return
    if not isinstance(gaussian, Gaussian):
        raise TypeError(
            f"{name} must be a Gaussian(mean, cov), or a list of them where a layer takes several, got "
            f"{type(gaussian).__name__!r}. An image's noise: covkeras.GaussianInput(sigma)(images)."
        )
    units, cov = tuple(gaussian.mean.shape)[-1:], tuple(gaussian.cov.shape)
    known = None not in (*units, *cov)
    if len(cov) != 2 or cov[0] != cov[1] or not units or (known and (cov[0] == 0 or units[0] % cov[0])):
        raise ValueError(
            f"{name} must have cov (channels, channels) and a mean whose last axis is a multiple of channels, got cov "
            f"{cov} and mean {tuple(gaussian.mean.shape)}. Of variances v alone cov is the diagonal matrix, diag(v)."
        )


def square_root(cov):
    """Cholesky's factor of a covariance, at least float32, that may be singular: more classes than units before them,
    or classes that move together. To the diagonal comes a millionth of its mean variance, and channels times float32's
    rounding of its norm, what the factorisation itself may be off by."""
    cov = wide(cov)
    channels = cov.shape[-1]
    rounding = 2.4e-7 * channels * ops.sqrt(ops.sum(ops.square(cov)))
    jitter = 1e-6 * ops.maximum(ops.trace(cov) / channels, 1e-12) + rounding
    return ops.cholesky(0.5 * (cov + ops.transpose(cov)) + jitter * ops.eye(channels, dtype=cov.dtype))


def rescaled(cov, scale):
    """D S D with D the diagonal of `scale`, (channels,)."""
    return ops.expand_dims(scale, 0) * ops.expand_dims(scale, 1) * cov


def probability():
    """Imports tensorflow-probability: only where it is used, for it takes two seconds."""
    with warnings.catch_warnings():
        # It looks at versions by a module that is deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        import tensorflow_probability

    return tensorflow_probability


def blocks(gaussian: Gaussian) -> int:
    """Returns P, the number of diagonal blocks `cov` stands for along the last axis of `mean`."""
    return gaussian.mean.shape[-1] // gaussian.cov.shape[-1]


def wide(x):
    """float32 where x is stored in less; bfloat16's own erf and exp are slower, and worse."""
    return ops.cast(x, "float32") if keras.backend.standardize_dtype(x.dtype) in ("bfloat16", "float16") else x


def standard_deviation(cov, repeats: int = 1, minimum: float = 1e-12):
    """Returns sqrt(diag(cov)), shape (repeats * channels,); the variance is kept above `minimum`, so that a dead
    channel has a finite gradient."""
    sd = ops.sqrt(ops.maximum(ops.diagonal(cov), minimum))
    return sd if repeats == 1 else ops.tile(sd, (repeats,))


def margin(logits: Gaussian, labels=None, bound: bool = False):
    """Returns the margin's mean and standard deviation, m = u_c - u_c~ (Obs. 1, Eqs. 3 and 4).

    E m = mu_c - mu_c~;  Var m = S_cc + S_c~c~ - 2 S_cc~, with c~ the largest mean logit other than c.

    Args:
        logits: Gaussian at the head; mean (batch, classes), cov (classes, classes).
        labels: (batch,) integers, the class c; by default the class of the largest mean.
        bound: take + 2 |S_cc~| for - 2 S_cc~, as the published code does: never below the paper's variance.

    Returns:
        mean (batch,), negative where `labels` is not the top class; sd (batch,); c (batch,); c~ (batch,).

    Raises:
        TypeError, ValueError: `logits` is no mean and covariance of the classes.
    """
    check_pair("logits", logits)
    if logits.mean.shape[-1] != logits.cov.shape[-1]:
        raise ValueError(
            f"logits must have one covariance for all {logits.mean.shape[-1]} classes, got {blocks(logits)} blocks of "
            f"{logits.cov.shape[-1]}. Propagate to the classifier's last layer first."
        )
    mean = wide(logits.mean)
    cov = ops.cast(logits.cov, mean.dtype)
    classes = mean.shape[-1]
    check_given_labels(labels, classes, mean.shape[0])
    top = ops.argmax(mean, axis=-1) if labels is None else labels
    top = ops.cast(top, "int32")
    chosen = ops.one_hot(top, classes, dtype=mean.dtype)
    runner_up = ops.cast(ops.argmax(mean - 1e30 * chosen, axis=-1), "int32")
    others = ops.one_hot(runner_up, classes, dtype=mean.dtype)
    direction = chosen - others
    variances = ops.diagonal(cov)
    # (classes, classes): the variance of every margin, made once for the batch and then looked up.
    both = cov + ops.transpose(cov)
    table = ops.expand_dims(variances, 0) + ops.expand_dims(variances, 1) + (ops.absolute(both) if bound else -both)
    variance = ops.take(ops.reshape(table, (-1,)), top * classes + runner_up)
    sd = ops.sqrt(ops.maximum(variance, 1e-12))
    return ops.sum(mean * direction, axis=-1), sd, top, runner_up


def propagated_radius(logits: Gaussian, sigma: float, labels=None, bound: bool = False):
    """Returns the propagated radius sigma (mu_c - mu_c~) / sd(m) of Eq. 5. A training surrogate, NOT a certificate.

    Args:
        logits: Gaussian at the head; mean (batch, classes), cov (classes, classes).
        sigma: noise level, in [0, 1] pixel units.
        labels: (batch,) integers; by default the top class, the paper's top-2 margin. bound: as in `margin`.

    Returns:
        (batch,) at least float32, in the units of sigma; negative where `labels` is not the top class.

    Raises:
        TypeError, ValueError: sigma is not positive; `logits` is no mean and covariance of the classes.
    """
    check_sigma(sigma)
    mean, sd, _, _ = margin(logits, labels, bound)
    return sigma * mean / sd
