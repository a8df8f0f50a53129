"""The training job: builds a recipe's classifier, trains it through `fit`, keeps its history and checkpoints."""

import keras
import numpy as np
import tensorflow as tf

from covkeras.datasets.labels import pair_flip
from covkeras.experiments.building import build_classifier, build_optimizer, check_parts
from covkeras.experiments.environment import Environment, training_split
from covkeras.experiments.inputs import claim_inputs
from covkeras.experiments.jobs import progress_bar
from covkeras.experiments.precision import warn_if_slow
from covkeras.experiments.recipes import Recipe
from covkeras.experiments.runs import RunFolder
from covkeras.experiments.weighing import Weighing, weighed
from covkeras.runtime import devices
from covkeras.runtime.files import write_aside
from covkeras.runtime.interrupts import Interrupted
from covkeras.runtime.validation import check_labels
from covkeras.training.checkpoints import CheckpointFolder, Checkpointing
from covkeras.training.trainer import CertifiedTrainer


class _CleanTest(keras.callbacks.Callback):
    """Adds the plain classifier's accuracy on the clean test images to the logs: what noisy labels are judged by."""

    def __init__(self, test):
        super().__init__()
        self.test = test

    def on_epoch_end(self, epoch, logs=None):
        logs["clean_test_accuracy"] = clean_accuracy(self.model.classifier, self.test)


def clean_accuracy(classifier, data, batch_size: int = 500) -> float:
    """The share of images that the classifier itself, without noise, gets right."""
    batches = [slice(i, i + batch_size) for i in range(0, len(data), batch_size)]
    # Called as it is: `predict` would ask all machines of a cluster.
    hits = [np.asarray(classifier(data.floats(b), training=False)).argmax(1) == data.labels[b] for b in batches]
    return float(np.concatenate(hits).mean())


class NonFiniteLoss(RuntimeError):
    """Training met a loss that is not finite."""


class _Watch(keras.callbacks.Callback):
    """Shows progress, writes history.csv, adds the learning rate and lam to the logs, stops at a non-finite loss."""

    def __init__(self, recipe, folder, data, steps, epoch, step, title):
        super().__init__()
        self.recipe, self.folder, self.data = recipe, folder, data
        self.epoch, self.step = epoch, step
        self.bar = progress_bar(total=recipe.epochs * steps, initial=epoch * steps + step, desc=title, unit="step")

    def on_train_batch_end(self, batch, logs=None):
        self.bar.update()
        shown = {"loss": logs["loss"], "accuracy": logs["accuracy"]}
        if "propagated_radius" in logs:
            shown["propagated radius"] = logs["propagated_radius"]
        self.bar.set_postfix({k: f"{v:.3g}" for k, v in shown.items()}, refresh=False)
        if not np.isfinite(logs["loss"]):
            self._stop(logs["loss"])
        self.step += 1

    def on_epoch_end(self, epoch, logs=None):
        logs["learning_rate"] = self.model.current_learning_rate
        logs["lam"] = self.model.current_lam
        self.folder.append_history({"epoch": epoch, **{k: f"{v:.6g}" for k, v in logs.items()}})
        self.epoch, self.step = epoch + 1, 0

    def _stop(self, loss):
        recipe = self.recipe
        at = (recipe.batch_size, recipe.seed, self.epoch, self.step, self.epoch + 1, recipe.augmentation)
        images, labels = next(iter(self.data.batches(*at)))
        path = self.folder.path / "non_finite_batch.npz"
        np.savez(path, images=images, labels=labels)
        raise NonFiniteLoss(
            f"the loss became {loss:g} in epoch {self.epoch}, step {self.step}; the batch "
            f"is in {path}. Lower --learning-rate or --lam; the checkpoints before it are whole."
        )


