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
    "CertifiedTrainer": "trainer",
    "Recipe": "recipes",
    # Certification (Cohen, Rosenfeld, Kolter, ICML 2019).
    "SmoothedClassifier": "certification.smoothing",
    "Certificates": "certification.certificates",
    "average_certified_radius": "certification.certificates",
    "certified_accuracy": "certification.certificates",
    # Serving.
    "export": "exporting.saved_model",
}
_MODULES = (
    "certification",
    "comparing",
    "datasets",
    "devices",
    "diagnostics",
    "exporting",
    "fitting",
    "jobs",
    "labels",
    "models",
    "moments",
    "objectives",
    "recipes",
    "report",
    "runs",
    "schedules",
    "startup",
    "trainer",
    "tuning",
    "validation",
)

__all__ = ["__version__", *_NAMES, *_MODULES]


def __getattr__(name: str):
    if name in _NAMES:
        value = getattr(importlib.import_module(f"covkeras.{_NAMES[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"covkeras.{name}")
    else:
        raise AttributeError(f"module 'covkeras' has no attribute {name!r}; it has {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
