"""Noisy copies of a batch, evaluated together; what BatchNormalization made of them."""

import contextlib
import dataclasses
import itertools
import threading

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


@contextlib.contextmanager
def beside_copies(classifier, images, noise, sigma: float, context):
    """Evaluates the copies, and gives the moments that are trained beside them their BatchNormalizations' statistics.

        with beside_copies(classifier, images, noise, sigma, context) as (logits, given):
            ...  # the moments, with the context `given`

    The statistics have gradients by the weights before them. With the moving averages in their place a radius's loss
    would see gains where the classifier has none: a kernel's scale, and whatever shifts a channel, which the
    normalisation takes out again a hundred steps later. Nothing else in the loss resists such a step, and the averages
    never catch up. A layer that renormalises is left out. Activity regularisers are the copies': any other pass
    through the layers starts by clearing those of the last.

    Args:
        noise: a list of (batch, height, width, channels), a copy's each, standard normal. context: the step's.
    """
    with _noted(batch_normalizations(classifier)) as noted:
        logits = logits_of(classifier, images, ops.stack(noise), sigma, context.training)
    statistics = {layer: itertools.cycle(found) for layer, found in noted.items()}
    left = [(layer, list(layer._losses)) for layer in classifier._flatten_layers()]
    yield logits, dataclasses.replace(context, regularise=False, statistics=statistics)
    for layer, losses in left:
        layer._losses[:] = losses


_here = threading.local()
_lock = threading.Lock()
# Layer -> how many threads have it watched: of several replicas each runs in a thread of its own, in turns.
_watched: dict = {}


@contextlib.contextmanager
def _noted(layers):
    """Notes what the layers normalise a batch by, in this thread: {layer: [(mean, variance) of each call]}."""
    layers = [layer for layer in layers if not getattr(layer, "renorm", False)]
    with _lock:
        for layer in layers:
            _watched[layer] = _watched.get(layer, 0) + 1
            if _watched[layer] == 1:
                # Past Keras' own __setattr__, which takes what is set for a part of the layer's state.
                object.__setattr__(layer, "_moments", _noting(layer, layer._moments))
    _here.noted = {}
    try:
        yield _here.noted
    finally:
        _here.noted = None
        with _lock:
            for layer in layers:
                _watched[layer] -= 1
                if not _watched[layer]:
                    del _watched[layer]
                    object.__delattr__(layer, "_moments")


def _noting(layer, moments):
    def noting(*args, **kwargs):
        found = moments(*args, **kwargs)
        if getattr(_here, "noted", None) is not None:
            _here.noted.setdefault(layer, []).append(found)
        return found

    return noting


def batch_normalizations(classifier) -> list:
    """Its layers that normalise by the batch: only what the classifier does to noisy copies may train them."""
    return [layer for layer in classifier._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