def _check_no_limits() -> None:
    """Refuses Keras' own limits on training: the run would be recorded as a whole one."""
    limits = {
        "KERAS_MAX_EPOCHS": keras.config.max_epochs(),
        "KERAS_MAX_STEPS_PER_EPOCH": keras.config.max_steps_per_epoch(),
    }
    for name, value in limits.items():
        if value is not None:
            raise ValueError(
                f"{name} must not be set, got {value}: the run would end early and be recorded as a whole one. Unset "
                "it (or the keras.config.set_... that stands for it); --epochs and --train-images make a run shorter."
            )


def load_training(recipe: Recipe, environment: Environment):
    """Loads the training split as the recipe wants it: limited, and with noisy labels if it says so; first refuses a
    recipe that can't be trained."""
    check_parts(recipe)
    _check_no_limits()
    data = environment.load(recipe, training_split(recipe)).limited(recipe.train_images)
    needing = (("label_noise", recipe.label_noise), (f"{recipe.method}'s weighing of images", weighed(recipe)))
    for what, needed in needing:
        if needed and not hasattr(data, "with_labels"):
            raise ValueError(f"{what} needs a data set held in memory, got {recipe.data!r}, which is streamed.")
    if recipe.label_noise:
        data = data.with_labels(pair_flip(data.labels, len(data.class_names), recipe.label_noise, recipe.seed))
    return data


