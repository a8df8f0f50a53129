"""What a training step is given: images, labels and weights as Keras users bring them, checked; a replica's part."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import keras
import tensorflow as tf

from covkeras.runtime.validation import INSIDE, check_shape


class Batch(NamedTuple):
    """One replica's part of a global batch.

    images: float32 (batch, ...) in [0, 1]. labels: int64 (batch,). weights: float32 (batch,), or None. targets: the
    labels as they came, for the user's metrics; None where there were none. count: how many images are this replica's
    own: 0, with a black one in their place, where the batch had none left for it. total: of all replicas; start: of
    those before. replicas: their number.
    """

    images: object
    labels: object
    weights: object
    targets: object
    count: object
    total: object
    start: object
    replicas: int

    def own(self, values):
        """The values without those of the black image."""
        return values if self.replicas == 1 else values[: tf.shape(values)[0] * tf.minimum(self.count, 1)]

    def share_of_mean(self, values, every: int = 1):
        """The sum of the weighted values, of every so manieth image, over the number of all replicas' values."""
        if self.weights is not None:
            values = values * self.own(self.weights)[::every]
        if self.replicas == 1:
            return tf.reduce_mean(values)
        total = self.total
        if every > 1:
            context = tf.distribute.get_replica_context()
            total = context.all_reduce(tf.distribute.ReduceOp.SUM, tf.cast(tf.shape(values)[0], tf.float32))
        return tf.reduce_sum(values) / total

    def noise(self, copies: int, seed, step):
        """(copies, batch, ...) standard normals, this replica's part of the step's noise; None of no copies."""
        if copies == 0:
            return None
        # A black image in an empty part's place gets noise from beyond the others'.
        mine = tf.shape(self.images)[0]
        total = tf.maximum(tf.cast(self.total, tf.int32), self.start + mine)
        place = tf.stack([tf.cast(seed, tf.int64), tf.cast(step, tf.int64)])
        shape = tf.concat([[copies, total], tf.shape(self.images)[1:]], 0)
        noise = tf.random.stateless_normal(shape, place, alg="philox")
        if self.replicas > 1:
            noise = noise[:, self.start : self.start + mine]
        return tf.ensure_shape(noise, [copies, *self.images.shape])


def shared(images, labels, weights, targets) -> Batch:
    """The batch with its place among the replicas': their parts of the last batch may be unequal, or empty."""
    count, replicas = tf.shape(images)[0], tf.distribute.get_strategy().num_replicas_in_sync
    if replicas == 1:
        return Batch(images, labels, weights, targets, count, tf.cast(count, tf.float32), 0, 1)
    context = tf.distribute.get_replica_context()
    number = context.replica_id_in_sync_group
    mine = tf.one_hot(number, replicas) * tf.cast(count, tf.float32)
    counts = context.all_reduce(tf.distribute.ReduceOp.SUM, mine)
    start = tf.cast(tf.reduce_sum(tf.where(tf.range(replicas) < number, counts, 0.0)), tf.int32)
    if images.shape[0] is None:
        # One black image stands in: not every operation takes a batch of none.
        missing = tf.maximum(1 - count, 0)
        images, labels = (tf.pad(t, [[0, missing], *[[0, 0]] * (t.shape.rank - 1)]) for t in (images, labels))
        weights = None if weights is None else tf.pad(weights, [[0, missing]])
    return Batch(images, labels, weights, targets, count, tf.reduce_sum(counts), start, replicas)


