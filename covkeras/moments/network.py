"""MomentNetwork: any Sequential or Functional Keras classifier, laid again for the pair (mean, covariance)."""

import dataclasses
from collections.abc import Callable

import keras
from keras import ops, tree

from covkeras.moments.dispatch import Context, propagate
from covkeras.moments.gaussian import Gaussian, wide
from covkeras.moments.layers import GaussianInput, Moments, PlainErrors
from covkeras.runtime.classifiers import check_classifier, check_fixed_size
from covkeras.runtime.validation import check_r_max, check_shape, check_sigma


def walk(model, value, visit: Callable):
    """Carries `value` through a model's graph and returns what arrives at its output. The only place that knows
    Keras' graph; pinned by a test.

    Args:
        model: a built Sequential or Functional model with one input and one output.
        value: what stands for the model's input.
        visit: (layer, value or list of values, position, options) -> value, called once per use of a layer, in
            topological order; `position` counts the calls, `options` holds a `training` that the graph itself passes.

    Raises:
        NotImplementedError: a layer that is called with several tensors, or with options but `training`.
    """
    functional = getattr(model, "_functional", None) or model
    values = {id(functional.inputs[0]): value}
    position = 0
    for depth in sorted(functional._nodes_by_depth, reverse=True):
        for node in functional._nodes_by_depth[depth]:
            if node.is_input:
                continue
            arguments, options = _called_with(node)
            given = tree.map_structure(lambda t: values[id(t)], arguments)
            values[id(node.outputs[0])] = visit(node.operation, given, position, options)
            position += 1
    return values[id(functional.outputs[0])]


def _called_with(node) -> tuple:
    """What a layer is called with in a graph: its tensor, or list of tensors, by position or by name; its options."""
    layer = node.operation
    named = {**{str(i): a for i, a in enumerate(node.arguments.args)}, **node.arguments.kwargs}
    named = {name: a for name, a in named.items() if a is not None}
    tensors = {n: a for n, a in named.items() if any(isinstance(t, keras.KerasTensor) for t in tree.flatten(a))}
    options = {name: a for name, a in named.items() if name not in tensors}
    if not isinstance(layer, keras.layers.Layer):
        return [t for a in tensors.values() for t in tree.flatten(a)], {}
    if len(tensors) != 1 or not set(options) <= {"training"}:
        raise NotImplementedError(
            f"No moment rule for {type(layer).__name__} (layer {layer.name!r}) called with {', '.join(named)}: moments "
            "take one tensor, or a list for a merge layer, and `training`. Write a layer of one input, with a rule."
        )
    return next(iter(tensors.values())), options


@propagate.register(keras.Model, keras.Sequential)
def nested(model, gaussian, context):
    """A model inside a model: its own graph, layer by layer."""
    return walk(
        model, gaussian, lambda layer, given, _, options: propagate(layer, given, context.with_options(options))
    )


class MomentNetwork(PlainErrors, keras.Model):
    """The classifier's graph laid again with `Moments` over the same layers: training one trains the other.

        network = MomentNetwork(classifier, sigma=0.5, r_max=0.1)
        logits = network(images)        # Gaussian(mean=(batch, classes), cov=(classes, classes))

    Args:
        classifier: a built Sequential or Functional model, images in [0, 1] to logits.
        sigma: noise level, in [0, 1] pixel units.
        r_max: bound on the correlation between the pixels under a convolution's window, in [0, 1). A context that has
            an r_max of its own wins.

    Attributes:
        gate_shapes: the shapes (..., P * channels) of the activations' inputs, in the order in which they are met.

    Raises:
        NotImplementedError: a layer without a rule, a model whose `call` is not its graph; the message names it and the
            remedy.
        ValueError: a model that is not built, has several inputs or outputs or ends in probabilities; sigma, r_max.
    """

    def __init__(self, classifier, sigma: float, r_max: float = 0.1, name: str = "moment_network"):
        super().__init__(name=name, dtype="float32", autocast=False)
        self.sigma, self.r_max = check_sigma(sigma), check_r_max(r_max)
        check_classifier(classifier)
        self.classifier = classifier
        check_fixed_size(self.image_shape)
        propagate.rule_for(classifier)
        self.gaussian_input = GaussianInput(self.sigma)
        self.moment_layers = []

        def lay(layer, given, position, options):
            self.moment_layers.append(Moments(layer, self.r_max, name=f"moments_{position}"))
            return given

        walk(classifier, None, lay)
        _examine(classifier)
        # One black image: every layer that cannot carry the pair is refused here, not in the first step; not by
        # __call__, which would wrap the refusal into a page about the layer's arguments.
        self.gate_shapes = self._shapes_of(ops.zeros((1, *self.image_shape), "float32"))
        self.built = True

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(height, width, channels) of the classifier's images."""
        return tuple(self.classifier.inputs[0].shape[1:])

    def call(self, images, training: bool = False, context: Context | None = None) -> Gaussian:
        """Propagates N(images, sigma^2 I) to the logits.

        Args:
            images: (batch, height, width, channels) in [0, 1].
            training: whether this is a training step.
            context: replaces the rules' context (the adjoint estimate's and the trainer's way in).

        Returns:
            Gaussian: mean (batch, classes), cov (classes, classes), both float32.
        """
        check_shape(images.shape, self.image_shape)
        return self.propagate(Gaussian(*self.gaussian_input(images)), context or Context(training=bool(training)))

    def propagate(self, gaussian: Gaussian, context: Context) -> Gaussian:
        """Propagates any Gaussian of images to the logits.

        Args:
            gaussian: mean (batch, height, width, channels), cov (channels, channels).
            context: the rules' context; where it has no r_max, with the network's.

        Returns:
            Gaussian: mean (batch, classes), cov (classes, classes), both at least float32.
        """
        if context.r_max is None:
            context = dataclasses.replace(context, r_max=self.r_max)

        def visit(layer, given, position, options):
            # Not by __call__: see __init__.
            return self.moment_layers[position].call(given, context=context.with_options(options))

        mean, cov = walk(self.classifier, gaussian, visit)
        return Gaussian(wide(mean), cov)

    def check_estimable(self) -> None:
        """Refuses what the adjoint estimate can't be right about: it knows linear layers and element-wise ones.

        Raises:
            NotImplementedError: a layer with a rule of the user's that is neither.
        """
        for layer in self.classifier._flatten_layers():
            if propagate.kind_of(layer) == "other":
                raise NotImplementedError(
                    f"{type(layer).__name__} (layer {layer.name!r}) is neither linear nor element-wise: the adjoint "
                    "estimate and its calibration know no gate for it. Use the forward moments, MomentNetwork and "
                    "propagated_radius, or write it with linear layers and element-wise ones."
                )

    def _shapes_of(self, images) -> tuple:
        shapes = []

        def rectify(gaussian, activation):
            shapes.append(tuple(gaussian.mean.shape[1:]))
            return activation.propagated(gaussian)

        self.propagate(Gaussian(*self.gaussian_input(images)), Context(rectify=rectify))
        return tuple(shapes)


def _examine(model) -> None:
    """Has `propagate` examine every layer of a model, and of the models in it, that has a rule of the user's."""
    functional = getattr(model, "_functional", None) or model
    for node in (n for nodes in functional._nodes_by_depth.values() for n in nodes if not n.is_input):
        tensors = _called_with(node)[0]
        if isinstance(node.operation, keras.Model):
            _examine(node.operation)
        elif not isinstance(tensors, (list, tuple)):
            propagate.examine(node.operation, tuple(tensors.shape[1:]))
