"""What a classifier answers to a probe: logits, of its image alone, of images in [0, 1]."""

import math
import warnings
import weakref

import numpy as np

from covkeras.runtime.validation import INSIDE

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


def check_answers(classifier) -> None:
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
