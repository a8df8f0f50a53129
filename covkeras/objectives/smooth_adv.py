"""SmoothAdv (Salman et al., NeurIPS 2019): noisy copies of images attacked through the smoothed classifier."""

from covkeras.objectives.ascent import published_warmup, smoothed_loss, stepped, warmed, within
from covkeras.objectives.base import Objective, Step, nearest
from covkeras.objectives.copies import logits_of
from covkeras.objectives.terms import Terms, cross_entropy
from covkeras.runtime import fields
from covkeras.runtime.later import Later

ops = Later("keras.ops")

# The authors' eps and number of copies for CIFAR-10; for MNIST as Jeong et al. (2021) run it.
_EPS = {"mnist": (1.0, 1.0, 1.0), "cifar10": (1.0, 1.0, 2.0)}
_COPIES = {"mnist": (4, 4, 4), "cifar10": (4, 8, 2)}


class SmoothAdv(Objective):
    """mean_i CE(f(x' + d_i)), x' = PGD within eps of x on -log mean_i F(x' + d_i)_y, F the softmax, d_i the same noise.

    T steps of 2 eps / T along the gradient, normalised image by image, drawn back into the ball and into [0, 1] after
    each. A step costs T + 1 passes over all copies.
    """

    name = "smooth_adv"

    eps: float = fields.number(1.0, "radius of the attack, in [0, 1] pixel units", 0, search="0.5:2")
    steps: int = fields.count(10, "T, steps of the attack")
    num_copies: int = fields.count(4, "M, noisy copies of an image")
    warmup: int = fields.count(10, "epochs in which eps grows to its size", 0, epoch="last")

    def check(self) -> None:
        self.copies = self.num_copies

    @classmethod
    def published(cls, data, sigma, epochs, switch_epoch) -> dict:
        found = {"eps": nearest(_EPS, data, sigma), "num_copies": nearest(_COPIES, data, sigma)}
        return found | {"warmup": published_warmup(data, sigma, epochs)}

    def attacked(self, images, labels, noise, context: Step):
        """x', (batch, h, w, c)."""
        radius = self.eps * warmed(context, self.warmup)
        loss, x = smoothed_loss(self.classifier, labels, noise, self.sigma), images
        for _ in range(self.steps):
            x = stepped(x, loss, 2.0 * radius / self.steps, noise[0])
            x = ops.clip(within(x, images, radius), 0.0, 1.0)
        return ops.stop_gradient(x)

    def __call__(self, images, labels, noise, context: Step) -> Terms:
        """images (batch, h, w, c), labels (batch,), noise (M, batch, h, w, c) standard normal -> Terms."""
        x = self.attacked(images, labels, noise, context) if context.training else images
        logits = logits_of(self.classifier, x, noise=noise, sigma=self.sigma, training=context.training)
        losses = [cross_entropy(labels, logits[i]) for i in range(self.num_copies)]
        return Terms(sum(losses) / len(losses), logits=logits[0])
