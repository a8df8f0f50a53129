"""Layer by layer: the sampled variance of the pre-activations against the propagated one (the paper's Table 2)."""

import dataclasses
import math
from collections.abc import Sequence

import keras
import numpy as np
import scipy.stats
from keras import ops

from covkeras.moments.bivariate import bivariate
from covkeras.moments.dispatch import Context, propagate
from covkeras.moments.gaussian import Gaussian, probability
from covkeras.moments.graph import walk
from covkeras.moments.network import MomentNetwork
from covkeras.runtime.validation import check_between, check_count

_LINEAR = (
    *(keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D, keras.layers.Conv2DTranspose),
    *(keras.layers.Conv1D, keras.layers.DepthwiseConv1D, keras.layers.SeparableConv1D, keras.layers.Dense),
)
# Samples are drawn in chunks; every chunk gives its own unbiased estimate, and their spread the interval.
_CHUNKS = 20
_CLOUD_CHANNELS = 32


@dataclasses.dataclass(frozen=True)
class LayerMoments:
    """One layer's pre-activations under noise, sampled and propagated. Variances in squared units of the layer.

    name: of the layer. shape: (..., channels) of its pre-activations. sampled: (channels,) variance, the mean over
    pixels and images. interval: (2,) 95 % confidence bounds of its mean over channels, over the samples' draw.
    propagated: (channels,) by the rules. bivariate: (channels,) by them with the covariance of two ReLUs, of the first
    image. correlation: of horizontal and vertical neighbours, as found; NaN without
    pixels. cloud: (samples, up to 32 channels) of the first image at its central pixel. cloud_mean, cloud_cov: the
    propagated mean (channels,) and covariance (channels, channels) there, of the same channels; cloud_bivariate: both
    with the covariance of two ReLUs. gaussianity: the
    Kolmogorov distance between a channel of the cloud and the normal of its mean and variance, mean over channels.
    """

    name: str
    shape: tuple[int, ...]
    sampled: np.ndarray
    interval: tuple[float, float]
    propagated: np.ndarray
    bivariate: np.ndarray
    correlation: float
    cloud: np.ndarray
    cloud_mean: np.ndarray
    cloud_cov: np.ndarray
    cloud_bivariate: Gaussian
    gaussianity: float

    @property
    def ratio(self) -> float:
        """Propagated over sampled variance, of the means over channels."""
        return float(self.propagated.mean() / self.sampled.mean())

    @property
    def bivariate_ratio(self) -> float:
        """`ratio` with the covariance of two ReLUs."""
        return float(self.bivariate.mean() / self.sampled.mean())


def pre_activations(
    network: MomentNetwork, images, sampled: bool = True, rectifier: str = "unchanged"
) -> dict[str, Gaussian]:
    """Returns every linear layer's pre-activations, by the layer's name, in the network's order.

    Args:
        network: the classifier's moments. images: (batch, height, width, channels).
        sampled: whether the images are noisy samples, which go through the rectifiers themselves, or means, which go
            through the rectifiers' rule. rectifier: which, "unchanged" or "bivariate", as `MomentNetwork` has it.

    Returns:
        name -> Gaussian: mean (batch, ..., channels), cov (channels, channels) as propagated. A layer used again has
        its count after its name.
    """
    seen, counts = {}, {}

    def visit(layer, given, position, options):
        if isinstance(layer, keras.Model):
            return walk(layer, given, visit)
        before = []

        def rectify(gaussian, activation):
            before.append(gaussian)
            if not sampled:
                return bivariate(gaussian, activation) if rectifier == "bivariate" else activation.propagated(gaussian)
            return Gaussian(activation.apply(gaussian.mean), gaussian.cov)

        context = Context(r_max=network.r_max, rectify=rectify, plain=sampled, unknown=network.unknown)
        after = propagate(layer, given, context)
        if isinstance(layer, _LINEAR):
            counts[layer.name] = counts.get(layer.name, 0) + 1
            name = layer.name if counts[layer.name] == 1 else f"{layer.name} ({counts[layer.name]})"
            seen[name] = before[0] if before else after
        return after

    walk(network.classifier, Gaussian(*network.gaussian_input(ops.convert_to_tensor(images, "float32"))), visit)
    return seen


