"""Classifiers from elsewhere, as Keras models of images in [0, 1] to logits: other pixels, a softmax, SavedModels."""

import os
import warnings
from collections.abc import Callable, Sequence

import keras
import numpy as np
from keras import ops

from covkeras.runtime.files import is_keras_file
from covkeras.runtime.loading import load_keras, remedy_for
from covkeras.runtime.validation import check_choice, check_count, check_switch

_AFTER = ("logits", "softmax", "sigmoid")
# log p of a probability that was rounded to nothing: below every other float32.
_NOTHING = 1.2e-38


@keras.saving.register_keras_serializable("covkeras")
class LogProbabilities(keras.layers.Layer):
    """Probabilities (batch, classes) to logits, log p: the class is the same, and what softmax makes of them. One
    probability (batch, 1), of a sigmoid, to the two of its class and the other."""

    def call(self, probabilities):
        p = ops.cast(probabilities, "float32")
        if p.shape[-1] == 1:
            p = ops.concatenate([1.0 - p, p], axis=-1)
        return ops.log(ops.maximum(p, _NOTHING))


class Foreign(keras.layers.Layer):
    """A function of images that Keras knows nothing of, as a layer: certified as it stands, in its own arithmetic.

    function: images (batch, ...) float32 to one tensor. owner: what holds its variables, a tf.Module or a SavedModel;
    it is kept, for a SavedModel's signatures die with it.
    """

    def __init__(self, function: Callable, owner=None, name: str = "foreign"):
        super().__init__(name=name, dtype="float32")
        self.function, self.owner = function, owner

    def call(self, images):
        return self.function(images)

    @property
    def held(self) -> list:
        """TensorFlow's variables behind the function, for an export and to tell one classifier from another."""
        import tensorflow as tf

        found = [*getattr(self.owner, "variables", ()), *getattr(self.owner, "trainable_variables", ())]
        for signature in getattr(self.owner, "signatures", {}).values():
            found += signature.variables
        traced = tf.function(self.function, autograph=False)
        found += traced.get_concrete_function(tf.TensorSpec(self.input.shape, tf.float32)).graph.variables
        found = [v if isinstance(v, tf.Variable) else v.value for v in found]
        return list({id(v): v for v in found}.values())

    def get_config(self):
        raise ValueError(
            f"{self.name!r} is no Keras layer but a function from elsewhere: it can't be rebuilt in another precision "
            "or on several devices, nor saved as a .keras file. Keep what it came from, and certify it as it is."
        )


def foreign_layers(classifier) -> list[Foreign]:
    """Returns the layers of a model that Keras knows nothing of."""
    return [layer for layer in classifier._flatten_layers() if isinstance(layer, Foreign)]


