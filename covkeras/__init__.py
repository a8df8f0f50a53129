"""covkeras: Keras image classifiers whose predictions come with a certificate.

The public names, grouped as they are used: train, estimate, certify, report, serve. Each is imported when it is first
asked for, so `import covkeras` costs nothing, and `covkeras.moments`, `covkeras.models` and `covkeras.objectives`
(written in `keras.ops`) also run on Keras' other backends.

    import covkeras as ck

    classifier = ck.models.lenet(input_shape=(28, 28, 1), num_classes=10)
    trainer = ck.CertifiedTrainer(classifier, ck.objectives.CovarianceRadius(sigma=0.5))
    smoothed = ck.SmoothedClassifier(classifier, sigma=0.5)
"""

import importlib
import importlib.abc
import importlib.machinery
import sys

__version__ = "0.1.0"

# Public name -> the module that defines it.
_NAMES = {
    # A Gaussian's way through a network (Zhen, Chakraborty, Singh, CVPR 2021).
    "Gaussian": "moments.gaussian",
    "propagated_radius": "moments.gaussian",
    "propagate": "moments.rules",
    "GaussianInput": "moments.layers",
    "Moments": "moments.layers",
    "MomentNetwork": "moments.network",
    "adjoint_margin": "moments.adjoint",
    "calibrate_gates": "moments.adjoint",
    # Training.
    "CertifiedTrainer": "training.trainer",
    "Recipe": "experiments.recipes",
    # Certification (Cohen, Rosenfeld, Kolter, ICML 2019).
    "SmoothedClassifier": "certification.smoothing",
    "adapt": "runtime.adapting",
    "Certificates": "certification.certificates",
    "average_certified_radius": "certification.certificates",
    "certified_accuracy": "certification.certificates",
    # Serving.
    "export": "exporting.saved_model",
}
_PACKAGES = (
    "certification",
    "commands",
    "datasets",
    "diagnostics",
    "experiments",
    "exporting",
    "models",
    "moments",
    "objectives",
    "reports",
    "runtime",
    "training",
)
# Modules that moved into a package -> where they are; their old addresses lead there.
MOVED = {
    "trainer": "training.trainer",
    "batches": "training.batches",
    "schedules": "training.schedules",
    "checkpoints": "training.checkpoints",
    "recipe": "experiments.recipe",
    "recipes": "experiments.recipes",
    "runs": "experiments.runs",
    "jobs": "experiments.jobs",
    "fitting": "experiments.fitting",
    "distributed": "experiments.distributed",
    "precision": "experiments.precision",
    "comparing": "experiments.comparing",
    "tuning": "experiments.tuning",
    "tuning_space": "experiments.tuning_space",
    "exporting.runs": "experiments.exported",
    "report": "reports.results",
    "pages": "reports.pages",
    "comparison_report": "reports.comparison",
    "tuning_report": "reports.search",
    "diagnostics.page": "reports.diagnosis",
    "diagnostics.pictures": "reports.diagnosis_pictures",
    "devices": "runtime.devices",
    "files": "runtime.files",
    "interrupts": "runtime.interrupts",
    "timing": "runtime.timing",
    "startup": "runtime.startup",
    "validation": "runtime.validation",
    "cli": "commands.cli",
    "labels": "datasets.labels",
    # As the field calls it.
    "denoising": "models.denoisers",
}

__all__ = ["__version__", *_NAMES, *_PACKAGES]


class _Moved(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a module under the address it had: `import covkeras.trainer` gives `covkeras.training.trainer`."""

    def find_spec(self, name, path=None, target=None):
        known = name.startswith("covkeras.") and name.removeprefix("covkeras.") in MOVED
        return importlib.machinery.ModuleSpec(name, self) if known else None

    def create_module(self, spec):
        return importlib.import_module(f"covkeras.{MOVED[spec.name.removeprefix('covkeras.')]}")

    def exec_module(self, module):
        """It has run where it is."""


sys.meta_path.insert(0, _Moved())


def __getattr__(name: str):
    if name in _NAMES:
        value = getattr(importlib.import_module(f"covkeras.{_NAMES[name]}"), name)
    elif name in _PACKAGES:
        value = importlib.import_module(f"covkeras.{name}")
    elif name in MOVED:
        value = importlib.import_module(f"covkeras.{MOVED[name]}")
    else:
        raise AttributeError(f"module 'covkeras' has no attribute {name!r}; it has {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
