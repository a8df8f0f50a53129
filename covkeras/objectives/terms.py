"""What an objective returns, and the cross-entropy they share."""

from typing import NamedTuple

from covkeras.runtime.later import Later

keras, ops = Later("keras"), Later("keras.ops")


class Terms(NamedTuple):
    """One step's losses, per image; the trainer minimises mean(classification) + lam mean(robustness).

    classification: (batch,). robustness: (batch,), before lam; None for a method without. logits: (batch, classes),
    the predictions training accuracy is counted on. radius: (batch,), the estimate of the radius that the robustness
    loss is made of, in [0, 1] pixel units, negative where the image is misclassified; None for a method without.
    every: robustness and radius are of every so manieth image of the batch alone.
    """

    classification: object
    robustness: object = None
    logits: object = None
    radius: object = None
    every: int | None = 1


def is_right(labels, logits):
    """Whether the largest logit is the label's: labels (batch,), logits (..., batch, classes) -> (..., batch)."""
    return ops.cast(ops.argmax(logits, -1), "int32") == ops.cast(labels, "int32")


def cross_entropy(labels, logits):
    """-log softmax(logits)_label: labels (batch,), logits (batch, classes) -> (batch,), float32."""
    return keras.losses.sparse_categorical_crossentropy(labels, ops.cast(logits, "float32"), from_logits=True)
