"""MACER (Zhai et al., ICLR 2020): the certified radius estimated from k noisy copies, and maximised."""

import math

import keras
from keras import ops

from covkeras.objectives.base import Objective, nearest
from covkeras.objectives.copies import logits_of
from covkeras.objectives.terms import Terms
from covkeras.runtime.validation import check_between, check_count, check_sigma

# The authors' lam at sigma .25, .5 and 1.
_LAM = {"mnist": (16.0, 16.0, 6.0), "cifar10": (12.0, 12.0, 12.0)}


@keras.saving.register_keras_serializable("covkeras")
class Macer(Objective):
    """-log mean_i F(x + eps_i)_y plus lam sigma / 2 max(0, gamma - d), d = Phi^-1(q_y) - Phi^-1(q_2).

    F is the softmax, q the mean of softmax(16 logits) over the copies, q_2 its largest entry but that of y. The second
    term counts where q's largest is y, and d is finite and at most gamma.

    Args:
        sigma: noise level, in [0, 1] pixel units.
        lam: weight of the robustness loss; the authors' 16 / 16 / 6 on MNIST at sigma .25 / .5 / 1, 12 on CIFAR-10.
        gamma: hinge offset, 8 with the authors.
        num_copies: k, noisy copies of an image; 0 is the authors' 16.
        switch_epoch: the epoch (from 0) at which lam is switched on.
    """

    name = "macer"
    sharpness = 16.0

    def __init__(
        self, sigma: float = 0.5, lam: float = 12.0, gamma: float = 8.0, num_copies: int = 0, switch_epoch: int = 0
    ):
        self.sigma = check_sigma(sigma)
        self.lam = check_between("lam", lam, 0, math.inf, closed="left")
        self.gamma = check_between("gamma", gamma, 0, math.inf)
        self.num_copies = check_count("num_copies", num_copies, 0)
        self.copies = self.num_copies or 16
        self.switch_epoch = check_count("switch_epoch", switch_epoch, 0)

    @classmethod
    def published(cls, data, sigma, epochs, switch_epoch) -> dict:
        return {"lam": nearest(_LAM, data, sigma), "gamma": 8.0, "switch_epoch": 0}

    def __call__(self, images, labels, noise, context) -> Terms:
        """images (batch, h, w, c), labels (batch,), noise (k, batch, h, w, c) standard normal -> Terms."""
        logits = logits_of(self.classifier, images, noise, self.sigma, context.training)
        probability = ops.mean(ops.softmax(logits), 0)
        chosen = ops.one_hot(labels, logits.shape[-1])
        classification = -ops.log(ops.sum(chosen * probability, -1) + 1e-10)
        q = ops.mean(ops.softmax(self.sharpness * logits), 0)
        own, other = ops.sum(chosen * q, -1), ops.max(q - chosen, -1)
        # Where a quantile would be infinite the term doesn't count, and its gradient must not either: 0 times an
        # infinite derivative is NaN. Not "other > 0": in float32 2 q - 1 is -1 for every q below 1.5e-8.
        inside = (own > other) & (2.0 * own - 1.0 < 1.0) & (2.0 * other - 1.0 > -1.0)
        difference = _quantile(ops.where(inside, own, 0.75)) - _quantile(ops.where(inside, other, 0.25))
        counts = inside & (difference <= self.gamma)
        robustness = ops.where(counts, 0.5 * self.sigma * (self.gamma - difference), 0.0)
        radius = ops.where(inside, 0.5 * self.sigma * difference, 0.0)
        return Terms(classification, robustness, ops.log(probability + 1e-10), radius)


def _quantile(p):
    """Phi^-1(p)."""
    return math.sqrt(2.0) * ops.erfinv(2.0 * p - 1.0)
