"""Counting votes: the classes of noisy copies of images, a batch of fixed shape at a time, on any number of devices."""

import math

import numpy as np
import tensorflow as tf

from covkeras.runtime.devices import is_watched
from covkeras.runtime.probing import probe_images

# Copies in a slot of a mixed batch: the least that a sequential test draws. At r = sigma a perfect image needs 40.
BLOCK = 16
# Batches whose noise is drawn at once, of small images: no more numbers than these. There an operation costs as much as
# what it does.
_DRAWN_AT_ONCE, _NUMBERS = 4, 2**18


class Ballot:
    """Evaluates noisy copies of images and counts their classes.

    A copy whose noise is void, or whose logits have no largest entry (NaN), votes for nobody. Batches have a fixed
    shape: memory does not grow with n, and the last bit of a convolution, which depends on that, does not change.

    Args:
        classifier: a built Keras model, images to logits.
        noise: of `noise.NOISES`.
        batch_size: copies per forward pass and device.
        shared: whether all images get the same noise, that of index 0.
        strategy: None, or whose replicas share the work. Which of them draws a block of noise does not change it.
    """

    def __init__(self, classifier, noise, batch_size: int, shared: bool = False, strategy=None):
        self.classifier, self.noise, self.batch_size = classifier, noise, batch_size
        self.shared, self.strategy = shared, strategy
        self.image_shape = tuple(classifier.inputs[0].shape[1:])
        self.num_classes = classifier.outputs[0].shape[-1]
        self.slots = max(1, batch_size // BLOCK)
        several = tf.TensorSpec((None, *self.image_shape), tf.float32)
        self._specs = several, tf.TensorSpec((None,), tf.int64), tf.TensorSpec((), tf.int64)
        self._compiled = {}
        self._probe, self._answers = probe_images(classifier)[:4], None

    def __getstate__(self) -> dict:
        """Of a copy, or a pickle: without what is traced."""
        if self.strategy is not None:
            raise TypeError(
                "a SmoothedClassifier with a strategy can't be copied or pickled, for its devices are this program's: "
                "copy its classifier, and make another from that."
            )
        return {**vars(self), "_compiled": {}}

    def renew(self) -> None:
        """Traces the loops anew where the classifier has changed: what a layer computes with besides its weights, such
        as an adapted Normalization, is a constant of the trace."""
        answers = np.asarray(self.classifier(self._probe, training=False))
        if self._answers is None or not np.array_equal(answers, self._answers, equal_nan=True):
            self._compiled, self._answers = {}, answers

    def count(self, images: np.ndarray, indices, phase: int, n: int, seed: int) -> np.ndarray:
        """Counts the classes of n copies of each image: float32 (images, ...) -> int64 (images, classes)."""
        several, vector, number = self._specs
        compiled = not is_watched()
        many = 1 if self.shared else self._at_once(len(images) * -(-n // self.batch_size))
        loop = self._traced(
            f"count by {many}",
            lambda *a: self._summed(lambda *r: self.loop(*a, *r, compiled=compiled, many=many)),
            *(several, vector, number, number, number),
        )
        numbers = (tf.constant(int(v), tf.int64) for v in (phase, n, seed))
        return loop(tf.constant(images), tf.constant(indices, tf.int64), *numbers).numpy()

    def _traced(self, name: str, function, *specs):
        """The function's graph; other threads may ask for it, too. Traced by hand: TensorFlow would warn of many
        classifiers' loops as of one that is traced over and over."""
        graph = self._compiled.get(name)
        if graph is None:
            graph = self._compiled[name] = tf.function(function, autograph=False).get_concrete_function(*specs)
        return graph

    def classes(self, images: np.ndarray) -> np.ndarray:
        """Returns the classes of the images without noise, 0 where no logit is largest: (images, ...) -> int64."""
        # Of a fixed shape, as all batches.
        spec = tf.TensorSpec((self.batch_size, *self.image_shape), tf.float32)
        votes = self._traced("classes", lambda x: self.votes_of(x, tf.ones([self.batch_size], tf.bool)), spec)
        found = []
        for first in range(0, len(images), self.batch_size):
            part = images[first : first + self.batch_size]
            full = np.zeros(spec.shape, np.float32)
            full[: len(part)] = part
            found.append(votes(tf.constant(full)).numpy()[: len(part)])
        classes = np.concatenate([np.zeros(0, np.int64), *found])
        return np.where(classes == self.num_classes, 0, classes)

    def loop(self, images, indices, phase, n, seed, replica=0, replicas=1, compiled: bool = False, many: int = 1):
        """`count` in the graph, its arguments int64 tensors; one replica's part: every so manieth block. compiled: of
        `draw`. many: batches whose noise is drawn at once."""
        batch = tf.minimum(n, self.batch_size)
        blocks, positions = (n + batch - 1) // batch, tf.range(batch, dtype=tf.int64)
        shape = tf.concat([[batch], tf.constant(self.image_shape, tf.int64)], 0)
        size, replica = tf.shape(images, tf.int64)[0], tf.cast(replica, tf.int64)

        def common(block, counts):
            noise, wanted = self.noise.draw(seed, 0, phase=phase, block=block, shape=shape, compiled=compiled)
            wanted &= positions < n - block * batch

            def add(i, counts):
                votes = self.votes_of(self.noise.add(images[i], noise), wanted)
                return i + 1, tf.tensor_scatter_nd_add(counts, [[i]], [self.histogram(votes)])

            return block + replicas, _repeat(add, 0, size, counts)

        def own(place, counts, some: int):
            places = place + tf.range(some, dtype=tf.int64)
            i, block = places % size, replica + replicas * (places // size)
            streams = tf.gather(indices, i), tf.fill([some], phase), block
            noise, wanted = self.noise.draw_each(seed, *streams, shape=shape, compiled=compiled)
            wanted &= positions < n - block[:, None] * batch
            noisy = self.noise.add(tf.gather(images, i)[:, None], noise)
            votes = tf.stack([self.votes_of(noisy[k], wanted[k]) for k in range(some)])
            return place + some, tf.tensor_scatter_nd_add(counts, i[:, None], self.histogram(votes))

        counts = tf.zeros([size, self.num_classes], tf.int64)
        if self.shared:
            return _repeat(common, replica, blocks, counts)
        # One loop, not one in another: the next batch's noise is drawn while this one is classified.
        return _repeat_by(many, own, (blocks - replica + replicas - 1) // replicas * size, counts)

    def votes_of(self, copies, wanted):
        """The copies' classes; `num_classes` where a copy counts for nobody."""
        # A convolution whose channels are unknown to the graph is five times slower in bfloat16.
        logits = self.classifier(tf.ensure_shape(copies, (None, *self.image_shape)), training=False)
        # An infinite logit masks its class, or wins; NaN, and nothing above -inf, have no largest entry.
        # The least finite number, not -inf: tf.debugging stops at a constant that is infinite.
        above = tf.reduce_any(logits >= logits.dtype.min, -1)
        valid = wanted & above & ~tf.reduce_any(tf.math.is_nan(logits), -1)
        return tf.where(valid, tf.cast(tf.argmax(logits, -1), tf.int32), self.num_classes)

    def histogram(self, votes):
        """Counts the votes: (..., copies) -> int64 (..., classes)."""
        size = self.num_classes + 1
        return tf.math.bincount(votes, minlength=size, maxlength=size, dtype=tf.int64, axis=-1)[..., : self.num_classes]

    def count_blocks(self, images, indices, phases, blocks, seed: int) -> np.ndarray:
        """Counts the classes of one block of `BLOCK` copies in each slot of some batches, each with its own image.

        Args:
            images: float32 (slots, ...), a multiple of `slots` times the replicas. indices, phases, blocks: (slots,).

        Returns:
            int64 (slots, classes).
        """
        several, vector, number = self._specs
        specs = (several, vector, vector, vector, number)
        many = self._at_once(len(images) // self.slots)
        loop = self._traced(f"blocks by {many}", lambda *a: self._summed(lambda *r: self._mixed(*a, *r, many)), *specs)
        vectors = (tf.constant(np.asarray(v), tf.int64) for v in (indices, phases, blocks))
        return loop(tf.constant(images), *vectors, tf.constant(seed, tf.int64)).numpy()

    def _mixed(self, images, indices, phases, blocks, seed, replica, replicas, many: int):
        """One replica's slots of `count_blocks`; zeros in the others' place."""
        indices = tf.zeros_like(indices) if self.shared else indices
        size, replica = tf.shape(images, tf.int64)[0], tf.cast(replica, tf.int64)
        batches, copies, compiled = size // (self.slots * replicas), self.slots * BLOCK, not is_watched()

        def add(i, counts, some: int):
            slots = self.slots * (replica * batches + i) + tf.range(some * self.slots, dtype=tf.int64)
            places = (tf.gather(v, slots) for v in (indices, phases, blocks))
            noise, wanted = self.noise.draw_each(seed, *places, shape=(BLOCK, *self.image_shape), compiled=compiled)
            noisy = self.noise.add(tf.gather(images, slots)[:, None], noise)
            noisy = tf.reshape(noisy, (some, copies, *self.image_shape))
            wanted = tf.reshape(wanted, (some, copies))
            votes = tf.reshape([self.votes_of(noisy[k], wanted[k]) for k in range(some)], (-1, BLOCK))
            return i + some, tf.tensor_scatter_nd_update(counts, slots[:, None], self.histogram(votes))

        return _repeat_by(many, add, batches, tf.zeros([size, self.num_classes], tf.int64))

    def _at_once(self, batches: int) -> int:
        """Of how many batches the noise is drawn at once: of one where they are few, since the graph holds the
        classifier as often."""
        most = _NUMBERS // (self.batch_size * math.prod(self.image_shape))
        return max(1, min(_DRAWN_AT_ONCE, most)) if batches >= 4 * _DRAWN_AT_ONCE * self.replicas else 1

    @property
    def replicas(self) -> int:
        return self.strategy.num_replicas_in_sync if self.strategy else 1

    def _summed(self, part):
        """Runs part(replica, replicas) on every replica and adds up the counts."""
        if self.strategy is None:
            return part(0, 1)
        each = self.strategy.run(
            lambda: part(tf.distribute.get_replica_context().replica_id_in_sync_group, self.replicas)
        )
        return self.strategy.reduce(tf.distribute.ReduceOp.SUM, each, axis=None)


def _repeat_by(many: int, step, end, counts):
    """Returns the counts after step(i, counts, so many) -> (next i, counts) from 0 to `end`, by `many` as long as so
    many are left, then one by one."""
    done = 0
    if many > 1:
        done = end // many * many
        counts = _repeat(lambda *a: step(*a, many), 0, done, counts)
    return _repeat(lambda *a: step(*a, 1), done, end, counts)


def _repeat(step, start, end, counts):
    """Returns the counts after step(i, counts) -> (next i, counts) for i from start while it is below end."""
    start = tf.cast(start, tf.int64)
    return tf.while_loop(lambda i, _: i < end, step, (start, counts), parallel_iterations=4)[1]
