"""The Keras layers through which the pair (mean, covariance) flows. They wrap stock layers and own no weights."""

import dataclasses
import re

import keras
from keras import ops

from covkeras.moments.dispatch import Context
from covkeras.moments.gaussian import Gaussian
from covkeras.moments.rules import propagate
from covkeras.runtime.validation import check_r_max, check_sigma


class PlainErrors:
    """Takes Keras' page about a layer's arguments off the refusals of our own: one sentence is left."""

    def __call__(self, *args, **kwargs):
        try:
            return super().__call__(*args, **kwargs)
        except (NotImplementedError, TypeError, ValueError) as error:
            # Keras sets the error's own words in bold.
            found = re.search("\x1b\\[1m(.*?)\x1b\\[0m", str(error), re.DOTALL)
            if not found:
                raise
            raise type(error)(found[1]) from None


@keras.saving.register_keras_serializable("covkeras")
class GaussianInput(PlainErrors, keras.layers.Layer):
    """Turns images into the pair of N(x, sigma^2 I).

    images (batch, ..., channels) -> mean (batch, ..., channels), cov (channels, channels) = sigma^2 I, float32.
    Vectors (batch, features) get cov (1, 1): as many blocks as features.

    Args:
        sigma: noise level, in [0, 1] pixel units.
    """

    def __init__(self, sigma: float, **kwargs):
        # The pair stays float32 whatever the policy: a bfloat16 image has lost the noise's precision.
        super().__init__(**{"dtype": "float32", "autocast": False, **kwargs})
        self.sigma = check_sigma(sigma)

    def call(self, images):
        channels = images.shape[-1] if len(images.shape) > 2 else 1
        return images, self.sigma**2 * ops.eye(channels, dtype="float32")

    def get_config(self):
        return {**super().get_config(), "sigma": self.sigma}


@keras.saving.register_keras_serializable("covkeras")
class Moments(PlainErrors, keras.layers.Layer):
    """Carries the pair through a stock Keras layer by its rule, over the same weights.

        pair = GaussianInput(sigma=0.5)(images)
        pair = Moments(conv)(pair)

    (mean (batch, ..., in), cov (in, in)) -> (mean (batch, ..., out), cov (out, out)); a merge layer takes a list of
    pairs. The pair is a plain tuple: Keras turns named tuples into lists when it loads a model.

    Args:
        layer: a layer with a rule. r_max: bound on the pixels' correlation, where the context has none; see `Context`.
        unknown: what is done with a layer that has none.

    Raises:
        NotImplementedError: the layer has no rule.
    """

    def __init__(self, layer, r_max: float = 0.1, unknown: str = "refuse", **kwargs):
        # autocast=False: mixed precision would cast the covariance; the rules cast the mean themselves.
        super().__init__(**{"dtype": "float32", "autocast": False, **kwargs})
        if isinstance(layer, type) or not hasattr(layer, "name"):
            raise TypeError(f"layer must be a Keras layer, such as keras.layers.Dense(10), got {layer!r}.")
        if unknown == "refuse":
            propagate.rule_for(layer)
        self.layer, self.unknown = layer, unknown
        self.r_max = check_r_max(r_max)

    def build(self, pair_shape):
        if not getattr(self.layer, "built", True):
            several = isinstance(pair_shape[0][0], (tuple, list))
            self.layer.build([p[0] for p in pair_shape] if several else pair_shape[0])

    def call(self, pair, training: bool = False, context: Context | None = None):
        if not isinstance(pair, (tuple, list)):
            raise TypeError(
                f"pair must be (mean, covariance), or a list of them where a layer takes several, got "
                f"{type(pair).__name__!r}. An image's noise: covkeras.GaussianInput(sigma)(images)."
            )
        several = isinstance(pair[0], (tuple, list))
        gaussian = [Gaussian(*p) for p in pair] if several else Gaussian(*pair)
        context = context or Context(training=bool(training))
        if context.r_max is None:
            context = dataclasses.replace(context, r_max=self.r_max)
        if context.unknown is None:
            context = dataclasses.replace(context, unknown=self.unknown)
        after = propagate(self.layer, gaussian, context)
        return tuple(after) if isinstance(after, Gaussian) else [tuple(one) for one in after]

    def get_config(self):
        layer = keras.saving.serialize_keras_object(self.layer)
        unknown = {} if self.unknown == "refuse" else {"unknown": self.unknown}
        return {**super().get_config(), "layer": layer, "r_max": self.r_max, **unknown}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config.pop("layer")), **config)
