"""Consistency regularisation (Jeong, Shin, NeurIPS 2020): noisy copies of an image must be classified alike."""

import math

from covkeras.objectives.base import Objective, Step, nearest
from covkeras.objectives.copies import logits_of
from covkeras.objectives.terms import Terms, cross_entropy
from covkeras.runtime import fields
from covkeras.runtime.later import Later

ops = Later("keras.ops")

# The authors' lam at sigma .25, .5 and 1.
PUBLISHED_LAM = {"mnist": (10.0, 5.0, 5.0), "cifar10": (20.0, 10.0, 10.0)}


class Consistency(Objective):
    """mean_i CE_i + lam mean_i KL(Fbar || F_i) + eta H(Fbar), F_i the softmax at copy i, Fbar their mean.

    Of the pair x + eps, x - eps the divergence sees only what is odd in the noise: as good at sigma .5, worse at
    sigma 1 (benchmarks/antithetic.py). eta's term counts into the classification loss.
    """

    name = "consistency"

    lam: float = fields.number(5.0, "weight of the divergence between copies", 0, closed="left", search="0:20")
    eta: float = fields.number(0.5, "weight of the entropy of the copies' mean", 0, closed="left", search="0:1")
    num_copies: int = fields.count(0, "k, noisy copies of an image; 0 is the authors' 2", 0)
    antithetic: bool = fields.switch(False, "two copies x + eps and x - eps instead of independent ones (ours)")
    switch_epoch: int = fields.count(0, "epoch (from 0) at which lam is switched on", 0, epoch=True)

    def check(self) -> None:
        given = self.num_copies or 2
        if given < 2 or (self.antithetic and given != 2):
            raise ValueError(
                f"num_copies must be at least 2, and 2 where they are antithetic, got {self.num_copies!r}."
            )
        self.copies = 1 if self.antithetic else given

    @classmethod
    def published(cls, data, sigma, epochs, switch_epoch) -> dict:
        return {"lam": nearest(PUBLISHED_LAM, data, sigma), "switch_epoch": 0}

    def __call__(self, images, labels, noise, context: Step) -> Terms:
        """images (batch, h, w, c), labels (batch,), noise (copies, batch, h, w, c) standard normal -> Terms."""
        if self.antithetic:
            noise = ops.concatenate([noise, -noise], 0)
        logits = logits_of(self.classifier, images, noise=noise, sigma=self.sigma, training=context.training)
        return Terms(*consistency_terms(labels, logits, self.eta))


def consistency_terms(labels, logits, eta: float):
    """labels (batch,), logits (k, batch, classes) of the copies -> mean_i CE_i + eta H(Fbar), mean_i KL(Fbar || F_i),
    both (batch,), and log Fbar (batch, classes)."""
    log_each = ops.log_softmax(logits)
    mean, log_mean, entropy = mean_of(log_each)
    # sum_c Fbar (log Fbar - log F_i), averaged over the copies.
    divergence = -entropy - ops.mean(ops.sum(times_log(mean, log_each), -1), 0)
    losses = [cross_entropy(labels, logits[i]) for i in range(logits.shape[0])]
    return sum(losses) / len(losses) + eta * entropy, divergence, log_mean


def mean_of(log_each):
    """log F_i (k, batch, classes) -> Fbar and log Fbar, (batch, classes), and H(Fbar), (batch,)."""
    log_mean = ops.logsumexp(log_each, 0) - math.log(log_each.shape[0])
    mean = ops.exp(log_mean)
    return mean, log_mean, -ops.sum(times_log(mean, log_mean), -1)


def times_log(p, log):
    """p log, 0 where p is: a class that the classifier masks, by -inf, has no share in the sums or their gradient."""
    return p * ops.where(p > 0, log, 0.0)
