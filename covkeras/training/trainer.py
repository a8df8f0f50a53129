"""CertifiedTrainer: a Keras model whose custom train_step minimises any objective, on one device or many."""

import keras
import tensorflow as tf

from covkeras.moments.dispatch import Context
from covkeras.moments.quick import QUICK
from covkeras.moments.rectifiers import Kernels
from covkeras.objectives.base import attached
from covkeras.objectives.copies import batch_normalizations
from covkeras.objectives.terms import Terms
from covkeras.runtime.classifiers import with_a_graph
from covkeras.runtime.devices import is_watched
from covkeras.runtime.validation import check_count, check_on_tensorflow
from covkeras.training.batches import Batch, checked_batch, refusals, shared
from covkeras.training.given_metrics import metrics_of_logits, updating
from covkeras.training.schedules import LamSwitch
from covkeras.training.step_metrics import StepMetrics


def _compiled(kernel):
    """A dozen element-wise operations as one loop. XLA compiles only these: its convolutions, and its sums over the
    batch, are slower on the CPU than TensorFlow's own."""
    loop = tf.function(kernel, jit_compile=True)
    # In a tf.cond's gradient a compiled function finds no tensor of the branch; their copies it does.
    return lambda *tensors: (kernel if is_watched() else loop)(*(tf.identity(tensor) for tensor in tensors))


COMPILED = Kernels(*(_compiled(kernel) for kernel in QUICK))


def _narrow(tensor):
    return tf.cast(tensor, tf.float32) if tensor.dtype == tf.float64 else tensor


def _number(variable) -> float:
    """A scalar variable's or tensor's value. A mirrored variable has `numpy`, and no `float`."""
    return float(getattr(variable, "value", variable).numpy())


