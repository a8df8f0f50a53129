"""The SavedModel: its signatures, metadata and warm-up requests, written aside and renamed."""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from covkeras.certification.certificates import ABSTAIN
from covkeras.certification.confidence import MAX_TRIALS
from covkeras.certification.records import classifier_digest
from covkeras.certification.smoothing import SmoothedClassifier
from covkeras.datasets.decoding import decoded as decoded_image
from covkeras.exporting.graphs import ServedGraphs, rounded_down
from covkeras.moments.adjoint import adjoint_margin, calibrate_gates
from covkeras.moments.gaussian import margin
from covkeras.moments.gradients import automatic
from covkeras.moments.network import MomentNetwork
from covkeras.runtime.adapting import foreign_layers
from covkeras.runtime.classifiers import check_weights, probe_images
from covkeras.runtime.validation import check_alpha, check_count, check_enough, check_enough_to_predict

METADATA = "metadata.json"
_LIBRARIES = ("tensorflow", "keras", "numpy", "covkeras")


@dataclasses.dataclass(frozen=True)
class Defaults:
    """What a request that doesn't say gets, and what one may ask for.

    n0, n, alpha: of serving_default. n_predict: samples of `predict`. max_samples: above it a request is refused.
    resize: whether serving_bytes resizes images of another size, instead of refusing them.
    """

    n0: int = 100
    n: int = 1_000
    alpha: float = 0.001
    n_predict: int = 1_000
    max_samples: int = 100_000
    resize: bool = False

    def __post_init__(self):
        check_alpha(self.alpha)
        check_count("max_samples", self.max_samples, 64, MAX_TRIALS)
        for name in ("n0", "n", "n_predict"):
            check_count(name, getattr(self, name), 1, self.max_samples)
        check_enough("n", self.n, self.alpha)
        check_enough_to_predict("n_predict", self.n_predict, self.alpha)


