"""Gaussian augmentation (Cohen, Rosenfeld, Kolter, ICML 2019): the baseline every method is measured against."""

from covkeras.objectives.base import Step
from covkeras.objectives.cross_entropy import CrossEntropy
from covkeras.objectives.terms import Terms


class GaussianAugmentation(CrossEntropy):
    """Cross-entropy at one noisy copy of each image, f(x + eps), eps ~ N(0, sigma^2 I)."""

    name = "gaussian_augmentation"
    copies = 1

    def __call__(self, images, labels, noise, context: Step) -> Terms:
        """images (batch, h, w, c), labels (batch,), noise (1, batch, h, w, c) standard normal -> Terms."""
        return super().__call__(images + self.sigma * noise[0], labels, None, context)
