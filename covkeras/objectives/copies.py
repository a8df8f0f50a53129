"""Noisy copies of a batch, evaluated together."""

from covkeras.runtime.later import Later

keras, ops = Later("keras"), Later("keras.ops")


def copies_of(images, noise, sigma: float):
    """Returns the copies x + sigma eps_i one after the other along the batch axis, the images in order within each.

    images: (batch, height, width, channels). noise: (k, batch, height, width, channels), standard normal. Returns
    (k batch, height, width, channels): row i batch + j is copy i of image j. No other axis is touched.
    """
    noisy = images[None] + sigma * noise
    return ops.reshape(noisy, (-1, *ops.shape(images)[1:]))


def logits_of(classifier, images, noise, sigma: float, training: bool):
    """Returns the logits of the copies, float32 (k, batch, classes), by one forward pass."""
    logits = ops.cast(classifier(copies_of(images, noise, sigma), training=training), "float32")
    return ops.reshape(logits, (noise.shape[0], -1, logits.shape[-1]))


def batch_normalizations(classifier) -> list:
    """Its layers that normalise by the batch: only what the classifier does to noisy copies may train them."""
    return [layer for layer in classifier._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
