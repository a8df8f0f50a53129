"""Classifiers to start from: stock Keras functional models that take pixels in [0, 1], average pooling throughout."""

import keras
from keras import layers

from covkeras.runtime.classifiers import check_image_shape, image_input
from covkeras.runtime.validation import check_count


def lenet(
    input_shape: tuple[int, int, int] = (28, 28, 1),
    num_classes: int = 10,
    filters: tuple[int, ...] = (32, 64, 128),
    units: int = 256,
    name: str = "lenet",
) -> keras.Model:
    """Builds three 3 x 3 convolutions, each with ReLU and 2 x 2 average pooling, and two dense layers.

    Args:
        input_shape: (height, width, channels), at least 8 x 8 for three poolings.
        num_classes: number of logits. filters: channels of the convolutions. units: width of the hidden dense layer.

    Returns:
        A functional model, images (batch, height, width, channels) in [0, 1] to logits (batch, num_classes), float32.
    """
    check_image_shape(input_shape)
    if min(input_shape[:2]) < 2 ** len(filters):
        raise ValueError(
            f"input_shape {tuple(input_shape)} leaves nothing of the image after {len(filters)} poolings. Use a larger "
            "image_size, fewer filters, or a residual network such as narrow_resnet."
        )
    return _lenet(input_shape, num_classes, filters, units, name, 3, "same")


def lenet_5x5(
    input_shape: tuple[int, int, int] = (28, 28, 1),
    num_classes: int = 10,
    filters: tuple[int, ...] = (20, 50),
    units: int = 500,
    name: str = "lenet_5x5",
) -> keras.Model:
    """Builds the LeNet of the field's MNIST tables, with average pooling where theirs has max pooling.

    5 x 5 convolutions without padding, each with ReLU and 2 x 2 pooling, and two dense layers.

    Args:
        input_shape: (height, width, channels), at least 16 x 16 for two convolutions.
        num_classes: number of logits. filters: channels of the convolutions. units: width of the hidden dense layer.

    Returns:
        A functional model, images (batch, height, width, channels) in [0, 1] to logits (batch, num_classes), float32.
    """
    check_image_shape(input_shape)
    for size in input_shape[:2]:
        for _ in filters:
            size = (size - 4) // 2
        if size < 1:
            raise ValueError(
                f"input_shape {tuple(input_shape)} leaves nothing of the image after {len(filters)} 5 x 5 convolutions "
                "with pooling. Use a larger image_size, or the model lenet."
            )
    return _lenet(input_shape, num_classes, filters, units, name, 5, "valid")


def _lenet(input_shape, num_classes, filters, units, name, kernel_size, padding):
    """Convolutions with ReLU and 2 x 2 average pooling, and two dense layers."""
    check_count("num_classes", num_classes, 2)
    images = image_input(input_shape)
    x = layers.Rescaling(2.0, offset=-1.0, name="center")(images)
    kind = {"padding": padding, "activation": "relu", "kernel_initializer": "he_normal"}
    for i, width in enumerate(filters, 1):
        x = layers.Conv2D(width, kernel_size, name=f"conv{i}", **kind)(x)
        x = layers.AveragePooling2D(2, name=f"pool{i}")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(units, activation="relu", kernel_initializer="he_normal", name="hidden")(x)
    return keras.Model(images, layers.Dense(num_classes, name="logits", dtype="float32")(x), name=name)


def _residual_block(x, width: int, stride: int, depth: int, name: str):
    """relu-conv-relu-conv plus a shortcut (He et al. 2016, pre-activation). The second convolution starts at zero and
    the first is scaled by depth^-1/2, so the network starts near the identity and needs no normalisation
    (Fixup, Zhang et al. 2019)."""
    first = keras.initializers.VarianceScaling(2.0 / depth)
    shortcut = x
    y = layers.ReLU(name=f"{name}_relu1")(x)
    if stride > 1 or x.shape[-1] != width:
        # Average pooling before the 1 x 1 projection: a strided one would drop three pixels of four.
        shortcut = y
        if stride > 1:
            # Padded as the convolution beside it: images of an odd size fit.
            shortcut = layers.AveragePooling2D(stride, padding="same", name=f"{name}_pool")(y)
        shortcut = layers.Conv2D(width, 1, use_bias=False, kernel_initializer="he_normal", name=f"{name}_project")(
            shortcut
        )
    y = layers.Conv2D(width, 3, stride, padding="same", kernel_initializer=first, name=f"{name}_conv1")(y)
    y = layers.ReLU(name=f"{name}_relu2")(y)
    y = layers.Conv2D(width, 3, padding="same", kernel_initializer="zeros", name=f"{name}_conv2")(y)
    return layers.Add(name=f"{name}_add")([shortcut, y])


def preact_resnet18(
    input_shape: tuple[int, int, int] = (32, 32, 3),
    num_classes: int = 10,
    width: int = 64,
    name: str = "preact_resnet18",
) -> keras.Model:
    """Builds a pre-activation ResNet-18 without normalisation: four stages of two blocks, one dense head.

    Images up to 64 pixels get a 3 x 3 stem, larger ones (224 x 224) a 7 x 7 stem of stride 2 and average pooling.

    Args:
        input_shape: (height, width, channels). num_classes: number of logits. width: channels of the first stage.

    Returns:
        A functional model, images (batch, height, width, channels) in [0, 1] to logits (batch, num_classes), float32.
    """
    check_count("num_classes", num_classes, 2)
    images = image_input(input_shape)
    x = layers.Rescaling(4.0, offset=-2.0, name="center")(images)
    if min(input_shape[:2]) > 64:
        x = layers.Conv2D(width, 7, 2, padding="same", kernel_initializer="he_normal", name="stem")(x)
        x = layers.AveragePooling2D(3, 2, padding="same", name="stem_pool")(x)
    else:
        x = layers.Conv2D(width, 3, padding="same", kernel_initializer="he_normal", name="stem")(x)
    for stage in range(4):
        for block in range(2):
            stride = 2 if stage > 0 and block == 0 else 1
            x = _residual_block(x, width * 2**stage, stride, depth=8, name=f"stage{stage + 1}_block{block + 1}")
    x = layers.ReLU(name="head_relu")(x)
    x = layers.GlobalAveragePooling2D(name="head_pool")(x)
    return keras.Model(images, layers.Dense(num_classes, name="logits", dtype="float32")(x), name=name)


