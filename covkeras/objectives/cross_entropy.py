"""Losses at the image itself, without noise: the baselines of training on noisy labels."""

from covkeras.objectives.base import Objective, Step
from covkeras.objectives.terms import Terms, cross_entropy
from covkeras.runtime import fields
from covkeras.runtime.later import Later

ops = Later("keras.ops")


class CrossEntropy(Objective):
    """Plain cross-entropy at the image as it is; sigma is what the classifier will be certified at."""

    name = "cross_entropy"

    def __call__(self, images, labels, noise, context: Step) -> Terms:
        """images (batch, h, w, c), labels (batch,); noise is not used -> Terms."""
        logits = ops.cast(self.classifier(images, training=context.training), "float32")
        return Terms(self._loss(labels, logits, context), logits=logits)

    def _loss(self, labels, logits, context):
        return cross_entropy(labels, logits)


class TruncatedLq(CrossEntropy):
    """Truncated L_q loss, (1 - p_y^q) / q (Zhang, Sabuncu, NeurIPS 2018).

    From `drop_epoch` on it is constant where p_y <= k.
    """

    name = "truncated_lq"

    lq: float = fields.number(0.7, "q of L_q, from cross-entropy (towards 0) to mean absolute error (1)", 0, 1, "right")
    lq_floor: float = fields.number(0.5, "k: images given a smaller probability than that are left out", 0, 1, "left")
    drop_epoch: int = fields.count(0, "epoch (from 0) from which they are", 0, epoch=True)

    def _loss(self, labels, logits, context):
        probability = ops.exp(-cross_entropy(labels, logits))
        loss = (1.0 - ops.power(ops.maximum(probability, 1e-12), self.lq)) / self.lq
        constant = (1.0 - self.lq_floor**self.lq) / self.lq
        truncated = ops.where(probability <= self.lq_floor, constant, loss)
        return ops.where(ops.convert_to_tensor(context.epoch) >= self.drop_epoch, truncated, loss)
