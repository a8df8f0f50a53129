"""The smoothed classifier g(x) = argmax_c P(f(x + eps) = c), eps ~ N(0, sigma^2 I): PREDICT and CERTIFY of
Cohen, Rosenfeld, Kolter (ICML 2019)."""

import math
import time
from collections.abc import Callable, Iterator

import numpy as np
import scipy.stats
import tensorflow as tf

from covkeras.certification.certificates import Certificates, Predictions
from covkeras.certification.confidence import MAX_TRIALS, certified_radius, clopper_pearson_lower
from covkeras.certification.deciding import BLOCK, RadiusDecisions, certify_at
from covkeras.certification.noise import ESTIMATION, PREDICTION, SELECTION, GaussianNoise, check_seed
from covkeras.validation import check_alpha, check_between, check_classifier, check_count, check_images, check_sigma

ABSTAIN = -1


class SmoothedClassifier:
    """Predicts and certifies by Monte Carlo; the votes are counted on the device, a batch of noisy copies at a time.

        smoothed = SmoothedClassifier(classifier, sigma=0.5)
        c = smoothed.certify(images, n0=100, n=100_000, alpha=0.001, seed=0)

    Every image is sampled in batches of its own, of a fixed shape, with its own stream of noise: a certificate is a
    function of (image, index, seed, n0, n, alpha, batch_size), whatever else is certified with it, bit for bit.

    Args:
        classifier: a built Keras model, images in [0, 1] to logits.
        sigma: noise level, in [0, 1] pixel units.
        batch_size: noisy copies per forward pass; by default as many as suit the image's size.

    Raises:
        ValueError: the classifier ends in probabilities or is not built; sigma; batch_size.
    """

    def __init__(self, classifier, sigma: float, batch_size: int | None = None):
        check_classifier(classifier)
        self.classifier = classifier
        self.sigma = check_sigma(sigma)
        self.image_shape = tuple(classifier.inputs[0].shape[1:])
        self.num_classes = classifier.outputs[0].shape[-1]
        self.batch_size = (
            default_batch_size(self.image_shape) if batch_size is None else check_count("batch_size", batch_size)
        )
        self.noise = GaussianNoise()
        self._compiled = {}

    def predict(self, images, n: int = 1_000, alpha: float = 0.001, seed: int = 0, indices=None) -> Predictions:
        """PREDICT: the class, or abstention where a binomial test can't tell the top two classes apart at `alpha`.

        Args:
            images: (batch, height, width, channels), floats in [0, 1].
            n: samples per image. alpha: the probability of answering with another class than g's.
            seed: of the noise. indices: (batch,), the images' numbers in their data set; by default 0, 1, ...

        Returns:
            Predictions: label (batch,), -1 = abstain; counts (batch, classes).
        """
        check_count("n", n)
        check_alpha(alpha)
        images, indices = self._checked(images, indices)
        seed = check_seed(seed)
        votes = [self.votes(image, n, seed, index, PREDICTION) for image, index in zip(images, indices, strict=True)]
        counts = np.stack(votes) if votes else np.zeros((0, self.num_classes), np.int64)
        labels = np.array([_predicted(row, alpha) for row in counts], np.int64)
        return Predictions(labels, counts)

    def certify(
        self,
        images,
        n0: int = 100,
        n: int = 100_000,
        alpha: float = 0.001,
        seed: int = 0,
        indices=None,
        progress: Callable[[Certificates], None] | None = None,
    ) -> Certificates:
        """CERTIFY: the class from n0 samples, its probability's lower bound from n others, the radius from that.

        Args:
            images: (batch, height, width, channels), floats in [0, 1].
            n0: samples to choose the class. n: samples to bound its probability.
            alpha: the probability that a certificate is wrong.
            seed: of the noise. indices: (batch,), the images' numbers in their data set; by default 0, 1, ...
            progress: called with each image's Certificates of length 1, as it is done.

        Returns:
            Certificates: label (-1 = abstain), radius (float64, rounded down), p_lower, samples, seconds, (batch,).

        Raises:
            TypeError, ValueError: before any work, naming the argument.
        """
        done = []
        for certificate in self.certify_each(images, n0, n, alpha, seed, indices):
            done.append(certificate)
            if progress:
                progress(certificate)
        return Certificates.concatenate(done)

    def certify_each(self, images, n0, n, alpha, seed=0, indices=None) -> Iterator[Certificates]:
        """As `certify`, one image's Certificates at a time. The arguments are checked at once, the work is lazy."""
        check_count("n0", n0)
        check_count("n", n, high=MAX_TRIALS)
        check_alpha(alpha)
        seed = check_seed(seed)
        images, indices = self._checked(images, indices)
        return (
            self._certify_one(image, index, n0, n, alpha, seed) for image, index in zip(images, indices, strict=True)
        )

    def _certify_one(self, image, index, n0, n, alpha, seed) -> Certificates:
        start = time.perf_counter()
        selection = self.votes(image, n0, seed, index, SELECTION)
        label = int(selection.argmax())
        hits = int(self.votes(image, n, seed, index, ESTIMATION)[label])
        p_lower = float(clopper_pearson_lower(hits, n, alpha))
        radius = float(certified_radius(p_lower, self.sigma))
        # p_lower <= 1/2 abstains. So does a radius of 0: it claims nothing.
        label = label if radius > 0 else ABSTAIN
        return Certificates.single(label, radius, p_lower, n0 + n, time.perf_counter() - start)

    def certify_at(
        self,
        images,
        radius: float,
        alpha: float = 0.001,
        max_n: int = 100_000,
        n0: int = 100,
        seed: int = 0,
        indices=None,
        bets=None,
        progress: Callable[[int, bool], None] | None = None,
    ) -> RadiusDecisions:
        """Decides for each image whether `radius` is certified, stopping as soon as that is clear either way.

        The class is chosen on n0 samples of their own; then a betting test of p > Phi(radius / sigma) runs on others,
        valid at every stopping time (`sequential`), and a second one stops hopeless images.

        Args:
            images: (batch, height, width, channels), floats in [0, 1].
            radius: in [0, 1] pixel units, >= 0. alpha: the probability that a "certified" is wrong.
            max_n: samples per image at most; an image undecided by then is not certified.
            n0, seed, indices: as for `certify`.
            bets: (batch, 2), the (a, b) of each image's bets, fixed before any sample is seen; valid whatever they
                are, and shorter where they guess p = a / (a + b) well. By default (1/2, 1/2).
            progress: called with (position, certified) as each image is decided.

        Returns:
            RadiusDecisions, one entry per image.

        Raises:
            TypeError, ValueError: before any work, naming the argument.
        """
        check_between("radius", radius, 0, math.inf, closed="left")
        check_alpha(alpha)
        check_count("n0", n0)
        check_count("max_n", max_n, BLOCK, 10**9)
        seed = check_seed(seed)
        images, indices = self._checked(images, indices)
        if bets is not None:
            bets = np.asarray(bets, np.float64)
            if bets.shape != (len(images), 2) or not np.isfinite(bets).all() or (bets <= 0).any():
                raise ValueError(f"bets must be {len(images)} pairs (a, b) above 0, one for each image, got {bets!r}.")
        return certify_at(self, images, indices, radius, alpha, max_n, n0, seed, bets, progress)

    def votes(self, image, n: int, seed: int, index: int, phase: int) -> np.ndarray:
        """Counts the classes of n noisy copies of one image (height, width, channels) -> (classes,) int64.

        A copy with a logit that is not finite votes for nobody, and still counts among the n.
        """
        batch = min(n, self.batch_size)
        if batch not in self._compiled:
            self._compiled[batch] = tf.function(lambda *a: self._votes(batch, *a), input_signature=self._signature)
        arguments = (tf.constant(image, tf.float32), *(tf.constant(int(v), tf.int64) for v in (seed, index, phase, n)))
        return self._compiled[batch](*arguments).numpy()

    @property
    def _signature(self):
        return [tf.TensorSpec(self.image_shape, tf.float32), *[tf.TensorSpec((), tf.int64)] * 4]

    def _votes(self, batch, image, seed, index, phase, n):
        """The loop of `votes`, in the graph. Each step evaluates one batch of fixed shape: memory does not grow with n,
        and the last bit of a convolution, which depends on the batch's shape, does not change."""
        blocks = (n + batch - 1) // batch
        positions = tf.range(batch, dtype=tf.int64)

        def count(block, counts):
            noise = self.noise.draw(seed, index, phase, block, (batch, *self.image_shape))
            logits = self.classifier(image + self.sigma * noise, training=False)
            valid = tf.reduce_all(tf.math.is_finite(logits), -1) & (positions < n - block * batch)
            # Class `num_classes` collects what does not count.
            vote = tf.where(valid, tf.argmax(logits, -1), self.num_classes)
            size = self.num_classes + 1
            counted = tf.math.bincount(tf.cast(vote, tf.int32), minlength=size, maxlength=size, dtype=tf.int64)
            return block + 1, counts + counted[: self.num_classes]

        start = (tf.constant(0, tf.int64), tf.zeros([self.num_classes], tf.int64))
        return tf.while_loop(lambda block, _: block < blocks, count, start, parallel_iterations=4)[1]

    def _checked(self, images, indices):
        images = check_images(images, self.image_shape)
        indices = np.arange(len(images)) if indices is None else np.asarray(indices)
        if indices.shape != (len(images),) or not np.issubdtype(indices.dtype, np.integer) or (indices < 0).any():
            raise ValueError(
                f"indices must be {len(images)} whole numbers >= 0, one for each image, got shape {indices.shape} of "
                f"{indices.dtype}."
            )
        return images, indices


def default_batch_size(image_shape: tuple[int, ...]) -> int:
    """Returns the noisy copies per forward pass: 512 at 28 x 28, fewer for larger images; 16 to 1024."""
    pixels = math.prod(image_shape[:-1] if len(image_shape) > 1 else image_shape)
    return 2 ** min(10, max(4, int(math.log2(512 * 28 * 28 / pixels) + 0.5)))


def _predicted(counts: np.ndarray, alpha: float) -> int:
    second, first = np.sort(counts)[-2:]
    if first == 0 or scipy.stats.binomtest(int(first), int(first + second), 0.5).pvalue > alpha:
        return ABSTAIN
    return int(counts.argmax())
