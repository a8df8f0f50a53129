"""Random crops and flips, each a function of its seed alone."""

import numpy as np

AUGMENTATIONS = ("none", "crop", "crop_flip", "resized_crop_flip")
_PADDING = 4


def augment(images, augmentation: str, seed, total: int | None = None, start: int = 0):
    """Augments a batch: random crops after zero padding of 4, and for "crop_flip" random mirror images.

    Args:
        images: (batch, height, width, channels). augmentation: none, crop, crop_flip; resized_crop_flip has its
            place where images are read (`resized_crop`). seed: two int64. total, start: where the images are a part of
            a batch, its size and their place in it: each is augmented as in the whole.

    Returns:
        The batch, same shape.
    """
    import tensorflow as tf

    if augmentation not in ("crop", "crop_flip"):
        return images
    height, width, own = images.shape[1], images.shape[2], slice(start, start + tf.shape(images)[0])
    batch = tf.shape(images)[0] if total is None else total
    padded = tf.pad(images, [[0, 0], [_PADDING, _PADDING], [_PADDING, _PADDING], [0, 0]])
    draws = tf.random.stateless_uniform([3, batch], seed, 0, 2 * _PADDING + 1, tf.int32, alg="philox")
    rows = draws[0][own, None] + tf.range(height)
    columns = draws[1][own, None] + tf.range(width)
    if augmentation == "crop_flip":
        # An independent bit: 0 to 8 is odd in 4 cases of 9, so a draw of its own.
        mirrored = tf.random.stateless_uniform([batch], seed + 1, 0, 2, tf.int32, alg="philox")
        columns = tf.where(mirrored[own, None] == 1, tf.reverse(columns, [1]), columns)
    return tf.gather(tf.gather(padded, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)


def resized_crop(image, size: int, seed):
    """A random part of 8 to 100 % of an image (height, width, 3), resized to (size, size, 3), mirrored half the time
    (Szegedy et al. 2015, the usual for ImageNet)."""
    import tensorflow as tf

    begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.shape(image),
        tf.zeros([1, 0, 4]),
        seed,
        min_object_covered=0.0,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(0.08, 1.0),
        use_image_if_no_bounding_boxes=True,
    )
    part = tf.image.resize(tf.slice(image, begin, extent), (size, size), antialias=True)
    return tf.image.stateless_random_flip_left_right(part, seed + 1)


def centre_crop(image, size: int):
    """The central square, 7/8 of the shorter side, resized to (size, size, channels)."""
    import tensorflow as tf

    shape = tf.shape(image)
    side = tf.minimum(shape[0], shape[1])
    side = tf.maximum(side - side // 8, 1)
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    return tf.image.resize(image[top : top + side, left : left + side], (size, size), antialias=True)


def all_sized(images, size: int) -> np.ndarray:
    """8-bit images, each of a size of its own, as `sized`: (images, size, size, channels) uint8."""
    import tensorflow as tf

    return np.stack([sized(tf.constant(image), size).numpy() for image in images])


def sized(image, size: int):
    """`centre_crop` of an 8-bit image, rounded to 8 bits again."""
    import tensorflow as tf

    square = tf.round(centre_crop(tf.cast(image, tf.float32), size))
    return tf.cast(tf.clip_by_value(square, 0, 255), tf.uint8)
