"""SmoothMix (Jeong et al., NeurIPS 2021): images mixed with their own adversarial examples."""

from covkeras.objectives.ascent import one_each, published_warmup, smoothed_loss, stepped, uniforms, warmed, within
from covkeras.objectives.base import Objective, Step, nearest
from covkeras.objectives.copies import logits_of
from covkeras.objectives.terms import Terms, cross_entropy, is_right
from covkeras.runtime import fields
from covkeras.runtime.later import Later

ops = Later("keras.ops")

# The authors' step length a at sigma .25, .5 and 1.
_LENGTH = {"mnist": (1.0, 1.0, 1.0), "cifar10": (0.5, 1.0, 2.0)}
_STEPS = {"mnist": (8, 8, 8), "cifar10": (4, 4, 4)}
_COPIES = {"mnist": (4, 4, 4), "cifar10": (2, 2, 2)}


class SmoothMix(Objective):
    """mean_i CE(f(x0 + d_i)) + lam w 1[argmax pbar = y] mean_i KL(y_mix || F(x_mix + d_i)), F the softmax.

    x_T: T steps of length a from x along the normalised gradient of -log mean_i F(x + d_i)_y, in [0, 1] and in no ball.
    x0: x, or with one_step the first of them, drawn back to a w around x. pbar = mean_i F(x0 + d_i). With u uniform in
    [0, 1/2): x_mix = (1 - u) x0 + u x_T, y_mix = (1 - u) pbar + u / classes. w: the warm-up, from 0 to 1. y_mix is
    taken as a constant.
    """

    name = "smooth_mix"

    lam: float = fields.number(5.0, "the authors' eta, weight of the mixed images' divergence", 0, closed="left")
    length: float = fields.number(1.0, "a, length of a step, in [0, 1] pixel units", 0, search="0.5:2")
    steps: int = fields.count(4, "T, steps of the attack")
    num_copies: int = fields.count(4, "M, noisy copies of an image")
    one_step: bool = fields.switch(True, "the clean side is the image after one step (the authors: sigma .5 and more)")
    warmup: int = fields.count(10, "epochs in which the weight grows to its size", 0, epoch="last")
    switch_epoch: int = fields.count(0, "epoch (from 0) at which lam is switched on", 0, epoch=True)

    def check(self) -> None:
        # One more, of which a single number an image is taken: u.
        self.copies = self.num_copies + 1

    @classmethod
    def published(cls, data, sigma, epochs, switch_epoch) -> dict:
        tables = {"length": _LENGTH, "steps": _STEPS, "num_copies": _COPIES}
        small = data in ("mnist", "digits")
        found = {n: nearest(t, data, sigma) for n, t in tables.items()} | {"one_step": small or sigma >= 0.5}
        return found | {"warmup": published_warmup(data, sigma, epochs)}

    def __call__(self, images, labels, noise, context: Step) -> Terms:
        """images (batch, h, w, c), labels (batch,), noise (M + 1, batch, h, w, c) standard normal -> Terms."""
        copies, share = noise[: self.num_copies], warmed(context, self.warmup)
        base, far = self._ends(images, labels, copies, share) if context.training else (images, images)
        logits = logits_of(self.classifier, base, noise=copies, sigma=self.sigma, training=context.training)
        losses = [cross_entropy(labels, logits[i]) for i in range(self.num_copies)]
        mean = ops.stop_gradient(ops.mean(ops.softmax(logits), 0))
        flat = 0.5 * uniforms(noise[-1])[:, None]
        u = one_each(flat[:, 0], noise[-1])
        mixed = (1.0 - u) * base + u * far
        target = (1.0 - flat) * mean + flat / mean.shape[-1]
        seen = logits_of(self.classifier, mixed, noise=copies, sigma=self.sigma, training=context.training)
        # KL(y_mix || F): y_mix is above 0 in every class.
        divergence = ops.sum(target * (ops.log(target) - ops.mean(ops.log_softmax(seen), 0)), -1)
        right = ops.cast(is_right(labels, mean), "float32")
        return Terms(sum(losses) / len(losses), share * right * divergence, logits[0])

    def _ends(self, images, labels, copies, share):
        """x0 and x_T, (batch, h, w, c)."""
        loss, x, base = smoothed_loss(self.classifier, labels, copies, self.sigma), images, images
        for i in range(self.steps):
            x = stepped(x, loss, self.length, copies[0])
            if i == 0 and self.one_step:
                base = ops.stop_gradient(ops.clip(within(x, images, self.length * share), 0.0, 1.0))
        return base, x
