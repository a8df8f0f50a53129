"""certify_at: decides one radius for every image, with as few samples as the sequential test needs.

Images that are undecided share full batches on the device: a batch is made of slots of `BLOCK` copies, a slot is an
image's next block of its own stream of noise. An image's decision depends on its blocks in their order alone, not on
which images it shared a batch with (up to a vote that hangs on a logit's last bit, which the batch may change).
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from covkeras.certification.noise import SELECTION, SEQUENTIAL
from covkeras.certification.sequential import UNINFORMED, Decision, decide, required_probability

BLOCK = 32


@dataclasses.dataclass(frozen=True)
class RadiusDecisions:
    """One entry per image. label: int64, the class tested. certified: bool, whether `radius` is certified for it.
    decided: bool; False where max_n samples did not suffice, which is not certified. samples: int64, all that were
    drawn for it; hits, trials: int64, those the decision rests on. radius: the one decided."""

    label: np.ndarray
    certified: np.ndarray
    decided: np.ndarray
    samples: np.ndarray
    hits: np.ndarray
    trials: np.ndarray
    radius: float


@dataclasses.dataclass
class _Open:
    """An image in work: its blocks given out and counted, in order."""

    position: int
    label: int
    bet: tuple[float, float]
    given: int = 0
    hits: int = 0
    trials: int = 0
    decision: Decision = Decision.UNDECIDED


def certify_at(smoothed, images, indices, radius, alpha, max_n, n0, seed, bets=None, progress=None) -> RadiusDecisions:
    """Runs the sequential test on every image; see `SmoothedClassifier.certify_at`."""
    p0 = required_probability(radius, smoothed.sigma)
    slots = max(1, smoothed.batch_size // BLOCK)
    count = _block_counter(smoothed, slots)
    selected = _selected(smoothed, images, indices, n0, seed, bets)
    done = [None] * len(images)
    active: collections.deque[_Open] = collections.deque()
    while True:
        while len(active) < slots and (image := next(selected, None)) is not None:
            active.append(image)
        if not active:
            break
        for image, hits in _counted(count, active, slots, images, indices, seed):
            _take(image, hits, p0, alpha, max_n)
        for image in [a for a in active if _finished(a, max_n)]:
            active.remove(image)
            done[image.position] = image
            if progress:
                progress(image.position, image.decision == Decision.ABOVE)
    return _decisions(done, n0, radius)


def _selected(smoothed, images, indices, n0, seed, bets) -> Iterator[_Open]:
    """Chooses each image's class on samples of their own, when its turn comes."""
    for position, (image, index) in enumerate(zip(images, indices, strict=True)):
        label = int(smoothed.votes(image, n0, seed, index, SELECTION).argmax())
        yield _Open(position, label, UNINFORMED if bets is None else tuple(map(float, bets[position])))


def _counted(count: Callable, active, slots, images, indices, seed):
    """Fills the slots with the images' next blocks, several of an image where there are fewer images than slots, and
    yields (image, hits) in each image's order."""
    chosen = [active[i % len(active)] for i in range(slots)]
    blocks = []
    for image in chosen:
        blocks.append(image.given)
        image.given += 1
    positions = [image.position for image in chosen]
    hits = count(images[positions], indices[positions], blocks, [image.label for image in chosen], seed)
    return zip(chosen, hits.tolist(), strict=True)


def _take(image: _Open, hits: int, p0: float, alpha: float, max_n: int) -> None:
    """Adds one block and looks; blocks that were drawn beyond the decision or max_n are thrown away."""
    if _finished(image, max_n):
        return
    image.hits += hits
    image.trials += BLOCK
    image.decision = Decision(int(decide(image.hits, image.trials, p0, alpha, bet=image.bet)))


def _finished(image: _Open, max_n: int) -> bool:
    return image.decision != Decision.UNDECIDED or image.trials + BLOCK > max_n


def _decisions(done: list[_Open], n0: int, radius: float) -> RadiusDecisions:
    def column(values, dtype):
        return np.array(list(values), dtype)

    return RadiusDecisions(
        label=column((d.label for d in done), np.int64),
        certified=column((d.decision == Decision.ABOVE for d in done), bool),
        decided=column((d.decision != Decision.UNDECIDED for d in done), bool),
        samples=column((n0 + d.given * BLOCK for d in done), np.int64),
        hits=column((d.hits for d in done), np.int64),
        trials=column((d.trials for d in done), np.int64),
        radius=radius,
    )


def _block_counter(smoothed, slots: int) -> Callable:
    """Compiles (images, indices, blocks, labels, seed) -> hits (slots,): one forward pass of a fixed shape."""
    shape = (BLOCK, *smoothed.image_shape)
    vector = tf.TensorSpec((slots,), tf.int64)
    signature = [
        tf.TensorSpec((slots, *smoothed.image_shape), tf.float32),
        vector,
        vector,
        vector,
        tf.TensorSpec((), tf.int64),
    ]

    @tf.function(input_signature=signature)
    def count(images, indices, blocks, labels, seed):
        noise = [smoothed.noise.draw(seed, indices[i], SEQUENTIAL, blocks[i], shape) for i in range(slots)]
        copies = images[:, None] + smoothed.sigma * tf.stack(noise)
        logits = smoothed.classifier(tf.reshape(copies, (slots * BLOCK, *smoothed.image_shape)), training=False)
        # A logit that is not finite is no hit.
        valid = tf.reduce_all(tf.math.is_finite(logits), -1)
        votes = tf.reshape(tf.where(valid, tf.argmax(logits, -1), -1), (slots, BLOCK))
        return tf.reduce_sum(tf.cast(votes == labels[:, None], tf.int64), 1)

    def call(images, indices, blocks, labels, seed):
        integers = (tf.constant(np.asarray(v), tf.int64) for v in (indices, blocks, labels))
        return count(tf.constant(images), *integers, tf.constant(seed, tf.int64)).numpy()

    return call
