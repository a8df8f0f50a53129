"""Losses at the image itself, without noise: the baselines of training on noisy labels."""

import keras
from keras import ops

from covkeras.objectives.base import Objective
from covkeras.objectives.terms import Terms, cross_entropy
from covkeras.runtime.validation import check_between, check_count, check_sigma


@keras.saving.register_keras_serializable("covkeras")
class CrossEntropy(Objective):
    """Plain cross-entropy at the image as it is.

    Args:
        sigma: noise level that the classifier will be certified at; training does not use it.
    """

    name = "cross_entropy"

    def __init__(self, sigma: float = 0.5):
        self.sigma = check_sigma(sigma)

    def __call__(self, images, labels, noise, context) -> Terms:
        """images (batch, h, w, c), labels (batch,); noise is not used -> Terms."""
        logits = ops.cast(self.classifier(images, training=context.training), "float32")
        return Terms(self._loss(labels, logits, context), logits=logits)

    def _loss(self, labels, logits, context):
        return cross_entropy(labels, logits)


@keras.saving.register_keras_serializable("covkeras")
class TruncatedLq(CrossEntropy):
    """Truncated L_q loss, (1 - p_y^q) / q, from `drop_epoch` on constant where p_y <= k (Zhang, Sabuncu, NeurIPS 2018).

    Args:
        sigma: as for CrossEntropy. lq: q, between cross-entropy (towards 0) and mean absolute error (1).
        lq_floor: k; images the network gives a smaller probability than that are left out, as in the truncated loss.
        drop_epoch: the epoch from which it is truncated.
    """

    name = "truncated_lq"

    def __init__(self, sigma: float = 0.5, lq: float = 0.7, lq_floor: float = 0.5, drop_epoch: int = 0):
        super().__init__(sigma)
        self.lq = check_between("lq", lq, 0, 1, closed="right")
        self.lq_floor = check_between("lq_floor", lq_floor, 0, 1, closed="left")
        self.drop_epoch = check_count("drop_epoch", drop_epoch, 0)

    def _loss(self, labels, logits, context):
        probability = ops.exp(-cross_entropy(labels, logits))
        loss = (1.0 - ops.power(ops.maximum(probability, 1e-12), self.lq)) / self.lq
        constant = (1.0 - self.lq_floor**self.lq) / self.lq
        truncated = ops.where(probability <= self.lq_floor, constant, loss)
        return ops.where(ops.convert_to_tensor(context.epoch) >= self.drop_epoch, truncated, loss)
