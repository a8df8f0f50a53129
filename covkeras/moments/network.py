"""MomentNetwork: any Sequential or Functional Keras classifier, laid again for the pair (mean, covariance)."""

import dataclasses

import keras
from keras import ops

from covkeras.moments.bivariate import bivariate
from covkeras.moments.dispatch import UNKNOWN, Context, propagate, walks_its_graph
from covkeras.moments.gaussian import Gaussian, wide
from covkeras.moments.graph import called_with, nodes_of, walk
from covkeras.moments.layers import GaussianInput, Moments, PlainErrors
from covkeras.runtime.classifiers import check_classifier, check_fixed_size, with_a_graph
from covkeras.runtime.validation import check_choice, check_given, check_r_max, check_sigma

RECTIFIERS = ("unchanged", "bivariate")


@propagate.register(keras.Model, keras.Sequential)
def nested(model, gaussian, context):
    """A model inside a model: its own graph, layer by layer."""
    return walk(
        model, gaussian, lambda layer, given, _, options: propagate(layer, given, context.with_options(options))
    )


@keras.saving.register_keras_serializable("covkeras")
class MomentNetwork(PlainErrors, keras.Model):
    """The classifier's graph laid again with `Moments` over the same layers: training one trains the other.

        network = MomentNetwork(classifier, sigma=0.5, r_max=0.1)
        logits = network(images)        # Gaussian(mean=(batch, classes), cov=(classes, classes))

    Args:
        classifier: a built Sequential or Functional model, images in [0, 1] to logits.
        sigma: noise level, in [0, 1] pixel units.
        r_max: bound on the correlation between the pixels under a convolution's window, in [0, 1). A context that has
            an r_max of its own wins.
        unknown: what is done with a layer that has no rule, see `Context`: "refuse" it here; "linearise" it; or
            "adjoint", take its mean alone: then the network is for the adjoint estimate only.
        rectifier: the covariance through a (leaky) ReLU: "unchanged", the paper's; or "bivariate", that of two ReLUs of
            jointly Gaussian units, in the mean over the batch's images and positions (`bivariate.bivariate`): nearer to
            the network on one image at a time, dearer, and no longer a function of the weights alone.

    Attributes:
        gate_shapes: the shapes (..., P * channels) of the activations' inputs, in the order in which they are met.

    Raises:
        NotImplementedError: a layer without a rule, a model whose `call` is not its graph; the message names it and the
            remedy.
        ValueError: a model that is not built, has several inputs or outputs or ends in probabilities; sigma, r_max.
    """

    def __init__(
        self,
        classifier,
        sigma: float,
        r_max: float = 0.1,
        unknown: str = "refuse",
        name: str = "moment_network",
        rectifier: str = "unchanged",
    ):
        super().__init__(name=name, dtype="float32", autocast=False)
        self.sigma, self.r_max = check_sigma(sigma), check_r_max(r_max)
        classifier = with_a_graph(classifier)
        check_classifier(classifier)
        self.unknown = check_choice("unknown", unknown, UNKNOWN)
        self.rectifier = check_choice("rectifier", rectifier, RECTIFIERS)
        if unknown == "refuse":
            propagate.rule_for(classifier)
        elif not propagate.has_rule(classifier):
            # Its call is not its graph: it is one layer, without a rule.
            image = keras.Input(classifier.inputs[0].shape[1:])
            classifier = keras.Model(image, classifier(image))
        self.classifier = classifier
        check_fixed_size(self.image_shape)
        self.gaussian_input = GaussianInput(self.sigma)
        self.moment_layers = []

        def lay(layer, given, position, options):
            self.moment_layers.append(Moments(layer, self.r_max, unknown, name=f"moments_{position}"))
            outputs = nodes_of(classifier)[position].outputs
            return [None] * len(outputs) if len(outputs) > 1 else None

        walk(classifier, None, lay)
        _examine(classifier)
        # One black image: every layer that cannot carry the pair is refused here, not in the first step; not by
        # __call__, which would wrap the refusal into a page about the layer's arguments.
        self.gate_shapes = self._shapes_of(unknown)
        if unknown == "adjoint" and self._is_known():
            self.unknown = "refuse"
        self.built = True

    @property
    def trained_classifier(self):
        """What is certified, or trained, where a network is handed over for its classifier."""
        return self.classifier

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(height, width, channels) of the classifier's images."""
        return tuple(self.classifier.inputs[0].shape[1:])

    def __call__(self, images, *args, **kwargs):
        return super().__call__(check_given(images, self.image_shape), *args, **kwargs)

    def call(self, images, training: bool = False, context: Context | None = None) -> Gaussian:
        """Propagates N(images, sigma^2 I) to the logits.

        Args:
            images: (batch, height, width, channels) in [0, 1].
            training: whether this is a training step.
            context: replaces the rules' context (the adjoint estimate's and the trainer's way in).

        Returns:
            Gaussian: mean (batch, classes), cov (classes, classes), both float32.
        """
        self._check_forward(context)
        return self.propagate(Gaussian(*self.gaussian_input(images)), context or Context(training=bool(training)))

    def compile(self, optimizer="sgd", loss=None, *args, **kwargs) -> None:
        """As `keras.Model.compile`. Raises ValueError: one loss, where the outputs are two."""
        if loss is not None and not isinstance(loss, (list, tuple, dict)):
            raise ValueError(
                "loss must be two, of the mean and of the covariance, such as [loss, None], got one. To train the "
                "classifier for its radius: CertifiedTrainer(network.classifier, objective)."
            )
        super().compile(optimizer, loss, *args, **kwargs)

    def predict(self, *args, **kwargs):
        """Refused: Keras would stack the batches' covariances, each of which is that of all its images."""
        raise NotImplementedError("predict has no pair to return: call network(images), a batch at a time.")

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
        if context.unknown is None:
            context = dataclasses.replace(context, unknown=self.unknown)
        if context.rectify is None and self.rectifier == "bivariate":
            context = dataclasses.replace(
                context, rectify=lambda g, activation: bivariate(g, activation, context.kernels)
            )

        def visit(layer, given, position, options):
            # Not by __call__: see __init__.
            return self.moment_layers[position].call(given, context=context.with_options(options))

        mean, cov = walk(self.classifier, gaussian, visit)
        return Gaussian(wide(mean), cov)

    def get_config(self) -> dict:
        classifier = keras.saving.serialize_keras_object(self.classifier)
        names = ("sigma", "r_max", "unknown", "name", "rectifier")
        return {"classifier": classifier, **{name: getattr(self, name) for name in names}}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        read = keras.saving.deserialize_keras_object(config["classifier"], custom_objects=custom_objects)
        return cls(**{**config, "classifier": read})

    def _is_known(self) -> bool:
        """Whether every layer has a rule after all, which covers it, and which the adjoint estimate knows."""
        try:
            self._shapes_of("refuse")
        except NotImplementedError:
            return False
        return not self._unestimable()

    def check_gates_known(self) -> None:
        """Refuses the gates of a propagated covariance where a layer without a rule loses it."""
        if self.unknown == "adjoint":
            raise NotImplementedError(
                "gates of the propagated covariance need a rule for every layer: give gates, such as "
                "calibrate_gates(network, images), or make the network with unknown='linearise'."
            )

    def _check_forward(self, context) -> None:
        if self.unknown == "adjoint" and not (context and context.rectify):
            raise NotImplementedError(
                "a network with unknown='adjoint' carries no covariance through layers without a rule: use it with "
                "adjoint_margin, or make one with unknown='linearise'."
            )

    def check_estimable(self) -> None:
        """Refuses what the adjoint estimate can't be right about: it knows linear layers and element-wise ones.

        Raises:
            NotImplementedError: a layer with a rule of the user's that is neither.
        """
        if self.unknown == "refuse" and (layers := self._unestimable()):
            raise NotImplementedError(
                f"{type(layers[0]).__name__} (layer {layers[0].name!r}) is neither linear nor element-wise: the "
                "adjoint estimate and its calibration know no gate for it. Use the forward moments, MomentNetwork and "
                "propagated_radius, or write it with linear layers and element-wise ones."
            )

    def _unestimable(self) -> list:
        return [layer for layer in self.classifier._flatten_layers() if propagate.kind_of(layer) == "other"]

    def _shapes_of(self, unknown: str) -> tuple:
        """What activations meet when one black image passes."""
        images, shapes = ops.zeros((1, *self.image_shape), "float32"), []

        def rectify(gaussian, activation):
            shapes.append(tuple(gaussian.mean.shape[1:]))
            return activation.propagated(gaussian)

        self.propagate(Gaussian(*self.gaussian_input(images)), Context(rectify=rectify, unknown=unknown))
        return tuple(shapes)


def check_network(network) -> None:
    """Refuses another thing than a MomentNetwork, such as the classifier itself."""
    if not isinstance(network, MomentNetwork):
        raise TypeError(
            f"network must be a MomentNetwork, such as MomentNetwork(classifier, sigma=0.25), got "
            f"{type(network).__name__}."
        )


def _examine(model) -> None:
    """Has `propagate` examine every layer of a model, and of the models in it, that has a rule of the user's."""
    for node in nodes_of(model):
        layer, tensors, _ = called_with(node)
        if isinstance(layer, keras.Model):
            if walks_its_graph(layer):
                _examine(layer)
        elif not isinstance(tensors, (list, tuple)) and propagate.has_rule(layer):
            propagate.examine(layer, tuple(tensors.shape[1:]))
