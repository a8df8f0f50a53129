"""Image files to pixels, in the graph: the same as Pillow's and as a viewer shows them, or a refusal with the reason.

serving/client.py has the same rules in Pillow, for a client without TensorFlow.
"""

import tensorflow as tf

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
# Pillow's luma, ITU-R 601 in 16 bits: exact for grey, where the weights add up to 1.
_LUMA = (19595, 38470, 7471)


def decoded(text, channels: int):
    """Returns the pixels of one PNG or JPEG, uint8 (height, width, channels).

    JPEG by the accurate integer transform, which is Pillow's; the default, faster one is off by an L2 distance as large
    as radii are. Grey from colour by Pillow's luma.

    Args:
        text: string scalar, the file's bytes. channels: 1 or 3.

    Raises:
        tf.errors.InvalidArgumentError: no PNG or JPEG; 16 bits; transparency; CMYK; turned by its EXIF
            orientation, which a viewer applies and this does not; animated.
    """
    png, jpeg = tf.strings.substr(text, 0, 8) == _PNG, tf.strings.substr(text, 0, 3) == _JPEG
    raw = tf.io.decode_raw(text, tf.uint8)
    checks = [
        _require(png | jpeg, "image must be a PNG or JPEG file: save it as one"),
        _require(~_turned(raw), "image must be upright, but its EXIF orientation turns it: save it turned"),
    ]
    with tf.control_dependencies(checks):
        colour = tf.cond(png, lambda: _png(tf.identity(text), raw), lambda: _jpeg(tf.identity(text)))
    if channels == 3:
        return tf.ensure_shape(colour, (None, None, 3))
    wide = tf.reduce_sum(tf.cast(colour, tf.int32) * tf.constant(_LUMA), -1, keepdims=True)
    return tf.ensure_shape(tf.cast((wide + 2**15) // 2**16, tf.uint8), (None, None, 1))


def _png(text, raw):
    # Of the header: width, height, the bits of a sample, and the type of colour, whose third bit tells of alpha.
    header = tf.pad(raw[:26], [[0, tf.maximum(26 - tf.size(raw), 0)]])
    checks = [
        _require(header[24] <= 8, "image must have 8 bits a channel, but it is a 16-bit PNG: convert it"),
        _require(~_contains(raw, b"acTL"), "image must be a single one, but it is an animated PNG"),
    ]
    with tf.control_dependencies(checks):
        text = tf.identity(text)
    alpha = (tf.bitwise.bitwise_and(header[25], 4) > 0) | _contains(raw, b"tRNS")
    return tf.cond(alpha, lambda: _opaque_png(text), lambda: tf.io.decode_png(text, channels=3))


def _opaque_png(text):
    pixels = tf.io.decode_png(text, channels=4)
    opaque = tf.reduce_all(pixels[..., 3] == 255)
    message = "image must be opaque, but parts of it are transparent: lay it on a background"
    with tf.control_dependencies([_require(opaque, message)]):
        return tf.identity(pixels[..., :3])


def _jpeg(text):
    channels = tf.io.extract_jpeg_shape(text)[2]
    with tf.control_dependencies([_require(channels < 4, "image must be grey or RGB, but it is CMYK: convert it")]):
        return tf.io.decode_jpeg(text, channels=3, dct_method="INTEGER_ACCURATE")


def _turned(raw):
    """Whether the file has EXIF data with an orientation from 2 to 8 (tag 0x0112, one short)."""
    little = _contains(raw, b"\x12\x01\x03\x00\x01\x00\x00\x00", b"\x00", range(2, 9))
    big = _contains(raw, b"\x01\x12\x00\x03\x00\x00\x00\x01\x00", b"", range(2, 9))
    return (_contains(raw, b"Exif\x00\x00") | _contains(raw, b"eXIf")) & (little | big)


def _contains(raw, before: bytes, after: bytes = b"", between: range | None = None):
    """Whether the bytes hold `before`, then a byte of the range if there is one, then `after`."""
    wanted = [*before, *([between] if between else []), *after]
    count = tf.maximum(tf.size(raw) - len(wanted) + 1, 0)
    found = tf.fill([count], True)
    for i, value in enumerate(wanted):
        part = raw[i : i + count]
        found &= part == value if isinstance(value, int) else (part >= value.start) & (part < value.stop)
    return tf.reduce_any(found)


def _require(condition, message: str):
    return tf.debugging.Assert(condition, [message])