def load_parts(recipe: Recipe, environment: Environment):
    """Loads the training split and the validation images that every epoch is judged on; refuses labels out of range."""
    data = load_training(recipe, environment)
    validation = environment.load(recipe, "validation").head(max(1, min(5_000, len(data) // 8)))
    for part in (data, validation):
        # A stream's labels are checked batch by batch, in the training step.
        check_labels(getattr(part, "labels", np.zeros(0, np.int64)), len(data.class_names))
    return data, validation


def observers(recipe: Recipe, folder: RunFolder, data, steps, epoch, step, title, environment: Environment, saver):
    """Returns what watches a training: its bar and history, and all callbacks in their order, TensorBoard the last."""
    watch = _Watch(recipe, folder, data=data, steps=steps, epoch=epoch, step=step, title=title)
    judge = [_CleanTest(environment.load(recipe, "test").head(10_000))] if recipe.label_noise else []
    board = keras.callbacks.TensorBoard(folder.path / "tensorboard", write_graph=False)
    return watch, [*judge, watch, saver, board]


def build_trainer(recipe: Recipe, data) -> CertifiedTrainer:
    """Builds and compiles the recipe's trainer; call it under the strategy's scope."""
    trainer = CertifiedTrainer(build_classifier(recipe, data), recipe.objective(), seed=recipe.seed)
    trainer.compile(optimizer=build_optimizer(recipe, data.steps_per_epoch(recipe.batch_size)))
    trainer.optimizer.build(trainer.classifier.trainable_variables)
    return trainer


def check_method(recipe: Recipe, data) -> None:
    """Refuses a classifier that the method can't train, a layer without a rule, a teacher of other images.

    Raises:
        ValueError, TypeError, NotImplementedError: as the objective's `attach`.
    """
    recipe.objective().attached(build_classifier(recipe, data))


def step_of(recipe: Recipe, data):
    """Returns a function that makes one compiled training step of the recipe on one batch of the data."""
    trainer = build_trainer(recipe, data)
    trainer.begin_epoch(recipe.epochs)
    images, labels = next(iter(data.batches(recipe.batch_size, augmentation=recipe.augmentation)))
    # Traced by hand: TensorFlow would warn of one function, several trainers' method, that is traced over and over.
    step = tf.function(trainer.train_step, autograph=False).get_concrete_function((images, labels))
    return lambda: step((images, labels))["loss"].numpy()


def check_batch(recipe: Recipe, replicas: int) -> None:
    """Refuses a batch that the replicas can't share equally."""
    if recipe.batch_size % replicas:
        raise ValueError(f"batch_size must be divisible by the {replicas} devices, got {recipe.batch_size}.")


def check_devices(recipe: Recipe, environment: Environment) -> None:
    """Refuses devices that are not there, and a batch that they can't share equally."""
    check_batch(recipe, devices.strategy(environment.devices).num_replicas_in_sync)


def train(recipe: Recipe, folder: RunFolder, environment=Environment(), title: str = "train", trainer=None):
    """Trains the recipe's classifier in its folder and returns it; resumes, or returns the one that is done.

    Args:
        recipe: what to train. folder: claimed for the recipe. environment: where and how. title: of the progress bar.
        trainer: of `build_trainer` for the recipe; by default it is built.

    Raises:
        Interrupted: a stop was asked for; everything is saved. NonFiniteLoss. OSError: the disk is full. InUse: another
            process works in the folder. ValueError: what the recipe names by a path is not what it was.
    """
    claim_inputs(folder.path, recipe, environment)
    if folder.classifier_file.exists():
        return keras.models.load_model(folder.classifier_file, compile=False)
    if recipe.precision == "auto":
        raise ValueError("recipe must have its precision settled before it is trained: experiments.precision.settled.")
    with folder.held():
        return _train(recipe, folder, environment, title, trainer)


def _train(recipe: Recipe, folder: RunFolder, environment: Environment, title: str, trainer):
    data, validation = load_parts(recipe, environment)
    steps = data.steps_per_epoch(recipe.batch_size)
    strategy = devices.strategy(environment.devices)
    check_batch(recipe, strategy.num_replicas_in_sync)
    if trainer is None:
        with strategy.scope():
            trainer = build_trainer(recipe, data)
    if strategy.num_replicas_in_sync == 1:
        with strategy.scope():
            warn_if_slow(recipe, lambda one: step_of(one, data))
    checkpoints = CheckpointFolder(folder.checkpoints, folder.digest())
    epoch, step = checkpoints.restore(trainer) or (0, 0)
    folder.keep_history(epoch)
    saver = Checkpointing(checkpoints, steps, step=step, minutes=environment.minutes, stop=environment.stop)
    watch, callbacks = observers(
        recipe,
        folder,
        data=data,
        steps=steps,
        epoch=epoch,
        step=step,
        title=title,
        environment=environment,
        saver=saver,
    )
    held_out = tf.data.Dataset.from_tensor_slices((validation.floats(), validation.labels)).batch(recipe.batch_size)
    weighing = Weighing(recipe, trainer, data, folder)
    try:
        while epoch < recipe.epochs:
            # An epoch interrupted in its middle is finished by a `fit` of its own.
            last = epoch + 1 if step else weighing.until(epoch)
            trainer.fit(
                data.batches(
                    recipe.batch_size,
                    recipe.seed,
                    epoch=epoch,
                    step=step,
                    epochs=recipe.epochs,
                    augmentation=recipe.augmentation,
                    weights=weighing.weights(epoch),
                ),
                initial_epoch=epoch,
                epochs=last,
                steps_per_epoch=steps - step,
                validation_data=held_out,
                callbacks=callbacks,
                verbose=0,
                shuffle=False,
            )
            if saver.stopped:
                raise Interrupted
            epoch, step = last, 0
    finally:
        watch.bar.close()
    check_finite(trainer.classifier, recipe)
    return kept(trainer.classifier, folder)


def kept(classifier, folder: RunFolder):
    """Writes the run's classifier and returns it as its file has it: what is certified now is what a resumed run reads,
    to the last word of its configuration."""
    write_aside(folder.classifier_file, classifier.save)
    return keras.models.load_model(folder.classifier_file, compile=False)


def check_finite(classifier, recipe: Recipe) -> None:
    """Refuses weights that the very last update made infinite: no later loss would have told."""
    for weight in classifier.weights:
        if not np.isfinite(np.asarray(weight, np.float32)).all():
            raise NonFiniteLoss(
                f"weight {weight.path} is not finite after the last of {recipe.epochs} epochs. Lower --learning-rate, "
                f"now {recipe.learning_rate:g}, or --lam, in another --run-dir."
            )
