"""Training for the average radius (Sun et al., arXiv 2410.06895): the sphere attack, hard images left out, near ones
drawn more often."""

import numpy as np

from covkeras.objectives.ascent import attacked_logits, one_each, renewed, turned
from covkeras.objectives.base import Objective, Step, nearest
from covkeras.objectives.copies import logits_of
from covkeras.objectives.terms import Terms, cross_entropy, is_right
from covkeras.runtime import fields
from covkeras.runtime.later import Later

ops, special = Later("keras.ops"), Later("scipy.special")

# The authors' for CIFAR-10, at sigma .25, .5 and 1.
_STEPS, _LENGTH, _BELOW = (3, 6, 4), (0.25, 0.25, 0.5), (0.5, 0.4, 0.4)
_EPOCH = (60 / 150, 70 / 150, 70 / 150)
_COUNTED, _WEIGHED, _LEVEL = 100, 16, 0.1


class SphereAttack(Objective):
    """mean_i CE(f(x + d_i*)), d_i*: up to T steps of length e from d_i along CE's normalised gradient, each rescaled to
    d_i's norm (a rotation of the noise, still typical in size), and none once the copy is misclassified.

    Before discard_epoch d_i* is d_i. At it images with a smaller share of right copies than discard_below are left out
    for good, and every weigh_every epochs from it on the others are drawn in proportion to the certified radius that 16
    copies give them, the lower bound at level .1 on their share, taken as .75 where it is less. An epoch has as many
    steps as before. The average radius grows by what hard images lose: look at certified accuracy at 0, too.

    A step costs T + 1 passes over all M copies.
    """

    name = "sphere_attack"

    length: float = fields.number(0.25, "e, length of a step, in [0, 1] pixel units", 0, search="0.1:1")
    steps: int = fields.count(6, "T, steps of the attack on the noise")
    num_copies: int = fields.count(4, "M, noisy copies of an image")
    discard_epoch: int = fields.count(0, "epoch (from 0) at which the attack begins, and the discarding", 0, epoch=True)
    discard_below: float = fields.number(0.0, "least share of right copies of an image; 0 keeps all", 0, 1, "left")
    weigh_every: int = fields.count(0, "epochs between weighings of the images; 0 draws all alike", 0)

    def check(self) -> None:
        self.copies = self.num_copies

    @classmethod
    def published(cls, data, sigma, epochs, switch_epoch) -> dict:
        tables = {"length": _LENGTH, "steps": _STEPS, "discard_below": _BELOW}
        found = {n: nearest({"mnist": t, "cifar10": t}, data, sigma) for n, t in tables.items()}
        begin = round(epochs * nearest({"mnist": _EPOCH, "cifar10": _EPOCH}, data, sigma))
        return found | {"num_copies": 4, "discard_epoch": begin, "weigh_every": max(1, round(epochs / 15))}

    def copies_to_count(self, epoch: int) -> int:
        """100 at the discarding, 16 at a weighing."""
        since = epoch - self.discard_epoch
        if since == 0 and self.discard_below:
            return _COUNTED
        return _WEIGHED if since >= 0 and self.weigh_every and since % self.weigh_every == 0 else 0

    def image_weights(self, epoch: int, shares, before):
        """See `Objective.image_weights`."""
        kept = np.asarray(before) > 0
        if epoch == self.discard_epoch:
            kept &= shares >= self.discard_below
        if not self.weigh_every:
            return kept.astype(float)
        hits = np.floor(_WEIGHED * np.clip(shares, 0.75, 1.0))
        # Clopper and Pearson's lower bound, and the radius in units of sigma.
        low = special.betaincinv(hits, _WEIGHED - hits + 1, _LEVEL)
        return np.where(kept, special.ndtri(low), 0.0)

    def __call__(self, images, labels, noise, context: Step) -> Terms:
        """images (batch, h, w, c), labels (batch,), noise (M, batch, h, w, c) standard normal -> Terms."""
        d = start = self.sigma * noise
        if context.training:
            begun = ops.convert_to_tensor(context.epoch) >= self.discard_epoch
            d = ops.cond(begun, lambda: self._attacked(images, labels, start), lambda: start)
        logits = logits_of(self.classifier, images, noise=d, sigma=1.0, training=context.training)
        losses = [cross_entropy(labels, logits[i]) for i in range(self.num_copies)]
        return Terms(sum(losses) / len(losses), logits=logits[0])

    def _attacked(self, images, labels, start):
        """d*, (M, batch, h, w, c)."""

        def loss(d):
            logits = attacked_logits(self.classifier, images, noise=d, sigma=1.0)
            return sum(ops.sum(cross_entropy(labels, logits[i])) for i in range(self.num_copies)), logits

        d = start
        for _ in range(self.steps):
            moved, logits = turned(d, loss, self.length)
            right = is_right(labels, logits)
            d = ops.where(one_each(right, d), renewed(moved, start), d)
        return ops.stop_gradient(d)
