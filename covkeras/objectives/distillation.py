"""Certified radius transfer (CRT, arXiv 2210.14283): a robust teacher's logits, learned at the same noisy copy."""

from covkeras.objectives.base import Step
from covkeras.objectives.teachers import Taught
from covkeras.objectives.terms import Terms
from covkeras.runtime import fields
from covkeras.runtime.later import Later

ops = Later("keras.ops")


class Distillation(Taught):
    """|f(x + eps) - t(x + eps)|_2 of the logits, t the teacher, frozen. One pass, and the teacher's forward.

    Labels are not used: batches may come without them.
    """

    name = "distillation"
    copies = 1
    labelled = False

    teacher: str = fields.files("", "the robust classifier to learn from, a .keras file of the same images and classes")

    def __call__(self, images, labels, noise, context: Step) -> Terms:
        """images (batch, h, w, c), labels not used, noise (1, batch, h, w, c) standard normal -> Terms."""
        noisy = images + self.sigma * noise[0]
        logits = ops.cast(self.classifier(noisy, training=context.training), "float32")
        wanted = ops.stop_gradient(ops.cast(self.known(noisy, training=False), "float32"))
        # At no distance the root's derivative is infinite.
        squares = ops.sum(ops.square(logits - wanted), -1)
        return Terms(ops.sqrt(ops.maximum(squares, 1e-12)), logits=logits)
