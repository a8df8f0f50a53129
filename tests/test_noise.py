import keras
import mpmath
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from conftest import grid_images
from keras import layers, ops

from covkeras import SmoothedClassifier
from covkeras.certification import GaussianNoise, LatticeNoise, noise, philox
from covkeras.certification.noise import ESTIMATION, SEQUENTIAL, lattice_thresholds

SHAPE = (1_000, 10, 10, 1)


@pytest.mark.parametrize("kind", [GaussianNoise, LatticeNoise])
def test_streams_are_disjoint_and_normal(kind):
    source = kind(1.0)
    streams = [
        np.asarray(source.draw(seed, index, phase, block, SHAPE)[0]).ravel()
        for seed, index, phase, block in [(0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 1, 0), (0, 1, 0, 0), (1, 0, 0, 0)]
    ]
    for i, a in enumerate(streams):
        if kind is GaussianNoise:
            # Kolmogorov-Smirnov and correlation: five tests and ten pairs, false alarm below 1e-7 together.
            assert scipy.stats.kstest(a, "norm").pvalue > 1e-9
        for b in streams[:i]:
            assert abs(np.corrcoef(a, b)[0, 1]) < 6.5 / np.sqrt(len(a))
            assert (a == b).mean() < 0.01
    assert np.array_equal(np.asarray(source.draw(0, 0, 0, 0, SHAPE)[0]).ravel(), streams[0])


@pytest.mark.parametrize("sigma", [1 / 255, 0.12, 0.25, 0.5, 1.0, 2.5])
def test_thresholds_against_forty_digits(sigma):
    """Computed in float64, each within half the doubt that voids a sample."""
    thresholds = lattice_thresholds(sigma)
    half = len(thresholds) // 2
    assert half == 255 * (max(1, int(6 * sigma)) + 1)
    with mpmath.workdps(40):
        for position in sorted({*range(0, 2 * half, 37), *range(half - 30, half + 30), 0, 2 * half - 1}):
            i = position - half
            exact = mpmath.mpf(2) ** 60 * mpmath.ncdf((2 * i + 1) / (510 * mpmath.mpf(sigma)))
            assert abs(int(thresholds[position]) - exact) <= noise._DOUBT / 2


@pytest.mark.parametrize("sigma", [0.25, 1.0])
def test_lattice_noise_has_the_exact_distribution(sigma):
    """Chi-square on 10^7 draws, levels of fewer than 20 expected draws pooled: false alarm 1e-8."""
    source = LatticeNoise(sigma)
    draws, certain = source.draw(3, 5, ESTIMATION, 7, (1_000, 100, 100, 1))
    draws = np.asarray(draws).ravel().astype(int)
    assert np.asarray(certain).all()
    half = 255 * (source.reach + 1)
    edges = scipy.stats.norm.cdf((2 * np.arange(-half, half) + 1) / (510 * sigma))
    expected = np.diff(np.concatenate([[0.0], edges, [1.0]])) * draws.size
    counts = np.bincount(draws + half, minlength=2 * half + 1)
    common = expected >= 20
    observed = np.append(counts[common], counts[~common].sum())
    predicted = np.append(expected[common], expected[~common].sum())
    assert scipy.stats.chisquare(observed, predicted * observed.sum() / predicted.sum()).pvalue > 1e-8


def test_intervals_of_doubt_lie_around_every_threshold():
    for sigma in (1 / 255, 0.12, 0.25, 0.5, 1.0):
        first, edges = noise._doubtful_intervals(lattice_thresholds(sigma))
        assert (np.diff(edges) > 0).all()
        for u in lattice_thresholds(sigma):
            assert np.searchsorted(edges, u, side="right") % 2 == 1 or not 0 <= u < 2**60
        # The middle's level is 0, and the two halves mirror each other.
        assert np.searchsorted(edges, 2**59, side="right") // 2 + first == 0
        widths = np.diff(edges)[1:-1]
        assert abs(widths - widths[::-1]).max() <= 1


@pytest.mark.parametrize("sigma", [1 / 255, 0.12, 0.5, 2.5])
def test_the_first_bits_table_is_the_distributions(sigma):
    """A value of the first 16 bits stands for a 65,536th of the distribution: where the table names a level, all of
    that lies within the level's own part; elsewhere a threshold lies in it, but for the tails, and that is rare."""
    source = LatticeNoise(sigma)
    table, edges = source._table.numpy().astype(np.float64), np.arange(2**16 + 1) / 2**16
    told = table != noise._OPEN
    below, above = (scipy.stats.norm.cdf((2 * table[told] + side) / (510 * sigma)) for side in (-1, 1))
    assert (below <= edges[:-1][told] + 1e-15).all() and (above >= edges[1:][told] - 1e-15).all()
    half = 255 * (source.reach + 1)
    thresholds = scipy.stats.norm.cdf((2 * np.arange(-half, half) + 1) / (510 * sigma))
    split = np.histogram(thresholds, edges)[0] > 0
    assert (~told <= split)[8:-8].all() and (~told).mean() < 0.013 * max(1, 4 * sigma)