def _convolution(x, width: int, stride: int, name: str, size: int = 3):
    """A convolution without bias: batch normalisation follows it, or the next block's."""
    kind = {"padding": "same", "use_bias": False, "kernel_initializer": "he_normal"}
    return layers.Conv2D(width, size, stride, name=name, **kind)(x)


def _normalised(x, name: str):
    return layers.ReLU(name=f"{name}_relu")(layers.BatchNormalization(name=f"{name}_norm")(x))


def _preact_block(x, width: int, stride: int, name: str):
    """norm-relu-conv-norm-relu-conv plus a shortcut (He et al. 2016, pre-activation)."""
    y = _normalised(x, f"{name}_1")
    shortcut = x
    if stride > 1 or x.shape[-1] != width:
        shortcut = _convolution(y, width, stride, f"{name}_project", 1)
    y = _convolution(y, width, stride, f"{name}_conv1")
    y = _convolution(_normalised(y, f"{name}_2"), width, 1, f"{name}_conv2")
    return layers.Add(name=f"{name}_add")([shortcut, y])


def narrow_resnet(
    input_shape: tuple[int, int, int] = (32, 32, 3),
    num_classes: int = 10,
    widths: tuple[int, ...] = (32, 64, 128),
    blocks: int = 1,
    patch: int = 2,
    name: str = "narrow_resnet",
) -> keras.Model:
    """Builds a pre-activation ResNet with batch normalisation, sized for a processor: what CIFAR-10's protocol trains.

    Args:
        input_shape: (height, width, channels). num_classes: number of logits. widths: channels of the stages, each
            after the first at half the size. blocks: of a stage. patch: the stem's kernel and stride; 1 for a 3 x 3
            stem at full size.

    Returns:
        A functional model, images (batch, height, width, channels) in [0, 1] to logits (batch, num_classes), float32.
    """
    check_count("num_classes", num_classes, 2)
    images = image_input(input_shape)
    x = layers.Rescaling(4.0, offset=-2.0, name="center")(images)
    x = _convolution(x, widths[0], patch, "stem", patch if patch > 1 else 3)
    for stage, width in enumerate(widths):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            x = _preact_block(x, width, stride, f"stage{stage + 1}_block{block + 1}")
    x = layers.GlobalAveragePooling2D(name="head_pool")(_normalised(x, "head"))
    return keras.Model(images, layers.Dense(num_classes, name="logits", dtype="float32")(x), name=name)


def resnet110(
    input_shape: tuple[int, int, int] = (32, 32, 3), num_classes: int = 10, depth: int = 110, name: str = "resnet110"
) -> keras.Model:
    """Builds the ResNet of the field's CIFAR-10 tables (He et al. 2016, Sec. 4.2): three stages of (depth - 2) / 6
    blocks, widths 16, 32, 64, batch normalisation.

    Args:
        input_shape: (height, width, channels). num_classes: number of logits. depth: 6 n + 2.

    Returns:
        A functional model, images (batch, height, width, channels) in [0, 1] to logits (batch, num_classes), float32.
    """
    check_count("num_classes", num_classes, 2)
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth must be 6 n + 2, such as 20 or 110, got {depth}.")
    images = image_input(input_shape)
    x = layers.Rescaling(4.0, offset=-2.0, name="center")(images)
    x = _normalised(_convolution(x, 16, 1, "stem"), "stem")
    for stage, width in enumerate((16, 32, 64)):
        for block in range((depth - 2) // 6):
            stride = 2 if stage > 0 and block == 0 else 1
            at = f"stage{stage + 1}_block{block + 1}"
            y = _normalised(_convolution(x, width, stride, f"{at}_conv1"), f"{at}_1")
            y = layers.BatchNormalization(name=f"{at}_2_norm")(_convolution(y, width, 1, f"{at}_conv2"))
            if stride > 1:
                x = _convolution(x, width, stride, f"{at}_project", 1)
                x = layers.BatchNormalization(name=f"{at}_project_norm")(x)
            x = layers.ReLU(name=f"{at}_relu")(layers.Add(name=f"{at}_add")([x, y]))
    x = layers.GlobalAveragePooling2D(name="head_pool")(x)
    return keras.Model(images, layers.Dense(num_classes, name="logits", dtype="float32")(x), name=name)


def resnet50(
    input_shape: tuple[int, int, int] = (224, 224, 3), num_classes: int = 1000, name: str = "resnet50"
) -> keras.Model:
    """Builds Keras' own ResNet-50, that of the field's ImageNet tables, on pixels in [0, 1].

    Args:
        input_shape: (height, width, channels), at least 32 x 32. num_classes: number of logits.

    Returns:
        A functional model, images (batch, height, width, channels) in [0, 1] to logits (batch, num_classes), float32.
    """
    check_count("num_classes", num_classes, 2)
    images = image_input(input_shape)
    x = layers.Rescaling(4.0, offset=-2.0, name="center")(images)
    x = keras.applications.ResNet50(include_top=False, weights=None, input_tensor=x, pooling="avg").output
    return keras.Model(images, layers.Dense(num_classes, name="logits", dtype="float32")(x), name=name)