def adapt(
    classifier,
    input_range: tuple[float, float] = (0.0, 1.0),
    ends_in: str = "logits",
    channels_first: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: tuple[int, int] | None = None,
    input_shape: tuple[int, ...] | None = None,
    signature: str | None = None,
) -> keras.Model:
    """Lays a Keras model of images in [0, 1] to logits around any classifier, so that radii mean [0, 1] pixels.

        adapt(model, input_range=(0, 255), ends_in="softmax")
        adapt("exported/1")                         # a TensorFlow SavedModel, without its code
        adapt(module, input_shape=(28, 28, 1))      # a tf.Module, a tf.function, any images -> logits

    The images go through, in this order: resized to the classifier's own size, stretched to `input_range`, less `mean`
    over `std`, channels first. Where the classifier is no Keras model it is one layer that Keras knows nothing of:
    it is certified, attacked and exported as it stands; moments take it with `unknown="linearise"` or the adjoint
    estimate, if TensorFlow can differentiate it.

    Args:
        classifier: a built Keras model; a SavedModel, loaded or by its folder; or a callable.
        input_range: what 0 and 1 become. ends_in: "logits", "softmax", or "sigmoid" of one output.
        channels_first: whether it takes (batch, channels, height, width).
        mean, std: of each channel, in units of `input_range`.
        image_size: (height, width) of the images, where that is another than the classifier's: they are resized
            inside, bilinearly, and radii are of the images before.
        input_shape: without the batch, as the classifier takes it; needed where it does not say.
        signature: of a SavedModel; by default the only one, logits, or serving_default.

    Returns:
        A Functional model, images (batch, height, width, channels) float32 to logits (batch, classes).

    Raises:
        ValueError: naming the argument: what it takes is not known, or not one image batch of any number; it gives no
            (batch, classes); a range that is none.
    """
    check_choice("ends_in", ends_in, _AFTER)
    check_switch("channels_first", channels_first)
    low, high = _range(input_range)
    image_size = None if image_size is None else _sizes("image_size", image_size, "(height, width)")
    input_shape = None if input_shape is None else _sizes("input_shape", input_shape, "(height, width, channels)")
    layer, shape = _layer_of(classifier, input_shape, signature)
    own = (*shape[1:], shape[0]) if channels_first else shape
    if len(own) != 3 or None in own:
        raise ValueError(
            f"input_shape must be {'(channels, height, width)' if channels_first else '(height, width, channels)'}, "
            f"got {shape}. Give it as the classifier takes one image."
        )
    images = keras.Input((*image_size, own[-1]) if image_size else own, name="images")
    x = images
    if image_size and image_size != own[:2]:
        x = keras.layers.Resizing(*own[:2], data_format="channels_last", name="resize")(x)
    if (low, high) != (0.0, 1.0):
        x = keras.layers.Rescaling(high - low, offset=low, name="stretch")(x)
    if mean is not None or std is not None:
        scale, offset = _standardised(mean, std, own[-1])
        # Of three axes: with one, Keras takes it for the first where its image_data_format is channels_first.
        x = keras.layers.Rescaling([[scale]], offset=[[offset]], name="standardise")(x)
    if channels_first:
        x = keras.layers.Permute((3, 1, 2), name="channels_first")(x)
    y = layer(x)
    if len(getattr(y, "shape", ())) != 2 or y.shape[-1] is None:
        raise ValueError(
            f"classifier must return (batch, classes), got {getattr(y, 'shape', type(y).__name__)}. Wrap it in a "
            "function that returns its logits alone."
        )
    if ends_in == "sigmoid" and y.shape[-1] != 1:
        raise ValueError(
            f"ends_in 'sigmoid' is for one output, got {y.shape[-1]}: several labels at once have no class."
        )
    if ends_in != "logits":
        y = LogProbabilities(name="log_probabilities")(y)
    return keras.Model(images, y, name="adapted")


def _sizes(name: str, given, expected: str) -> tuple[int, ...]:
    """A shape as whole numbers, as many as are expected."""
    try:
        sizes = tuple(given)
    except TypeError:
        sizes = ()
    if len(sizes) != expected.count(",") + 1:
        raise ValueError(f"{name} must be {expected}, got {given!r}.")
    return tuple(check_count(f"each of {name}", size) for size in sizes)


def _range(input_range) -> tuple[float, float]:
    try:
        low, high = (float(v) for v in input_range)
    except (TypeError, ValueError):
        raise ValueError(f"input_range must be (low, high), such as (0, 255), got {input_range!r}.") from None
    if not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(f"input_range must have low below high, such as (-1, 1), got {input_range!r}.")
    return low, high


def _standardised(mean, std, channels: int) -> tuple[list, list]:
    """The factors and offsets of (x - mean) / std."""
    mean = np.zeros(channels) if mean is None else np.asarray(mean)
    std = np.ones(channels) if std is None else np.asarray(std)
    for name, values in (("mean", mean), ("std", std)):
        numbers = values.dtype.kind in "iuf" and values.shape in ((), (channels,))
        if not numbers or not np.isfinite(values).all():
            raise ValueError(
                f"{name} must be {channels} finite numbers, one for each channel, got {values.tolist()!r}."
            )
    mean, std = mean.astype(np.float64), std.astype(np.float64)
    if not (std > 0).all():
        raise ValueError(f"std must be above 0, got {std.tolist()}.")
    one = np.ones(channels)
    return (one / std).tolist(), (-mean / std * one).tolist()


