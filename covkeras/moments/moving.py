"""Rules of the layers that move or keep units, and of those that are random in training."""

import keras
from keras import ops

from covkeras.moments.dispatch import propagate
from covkeras.moments.gaussian import Gaussian
from covkeras.moments.rules import check_channels_last

# SELU's alpha times its scale, what dropped units are set to, but for the sign.
_SELU = 1.6732632423543772 * 1.0507009873554805


@propagate.register(keras.layers.Flatten, keras.layers.Reshape)
def reshape(layer, gaussian, context):
    """Mean reshaped, cov unchanged: each run of units along the last axis stays together (exact for blocks)."""
    mean = layer(gaussian.mean)
    if mean.shape[-1] % gaussian.cov.shape[-1]:
        raise NotImplementedError(
            f"{type(layer).__name__} (layer {layer.name!r}) tears the channels apart: last axis {mean.shape[-1]}, "
            f"covariance of {gaussian.cov.shape[-1]} channels. Reshape to a vector, keras.layers.Flatten()."
        )
    return Gaussian(mean, gaussian.cov)


@propagate.register(
    *(getattr(keras.layers, f"{kind}{rank}D") for kind in ("ZeroPadding", "Cropping", "UpSampling") for rank in (1, 2)),
    *(keras.layers.Identity, keras.layers.InputLayer, keras.layers.ActivityRegularization, keras.layers.RepeatVector),
    *(keras.layers.Resizing, keras.layers.CenterCrop),
)
def unchanged(layer, gaussian, context):
    """Mean through the layer, cov unchanged (padded zeros have no noise, and interpolated pixels less: too large)."""
    check_channels_last(layer)
    return Gaussian(layer(gaussian.mean), gaussian.cov)


@propagate.register(keras.layers.Permute)
def permute(layer, gaussian, context):
    """Mean permuted, cov unchanged, where the channels stay last (exact)."""
    if layer.dims[-1] != len(layer.dims):
        raise NotImplementedError(
            f"Permute (layer {layer.name!r}) has a moment rule where the channels stay last, got {layer.dims}."
        )
    return Gaussian(layer(gaussian.mean), gaussian.cov)


@propagate.register(keras.layers.RandomCrop)
def crop(layer, gaussian, context):
    """In training a random part, else the whole: mean through the layer, cov unchanged."""
    check_channels_last(layer)
    return Gaussian(layer(gaussian.mean, training=context.training), gaussian.cov)


# Random augmentations are random in training alone, as noise and dropout are.
_AUGMENTATIONS = (
    *(getattr(keras.layers, n) for n in dir(keras.layers) if n.startswith("Random") and n != "RandomCrop"),
    *(keras.layers.RandAugment, keras.layers.AugMix, keras.layers.Solarization),
)


@propagate.register(*_AUGMENTATIONS)
def augmentation(layer, gaussian, context):
    """Outside training the identity (exact). In training the mean goes through the layer, the covariance unchanged."""
    return Gaussian(layer(gaussian.mean, training=True), gaussian.cov) if context.training else gaussian


@propagate.register(
    *(keras.layers.Dropout, keras.layers.SpatialDropout1D, keras.layers.SpatialDropout2D, keras.layers.GaussianDropout)
)
def dropout(layer, gaussian, context):
    """Outside training the identity (exact). In training the mean is dropped, and the covariance is its average over
    the masks b / (1 - rate), or the factors of Gaussian dropout, of the same variance: S + rate / (1 - rate) diag S."""
    if not context.training or layer.rate == 0:
        return gaussian
    return Gaussian(layer(gaussian.mean, training=True), _over_masks(gaussian.cov, layer.rate))


@propagate.register(keras.layers.AlphaDropout)
def alpha_dropout(layer, gaussian, context):
    """Outside training the identity (exact). In training a (x b + alpha' (1 - b)) + c with masks b: the mean's, and
    the covariance's average over them, a^2 (1 - rate)^2 times that of `dropout`."""
    if not context.training or layer.rate == 0:
        return gaussian
    # a keeps the mean 0 and variance 1 of self-normalising networks (Klambauer et al., NeurIPS 2017, section 3).
    squared = 1.0 / ((1.0 - layer.rate) * (1.0 + layer.rate * _SELU**2))
    cov = squared * (1.0 - layer.rate) ** 2 * _over_masks(gaussian.cov, layer.rate)
    return Gaussian(layer(gaussian.mean, training=True), cov)


def _over_masks(cov, rate: float):
    """E[D S D], D diagonal and 1 / (1 - rate) with probability 1 - rate, else 0: S + rate / (1 - rate) diag S."""
    return cov * (1.0 + rate / (1.0 - rate) * ops.eye(cov.shape[-1], dtype=cov.dtype))


@propagate.register(keras.layers.GaussianNoise)
def gaussian_noise(layer, gaussian, context):
    """Outside training the identity. In training cov S + stddev^2 I, the layer's own noise propagated (exact)."""
    if not context.training:
        return gaussian
    noise = layer.stddev**2 * ops.eye(gaussian.cov.shape[-1], dtype=gaussian.cov.dtype)
    return Gaussian(gaussian.mean, gaussian.cov + noise)
