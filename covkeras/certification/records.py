"""What made a certificate file: a sidecar beside it, so that files are resumed and merged only with their like."""

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from covkeras.certification.logs import CertificateFile, read_certificates
from covkeras.runtime.adapting import foreign_layers
from covkeras.runtime.files import write_text_aside
from covkeras.runtime.probing import probe_images

# Settings that may differ between shards that are merged: where they ran, not what they computed.
_FREE = ("versions", "device")


def classifier_digest(classifier) -> str:
    """Returns 16 hexadecimal digits of the classifier's structure and weights.

    Of a function that Keras knows nothing of: its variables, and three digits of its answers to a probe.
    """
    if foreign := foreign_layers(classifier):
        answers = np.asarray(classifier(probe_images(classifier), training=False), np.float64)
        structure = [[f"{a:.3g}" for a in row] for row in answers]
    else:
        structure = classifier.get_config()
    digest = hashlib.sha256(json.dumps(structure, sort_keys=True, default=str).encode())
    for weight in (*classifier.get_weights(), *(v.numpy() for layer in foreign for v in layer.held)):
        digest.update(np.ascontiguousarray(weight).tobytes())
    return digest.hexdigest()[:16]


def settings_of(smoothed, **settings) -> dict:
    """Returns what made a certificate: the given settings, the smoothed classifier's, where it ran, the libraries.

    precision is the arithmetic of the layers that have weights: a classifier whose layers round to bfloat16 is
    certified as what it is, not as the one in float32. rebuilt_in: the precision it was rebuilt in, if it was.
    """
    names = ("tensorflow", "keras", "numpy", "covkeras")
    layers = [layer for layer in smoothed.classifier._flatten_layers() if layer._trainable_variables]
    return {
        **settings,
        "classifier": classifier_digest(smoothed.classifier),
        "sigma": smoothed.sigma,
        "noise": smoothed.noise.name,
        "stream": smoothed.noise.stream,
        "shared_noise": smoothed.shared_noise,
        "batch_size": smoothed.batch_size,
        "precision": " and ".join(sorted({layer.compute_dtype for layer in layers})) or "float32",
        "rebuilt_in": smoothed.precision,
        "device": tf.config.list_logical_devices()[-1].device_type,
        "versions": {name: importlib.metadata.version(name) for name in names},
    }


def sidecar(path: str | os.PathLike) -> Path:
    """Returns where the settings of a certificate file are kept: beside it, NAME.json; for NAME.tsv, too. Whatever else
    a name ends in belongs to it: sigma_0.25 and sigma_0.50 have each their own."""
    path = Path(path)
    return path.with_suffix(".json") if path.suffix == ".tsv" else path.with_name(path.name + ".json")


def log_name(path: str | os.PathLike) -> str:
    """Returns a certificate file's name in tables: less .tsv, .txt, .csv or .log, with whatever else it ends in."""
    path = Path(path)
    return path.stem if path.suffix.lower() in (".tsv", ".txt", ".csv", ".log") else path.name


def read_settings(path: str | os.PathLike) -> dict:
    """Returns what made a certificate file, from its sidecar.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    beside = sidecar(path)
    if not beside.exists():
        raise ValueError(f"{path} has no {beside.name} that says what made it.")
    try:
        return dict(json.loads(beside.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{beside} is damaged ({error}). Certify again into another file, or restore it.") from None


def open_records(path: str | os.PathLike, settings: dict) -> CertificateFile:
    """Opens a certificate file to append to; a new one gets its sidecar first.

    Raises:
        ValueError: the file was made with other settings, which are listed; it is a folder.
    """
    check_file(path)
    beside = sidecar(path)
    beside.parent.mkdir(parents=True, exist_ok=True)
    if beside.exists():
        differences = _differences(settings, read_settings(path))
        if differences:
            raise ValueError(f"{path} was made with other settings ({differences}). Choose another file.")
    elif Path(path).exists():
        raise ValueError(f"{path} has no {beside.name} that says what made it. Choose another file.")
    else:
        write_text_aside(beside, json.dumps(settings, indent=2) + "\n")
    return CertificateFile(path, runner_up=bool(settings.get("runner_up")))


def is_sequential(settings: Mapping) -> bool:
    """Whether each image was sampled until it was decided: the images that are there first are no fair sample."""
    return any(settings.get(name) is not None for name in ("radius", "radii", "tolerance"))


def check_file(path: str | os.PathLike) -> None:
    """Refuses a folder in the place of a certificates' file."""
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder: name the certificates' file, such as {Path(path) / 'certificates.tsv'}.")


def merge(files: Sequence[str | os.PathLike], out: str | os.PathLike) -> int:
    """Merges shards, given in any order, into one file sorted by index; returns its number of certificates.

    Raises:
        ValueError: shards overlap or were made with different settings, named; `out` exists.
    """
    check_file(out)
    if Path(out).exists():
        raise ValueError(f"{out} exists. Delete it, or choose another name.")
    rows, owner, first = [], {}, None
    for file in files:
        settings = read_settings(file)
        first = first or (file, settings)
        differences = _differences(settings, first[1])
        if differences:
            raise ValueError(f"{file} and {first[0]} were made with different settings ({differences}).")
        indices, labels, certificates = read_certificates(file)
        for i, row in enumerate(zip(indices, labels, strict=True)):
            if row[0] in owner:
                raise ValueError(f"{file} and {owner[row[0]]} overlap: both certify image {row[0]}.")
            owner[row[0]] = file
            rows.append((*row, certificates.take([i])))
    with open_records(out, first[1]) as merged:
        for index, label, certificate in sorted(rows, key=lambda row: row[0]):
            merged.append(int(index), int(label), certificate)
    return len(rows)


def _differences(here: dict, there: dict) -> str:
    keys = sorted({*here, *there} - set(_FREE))
    # A setting that one of them lacks, an older file or another program's, was not set.
    same = [k for k in keys if (here.get(k) or None) == (there.get(k) or None)]
    return "; ".join(f"{k}: {there.get(k)!r} there, {here.get(k)!r} here" for k in keys if k not in same)
