"""Denoisers: stock Keras models of noisy images to images, for any size and channels; a classifier behind one.

Denoised smoothing (Salman et al., NeurIPS 2020): x -> classifier(denoiser(x)) is a classifier like any other, and is
certified as it stands. Its radius is the joined model's, whatever the denoiser does.
"""

import keras
from keras import layers, ops

from covkeras.runtime.classifiers import image_input
from covkeras.runtime.validation import check_count, check_sigma, check_switch


def dncnn(
    input_shape: tuple[int, int, int] = (32, 32, 3),
    depth: int = 17,
    width: int = 64,
    conditioned: bool = False,
    name: str = "dncnn",
) -> keras.Model:
    """Builds DnCNN (Zhang et al. 2017): `depth` 3 x 3 convolutions, batch normalisation between them, that predict the
    noise.

    Args:
        input_shape: (height, width, channels). depth: number of convolutions, at least 3. width: their channels.
        conditioned: whether it takes the noise level too, see `unet`.

    Returns:
        As `unet`.
    """
    check_count("depth", depth, 3)
    check_count("width", width)
    check_switch("conditioned", conditioned)
    given, images, x = _inputs(input_shape, conditioned)
    x = layers.Conv2D(width, 3, padding="same", activation="relu", kernel_initializer="he_normal", name="conv1")(x)
    for i in range(2, depth):
        kind = {"padding": "same", "use_bias": False, "kernel_initializer": "he_normal"}
        x = layers.Conv2D(width, 3, name=f"conv{i}", **kind)(x)
        x = layers.ReLU(name=f"relu{i}")(layers.BatchNormalization(name=f"norm{i}")(x))
    # From zero: training starts at the noisy image itself.
    x = layers.Conv2D(input_shape[-1], 3, padding="same", kernel_initializer="zeros", name=f"conv{depth}")(x)
    return keras.Model(given, _less(images, x), name=name)


def unet(
    input_shape: tuple[int, int, int] = (32, 32, 3),
    widths: tuple[int, ...] = (32, 64, 128),
    patch: int | None = None,
    conditioned: bool = False,
    name: str = "unet",
) -> keras.Model:
    """Builds a small U-Net without normalisation: two 3 x 3 convolutions at each size, down and up again, that predict
    the noise.

    Args:
        input_shape: (height, width, channels); a size that the halving does not divide is padded inside.
        widths: channels at each size, each after the first at half of it.
        patch: pixels on a side that the first convolution takes together, and the last one gives back (as FFDNet,
            Zhang et al. 2018, does, for speed); by default 2, and 1 of images below 16 pixels.
        conditioned: whether it takes the images with as many channels more, which hold the noise's sigma everywhere
            (`with_level`), so that one denoiser serves a range of them.

    Returns:
        A functional model, images (batch, height, width, channels), conditioned (batch, height, width, 2 channels), to
        images (batch, height, width, channels), float32.
    """
    patch = check_count("patch", patch or (1 if min(input_shape[:2]) < 16 else 2))
    if not isinstance(widths, (tuple, list)) or not widths:
        raise ValueError(f"widths must be the channels at each size, such as (32, 64, 128), got {widths!r}.")
    for width in widths:
        check_count("widths", width)
    check_switch("conditioned", conditioned)
    given, images, x = _inputs(input_shape, conditioned)
    kind = {"padding": "same", "kernel_initializer": "he_normal"}
    x = layers.Conv2D(widths[0], max(patch, 3), patch, name="stem", **kind)(x)
    skips = []
    for i, width in enumerate(widths):
        if i:
            x = layers.Conv2D(width, 2, 2, name=f"down{i}", **kind)(x)
        x = _two_convolutions(x, width, f"size{i + 1}")
        skips.append(x)
    for i in range(len(widths) - 2, -1, -1):
        x = layers.Conv2DTranspose(widths[i], 2, 2, name=f"up{i + 1}", **kind)(x)
        x = layers.Add(name=f"join{i + 1}")([_cut(x, skips[i].shape, f"cut{i + 1}"), skips[i]])
        x = _two_convolutions(x, widths[i], f"back{i + 1}")
    # From zero: training starts at the noisy image itself.
    last = {"padding": "same", "kernel_initializer": "zeros", "name": "noise"}
    x = layers.Conv2DTranspose(input_shape[-1], max(patch, 3), patch, **last)(x)
    return keras.Model(given, _less(images, _cut(x, images.shape, "cut")), name=name)


