"""What a job needs besides its recipe; the certification job. Jobs resume where they stopped when called again."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from covkeras import diagnostics, moments
from covkeras.certification import cohen, records
from covkeras.certification.certificates import average_certified_radius
from covkeras.certification.logs import CertificateFile, read_certificates, sorted_certificates
from covkeras.certification.smoothing import SmoothedClassifier
from covkeras.experiments.environment import Environment
from covkeras.experiments.recipes import Recipe
from covkeras.experiments.result import Result
from covkeras.experiments.runs import RunFolder
from covkeras.runtime import devices
from covkeras.runtime.classifiers import fitted
from covkeras.runtime.interrupts import Interrupted
from covkeras.runtime.validation import check_labels


def progress_bar(**kwargs):
    """A tqdm bar: live on a terminal, a line every half minute in a log."""
    live = sys.stderr.isatty()
    return tqdm(file=sys.stderr, dynamic_ncols=live, mininterval=0.2 if live else 30.0, **kwargs)


def smoothed(recipe: Recipe, classifier, environment=Environment()) -> SmoothedClassifier:
    """Builds the recipe's smoothed classifier on the environment's devices."""
    strategy = devices.strategy(environment.devices)
    return SmoothedClassifier(
        classifier,
        recipe.sigma,
        batch_size=recipe.certify_batch or None,
        noise=recipe.certify_noise,
        shared_noise=recipe.certify_shared_noise,
        precision=None if recipe.certify_precision == "own" else recipe.certify_precision,
        strategy=strategy if strategy.num_replicas_in_sync > 1 else None,
    )


def certify(
    recipe: Recipe,
    folder: RunFolder,
    classifier,
    environment=Environment(),
    title: str = "certify",
    split: str | None = None,
):
    """Certifies images of the recipe's split, or of another one, appending to certificates.tsv what is not there yet.

    Returns:
        (indices, labels, Certificates) of all certified images, in the order of the split.

    Raises:
        ValueError: the classifier has another head, or takes other images, than the data set; or certificates.tsv was
            made with another classifier or other settings.
        Interrupted: a stop was asked for; every finished image is in the file.
    """
    split = split or recipe.certify_split
    data, indices = environment.load_certified(recipe, split)
    certifier = smoothed(recipe, classifier, environment)
    budget = {"n0": recipe.certify_n0, "n": recipe.certify_n, "alpha": recipe.certify_alpha, "seed": recipe.seed}
    what = {"data": recipe.data, "split": split, "image_size": recipe.image_size, **budget}
    with folder.held():
        certify_images(
            certifier,
            data,
            indices=indices,
            out=folder.certificates_file,
            what=what,
            work=lambda images, indices: cohen.certify_each(certifier, images, **budget, indices=indices),
            stop=environment.stop,
            title=title,
        )
    return sorted_certificates(folder.certificates_file)


def estimates(recipe: Recipe, classifier, images, certificates, calibration) -> list:
    """Returns the propagated radii beside the certified ones; none where a layer of someone's own has no rule.

    images: those that were certified. calibration: ImageData for the gates.
    """
    try:
        network = moments.MomentNetwork(classifier, recipe.sigma, recipe.r_max)
    except NotImplementedError as error:
        print(f"no propagated radii: {error}", file=sys.stderr)
        return []
    return diagnostics.fidelity(network, images, certificates, calibration.floats())


def result_of(name: str, recipe: Recipe, certified: tuple, fidelity=()) -> Result:
    """Returns what `certify` returned, as reports take it."""
    indices, labels, certificates = certified
    return Result(
        name,
        labels,
        certificates,
        fidelity,
        indices,
        alpha=recipe.certify_alpha,
        shared_noise=recipe.certify_shared_noise,
        split=recipe.certify_split,
    )


def certify_images(
    certifier: SmoothedClassifier,
    data,
    indices: np.ndarray,
    out: Path,
    what: dict,
    work: Callable,
    stop: Callable[[], bool],
    title: str = "certify",
    sequentially: bool = False,
) -> None:
    """Certifies images of a data set, appending to a certificate file those that are not there yet.

    Args:
        certifier: the smoothed classifier. data: ImageData. indices: (images,), their numbers in it.
        out: the file; what: the settings besides the classifier's own, for its sidecar.
        work: (images, indices) -> iterator of (position, Certificates of length 1); checks its arguments at once.
        stop: asked after every image. title: of the progress bar. sequentially: see `append_each`.

    Raises:
        ValueError: the classifier has another head, or takes other images, than the data set; the file was made with
            another classifier or other settings. InUse: another process writes it. Interrupted: a stop was asked for.
    """
    data = fitted(data, certifier.classifier)
    check_labels(data.labels, len(data.class_names))
    # Checks the other arguments, before the file is made.
    work(data.floats(indices[:0]), indices[:0])
    what = what | ({"data_digest": data.digest} if data.digest else {})
    with records.open_records(out, records.settings_of(certifier, **what)) as file:
        todo = undone(file, indices)
        append_each(
            file,
            work(data.floats(todo), todo),
            labels=data.labels,
            todo=todo,
            stop=stop,
            title=title,
            sequentially=sequentially,
        )


def undone(file: CertificateFile, indices: np.ndarray) -> np.ndarray:
    """Returns those of the images that are not in the file yet."""
    return np.array([i for i in indices if int(i) not in file.done], np.int64)


def append_each(file: CertificateFile, work, labels, todo, stop, title: str, sequentially: bool = False) -> None:
    """Appends certificates as they are done, with progress: images per second, time left, the running ACR.

    Args:
        work: yields (position in `todo`, Certificates of length 1). labels: (images,) of the whole data set.
        todo: (images left,) their numbers. sequentially: whether an image ends when it is decided: those that end first
            tell nothing of the others, and no running figure is shown.

    Raises:
        Interrupted: `stop` says so; every finished image is in the file.
    """
    _, known, done = read_certificates(file.path)
    total, count = (average_certified_radius(done, known) * len(known) if len(known) else 0.0), len(known)
    with progress_bar(total=count + len(todo), initial=count, desc=title, unit="image") as bar:
        for position, certificate in work:
            index = int(todo[position])
            file.append(index, int(labels[index]), certificate)
            total, count = total + average_certified_radius(certificate, labels[[index]]), count + 1
            if not sequentially:
                bar.set_postfix({"ACR": f"{total / count:.3f}"}, refresh=False)
            bar.update()
            if stop():
                raise Interrupted
