"""The gradient by a grey image through a network's first convolution, quicker on a CPU than the backend has it.

A convolution's gradient by its input is a convolution of its output's, here to one channel: vector units compute
sixteen as fast. So 4 x 4 pixels are taken as channels: the kernels of the sixteen places in a block, each the given one
turned and moved, are one kernel with a stride of 4. That is 2.6 times the products of a 5 x 5 kernel, in less time:
`benchmarks/image_gradient.py` has what a step gains. With 3 x 3 it is a twentieth at most. Not measured with AMX.
"""

import contextlib
from collections.abc import Iterator

import keras
from keras import ops

from covkeras.moments.gradients import custom_gradient

BLOCK = 4
SMALLEST = 5


@contextlib.contextmanager
def quick_to_image(classifier) -> Iterator[None]:
    """Within it, convolutions of one channel by large kernels pass gradients on to it in blocks: the same numbers up to
    rounding. On TensorFlow's CPU; elsewhere nothing changes."""
    layers = [layer for layer in classifier._flatten_layers() if _gains(layer)] if _on_cpu() else []
    for layer in layers:
        layer.convolution_op = _in_blocks(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.convolution_op


def _on_cpu() -> bool:
    if keras.config.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return not tf.config.list_logical_devices("GPU")


def _gains(layer) -> bool:
    conv = keras.layers.Conv2D
    if not isinstance(layer, conv) or type(layer).convolution_op is not conv.convolution_op:
        return False
    # Its own, or another replica's thread has been here.
    if "convolution_op" in vars(layer) or not layer.built or layer.data_format != "channels_last" or layer.groups != 1:
        return False
    *size, channels, _ = layer.kernel.shape
    once = tuple(layer.strides) == tuple(layer.dilation_rate) == (1, 1)
    return once and channels == 1 and min(size) >= SMALLEST and layer.padding in ("same", "valid")


def _in_blocks(layer):
    """The layer's `convolution_op`, with the gradient by its inputs in blocks."""
    import tensorflow as tf

    padding = layer.padding.upper()

    @custom_gradient
    def convolved(inputs, kernel):
        def gradient(slopes):
            by_kernel = tf.raw_ops.Conv2DBackpropFilter(
                input=inputs,
                filter_sizes=tf.shape(kernel),
                out_backprop=slopes,
                strides=[1, 1, 1, 1],
                padding=padding,
            )
            return by_image(slopes, kernel, inputs.shape[1:3], padding), by_kernel

        return tf.nn.conv2d(inputs, kernel, 1, padding), gradient

    def operation(inputs, kernel):
        if None in inputs.shape[1:3]:
            return type(layer).convolution_op(layer, inputs, kernel)
        # A Keras variable is cast to the layer's compute dtype as it becomes a tensor.
        return convolved(tf.convert_to_tensor(inputs), tf.convert_to_tensor(kernel))

    return operation


def by_image(slopes, kernel, size, padding: str):
    """The gradient by a grey image (batch, height, width, 1) of a convolution by `kernel` (k, l, 1, channels).

    slopes: the gradient by its output, (batch, ..., ..., channels). size: the image's height and width. padding: "SAME"
    or "VALID", as TensorFlow has it.
    """
    turned, margins = ops.squeeze(kernel[::-1, ::-1], 2), []
    for side, length, known in zip(kernel.shape[:2], size, slopes.shape[1:3], strict=True):
        before = side - 1 - ((side - 1) // 2 if padding == "SAME" else 0)
        blocks = -(-length // BLOCK)
        margins.append([before, BLOCK * blocks + side - 1 - before - known])
    places = [[place, BLOCK - 1 - place] for place in range(BLOCK)]
    moved = [ops.pad(turned, [row, column, [0, 0]]) for row in places for column in places]
    padded = ops.pad(slopes, [[0, 0], *margins, [0, 0]])
    found = ops.conv(padded, ops.stack(moved, -1), BLOCK, "valid", data_format="channels_last")
    # A block's channels are its rows' pixels.
    (rows, columns), axes = found.shape[1:3], (0, 1, 3, 2, 4)
    found = ops.transpose(ops.reshape(found, (-1, rows, columns, BLOCK, BLOCK)), axes)
    return ops.reshape(found, (-1, BLOCK * rows, BLOCK * columns, 1))[:, : size[0], : size[1]]
