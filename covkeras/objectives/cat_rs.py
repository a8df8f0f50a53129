"""CAT-RS (Jeong, Kim, Shin, AAAI 2023): training that looks at how sure an image's smoothed prediction is."""

from covkeras.objectives.ascent import attacked_logits, restored, turned, uniforms, within
from covkeras.objectives.base import Step, nearest
from covkeras.objectives.copies import logits_of
from covkeras.objectives.teachers import Taught
from covkeras.objectives.terms import Terms, cross_entropy, is_right
from covkeras.runtime import fields
from covkeras.runtime.later import Later

ops = Later("keras.ops")

_LAM = {"mnist": (0.5, 1.0, 2.0), "cifar10": (0.5, 1.0, 2.0)}


class CatRs(Taught):
    """L_low + lam L_high: (1/M) sum of the K smallest CE_i, plus lam 1[K = M] max_i KL(pb || F(x + d*_i)).

    F is the softmax, phat the share of the M copies that are classified as y, K = max(1, Binomial(M, phat)). d*_i: T
    steps of 2 eps / T from the copy's noise d_i along the normalised gradient of KL(pb || F(x + d)), drawn back to
    within eps of d_i, and brought to d_i's own mean and root mean square after each. pb: the smoothed prediction of a
    classifier trained with noise, the teacher. The authors count its votes on 10,000 copies of each image once; here
    the mean of its softmax over the step's M copies stands for them, so that it costs M forward passes a step.
    """

    name = "cat_rs"

    teacher: str = fields.files("", "a classifier trained with noise of this sigma, a .keras file")
    lam: float = fields.number(1.0, "weight of the sure images' worst copy", 0, closed="left", search="0:4")
    eps: float = fields.number(1.0, "distance that a copy's noise is moved, in [0, 1] pixel units", 0, search="0.5:2")
    steps: int = fields.count(4, "T, steps of the attack on the noise")
    num_copies: int = fields.count(4, "M, noisy copies of an image")
    switch_epoch: int = fields.count(0, "epoch (from 0) at which lam is switched on", 0, epoch=True)

    def check(self) -> None:
        # One more, of which a single number an image is taken: the binomial's uniform.
        self.copies = self.num_copies + 1

    @classmethod
    def published(cls, data, sigma, epochs, switch_epoch) -> dict:
        return {"lam": nearest(_LAM, data, sigma), "eps": 1.0, "steps": 4, "num_copies": 4, "switch_epoch": 0}

    def __call__(self, images, labels, noise, context: Step) -> Terms:
        """images (batch, h, w, c), labels (batch,), noise (M + 1, batch, h, w, c) standard normal -> Terms."""
        count, d = self.num_copies, self.sigma * noise[: self.num_copies]
        logits = logits_of(self.classifier, images, noise=d, sigma=1.0, training=context.training)
        losses = ops.stack([cross_entropy(labels, logits[i]) for i in range(count)])
        right = is_right(labels, logits)
        share = ops.mean(ops.cast(right, "float32"), 0)
        kept = ops.maximum(binomial(count, share, uniforms(noise[-1])), 1.0)
        among = ops.cast(ops.reshape(ops.arange(count), (-1, 1)), "float32") < kept
        low = ops.sum(ops.where(among, ops.sort(losses, axis=0), 0.0), 0) / count
        known = logits_of(self.known, images, noise=d, sigma=1.0, training=False)
        wanted = ops.stop_gradient(ops.mean(ops.softmax(known), 0))
        worst = self._attacked(images, wanted, d) if context.training else d
        seen = logits_of(self.classifier, images, noise=worst, sigma=1.0, training=context.training)
        high = ops.where(kept == count, ops.max(divergence(wanted, seen), 0), 0.0)
        return Terms(low, high, logits[0])

    def _attacked(self, images, wanted, start):
        """d*, (M, batch, h, w, c)."""

        def loss(d):
            logits = attacked_logits(self.classifier, images, noise=d, sigma=1.0)
            return ops.sum(divergence(wanted, logits)), logits

        d = start
        for _ in range(self.steps):
            moved, _ = turned(d, loss, 2.0 * self.eps / self.steps)
            d = restored(within(moved, start, self.eps, 2), start)
        return ops.stop_gradient(d)


def divergence(wanted, logits):
    """KL(wanted || softmax(logits)), (k, batch): wanted (batch, classes), logits (k, batch, classes)."""
    log = ops.log(ops.maximum(wanted, 1e-30))
    return ops.sum(wanted * (log - ops.log_softmax(logits)), -1)


def binomial(count: int, p, uniform):
    """The quantile of Binomial(count, p) at `uniform` in (0, 1): how many of the distribution's values lie below it.

    p, uniform: (batch,). Returns (batch,), float32.
    """
    total, below, choose = ops.zeros_like(p), ops.zeros_like(p), 1
    for k in range(count):
        total = total + choose * p**k * (1.0 - p) ** (count - k)
        below = below + ops.cast(total < uniform, "float32")
        choose = choose * (count - k) // (k + 1)
    return below
