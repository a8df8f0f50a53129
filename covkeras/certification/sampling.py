"""Sampling images until a rule of `stopping` is content, undecided images sharing full batches on the device.

A batch is made of slots of `BLOCK` copies; a slot is an image's next block of its own stream of noise, first those that
choose its class, then those that count. The oldest images are served first: few are in work, and little is lost when
the work ends early. What is decided of an image depends on its blocks in their order alone, not on which images it
shared a batch with (up to a vote that hangs on a logit's last bit, which the batch may change).

Where the class is the image's own, without noise (`labels`), no sample is spent on choosing it: it is a function of the
image alone. Where the rule then finds nothing to certify, and the samples name another class, that one is tried on
fresh samples, once. The rule knows which of the two tests it looks at, and shares alpha between them.
"""

import collections
import dataclasses
import itertools
import time
from collections.abc import Iterator

import numpy as np

from covkeras.certification.noise import SELECTION, SEQUENTIAL
from covkeras.certification.voting import BLOCK

# Batches at once: the next one's noise is drawn while one is classified. More of small images, a million numbers or so:
# what is done once a call costs as much as they do.
_FEWEST, _MOST, _NUMBERS = 4, 16, 2**20
# Of the blocks that an image has had, one in so many more is drawn at once: little is lost beyond its verdict.
_SHARE = 32


@dataclasses.dataclass
class Sampled:
    """An image in work, or done.

    position: in the images given. votes: (classes,), of all samples so far. label: the class in question. hits,
    trials: votes for it among the samples that count. void: samples that vote for nobody. given: blocks drawn. next:
    the number of the next one. again: whether it is another class than the first, after `spent` samples on that.
    verdict: the rule's, None as long as it wants more samples. seconds: its samples' share of the time. before: the
    votes that don't count.
    """

    position: int
    votes: np.ndarray
    label: int = -1
    hits: int = 0
    trials: int = 0
    void: int = 0
    given: int = 0
    next: int = 0
    again: bool = False
    spent: int = 0
    verdict: object = None
    seconds: float = 0.0
    before: np.ndarray | int = 0


def sample_until(ballot, images, indices, seed: int, n0: int, max_n: int, rule, labels=None) -> Iterator[Sampled]:
    """Yields each image when the rule has a verdict on it, or after max_n samples, in the order of finishing.

    Args:
        ballot: a `Ballot`. images: float32 (images, height, width, channels). indices: (images,). seed: of the noise.
        n0: samples to choose the class, rounded up to whole blocks. max_n: samples that count, at most.
        rule: rule(positions, hits, trials, again) -> one verdict each, or None for more samples; `rule.may_gain(votes,
            verdict)`, whether it is worth while to try the class that most samples name.
        labels: (images,), the classes in question where n0 is 0; functions of the images alone.
    """
    slots, first = ballot.slots * ballot.replicas, -(-n0 // BLOCK)
    most = batches_at_once(ballot, images) * slots
    waiting = (
        Sampled(position, np.zeros(ballot.num_classes, np.int64), -1 if labels is None else int(labels[position]))
        for position in range(len(images))
    )
    active: collections.deque[Sampled] = collections.deque(itertools.islice(waiting, most))
    started, drawn = time.perf_counter(), 0
    while active:
        blocks = _next_blocks(active, slots, most, max_n)
        positions = [image.position for image, _ in blocks]
        phases = [SELECTION if block < first else SEQUENTIAL for _, block in blocks]
        numbers = [block if block < first else block - first for _, block in blocks]
        counts = ballot.count_blocks(images[positions], indices[positions], phases, numbers, seed)
        _take(blocks, counts, first, max_n, rule)
        drawn += len(blocks) * BLOCK
        for image in active:
            if labels is not None and image.verdict is not None and not image.again:
                _try_another(image, rule, max_n)
        for image in [a for a in active if a.verdict is not None or a.spent + a.trials + BLOCK > max_n]:
            active.remove(image)
            image.seconds = (time.perf_counter() - started) * image.given * BLOCK / drawn
            yield image
        room = most - sum(_share(image, max_n) for image in active)
        active.extend(itertools.islice(waiting, max(0, room)))


def batches_at_once(ballot, images) -> int:
    """Returns how many of its batches a call takes."""
    return min(_MOST, max(_FEWEST, _NUMBERS // (ballot.slots * BLOCK * max(1, images[:1].size))))


def _try_another(image: Sampled, rule, max_n: int) -> None:
    """Begins anew with the class that most samples named, where that may certify what the first class did not."""
    other = int(image.votes.argmax())
    if other == image.label or image.trials + BLOCK > max_n or not rule.may_gain(image.votes, image.verdict):
        return
    image.label, image.again, image.spent = other, True, image.trials
    image.hits, image.trials, image.verdict, image.before = 0, 0, None, image.votes.copy()


def _share(image: Sampled, max_n: int) -> int:
    """How many blocks an image may have at once: what is drawn beyond its verdict is lost."""
    left = (max_n - image.spent - image.trials) // BLOCK
    return max(1, min(image.given // _SHARE, left))


def _next_blocks(active, slots: int, most: int, max_n: int) -> list[tuple[Sampled, int]]:
    """Fills whole batches of slots, up to `most`, with the images' next blocks, the oldest images' first; one batch in
    turns, more than an image's share, where there is too little for it."""
    shares = [_share(image, max_n) for image in active]
    count = max(1, min(sum(shares), most) // slots) * slots
    turns = itertools.chain.from_iterable(map(itertools.repeat, active, shares))
    chosen = []
    for image in itertools.islice(itertools.chain(turns, itertools.cycle(active)), count):
        chosen.append((image, image.next))
        image.given += 1
        image.next += 1
    return chosen


def _take(blocks, counts, first: int, max_n: int, rule) -> None:
    """Adds each image's blocks in their order and asks the rule after each; what is drawn beyond a verdict, or beyond
    max_n, is thrown away."""
    looks, last, trials = [], {}, {}
    for (image, block), row in zip(blocks, counts, strict=True):
        image.void += BLOCK - int(row.sum())
        if block < first:
            image.votes += row
            image.label, image.before = int(image.votes.argmax()), image.votes.copy()
            continue
        at = image.position
        hits = int(row[image.label]) + (looks[last[at]][2] if at in last else image.hits)
        trials[at] = trials.get(at, image.trials) + BLOCK
        total = row + (looks[last[at]][4] if at in last else image.votes)
        if image.spent + trials[at] <= max_n:
            last[at] = len(looks)
            looks.append((image, block, hits, trials[at], total))
    if not looks:
        return
    images, numbers, hits, trials, totals = zip(*looks, strict=True)
    again = np.array([i.again for i in images])
    more = {}
    if getattr(rule, "runner_up", False):
        more["others"] = np.array([_others(i, t, v) for i, t, v in zip(images, trials, totals, strict=True)])
    verdicts = rule(np.array([i.position for i in images]), np.array(hits), np.array(trials), again, **more)
    for image, number, h, t, total, verdict in zip(images, numbers, hits, trials, totals, verdicts, strict=True):
        if image.verdict is None:
            image.hits, image.trials, image.votes, image.verdict, image.next = h, t, total, verdict, number + 1


def _others(image: Sampled, trials: int, votes) -> int:
    """The most votes that another class may have of the samples that count; a void one may have been any class'."""
    counted = votes - image.before
    void = trials - int(counted.sum())
    counted[image.label] = 0
    return int(counted.max()) + void
