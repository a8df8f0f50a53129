"""Gaussian augmentation (Cohen, Rosenfeld, Kolter, ICML 2019): the baseline every method is measured against."""

from keras import ops

from covkeras.objectives.terms import Terms, cross_entropy
from covkeras.validation import check_classifier, check_sigma


class GaussianAugmentation:
    """Cross-entropy at one noisy copy of each image, f(x + eps), eps ~ N(0, sigma^2 I).

    Args:
        sigma: noise level, in [0, 1] pixel units.
    """

    name = "gaussian_augmentation"
    copies = 1
    lam = 0.0
    switch_epoch = 0

    def __init__(self, sigma: float = 0.5):
        self.sigma = check_sigma(sigma)

    def attach(self, classifier) -> None:
        check_classifier(classifier)
        self.classifier = classifier

    def __call__(self, images, labels, noise, context) -> Terms:
        """images (batch, h, w, c), labels (batch,), noise (1, batch, h, w, c) standard normal -> Terms."""
        logits = self.classifier(images + self.sigma * noise[0], training=context.training)
        return Terms(cross_entropy(labels, logits), logits=ops.cast(logits, "float32"))