def layer_moments(
    network: MomentNetwork,
    images,
    samples: int = 1_000,
    seed: int = 0,
    layers: Sequence[str] = (),
    memory_gb: float = 4.0,
    progress=lambda: None,
) -> list[LayerMoments]:
    """Samples every linear layer's pre-activations around each image, and sets the propagated variance beside them.

    Args:
        network: the classifier's moments; its r_max is the rules'.
        images: (images, height, width, channels) in [0, 1].
        samples: noisy copies of each image, a multiple of 20, at least 40.
        seed: of the noise.
        layers: names; by default all.
        memory_gb: what the pre-activations of one chunk may take.
        progress: called after every chunk of every image.

    Returns:
        A LayerMoments per layer, in the network's order.

    Raises:
        ValueError: no such layer (those that exist are listed); a network too large for the memory.
    """
    check_sampling(samples, seed, memory_gb)
    images = np.asarray(images, np.float32)
    means = pre_activations(network, images[:1], sampled=False)
    both = pre_activations(network, images[:1], sampled=False, rectifier="bivariate")
    unknown = [name for name in layers if name not in means]
    if unknown:
        raise ValueError(f"layers {unknown} are not linear layers of the network, which has {list(means)}.")
    chosen = [name for name in means if not layers or name in layers]
    _check_memory(means, samples // _CHUNKS, memory_gb)
    rng = np.random.Generator(np.random.Philox(seed))
    sums = {name: _Sums() for name in chosen}
    for i, image in enumerate(images):
        for chunk in range(_CHUNKS):
            noise = rng.standard_normal((samples // _CHUNKS, *image.shape), np.float32)
            seen = pre_activations(network, image + network.sigma * noise)
            for name in chosen:
                sums[name].add(chunk, ops.convert_to_numpy(ops.cast(seen[name].mean, "float32")), keep=i == 0)
            progress()
    return [sums[name].result(name, means[name], both[name], len(images)) for name in chosen]


def check_sampling(samples: int, seed: int, memory_gb: float) -> None:
    """Refuses numbers that `layer_moments` can't take. Raises ValueError."""
    if check_count("samples", samples, 2 * _CHUNKS) % _CHUNKS:
        raise ValueError(f"samples must be a multiple of {_CHUNKS}, got {samples}.")
    check_count("seed", seed, 0)
    check_between("memory_gb", memory_gb, 0, math.inf)


def _check_memory(means: dict[str, Gaussian], copies: int, memory_gb: float) -> None:
    units = sum(math.prod(g.mean.shape[1:]) for g in means.values())
    # Values, their rectified copies and a float64 copy of one layer at a time.
    needed = 3 * units * copies * 4 / 1e9
    if needed > memory_gb:
        raise ValueError(
            f"network too large: {units:,} pre-activations times {copies} copies at once would take {needed:.1f} GB, "
            f"more than memory_gb {memory_gb:g}. Take fewer samples, smaller images, or allow {math.ceil(needed)} GB."
        )


class _Sums:
    """Running sums of one layer: per chunk the variances, and the neighbours' covariances."""

    def __init__(self):
        self.variances = [0.0] * _CHUNKS
        self.products, self.squares, self.cloud = 0.0, 0.0, []

    def add(self, chunk: int, values: np.ndarray, keep: bool) -> None:
        """values: (copies, ..., channels), of one image."""
        centred = values.astype(np.float64) - values.mean(0, dtype=np.float64)
        # Of the values, float64; tensorflow-probability divides by their number, this by one less.
        variance = probability().stats.variance(centred).numpy() * (len(values) / (len(values) - 1))
        self.variances[chunk] = self.variances[chunk] + variance.reshape(-1, values.shape[-1]).mean(0)
        if values.ndim == 4:
            for a, b in ((centred[:, 1:], centred[:, :-1]), (centred[:, :, 1:], centred[:, :, :-1])):
                self.products += float((a * b).sum())
                self.squares += float(np.sqrt((a**2).sum(0) * (b**2).sum(0)).sum())
        if keep:
            self.cloud.append(self.at_centre(values)[:, :_CLOUD_CHANNELS])

    @staticmethod
    def at_centre(values: np.ndarray) -> np.ndarray:
        return values[:, values.shape[1] // 2, values.shape[2] // 2] if values.ndim == 4 else values

    def result(self, name: str, propagated: Gaussian, both: Gaussian, images: int) -> LayerMoments:
        chunks = np.array(self.variances) / images
        sampled, by_chunk = chunks.mean(0), chunks.mean(1)
        half = scipy.stats.t.ppf(0.975, _CHUNKS - 1) * by_chunk.std(ddof=1) / math.sqrt(_CHUNKS)
        cloud, other = np.concatenate(self.cloud), ops.convert_to_numpy(both.cov)
        other_mean = ops.convert_to_numpy(ops.cast(both.mean, "float32"))
        mean, cov = ops.convert_to_numpy(ops.cast(propagated.mean, "float32")), ops.convert_to_numpy(propagated.cov)
        repeats = mean.shape[-1] // cov.shape[-1]
        kept = cloud.shape[1]
        return LayerMoments(
            name,
            mean.shape[1:],
            sampled=sampled,
            interval=(by_chunk.mean() - half, by_chunk.mean() + half),
            propagated=np.tile(np.diag(cov), repeats),
            bivariate=np.tile(np.diag(other), repeats),
            correlation=self.products / self.squares if self.squares else float("nan"),
            cloud=cloud,
            cloud_mean=self.at_centre(mean)[0, :kept],
            cloud_cov=cov[:kept, :kept],
            cloud_bivariate=Gaussian(self.at_centre(other_mean)[0, :kept], other[:kept, :kept]),
            gaussianity=gaussianity(cloud),
        )


def gaussianity(cloud: np.ndarray) -> float:
    """The Kolmogorov distance of each column to the normal of its own mean and variance, the mean over columns that
    vary. 0 for a normal distribution, in the limit; n samples of one give `gaussianity_floor`."""
    spread = cloud.std(0, ddof=1)
    columns = [(c - c.mean()) / s for c, s in zip(cloud.T, spread, strict=True) if s > 1e-12]
    if not columns:
        return float("nan")
    return float(np.mean([scipy.stats.kstest(c, "norm").statistic for c in columns]))


def gaussianity_floor(samples: int, columns: int = _CLOUD_CHANNELS, seed: int = 0) -> float:
    """Returns what `gaussianity` gives truly normal samples."""
    return gaussianity(np.random.default_rng(seed).standard_normal((samples, columns)))