def test_a_pixel_whose_first_bits_do_not_tell_draws_the_rest():
    """The 60 bits put together, in Python, from the two places of the stream: each pixel's level by the thresholds."""
    source, shape = LatticeNoise(0.5), (7, 5, 3, 1)
    table = source._table.numpy()
    for block in range(20):
        drawn, certain = source.draw(9, 4, ESTIMATION, block, shape)
        streams = philox.Streams(9, *(tf.constant([v]) for v in (4, ESTIMATION, block)))
        words = streams.words(53)[0].numpy()
        first = words.view(np.uint16)[:105].astype(object)
        open_ = [i for i, bits in enumerate(first) if table[bits] == noise._OPEN]
        rest = streams.pairs(tf.constant([0, len(open_)]), tf.zeros(len(open_), tf.int64), noise._LATER).numpy()
        uniform = [int(bits) << 44 | 2**43 for bits in first]
        for i, word in zip(open_, rest, strict=True):
            uniform[i] = int(first[i]) << 44 | int(word) >> 20
        level = np.searchsorted(lattice_thresholds(0.5), np.array(uniform), side="right") - 255 * (source.reach + 1)
        np.testing.assert_array_equal(np.asarray(drawn).ravel(), level)
        assert np.asarray(certain).all()
        # Compiled it is the same.
        np.testing.assert_array_equal(source.draw(9, 4, ESTIMATION, block, shape, compiled=True)[0], drawn)


@pytest.mark.parametrize("kind", [LatticeNoise, GaussianNoise])
@pytest.mark.parametrize("shape", [(16, 8, 8, 1), (3, 5, 7, 1)])
def test_blocks_drawn_together_are_those_drawn_one_by_one(kind, shape, monkeypatch):
    """Of other images, phases and places, some twice; with doubts, for all kinds of copies."""
    monkeypatch.setattr(noise, "_DOUBT", 2**46)
    source, places = kind(0.3), [[7, 0, 7, 2], [SEQUENTIAL, 0, SEQUENTIAL, ESTIMATION], [0, 5, 0, 2**30]]
    together, counts = source.draw_each(11, *map(tf.constant, places), shape=shape)
    for i, place in enumerate(zip(*places, strict=True)):
        for compiled in (False, True):
            one, counted = source.draw(11, *place, shape=shape, compiled=compiled)
            np.testing.assert_array_equal(together[i], one)
            np.testing.assert_array_equal(counts[i], counted)
    assert np.asarray(counts).all() == (kind is GaussianNoise)


@pytest.mark.parametrize("seed", [0, 12_345, 2**63 - 1])
def test_compiled_bits_are_tensorflows_own(rng, seed):
    """Of streams at the ends of their range, to the bit; numbers that differ from stream to stream, some none."""
    index = [0, 1, 2**32 - 1, 2**32, 2**61 - 1, *rng.integers(0, 2**61, 15)]
    block = [0, 2**22 - 1, *rng.integers(0, 2**22, 18)]
    places = [tf.constant(v, tf.int64) for v in (index, rng.integers(0, 4, 20), block)]
    counts = np.array([0, 1, 2, 1_500, 0, *rng.integers(0, 400, 15)])
    ends, slot = np.concatenate([[0], counts.cumsum()]), np.repeat(np.arange(20), counts)
    own, compiled = (philox.Streams(seed, *places, compiled=c) for c in (False, True))
    assert compiled.compiled and not own.compiled
    for size in (1, 4, 1_001):
        np.testing.assert_array_equal(compiled.words(size)[:, :size], own.words(size))
    for after in (0, noise._LATER):
        together = compiled.pairs(tf.constant(ends), tf.constant(slot, tf.int64), after)
        np.testing.assert_array_equal(together, own.pairs(tf.constant(ends), tf.constant(slot, tf.int64), after))


