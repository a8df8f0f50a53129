"""What one training step minimises, one file a method; `base.Objective` is what they have in common.

All are written in `keras.ops`, and pure: noise comes in. Each carries what its authors publish.
"""

from covkeras.objectives.adjoint_radius import AdjointRadius
from covkeras.objectives.base import Objective, Step
from covkeras.objectives.consistency import Consistency
from covkeras.objectives.covariance_radius import CovarianceRadius
from covkeras.objectives.cross_entropy import CrossEntropy, TruncatedLq
from covkeras.objectives.gaussian_augmentation import GaussianAugmentation
from covkeras.objectives.macer import Macer
from covkeras.objectives.terms import Terms
from covkeras.runtime import fields

METHODS = {
    o.name: o
    for o in (GaussianAugmentation, CovarianceRadius, AdjointRadius, Macer, Consistency, CrossEntropy, TruncatedLq)
}

__all__ = [
    "METHODS",
    "AdjointRadius",
    "Consistency",
    "CovarianceRadius",
    "CrossEntropy",
    "GaussianAugmentation",
    "Macer",
    "Objective",
    "Step",
    "Terms",
    "TruncatedLq",
    "fields",
]
