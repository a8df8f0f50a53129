"""The SavedModel: its signatures, metadata and warm-up requests, written aside and renamed."""

import dataclasses
import importlib.metadata
import importlib.util
import itertools
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from covkeras.certification.confidence import MAX_TRIALS
from covkeras.certification.records import classifier_digest
from covkeras.certification.smoothing import SmoothedClassifier
from covkeras.exporting.graphs import ServedGraphs
from covkeras.exporting.sigmas import SeveralSigmas
from covkeras.exporting.signatures import signatures_of, signatures_of_sigmas
from covkeras.runtime.adapting import foreign_layers
from covkeras.runtime.classifiers import check_weights
from covkeras.runtime.devices import is_watched
from covkeras.runtime.probing import probe_images
from covkeras.runtime.validation import (
    check_alpha,
    check_count,
    check_enough,
    check_enough_to_predict,
    check_switch,
)

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
        check_switch("resize", self.resize)
        check_count("max_samples", self.max_samples, 64, MAX_TRIALS)
        for name in ("n0", "n", "n_predict"):
            check_count(name, getattr(self, name), 1, self.max_samples)
        check_enough("n", self.n, self.alpha)
        check_enough_to_predict("n_predict", self.n_predict, self.alpha)


def export(
    smoothed: SmoothedClassifier | Sequence[SmoothedClassifier],
    folder: str | os.PathLike,
    class_names: Sequence[str] | None = None,
    defaults: Defaults = Defaults(),
    metadata: dict | None = None,
    calibration_images=None,
    key: tuple[int, int] | None = None,
) -> Path:
    """Writes a SavedModel for TF-Serving: certification in the graph, no Python and no covkeras on the server.

    Signatures (every input and output has the batch axis first): serving_default, serving_bytes, certify, certify_at,
    predict, logits, and moments where all layers have a rule; of several sigmas certify_sigma and certify_best too; see
    serving/README.md.

    Args:
        smoothed: the classifier, sigma and noise to serve; its batch_size bounds the memory. Or a list of them, of the
            same images and classes at different sigmas, for requests to choose from; the first answers all others.
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
        ValueError: a folder's name that is no version; class_names; key; sigmas that don't go together; tf.debugging.
        FileExistsError: the folder exists.
    """
    folder, all_sigmas = Path(folder), _checked_sigmas(smoothed)
    if not isinstance(defaults, Defaults):
        raise TypeError(f"defaults must be a Defaults, such as Defaults(n=10_000), got {defaults!r}.")
    smoothed = all_sigmas[0]
    names = _checked_names(class_names, smoothed.num_classes)
    if not (folder.name.isascii() and folder.name.isdigit() and int(folder.name) < 2**63):
        raise ValueError(f"folder must end in a version, a whole number such as exports/digits/1, got {folder}.")
    if folder.exists():
        raise FileExistsError(f"{folder} exists: a version is never changed. Export the next number.")
    if key is not None:
        key = _checked_key(key)
    metadata = _checked_metadata(metadata or {})
    if is_watched():
        raise ValueError(
            "export must not run where tf.debugging watches, whose operations would go to the server. Call "
            "tf.debugging.disable_check_numerics() first, or export in a process of its own."
        )
    key = key or (secrets.randbits(63), secrets.randbits(63))
    graphs = [ServedGraphs(one, defaults.max_samples, key) for one in all_sigmas]
    for one in all_sigmas:
        check_weights(one.classifier)
    signatures = signatures_of(graphs[0], names, defaults, calibration_images)
    if len(graphs) > 1:
        signatures |= signatures_of_sigmas(SeveralSigmas(graphs), names)
    _check_answers(smoothed.classifier, signatures["logits"])
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        module = tf.Module()
        # What the models of several sigmas share is there once.
        module.held = list({id(v): v for one in all_sigmas for v in _variables_of(one.classifier)}.values())
        tf.saved_model.save(module, str(aside), signatures=signatures)
        metadata = {**metadata, **({"sigmas": [s.sigma for s in all_sigmas]} if len(all_sigmas) > 1 else {})}
        _write_extra(aside, smoothed, names, defaults, metadata, signatures)
        os.rename(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _variables_of(classifier) -> list:
    own = [getattr(v, "value", v) for v in classifier.variables]
    return own + [variable for layer in foreign_layers(classifier) for variable in layer.held]


def _checked_sigmas(smoothed) -> list[SmoothedClassifier]:
    """The smoothed classifiers to serve together, one or more."""
    several = list(smoothed) if isinstance(smoothed, Iterable) else []
    found = [smoothed] if isinstance(smoothed, SmoothedClassifier) else several
    if not found or not all(isinstance(one, SmoothedClassifier) for one in found):
        raise TypeError(
            f"smoothed must be a SmoothedClassifier, or a list of them, got {smoothed!r}. Of a Keras model: "
            "SmoothedClassifier(classifier, sigma=0.25)."
        )
    kinds = {(one.image_shape, one.num_classes, one.noise.name) for one in found}
    sigmas = [one.sigma for one in found]
    if len(kinds) > 1:
        raise ValueError(f"smoothed must take the same images, classes and noise at every sigma, got {sorted(kinds)}.")
    if any(b - a <= 1e-4 * b for a, b in itertools.pairwise(sorted(sigmas))):
        raise ValueError(f"smoothed must have different sigmas, by which requests choose, got {sigmas}.")
    return found


def _checked_key(key) -> tuple[int, int]:
    numbers = tuple(key) if isinstance(key, Iterable) else ()
    if len(numbers) != 2 or not all(isinstance(k, (int, np.integer)) and 0 <= k < 2**63 for k in numbers):
        # Not shown: it is a secret.
        raise ValueError("key must be two whole numbers in [0, 2^63), got others.")
    return int(numbers[0]), int(numbers[1])


def _checked_metadata(metadata) -> dict:
    """As JSON has it, NumPy's numbers and arrays as numbers and lists."""
    try:
        return json.loads(json.dumps(dict(metadata), default=lambda value: np.asarray(value).tolist()))
    except (TypeError, ValueError) as error:
        raise TypeError(f"metadata must be a dictionary of what JSON can hold ({error}), got {metadata!r}.") from None


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
    if isinstance(class_names, str):
        raise ValueError(f"class_names must be a list, one name for each class, got the text {class_names!r}.")
    if class_names is not None and not isinstance(class_names, Iterable):
        raise ValueError(f"class_names must be a list, one name for each class, got {class_names!r}.")
    names = [str(i) for i in range(classes)] if class_names is None else [str(n) for n in class_names]
    if len(names) != classes:
        raise ValueError(f"class_names must be {classes}, one for each class, got {len(names)}.")
    return names


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
    (extra / METADATA).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    if importlib.util.find_spec("tensorflow_serving"):
        from covkeras.exporting.warmup import write_warmup

        write_warmup(extra, folder.parent.name, smoothed.image_shape)
