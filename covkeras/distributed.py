"""Training on several machines: MultiWorkerMirroredStrategy by TF_CONFIG, with a loop of its own.

Keras 3's `fit` does not run under this strategy with several processes; its layers, optimizers and our `train_step` do.
"""

import json
import os

import keras
import tensorflow as tf

from covkeras.checkpoints import CheckpointFolder
from covkeras.files import write_aside
from covkeras.fitting import build_trainer, check_batch, load_training
from covkeras.interrupts import Interrupted
from covkeras.jobs import Environment, progress_bar
from covkeras.recipes import Recipe
from covkeras.runs import RunFolder


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
    return tf.distribute.MultiWorkerMirroredStrategy()


def train_across_workers(
    recipe: Recipe, folder: RunFolder, strategy: tf.distribute.Strategy, environment=Environment(), title: str = "train"
):
    """Trains as `fitting.train` does, the batch shared by all workers, and returns the classifier on every worker.

    Every worker reads the same stream and takes its part of each batch, and of the step's noise: the weights are those
    of one process up to the rounding of a sum. The first worker alone writes to the folder; all read checkpoints from
    it, so it must be shared.

    Raises:
        Interrupted: a worker was asked to stop; the last epoch's checkpoint is saved. ValueError: the batch.
    """
    index, workers = cluster()
    replicas = strategy.num_replicas_in_sync
    check_batch(recipe, replicas)
    if folder.classifier_file.exists():
        return keras.models.load_model(folder.classifier_file, compile=False)
    data = load_training(recipe, environment)
    steps = data.steps_per_epoch(recipe.batch_size)
    with strategy.scope():
        trainer = build_trainer(recipe, data)
    checkpoints = CheckpointFolder(folder.checkpoints, recipe.digest())
    epoch, step = checkpoints.restore(trainer) or (0, 0)
    share = recipe.batch_size // workers
    stream = data.batches(recipe.batch_size, recipe.seed, epoch, step, recipe.epochs, recipe.augmentation)
    part = slice(index * share, (index + 1) * share)
    own = (
        stream.map(lambda x, y: (x[part], y[part])).unbatch().batch(share // (replicas // workers), drop_remainder=True)
    )
    batches = iter(strategy.distribute_datasets_from_function(lambda _: own))
    bar = progress_bar(total=recipe.epochs * steps, initial=epoch * steps + step, desc=title, disable=index > 0)

    @tf.function
    def one_step(batch):
        return strategy.run(trainer.train_step, args=(batch,))

    with bar:
        for now in range(epoch, recipe.epochs):
            trainer.begin_epoch(now)
            for metric in trainer.metrics:
                metric.reset_state()
            for _ in range(step if now == epoch else 0, steps):
                one_step(next(batches))
                bar.update()
                # Stopping between collectives of the same step would leave the others waiting for ever.
            # Reading a metric sums it over the workers, so every worker must.
            logs = {name: float(metric.result()) for name, metric in trainer.means.items()}
            logs |= {"learning_rate": trainer.current_learning_rate, "lam": trainer.current_lam}
            if index == 0:
                folder.keep_history(now)
                folder.append_history({"epoch": now, **{k: f"{v:.6g}" for k, v in logs.items()}})
                checkpoints.save(trainer, now + 1, 0)
            if _any(strategy, environment.stop()):
                raise Interrupted
    if index == 0:
        write_aside(folder.classifier_file, trainer.classifier.save)
    return trainer.classifier


def _any(strategy, asked: bool) -> bool:
    """Whether any worker was asked to stop: all must leave at the same epoch."""

    @tf.function
    def total():
        value = tf.constant(float(asked))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(lambda: value), axis=None)

    return bool(total() > 0)
