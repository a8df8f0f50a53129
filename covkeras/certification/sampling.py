"""Sampling images until a rule of `stopping` is content, undecided images sharing full batches on the device.

A batch is made of slots of `BLOCK` copies; a slot is an image's next block of its own stream of noise, first those that
choose its class, then those that count. What is decided of an image depends on its blocks in their order alone, not on
which images it shared a batch with (up to a vote that hangs on a logit's last bit, which the batch may change).
"""

import collections
import dataclasses
import itertools
import time
from collections.abc import Iterator

import numpy as np

from covkeras.certification.noise import SELECTION, SEQUENTIAL
from covkeras.certification.voting import BLOCK


@dataclasses.dataclass
class Sampled:
    """An image in work, or done.

    position: in the images given. votes: (classes,), of the class-choosing samples. label: the class they chose. hits,
    trials: votes for it among the samples that count. void: samples that vote for nobody.
    given: blocks drawn. verdict: the rule's, None as long as it
    wants more samples. seconds: its samples' share of the time.
    """

    position: int
    votes: np.ndarray
    label: int = -1
    hits: int = 0
    trials: int = 0
    void: int = 0
    given: int = 0
    verdict: object = None
    seconds: float = 0.0


def sample_until(ballot, images, indices, seed: int, n0: int, max_n: int, rule) -> Iterator[Sampled]:
    """Yields each image when the rule has a verdict on it, or after max_n samples, in the order of finishing.

    Args:
        ballot: a `Ballot`. images: float32 (images, height, width, channels). indices: (images,). seed: of the noise.
        n0: samples to choose the class, rounded up to whole blocks. max_n: samples that count, at most.
        rule: rule(positions, hits, trials) -> one verdict each, or None for more samples.
    """
    slots, first = ballot.slots * ballot.replicas, -(-n0 // BLOCK)
    waiting = (Sampled(position, np.zeros(ballot.num_classes, np.int64)) for position in range(len(images)))
    active: collections.deque[Sampled] = collections.deque(itertools.islice(waiting, slots))
    started, drawn = time.perf_counter(), 0
    while active:
        blocks = _next_blocks(active, slots, first)
        positions = [image.position for image, _ in blocks]
        phases = [SELECTION if block < first else SEQUENTIAL for _, block in blocks]
        numbers = [block if block < first else block - first for _, block in blocks]
        counts = ballot.count_blocks(images[positions], indices[positions], phases, numbers, seed)
        _take(blocks, counts, first, max_n, rule)
        drawn += slots * BLOCK
        for image in [a for a in active if a.verdict is not None or a.trials + BLOCK > max_n]:
            active.remove(image)
            image.seconds = (time.perf_counter() - started) * image.given * BLOCK / drawn
            yield image
        active.extend(itertools.islice(waiting, slots - len(active)))


def _next_blocks(active, slots: int, first: int) -> list[tuple[Sampled, int]]:
    """Fills the slots with the images' next blocks, several of an image where there are fewer images than slots."""
    chosen = []
    for i in range(slots):
        image = active[i % len(active)]
        chosen.append((image, image.given))
        image.given += 1
    return chosen


def _take(blocks, counts, first: int, max_n: int, rule) -> None:
    """Adds each image's blocks in their order and asks the rule after each; what is drawn beyond a verdict, or beyond
    max_n, is thrown away."""
    looks, hits, trials = [], {}, {}
    for (image, block), row in zip(blocks, counts, strict=True):
        image.void += BLOCK - int(row.sum())
        if block < first:
            image.votes += row
            image.label = int(image.votes.argmax())
            continue
        at = image.position
        hits[at] = hits.get(at, image.hits) + int(row[image.label])
        trials[at] = trials.get(at, image.trials) + BLOCK
        if trials[at] <= max_n:
            looks.append((image, hits[at], trials[at]))
    if not looks:
        return
    images, hits, trials = zip(*looks, strict=True)
    verdicts = rule(np.array([i.position for i in images]), np.array(hits), np.array(trials))
    for image, h, t, verdict in zip(images, hits, trials, verdicts, strict=True):
        if image.verdict is None:
            image.hits, image.trials, image.verdict = h, t, verdict
