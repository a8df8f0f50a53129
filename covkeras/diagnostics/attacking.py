"""An attack on the smoothed classifier: certificates must hold where an attacker tries, and fail somewhere outside.

Projected gradient ascent in the Euclidean norm (Madry et al., ICLR 2018) on the smoothed classifier's own loss, its
gradient taken through noisy copies (Salman et al., NeurIPS 2019).
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from covkeras.certification.certificates import ABSTAIN, Certificates
from covkeras.certification.smoothing import SmoothedClassifier
from covkeras.moments.image_gradients import quick_to_image
from covkeras.runtime.validation import check_between, check_count


@dataclasses.dataclass(frozen=True)
class AttackOutcome:
    """What an attack on certified images came to, with steps up to `factor` times each certified radius.

    factor; tried: images. changed: (images,) bool, the smoothed classifier predicts another class than the certified
    one, wrong at most with probability alpha each. abstained: (images,) bool. distance: (images,) how far they went.
    """

    factor: float
    changed: np.ndarray
    abstained: np.ndarray
    distance: np.ndarray

    @property
    def tried(self) -> int:
        return len(self.changed)


def attack(
    smoothed: SmoothedClassifier, images, labels, radii, steps: int = 20, copies: int = 16, seed: int = 0
) -> np.ndarray:
    """Looks for images of another class within a Euclidean ball around each image.

    Maximises -log of the mean softmax probability of the label over noisy copies, by normalised gradient steps of
    2.5 radius / steps, projected onto the ball and [0, 1]. The copies are the same at every step: an attacker's noise
    need not be independent of anything.

    Args:
        smoothed: whose classifier and sigma are attacked. images: (images, height, width, channels) in [0, 1], on the
            8-bit grid. labels: (images,) classes to leave. radii: (images,) in [0, 1] pixel units.
        steps: of the ascent. copies: noisy copies of an image. seed: of their noise.

    Returns:
        float32 images on the 8-bit grid, each within its radius of the original.
    """
    check_attack(steps, copies, seed)
    images = np.asarray(images, np.float32)
    noise = smoothed.sigma * tf.random.stateless_normal((copies, *images.shape[1:]), [seed, 0])
    found = [
        _ascend(smoothed.classifier, image, label=label, radius=radius, steps=steps, noise=noise)
        for image, label, radius in zip(images, labels, radii, strict=True)
    ]
    return np.stack(found) if found else images


def check_attack(steps: int, copies: int, seed: int, factors: Sequence[float] = (), n: int = 1) -> None:
    """Refuses numbers that no attack has; what they are: `attack_certificates`. Raises ValueError."""
    check_count("steps", steps, 1, 10**6)
    check_count("copies", copies, 1, 2**20)
    check_count("seed", seed, 0)
    check_count("n", n)
    for factor in factors:
        check_between("factors", factor, 0, math.inf, closed="left")


def _ascend(classifier, image, label, radius, steps, noise) -> np.ndarray:
    origin, size = tf.constant(image), 2.5 * radius / steps
    at = origin
    for _ in range(steps):
        slope = _slope(classifier, at, tf.constant(label, tf.int64), noise)
        step = at + size * slope / tf.maximum(tf.norm(slope), 1e-12)
        away = step - origin
        away *= tf.minimum(1.0, radius / tf.maximum(tf.norm(away), 1e-12))
        at = tf.clip_by_value(origin + away, 0.0, 1.0)
    # Whole 255ths, towards the original: the distance only shrinks.
    grid = np.round(image * 255) + np.trunc((at.numpy() - image) * 255)
    return (np.clip(grid, 0, 255) / 255).astype(np.float32)


@tf.function(reduce_retracing=True)
def _slope(classifier, image, label, noise):
    """The gradient of -log of the mean probability of the label."""
    with tf.GradientTape() as tape, quick_to_image(classifier):
        tape.watch(image)
        logits = tf.cast(classifier(image + noise, training=False), tf.float32)
        loss = -tf.reduce_logsumexp(tf.nn.log_softmax(logits)[:, label])
    return tape.gradient(loss, image)


def attack_certificates(
    smoothed: SmoothedClassifier,
    images,
    certificates: Certificates,
    factors: Sequence[float] = (1.0, 1.5, 2.0, 3.0),
    n: int = 1_000,
    alpha: float = 0.001,
    steps: int = 20,
    copies: int = 16,
    seed: int = 1,
) -> list[AttackOutcome]:
    """Attacks every certified image at several multiples of its certified radius, and asks the smoothed classifier.

    At factor 1 a changed prediction contradicts the certificate, up to alpha of either. Args as of `attack`; n, alpha:
    of the predictions, whose noise is independent of the attack's.

    Returns:
        One AttackOutcome for each factor, over the images that are certified.
    """
    check_attack(steps, copies, seed, factors, n)
    certified = np.flatnonzero(certificates.radius > 0)
    images, labels = np.asarray(images)[certified], certificates.label[certified]
    outcomes = []
    for factor in factors:
        found = attack(
            smoothed,
            images,
            labels=labels,
            radii=factor * certificates.radius[certified],
            steps=steps,
            copies=copies,
            seed=seed,
        )
        predicted = smoothed.predict(found, n=n, alpha=alpha, seed=seed, indices=certified).label
        changed = (predicted != labels) & (predicted != ABSTAIN)
        away = (found.astype(np.float64) - images).reshape(len(found), math.prod(smoothed.image_shape))
        distance = np.linalg.norm(away, axis=1)
        outcomes.append(AttackOutcome(factor, changed, predicted == ABSTAIN, distance))
    return outcomes
