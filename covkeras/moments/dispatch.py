"""propagate: dispatches on a layer's type to its moment rule; what a rule may know besides its layer."""

import contextlib
import dataclasses
import weakref
from collections.abc import Callable, Mapping

import keras
import numpy as np

from covkeras.moments.functions import is_elementwise
from covkeras.moments.gaussian import Gaussian, check_pair
from covkeras.moments.graph import Call
from covkeras.moments.rectifiers import PLAIN, Activation, Elementwise, Kernels, Rectifier
from covkeras.moments.unknown import linearised, mean_alone

UNKNOWN = ("refuse", "linearise", "adjoint")


@dataclasses.dataclass(frozen=True)
class Context:
    """What a rule may need besides its layer.

    r_max: bound on the correlation between the pixels under a convolution's window, in [0, 1); None is that of the
        `Moments` layer or the network.
    training: whether this is a training step (Dropout drops, BatchNormalization uses and updates the batch's).
    kernels: the rectifiers' element-wise loops; the trainer puts compiled ones here.
    rectify: (gaussian, activation) -> gaussian, applied at every (leaky) ReLU, and at every element-wise layer with a
        rule of the user's, instead of their rule; the adjoint estimate puts its own here. `activation`: see
        `rectifiers.Activation`.
    regularise: whether layers add their activity regularisers, of the propagated mean, to their losses.
    epoch: the training epoch, from 0; a number or an integer tensor. For objectives that change with it.
    unknown: what is done with a layer that has no rule, or whose rule does not cover it. "refuse": an error that names
        it. "linearise": mean and covariance of the layer alone, at samples of its Gaussian (`unknown.linearised`).
        "adjoint": the mean goes through the layer itself, whose own Jacobian the adjoint estimate then meets; the
        covariance is not carried on. None is that of the `Moments` layer or the network.
    weighted: whether the images have weights, so that the loss is not their mean.
    plain: whether nonlinear layers that are not element-wise (a maximum, a norm, attention) act as themselves: the
        means are samples, or the adjoint estimate wants their Jacobian.
    statistics: what takes the place of BatchNormalizations' moving averages: {layer: iterator}, endless, of a pass of
        the classifier's (mean, variance), each (channels,), with their gradients: a pair for each call of the layer, in
        the graph's order, and again for the next pass.
    """

    r_max: float | None = None
    training: bool = False
    kernels: Kernels = PLAIN
    rectify: Callable[[Gaussian, Activation], Gaussian] | None = None
    regularise: bool = False
    epoch: object = 0
    unknown: str | None = None
    weighted: bool = False
    plain: bool = False
    statistics: Mapping = dataclasses.field(default_factory=dict)

    def activated(self, gaussian: Gaussian, activation: Activation) -> Gaussian:
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
        self._rules, self._operations, self._unnamed = {}, {}, {}
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

    def register_operation(self, *names: str):
        """Decorates `rule(call, gaussians, context) -> Gaussian` as the rule of Keras' operations of these class names,
        and of layers that are called otherwise than with one tensor or a list; see `graph.Call`."""

        def decorate(rule):
            self._operations.update(dict.fromkeys(names, rule))
            return rule

        return decorate

    def register_unnamed(self, name: str):
        """Decorates the rule of a layer that Keras uses in its applications and exports under no name."""

        def decorate(rule):
            self._unnamed[name] = rule
            return rule

        return decorate

    def rule_for(self, layer):
        """Returns the rule of the layer's type, or of the nearest base whose `call` it has not changed."""
        if mode := _quantized(layer):
            raise NotImplementedError(
                f"layer {layer.name!r} is quantized ({mode}), and moment rules take the weights that it was made of: "
                f"take the classifier from before quantize(), {_REMEDIES}. Certification needs no moments."
            )
        if isinstance(layer, Call):
            if rule := self._operations.get(type(layer.operation).__name__):
                return rule
            raise NotImplementedError(_no_rule(layer))
        for base in type(layer).__mro__:
            if base in self._rules:
                if type(layer).call is base.call or walks_its_graph(layer):
                    return self._rules[base]
                raise NotImplementedError(
                    f"No moment rule for {type(layer).__name__} (layer {layer.name!r}): it changes the call of "
                    f"{base.__name__}. Register its own with @propagate.register({type(layer).__name__}), {_REMEDIES}."
                )
        if type(layer).__module__.startswith("keras.") and type(layer).__name__ in self._unnamed:
            return self._unnamed[type(layer).__name__]
        raise NotImplementedError(_no_rule(layer))

    def has_rule(self, layer) -> bool:
        """Whether the layer's type has a rule."""
        try:
            return bool(self.rule_for(layer))
        except NotImplementedError:
            return False

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
            TypeError, ValueError: what is given is no pair of a mean and its covariance, or what a rule returns.
        """
        check_pair(f"what layer {layer.name!r} is given", gaussian)
        context = context or Context()
        if context.r_max is None:
            context = dataclasses.replace(context, r_max=0.0)
        if context.unknown in (None, "refuse"):
            return self._by_rule(layer, gaussian, context)
        if self.has_rule(layer) and not (context.unknown == "adjoint" and self.kind_of(layer) == "other"):
            with contextlib.suppress(NotImplementedError):
                return self._by_rule(layer, gaussian, context)
        return (linearised if context.unknown == "linearise" else mean_alone)(layer, gaussian, context)

    def _by_rule(self, layer, gaussian, context: Context) -> Gaussian:
        rule, gaussian = self.rule_for(layer), _of_one_precision(gaussian)
        if context.rectify and self.kind_of(layer) == "elementwise":
            plain = dataclasses.replace(context, rectify=None)
            after = context.rectify(gaussian, Elementwise(layer, rule, plain))
        else:
            after = rule(layer, gaussian, context)
        check_pair(f"what the rule of {type(layer).__name__} (layer {layer.name!r}) returns", after)
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
        if (
            isinstance(layer, Call)
            or self.rule_for(layer).__module__.startswith("covkeras.")
            or layer in self._kinds
            or None in shape
        ):
            return
        self._kinds[layer] = _kind(layer, shape)

    def kind_of(self, layer) -> str:
        """Returns "linear", "elementwise" or "other" of a layer that was examined, else "stock"."""
        return "stock" if isinstance(layer, Call) else self._kinds.get(layer, "stock")


def _of_one_precision(gaussian):
    """The pair, or a list of them, with the covariances in float32, or in float64 where a mean is: behind a layer that
    computes in it."""
    given = gaussian if isinstance(gaussian, list) else [gaussian]
    kind = keras.backend.standardize_dtype
    wanted = "float64" if any(kind(g.mean.dtype) == "float64" for g in given) else "float32"
    if all(kind(g.cov.dtype) == wanted for g in given):
        return gaussian
    cast = [Gaussian(g.mean, keras.ops.cast(g.cov, wanted)) for g in given]
    return cast if isinstance(gaussian, list) else cast[0]


def walks_its_graph(layer) -> bool:
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
    return "elementwise" if is_elementwise(at, a.shape, **close) else "other"


_REMEDIES = "or make the network with unknown='linearise' (by samples of the layer alone), or unknown='adjoint'"


def _quantized(layer) -> str | None:
    """How a layer or one inside it is quantized: its kernel is integers then, or is cast on the way. A model's layers
    are looked at one by one."""
    layer = layer.operation if isinstance(layer, Call) else layer
    inside = layer._flatten_layers() if isinstance(layer, keras.Layer) and not isinstance(layer, keras.Model) else []
    return next((mode for part in inside if (mode := getattr(part, "quantization_mode", None))), None)


def _no_rule(layer) -> str:
    called = isinstance(layer, Call)
    kind = type(layer.operation if called else layer).__name__
    what = f"No moment rule for {kind} (layer {layer.name!r})"
    if called and not isinstance(layer.operation, keras.layers.Layer):
        return f"{what}, an operation. Use a layer that has one, {_REMEDIES}."
    if called:
        return f"{what} called with several tensors or values. Write a layer of one input, with a rule, {_REMEDIES}."
    return f"{what}. Register one with @propagate.register({kind}), {_REMEDIES}."


propagate = _Propagate()
