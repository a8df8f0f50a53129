"""The noise of certification: one counter-based stream per (seed, image index), Philox 4x32-10.

`LatticeNoise` is exact and the default. `GaussianNoise` is what the field samples: its float32 sums are rounded, which
lets the low bits of a noisy image tell what the image was.
"""

import numpy as np
import scipy.special
import tensorflow as tf

from covkeras.certification import philox
from covkeras.runtime.validation import check_choice, check_count, check_sigma

# Phases draw from disjoint parts of an image's stream.
SELECTION, ESTIMATION, PREDICTION, SEQUENTIAL = range(philox.PHASES)
_BITS = 60
# Phi in float64 is good to 1e-15, so 2^60 Phi to 1,200: the true threshold lies within this of the computed one.
_DOUBT = 2**12
_WHITE = 255
# Of a uniform number's bits, those that are drawn first, two numbers a word; the others' words begin in the middle of
# the block's part of the stream.
_FIRST_BITS = 16
_LATER = 2**39
# In the table: the first bits don't tell.
_OPEN = -(2**24)


class Noise:
    """What certification draws from: `draw_each` in its subclasses."""

    def draw(self, seed, index, phase, block, shape, compiled: bool = False):
        """Draws one block.

        Args:
            seed, index, phase, block: int64 scalars (tensors or numbers), of which the noise is a function.
            shape: (copies, height, width, channels), numbers or a tensor.
            compiled: whether XLA may compile a part of it; the noise is the same.

        Returns:
            The noise, float32 of `shape`; whether each copy counts, bool (copies,).
        """
        one = (tf.reshape(tf.cast(v, tf.int64), [1]) for v in (index, phase, block))
        noise, counts = self.draw_each(seed, *one, shape=shape, compiled=compiled)
        return tf.reshape(noise, shape), tf.reshape(counts, [-1])


class GaussianNoise(Noise):
    """x + sigma eps in float32, as the field does it. The sum's rounding depends on x: a classifier that reads the low
    bits can get a certificate that is too large (Voracek, Hein, ICLR 2023). For comparison.

    Args:
        sigma: noise level, in [0, 1] pixel units.
    """

    name, stream = "gaussian", "philox 4x32-10"

    def __init__(self, sigma: float):
        self.sigma = check_sigma(sigma)

    def draw_each(self, seed, index, phase, block, shape, compiled: bool = False):
        """Draws several blocks, each what `draw` gives. index, phase, block: (slots,), of a size known to the graph.

        Returns:
            The noise, float32 (slots, *shape); whether each copy counts, bool (slots, copies).
        """
        normal = philox.Streams(seed, index, phase, block).normal(shape)
        return self.sigma * normal, tf.ones(tf.shape(normal)[:2], tf.bool)

    def add(self, images, noise):
        """Returns the noisy copies, float32 of the shape of `noise`. images: float32, of a shape that broadcasts."""
        return images + noise

    def check(self, images) -> None:
        """Accepts any image."""


