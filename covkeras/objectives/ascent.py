"""Steps uphill for an image (SmoothAdv, SmoothMix), or for a copy's noise (CAT-RS, the sphere attack, ours)."""

from covkeras.objectives.copies import logits_of
from covkeras.runtime.later import Later

ops, gradients = Later("keras.ops"), Later("covkeras.moments.gradients")


def smoothed_loss(classifier, labels, noise, sigma: float):
    """Returns x (batch, h, w, c) -> sum over the batch of -log mean_i F(x + sigma eps_i)_y, F the softmax, and the mean
    (batch, classes); the classifier as outside training.

    labels: (batch,). noise: (k, batch, h, w, c), standard normal.
    """

    def loss(x):
        logits = logits_of(classifier, x, noise=noise, sigma=sigma, training=False)
        mean = ops.mean(ops.softmax(logits), 0)
        chosen = ops.take_along_axis(mean, ops.cast(ops.expand_dims(labels, -1), "int32"), -1)
        return -ops.sum(ops.log(ops.maximum(chosen, 1e-30))), mean

    return loss


def stepped(x, loss, length, instead):
    """One step of `length` along the loss's gradient, normalised image by image, in [0, 1]; no gradient comes through.

    x: (batch, h, w, c). loss: of `smoothed_loss`. length: a number or tensor. instead: (batch, h, w, c), a direction
    for images whose gradient is 0.
    """
    x = ops.convert_to_tensor(x)
    _, (gradient,) = gradients.gradients_of(loss, x)
    gradient = ops.where(norms(gradient) > 0, gradient, instead)
    return ops.stop_gradient(ops.clip(x + length * direction(gradient), 0.0, 1.0))


def turned(d, loss, length):
    """The noise d (k, batch, h, w, c) after one step of `length` along the gradient of loss(d) -> (sum over the copies,
    logits), normalised copy by copy, and the logits before it; a copy without a gradient stays. No gradient comes
    through."""
    logits, (gradient,) = gradients.gradients_of(loss, ops.convert_to_tensor(d))
    return ops.stop_gradient(d + length * direction(gradient)), logits


def renewed(d, start):
    """d, brought to the norm of `start`, copy by copy."""
    return d * (norms(start) / ops.maximum(norms(d), 1e-30))


def restored(d, start):
    """d, brought to the mean and the root mean square of `start`, copy by copy."""
    mean, own = (ops.mean(noise, axis=(-3, -2, -1), keepdims=True) for noise in (start, d))
    return mean + renewed(d - own, start - mean)


def direction(gradient):
    """The gradient, normalised image by image; 0 where it is 0."""
    return gradient / ops.maximum(norms(gradient), 1e-30)


def within(x, centre, radius):
    """x, drawn back to within `radius` of the centre, image by image."""
    apart = x - centre
    return centre + apart * ops.minimum(1.0, radius / ops.maximum(norms(apart), 1e-30))


def norms(x):
    """Euclidean norms, image by image: (..., h, w, c) -> (..., 1, 1, 1)."""
    return ops.sqrt(ops.sum(ops.square(x), axis=(-3, -2, -1), keepdims=True))


def warmed(context, epochs: int):
    """The share of a weight or length in an epoch (from 0) of a linear warm-up."""
    if not epochs:
        return 1.0
    return ops.minimum(1.0, (ops.cast(ops.convert_to_tensor(context.epoch), "float32") + 1.0) / epochs)
