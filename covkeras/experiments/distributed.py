"""Training on several machines: MultiWorkerMirroredStrategy by TF_CONFIG, with a loop of its own.

Keras 3's `fit` does not run under this strategy with several processes; its layers, optimizers and our `train_step` do.
"""

import json
import os
import signal

import keras
import numpy as np
import tensorflow as tf

from covkeras.experiments.fitting import (
    NonFiniteLoss,
    build_trainer,
    check_batch,
    check_finite,
    kept,
    load_parts,
    observers,
)
from covkeras.experiments.inputs import claim_inputs
from covkeras.experiments.jobs import Environment
from covkeras.experiments.recipe import PRECISIONS
from covkeras.experiments.recipes import Recipe
from covkeras.experiments.runs import RunFolder
from covkeras.experiments.weighing import weighed
from covkeras.runtime import devices
from covkeras.runtime.interrupts import Interrupted
from covkeras.training.checkpoints import CheckpointFolder, Checkpointing


def cluster() -> tuple[int, int]:
    """Returns (this worker's index, the number of workers) of the environment's TF_CONFIG; (0, 1) without one.

    Raises:
        ValueError: a TF_CONFIG that is not JSON or names no workers, with an example.
    """
    text = os.environ.get("TF_CONFIG")
    if not text:
        return 0, 1
    try:
        config = json.loads(text)
        workers, task = config["cluster"]["worker"], config["task"]
        index = int(task["index"])
        if task["type"] != "worker" or not 0 <= index < len(workers):
            raise ValueError("task must be a worker of the cluster")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"TF_CONFIG is not usable ({error!r}), got {text[:200]!r}. Expected, for the first of two workers: "
            '{"cluster": {"worker": ["host0:port", "host1:port"]}, "task": {"type": "worker", "index": 0}}'
        ) from None
    return index, len(workers)


def connect() -> tf.distribute.Strategy:
    """Joins the cluster of TF_CONFIG; call it before any other use of TensorFlow's devices."""
    cluster()
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    # Its notifier of preemptions has taken SIGTERM for itself; the process's own handlers come back.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.getsignal(number))
    return strategy


def agreed(recipe: Recipe, strategy: tf.distribute.Strategy) -> Recipe:
    """Returns the recipe with the precision that suits all workers for "auto": float32 where they differ."""
    if recipe.precision != "auto":
        return recipe
    local = devices.best_precision()[0]
    own = [tf.constant(float(local == one)) for one in PRECISIONS]
    votes = [_total(strategy, value) for value in own]
    unanimous = [one for one, count in zip(PRECISIONS, votes, strict=True) if count == strategy.num_replicas_in_sync]
    return recipe.replace(precision=unanimous[0] if unanimous else "float32")


def train_across_workers(
    recipe: Recipe, folder: RunFolder, strategy: tf.distribute.Strategy, environment=Environment(), title: str = "train"
):
    """Trains as `fitting.train` does, the batch shared by all workers, and returns the classifier on every worker.

    Every worker reads its part of the same stream, and of the step's noise: the weights are those of one process up to
    the rounding of a sum. The first worker alone writes to the folder; all read checkpoints from it, so it must be
    shared.

    Raises:
        Interrupted: a worker was asked to stop; all stop after the same step, and it is saved. NonFiniteLoss: on all.
        ValueError: the batch; labels.
    """
    index, _ = cluster()
    check_batch(recipe, strategy.num_replicas_in_sync)
    if weighed(recipe):
        raise ValueError(
            f"method {recipe.method} weighs its training images, which one machine alone does: train it without "
            "TF_CONFIG, on the devices of one."
        )
    if index == 0:
        claim_inputs(folder.path, recipe, environment)
    if folder.classifier_file.exists():
        return keras.models.load_model(folder.classifier_file, compile=False)
    if index > 0:
        return _Loop(recipe, folder, strategy, environment, title).run()
    with folder.held():
        classifier = _Loop(recipe, folder, strategy, environment, title).run()
        check_finite(classifier, recipe)
        return kept(classifier, folder)