def _layer_of(classifier, input_shape, signature: str | None):
    """What is called on the classifier's images, a layer or a model, and (height, width, channels) as it takes them."""
    from covkeras.runtime.classifiers import with_a_graph

    if isinstance(classifier, (str, os.PathLike)):
        classifier = _loaded(os.fspath(os.path.expanduser(classifier)))
    if signature is not None and not hasattr(classifier, "signatures"):
        raise ValueError(f"signature is for a SavedModel, got {signature!r} for {type(classifier).__name__}.")
    if isinstance(classifier, keras.layers.Layer):
        known = with_a_graph(classifier) if isinstance(classifier, keras.Model) else classifier
        if getattr(known, "inputs", None):
            shape = tuple(known.inputs[0].shape[1:])
            if input_shape and input_shape != shape and None not in shape:
                raise ValueError(f"input_shape must be the classifier's own, {shape}, got {input_shape}.")
            return known, input_shape or shape
        return known, _needed(input_shape, known)
    if hasattr(classifier, "signatures") and not (callable(classifier) and input_shape and signature is None):
        return _signature_of(classifier, signature)
    if isinstance(classifier, type):
        raise ValueError(f"classifier must be a model, got the class {classifier.__name__!r}: make one.")
    if not callable(classifier):
        raise ValueError(
            f"classifier must be a Keras model, a SavedModel or a callable of images, got {type(classifier).__name__}."
        )
    return Foreign(classifier, classifier), _needed(input_shape, classifier)


def _needed(input_shape, classifier) -> tuple:
    if input_shape is None:
        raise ValueError(
            f"input_shape must be given, since {type(classifier).__name__} does not say what it takes: "
            "adapt(classifier, input_shape=(height, width, channels))."
        )
    return input_shape


def _loaded(path: str):
    if is_keras_file(path):
        return load_keras(path)
    import tensorflow as tf

    if not os.path.exists(os.path.join(path, "saved_model.pb")):
        if not os.path.exists(path):
            raise FileNotFoundError(f"classifier {path} does not exist. Name a .keras file, or a SavedModel's folder.")
        what = f"classifier {path!r} is neither a .keras or .h5 file nor a folder with a saved_model.pb."
        raise ValueError(f"{what} {remedy_for(path)}".rstrip())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return tf.saved_model.load(path)


def _signature_of(loaded, name: str | None):
    """A SavedModel's signature as a layer, and the shape of its one input."""
    names = list(loaded.signatures)
    # Of several, such as covkeras.export writes, the one that says what it answers.
    chosen = name or (names[0] if len(names) == 1 else "logits" if "logits" in names else "serving_default")
    if chosen not in names:
        raise ValueError(f"signature must be one of {', '.join(names) or '(it has none)'}, got {chosen!r}.")
    function = loaded.signatures[chosen]
    specs = function.structured_input_signature[1]
    if len(specs) != 1:
        raise ValueError(
            f"signature {chosen!r} must take one image batch, it takes {sorted(specs)}. Wrap it in a function of the "
            "images, and give input_shape."
        )
    (key, spec), outputs = next(iter(specs.items())), list(function.structured_outputs)
    if len(outputs) != 1 and "logits" not in outputs:
        raise ValueError(
            f"signature {chosen!r} must return one tensor, it returns {outputs}. Wrap it in a function that returns "
            "its logits alone, and give input_shape."
        )
    if spec.shape.rank != 4 or spec.shape[0] is not None:
        raise ValueError(
            f"signature {chosen!r} must take any number of images, (None, height, width, channels), it takes "
            f"{spec.shape}. Export it with a free batch axis."
        )
    if not spec.dtype.is_floating:
        raise ValueError(
            f"signature {chosen!r} must take floating-point images, it takes {spec.dtype.name}: noisy images would be "
            "cut to whole numbers. Export the network behind the cast."
        )
    output = outputs[0] if len(outputs) == 1 else "logits"

    def call(images):
        return function(**{key: ops.cast(images, spec.dtype.name)})[output]

    return Foreign(call, loaded), tuple(spec.shape[1:])