def checked_batch(data, image_shape, classes: int, labelled: bool = True) -> tuple:
    """Unpacks a batch and refuses what would silently train on the wrong thing.

    Args:
        data: (images, labels) or (images, labels, sample_weight), as Keras has them; images and labels may be a
            dictionary or list of one; {"image": ..., "label": ...} as TFDS has them.
        image_shape: the classifier's, None for an axis of any length. classes: their number.
        labelled: whether there must be labels; without them they are 0, and None as given.

    Returns:
        images float32 (batch, ...), labels int64 (batch,), weights float32 (batch,) or None, and the labels as given.

    Raises:
        TypeError, ValueError: at once. tf.errors.InvalidArgumentError: in the step, of values.
    """
    if isinstance(data, Mapping) and {"image", "label"} <= set(data):
        data = (data["image"], data["label"])
    images, targets, weights = keras.utils.unpack_x_y_sample_weight(data)
    images, targets = _only("images", images), _only("labels", targets)
    if targets is None and labelled:
        raise ValueError("data must be batches (images, labels), or with sample weights; got no labels.")
    if not images.dtype.is_floating:
        raise TypeError(f"images must be floating-point numbers in [0, 1], got {images.dtype.name}. Divide by 255.")
    images = _shaped(images, image_shape)
    labels, checks = tf.zeros(tf.shape(images)[:1], tf.int64), []
    if targets is not None:
        labels, checks = _class_numbers(tf.convert_to_tensor(targets), classes, tf.shape(images)[0])
    low, high = tf.reduce_min(images), tf.reduce_max(images)
    some = tf.size(images) > 0
    inside = ~some | ((low >= 0) & (high <= 1))
    text = f"images must be finite and lie in [0, 1]: {INSIDE} Got values from"
    checks.append(tf.debugging.Assert(inside, [text, low, high]))
    if weights is not None:
        weights = tf.cast(_only("sample_weight", weights), tf.float32)
        if weights.shape.rank is not None and tuple(weights.shape[1:]) not in ((), (1,)):
            raise ValueError(f"sample_weight must be (batch,), one number an image, got shape {tuple(weights.shape)}.")
        weights = tf.reshape(weights, [-1])
        right = tf.size(weights) == tf.shape(images)[0]
        checks.append(tf.debugging.Assert(right, ["sample_weight must be (batch,), got", tf.shape(weights)]))
        finite = tf.reduce_all(tf.math.is_finite(weights) & (weights >= 0))
        checks.append(tf.debugging.Assert(finite, ["sample_weight must be finite and at least 0, got", weights]))
    with tf.control_dependencies(checks):
        return tf.identity(images), tf.identity(labels), weights, targets


@contextlib.contextmanager
def refusals(x=None, y=None, **others) -> Iterator[None]:
    """What Keras is given and says, in our words: refuses our own data sets, of which it says that their type is not
    recognized, lists of many arrays, which it takes for as many inputs, and labels that are text, of which it says only
    that their dtype is invalid; takes TensorFlow's page of advice off the refusal of a batch's values: one sentence is
    left."""
    for name, given in (("x", x), ("validation_data", others.get("validation_data"))):
        if hasattr(given, "batches"):
            raise TypeError(
                f"{name} must be arrays or a tf.data.Dataset, got {given!r}. Its arrays: data.floats(), data.labels."
            )
    if isinstance(x, (list, tuple)) and len(x) > 1:
        remedy = "fit(images, labels)" if y is None and len(x) == 2 else "np.stack(images)"
        raise TypeError(f"images must be one array, got a {type(x).__name__} of {len(x)}: {remedy}.")
    if isinstance(y, (list, tuple)) and len(y) > 1:
        raise TypeError(f"labels must be one array, got a {type(y).__name__} of {len(y)}: np.array(labels).")
    kind = getattr(getattr(y, "dtype", None), "kind", "")
    if kind in ("U", "S", "O"):
        raise TypeError(
            f"labels must be integers (batch,), or one-hot rows, got text or objects ({y.dtype}). Number the classes: "
            "np.unique(labels, return_inverse=True)[1]."
        )
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        found = re.search(r"assertion failed: \[((?:images|labels|sample_weight|batch) must [^\n]*)", error.message)
        if not found:
            raise
        sentence = re.sub(r"\] \[", " ", found[1]).rstrip("]")
        raise tf.errors.InvalidArgumentError(None, None, sentence) from None