def export(
    smoothed: SmoothedClassifier,
    folder: str | os.PathLike,
    class_names: Sequence[str] | None = None,
    defaults: Defaults = Defaults(),
    metadata: dict | None = None,
    calibration_images=None,
    key: tuple[int, int] | None = None,
) -> Path:
    """Writes a SavedModel for TF-Serving: certification in the graph, no Python and no covkeras on the server.

    Signatures (every input and output has the batch axis first): serving_default, serving_bytes, certify, certify_at,
    predict, logits, and moments where all layers have a rule; see serving/README.md.

    Args:
        smoothed: the classifier, sigma and noise to serve; its batch_size bounds the memory.
        folder: of one version, such as exports/digits/1: its name must be a whole number.
        class_names: one per class; by default "0", "1", ...
        defaults: of the requests.
        metadata: added to metadata.json, such as the data set and the certified accuracy measured.
        calibration_images: a few dozen, float32, for the gates of the adjoint radius; propagated gates without.
        key: two numbers in [0, 2^63), the secret that the noise of requests without a seed is drawn under; by default
            random. Whoever knows it can search for images whose certificates are false.

    Returns:
        The folder. It appears whole or not at all: a server that polls its parent never loads a half of it.

    Raises:
        ValueError: a folder's name that is no version; class_names; key. FileExistsError: the folder exists.
    """
    folder = Path(folder)
    names = _checked_names(class_names, smoothed.num_classes)
    if not (folder.name.isascii() and folder.name.isdigit()):
        raise ValueError(f"folder must end in a version, a whole number such as exports/digits/1, got {folder}.")
    if folder.exists():
        raise FileExistsError(f"{folder} exists: a version is never changed. Export the next number.")
    if key is not None and not (len(key) == 2 and all(0 <= int(k) < 2**63 for k in key)):
        raise ValueError(f"key must be two whole numbers in [0, 2^63), got {key!r}.")
    graphs = ServedGraphs(smoothed, defaults.max_samples, key or (secrets.randbits(63), secrets.randbits(63)))
    check_weights(smoothed.classifier)
    signatures = _signatures(graphs, names, defaults, calibration_images)
    _check_answers(smoothed.classifier, signatures["logits"])
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        module = tf.Module()
        module.held = [getattr(v, "value", v) for v in smoothed.classifier.variables]
        module.foreign = [variable for layer in foreign_layers(smoothed.classifier) for variable in layer.held]
        tf.saved_model.save(module, str(aside), signatures=signatures)
        _write_extra(aside, smoothed, names, defaults, metadata, signatures)
        os.rename(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _check_answers(classifier, logits) -> None:
    """Refuses to export a graph that answers otherwise than the classifier itself."""
    images = probe_images(classifier)
    here, there = logits(images=tf.constant(images))["logits"].numpy(), np.asarray(classifier(images, training=False))
    scale = 1.0 + np.abs(there[np.isfinite(there)]).max(initial=0.0)
    if not np.allclose(here, there, atol=0.02 * scale, rtol=0, equal_nan=True):
        raise ValueError(
            "smoothed must hold a classifier whose graph is its own: traced, it answers a probe otherwise than called. "
            "A layer computes with Python values that change; hold them in weights."
        )


def _checked_names(class_names, classes: int) -> list[str]:
    names = [str(i) for i in range(classes)] if class_names is None else [str(n) for n in class_names]
    if len(names) != classes:
        raise ValueError(f"class_names must be {classes}, one for each class, got {len(names)}.")
    return names


def _signatures(graphs: ServedGraphs, names, defaults: Defaults, calibration_images) -> dict:
    """The concrete functions by signature name."""
    smoothed = graphs.smoothed
    labels = tf.constant([*names, "abstain"])
    images = tf.TensorSpec((None, *smoothed.image_shape), tf.float32, "images")

    def named(class_id):
        return tf.gather(labels, tf.where(class_id == ABSTAIN, tf.constant(len(names), tf.int64), class_id))

    def certified(x, n0, n, alpha, seed):
        label, radius, p_lower, samples = graphs.certify(x, n0, n, alpha, seed)
        return {
            "class_id": label,
            "label": named(label),
            "radius": rounded_down(radius),
            "p_lower": p_lower,
            "samples": samples,
        }

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

    def traced(function, **specs):
        specs = {name: tf.TensorSpec(s.shape, s.dtype, name) for name, s in specs.items()}
        return tf.function(function, autograph=False).get_concrete_function(**specs)

    def certify(images, n0, n, alpha, seed):
        return certified(images, n0, n, alpha, seed)

    made = {
        "serving_default": traced(lambda images: default(images), images=images),
        "certify": traced(certify, images=images, n0=long, n=long, alpha=double, seed=long),
        "certify_at": traced(certify_at, images=images, radius=double, alpha=double, seed=long),
        "predict": traced(predict, images=images),
        "logits": traced(logits, images=images),
    }
    if len(smoothed.image_shape) == 3 and smoothed.image_shape[-1] in (1, 3):
        # PNG and JPEG files hold nothing else: signals, and images of more channels, are sent as numbers.
        made["serving_bytes"] = traced(serving_bytes, image_bytes=text)
    # A layer without a moment rule leaves `moments` out: metadata.json lists the signatures there are.
    with contextlib.suppress(NotImplementedError), automatic():
        made["moments"] = traced(_moments(smoothed, named, calibration_images), images=images)
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


def _write_extra(folder: Path, smoothed, names, defaults: Defaults, metadata, signatures) -> None:
    """assets.extra: metadata.json, and warm-up requests where tensorflow-serving-api is installed."""
    extra = folder / "assets.extra"
    extra.mkdir()
    about = {
        **(metadata or {}),
        "sigma": smoothed.sigma,
        "image_shape": list(smoothed.image_shape),
        "class_names": names,
        "noise": smoothed.noise.name,
        "batch_size": smoothed.batch_size,
        **dataclasses.asdict(defaults),
        "classifier": classifier_digest(smoothed.classifier),
        "signatures": sorted(signatures),
        "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES},
    }
    (extra / METADATA).write_text(json.dumps(about, indent=2) + "\n")
    if importlib.util.find_spec("tensorflow_serving"):
        from covkeras.exporting.warmup import write_warmup

        write_warmup(extra, folder.parent.name, smoothed.image_shape)
