"""One counter-based stream of noise per (seed, image index): Philox 4x32-10, in the kernel's own counter layout."""

import tensorflow as tf

from covkeras.validation import check_count

_PHILOX = 1
# Phases draw from disjoint parts of an image's stream.
SELECTION, ESTIMATION, PREDICTION, SEQUENTIAL = 0, 1, 2, 3
_PHASES = 4


class GaussianNoise:
    """Standard normal noise in float32, a function of (seed, image index, phase, block) alone.

    The 64-bit Philox key is the seed. The 128-bit counter's high half is 4 index + phase and its low half starts at
    block 2^40: streams are disjoint by construction, for up to 2^42 numbers a block and 2^61 images. Nothing of the
    image enters, so the noise is independent of the data.
    """

    name = "gaussian"

    def draw(self, seed, index, phase, block, shape):
        """Draws one block.

        Args:
            seed, index, phase, block: int64 scalars (tensors or numbers).
            shape: of the block, with all its dimensions known.

        Returns:
            float32 tensor of that shape.
        """
        seed, index, phase, block = (tf.cast(v, tf.int64) for v in (seed, index, phase, block))
        key = tf.bitcast(tf.reshape(seed, [1]), tf.uint64)
        counter = tf.bitcast(tf.stack([block * 2**40, index * _PHASES + phase]), tf.uint64)
        return tf.raw_ops.StatelessRandomNormalV2(shape=shape, key=key, counter=counter, alg=_PHILOX, dtype=tf.float32)


def check_seed(seed) -> int:
    """Refuses a seed that is no whole number in [0, 2^63)."""
    return check_count("seed", seed, 0, 2**63 - 1)