def _only(name: str, value):
    """The tensor of a dictionary or list of one."""
    while isinstance(value, (Mapping, list, tuple)):
        if len(value) != 1:
            keys = sorted(map(str, value)) if isinstance(value, Mapping) else len(value)
            raise ValueError(f"{name} must be one tensor, got a {type(value).__name__} of {keys}. Give the one alone.")
        value = next(iter(value.values() if isinstance(value, Mapping) else value))
    if isinstance(value, (tf.RaggedTensor, tf.SparseTensor)):
        raise TypeError(f"{name} must be a dense tensor, got a {type(value).__name__}. Resize the images to one shape.")
    return value if value is None or tf.is_tensor(value) else tf.convert_to_tensor(value)


def _shaped(images, image_shape):
    images = tf.cast(images, tf.float32)
    if images.shape.rank is not None:  # else lost, as through numpy_function; a wrong one fails in the step
        check_shape(images.shape, image_shape)
    return tf.ensure_shape(images, [None, *image_shape])


def _class_numbers(targets, classes: int, batch) -> tuple:
    """int64 (batch,) of class numbers (batch,), (batch, 1), or one-hot rows (batch, classes); and their checks."""
    if targets.dtype == tf.bool:
        targets = tf.cast(targets, tf.int64)
    rank, width = targets.shape.rank, targets.shape[-1] if targets.shape.rank == 2 else None
    # Generators and numpy_function lose shapes: then the number of values tells.
    lost = rank is None or (rank == 2 and width is None)
    if not targets.dtype.is_integer and not (targets.dtype.is_floating and (lost or width == classes)):
        raise TypeError(
            f"labels must be integers (batch,), or one-hot rows (batch, {classes}), got {targets.dtype.name} of shape "
            f"{tuple(targets.shape)}. Class numbers: labels.astype('int64')."
        )
    if not lost and rank != 1 and (rank != 2 or width not in (1, classes)):
        raise ValueError(
            f"labels must be class numbers (batch,), or one-hot rows (batch, {classes}), got shape "
            f"{tuple(targets.shape)}."
        )
    if width == classes:
        return _from_one_hot(targets)
    if not lost:
        return _from_numbers(targets, classes, batch)
    wide = (tf.size(targets) != batch) | tf.constant(targets.dtype.is_floating)
    labels = tf.cond(
        wide,
        lambda: tf.argmax(tf.reshape(targets, [batch, -1]), -1, tf.int64),
        lambda: tf.cast(tf.reshape(targets, [-1]), tf.int64),
    )
    one_hot = tf.one_hot(labels, classes)
    rows = tf.cond(wide, lambda: tf.reshape(tf.cast(targets, tf.float32), [batch, -1]), lambda: one_hot)
    known = tf.reduce_all((labels >= 0) & (labels < classes)) & (tf.shape(rows)[-1] == classes)
    exact = known & tf.reduce_all(rows == tf.one_hot(labels, tf.shape(rows)[-1]))
    text = f"labels must be one-hot rows (batch, {classes}), or class numbers in [0, {classes}), got"
    return tf.ensure_shape(labels, [None]), [tf.debugging.Assert(exact, [text, targets])]


def _from_one_hot(targets) -> tuple:
    labels = tf.argmax(targets, -1, tf.int64)
    exact = tf.reduce_all(targets == tf.one_hot(labels, targets.shape[-1], dtype=targets.dtype))
    text = "labels must be class numbers or one-hot rows, a single 1 in each (no soft labels: leave label smoothing "
    text += "and mixing of images out), got rows such as"
    return labels, [tf.debugging.Assert(exact, [text, targets[:1]])]


def _from_numbers(targets, classes: int, batch) -> tuple:
    labels = tf.cast(tf.reshape(targets, [-1]), tf.int64)
    right = (tf.reduce_min(labels) >= 0) & (tf.reduce_max(labels) < classes) | (tf.size(labels) == 0)
    text = f"labels must lie in [0, {classes}), the classifier's classes, got"
    size = tf.debugging.Assert(tf.size(labels) == batch, ["labels must be one for each image, got", tf.shape(targets)])
    return labels, [tf.debugging.Assert(right, [text, labels]), size]
