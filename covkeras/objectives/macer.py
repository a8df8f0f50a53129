"""MACER (Zhai et al., ICLR 2020): the certified radius estimated from k noisy copies, and maximised."""

import math

from covkeras.objectives.base import Objective, Step, nearest
from covkeras.objectives.copies import logits_of
from covkeras.objectives.terms import Terms
from covkeras.runtime import fields
from covkeras.runtime.later import Later

ops = Later("keras.ops")

# The authors' lam at sigma .25, .5 and 1.
_LAM = {"mnist": (16.0, 16.0, 6.0), "cifar10": (12.0, 12.0, 12.0)}


class Macer(Objective):
    """-log mean_i F(x + eps_i)_y plus lam sigma / 2 max(0, gamma - d), d = Phi^-1(q_y) - Phi^-1(q_2).

    F is the softmax, q the mean of softmax(16 logits) over the copies, q_2 its largest entry but that of y. The second
    term counts where q's largest is y, and d is finite and at most gamma.
    """

    name = "macer"
    sharpness = 16.0

    lam: float = fields.number(12.0, "weight of the estimated radius' hinge", 0, closed="left", search="0:16")
    gamma: float = fields.number(8.0, "hinge offset, a difference of quantiles; 8 with the authors", 0, search="2:10")
    num_copies: int = fields.count(0, "k, noisy copies of an image; 0 is the authors' 16", 0)
    switch_epoch: int = fields.count(0, "epoch (from 0) at which lam is switched on", 0, epoch=True)

    def check(self) -> None:
        self.copies = self.num_copies or 16

    @classmethod
    def published(cls, data, sigma, epochs, switch_epoch) -> dict:
        return {"lam": nearest(_LAM, data, sigma), "gamma": 8.0, "switch_epoch": 0}

    def __call__(self, images, labels, noise, context: Step) -> Terms:
        """images (batch, h, w, c), labels (batch,), noise (k, batch, h, w, c) standard normal -> Terms."""
        logits = logits_of(self.classifier, images, noise=noise, sigma=self.sigma, training=context.training)
        probability = ops.mean(ops.softmax(logits), 0)
        chosen = ops.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
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
