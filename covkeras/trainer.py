"""CertifiedTrainer: a Keras model whose custom train_step minimises any objective, on one device or many."""

import keras
import tensorflow as tf

from covkeras.moments.dispatch import Context
from covkeras.moments.rectifiers import Kernels
from covkeras.objectives.terms import Terms
from covkeras.schedules import LamSwitch
from covkeras.validation import check_count, check_shape

# A dozen element-wise operations as one loop. XLA compiles only these: its convolutions, and its sums over the batch,
# are slower on the CPU than TensorFlow's own.
COMPILED = Kernels(*(tf.function(kernel, jit_compile=True) for kernel in Kernels()))


def _number(variable) -> float:
    """A scalar variable's or tensor's value. A mirrored variable has `numpy`, and no `float`."""
    return float(getattr(variable, "value", variable).numpy())


class CertifiedTrainer(keras.Model):
    """Trains a classifier on an objective: `compile`, `fit`, `evaluate` and callbacks as for any Keras model.

        trainer = CertifiedTrainer(classifier, CovarianceRadius(sigma=0.5))
        trainer.compile(optimizer="sgd")
        trainer.fit(dataset, epochs=10)     # batches (images in [0, 1], integer labels)
        classifier.save("classifier.keras")

    The noise of step i is a function of (seed, i) alone, so that a resumed run equals an uninterrupted one, and
    replicas take their parts of the same global batch of noise, so that two devices equal one.

    Metrics: loss, classification_loss, robustness_loss (before lam), accuracy, propagated_radius (mean over images).
    `evaluate` reports them on the images as they come in, with fixed noise.

    Args:
        classifier: a built Sequential or Functional model, images to logits. It owns all the weights.
        objective: one of `covkeras.objectives`.
        seed: of the training noise.
    """

    def __init__(self, classifier, objective, seed: int = 0, name: str = "certified_trainer"):
        super().__init__(name=name)
        self.seed = check_count("seed", seed, 0, 2**31 - 1)
        self.classifier = classifier
        self.objective = objective
        objective.attach(classifier)
        initial = objective.lam if objective.switch_epoch == 0 else 0.0
        self.lam = self.add_weight(shape=(), initializer=lambda *a, **k: initial, trainable=False, name="lam")
        self.epoch = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False, name="epoch")
        self.means = {
            name: keras.metrics.Mean(name=name)
            for name in ("loss", "classification_loss", "robustness_loss", "accuracy", "propagated_radius")
        }
        self.built = True

    def call(self, images, training=False):
        return self.classifier(images, training=training)

    def compile(self, optimizer="sgd", jit_compile=False, **kwargs) -> None:
        """As `keras.Model.compile`, without `loss`: the objective is the loss.

        Raises:
            ValueError: a loss was given; Keras would apply it to the mean and the covariance separately.
        """
        if kwargs.get("loss") is not None:
            raise ValueError("loss must not be given: the objective is the loss. Pass it to CertifiedTrainer.")
        super().compile(optimizer=optimizer, jit_compile=jit_compile, **kwargs)

    def fit(self, *args, callbacks=None, **kwargs):
        """As `keras.Model.fit`; lam is switched on at the objective's `switch_epoch`."""
        callbacks = [LamSwitch(self.objective.lam, self.objective.switch_epoch), *(callbacks or [])]
        return super().fit(*args, callbacks=callbacks, **kwargs)

    def train_step(self, data):
        images, labels = self._checked(data)
        noise = self._noise(images, self.optimizer.iterations)
        context = Context(training=True, kernels=COMPILED, epoch=tf.convert_to_tensor(self.epoch))
        with tf.GradientTape() as tape:
            terms = self.objective(images, labels, noise, context)
            loss = self._loss(terms)
            regularised = loss + sum(self.classifier.losses) if self.classifier.losses else loss
            # Gradients are summed over the replicas, so each contributes its share of the mean.
            scaled = self.optimizer.scale_loss(regularised / tf.distribute.get_strategy().num_replicas_in_sync)
        weights = self.classifier.trainable_variables
        gradients = tape.gradient(scaled, weights)
        self.optimizer.apply(gradients, weights)
        return self._update(terms, loss, labels)

    def test_step(self, data):
        images, labels = self._checked(data)
        terms = self.objective(images, labels, self._noise(images, 0), Context(kernels=COMPILED))
        return self._update(terms, self._loss(terms), labels)

    @property
    def current_lam(self) -> float:
        """The weight of the robustness loss now: 0 before the objective's `switch_epoch`."""
        return _number(self.lam)

    @property
    def current_learning_rate(self) -> float:
        """The optimizer's learning rate at its next step."""
        return _number(self.optimizer.learning_rate)

    @property
    def metrics(self):
        return list(self.means.values())

    def _loss(self, terms: Terms):
        loss = tf.reduce_mean(terms.classification)
        if terms.robustness is None:
            return loss
        return loss + tf.cast(self.lam, tf.float32) * tf.reduce_mean(terms.robustness)

    def _update(self, terms: Terms, loss, labels):
        hit = tf.cast(tf.argmax(terms.logits, -1) == tf.cast(labels, tf.int64), tf.float32)
        values = {"loss": loss, "classification_loss": terms.classification, "accuracy": hit}
        if terms.robustness is not None:
            values["robustness_loss"] = terms.robustness
        if terms.radius is not None:
            values["propagated_radius"] = terms.radius
        for name, value in values.items():
            # The loss is weighted by its images, so that unequal batches and replicas average correctly.
            self.means[name].update_state(value, sample_weight=tf.shape(labels)[0] if name == "loss" else None)
        return {name: self.means[name].result() for name in values}

    def _noise(self, images, step):
        """(copies, batch, ...) standard normals: this replica's part of the step's noise."""
        if self.objective.copies == 0:
            return None
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        batch = tf.shape(images)[0]
        shape = tf.concat([[self.objective.copies, replicas * batch], tf.shape(images)[1:]], 0)
        seed = tf.stack([tf.cast(self.seed, tf.int64), tf.cast(step, tf.int64)])
        noise = tf.random.stateless_normal(shape, seed, alg="philox")
        if replicas == 1:
            return tf.ensure_shape(noise, [self.objective.copies, *images.shape])
        start = batch * tf.distribute.get_replica_context().replica_id_in_sync_group
        return tf.ensure_shape(noise[:, start : start + batch], [self.objective.copies, *images.shape])

    def _checked(self, data):
        """Unpacks a batch; refuses what would silently train on the wrong thing."""
        images, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
        if labels is None or weights is not None:
            raise ValueError("data must be batches (images, labels), without sample weights.")
        if not images.dtype.is_floating:
            raise TypeError(f"images must be floating-point numbers in [0, 1], got {images.dtype.name}. Divide by 255.")
        if not labels.dtype.is_integer:
            raise TypeError(f"labels must be integers (batch,), got {labels.dtype.name}. One-hot: take the argmax.")
        check_shape(images.shape, self.classifier.inputs[0].shape[1:])
        classes = self.classifier.outputs[0].shape[-1]
        images = tf.cast(images, tf.float32)
        low, high = tf.reduce_min(images), tf.reduce_max(images)
        checks = [
            tf.debugging.Assert((low >= 0) & (high <= 1), ["images must be finite and lie in [0, 1], got", low, high]),
            tf.debugging.Assert(
                (tf.reduce_min(labels) >= 0) & (tf.reduce_max(labels) < classes),
                [f"labels must lie in [0, {classes}), the classifier's classes, got", labels],
            ),
        ]
        with tf.control_dependencies(checks):
            return tf.identity(images), tf.reshape(labels, [-1])
