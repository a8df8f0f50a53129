"""The served graphs: what each signature computes, image by image, from the same parts as `SmoothedClassifier`.

Every input and output shares the batch axis, so that the server may batch requests; a value out of range ends in an
INVALID_ARGUMENT before any sample is drawn. An image's answer does not depend on the batch it came in.
"""

import math

import tensorflow as tf

from covkeras.certification.certificates import ABSTAIN
from covkeras.certification.confidence import certified_radius, clopper_pearson_lower, top_two_differ
from covkeras.certification.noise import ESTIMATION, PREDICTION, SELECTION, SEQUENTIAL
from covkeras.certification.sequential import one_sided_log_wealth, required_probability, wealth_limit
from covkeras.certification.smoothing import SmoothedClassifier
from covkeras.certification.special import TENSORFLOW
from covkeras.certification.voting import BLOCK

# Blocks that the sequential test draws between two looks at the device; it looks after every block.
_STRIDE = 16
# Blocks that choose the class.
_CHOOSING = 4


class ServedGraphs:
    """Builds the graphs of one smoothed classifier.

    Args:
        smoothed: the classifier, sigma and noise.
        max_samples: above which a request is refused.
        key: two secret 64-bit numbers. The noise of a request without a seed is a keyed hash of the image.
    """

    def __init__(self, smoothed: SmoothedClassifier, max_samples: int, key: tuple[int, int]):
        self.smoothed, self.max_samples, self.key = smoothed, max_samples, key
        self.exact = smoothed.noise.name == "lattice"

    def checked_images(self, images):
        """Refuses images that are not finite or not in [0, 1]."""
        finite, inside = tf.math.is_finite(images), (images >= 0.0) & (images <= 1.0)
        with tf.control_dependencies(
            [
                require(finite, "images must be finite, got NaN or infinity"),
                require(inside, "images must lie in [0, 1]: divide 8-bit values by 255"),
            ]
        ):
            return tf.identity(images)

    def seeds(self, images):
        """Returns each image's seed, int64: SipHash of its values under the secret key. The same image gets the same
        noise on any replica and in any batch; who doesn't know the key can't predict it."""
        content = tf.map_fn(tf.io.serialize_tensor, images, fn_output_signature=tf.string)
        return tf.strings.to_hash_bucket_strong(content, 2**63 - 1, key=list(self.key))

    def on_grid(self, images):
        """Returns the images rounded to the 8-bit grid, and how far that is, (batch,) float64, rounded up.

        Exact noise needs the grid. A ball of radius R around the rounded image holds one of radius R minus the distance
        around the image itself, which is what may be claimed of it.
        """
        if not self.exact:
            return images, tf.zeros(tf.shape(images)[:1], tf.float64)
        levels = tf.round(images * 255.0)
        off = tf.cast(images * 255.0 - levels, tf.float64)
        # An 8-bit value that went through float32 is on the grid, as `SmoothedClassifier` takes it.
        off = tf.where(tf.abs(off) <= 1e-4, tf.zeros_like(off), (tf.abs(off) + 1e-4) / 255.0)
        distance = tf.sqrt(tf.reduce_sum(tf.square(off), list(range(1, len(images.shape))))) * (1.0 + 1e-9)
        return levels / 255.0, distance

    def certify(self, images, n0, n, alpha, seed):
        """CERTIFY for each image: what `SmoothedClassifier.certify(image, ..., indices=[0])` gives.

        Args:
            images: float32 (batch, height, width, channels) in [0, 1]. n0, n, seed: int64 (batch,). alpha: float64
                (batch,).

        Returns:
            label int64 (-1 = abstain), radius float64, p_lower float64, samples int64, (batch,).
        """
        numbers = [
            require((n0 >= 1) & (n0 <= self.max_samples), f"n0 must lie in [1, {self.max_samples}]"),
            require((n >= 1) & (n <= self.max_samples), f"n must lie in [1, {self.max_samples}]"),
            require((alpha > 0) & (alpha < 1), "alpha must lie in (0, 1); the field uses 0.001"),
            require(
                tf.cast(n, tf.float64) * math.log(2.0) > -tf.math.log(alpha),
                "n must be above log2(1 / alpha), 10 at alpha 0.001: fewer samples certify nothing, whatever the votes",
            ),
            require(seed >= 0, "seed must be at least 0"),
        ]
        with tf.control_dependencies(numbers):
            grid, distance = self.on_grid(self.checked_images(images))
        top, hits = self._per_image(grid, lambda i, image: self._counts(image, n0[i], n[i], seed[i]), 2)
        p_lower = clopper_pearson_lower(hits, n, alpha)
        # Subtraction rounds: a little less is not too large.
        radius = tf.maximum(certified_radius(p_lower, self.smoothed.sigma) - distance, 0.0)
        radius = tf.where(distance > 0, radius * (1.0 - 4e-15), radius)
        label = tf.where(radius > 0, top, ABSTAIN)
        return label, radius, p_lower, n0 + n

    def _counts(self, image, n0, n, seed):
        """The class of n0 samples and its votes among n others."""
        top = tf.argmax(self._votes(image, SELECTION, n0, seed))
        return top, self._votes(image, ESTIMATION, n, seed)[top]

    def _votes(self, image, phase, n, seed):
        zero = tf.zeros([1], tf.int64)
        return self.smoothed.ballot.loop(image[None], zero, tf.constant(phase, tf.int64), n, seed)[0]

    def _per_image(self, images, work, outputs: int):
        """Runs work(i, image) -> int64 scalars for each image in turn: memory does not grow with the batch."""
        count = tf.shape(images)[0]
        arrays = [tf.TensorArray(tf.int64, size=count) for _ in range(outputs)]

        def step(i, *arrays):
            values = work(i, images[i])
            return (i + 1, *(a.write(i, v) for a, v in zip(arrays, values, strict=True)))

        done = tf.while_loop(lambda i, *_: i < count, step, (0, *arrays), parallel_iterations=1)
        return tuple(tf.ensure_shape(a.stack(), [None]) for a in done[1:])

    def predict(self, images, n: int, alpha: float):
        """PREDICT: the class, -1 where a binomial test can't tell the top two apart at alpha. int64 (batch,), twice:
        class and votes for it."""
        grid, _ = self.on_grid(self.checked_images(images))
        seeds = self.seeds(grid)

        def work(i, image):
            votes, order = tf.math.top_k(self._votes(image, PREDICTION, tf.constant(n, tf.int64), seeds[i]), 2)
            sure = top_two_differ(votes[0], votes[1], alpha, TENSORFLOW)
            return tf.where(sure, tf.cast(order[0], tf.int64), ABSTAIN), votes[0]

        return self._per_image(grid, work, 2)

    def certify_at(self, images, radius, alpha, seed):
        """Decides for each image whether `radius` is certified, stopping as soon as that is clear: the test of
        `SmoothedClassifier.certify_at` with n0=64 and give_up=0 on the same stream.

        Args:
            images: as for `certify`. radius, alpha: float64 (batch,). seed: int64 (batch,).

        Returns:
            certified int64 (0 or 1), label, samples, int64 (batch,).
        """
        numbers = [
            require((radius >= 0) & (radius < math.inf), "radius must be a number at least 0"),
            require((alpha > 0) & (alpha < 1), "alpha must lie in (0, 1); the field uses 0.001"),
            require(seed >= 0, "seed must be at least 0"),
        ]
        with tf.control_dependencies(numbers):
            grid, distance = self.on_grid(self.checked_images(images))
        sigma = self.smoothed.sigma
        # The distance to the grid must be covered too; the sum, rounded up.
        p0 = required_probability((radius + distance) * (1 + 4e-15), sigma, TENSORFLOW)
        return self._per_image(grid, lambda i, image: self._decided(image, p0[i], alpha[i], seed[i]), 3)

    def _decided(self, image, p0, alpha, seed):
        top = tf.argmax(self._votes_of_blocks(image, SELECTION, tf.constant(0, tf.int64), _CHOOSING, seed, None))
        limit, ends = wealth_limit(alpha, TENSORFLOW), self.max_samples // BLOCK

        def step(blocks, hits, verdict):
            # Looks after each block, as in Python; a verdict is the first one reached.
            new = self._votes_of_blocks(image, SEQUENTIAL, blocks, _STRIDE, seed, top)
            total = hits + tf.cumsum(new)
            counts = blocks + tf.range(1, _STRIDE + 1, dtype=tf.int64)
            above = one_sided_log_wealth(total, counts * BLOCK, p0, True, on=TENSORFLOW) >= limit
            below = one_sided_log_wealth(total, counts * BLOCK, p0, False, on=TENSORFLOW) >= limit
            open_ = (counts <= ends) & (above | below)
            first = tf.argmax(tf.cast(open_, tf.int32))
            verdict = tf.where(tf.reduce_any(open_), tf.where(above[first], 1, -1), 0)
            return blocks + _STRIDE, total[-1], verdict

        start = (tf.constant(0, tf.int64), tf.constant(0, tf.int64), tf.constant(0))
        going = lambda blocks, hits, verdict: (verdict == 0) & (blocks < ends)  # noqa: E731
        blocks, _, verdict = tf.while_loop(going, step, start, parallel_iterations=1)
        return tf.cast(verdict == 1, tf.int64), top, (blocks + _CHOOSING) * BLOCK

    def _votes_of_blocks(self, image, phase, first, count: int, seed, label):
        """The class counts of `count` blocks together, (classes,); with a label its hits in each, (count,). int64."""
        ballot, shape = self.smoothed.ballot, (BLOCK, *self.smoothed.image_shape)
        places = tf.zeros([count], tf.int64), tf.fill([count], phase), first + tf.range(count, dtype=tf.int64)
        noise, wanted = ballot.noise.draw_each(seed, *places, shape=shape)
        copies = tf.reshape(noise, (count * BLOCK, *self.smoothed.image_shape))
        votes = ballot.votes_of(ballot.noise.add(image, copies), tf.reshape(wanted, [-1]))
        if label is None:
            return ballot.histogram(votes)
        hit = tf.reshape(tf.cast(votes, tf.int64) == label, (count, BLOCK))
        return tf.reduce_sum(tf.cast(hit, tf.int64), 1)


def require(conditions, message: str):
    """An op that fails with INVALID_ARGUMENT and the message unless all conditions hold."""
    return tf.debugging.Assert(tf.reduce_all(conditions), [message])


def rounded_down(radius):
    """float64 to float32, never up."""
    nearest = tf.cast(radius, tf.float32)
    too_large = tf.cast(nearest, tf.float64) > radius
    return tf.where(too_large, tf.math.nextafter(nearest, tf.zeros_like(nearest)), nearest)
