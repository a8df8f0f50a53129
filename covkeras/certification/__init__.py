"""What may be claimed of a smoothed classifier, and how surely. Knows nothing of moments."""

from covkeras.certification.certificates import (
    Certificates,
    average_certified_radius,
    certified_accuracy,
    read_certificates,
)
from covkeras.certification.confidence import certified_radius, clopper_pearson_lower
from covkeras.certification.noise import GaussianNoise
from covkeras.certification.smoothing import SmoothedClassifier

__all__ = [
    "Certificates",
    "GaussianNoise",
    "SmoothedClassifier",
    "average_certified_radius",
    "certified_accuracy",
    "certified_radius",
    "clopper_pearson_lower",
    "read_certificates",
]
