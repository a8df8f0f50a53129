"""The paper's objective (Zhen, Chakraborty, Singh, CVPR 2021): cross-entropy and the propagated radius' hinge."""

import dataclasses

import keras
from keras import ops

from covkeras.moments.gaussian import Gaussian, propagated_radius
from covkeras.moments.network import MomentNetwork
from covkeras.objectives.base import Objective
from covkeras.objectives.terms import Terms, cross_entropy
from covkeras.runtime.validation import check_between, check_count, check_r_max, check_sigma


@keras.saving.register_keras_serializable("covkeras")
class CovarianceRadius(Objective):
    """Cross-entropy of softmax(E[u]) plus lam max(0, gamma - propagated radius) on the correctly classified (Eq. 5).

    Args:
        sigma: noise level, in [0, 1] pixel units.
        lam: weight of the robustness loss, the paper's lambda, >= 0.
        gamma: hinge offset, the paper's Gamma, in the units of sigma, > 0.
        r_max: bound on the correlation between pixels, in [0, 1).
        switch_epoch: the epoch (from 0) at which lam is switched on.
        noisy_mean: add one noise sample to the input's mean. Off in the paper, on in its published code; it certifies
            much better, see docs/results.md.
        stop_covariance_gradient: take the covariance as a constant. Off in the paper, on in its published code.
        relu_inflation: times I is added to the covariance after every ReLU; 0 in the paper, .1 in its published code.
        covariance_bound: + 2 |S_12| for - 2 S_12 in the margin's variance. Off in the paper, on in its published code.
        sigma_free_hinge: max(0, gamma - radius / sigma). Off in the paper, on in its published code.
        drop_share: for noisy labels (the paper's Sec. 4.2): the share of a batch's images whose classification loss is
            dropped, those with the largest propagated radius (of the predicted class); 0 drops none.
        drop_epoch: the epoch from which they are dropped.
        drop_smallest: drop those with the smallest radius instead.
    """

    name = "covariance_radius"

    def __init__(
        self,
        sigma: float = 0.5,
        lam: float = 4.0,
        gamma: float = 8.0,
        r_max: float = 0.1,
        switch_epoch: int = 0,
        noisy_mean: bool = False,
        stop_covariance_gradient: bool = False,
        relu_inflation: float = 0.0,
        covariance_bound: bool = False,
        sigma_free_hinge: bool = False,
        drop_share: float = 0.0,
        drop_epoch: int = 0,
        drop_smallest: bool = False,
    ):
        self.sigma = check_sigma(sigma)
        self.lam = check_between("lam", lam, 0, float("inf"), closed="left")
        self.gamma = check_between("gamma", gamma, 0, float("inf"))
        self.r_max = check_r_max(r_max)
        self.switch_epoch = check_count("switch_epoch", switch_epoch, 0)
        self.noisy_mean = bool(noisy_mean)
        self.stop_covariance_gradient = bool(stop_covariance_gradient)
        self.relu_inflation = check_between("relu_inflation", relu_inflation, 0, float("inf"), closed="left")
        self.covariance_bound = bool(covariance_bound)
        self.sigma_free_hinge = bool(sigma_free_hinge)
        self.drop_share = check_between("drop_share", drop_share, 0, 1, closed="left")
        self.drop_epoch = check_count("drop_epoch", drop_epoch, 0)
        self.drop_smallest = bool(drop_smallest)

    @property
    def copies(self) -> int:
        return 1 if self.noisy_mean else 0

    @classmethod
    def published(cls, data, sigma, epochs, switch_epoch) -> dict:
        # The paper switches lam on halfway; one noise sample in the mean is its published code's way.
        return {"lam": 4.0, "gamma": 8.0, "switch_epoch": epochs // 2, "noisy_mean": True}

    def attach(self, classifier) -> None:
        self.network = MomentNetwork(classifier, self.sigma, self.r_max)

    def __call__(self, images, labels, noise, context) -> Terms:
        """images (batch, h, w, c), labels (batch,), noise (copies, batch, h, w, c) standard normal -> Terms."""
        if self.noisy_mean:
            images = images + self.sigma * noise[0]
        if self.stop_covariance_gradient or self.relu_inflation:
            context = dataclasses.replace(context, rectify=self._rectify(context))
        logits = self.network(images, context=context)
        if self.stop_covariance_gradient:
            logits = Gaussian(logits.mean, ops.stop_gradient(logits.cov))
        radius = propagated_radius(logits, self.sigma, labels, self.covariance_bound)
        # The radius is positive exactly where the mean's top class is the label.
        measured = radius / self.sigma if self.sigma_free_hinge else radius
        hinge = ops.where(radius > 0, ops.maximum(self.gamma - measured, 0.0), 0.0)
        classification = cross_entropy(labels, logits.mean)
        if self.drop_share and context.training:
            classification = classification * self._kept(propagated_radius(logits, self.sigma), context.epoch)
        return Terms(classification, hinge, logits.mean, radius)

    def _rectify(self, context):
        """The rectifiers' rule with what the published code does to the covariance there.

        The covariance depends on the weights alone and is read only at ReLUs and at the head: stopping its gradient
        there stops it at every weight.
        """

        def rectify(gaussian, activation):
            cov = ops.stop_gradient(gaussian.cov) if self.stop_covariance_gradient else gaussian.cov
            mean, cov = context.activated(Gaussian(gaussian.mean, cov), activation)
            return Gaussian(mean, cov + self.relu_inflation * ops.eye(cov.shape[-1], dtype="float32"))

        return rectify

    def _kept(self, radius, epoch):
        """(batch,): 0 for the images whose classification loss is dropped, else 1."""
        # The last batch of an epoch may be shorter, and its size unknown to the graph.
        batch = ops.cast(ops.shape(radius)[0], "float32")
        dropped = ops.cast(ops.round(self.drop_share * batch), "int32")
        order = ops.cast(ops.argsort(ops.argsort(radius if self.drop_smallest else -radius)), "int32")
        kept = ops.cast(order >= dropped, "float32")
        return ops.where(ops.convert_to_tensor(epoch) >= self.drop_epoch, kept, ops.ones_like(kept))
