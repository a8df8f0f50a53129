"""What one training step minimises, one file a method. All are written in `keras.ops`, and pure: noise comes in.

An objective is an object with

    name, sigma, lam, switch_epoch   its method's name, the noise level, the robustness loss' weight, when that begins
    copies                           how many noise samples per image a step needs
    attach(classifier)               called once, before the first step
    __call__(images, labels, noise, context) -> Terms
"""

from covkeras.objectives.adjoint_radius import AdjointRadius
from covkeras.objectives.consistency import Consistency
from covkeras.objectives.covariance_radius import CovarianceRadius
from covkeras.objectives.cross_entropy import CrossEntropy, TruncatedLq
from covkeras.objectives.gaussian_augmentation import GaussianAugmentation
from covkeras.objectives.macer import Macer
from covkeras.objectives.terms import Terms

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
    "Terms",
    "TruncatedLq",
]
