"""What a classifier must be, by its graph and by what it answers to a probe; refusals with the remedy."""

import math
import warnings
import weakref

import numpy as np

from covkeras.runtime.validation import INSIDE, check_count


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
    if len(input_shape) != 3:
        raise ValueError(f"input_shape must be (height, width, channels), got {tuple(input_shape)}.")
    for name, value in zip(("height", "width", "channels"), input_shape, strict=True):
        check_count(f"input_shape's {name}", value)
    return keras.Input(tuple(input_shape), name="images")


def with_a_graph(classifier):
    """Returns a classifier whose input Keras knows: itself, or, for a subclassed model that was called on images or
    built for a shape, a Functional model around it, over the same weights; of a CertifiedTrainer its classifier."""
    import keras

    # A trainer says so: others' models may have a part of any other name.
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
    _check_answers(classifier)


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


# Classifiers whose answers were looked at; that are functions of an image.
_ANSWERED, _FUNCTIONS = weakref.WeakSet(), weakref.WeakSet()


def probe_images(classifier) -> np.ndarray:
    """Returns 32 images (8 of more than 100 x 100) of many kinds in [0, 1], float32, of the classifier's shape (32
    where an axis is free): flat ones, waves, blobs and noise, of several contrasts."""
    shape = tuple(32 if s is None else s for s in classifier.inputs[0].shape[1:])
    count = 32 if math.prod(shape[:-1]) <= 10_000 else 8
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, s) for s in shape[:-1]), indexing="ij")) if len(shape) > 1 else 0
    images = []
    for i in range(count):
        if i % 4 == 3 or len(shape) == 1:
            image = rng.random(shape)
        elif i % 4 == 0:
            image = np.broadcast_to(rng.random(shape[-1]), shape)
        else:
            direction, centre = rng.normal(size=(2, len(shape) - 1, *[1] * (len(shape) - 1)))
            ramp = (direction * grid).sum(0)
            blob = np.exp(-3 * np.square(grid - 0.5 * centre).sum(0))
            wave = blob if i % 4 == 1 else 0.5 + 0.5 * np.sin((1 + i % 7) * ramp)
            image = wave[..., None] * rng.random(shape[-1])
        images.append(image * (1.0 if i % 3 else 0.3))
    return np.clip(np.stack(images), 0, 1).astype(np.float32)


def _check_answers(classifier) -> None:
    """Looks at what the classifier answers to a probe: a tensor of logits, not of probabilities."""
    import keras

    if classifier in _ANSWERED:
        return
    images = probe_images(classifier)
    answer = classifier(images, training=False)
    if isinstance(answer, (dict, list, tuple)):
        raise ValueError(
            f"classifier must return one logits tensor, got a {type(answer).__name__}. Wrap it: "
            "keras.Model(classifier.inputs[0], classifier.outputs[0])."
        )

    def values(answer):
        return np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(answer, "float32")))

    def bounded(answer):
        return (answer >= 0).all() and (answer <= 1).all()

    answer = values(answer)
    with np.errstate(invalid="ignore"):
        inside = bounded(answer) and np.ptp(answer, 0).max() > 0
        softmax = inside and np.abs(answer.sum(-1) - 1).max() < 0.02
        # A sigmoid's answers stay in [0, 1] whatever the image.
        if softmax or (inside and all(bounded(values(classifier(k * images, training=False))) for k in (-1e3, 1e3))):
            raise ValueError(
                f"classifier must end in logits, but its answers are probabilities: on {len(images)} test images all "
                f"lie in [0, 1]{' and sum to 1' if softmax else ''}. Remove the softmax (or sigmoid) at the end: the "
                "losses apply it, and the predicted class does not change. To certify it as it is: "
                "covkeras.adapt(classifier, ends_in='softmax')."
            )
    _ANSWERED.add(classifier)


def check_is_a_function(classifier) -> None:
    """Refuses a classifier whose answer for an image is not the image's alone: layers that draw at random, count their
    calls, or look at the other images of a batch. What is smoothed must be one function.

    Raises:
        ValueError: it answers the same probe otherwise when asked again, or in another batch.
    """
    import keras

    if classifier in _FUNCTIONS:
        return
    images = probe_images(classifier)

    def answers(batch):
        return np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(classifier(batch, training=False), "float32")))

    first = answers(images)
    coarse = any("float16" in str(layer.compute_dtype) for layer in classifier._flatten_layers())
    # The last bits of a sum may depend on the batch's shape.
    allowed = (0.02 if coarse else 1e-3) * (1.0 + np.abs(first[np.isfinite(first)]).max(initial=0.0))

    def differ(others, of):
        with np.errstate(invalid="ignore"):
            return float(np.nanmax(np.abs(np.where(others == of, 0.0, others - of)), initial=0.0))

    off = differ(answers(images), first)
    if off > 1e-2 * allowed:
        raise ValueError(
            f"classifier must be a function of its image, but asked twice about the same {len(images)} test images it "
            f"answers otherwise (logits off by up to {off:.3g}). A layer draws at random, or counts its calls, outside "
            "training: have it call Dropout and the like with the training that it is given."
        )
    off = max(differ(answers(images[[i, i]])[0], first[i]) for i in (0, len(images) // 2, len(images) - 1))
    if off > allowed:
        raise ValueError(
            "classifier must be a function of its image, but its answer for one depends on the others in its batch "
            f"(logits off by up to {off:.3g}). Have its layers call BatchNormalization with the training that they are "
            "given, and compare no image with another."
        )
    _FUNCTIONS.add(classifier)


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


def warn_of_scale(classifier) -> None:
    """Warns of a classifier that hardly looks at images in [0, 1], and tells the same images from 0 to 255 apart."""
    images = probe_images(classifier)
    as_given, larger = (np.asarray(classifier(k * images, training=False), np.float32) for k in (1.0, 255.0))
    second, first = np.sort(as_given, -1)[:, -2:].T
    with np.errstate(invalid="ignore"):  # masked classes
        margin = first - second
        alike = len(set(as_given.argmax(-1))) == 1 and np.ptp(margin) < 0.5 * margin.mean()
    classes = len(set(larger.argmax(-1)))
    if alike and classes > 1:
        warnings.warn(
            f"classifier gives {len(images)} different test images in [0, 1] all one class with nearly one margin, "
            f"and the same from 0 to 255 {classes} classes: it seems to expect 0 to 255: "
            f"covkeras.adapt(classifier, input_range=(0, 255)), or --input-range 0 255. {INSIDE[0].upper()}"
            f"{INSIDE[1:]}",
            UserWarning,
            stacklevel=4,
        )
