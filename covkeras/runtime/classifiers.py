"""What a classifier must be, by its graph; refusals with the remedy."""

import numpy as np

from covkeras.runtime.probing import check_answers
from covkeras.runtime.validation import check_count


def check_image_shape(input_shape) -> None:
    """Refuses what is no (height, width, channels). Raises ValueError."""
    if not hasattr(input_shape, "__len__") or len(input_shape) != 3:
        raise ValueError(f"input_shape must be (height, width, channels), got {input_shape!r}.")
    for name, value in zip(("height", "width", "channels"), input_shape, strict=True):
        check_count(f"input_shape's {name}", value)


def image_input(input_shape):
    """Returns the input of a new model of images. Raises ValueError: no (height, width, channels), or Keras' layers
    are set to take the channels first."""
    import keras

    if keras.config.image_data_format() != "channels_last":
        raise ValueError(
            "image_data_format must be channels_last where images are (height, width, channels), got "
            f"{keras.config.image_data_format()!r}. Call keras.config.set_image_data_format('channels_last') first; a "
            "model of your own that takes the channels first: covkeras.adapt(model, channels_first=True)."
        )
    check_image_shape(input_shape)
    return keras.Input(tuple(input_shape), name="images")


def with_a_graph(classifier):
    """Returns a classifier whose input Keras knows: itself, or, for a subclassed model that was called on images or
    built for a shape, a Functional model around it, over the same weights; of a CertifiedTrainer, or a MomentNetwork,
    its classifier."""
    import keras

    # Those say so: others' models may have a part of any other name.
    classifier = getattr(classifier, "trained_classifier", classifier)
    config = classifier.get_build_config() if isinstance(classifier, keras.Model) else None
    shape = (config or {}).get("input_shape")
    sequence = isinstance(shape, (tuple, list)) and all(isinstance(length, int) for length in shape[1:])
    if getattr(classifier, "inputs", None) or not sequence or isinstance(classifier, keras.Sequential):
        return classifier
    image = keras.Input(tuple(shape[1:]))
    return keras.Model(image, classifier(image), name=classifier.name)


def check_classifier(classifier) -> None:
    """Refuses a model that is no classifier of float images to logits, by its graph and by what it answers to a probe.

    Raises:
        ValueError: not built; several inputs or outputs, or a dictionary of one; an integer input; probabilities
            instead of logits; weights that are NaN; TensorFlow can't tell what the weights are.
    """
    _check_eager()
    if isinstance(classifier, type):
        raise ValueError(f"classifier must be a built Keras model, got the class {classifier.__name__!r}: make one.")
    inputs, outputs = getattr(classifier, "inputs", None), getattr(classifier, "outputs", None)
    if not inputs or not outputs:
        raise ValueError(
            f"classifier must be a built Keras model, got {type(classifier).__name__!r} without inputs. Start a "
            "Sequential with keras.Input(shape=...); call a subclassed model once on a batch of images."
        )
    if len(inputs) != 1 or len(outputs) != 1:
        raise ValueError(
            f"classifier must map one image tensor to one logits tensor, got {len(inputs)} inputs and "
            f"{len(outputs)} outputs. Wrap it: keras.Model(image, logits)."
        )
    if len(outputs[0].shape) != 2 or outputs[0].shape[-1] is None or outputs[0].shape[-1] < 2:
        raise ValueError(
            f"classifier must end in logits of shape (batch, classes >= 2), got {tuple(outputs[0].shape)}. "
            "For two classes use Dense(2)."
        )
    import keras

    if not isinstance(classifier, keras.Sequential) and isinstance(classifier.input, (dict, list, tuple)):
        raise ValueError(
            f"classifier must take one image tensor, but it takes a {type(classifier.input).__name__} of one. Wrap it: "
            "keras.Model(classifier.inputs[0], classifier.outputs[0])."
        )
    _check_float_inputs(classifier)
    name = ends_in_probabilities(classifier)
    if name:
        raise ValueError(
            f"classifier must end in logits, but layer {name!r} ends in probabilities. Remove the softmax (or "
            "sigmoid) at the end: the losses apply it, and the predicted class does not change. To certify it as it "
            "is: covkeras.adapt(classifier, ends_in='softmax')."
        )
    check_weights(classifier)
    check_answers(classifier)


