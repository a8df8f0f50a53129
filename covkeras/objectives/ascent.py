"""Steps uphill for an image (SmoothAdv, SmoothMix), or for a copy's noise (CAT-RS, the sphere attack, ours)."""

from covkeras.objectives.base import nearest
from covkeras.objectives.copies import logits_of
from covkeras.runtime.later import Later

ops, gradients = Later("keras.ops"), Later("covkeras.moments.gradients")
image_gradients = Later("covkeras.moments.image_gradients")

_WARMUP = {"mnist": (10 / 90,) * 3, "cifar10": (10 / 150,) * 3}


def smoothed_loss(classifier, labels, noise, sigma: float):
    """Returns x (batch, h, w, c) -> sum over the batch of -log mean_i F(x + sigma eps_i)_y, F the softmax, and the mean
    (batch, classes); the classifier as outside training.

    labels: (batch,). noise: (k, batch, h, w, c), standard normal.
    """

    def loss(x):
        logits = attacked_logits(classifier, x, noise=noise, sigma=sigma)
        mean = ops.mean(ops.softmax(logits), 0)
        chosen = ops.take_along_axis(mean, ops.cast(ops.expand_dims(labels, -1), "int32"), -1)
        return -ops.sum(ops.log(ops.maximum(chosen, 1e-30))), mean

    return loss


def attacked_logits(classifier, x, noise, sigma: float):
    """As `logits_of`, outside training, where the gradient by x or the noise is wanted."""
    with image_gradients.quick_to_image(classifier):
        return logits_of(classifier, x, noise=noise, sigma=sigma, training=False)


def stepped(x, loss, length, instead):
    """One step of `length` along the loss's gradient, normalised image by image, in [0, 1]; no gradient comes through.

    x: (batch, ...). loss: of `smoothed_loss`. length: a number or tensor. instead: (batch, ...), a direction for images
    whose gradient is 0.
    """
    x = ops.convert_to_tensor(x)
    _, (gradient,) = gradients.gradients_of(loss, x)
    gradient = ops.where(norms(gradient) > 0, gradient, instead)
    return ops.stop_gradient(ops.clip(x + length * direction(gradient), 0.0, 1.0))


def turned(d, loss, length):
    """The noise d (k, batch, ...) after one step of `length` along the gradient of loss(d) -> (sum over the copies,
    logits), normalised copy by copy, and the logits before it; a copy without a gradient stays. No gradient comes
    through."""
    logits, (gradient,) = gradients.gradients_of(loss, ops.convert_to_tensor(d))
    return ops.stop_gradient(d + length * direction(gradient, 2)), logits


def renewed(d, start, leading: int = 2):
    """d, brought to the norm of `start`, copy by copy."""
    return d * (norms(start, leading) / ops.maximum(norms(d, leading), 1e-30))


def restored(d, start):
    """d, brought to the mean and the root mean square of `start`, copy by copy: (k, batch, ...)."""
    mean, own = (ops.mean(noise, axis=_own_axes(noise, 2), keepdims=True) for noise in (start, d))
    return mean + renewed(d - own, start - mean)


def direction(gradient, leading: int = 1):
    """The gradient, normalised image by image; 0 where it is 0."""
    return gradient / ops.maximum(norms(gradient, leading), 1e-30)


def within(x, centre, radius, leading: int = 1):
    """x, drawn back to within `radius` of the centre, image by image."""
    apart = x - centre
    return centre + apart * ops.minimum(1.0, radius / ops.maximum(norms(apart, leading), 1e-30))


def norms(x, leading: int = 1):
    """Euclidean norms, image by image: (batch, ...) -> (batch, 1, ...); leading: 2 where copies stand before it."""
    return ops.sqrt(ops.sum(ops.square(x), axis=_own_axes(x, leading), keepdims=True))


def one_each(values, like):
    """Values of images, or of copies, with the axes of `like` behind them: (batch,) -> (batch, 1, ...)."""
    for _ in range(len(like.shape) - len(values.shape)):
        values = values[..., None]
    return values


def uniforms(noise):
    """One uniform number an image from a copy's noise, (batch, ...) -> (batch,): Phi of its first normal one."""
    first = ops.reshape(noise, (ops.shape(noise)[0], -1))[:, 0]
    return 0.5 * (1.0 + ops.erf(first / 2**0.5))


def _own_axes(x, leading: int) -> tuple[int, ...]:
    # Images may be signals, too: of any number of axes.
    return tuple(range(leading, len(x.shape)))


def published_warmup(data: str, sigma: float, epochs: int) -> int:
    """Ten epochs of the 90 that SmoothAdv and SmoothMix are trained for on MNIST, and of CIFAR-10's 150."""
    return round(epochs * nearest(_WARMUP, data, sigma))


def warmed(context, epochs: int):
    """The share of a weight or length in an epoch (from 0) of a linear warm-up."""
    if not epochs:
        return 1.0
    return ops.minimum(1.0, (ops.cast(ops.convert_to_tensor(context.epoch), "float32") + 1.0) / epochs)