class LatticeNoise(Noise):
    """The image plus Gaussian noise, rounded to the 8-bit grid and clipped to [-k, k + 1], exactly.

    For an image on the grid, round(x + eps) = x + round(eps): the noise is drawn as a whole number of 255ths from the
    rounded Gaussian's exact distribution, and the sum is one of integers. Nothing of x is lost or leaks, and the
    certificate is that of the classifier f(clip(round(.))) under real Gaussian noise (Voracek, Hein, ICLR 2023).

    A uniform integer below 2^60 is compared with the thresholds 2^60 Phi((2 i + 1) / (510 sigma)). Its first 16 bits
    tell the noise of 98 pixels in a hundred, by one look into a table; the others draw the rest of their bits. Where it
    falls within the doubt of a threshold computed in float64, the copy is void: it votes for nobody and counts among
    the n. That happens to fewer than one pixel in 10^10.

    Args:
        sigma: noise level, in [0, 1] pixel units, at least 1/255.
    """

    name, stream = "lattice", "philox 4x32-10, 16 bits and 44"

    def __init__(self, sigma: float):
        self.sigma = check_sigma(sigma)
        if self.sigma < 1 / _WHITE:
            raise ValueError(f"sigma must be at least 1/255 for noise on the 8-bit grid, got {sigma!r}.")
        # Beyond k + 1 the clipped sum no longer changes.
        self.reach = max(1, int(6 * self.sigma))
        self._first, edges = _doubtful_intervals(lattice_thresholds(self.sigma))
        table = _first_bits_table(self._first, edges)
        # Tensors of their own: a graph that draws in thirty places, and its export, hold them once.
        with tf.init_scope():
            self._edges, self._table = tf.constant(edges), tf.constant(table)

    def draw_each(self, seed, index, phase, block, shape, compiled: bool = False):
        """As `GaussianNoise.draw_each`; the noise in 255ths, whole numbers."""
        size, slots = tf.cast(tf.reduce_prod(shape), tf.int64), index.shape[0]
        streams = philox.Streams(seed, index, phase, block, compiled)
        first = tf.reshape(tf.bitcast(streams.words((size + 1) // 2), tf.uint16), [slots, -1])
        first = tf.reshape(first[:, :size], [-1])
        noise = (_looked_up_compiled if compiled else _looked_up)(self._table, first)
        open_ = tf.where(noise == _OPEN)
        # Each slot's own numbers, in its own order: what the others drew does not move them.
        ends = tf.searchsorted(open_[:, 0], size * tf.range(slots + 1, dtype=tf.int64))
        rest = streams.pairs(ends, open_[:, 0] // size, _LATER)
        rest = tf.bitcast(tf.bitwise.right_shift(rest, tf.constant(64 - _BITS + _FIRST_BITS, tf.uint64)), tf.int64)
        high = tf.cast(tf.gather(first, open_[:, 0]), tf.int64) * 2 ** (_BITS - _FIRST_BITS)
        position = tf.searchsorted(self._edges, high + rest, side="right")
        level = tf.cast(tf.bitwise.right_shift(position, 1) + self._first, tf.float32)
        noise = tf.tensor_scatter_nd_update(noise, open_, level)
        # An odd position lies within an interval of doubt.
        copies = tf.cast(shape[0], tf.int64)
        doubts = tf.scatter_nd(open_ // (size // copies), tf.bitwise.bitwise_and(position, 1), (slots * copies)[None])
        whole = tf.concat([tf.constant([slots], tf.int64), tf.cast(shape, tf.int64)], 0)
        return tf.reshape(noise, whole), tf.reshape(doubts == 0, [slots, -1])

    def add(self, images, noise):
        """Returns the noisy copies, float32 of the shape of `noise`. images: float32 multiples of 1/255."""
        # Whole numbers below 2^24 are exact in float32, and so are their sums: the copy is a function of the sum alone.
        low, high = -_WHITE * self.reach, _WHITE * (self.reach + 1)
        return tf.clip_by_value(tf.round(images * _WHITE) + noise, low, high) / _WHITE

    def check(self, images: np.ndarray) -> None:
        """Refuses images that are not on the 8-bit grid."""
        # j / 255 in float32, times 255, is within 2^-15 of j.
        off = np.abs(images * np.float32(_WHITE) - np.round(images * np.float32(_WHITE)))
        if off.size and off.max() > 1e-4:
            raise ValueError(
                "images must be multiples of 1/255, as 8-bit files hold them, for exact noise; got values between. "
                "Round them, np.round(images * 255) / 255, or pass noise='gaussian', whose certificates rounding can "
                "make too large."
            )


def lattice_thresholds(sigma: float) -> np.ndarray:
    """Returns 2^60 Phi((2 i + 1) / (510 sigma)) for i from -255 (k + 1) to 255 (k + 1) - 1, int64, each within 2^12.

    A uniform integer u in [0, 2^60) gives the noise (#{thresholds <= u} - 255 (k + 1)) / 255, k = max(1, int(6 sigma)).
    """
    half = _WHITE * (max(1, int(6 * sigma)) + 1)
    # Below zero Phi keeps its relative precision; above, the complement is exact.
    low = np.floor(2.0**_BITS * scipy.special.ndtr((2 * np.arange(-half, 0) + 1) / (510 * sigma))).astype(np.int64)
    return np.concatenate([low, 2**_BITS - low[::-1]])


def _doubtful_intervals(thresholds: np.ndarray) -> tuple[int, np.ndarray]:
    """Returns the lowest level, and the edges low_0 < high_0 < low_1 < ... of the disjoint intervals of doubt.

    In the tails the intervals overlap, and all beyond them is one interval of doubt, to 0 and to 2^60.
    """
    apart = np.diff(thresholds) > 2 * _DOUBT + 1
    inside = (thresholds > _DOUBT) & (thresholds < 2**_BITS - _DOUBT)
    kept = np.flatnonzero(apart & inside[:-1] & inside[1:])
    first, last = kept[0], kept[-1] + 1
    low, high = thresholds[first : last + 1] - _DOUBT, thresholds[first : last + 1] + _DOUBT + 1
    if first > 0:
        low[0] = 0
    if last < len(thresholds) - 1:
        high[-1] = 2**_BITS
    return int(first) - len(thresholds) // 2, np.stack([low, high], 1).reshape(-1)


def _first_bits_table(first: int, edges: np.ndarray) -> np.ndarray:
    """Returns the noise that each value of the first bits means, whatever the others; _OPEN where they matter."""
    starts = np.arange(2**_FIRST_BITS, dtype=np.int64) << (_BITS - _FIRST_BITS)
    low, high = (np.searchsorted(edges, s, side="right") for s in (starts, starts + 2 ** (_BITS - _FIRST_BITS) - 1))
    return np.where((low == high) & (low % 2 == 0), low // 2 + first, _OPEN).astype(np.float32)


def _looked_up(table, first):
    return tf.gather(table, tf.cast(first, tf.int32))


# As one loop it takes a sixth of the time. Not in a graph for serving: the server may have no compiler.
_looked_up_compiled = tf.function(
    _looked_up,
    input_signature=[tf.TensorSpec([2**_FIRST_BITS], tf.float32), tf.TensorSpec([None], tf.uint16)],
    autograph=False,
    jit_compile=True,
)


NOISES = {kind.name: kind for kind in (LatticeNoise, GaussianNoise)}


def make_noise(name: str, sigma: float):
    """Returns the noise of that name. Raises ValueError, naming those there are."""
    return NOISES[check_choice("noise", name, NOISES)](sigma)


def check_seed(seed) -> int:
    """Refuses a seed that is no whole number in [0, 2^63)."""
    return check_count("seed", seed, 0, 2**63 - 1)


def check_indices(images: int, indices, index: int = 0) -> np.ndarray:
    """Returns the numbers of so many images, which choose their noise: by default index, index + 1, ...

    Raises:
        ValueError: both are given; no whole numbers from 0 on, one for each image; more than there are streams.
    """
    check_count("index", index, 0, philox.MAX_IMAGES - images)
    if indices is not None and index:
        raise ValueError("give index or indices, not both: index is the first of index, index + 1, ...")
    indices = np.arange(index, index + images) if indices is None else np.asarray(indices)
    whole = indices.shape == (images,) and np.issubdtype(indices.dtype, np.integer)
    if not whole or (indices < 0).any() or (indices >= philox.MAX_IMAGES).any():
        raise ValueError(
            f"indices must be {images} whole numbers >= 0, below 2^61, one for each image, got shape "
            f"{indices.shape} of {indices.dtype}."
        )
    return indices
