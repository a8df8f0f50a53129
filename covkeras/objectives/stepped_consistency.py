"""Consistency between a noisy copy and one moved along the first one's gradient (ours): two passes."""

from covkeras.objectives.ascent import direction, one_each, renewed
from covkeras.objectives.base import Objective, Step, nearest
from covkeras.objectives.consistency import PUBLISHED_LAM, consistency_terms, mean_of, times_log
from covkeras.objectives.terms import Terms, cross_entropy, is_right
from covkeras.runtime import fields
from covkeras.runtime.later import Later

ops, gradients = Later("keras.ops"), Later("covkeras.moments.gradients")
image_gradients = Later("covkeras.moments.image_gradients")


class SteppedConsistency(Objective):
    """Consistency's loss of f(x + d_1) and f(x + d_2*), d_2* = d_2 + eps g / |g| brought back to d_2's norm.

    g: the gradient of the first copy's cross-entropy by the image, from the pass that is made anyway. d_1, d_2:
    independent noise; or, with one_noise, the same. only_right: an image whose first copy is misclassified takes d_2 as
    it is: a hard image is not made harder. detached: the divergence is KL(F_1 || F_2), F_1 a constant there and in the
    entropy, so that the first copy's one backward pass gives the direction and the weights' gradient.
    """

    name = "stepped_consistency"
    copies = 2

    lam: float = fields.number(2.0, "weight of the divergence between copies", 0, closed="left", search="0:20")
    eta: float = fields.number(0.5, "weight of the entropy of the copies' mean", 0, closed="left", search="0:1")
    eps: float = fields.number(1.0, "length of the step, in [0, 1] pixel units", 0, closed="left", search="0.25:2")
    one_noise: bool = fields.switch(False, "the second copy starts from the first one's noise, not from its own")
    only_right: bool = fields.switch(False, "no step for an image whose first copy is misclassified")
    detached: bool = fields.switch(
        True, "KL from the first copy, a constant, to the moved one: its two passes are all that a step has"
    )
    switch_epoch: int = fields.count(0, "epoch (from 0) at which lam is switched on", 0, epoch=True)

    @classmethod
    def published(cls, data, sigma, epochs, switch_epoch) -> dict:
        """Ours: the step in proportion to sigma; lam chosen on held-out images of MNIST and digits, else two fifths of
        Consistency's, which it was there."""
        lam = 2.0 if data in ("mnist", "digits") else 0.4 * nearest(PUBLISHED_LAM, data, sigma)
        return {"lam": lam, "eps": 2.0 * sigma, "detached": True, "switch_epoch": 0}

    def __call__(self, images, labels, noise, context: Step) -> Terms:
        """images (batch, h, w, c), labels (batch,), noise (2, batch, h, w, c) standard normal -> Terms."""
        first, second = self.sigma * noise[0], self.sigma * noise[0 if self.one_noise else 1]
        logits, loss, gradient = self._first(images + first, labels, context)
        if context.training:
            moved = renewed(second + self.eps * direction(gradient), second, 1)
            if self.only_right:
                right = is_right(labels, logits)
                moved = ops.where(one_each(right, moved), moved, second)
            second = ops.stop_gradient(moved)
        other = ops.cast(self.classifier(images + second, training=context.training), "float32")
        if not self.detached:
            return Terms(*consistency_terms(labels, ops.stack([logits, other]), self.eta))
        log = ops.log_softmax(ops.stack([ops.stop_gradient(logits), other]))
        known, (_, log_mean, entropy) = ops.exp(log[0]), mean_of(log)
        divergence = ops.sum(times_log(known, log[0]) - times_log(known, log[1]), -1)
        return Terms(0.5 * (loss + cross_entropy(labels, other)) + self.eta * entropy, divergence, log_mean)

    def _first(self, noisy, labels, context):
        """The first copy's logits, its cross-entropy (batch,), and the gradient of that by the image."""

        def total(x):
            with image_gradients.quick_to_image(self.classifier):
                logits = ops.cast(self.classifier(x, training=context.training), "float32")
            each = cross_entropy(labels, logits)
            return ops.sum(each), (logits, each)

        if not context.training:
            return *total(noisy)[1], None
        weights = self.classifier.trainable_variables if self._shares(context) else []
        noisy = ops.convert_to_tensor(noisy)
        (logits, each), (gradient, *by_weights) = gradients.gradients_of(total, noisy, variables=weights)
        if weights:
            # The same backward pass gave the gradient by the weights: a linear function of them has it, and the
            # trainer's own does not go through the copy again.
            found = [(w, g) for w, g in zip(weights, by_weights, strict=True) if g is not None]
            # Weights may be of several dtypes: a head is float32 whatever Keras' floatx is.
            terms = (ops.stop_gradient(ops.convert_to_tensor(g)) * w for w, g in found)
            linear = sum(ops.sum(ops.cast(term, each.dtype)) for term in terms)
            linear = linear / ops.cast(ops.shape(noisy)[0], each.dtype)
            each = ops.stop_gradient(each) + (linear - ops.stop_gradient(linear))
        return logits, each, gradient

    def _shares(self, context) -> bool:
        # With weights of images the loss is not their mean; in float16 a gradient must be scaled.
        half = any(layer.compute_dtype == "float16" for layer in self.classifier._flatten_layers())
        return self.detached and not getattr(context, "weighted", False) and not half
