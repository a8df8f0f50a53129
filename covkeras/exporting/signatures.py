"""The signatures of an export: its concrete functions by name, with the types of what they take."""

import contextlib

import numpy as np
import tensorflow as tf

from covkeras.certification.certificates import ABSTAIN
from covkeras.datasets.decoding import decoded as decoded_image
from covkeras.exporting.graphs import ServedGraphs, rounded_down
from covkeras.exporting.sigmas import SeveralSigmas
from covkeras.moments.adjoint import adjoint_margin, calibrate_gates
from covkeras.moments.gaussian import margin
from covkeras.moments.gradients import automatic
from covkeras.moments.network import MomentNetwork


def _named(names):
    """class ids (batch,) -> their names."""
    labels = tf.constant([*names, "abstain"])
    return lambda c: tf.gather(labels, tf.where(c == ABSTAIN, tf.constant(len(names), tf.int64), c))


def _certified(named, label, radius, p_lower, samples, **more) -> dict:
    """The answers of a certificate."""
    answers = {"class_id": label, "label": named(label), "radius": rounded_down(radius)}
    return {**answers, "p_lower": p_lower, "samples": samples, **more}


def _traced(function, **specs):
    specs = {name: tf.TensorSpec(s.shape, s.dtype, name) for name, s in specs.items()}
    return tf.function(function, autograph=False).get_concrete_function(**specs)


def signatures_of_sigmas(several: SeveralSigmas, names) -> dict:
    """The concrete functions of several sigmas, by signature name."""
    named = _named(names)
    images = tf.TensorSpec((None, *several.graphs[0].smoothed.image_shape), tf.float32)
    long, double = tf.TensorSpec((None,), tf.int64), tf.TensorSpec((None,), tf.float64)
    numbers = {"n0": long, "n": long, "alpha": double, "seed": long}

    def certify_sigma(images, sigma, n0, n, alpha, seed):
        return _certified(named, *several.certify(images, sigma, n0, n, alpha, seed))

    def certify_best(images, n0, n, alpha, seed):
        *certificate, sigma = several.best(images, n0, n, alpha, seed)
        return _certified(named, *certificate, sigma=sigma)

    return {
        "certify_sigma": _traced(certify_sigma, images=images, sigma=double, **numbers),
        "certify_best": _traced(certify_best, images=images, **numbers),
    }


def signatures_of(graphs: ServedGraphs, names, defaults, calibration_images) -> dict:
    """The concrete functions by signature name."""
    smoothed, named = graphs.smoothed, _named(names)
    images = tf.TensorSpec((None, *smoothed.image_shape), tf.float32, "images")

    def certified(x, n0, n, alpha, seed):
        return _certified(named, *graphs.certify(x, n0, n, alpha, seed))

    def default(x):
        rows = tf.zeros(tf.shape(x)[:1], tf.int64)
        alpha = tf.cast(rows, tf.float64) + tf.constant(np.float64(defaults.alpha))
        # The seed is a hash of what is evaluated: images that round to the same ones get the same answer.
        seed = graphs.seeds(graphs.on_grid(graphs.checked_images(x))[0])
        return certified(x, rows + defaults.n0, rows + defaults.n, alpha, seed)

    def serving_bytes(image_bytes):
        return default(decoded(image_bytes, smoothed.image_shape, defaults.resize))

    def certify_at(images, radius, alpha, seed):
        done, top, samples = graphs.certify_at(images, radius, alpha, seed)
        return {"certified": done == 1, "class_id": top, "label": named(top), "samples": samples}

    def predict(images):
        label, votes = graphs.predict(images, defaults.n_predict, defaults.alpha)
        return {"class_id": label, "label": named(label), "votes": votes}

    def logits(images):
        return {"logits": tf.cast(smoothed.classifier(images, training=False), tf.float32)}

    long, double = tf.TensorSpec((None,), tf.int64), tf.TensorSpec((None,), tf.float64)
    text = tf.TensorSpec((None,), tf.string)

    def certify(images, n0, n, alpha, seed):
        return certified(images, n0, n, alpha, seed)

    made = {
        "serving_default": _traced(lambda images: default(images), images=images),
        "certify": _traced(certify, images=images, n0=long, n=long, alpha=double, seed=long),
        "certify_at": _traced(certify_at, images=images, radius=double, alpha=double, seed=long),
        "predict": _traced(predict, images=images),
        "logits": _traced(logits, images=images),
    }
    if len(smoothed.image_shape) == 3 and smoothed.image_shape[-1] in (1, 3):
        # PNG and JPEG files hold nothing else: signals, and images of more channels, are sent as numbers.
        made["serving_bytes"] = _traced(serving_bytes, image_bytes=text)
    # A layer without a moment rule leaves `moments` out: metadata.json lists the signatures there are.
    with contextlib.suppress(NotImplementedError), automatic():
        made["moments"] = _traced(_moments(smoothed, named, calibration_images), images=images)
    return made


def _moments(smoothed, named, calibration_images):
    """The sampling-free estimates. Propagated radii are no certificates."""
    network = MomentNetwork(smoothed.classifier, smoothed.sigma)
    gates = None if calibration_images is None else calibrate_gates(network, calibration_images)

    def moments(images):
        mean, sd, label, _ = margin(network(images))
        label = tf.cast(label, tf.int64)
        return {
            "class_id": label,
            "label": named(label),
            "propagated_radius": tf.cast(smoothed.sigma * mean / sd, tf.float32),
            "adjoint_radius": tf.cast(adjoint_margin(network, images, gates).radius, tf.float32),
        }

    return moments


def decoded(image_bytes, shape, resize: bool = False):
    """PNG or JPEG strings (batch,) as float32 images on the 8-bit grid, of the classifier's shape.

    Args:
        image_bytes: (batch,). shape: (height, width, channels). resize: whether images of another size are resized; a
            certificate then speaks of the resized image.

    Raises:
        tf.errors.InvalidArgumentError: see `datasets.decoding`; another size, unless `resize`.
    """
    height, width, channels = shape

    def one(text):
        pixels = decoded_image(text, channels)
        size = tf.shape(pixels)[:2]
        same = tf.reduce_all(size == [height, width])

        def other():
            if resize:
                return tf.image.resize(pixels, (height, width), antialias=True)
            expected = f"image must be {height} x {width} (height x width), as the classifier takes it: resize it, got"
            with tf.control_dependencies([tf.debugging.Assert(same, [expected, size])]):
                return tf.zeros(shape)

        sized = tf.cond(same, lambda: tf.cast(pixels, tf.float32), other)
        return tf.ensure_shape(tf.clip_by_value(tf.round(sized), 0.0, 255.0) / 255.0, shape)

    return tf.map_fn(one, image_bytes, fn_output_signature=tf.TensorSpec(shape, tf.float32))
