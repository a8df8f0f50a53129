"""propagate: dispatches on a layer's type to its moment rule; what a rule may know besides its layer."""

import dataclasses
from collections.abc import Callable

import keras

from covkeras.moments.gaussian import Gaussian
from covkeras.moments.rectifiers import PLAIN, Kernels, rectify


@dataclasses.dataclass(frozen=True)
class Context:
    """What a rule may need besides its layer.

    r_max: bound on the correlation between the pixels under a convolution's window, in [0, 1).
    training: whether this is a training step (Dropout drops, BatchNormalization uses and updates the batch's).
    kernels: the rectifiers' element-wise loops; the trainer puts compiled ones here.
    rectify: (gaussian, slope) -> gaussian, applied at every (leaky) ReLU instead of their rule; the adjoint estimate
        puts its own here.
    epoch: the training epoch, from 0; a number or an integer tensor. For objectives that change with it.
    """

    r_max: float = 0.0
    training: bool = False
    kernels: Kernels = PLAIN
    rectify: Callable[[Gaussian, float], Gaussian] | None = None
    epoch: object = 0

    def rectified(self, gaussian: Gaussian, slope: float) -> Gaussian:
        """What a (leaky) ReLU makes of the pair."""
        return self.rectify(gaussian, slope) if self.rectify else rectify(gaussian, slope, self.kernels)


class _Propagate:
    """Dispatches on the layer's type; refuses duplicates, unknown layers, and subclasses that change `call`."""

    def __init__(self):
        self._rules = {}

    def register(self, *layer_types: type, override: bool = False):
        """Decorates `rule(layer, gaussian, context) -> Gaussian` as the rule of the given layer types.

        Raises:
            ValueError: a type has a rule already and `override` is False.
        """

        def decorate(rule):
            for layer_type in layer_types:
                if layer_type in self._rules and not override:
                    raise ValueError(
                        f"{layer_type.__name__} has a moment rule already, {self._rules[layer_type].__name__!r}. "
                        "To replace it, register with override=True."
                    )
                self._rules[layer_type] = rule
            return rule

        return decorate

    def rule_for(self, layer):
        """Returns the rule of the layer's type, or of the nearest base whose `call` it has not changed."""
        for base in type(layer).__mro__:
            if base in self._rules:
                if isinstance(layer, keras.Model) or type(layer).call is base.call:
                    return self._rules[base]
                raise NotImplementedError(
                    f"No moment rule for {type(layer).__name__} (layer {layer.name!r}): it changes the call of "
                    f"{base.__name__}. Register its own with @propagate.register({type(layer).__name__})."
                )
        raise NotImplementedError(_no_rule(layer))

    def __call__(self, layer, gaussian, context: Context | None = None) -> Gaussian:
        """Applies the layer's rule.

        Args:
            layer: a built Keras layer.
            gaussian: mean (batch, ..., P * channels) and cov (channels, channels); a list of them for a merge layer.
            context: what the rule needs besides.

        Returns:
            Gaussian: mean (batch, ..., Q * units) and cov (units, units).

        Raises:
            NotImplementedError: the layer has no rule; the message names the remedy.
        """
        return self.rule_for(layer)(layer, gaussian, context or Context())


def _no_rule(layer) -> str:
    what = f"No moment rule for {type(layer).__name__} (layer {layer.name!r})"
    if "MaxPool" in type(layer).__name__:
        return (
            f"{what}: the maximum of Gaussians is not Gaussian. Use AveragePooling2D, or register one with "
            "@propagate.register."
        )
    if not isinstance(layer, keras.layers.Layer):
        return f"{what}: it is an operation, not a layer. Use the layer, such as keras.layers.Add()([a, b]) for a + b."
    return f"{what}. Register one with @propagate.register({type(layer).__name__})."


propagate = _Propagate()
