"""Every refusal of bad input: what was expected, what came, and the remedy, before any work is done."""

import math
import os

import numpy as np


def check_between(name: str, value, low: float, high: float, closed: str = "neither", why: str = "") -> float:
    """Refuses a number outside an interval; `closed` names the ends that belong to it (neither, left, right, both)."""
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    inside = number and math.isfinite(value)
    if inside:
        above = value >= low if closed in ("left", "both") else value > low
        below = value <= high if closed in ("right", "both") else value < high
        inside = above and below
    if not inside:
        left = "[" if closed in ("left", "both") else "("
        right = "]" if closed in ("right", "both") else ")"
        raise ValueError(
            f"{name} must be a number in {left}{low:g}, {high:g}{right}, got {value!r}.{why and ' ' + why}"
        )
    return float(value)


def check_on_tensorflow(what: str) -> None:
    """Refuses a job that is TensorFlow's where Keras computes with another backend."""
    import keras

    backend = keras.config.backend()
    if backend != "tensorflow":
        raise RuntimeError(
            f"{what} runs on Keras' tensorflow backend, but Keras was imported with {backend!r}. Set the environment "
            "variable KERAS_BACKEND=tensorflow before keras is imported; a classifier saved as a .keras file loads on "
            "either."
        )


def check_sigma(sigma) -> float:
    # Ten times an image's whole range leaves nothing of it: that is a level of 8-bit images.
    why = (
        "sigma is the noise's standard deviation in [0, 1] pixel units; the field uses 0.25, 0.5 and 1. "
        "A level of 8-bit images is divided by 255."
    )
    return check_between("sigma", sigma, 0, 10, why=why)


def check_r_max(r_max) -> float:
    why = "r_max bounds the correlation between neighbouring pixels; the paper uses 0.1."
    return check_between("r_max", r_max, 0, 1, closed="left", why=why)


def check_alpha(alpha) -> float:
    why = "alpha is the probability that a certificate is wrong; the field uses 0.001."
    return check_between("alpha", alpha, 0, 1, why=why)


# `certification.confidence` bounds at an alpha less by this.
_BOUND_MARGIN = 1e-7


def least_samples(alpha: float) -> int:
    """Returns the fewest samples that can certify anything: with every vote for the class, the bound alpha^(1 / n) must
    exceed 1/2, n > log2(1 / alpha)."""
    return math.floor(-math.log2(alpha * (1.0 - _BOUND_MARGIN))) + 1


def check_enough(name: str, n: int, alpha: float) -> None:
    """Refuses so few samples that every image would be abstained on, whatever the votes."""
    least = least_samples(alpha)
    if n < least:
        raise ValueError(
            f"{name} must be at least {least} at alpha {alpha:g}, got {n}: with fewer samples even unanimous votes "
            "certify nothing, and every image would be abstained on."
        )


def check_enough_to_predict(name: str, n: int, alpha: float) -> None:
    """Refuses so few samples that a two-sided binomial test at alpha abstains on unanimous votes, 2 / 2^n > alpha."""
    if 2.0 * 0.5**n > alpha:
        raise ValueError(
            f"{name} must be at least {math.ceil(1 - math.log2(alpha))} at alpha {alpha:g}, got {n}: with fewer "
            "samples even unanimous votes can't tell the top two classes apart, and every image would be abstained on."
        )


# Numbers above are none of a machine's.
LARGEST = 2**62


def check_count(name: str, value, low: int = 1, high: int = LARGEST) -> int:
    """Refuses anything but a whole number from `low` to `high`."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or not low <= value <= high:
        allowed = f">= {low}" if high == LARGEST and (not whole or value < low) else f"from {low} to {high}"
        raise ValueError(f"{name} must be a whole number {allowed}, got {value!r}.")
    return int(value)


def check_switch(name: str, value) -> bool:
    """Refuses what is neither True nor False: any text would be taken for true, "no" as well."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} must be True or False, got {value!r}.")
    return bool(value)


def check_choice(name: str, value, choices) -> str:
    """Refuses anything that is not one of `choices`, which are listed."""
    if value not in tuple(choices):
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")
    return value


# What to do with a classifier that expects other images: the scaling goes into it.
INSIDE = (
    "sigma and radii are in [0, 1] pixel units, so what the classifier expects goes inside it: for one of images from "
    "0 to 255, keras.Sequential([keras.Input(shape), keras.layers.Rescaling(255), model])."
)


def check_images(images, shape: tuple[int | None, ...]) -> np.ndarray:
    """Refuses images that are not finite floats in [0, 1] of the classifier's shape; returns them as float32.

    Args:
        images: (batch, height, width, channels), or (batch, ...) as the classifier takes.
        shape: the classifier's input shape without the batch axis; None for an axis of any length.

    Raises:
        TypeError: integer images. ValueError: wrong rank or shape, NaN, values outside [0, 1].
    """
    images = _check_array(images, shape)
    if images.size and (images.min() < 0 or images.max() > 1):
        raise ValueError(
            f"images must lie in [0, 1], got values from {images.min():g} to {images.max():g}. Scale them; {INSIDE}"
        )
    return images.astype(np.float32, copy=False)


