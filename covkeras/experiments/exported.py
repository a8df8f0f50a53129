"""Exporting a run: its classifier with what the run says about it."""

import os
from collections.abc import Sequence
from pathlib import Path

import keras

from covkeras.certification.certificates import average_certified_radius, certified_accuracy
from covkeras.certification.logs import read_certificates
from covkeras.experiments import jobs
from covkeras.experiments.result import steps_to
from covkeras.experiments.runs import RunFolder
from covkeras.exporting.saved_model import Defaults, export
from covkeras.models import at_sigma


def export_run(
    run: str | os.PathLike,
    folder: str | os.PathLike,
    environment=jobs.Environment(),
    defaults: Defaults | None = None,
    sigmas: Sequence[float] = (),
) -> Path:
    """Exports a run's classifier at its sigma, with its class names and measured certified accuracy as metadata.

    Args:
        run: the run's folder. folder: of one version, such as exports/digits/1. environment: where the data are.
        defaults: of the requests; by default the run's n0 and alpha, and n = 1,000.
        sigmas: others besides the run's own, for requests to choose from.

    Raises:
        FileNotFoundError: no such run, or it is not finished. FileExistsError, ValueError: as `export`.
    """
    run = RunFolder(run)
    for file in (run.recipe_file, run.classifier_file):
        if not file.exists():
            raise FileNotFoundError(
                f"{run.path} is no finished run: {file.name} is missing. Run training/run.py first."
            )
    recipe = run.recipe()
    data = environment.load(recipe, "train").head(64)
    classifier = keras.models.load_model(run.classifier_file, compile=False)
    defaults = defaults or Defaults(n0=recipe.certify_n0, alpha=recipe.certify_alpha)
    metadata = {"data": recipe.data, "method": recipe.method, "recipe": recipe.digest(), **measured(run)}
    each = [recipe.sigma, *(s for s in sigmas if s != recipe.sigma)]
    cpu = jobs.Environment(devices="cpu")
    smoothed = [jobs.smoothed(recipe.replace(sigma=s), at_sigma(classifier, s), cpu) for s in each]
    return export(
        smoothed,
        folder,
        class_names=data.class_names,
        defaults=defaults,
        metadata=metadata,
        calibration_images=data.floats(),
    )


def measured(run: RunFolder) -> dict:
    """Returns the certified accuracy of the run's test images, for metadata.json; empty where there are none."""
    if not run.certificates_file.exists() or run.recipe().certify_split != "test":
        return {}
    _, labels, certificates = read_certificates(run.certificates_file)
    if not len(labels):
        return {}
    radii = [round(radius, 2) for radius in steps_to(float(certificates.radius.max()) + 0.05, 0.05, 200)]
    return {
        "test_images": len(labels),
        "acr": average_certified_radius(certificates, labels),
        "certified_accuracy": {
            "radii": radii,
            "accuracy": [float(a) for a in certified_accuracy(certificates, labels, radii)],
        },
    }
