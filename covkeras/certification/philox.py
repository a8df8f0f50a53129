"""Philox 4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011): the bits of certification's noise, of many streams at once.

A bit is a function of its place alone: TensorFlow's operations give it stream by stream, and a loop that XLA compiles
gives the same ones (tested) for all streams together.
"""

import tensorflow as tf

PHASES = 4
# Whose streams are apart.
MAX_IMAGES = 2**61
_ALGORITHM = 1
_ROUNDS = 10
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85
# Few streams are as quick one by one, and nothing is compiled for them.
_MANY = 8
# Compiled for each size: sizes that differ from draw to draw are rounded up.
_BUCKET = 2048


class Streams:
    """Some blocks' streams: group g of one holds four words, of 32 bits, at counter (block 2^40 + g, 4 index + phase).

    The 64-bit key is the seed. Streams are disjoint by construction, for up to 2^42 words a block and 2^61 images.
    Nothing of the image enters, so the noise is independent of the data.

    Args:
        seed: a number. index, phase, block: (slots,), of a size known to the graph.
        compiled: whether XLA may compile the work, where the streams are many.
    """

    def __init__(self, seed, index, phase, block, compiled: bool = False):
        seed, index, phase, block = (tf.cast(v, tf.int64) for v in (seed, index, phase, block))
        self.seed, self.compiled = seed, compiled and index.shape[0] > _MANY
        self.low, self.high = block * 2**40, index * PHASES + phase

    def normal(self, shape):
        """Returns standard normal numbers, float32 (slots, *shape)."""
        how = {"shape": shape, "alg": _ALGORITHM, "dtype": tf.float32}
        drawn = [tf.raw_ops.StatelessRandomNormalV2(key=key, counter=place, **how) for key, place in self._places()]
        return tf.stack(drawn)

    def words(self, count):
        """Returns the first words of each, uint32 (slots, at least `count`)."""
        if not self.compiled:
            return tf.stack([_uniform(count, place, tf.uint32) for place in self._places()])
        low = self.low[:, None] + tf.range((tf.cast(count, tf.int64) + 3) // 4)
        high = tf.broadcast_to(self.high[:, None], tf.shape(low))
        words = _groups_compiled(self.seed, tf.reshape(low, [-1]), tf.reshape(high, [-1]))
        return tf.reshape(words, [tf.shape(low)[0], -1])

    def pairs(self, ends, slot, after: int):
        """Returns pairs of words, uint64 (pairs,), each stream's from its group `after` on: of the first stream, then
        of the next.

        ends: (slots + 1,), where each one's begin and end. slot: (pairs,), the stream of each.
        """
        if not self.compiled:
            counts = tf.unstack(ends[1:] - ends[:-1])
            drawn = [_uniform(n, place, tf.uint64) for n, place in zip(counts, self._places(after), strict=True)]
            return tf.concat(drawn, 0)
        size = tf.shape(slot, tf.int64)[0]
        rank = tf.range(size) - tf.cast(tf.gather(ends, slot), tf.int64)
        low, high = tf.gather(self.low, slot) + after + rank // 2, tf.gather(self.high, slot)
        more = [[0, _BUCKET - size % _BUCKET]]
        words = _groups_compiled(self.seed, tf.pad(low, more), tf.pad(high, more))
        pairs = tf.bitcast(tf.reshape(words, [-1, 2, 2]), tf.uint64)
        return tf.gather(tf.reshape(pairs, [-1]), 2 * tf.range(size) + rank % 2)

    def _places(self, after: int = 0) -> list:
        """Returns each stream's (key, counter), uint64, `after` so many groups."""
        key = tf.bitcast(tf.reshape(self.seed, [1]), tf.uint64)
        counters = tf.bitcast(tf.stack([self.low + after, self.high], 1), tf.uint64)
        return [(key, counter) for counter in tf.unstack(counters)]


def _uniform(count, place, dtype):
    """So many uniform whole numbers of a stream's place."""
    key, counter = place
    shape = tf.reshape(tf.cast(count, tf.int64), [1])
    how = {"alg": _ALGORITHM, "dtype": dtype}
    return tf.raw_ops.StatelessRandomUniformFullIntV2(shape=shape, key=key, counter=counter, **how)


def _groups(seed, low, high):
    """The four words at each counter: key (), counters' halves (groups,), int64 -> uint32 (groups, 4)."""
    key, counters = _halves(seed), [*_halves(low), *_halves(high)]

    def mixed(i, c0, c1, c2, c3, k0, k1):
        (high0, low0), (high1, low1) = (_product(m, c) for m, c in zip(_MULTIPLIERS, (c0, c2), strict=True))
        keys = (k + tf.constant(w, tf.uint32) for k, w in zip((k0, k1), _WEYL, strict=True))
        return i + 1, _xor(high1, c1, k0), low1, _xor(high0, c3, k1), low0, *keys

    # A loop: written out, the compiler computes all rounds anew for each of the four words.
    loop = tf.while_loop(lambda i, *_: i < _ROUNDS, mixed, (0, *counters, *key))
    return tf.stack(loop[1:5], -1)


# Not in a graph for serving: the server may have no compiler.
_groups_compiled = tf.function(
    _groups,
    input_signature=[tf.TensorSpec(shape, tf.int64) for shape in ((), (None,), (None,))],
    autograph=False,
    jit_compile=True,
)


def _halves(numbers):
    """The lower and the upper 32 bits."""
    return tf.unstack(tf.bitcast(numbers, tf.uint32), axis=-1)


def _product(factor: int, numbers):
    """The upper and the lower 32 bits of the product."""
    whole = tf.cast(numbers, tf.uint64) * tf.constant(factor, tf.uint64)
    return tf.cast(tf.bitwise.right_shift(whole, tf.constant(32, tf.uint64)), tf.uint32), tf.cast(whole, tf.uint32)


def _xor(a, b, c):
    return tf.bitwise.bitwise_xor(tf.bitwise.bitwise_xor(a, b), c)