def _check_array(images, shape) -> np.ndarray:
    """Refuses what are no finite floats of that shape; returns them as an array."""
    given, images = images, _as_array(images)
    expected = f"(batch, {', '.join('any' if s is None else str(s) for s in shape)})"
    if images.dtype.kind not in "biuf":
        what = f"images must be an array {expected} of numbers in [0, 1], got {type(given).__name__}."
        raise TypeError(f"{what} {_arrays_from(given, images)}")
    check_floats(images)
    check_shape(images.shape, shape, expected)
    if not np.isfinite(images).all():
        raise ValueError("images must be finite, got NaN or infinity. Find the damaged records, or drop them.")
    return images


def check_given(images, shape: tuple[int | None, ...]):
    """Returns the images of an estimate as they were given, an array or a tensor. An array's values are looked at: they
    need not lie in [0, 1], for moments are known of any mean; whole numbers up to 255 are 8-bit images.

    Raises:
        TypeError, ValueError: as `check_images`, but for its range.
    """
    if not hasattr(images, "shape") or isinstance(images, np.ndarray):
        images = _check_array(images, shape)
        if images.size and images.min() >= 0 and images.max() > 1 and np.abs(images - np.rint(images)).max() < 1e-3:
            raise ValueError(
                f"images must lie in [0, 1], got whole numbers to {images.max():g}: divide 8-bit images by 255, for "
                f"{INSIDE}"
            )
        return images
    check_floats(images)
    check_shape(images.shape, shape)
    return images


def _as_array(images) -> np.ndarray:
    # Of a data set of ours: as floats.
    images = images.floats() if hasattr(images, "floats") else images
    try:
        return np.asarray(images)
    except ValueError:
        shapes = sorted({str(np.shape(one)) for one in images if hasattr(one, "shape")})
        raise ValueError(
            f"images must be of one size, got {', '.join(shapes[:3]) or 'lists of different lengths'}. Resize them, "
            "tf.image.resize(image, (height, width)), or certify each by itself, image[None]."
        ) from None


def _arrays_from(given, images) -> str:
    """How an array is made of what was given in its place."""
    if images.dtype.kind in "US" or isinstance(given, os.PathLike):
        return "Of files: np.stack([np.asarray(PIL.Image.open(path)) for path in paths]) / 255."
    if isinstance(given, dict):
        return f"Of a dictionary: images[{next(iter(given), 'image')!r}]."
    if isinstance(getattr(given, "element_spec", None), (tuple, list)) or not hasattr(given, "as_numpy_iterator"):
        return "Of batches (images, labels): np.concatenate([x for x, _ in batches])."
    return "Of a tf.data.Dataset of batches: np.concatenate(list(dataset.as_numpy_iterator()))."


def check_floats(images) -> None:
    """Refuses integer images: 0 to 255 are no images in [0, 1], however they are cast."""
    dtype = getattr(images, "dtype", None)
    if dtype is not None and "float" not in str(dtype):
        name = getattr(dtype, "name", dtype)
        raise TypeError(f"images must be floating-point numbers in [0, 1], got {name}. Divide 8-bit images by 255.")


def check_radii(radii) -> np.ndarray:
    """Returns radii as float64 (radii,). Raises ValueError: no sequence of them, negative, NaN."""
    try:
        found = np.asarray(radii, np.float64)
    except (TypeError, ValueError):
        found = np.zeros(())
    if found.ndim != 1 or not (found >= 0).all():
        raise ValueError(f"radii must be a list of numbers >= 0, such as [0.0, 0.25, 0.5], got {radii!r}.")
    return found


def check_shape(received, shape, expected: str | None = None) -> None:
    """Refuses a batch of another rank or shape than the classifier's; the static part of `check_images`."""
    expected = expected or f"(batch, {', '.join(map(str, shape))})"
    if len(received) != len(shape) + 1:
        raise ValueError(
            f"images must have shape {expected}, got rank {len(received)}: {tuple(received)}. A single image needs a "
            "batch axis: images[None], or dataset.batch(128); grey images need a channel axis: images[..., None]."
        )
    if any(s is not None and r is not None and r != s for r, s in zip(received[1:], shape, strict=True)):
        raise ValueError(
            f"images must have shape {expected}, got {tuple(received)}. Resize them, or rebuild the model."
        )


def check_labels(labels, classes: int, batch: int | None = None) -> np.ndarray:
    """Refuses labels that are not integers in [0, classes), one for each image."""
    labels = np.asarray(labels)
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"labels must be integers, got {labels.dtype}. One-hot labels: use labels.argmax(-1).")
    if labels.ndim != 1 or (batch is not None and len(labels) != batch):
        raise ValueError(f"labels must have shape ({'batch' if batch is None else batch},), got {labels.shape}.")
    if labels.size and (labels.min() < 0 or labels.max() >= classes):
        raise ValueError(
            f"labels must lie in [0, {classes}), the classifier's classes, got values from {labels.min()} to "
            f"{labels.max()}. Give the classifier as many outputs as there are classes."
        )
    return labels.astype(np.int64, copy=False)


def check_given_labels(labels, classes: int, batch: int | None) -> None:
    """`check_labels` of labels that are no tensor, which may be a graph's; None is none."""
    if labels is not None and (isinstance(labels, np.ndarray) or not hasattr(labels, "shape")):
        check_labels(labels, classes, batch)


def __getattr__(name: str):
    # What a classifier must be has a module of its own now.
    if name in ("check_classifier", "check_fits", "check_fixed_size", "check_weights", "ends_in_probabilities"):
        from covkeras.runtime import classifiers

        return getattr(classifiers, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