def _check_eager() -> None:
    """Refuses to work where TensorFlow only writes a graph down: there weights and answers have no values."""
    import keras

    if keras.backend.backend() != "tensorflow":
        return
    import tensorflow as tf

    if not tf.executing_eagerly():
        raise ValueError(
            "TensorFlow must execute eagerly where a classifier is handed over, but it builds a graph here. Do it "
            "outside of tf.function and tf.Graph, and without tf.compat.v1.disable_eager_execution()."
        )


def _check_float_inputs(model) -> None:
    """An integer Input casts what it is given: noisy images, floats in about [0, 1], would become 0 and 1."""
    dtype = str(model.inputs[0].dtype)
    if "float" not in dtype:
        shape = tuple(model.inputs[0].shape[1:])
        raise ValueError(
            f"classifier must take floating-point images, but the input of {model.name!r} is {dtype}, which would cut "
            f"noisy images to whole numbers. Lay it over a float input: twin = keras.models.clone_model(model, "
            f"input_tensors=keras.Input({shape})); twin.set_weights(model.get_weights()); classifier = "
            f"keras.Sequential([keras.Input({shape}), keras.layers.Rescaling(255), twin]), without the Rescaling if it "
            "expects [0, 1]."
        )
    for layer in model.layers:
        if getattr(layer, "inputs", None) and hasattr(layer, "layers"):
            _check_float_inputs(layer)


def check_weights(classifier) -> None:
    """Refuses a classifier with weights that are NaN: it would abstain everywhere."""
    for weight in classifier.weights:
        value = np.asarray(weight, np.float32) if "float" in str(weight.dtype) else np.zeros(1)
        if np.isnan(value).any():
            raise ValueError(
                f"classifier must have finite weights, but {weight.path} has {np.isnan(value).sum()} NaN of "
                f"{value.size}: its training diverged. Load a checkpoint from before, or train with a lower rate."
            )


def check_fixed_size(image_shape) -> None:
    """Refuses a classifier that takes images of any size, where one size is needed."""
    if any(s is None for s in image_shape):
        fixed = tuple(32 if s is None else s for s in image_shape)
        raise ValueError(
            f"classifier takes images of any size, {tuple(image_shape)}, but noise, moments and batches are made for "
            f"one. Fix it: keras.Sequential([keras.Input({fixed}), classifier])."
        )


def check_fits(classifier, data_name: str, image_shape, classes: int) -> None:
    """Refuses a classifier for a data set with other images or another number of classes than its own."""
    takes, outputs = tuple(classifier.inputs[0].shape[1:]), classifier.outputs[0].shape[-1]
    if outputs != classes:
        remedy = "Name the data set it was trained on, or give it another head"
        if data_name.endswith(".npz"):
            remedy += "; an .npz without an image of the last classes names them all, as class_names"
        raise ValueError(
            f"classifier must have an output for each of {data_name}'s {classes} classes, got {outputs} outputs. "
            f"{remedy}."
        )
    if len(takes) == 3 and takes != tuple(image_shape) and takes == (image_shape[-1], *image_shape[:2]):
        raise ValueError(
            f"classifier takes images channels first, {takes}, {data_name} has {tuple(image_shape)}: "
            "covkeras.adapt(classifier, channels_first=True), or --channels-first."
        )
    if len(takes) != len(image_shape) or any(t not in (None, s) for t, s in zip(takes, image_shape, strict=True)):
        raise ValueError(
            f"classifier takes images of shape {takes}, {data_name} has {tuple(image_shape)}. Name the data set it was "
            "trained on, or resize the images with image_size."
        )


def fitted(data, classifier):
    """Returns ImageData as the classifier takes it, grey images of one's own in its three channels. Raises ValueError:
    as `check_fits`."""
    data = data.with_channels(classifier.inputs[0].shape[-1])
    check_fits(classifier, data.name, data.image_shape, len(data.class_names))
    return data


def ends_in_probabilities(classifier) -> str | None:
    """Returns the name of the softmax or sigmoid layer a model ends in, or None. What its graph does not show, a probe
    of `check_classifier` may."""
    last = classifier.outputs[0]._keras_history.operation
    if getattr(last, "outputs", None) and hasattr(last, "layers"):
        return ends_in_probabilities(last)
    activation = getattr(getattr(last, "activation", None), "__name__", "")
    if type(last).__name__ == "Softmax" or activation in ("softmax", "sigmoid", "log_softmax"):
        return last.name
    return None