@keras.saving.register_keras_serializable("covkeras")
class CertifiedTrainer(keras.Model):
    """Trains a classifier on an objective: `compile`, `fit`, `evaluate` and callbacks as for any Keras model.

        trainer = CertifiedTrainer(classifier, CovarianceRadius(sigma=0.5))
        trainer.compile(optimizer="sgd", metrics=["sparse_top_k_categorical_accuracy"])
        trainer.fit(dataset, epochs=10)     # batches (images in [0, 1], labels)
        classifier.save("classifier.keras")

    The noise of step i is a function of (seed, i) alone, so that a resumed run equals an uninterrupted one, and
    replicas take their parts of the same global batch of noise, so that two devices equal one; but for layers that look
    at a whole batch: BatchNormalization takes each replica's own, as in Keras, unless it is `synchronized`.

    Metrics: loss (with the classifier's regularisers), classification_loss, robustness_loss (before lam), accuracy,
    propagated_radius (mean over images), regularization_loss where there are regularisers, and those of `compile`, of
    the logits. `evaluate` reports them on the images as they come in, with fixed noise. Sample and class weights are
    Keras': the weighted losses' sum over the batch, divided by its size.

    `save`, and with it ModelCheckpoint, writes the classifier, a stock .keras file; `save_weights` the whole state.
    Where epochs are not `fit`'s (train_on_batch, loops of one's own), call `begin_epoch` at each one's start: lam
    depends on it.

    Args:
        classifier: a built Sequential or Functional model, images to logits. It owns all the weights.
        objective: one of `covkeras.objectives`; the trainer binds a copy, `trainer.objective`, to its classifier.
        seed: of the training noise.
    """

    def __init__(self, classifier, objective, seed: int = 0, name: str = "certified_trainer"):
        check_on_tensorflow("CertifiedTrainer")
        super().__init__(name=name)
        self.seed = check_count("seed", seed, 0, 2**31 - 1)
        if isinstance(objective, type) or not (callable(objective) and hasattr(objective, "attach")):
            raise TypeError(
                f"objective must be one of covkeras.objectives, made with its sigma, such as Macer(sigma=0.25), got "
                f"{objective!r}."
            )
        self.classifier = with_a_graph(classifier)
        self.objective = attached(objective, self.classifier)
        initial = self.objective.lam if self.objective.switch_epoch == 0 else 0.0
        self.lam = self._number_weight("lam", "float32", initial)
        self.epoch = self._number_weight("epoch", "int32", 0)
        # Its own: an optimizer's count is another with gradient accumulation, after a new compile, or where mixed
        # precision leaves a step out, and the noise would repeat.
        self.noise_step = self._number_weight("noise_step", "int64", 0, aggregation="only_first_replica")
        self.step_metrics = StepMetrics()
        self._epoch_known = self.objective.switch_epoch == 0
        self._compiled_descent = None
        self.built = True

    def _number_weight(self, name, dtype, value, **options):
        initial = keras.initializers.Constant(value)
        return self.add_weight(shape=(), dtype=dtype, initializer=initial, trainable=False, name=name, **options)

    @property
    def trained_classifier(self):
        """What is certified, or taken moments of, where a trainer is handed over for its classifier."""
        return self.classifier

    def call(self, images, training=False):
        return self.classifier(images, training=training)

    def compile(
        self,
        optimizer="sgd",
        loss=None,
        loss_weights=None,
        metrics=None,
        weighted_metrics=None,
        run_eagerly=False,
        steps_per_execution=1,
        jit_compile=False,
        auto_scale_loss=True,
    ) -> None:
        """As `keras.Model.compile`, without `loss`: the objective is the loss. Metrics are of the logits; so are a
        cross-entropy's that is given by its name.

        Args:
            jit_compile: whether XLA compiles the step's losses, gradients and update; batches are checked outside.
                "auto", as Keras has it, does not.

        Raises:
            ValueError: a loss was given; Keras would apply it to the mean and the covariance separately. A metric of
                probabilities. XLA on several replicas.
        """
        for name, given in (("loss", loss), ("loss_weights", loss_weights)):
            if given is not None:
                raise ValueError(f"{name} must not be given: the objective is the loss. Pass it to CertifiedTrainer.")
        if isinstance(jit_compile, str) and jit_compile != "auto":
            raise ValueError(f"jit_compile must be True, False or 'auto', got {jit_compile!r}.")
        jit = bool(jit_compile) and jit_compile != "auto"
        if jit and self.distribute_strategy.num_replicas_in_sync > 1:
            raise ValueError("jit_compile must be False on several replicas, where TensorFlow can't compile the step.")
        if jit and is_watched():
            raise ValueError(
                "jit_compile must be False where tf.debugging watches, whose operations XLA can't compile. Leave it "
                "out, or call tf.debugging.disable_check_numerics() first."
            )
        super().compile(
            optimizer=optimizer,
            metrics=metrics_of_logits("metrics", metrics),
            weighted_metrics=metrics_of_logits("weighted_metrics", weighted_metrics),
            run_eagerly=run_eagerly,
            steps_per_execution=steps_per_execution,
            jit_compile=False,
            auto_scale_loss=auto_scale_loss,
        )
        self._compiled_descent = None
        if jit:
            self._compiled_descent = tf.function(
                self._descend, jit_compile=True, reduce_retracing=True, autograph=False
            )

    def get_compile_config(self) -> dict:
        return {**super().get_compile_config(), "jit_compile": self._compiled_descent is not None}

    def compile_from_config(self, config) -> None:
        """Compiles a copy of the trainer (copy.deepcopy, pickle) as the trainer was; its state follows."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self._build_optimizer()

    def _build_optimizer(self) -> None:
        """Makes a compiled trainer's optimizer its variables, as Keras does at the first step."""
        if self.compiled and not self.optimizer.built:
            self.optimizer.build(self.classifier.trainable_variables)

    def begin_epoch(self, epoch: int) -> None:
        """Sets what depends on the epoch (from 0) alone: lam, and what the objective makes of it. `fit` calls it."""
        self.lam.assign(self.objective.lam if epoch >= self.objective.switch_epoch else 0.0)
        self.epoch.assign(epoch)
        self._epoch_known = True

    def fit(self, *args, callbacks=None, **kwargs):
        """As `keras.Model.fit`; lam is switched on at the objective's `switch_epoch`."""
        switch = LamSwitch()
        with refusals(*args[:2], **kwargs):
            if not isinstance(callbacks, keras.callbacks.CallbackList):
                given = [callbacks] if isinstance(callbacks, keras.callbacks.Callback) else list(callbacks or [])
                return super().fit(*args, callbacks=[switch, *given], **kwargs)
            # It is used as it is, and may be used again.
            callbacks.set_model(self)
            switch.set_model(self)
            callbacks.callbacks.insert(0, switch)
            try:
                return super().fit(*args, callbacks=callbacks, **kwargs)
            finally:
                callbacks.callbacks.remove(switch)

    def evaluate(self, *args, **kwargs):
        with refusals(*args[:2], **kwargs):
            return super().evaluate(*args, **kwargs)

    def train_on_batch(self, *args, **kwargs):
        with refusals(*args[:2], **kwargs):
            return super().train_on_batch(*args, **kwargs)

    def test_on_batch(self, *args, **kwargs):
        with refusals(*args[:2], **kwargs):
            return super().test_on_batch(*args, **kwargs)

    def save(self, filepath, overwrite: bool = True, **kwargs):
        """Saves the classifier: a stock Keras file, which loads without covkeras."""
        return self.classifier.save(filepath, overwrite=overwrite, **kwargs)

    def save_weights(self, filepath, overwrite: bool = True, **kwargs) -> None:
        """Saves the trainer's whole state, for `load_weights`: the weights, the optimizer's and the noise's."""
        with self.distribute_strategy.scope():
            self._build_optimizer()
        super().save_weights(filepath, overwrite=overwrite, **kwargs)

    def load_weights(self, filepath, **kwargs) -> None:
        """Loads what `save_weights` wrote, a compiled trainer's optimizer too. Raises ValueError: it is a
        classifier's."""
        with self.distribute_strategy.scope():
            self._build_optimizer()
        try:
            super().load_weights(filepath, **kwargs)
        except ValueError as error:
            if "expected 3 variables, but received 0" not in str(error):
                raise
            raise ValueError(
                f"{filepath} must hold a trainer's weights, but holds a classifier's: "
                "trainer.classifier.load_weights takes it."
            ) from None

    def export(self, filepath, *args, **kwargs):
        """Exports the classifier, as `keras.Model.export`; its certificates are served by `covkeras.export`."""
        return self.classifier.export(filepath, *args, **kwargs)

    def get_config(self) -> dict:
        serialize = keras.saving.serialize_keras_object
        parts = {"classifier": serialize(self.classifier), "objective": serialize(self.objective)}
        return {**parts, "seed": self.seed, "name": self.name}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        parts = ("classifier", "objective")
        read = {k: keras.saving.deserialize_keras_object(config[k], custom_objects=custom_objects) for k in parts}
        return cls(**{**config, **read})

    def train_step(self, data):
        if not self._epoch_known:
            raise ValueError(
                f"epoch must be known, since {self.objective.name} begins its robustness loss at epoch "
                f"{self.objective.switch_epoch}: call trainer.begin_epoch(epoch) before each epoch's first step, or "
                "use fit."
            )
        batch = self._checked(data)
        noise = batch.noise(self.objective.copies, self.seed, self.noise_step)
        self.noise_step.assign_add(1)
        if self._compiled_descent:
            with tf.init_scope():
                self._build_optimizer()
        descend = self._compiled_descent or self._descend
        return self._update(batch, *descend(batch, noise, tf.convert_to_tensor(self.epoch)))

    def _descend(self, batch: Batch, noise, epoch):
        """One update of the weights; returns as `_evaluated`."""
        weighted = batch.weights is not None
        context = Context(training=True, kernels=COMPILED, regularise=True, epoch=epoch, weighted=weighted)
        with tf.GradientTape() as tape:
            terms, regularisers, loss = self._evaluated(batch, noise, context)
            scaled = self.optimizer.scale_loss(loss)
        weights = self.classifier.trainable_variables
        if not weights:
            raise ValueError("classifier must have weights to train, but all its layers are frozen (trainable=False).")
        gradients = tape.gradient(scaled, weights)
        self.optimizer.apply(gradients, weights)
        return terms, regularisers, loss

    def test_step(self, data):
        batch = self._checked(data)
        context = Context(kernels=COMPILED, regularise=True)
        noise = batch.noise(self.objective.copies, self.seed, 0)
        return self._update(batch, *self._evaluated(batch, noise, context))

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
        # Just those that a step reports: Keras then reads them itself, summed over the replicas, where it would else
        # average what each of them returned.
        # Without labels there is nothing for those of `compile`.
        compiled = getattr(self, "_compile_metrics", None) if self.step_metrics.labelled else None
        return [*self.step_metrics.current, *([compiled] if compiled is not None else [])]

    def _evaluated(self, batch: Batch, noise, context: Context):
        """Returns the terms of this replica's images, the regularisers' sum, and this replica's share of the loss:
        gradients, and shares, are summed over the replicas."""
        terms = self.objective(batch.images, batch.labels, noise, context)
        # An image's numbers are float32 from here on, of a classifier in float64 too.
        terms = Terms(*(batch.own(_narrow(t)) if tf.is_tensor(t) else t for t in terms))
        loss = batch.share_of_mean(terms.classification)
        if terms.robustness is not None:
            robustness = batch.share_of_mean(terms.robustness, terms.every)
            loss = loss + tf.cast(self.lam, tf.float32) * robustness
        # Weights' regularisers, and the activities' that the objective's calls of the classifier left behind.
        extra = self.classifier.losses
        regularisers = sum(tf.cast(tf.reduce_sum(e), tf.float32) for e in extra) if extra else None
        if extra:
            loss = loss + regularisers / batch.replicas
        return terms._replace(every=None), regularisers, loss

    def _update(self, batch: Batch, terms: Terms, regularisers, loss):
        results = self.step_metrics.update(batch, terms, regularisers, loss)
        compiled = getattr(self, "_compile_metrics", None)
        if compiled is not None and batch.targets is not None:
            weights = None if batch.weights is None else batch.own(batch.weights)
            with updating(batch.targets, terms.logits):
                compiled.update_state(batch.targets, terms.logits, weights)
            results = {**compiled.result(), **results}
        return results

    def _checked(self, data) -> Batch:
        """A batch, checked, with its place among the replicas'."""
        shape, classes = self.classifier.inputs[0].shape[1:], self.classifier.outputs[0].shape[-1]
        batch = shared(*checked_batch(data, shape, classes, getattr(self.objective, "labelled", True)))
        if batch.replicas == 1 or not self._looks_at_batches:
            return batch
        text = "batch must have an image for every replica where the classifier has BatchNormalization, got"
        text = f"{text} too few: batch(..., drop_remainder=True). Images:"
        with tf.control_dependencies([tf.debugging.Assert(batch.count > 0, [text, batch.count])]):
            return batch._replace(images=tf.identity(batch.images))

    @property
    def _looks_at_batches(self) -> bool:
        return bool(batch_normalizations(self.classifier))
