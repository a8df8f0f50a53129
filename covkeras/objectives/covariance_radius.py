"""The paper's objective (Zhen, Chakraborty, Singh, CVPR 2021): cross-entropy and the propagated radius' hinge."""

import dataclasses

from covkeras.objectives.ascent import uniforms
from covkeras.objectives.base import Objective
from covkeras.objectives.copies import batch_normalizations, beside_copies
from covkeras.objectives.terms import Terms, cross_entropy
from covkeras.runtime import fields
from covkeras.runtime.later import Later

moments, ops = Later("covkeras.moments"), Later("keras.ops")


class CovarianceRadius(Objective):
    """Cross-entropy of softmax(E[u]) plus lam max(0, gamma - propagated radius) on the correctly classified (Eq. 5).

    Where the paper and its published code differ, the default is the paper's. One noise sample in the mean certifies
    much better than none (docs/results/digits.md). With rectifier="bivariate" the covariance is the mean of the batch's
    images' (on several replicas, of each one's own). drop_share is the paper's way with noisy labels (Sec. 4.2): of a
    batch's images the share with the largest propagated radius, of the predicted class, has no classification loss.

    With BatchNormalization, unless it is frozen, the cross-entropy is that of a noisy copy, by the classifier itself (a
    pass more), and the hinge takes that pass's statistics, with their gradients: with statistics of which the
    propagated variance is a part, far too large in a deep network, the means were those of another function.
    """

    name = "covariance_radius"

    lam: float = fields.number(4.0, "the paper's lambda, weight of the hinge", 0, closed="left", search="0:8")
    gamma: float = fields.number(8.0, "hinge offset, the paper's Gamma, a radius", 0)
    r_max: float = fields.r_max(search="0:0.4")
    switch_epoch: int = fields.count(0, "epoch (from 0) at which lam is switched on", 0, epoch=True)
    noisy_mean: bool = fields.switch(False, "add one noise sample to the input's mean (published code, not the paper)")
    stop_covariance_gradient: bool = fields.switch(
        False, "take the covariance as a constant (published code, not the paper)"
    )
    covariance_gradient_every: int = fields.count(
        1, "steps of which one, by chance, takes the covariance's gradient; in the others it is a constant (ours)"
    )
    relu_inflation: float = fields.number(
        0.0, "times I added to the covariance at every ReLU (published code: .1)", 0, closed="left"
    )
    covariance_bound: bool = fields.switch(
        False, "+ 2 |S_12| for - 2 S_12 in the margin's variance (published code, not the paper)"
    )
    rectifier: str = fields.choice(
        "unchanged", "the covariance through a ReLU: the paper's, or that of two ReLUs", ("unchanged", "bivariate")
    )
    sigma_free_hinge: bool = fields.switch(False, "hinge on radius / sigma (published code, not the paper)")
    drop_share: float = fields.number(
        0.0, "share of images whose classification loss is dropped (noisy labels)", 0, 1, "left"
    )
    drop_epoch: int = fields.count(0, "epoch (from 0) from which it is dropped", 0, epoch=True)
    drop_smallest: bool = fields.switch(False, "drop the images with the smallest propagated radius, not the largest")

    def check(self) -> None:
        if self.rectifier == "bivariate" and (self.stop_covariance_gradient or self.relu_inflation):
            raise ValueError(
                "rectifier must be unchanged with stop_covariance_gradient or relu_inflation: they change the paper's "
                "covariance at the ReLUs."
            )
        if self.covariance_gradient_every > 1 and (self.rectifier == "bivariate" or self.stop_covariance_gradient):
            raise ValueError(
                "covariance_gradient_every must be 1 with stop_covariance_gradient, which never takes it, and with "
                "rectifier='bivariate', which reads the covariance between ReLUs."
            )

    @property
    def copies(self) -> int:
        return 1 if self.noisy_mean or self.covariance_gradient_every > 1 or self._normalised else 0

    @classmethod
    def published(cls, data, sigma, epochs, switch_epoch) -> dict:
        # The paper switches lam on halfway; one noise sample in the mean is its published code's way.
        return {"lam": 4.0, "gamma": 8.0, "switch_epoch": epochs // 2, "noisy_mean": True}

    @property
    def _normalised(self) -> bool:
        # Asked at every trace: frozen layers may be set free again.
        found = batch_normalizations(self.network.classifier) if "network" in vars(self) else ()
        return any(layer.trainable for layer in found)

    def attach(self, classifier) -> None:
        """Raises ValueError: a layer that leaves more behind than its output, where the step has two ways to go."""
        normal = batch_normalizations(classifier)
        for layer in classifier._flatten_layers() if self.covariance_gradient_every > 1 else ():
            if getattr(layer, "activity_regularizer", None) or layer in normal:
                raise ValueError(
                    f"covariance_gradient_every must be 1 for a classifier with {layer.name} ({type(layer).__name__}): "
                    "neither moving averages nor activity regularisers get out of a step that goes one of two ways."
                )
        self.network = moments.MomentNetwork(classifier, self.sigma, self.r_max, rectifier=self.rectifier)

    def __call__(self, images, labels, noise, context: "moments.Context") -> Terms:
        """images (batch, h, w, c), labels (batch,), noise (copies, batch, h, w, c) standard normal -> Terms."""
        start = images + self.sigma * noise[0] if self.noisy_mean else images
        if self._normalised:
            copies = beside_copies(self.network.classifier, images, [noise[0]], self.sigma, context)
            with copies as (seen, given):
                logits = self._logits(start, noise, dataclasses.replace(given, training=False))
            seen = seen[0]
        else:
            logits = self._logits(start, noise, context)
            seen = logits.mean
        radius = moments.propagated_radius(logits, self.sigma, labels, self.covariance_bound)
        # The radius is positive exactly where the mean's top class is the label.
        measured = radius / self.sigma if self.sigma_free_hinge else radius
        hinge = ops.where(radius > 0, ops.maximum(self.gamma - measured, 0.0), 0.0)
        classification = cross_entropy(labels, seen)
        if self.drop_share and context.training:
            classification = classification * self._kept(moments.propagated_radius(logits, self.sigma), context.epoch)
        return Terms(classification, hinge, seen, radius)

    def _logits(self, images, noise, context):
        """The logits' moments, with the covariance's gradient as this step has it."""
        if self.covariance_gradient_every == 1 or not context.training:
            return self._propagated(images, context, self.stop_covariance_gradient)
        # By the noise: a function of (seed, step), so that a resumed run takes the same steps.
        taken = uniforms(noise[-1])[0] * self.covariance_gradient_every < 1.0
        both = (lambda stopped=stopped: tuple(self._propagated(images, context, stopped)) for stopped in (False, True))
        return moments.Gaussian(*ops.cond(taken, *both))

    def _propagated(self, images, context, stopped: bool):
        if stopped or self.relu_inflation:
            context = dataclasses.replace(context, rectify=self._rectify(context, stopped))
        logits = self.network(images, context=context)
        return moments.Gaussian(logits.mean, ops.stop_gradient(logits.cov)) if stopped else logits

    def _rectify(self, context, stopped: bool):
        """The rectifiers' rule with what the published code does to the covariance there.

        The covariance depends on the weights alone and is read only at ReLUs and at the head: stopping its gradient
        there stops it at every weight.
        """

        def rectify(gaussian, activation):
            cov = ops.stop_gradient(gaussian.cov) if stopped else gaussian.cov
            mean, cov = context.activated(moments.Gaussian(gaussian.mean, cov), activation)
            return moments.Gaussian(mean, cov + self.relu_inflation * ops.eye(cov.shape[-1], dtype="float32"))

        return rectify

    def _kept(self, radius, epoch):
        """(batch,): 0 for the images whose classification loss is dropped, else 1."""
        # The last batch of an epoch may be shorter, and its size unknown to the graph.
        batch = ops.cast(ops.shape(radius)[0], "float32")
        dropped = ops.cast(ops.round(self.drop_share * batch), "int32")
        order = ops.cast(ops.argsort(ops.argsort(radius if self.drop_smallest else -radius)), "int32")
        kept = ops.cast(order >= dropped, "float32")
        return ops.where(ops.convert_to_tensor(epoch) >= self.drop_epoch, kept, ops.ones_like(kept))
