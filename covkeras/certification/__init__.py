"""What may be claimed of a smoothed classifier, and how surely (Cohen, Rosenfeld, Kolter, ICML 2019).

    smoothing      SmoothedClassifier; voting counts classes, noise draws philox' bits; rebuilding, in other precisions
    cohen          PREDICT and CERTIFY, whole, with the number of samples fixed
    deciding       one radius, or radii to a precision; sampling fills batches, stopping says when to stop
    confidence     binomial bounds and the radius; sequential, the betting tests that may stop at any time; both of
                   special's functions, in Python and in a served graph
    statements     what certificates of some images say of all; two classifiers compared
    certificates   the records and the figures of the field; logs, their files; records, what made a file

Knows nothing of moments.
"""

from covkeras.certification.certificates import (
    Certificates,
    RadiusDecisions,
    average_certified_radius,
    certified_accuracy,
)
from covkeras.certification.confidence import certified_radius, clopper_pearson_lower
from covkeras.certification.logs import read_certificates
from covkeras.certification.noise import GaussianNoise, LatticeNoise
from covkeras.certification.smoothing import SmoothedClassifier
from covkeras.certification.statements import certified_accuracy_lower, compare_certified, images_needed
from covkeras.certification.stopping import informed_bet

__all__ = [
    "Certificates",
    "GaussianNoise",
    "LatticeNoise",
    "RadiusDecisions",
    "SmoothedClassifier",
    "average_certified_radius",
    "certified_accuracy",
    "certified_accuracy_lower",
    "certified_radius",
    "clopper_pearson_lower",
    "compare_certified",
    "images_needed",
    "informed_bet",
    "read_certificates",
]