class _Loop:
    """One worker's part of a training on several: `fitting`'s own callbacks around a loop of ours."""

    def __init__(self, recipe, folder, strategy, environment, title):
        self.recipe, self.strategy, self.environment = recipe, strategy, environment
        self.index, self.workers = cluster()
        self.data, self.validation = load_parts(recipe, environment)
        self.steps = self.data.steps_per_epoch(recipe.batch_size)
        with strategy.scope():
            self.trainer = build_trainer(recipe, self.data)
        checkpoints = CheckpointFolder(folder.checkpoints, folder.digest())
        self.epoch, self.step = checkpoints.restore(self.trainer) or (0, 0)
        self.asked = False
        self.callbacks = []
        if self.index == 0:
            folder.keep_history(self.epoch)
            minutes = environment.minutes
            saver = Checkpointing(checkpoints, self.steps, step=self.step, minutes=minutes, stop=lambda: self.asked)
            place = (recipe, folder, self.data, self.steps, self.epoch, self.step, title, environment)
            self.watch, self.callbacks = observers(*place, saver)

    def run(self):
        callbacks = keras.callbacks.CallbackList(self.callbacks, model=self.trainer)
        # Traced once, each by its own function: a batch of validation may be of any size.
        self._train_step, self._test_step = (
            self._step_of(self.trainer.train_step),
            self._step_of(self.trainer.test_step),
        )
        batches = iter(self._batches())
        try:
            callbacks.on_train_begin()
            for epoch in range(self.epoch, self.recipe.epochs):
                self.trainer.begin_epoch(epoch)
                self.trainer.reset_metrics()
                callbacks.on_epoch_begin(epoch)
                for at in range(self.step if epoch == self.epoch else 0, self.steps):
                    self._one(at, next(batches), callbacks)
                callbacks.on_epoch_end(epoch, self._epoch_logs())
                if self.asked:
                    raise Interrupted
            callbacks.on_train_end()
        finally:
            if self.callbacks:
                self.watch.bar.close()
        return self.trainer.classifier

    def _one(self, at: int, batch, callbacks) -> None:
        logs, asked = self._train_step(batch, tf.constant(float(self.environment.stop())))
        logs = {name: float(value) for name, value in logs.items()}
        # Sums over all workers, so that all see the same, and leave after the same step.
        self.asked = self.asked or float(asked) > 0
        callbacks.on_train_batch_end(at, logs)
        if not np.isfinite(logs["loss"]):
            raise NonFiniteLoss(f"the loss became {logs['loss']:g}; the first worker's message says more.")
        if self.asked and at + 1 < self.steps:
            raise Interrupted

    def _batches(self):
        """This worker's part of the stream, distributed over its devices."""
        recipe, replicas = self.recipe, self.strategy.num_replicas_in_sync
        place = (recipe.batch_size, recipe.seed, self.epoch, self.step, recipe.epochs, recipe.augmentation)
        own = self.data.batches(*place, part=(self.index, self.workers))
        each = own.unbatch().batch(recipe.batch_size // replicas, drop_remainder=True)
        return self.strategy.distribute_datasets_from_function(lambda _: each)

    def _step_of(self, step):
        """(batch, asked) -> the step's logs, averaged over all replicas, and how many workers were asked to stop."""

        @tf.function(reduce_retracing=True, autograph=False)
        def one(batch, asked):
            names = []

            def replica(batch):
                logs = step(batch)
                names[:] = logs
                return tf.stack([*(tf.cast(v, tf.float32) for v in logs.values()), asked])

            each = self.strategy.run(replica, args=(batch,))
            total = self.strategy.reduce(tf.distribute.ReduceOp.SUM, each, axis=None)
            count = self.strategy.num_replicas_in_sync
            return {name: total[i] / count for i, name in enumerate(names)}, total[-1]

        return one

    def _epoch_logs(self) -> dict[str, float]:
        """The epoch's metrics, and the validation images', as `fit` has them. Reading one asks all workers."""
        logs = self._results("")
        self.trainer.reset_metrics()
        images, size = self.validation, self.recipe.batch_size
        for start in range(0, len(images), size):
            chosen = np.arange(start, min(start + size, len(images)))
            parts = np.array_split(chosen, self.strategy.num_replicas_in_sync)

            def value(context, parts=parts):
                mine = parts[context.replica_id_in_sync_group]
                return tf.constant(images.floats(mine)), tf.constant(images.labels[mine])

            self._test_step(self.strategy.experimental_distribute_values_from_function(value), tf.constant(0.0))
        return {**logs, **self._results("val_")}

    def _results(self, prefix: str) -> dict[str, float]:
        return {f"{prefix}{metric.name}": float(metric.result()) for metric in self.trainer.metrics}


def _total(strategy, value) -> float:
    """The sum of a number over all replicas of all workers."""

    @tf.function
    def total():
        return strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(lambda: value), axis=None)

    return float(total())
