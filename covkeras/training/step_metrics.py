"""The means that the trainer keeps of its steps."""

import keras
import tensorflow as tf

from covkeras.objectives.terms import Terms
from covkeras.training.batches import Batch

_NAMES = ("loss", "classification_loss", "robustness_loss", "accuracy", "propagated_radius", "regularization_loss")


class StepMetrics:
    """Means over the images since the last reset, each replica's of its own. Made in the strategy's scope.

    Attributes:
        means: {name: keras.metrics.Mean}, of all that a step may report.
        reported: names of those that the last step did.
    """

    def __init__(self):
        self.means = {name: keras.metrics.Mean(name=name) for name in _NAMES}
        self.reported = tuple(self.means)

    @property
    def labelled(self) -> bool:
        """Whether the last step had labels."""
        return "accuracy" in self.reported

    @property
    def current(self) -> list:
        return [self.means[name] for name in self.reported]

    def update(self, batch: Batch, terms: Terms, regularisers, loss) -> dict:
        """Takes in a step; returns {name: mean so far}.

        Args:
            terms: of this replica's images. regularisers: their sum, or None. loss: this replica's share.
        """
        # Shares add up to the batch's loss, which counts as often as the batch has images.
        shared = (loss * batch.replicas, batch.total / batch.replicas)
        values = {"loss": shared, "classification_loss": (terms.classification, None)}
        if batch.targets is not None:
            hit = tf.cast(tf.argmax(terms.logits, -1) == batch.own(batch.labels), tf.float32)
            values["accuracy"] = (hit, None)
        if terms.robustness is not None:
            values["robustness_loss"] = (terms.robustness, None)
        if terms.radius is not None:
            values["propagated_radius"] = (terms.radius, None)
        if regularisers is not None:
            values["regularization_loss"] = (regularisers, batch.total / batch.replicas)
        for name, (value, weight) in values.items():
            self.means[name].update_state(value, sample_weight=weight)
        self.reported = tuple(values)
        return {name: self.means[name].result() for name in values}
