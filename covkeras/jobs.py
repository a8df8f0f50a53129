"""What a job needs besides its recipe; the certification job. Jobs resume where they stopped when called again."""

import dataclasses
import functools
import os
import sys
from collections.abc import Callable

import numpy as np
from tqdm import tqdm

from covkeras import datasets
from covkeras.certification.certificates import (
    CertificateFile,
    Certificates,
    average_certified_radius,
    read_certificates,
)
from covkeras.certification.smoothing import SmoothedClassifier
from covkeras.interrupts import Interrupted
from covkeras.recipes import Recipe
from covkeras.runs import RunFolder
from covkeras.validation import check_fits, check_labels


@dataclasses.dataclass(frozen=True)
class Environment:
    """Where and how a job runs: what changes none of its results.

    data_dir: the folder of prepared TFDS data sets. devices: "auto", "cpu" or a number. minutes: between checkpoints
    within an epoch. stop: () -> bool, asked after every step and image.
    """

    data_dir: str | None = None
    devices: str = "auto"
    minutes: float = 10.0
    stop: Callable[[], bool] = lambda: False

    def load(self, recipe: Recipe, split: str):
        """Loads a split of the recipe's data."""
        return datasets.load(recipe.data, split, self.data_dir, recipe.image_size)


def progress_bar(**kwargs):
    """A tqdm bar: live on a terminal, a line every half minute in a log."""
    live = sys.stderr.isatty()
    return tqdm(file=sys.stderr, dynamic_ncols=live, mininterval=0.2 if live else 30.0, **kwargs)


def certify(recipe: Recipe, folder: RunFolder, classifier, environment=Environment(), title: str = "certify"):
    """Certifies the recipe's test images, appending to certificates.tsv; images already there are not done again.

    Returns:
        (indices, labels, Certificates) of all certified images, in the order of the test set.

    Raises:
        ValueError: the classifier has another head, or takes other images, than the data set.
        Interrupted: a stop was asked for; every finished image is in the file.
    """
    data = environment.load(recipe, "test").head(recipe.certify_images)
    check_fits(classifier, recipe.data, data.image_shape, len(data.class_names))
    check_labels(data.labels, len(data.class_names))
    smoothed = SmoothedClassifier(classifier, recipe.sigma, recipe.certify_batch or None)
    settings = (recipe.certify_n0, recipe.certify_n, recipe.certify_alpha, recipe.seed)
    with CertificateFile(folder.certificates_file) as file:
        certify_into(file, smoothed, data, np.arange(len(data)), settings, environment.stop, title)
    return sorted_certificates(folder.certificates_file)


def certify_into(file: CertificateFile, smoothed, data, indices, settings, stop, title: str) -> None:
    """Certifies the images of `indices` that are not in the file yet, appending each as it is done.

    settings: (n0, n, alpha, seed). Raises Interrupted when `stop` says so; every finished image is in the file.
    """
    todo = np.array([i for i in indices if int(i) not in file.done], np.int64)
    n0, n, alpha, seed = settings
    work = smoothed.certify_each(data.floats(todo), n0, n, alpha, seed, todo)
    _, labels, done = read_certificates(file.path)
    total, count = (average_certified_radius(done, labels) * len(labels) if len(labels) else 0.0), len(labels)
    with progress_bar(total=len(indices), initial=len(indices) - len(todo), desc=title, unit="image") as bar:
        for index, certificate in zip(todo, work, strict=True):
            file.append(int(index), int(data.labels[index]), certificate)
            total, count = total + average_certified_radius(certificate, data.labels[[index]]), count + 1
            bar.set_postfix({"ACR": f"{total / count:.3f}"}, refresh=False)
            bar.update()
            if stop():
                raise Interrupted


def sorted_certificates(path: str | os.PathLike):
    """Reads (indices, labels, Certificates) in the order of the test set."""
    indices, labels, certificates = read_certificates(path)
    order = np.argsort(indices, kind="stable")
    taken = functools.partial(np.take, indices=order)
    fields = (certificates.label, certificates.radius, certificates.p_lower, certificates.samples, certificates.seconds)
    return taken(indices), taken(labels), Certificates(*map(taken, fields))