def test_many_blocks_drawn_together_are_those_drawn_one_by_one(rng, monkeypatch):
    monkeypatch.setattr(noise, "_DOUBT", 2**46)
    source, places = LatticeNoise(0.7), [rng.integers(0, high, 24) for high in (2**40, 4, 2**22)]
    drawn = [source.draw_each(3, *map(tf.constant, places), shape=(16, 5, 5, 1), compiled=c) for c in (False, True)]
    for one, other in zip(*drawn, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.asarray(drawn[0][1]).all()


def test_copies_are_on_the_grid_and_clipped(rng):
    source = LatticeNoise(0.5)
    image = grid_images(rng, 1, 10)[0]
    drawn, _ = source.draw(0, 0, ESTIMATION, 0, SHAPE)
    drawn = np.asarray(drawn) * np.where(np.arange(1_000) % 2, 1, 4)[:, None, None, None]
    copies = np.asarray(source.add(tf.constant(image), tf.constant(drawn, tf.float32)), np.float64)
    expected = np.clip(np.round(image.astype(np.float64) * 255) + drawn, -255 * 3, 255 * 4)
    assert np.array_equal(copies, (expected.astype(np.float32) / np.float32(255)).astype(np.float64))
    assert copies.min() == -3.0 and copies.max() == 4.0


def test_void_copies_vote_for_nobody_and_count(rng, monkeypatch):
    """With doubt as wide as a tenth of a level's share about one copy in ten has a doubtful pixel."""
    model = keras.Sequential([keras.Input((2, 2, 1)), layers.Flatten(), layers.Dense(2)])
    monkeypatch.setattr(noise, "_DOUBT", 2**46)
    smoothed = SmoothedClassifier(model, 0.5, batch_size=64)
    certain = [np.asarray(smoothed.noise.draw(0, 0, ESTIMATION, b, (64, 2, 2, 1))[1]) for b in range(16)]
    void = 1_000 - np.concatenate(certain)[:1_000].sum()
    assert 10 < void < 900
    votes = smoothed.ballot.count(grid_images(rng, 1, 2), [0], ESTIMATION, 1_000, 0)
    assert votes.sum() == 1_000 - void


def low_bits_classifier():
    """Class 1 where every pixel near 0 is a multiple of 2^-28, as the sums 16/255 + eps are there, and eps is not."""

    def logits(images):
        near = ops.abs(images) < 2.0**-6
        coarse = images * 2.0**28 == ops.round(images * 2.0**28)
        fine, rounded = (ops.sum(ops.cast(mask, "float32"), (1, 2, 3)) for mask in (near & ~coarse, near & coarse))
        return ops.stack([fine, 0.5 * ops.sign(rounded)], -1)

    images = keras.Input((28, 28, 1))
    return keras.Model(images, layers.Lambda(logits, output_shape=(2,))(images))


def test_rounding_leaks_the_image_and_the_lattice_does_not():
    """A classifier that reads low bits gets a certificate of 2.9 in float32, where an image 1.8 away is of the other
    class nearly always. On the lattice the two images are of one class, as the certificate says."""
    black = np.zeros((1, 28, 28, 1), np.float32)
    grey = np.full_like(black, np.float32(16) / np.float32(255))
    distance = float(np.linalg.norm(grey - black))
    answers = {}
    for name in ("gaussian", "lattice"):
        smoothed = SmoothedClassifier(low_bits_classifier(), sigma=1.0, noise=name)
        certificate = smoothed.certify(black, n0=100, n=20_000, alpha=0.001)
        there = smoothed.predict(grey, n=2_000, alpha=1e-6)
        assert certificate.label[0] == 0
        answers[name] = certificate.radius[0], there.counts[0, 1] / 2_000
    assert answers["gaussian"][0] > 1.5 * distance and answers["gaussian"][1] > 0.99
    radius, other = answers["lattice"]
    # The class at the grey image is the certified one.
    assert radius > 0 and other < 0.01


def test_images_off_the_grid_are_refused(rng):
    model = keras.Sequential([keras.Input((2, 2, 1)), layers.Flatten(), layers.Dense(2)])
    off = np.full((1, 2, 2, 1), 0.3337, np.float32)
    with pytest.raises(ValueError, match=r"images must be multiples of 1/255.*np.round\(images \* 255\) / 255"):
        SmoothedClassifier(model, 0.5).certify(off)
    assert len(SmoothedClassifier(model, 0.5, noise="gaussian").certify(off, 10, 10)) == 1
    for dtype in (np.float32, np.float64):
        LatticeNoise(0.5).check((np.arange(256).reshape(1, 16, 16, 1) / 255).astype(dtype))


def test_bad_noise_is_refused():
    model = keras.Sequential([keras.Input((2, 2, 1)), layers.Flatten(), layers.Dense(2)])
    with pytest.raises(ValueError, match="noise must be one of lattice, gaussian, got 'uniform'"):
        SmoothedClassifier(model, 0.5, noise="uniform")
    with pytest.raises(ValueError, match="sigma must be at least 1/255"):
        SmoothedClassifier(model, 0.003)
