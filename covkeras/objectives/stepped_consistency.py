"""Consistency between a noisy copy and one moved along the first one's gradient (ours): two passes."""

from covkeras.objectives.ascent import direction, one_each, renewed
from covkeras.objectives.base import Objective, Step, nearest
from covkeras.objectives.consistency import PUBLISHED_LAM, consistency_terms
from covkeras.objectives.terms import Terms, cross_entropy, is_right
from covkeras.runtime import fields
from covkeras.runtime.later import Later

ops, gradients = Later("keras.ops"), Later("covkeras.moments.gradients")


class SteppedConsistency(Objective):
    """Consistency's loss of f(x + d_1) and f(x + d_2*), d_2* = d_2 + eps g / |g| brought back to d_2's norm.

    g: the gradient of the first copy's cross-entropy by the image, from the pass that is made anyway. d_1, d_2:
    independent noise; or, with one_noise, the same. only_right: an image whose first copy is misclassified takes d_2 as
    it is: a hard image is not made harder.
    """

    name = "stepped_consistency"
    copies = 2

    lam: float = fields.number(5.0, "weight of the divergence between copies", 0, closed="left", search="0:20")
    eta: float = fields.number(0.5, "weight of the entropy of the copies' mean", 0, closed="left", search="0:1")
    eps: float = fields.number(1.0, "length of the step, in [0, 1] pixel units", 0, closed="left", search="0.25:2")
    one_noise: bool = fields.switch(False, "the second copy starts from the first one's noise, not from its own")
    only_right: bool = fields.switch(False, "no step for an image whose first copy is misclassified")
    switch_epoch: int = fields.count(0, "epoch (from 0) at which lam is switched on", 0, epoch=True)

    @classmethod
    def published(cls, data, sigma, epochs, switch_epoch) -> dict:
        return {"lam": nearest(PUBLISHED_LAM, data, sigma), "switch_epoch": 0}

    def __call__(self, images, labels, noise, context: Step) -> Terms:
        """images (batch, h, w, c), labels (batch,), noise (2, batch, h, w, c) standard normal -> Terms."""

        def loss(x):
            logits = ops.cast(self.classifier(x, training=context.training), "float32")
            return ops.sum(cross_entropy(labels, logits)), logits

        first, second = self.sigma * noise[0], self.sigma * noise[0 if self.one_noise else 1]
        if context.training:
            logits, (gradient,) = gradients.gradients_of(loss, ops.convert_to_tensor(images + first))
            moved = renewed(second + self.eps * direction(gradient), second, 1)
            if self.only_right:
                right = is_right(labels, logits)
                moved = ops.where(one_each(right, moved), moved, second)
            second = ops.stop_gradient(moved)
        else:
            _, logits = loss(images + first)
        _, other = loss(images + second)
        return Terms(*consistency_terms(labels, ops.stack([logits, other]), self.eta))
