"""The paper's objective (Zhen, Chakraborty, Singh, CVPR 2021): cross-entropy and the propagated radius' hinge."""

import dataclasses

from keras import ops

from covkeras.moments.gaussian import Gaussian, propagated_radius
from covkeras.moments.network import MomentNetwork
from covkeras.objectives.terms import Terms, cross_entropy
from covkeras.validation import check_between, check_count, check_r_max, check_sigma


class CovarianceRadius:
    """Cross-entropy of softmax(E[u]) plus lam max(0, gamma - propagated radius) on the correctly classified (Eq. 5).

    Args:
        sigma: noise level, in [0, 1] pixel units.
        lam: weight of the robustness loss, the paper's lambda, >= 0.
        gamma: hinge offset, the paper's Gamma, in the units of sigma, > 0.
        r_max: bound on the correlation between pixels, in [0, 1).
        switch_epoch: the epoch (from 0) at which lam is switched on.
        noisy_mean: add one noise sample to the input's mean. Off in the paper, on in its published code; it certifies
            much better, see README.
        stop_covariance_gradient: take the covariance as a constant. Off in the paper, on in its published code.
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
    ):
        self.sigma = check_sigma(sigma)
        self.lam = check_between("lam", lam, 0, float("inf"), closed="left")
        self.gamma = check_between("gamma", gamma, 0, float("inf"))
        self.r_max = check_r_max(r_max)
        self.switch_epoch = check_count("switch_epoch", switch_epoch, 0)
        self.noisy_mean = bool(noisy_mean)
        self.stop_covariance_gradient = bool(stop_covariance_gradient)

    @property
    def copies(self) -> int:
        return 1 if self.noisy_mean else 0

    def attach(self, classifier) -> None:
        self.network = MomentNetwork(classifier, self.sigma, self.r_max)

    def __call__(self, images, labels, noise, context) -> Terms:
        """images (batch, h, w, c), labels (batch,), noise (copies, batch, h, w, c) standard normal -> Terms."""
        if self.noisy_mean:
            images = images + self.sigma * noise[0]
        if self.stop_covariance_gradient:
            context = dataclasses.replace(context, rectify=_constant_covariance(context.rectify))
        logits = self.network(images, context=context)
        if self.stop_covariance_gradient:
            logits = Gaussian(logits.mean, ops.stop_gradient(logits.cov))
        radius = propagated_radius(logits, self.sigma, labels)
        # The radius is positive exactly where the mean's top class is the label.
        hinge = ops.where(radius > 0, ops.maximum(self.gamma - radius, 0.0), 0.0)
        return Terms(cross_entropy(labels, logits.mean), hinge, logits.mean, radius)


def _constant_covariance(rectify):
    """The covariance depends on the weights alone and is read only at ReLUs and at the head: stopping it there stops
    it at every weight."""
    return lambda gaussian, slope: rectify(Gaussian(gaussian.mean, ops.stop_gradient(gaussian.cov)), slope)
