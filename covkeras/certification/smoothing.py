"""The smoothed classifier g(x) = argmax_c P(f(x + eps) = c), eps ~ N(0, sigma^2 I), and its procedures.

Each procedure is a function `..._each(smoothed, images, ...)` that yields (position, record of length 1) as the images
are done: `cohen`, with the number of samples fixed, and `deciding`, with sequential tests.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from covkeras.certification import cohen
from covkeras.certification.certificates import Certificates, Predictions, RadiusDecisions
from covkeras.certification.deciding import certify_at_each, certify_grid_each, certify_to_each
from covkeras.certification.noise import check_indices, make_noise
from covkeras.certification.rebuilding import PRECISIONS, rebuilt
from covkeras.certification.voting import Ballot
from covkeras.runtime.adapting import adapt
from covkeras.runtime.classifiers import check_classifier, check_fixed_size, check_weights, with_a_graph
from covkeras.runtime.probing import check_is_a_function, warn_of_scale
from covkeras.runtime.validation import (
    check_choice,
    check_count,
    check_images,
    check_on_tensorflow,
    check_sigma,
    check_switch,
)


class SmoothedClassifier:
    """Predicts and certifies by Monte Carlo; the votes are counted on the device, a batch of noisy copies at a time.

        smoothed = SmoothedClassifier(classifier, sigma=0.5)
        c = smoothed.certify(images, n0=100, n=100_000, alpha=0.001, seed=0)

    Every image is sampled in batches of its own, of a fixed shape, with its own stream of noise: a certificate is a
    function of (image, index, seed, n0, n, alpha, batch_size), whatever else is certified with it, bit for bit. The
    index is the image's place in what is given to one call, from `index` on: in a loop over a data set pass it,
    certify(images[k : k + 1], index=k), or every image gets the noise of image 0. (Each certificate would still hold,
    but an unlucky draw would hit all images at once.)

    Args:
        classifier: a built Keras model, images in [0, 1] to logits; or a SavedModel (loaded, or its folder) or another
            callable that says what it takes; `covkeras.adapt` makes one of what expects other images, or does not say.
        sigma: noise level, in [0, 1] pixel units.
        batch_size: noisy copies per forward pass; by default as many as suit the image's size.
        noise: "lattice", exact for images on the 8-bit grid, or "gaussian", float32 as the field samples it.
        shared_noise: one stream for all images (that of index 0) instead of one each. Drawing it is then paid once for
            a group of images. Every certificate is valid by itself just the same; but an unlucky draw hits all images
            at once, so that averages such as ACR scatter more from seed to seed.
        precision: "float32", "bfloat16" or "float16" of the layers but the last; by default the classifier's own. A
            classifier in another precision is another classifier, smoothed.classifier: its certificates speak of
            predictions made so. It is a snapshot of the one given, and answers a probe alike, or is refused.
            "float64", of all layers, is what deterministic asks for.
        strategy: a tf.distribute.Strategy whose replicas share each image's samples; of a snapshot, too.
        deterministic: whether votes should not hang on machine, threads or batch_size: in float64, where the last bits
            of a sum, which differ, come nowhere near a decision (docs/results/certification.md; several times slower).

    Raises:
        ValueError: the classifier ends in probabilities, is not built, takes integers or images of any size, has NaN
            weights, is no function of its image alone, or can't be rebuilt; sigma; batch_size; noise; precision.

    Warns where the classifier tells images from 0 to 255 apart, and those in [0, 1] not; and of void votes.
    """

    def __init__(
        self,
        classifier,
        sigma: float,
        batch_size: int | None = None,
        noise: str = "lattice",
        shared_noise: bool = False,
        precision: str | None = None,
        strategy: tf.distribute.Strategy | None = None,
        deterministic: bool = False,
    ):
        check_on_tensorflow("SmoothedClassifier")
        classifier = with_a_graph(classifier if isinstance(classifier, keras.layers.Layer) else adapt(classifier))
        check_classifier(classifier)
        check_fixed_size(classifier.inputs[0].shape[1:])
        check_is_a_function(classifier)
        self.sigma = check_sigma(sigma)
        self.noise = make_noise(noise, self.sigma)
        self.shared_noise = check_switch("shared_noise", shared_noise)
        if check_switch("deterministic", deterministic) and precision not in (None, "float64"):
            raise ValueError(f"precision must be float64 where deterministic is true, or left out, got {precision!r}.")
        precision = "float64" if deterministic else precision
        self.precision = precision if precision is None else check_choice("precision", precision, PRECISIONS)
        self.image_shape = tuple(classifier.inputs[0].shape[1:])
        self.num_classes = classifier.outputs[0].shape[-1]
        self.batch_size = (
            default_batch_size(self.image_shape)
            if batch_size is None
            else check_count("batch_size", batch_size, 1, 2**20)
        )
        self.classifier = rebuilt(classifier, self.precision, strategy)
        self.ballot = Ballot(self.classifier, self.noise, self.batch_size, shared_noise, strategy)
        self._void_seen = False
        warn_of_scale(classifier)

    def __repr__(self) -> str:
        options = {"sigma": self.sigma, "batch_size": self.batch_size, "noise": self.noise.name}
        options |= {"shared_noise": self.shared_noise, "precision": self.precision}
        given = ", ".join(f"{name}={value!r}" for name, value in options.items())
        return f"SmoothedClassifier({self.classifier.name!r}, {given})"

    def predict(
        self, images, n: int = 1_000, alpha: float = 0.001, seed: int = 0, indices=None, index: int = 0
    ) -> Predictions:
        """PREDICT: the class, or abstention where a binomial test can't tell the top two classes apart at `alpha`.

        Args:
            images: (batch, height, width, channels), floats in [0, 1].
            n: samples per image. alpha: the probability of answering with another class than g's.
            seed: of the noise. indices: (batch,), the images' numbers in their data set; by default index, index + 1,
            ... index: the first image's.

        Returns:
            Predictions: label (batch,), -1 = abstain; counts (batch, classes).
        """
        return cohen.predict(self, images, n=n, alpha=alpha, seed=seed, indices=indices, index=index)

    def certify(
        self,
        images,
        n0: int = 100,
        n: int = 100_000,
        alpha: float = 0.001,
        seed: int = 0,
        indices=None,
        progress: Callable[[int, Certificates], None] | None = None,
        index: int = 0,
        runner_up: bool = False,
    ) -> Certificates:
        """CERTIFY: the class from n0 samples, its probability's lower bound from n others, the radius from that.

        Args:
            images: (batch, height, width, channels), floats in [0, 1].
            n0: samples to choose the class. n: samples to bound its probability.
            alpha: the probability that a certificate is wrong.
            seed: of the noise. indices: (batch,), the images' numbers in their data set, which choose their noise; by
                default index, index + 1, ... index: the first image's.
            progress: called with (position, Certificates of length 1) as each image is done.
            runner_up: whether the other classes are bounded, too: the radius is then sigma / 2 (Phi^-1(p_A) -
                Phi^-1(p_B)), larger where they share what A leaves, and images of p_A below 1/2 may have one.

        Returns:
            Certificates: label (-1 = abstain), radius (float64, rounded down), p_lower, samples, seconds, p_upper,
            (batch,).

        Raises:
            TypeError, ValueError: before any work, naming the argument.
        """
        how = {"n0": n0, "n": n, "alpha": alpha, "seed": seed, "runner_up": runner_up}
        each = cohen.certify_each(self, images, indices=indices, index=index, **how)
        return Certificates.concatenate(collected(each, progress))

    def certify_each(self, images, n0, n, alpha, seed=0, indices=None, index=0) -> Iterator[Certificates]:
        """As `certify`, one image's Certificates at a time. The arguments are checked at once, the work is lazy."""
        each = cohen.certify_each(self, images, n0=n0, n=n, alpha=alpha, seed=seed, indices=indices, index=index)
        return (certificate for _, certificate in each)

    def certify_at(
        self,
        images,
        radius: float,
        alpha: float = 0.001,
        max_n: int = 100_000,
        n0: int = 0,
        seed: int = 0,
        indices=None,
        bets=None,
        give_up: float = 0.01,
        progress: Callable[[int, RadiusDecisions], None] | None = None,
        index: int = 0,
    ) -> RadiusDecisions:
        """Decides for each image whether `radius` is certified, stopping as soon as that is clear either way.

        The class is the classifier's own for the image without noise, or chosen on n0 samples; then a betting test of
        p > Phi(radius / sigma) runs on others, valid at every stopping time (`sequential`), and a second one stops
        images that are not. What stops them does not weaken the first. Where the image's own class fails and the
        samples name another one, that is tested too, on fresh samples at a tenth of alpha (the first at nine).

        Args:
            images: (batch, height, width, channels), floats in [0, 1].
            radius: in [0, 1] pixel units, >= 0. alpha: the probability that a "certified" is wrong.
            max_n: samples per image at most; an image undecided by then is not certified.
            n0: samples to choose the class, rounded up to whole blocks of 16; 0 asks the image itself. seed, indices,
                index: as for `certify`.
            bets: (batch, 2), the (a, b) of each image's bets, fixed before any sample is seen; valid whatever they
                are, and shorter where they guess p = a / (a + b) well (`informed_bet`). By default (1/2, 1/2).
            give_up: an image is given up, undecided, when its chance to be certified by max_n falls below it; 0: never.
            progress: called with (position, RadiusDecisions of length 1) as each image is decided.

        Returns:
            RadiusDecisions, one entry per image.

        Raises:
            TypeError, ValueError: before any work, naming the argument.
        """
        each = certify_at_each(
            self,
            images,
            radius=radius,
            alpha=alpha,
            max_n=max_n,
            n0=n0,
            seed=seed,
            indices=indices,
            bets=bets,
            give_up=give_up,
            index=index,
        )
        return RadiusDecisions.concatenate(collected(each, progress), radius)

    def certify_grid(
        self,
        images,
        radii: Sequence[float],
        alpha: float = 0.001,
        max_n: int = 100_000,
        n0: int = 0,
        seed: int = 0,
        indices=None,
        give_up: float = 0.01,
        progress: Callable[[int, Certificates], None] | None = None,
        index: int = 0,
    ) -> Certificates:
        """Decides a grid of radii for each image on the same samples: what a curve of certified accuracy asks.

        The radii are tested in their order, each at alpha as by `certify_at`, up to the first that is not certified;
        their common error is at most alpha (fixed-sequence testing).

        Args:
            images: (batch, height, width, channels), floats in [0, 1].
            radii: increasing, >= 0, in [0, 1] pixel units. Others as `certify_at`'s.
            progress: called with (position, Certificates of length 1) as each image is done.

        Returns:
            Certificates: radius is the largest one of the grid that is certified, so that certified accuracy at the
            grid's radii is that of finer certificates; label -1 where not even the first is.

        Raises:
            TypeError, ValueError: before any work, naming the argument.
        """
        how = {"alpha": alpha, "max_n": max_n, "n0": n0, "give_up": give_up}
        each = certify_grid_each(self, images, radii, seed=seed, indices=indices, index=index, **how)
        return Certificates.concatenate(collected(each, progress))

    def certify_to(
        self,
        images,
        tolerance: float,
        alpha: float = 0.001,
        max_n: int = 100_000,
        n0: int = 64,
        seed: int = 0,
        indices=None,
        progress: Callable[[int, Certificates], None] | None = None,
        index: int = 0,
        runner_up: bool = False,
    ) -> Certificates:
        """Certifies radii to a precision: an image's samples end when its radius is within `tolerance` of what max_n
        samples could still give it.

        The lower bound is valid at every stopping time at level alpha; at the same n it is a little below Cohen's.

        Args:
            images: (batch, height, width, channels), floats in [0, 1].
            tolerance: in [0, 1] pixel units, > 0. alpha: the probability that a certificate is wrong, and the one that
                a radius falls short by more than the tolerance.
            max_n: samples per image at most.
            n0: samples to choose the class, rounded up to whole blocks of 16. seed, indices, index: as for `certify`.
            progress: called with (position, Certificates of length 1) as each image is done.
            runner_up: whether the other classes are bounded, too, as by `certify`; at all times together.

        Returns:
            Certificates, as of `certify`.

        Raises:
            TypeError, ValueError: before any work, naming the argument.
        """
        how = {"alpha": alpha, "max_n": max_n, "n0": n0, "runner_up": runner_up}
        each = certify_to_each(self, images, tolerance=tolerance, seed=seed, indices=indices, index=index, **how)
        return Certificates.concatenate(collected(each, progress))

    def report_void(self, void, samples: int, indices) -> None:
        """Warns, once, of votes that were void: by NaN logits, for the noise's doubts are fewer than one in 10^6."""
        worst = int(np.argmax(void)) if len(void) else 0
        if len(void) and void[worst] > 1 + samples // 1_000 and not self._void_seen:
            self._void_seen = True
            warnings.warn(
                f"{void[worst]} of {samples} votes for image {indices[worst]} are void: the classifier's logits are "
                "NaN there. Void votes count against every class: its certificate is smaller, or an "
                "abstention; `void` counts them.",
                RuntimeWarning,
                stacklevel=3,
            )

    def checked(self, images, indices, index: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Returns the images as float32 and their indices (by default index, index + 1, ...), the classifier ready.

        Raises:
            TypeError, ValueError: of the images, the indices, or weights that have become NaN.
        """
        images = check_images(images, self.image_shape)
        self.noise.check(images)
        check_weights(self.classifier)
        self.ballot.renew()
        return images, check_indices(len(images), indices, index)


def default_batch_size(image_shape: tuple[int, ...]) -> int:
    """Returns the noisy copies per forward pass: 512 at 28 x 28, fewer for larger images; 16 to 1024."""
    pixels = math.prod(image_shape[:-1] if len(image_shape) > 1 else image_shape)
    return 2 ** min(10, max(4, int(math.log2(512 * 28 * 28 / pixels) + 0.5)))


def collected(each: Iterator[tuple], progress: Callable | None = None) -> list:
    """Returns the records of a procedure in the images' order; `progress` is told of each as it is done."""
    done = {}
    for position, record in each:
        done[position] = record
        if progress:
            progress(position, record)
    return [done[position] for position in sorted(done)]
