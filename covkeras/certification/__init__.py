"""What may be claimed of a smoothed classifier, and how surely. Knows nothing of moments."""

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
from covkeras.certification.stopping import informed_bet

__all__ = [
    "Certificates",
    "GaussianNoise",
    "LatticeNoise",
    "RadiusDecisions",
    "SmoothedClassifier",
    "average_certified_radius",
    "certified_accuracy",
    "certified_radius",
    "clopper_pearson_lower",
    "informed_bet",
    "read_certificates",
]
