"""The sphere attack (Sun et al., arXiv 2410.06895): cross-entropy at noise turned towards where the classifier errs."""

from covkeras.objectives.ascent import renewed, turned
from covkeras.objectives.base import Objective, Step, nearest
from covkeras.objectives.copies import logits_of
from covkeras.objectives.terms import Terms, cross_entropy
from covkeras.runtime import fields
from covkeras.runtime.later import Later

ops = Later("keras.ops")

_STEPS, _LENGTH = (3, 6, 4), (0.25, 0.25, 0.5)


class SphereAttack(Objective):
    """mean_i CE(f(x + d_i*)), d_i*: up to T steps of length e from d_i along CE's normalised gradient, each rescaled to
    d_i's norm (a rotation of the noise, still typical in size), and none once the copy is misclassified.

    A step costs T + 1 passes over all M copies.
    """

    name = "sphere_attack"

    length: float = fields.number(0.25, "e, length of a step, in [0, 1] pixel units", 0, search="0.1:1")
    steps: int = fields.count(6, "T, steps of the attack on the noise")
    num_copies: int = fields.count(4, "M, noisy copies of an image")

    def check(self) -> None:
        self.copies = self.num_copies

    @classmethod
    def published(cls, data, sigma, epochs, switch_epoch) -> dict:
        tables = {"length": _LENGTH, "steps": _STEPS}
        return {n: nearest({"mnist": t, "cifar10": t}, data, sigma) for n, t in tables.items()} | {"num_copies": 4}

    def __call__(self, images, labels, noise, context: Step) -> Terms:
        """images (batch, h, w, c), labels (batch,), noise (M, batch, h, w, c) standard normal -> Terms."""
        d = start = self.sigma * noise

        def loss(d):
            logits = logits_of(self.classifier, images, noise=d, sigma=1.0, training=False)
            return sum(ops.sum(cross_entropy(labels, logits[i])) for i in range(self.num_copies)), logits

        for _ in range(self.steps if context.training else 0):
            moved, logits = turned(d, loss, self.length)
            right = ops.cast(ops.argmax(logits, -1), "int32") == ops.cast(labels, "int32")
            d = ops.where(right[..., None, None, None], renewed(moved, start), d)
        logits = logits_of(self.classifier, images, noise=d, sigma=1.0, training=context.training)
        losses = [cross_entropy(labels, logits[i]) for i in range(self.num_copies)]
        return Terms(sum(losses) / len(losses), logits=logits[0])
