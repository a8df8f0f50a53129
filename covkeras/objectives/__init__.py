"""What one training step minimises, one file a method; `base.Objective` is what they have in common.

All are written in `keras.ops`, and pure: noise comes in. Each carries what its authors publish.
"""

from covkeras.objectives.adjoint_radius import AdjointRadius
from covkeras.objectives.base import Objective, Step
from covkeras.objectives.cat_rs import CatRs
from covkeras.objectives.consistency import Consistency
from covkeras.objectives.covariance_radius import CovarianceRadius
from covkeras.objectives.cross_entropy import CrossEntropy, TruncatedLq
from covkeras.objectives.denoising import Denoising
from covkeras.objectives.distillation import Distillation
from covkeras.objectives.gaussian_augmentation import GaussianAugmentation
from covkeras.objectives.macer import Macer
from covkeras.objectives.smooth_adv import SmoothAdv
from covkeras.objectives.smooth_mix import SmoothMix
from covkeras.objectives.sphere_attack import SphereAttack
from covkeras.objectives.stability import Stability
from covkeras.objectives.stepped_consistency import SteppedConsistency
from covkeras.objectives.terms import Terms
from covkeras.runtime import fields

_CLASSIFYING = (
    *(GaussianAugmentation, CovarianceRadius, AdjointRadius, Macer, Consistency, SteppedConsistency),
    *(SmoothAdv, SmoothMix, CatRs, SphereAttack, Distillation, CrossEntropy, TruncatedLq),
)
# Those that train a denoiser in front of a classifier.
DENOISING = (Denoising, Stability)
METHODS = {kind.name: kind for kind in (*_CLASSIFYING, *DENOISING)}

__all__ = [
    "METHODS",
    "AdjointRadius",
    "CatRs",
    "Consistency",
    "CovarianceRadius",
    "CrossEntropy",
    "Denoising",
    "Distillation",
    "GaussianAugmentation",
    "Macer",
    "Objective",
    "SmoothAdv",
    "SmoothMix",
    "SphereAttack",
    "Stability",
    "Step",
    "SteppedConsistency",
    "Terms",
    "TruncatedLq",
    "fields",
]
