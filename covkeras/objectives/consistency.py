"""Consistency regularisation (Jeong, Shin, NeurIPS 2020): noisy copies of an image must be classified alike."""

import math

import keras
from keras import ops

from covkeras.objectives.base import Objective, nearest
from covkeras.objectives.copies import logits_of
from covkeras.objectives.terms import Terms, cross_entropy
from covkeras.runtime.validation import check_between, check_count, check_sigma

# The authors' lam at sigma .25, .5 and 1.
PUBLISHED_LAM = {"mnist": (10.0, 5.0, 5.0), "cifar10": (20.0, 10.0, 10.0)}


@keras.saving.register_keras_serializable("covkeras")
class Consistency(Objective):
    """mean_i CE_i + lam mean_i KL(Fbar || F_i) + eta H(Fbar), F_i the softmax at copy i, Fbar their mean.

    Args:
        sigma: noise level, in [0, 1] pixel units.
        lam: weight of the divergence; the authors' 10 / 5 / 5 on MNIST at sigma .25 / .5 / 1, 20 / 10 / 10 on CIFAR-10.
        eta: weight of the entropy of the mean, .5 with the authors; it counts into the classification loss.
        num_copies: k, noisy copies of an image; 0 is the authors' 2.
        antithetic: two copies x + eps and x - eps instead of independent ones (ours). Their divergence sees only what
            is odd in the noise: as good at sigma .5, worse at sigma 1 (benchmarks/antithetic.py).
        switch_epoch: the epoch (from 0) at which lam is switched on.
    """

    name = "consistency"

    def __init__(
        self,
        sigma: float = 0.5,
        lam: float = 5.0,
        eta: float = 0.5,
        num_copies: int = 0,
        antithetic: bool = False,
        switch_epoch: int = 0,
    ):
        self.sigma = check_sigma(sigma)
        self.lam = check_between("lam", lam, 0, math.inf, closed="left")
        self.eta = check_between("eta", eta, 0, math.inf, closed="left")
        self.antithetic = bool(antithetic)
        self.switch_epoch = check_count("switch_epoch", switch_epoch, 0)
        self.num_copies = check_count("num_copies", num_copies, 0)
        given = self.num_copies or 2
        if given < 2 or (self.antithetic and given != 2):
            raise ValueError(f"num_copies must be at least 2, and 2 where they are antithetic, got {num_copies!r}.")
        self.copies = 1 if self.antithetic else given

    @classmethod
    def published(cls, data, sigma, epochs, switch_epoch) -> dict:
        return {"lam": nearest(PUBLISHED_LAM, data, sigma), "switch_epoch": 0}

    def __call__(self, images, labels, noise, context) -> Terms:
        """images (batch, h, w, c), labels (batch,), noise (copies, batch, h, w, c) standard normal -> Terms."""
        if self.antithetic:
            noise = ops.concatenate([noise, -noise], 0)
        logits = logits_of(self.classifier, images, noise, self.sigma, context.training)
        return Terms(*consistency_terms(labels, logits, self.eta))


def consistency_terms(labels, logits, eta: float):
    """labels (batch,), logits (k, batch, classes) of the copies -> mean_i CE_i + eta H(Fbar), mean_i KL(Fbar || F_i),
    both (batch,), and log Fbar (batch, classes)."""
    log_each = ops.log_softmax(logits)
    log_mean = ops.logsumexp(log_each, 0) - math.log(logits.shape[0])
    mean = ops.exp(log_mean)
    entropy = -ops.sum(_times_log(mean, log_mean), -1)
    # sum_c Fbar (log Fbar - log F_i), averaged over the copies.
    divergence = -entropy - ops.mean(ops.sum(_times_log(mean, log_each), -1), 0)
    losses = [cross_entropy(labels, logits[i]) for i in range(logits.shape[0])]
    return sum(losses) / len(losses) + eta * entropy, divergence, log_mean


def _times_log(p, log):
    """p log, 0 where p is: a class that the classifier masks, by -inf, has no share in the sums or their gradient."""
    return p * ops.where(p > 0, log, 0.0)
