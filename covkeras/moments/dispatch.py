"""propagate: dispatches on a layer's type to its moment rule; what a rule may know besides its layer."""

import dataclasses
import weakref
from collections.abc import Callable

import keras
import numpy as np

from covkeras.moments.gaussian import Gaussian
from covkeras.moments.rectifiers import PLAIN, Elementwise, Kernels, Rectifier


@dataclasses.dataclass(frozen=True)
class Context:
    """What a rule may need besides its layer.

    r_max: bound on the correlation between the pixels under a convolution's window, in [0, 1); None is that of the
        `Moments` layer or the network.
    training: whether this is a training step (Dropout drops, BatchNormalization uses and updates the batch's).
    kernels: the rectifiers' element-wise loops; the trainer puts compiled ones here.
    rectify: (gaussian, activation) -> gaussian, applied at every (leaky) ReLU, and at every element-wise layer with a
        rule of the user's, instead of their rule; the adjoint estimate puts its own here. `activation`: see
        `rectifiers.Rectifier`.
    regularise: whether layers add their activity regularisers, of the propagated mean, to their losses.
    epoch: the training epoch, from 0; a number or an integer tensor. For objectives that change with it.
    """

    r_max: float | None = None
    training: bool = False
    kernels: Kernels = PLAIN
    rectify: Callable[[Gaussian, object], Gaussian] | None = None
    regularise: bool = False
    epoch: object = 0

    def activated(self, gaussian: Gaussian, activation) -> Gaussian:
        """What an activation makes of the pair."""
        return self.rectify(gaussian, activation) if self.rectify else activation.propagated(gaussian, self.kernels)

    def rectified(self, gaussian: Gaussian, slope: float) -> Gaussian:
        """What a (leaky) ReLU makes of the pair: the rule of a user's rectifier."""
        return self.activated(gaussian, Rectifier(slope))

    def with_options(self, options: dict) -> "Context":
        """The context of a layer that the graph calls with options of its own, such as training=False."""
        return dataclasses.replace(self, **options) if options else self


class _Propagate:
    """Dispatches on the layer's type; refuses duplicates, unknown layers, and subclasses that change `call`."""

    def __init__(self):
        self._rules = {}
        self._kinds = weakref.WeakKeyDictionary()

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
                if type(layer).call is base.call or _walks_its_graph(layer):
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
        rule, context = self.rule_for(layer), context or Context()
        if context.r_max is None:
            context = dataclasses.replace(context, r_max=0.0)
        if context.rectify and self.kind_of(layer) == "elementwise":
            plain = dataclasses.replace(context, rectify=None)
            after = context.rectify(gaussian, Elementwise(layer, rule, plain))
        else:
            after = rule(layer, gaussian, context)
        regulariser = getattr(layer, "activity_regularizer", None)
        if context.regularise and regulariser is not None and not isinstance(layer, keras.Model):
            layer.add_loss(regulariser(after.mean))
        return after

    def examine(self, layer, shape) -> None:
        """Finds out, by numbers, whether a layer with a rule of the user's is linear, element-wise or neither.

        layer: built. shape: of its input, without the batch axis. Stock layers' rules call `Context.activated` where
        they are nonlinear; a user's need not: an element-wise layer is wrapped into an activation, so that every
        estimate reaches it.
        """
        if self.rule_for(layer).__module__.startswith("covkeras.") or layer in self._kinds or None in shape:
            return
        self._kinds[layer] = _kind(layer, shape)

    def kind_of(self, layer) -> str:
        """Returns "linear", "elementwise" or "other" of a layer that was examined, else "stock"."""
        return self._kinds.get(layer, "stock")


def _walks_its_graph(layer) -> bool:
    """Whether a layer is a model whose `call` is Keras' own walk through its graph."""
    if not isinstance(layer, keras.Model) or type(layer).call is keras.Model.call:
        return False
    owner = next(base for base in type(layer).__mro__ if "call" in vars(base))
    return owner.__module__.startswith("keras.")


def _kind(layer, shape) -> str:
    a, b = np.random.default_rng(0).normal(size=(2, 2, *shape)).astype(np.float32)

    def at(x):
        return keras.ops.convert_to_numpy(keras.ops.cast(layer(x), "float32")).astype(np.float64)

    at_a, at_b = at(a), at(b)
    close = {"rtol": 1e-3, "atol": 1e-3 * (1.0 + np.abs(at_a).max())}
    if np.allclose(at(a + b) + at(np.zeros_like(a)), at_a + at_b, **close):
        return "linear"
    changed = np.random.default_rng(1).random(a.shape) < 0.5
    if at_a.shape == a.shape and np.allclose(at(np.where(changed, b, a)), np.where(changed, at_b, at_a), **close):
        return "elementwise"
    return "other"


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
