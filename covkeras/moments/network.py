"""MomentNetwork: any Sequential or Functional Keras classifier, laid again for the pair (mean, covariance)."""

import dataclasses
from collections.abc import Callable

import keras
from keras import tree

from covkeras.moments.dispatch import Context, propagate
from covkeras.moments.gaussian import Gaussian, wide
from covkeras.moments.layers import GaussianInput, Moments
from covkeras.validation import check_classifier, check_r_max, check_shape, check_sigma


def walk(model, value, visit: Callable):
    """Carries `value` through a model's graph and returns what arrives at its output. The only place that knows
    Keras' graph; pinned by a test.

    Args:
        model: a built Sequential or Functional model with one input and one output.
        value: what stands for the model's input.
        visit: (layer, value or list of values, position) -> value, called once per use of a layer, in topological
            order; `position` counts the calls.
    """
    functional = getattr(model, "_functional", None) or model
    values = {id(functional.inputs[0]): value}
    position = 0
    for depth in sorted(functional._nodes_by_depth, reverse=True):
        for node in functional._nodes_by_depth[depth]:
            if node.is_input:
                continue
            arguments = node.arguments.args[0] if node.arguments.args else None
            given = tree.map_structure(lambda t: values[id(t)], arguments)
            values[id(node.outputs[0])] = visit(node.operation, given, position)
            position += 1
    return values[id(functional.outputs[0])]


@propagate.register(keras.Model, keras.Sequential)
def nested(model, gaussian, context):
    """A model inside a model: its own graph, layer by layer."""
    return walk(model, gaussian, lambda layer, given, _: propagate(layer, given, context))


class MomentNetwork(keras.Model):
    """The classifier's graph laid again with `Moments` over the same layers: training one trains the other.

        network = MomentNetwork(classifier, sigma=0.5, r_max=0.1)
        logits = network(images)        # Gaussian(mean=(batch, classes), cov=(classes, classes))

    Args:
        classifier: a built Sequential or Functional model, images in [0, 1] to logits.
        sigma: noise level, in [0, 1] pixel units.
        r_max: bound on the correlation between the pixels under a convolution's window, in [0, 1).

    Attributes:
        gate_shapes: the shapes (..., P * channels) of the rectifiers' inputs, in the order in which they are met.

    Raises:
        NotImplementedError: a layer without a rule; the message names it and the remedy.
        ValueError: a model that is not built, has several inputs or outputs or ends in probabilities; sigma, r_max.
    """

    def __init__(self, classifier, sigma: float, r_max: float = 0.1, name: str = "moment_network"):
        super().__init__(name=name, dtype="float32", autocast=False)
        self.sigma, self.r_max = check_sigma(sigma), check_r_max(r_max)
        check_classifier(classifier)
        self.classifier = classifier
        self.gaussian_input = GaussianInput(self.sigma)
        self.moment_layers = []

        def lay(layer, given, position):
            self.moment_layers.append(Moments(layer, self.r_max, name=f"moments_{position}"))
            return given

        walk(classifier, None, lay)
        # One symbolic pass: every layer that cannot carry the pair is refused here, not in the first step.
        self(keras.Input(self.image_shape, dtype="float32"))

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
            context: the rules' context; its r_max is the network's.

        Returns:
            Gaussian: mean (batch, classes), cov (classes, classes), both at least float32.
        """
        shapes = []

        def recorded(gaussian, slope):
            shapes.append(tuple(gaussian.mean.shape[1:]))
            return context.rectified(gaussian, slope)

        given_context = dataclasses.replace(context, r_max=self.r_max, rectify=recorded)
        mean, cov = walk(
            self.classifier,
            gaussian,
            lambda layer, given, position: self.moment_layers[position](given, context=given_context),
        )
        self.gate_shapes = tuple(shapes)
        return Gaussian(wide(mean), cov)