def joined(denoiser: keras.Model, classifier: keras.Model, sigma: float | None = None, name: str = "denoised"):
    """Joins a classifier behind a denoiser: one model, to be trained, certified and exported as any other.

        model = joined(unet((32, 32, 3)), classifier)

    Args:
        denoiser: images to images, such as `dncnn` and `unet` build. classifier: the same images to logits. Both keep
            their weights: neither is copied.
        sigma: what a `conditioned` denoiser is told, in [0, 1] pixel units; models at several sigmas share it.

    Returns:
        A functional model, images (batch, height, width, channels) in [0, 1] to logits (batch, classes).

    Raises:
        ValueError: the parts don't fit; sigma is missing, or has nobody to take it.
    """
    for what, part in (("denoiser", denoiser), ("classifier", classifier)):
        if not getattr(part, "inputs", None):
            raise ValueError(f"{what} must be a built Keras model, got {type(part).__name__}. Call it once on images.")
    takes, gives = tuple(classifier.inputs[0].shape[1:]), tuple(denoiser.outputs[0].shape[1:])
    seen = tuple(denoiser.inputs[0].shape[1:])
    if len(denoiser.inputs) != 1 or len(gives) != 3 or seen not in (gives, (*gives[:2], 2 * gives[2])):
        raise ValueError(
            f"denoiser must map images (height, width, channels) to images of the same shape, got {seen} to {gives}."
        )
    if takes != gives:
        raise ValueError(
            f"classifier must take the denoiser's images, {gives}, it takes {takes}. Build the denoiser for "
            f"input_shape={takes}."
        )
    if is_conditioned(denoiser) != (sigma is not None):
        raise ValueError(
            f"sigma must be given for a conditioned denoiser, and for no other, got {sigma!r} for one "
            f"{'that takes' if is_conditioned(denoiser) else 'without'} a noise level."
        )
    images = keras.Input(gives, name="images")
    told = images
    if sigma is not None:
        level = layers.Rescaling(0.0, offset=check_sigma(sigma), dtype="float32", name="level")(images)
        told = layers.Concatenate(dtype="float32", name="with_level")([images, level])
    return keras.Model(images, classifier(denoiser(told)), name=name)


def with_level(images, level):
    """Returns what a conditioned denoiser takes: images (batch, h, w, c) and level (batch, 1, 1, 1), their sigma in
    [0, 1] pixel units -> (batch, h, w, 2 c)."""
    return ops.concatenate([images, ops.broadcast_to(level, ops.shape(images))], -1)


def at_sigma(model: keras.Model, sigma: float) -> keras.Model:
    """Returns a classifier as it is used at another sigma: with a denoiser that is told that level, over the same
    weights; without one that is told any, as it is."""
    check_sigma(sigma)
    try:
        denoiser, classifier = parts_of(model)
    except ValueError:
        return model
    return joined(denoiser, classifier, sigma, model.name) if is_conditioned(denoiser) else model


def parts_of(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    """Returns (denoiser, classifier) of a model that `joined` made, or that was read back from its file.

    Raises:
        ValueError: it is no such model.
    """
    found = []
    tensor = model.outputs[0] if getattr(model, "outputs", None) else None
    while tensor is not None and len(found) < 2:
        layer = tensor._keras_history.operation
        if not (hasattr(layer, "layers") and getattr(layer, "outputs", None)):
            break
        found.append(layer)
        tensor = layer._inbound_nodes[tensor._keras_history.node_index].input_tensors[0]
    if len(found) < 2 or found[1].outputs[0].shape[1:] != model.inputs[0].shape[1:]:
        raise ValueError(
            f"classifier {getattr(model, 'name', model)!r} has no denoiser in front: "
            "covkeras.models.joined(covkeras.models.unet(input_shape), classifier) makes one that has."
        )
    return found[1], found[0]


def is_conditioned(denoiser: keras.Model) -> bool:
    """Whether a denoiser takes the noise level too."""
    return denoiser.inputs[0].shape[-1] == 2 * denoiser.outputs[0].shape[-1]


def _inputs(input_shape, conditioned: bool):
    """The model's input, the images in it, and what the first convolution sees, centred."""
    *size, channels = input_shape
    given = image_input((*size, channels * (2 if conditioned else 1)))
    images = given[..., :channels] if conditioned else given
    return given, images, layers.Rescaling(2.0, offset=-1.0, name="center")(given)


def _two_convolutions(x, width: int, name: str):
    for i in (1, 2):
        kind = {"padding": "same", "activation": "relu", "kernel_initializer": "he_normal"}
        x = layers.Conv2D(width, 3, name=f"{name}_conv{i}", **kind)(x)
    return x


def _cut(x, shape, name: str):
    """The left upper part of x of the shape's height and width."""
    over = [(0, have - want) for have, want in zip(x.shape[1:3], shape[1:3], strict=True)]
    return layers.Cropping2D(over, name=name)(x) if any(end for _, end in over) else x


def _less(images, noise):
    return layers.Subtract(name="denoised", dtype="float32")([images, noise])
