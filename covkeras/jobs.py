"""The two long jobs of a run, train and certify: each resumes where it stopped when it is called again."""

import functools
import os
import sys

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from covkeras import datasets
from covkeras.certification.certificates import (
    CertificateFile,
    Certificates,
    average_certified_radius,
    read_certificates,
)
from covkeras.certification.smoothing import SmoothedClassifier
from covkeras.checkpoints import CheckpointFolder, Checkpointing
from covkeras.interrupts import Interrupted
from covkeras.recipes import MODELS, Recipe
from covkeras.runs import RunFolder, write_aside
from covkeras.trainer import CertifiedTrainer
from covkeras.validation import check_labels


def progress_bar(**kwargs):
    """A tqdm bar: live on a terminal, a line every half minute in a log."""
    live = sys.stderr.isatty()
    return tqdm(file=sys.stderr, dynamic_ncols=live, mininterval=0.2 if live else 30.0, **kwargs)


def build_classifier(recipe: Recipe, data: datasets.ImageData):
    """Builds the recipe's model for the data's images and classes, with weights drawn from the recipe's seed."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(recipe.precision)
    try:
        keras.utils.set_random_seed(recipe.seed)
        return MODELS[recipe.model](input_shape=data.image_shape, num_classes=len(data.class_names))
    finally:
        keras.config.set_dtype_policy(before)


def build_optimizer(recipe: Recipe, steps: int) -> keras.optimizers.Optimizer:
    """Builds SGD with the recipe's step-wise learning rate, `steps` steps an epoch."""
    boundaries = [epoch * steps for epoch in recipe.decay_epochs]
    rates = [recipe.learning_rate * recipe.decay**i for i in range(len(boundaries) + 1)]
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, rates) if boundaries else rates[0]
    optimizer = keras.optimizers.SGD(schedule, momentum=recipe.momentum, weight_decay=recipe.weight_decay or None)
    if recipe.precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


class NonFiniteLoss(RuntimeError):
    """Training met a loss that is not finite."""


class _Watch(keras.callbacks.Callback):
    """Shows progress, writes history.csv, adds the learning rate and lam to the logs, stops at a non-finite loss."""

    def __init__(self, recipe, folder, data, steps, epoch, step, title):
        super().__init__()
        self.recipe, self.folder, self.data, self.steps = recipe, folder, data, steps
        self.epoch, self.step = epoch, step
        self.bar = progress_bar(total=recipe.epochs * steps, initial=epoch * steps + step, desc=title, unit="step")

    def on_train_batch_end(self, batch, logs=None):
        self.bar.update()
        shown = {"loss": logs["loss"], "accuracy": logs["accuracy"]}
        if "propagated_radius" in logs:
            shown["propagated radius"] = logs["propagated_radius"]
        self.bar.set_postfix({k: f"{v:.3g}" for k, v in shown.items()}, refresh=False)
        if not np.isfinite(logs["loss"]):
            self._stop()
        self.step += 1

    def on_epoch_end(self, epoch, logs=None):
        logs["learning_rate"] = float(self.model.optimizer.learning_rate)
        logs["lam"] = float(self.model.lam)
        self.folder.append_history({"epoch": epoch, **{k: f"{v:.6g}" for k, v in logs.items()}})
        self.epoch, self.step = epoch + 1, 0

    def _stop(self):
        stream = datasets.batches(self.data, self.recipe.batch_size, self.recipe.seed, self.epoch, self.step)
        images, labels = next(iter(stream))
        path = self.folder.path / "non_finite_batch.npz"
        np.savez(path, images=images, labels=labels)
        raise NonFiniteLoss(
            f"the loss became {self.model.means['loss'].result():g} in epoch {self.epoch}, step {self.step}; the batch "
            f"is in {path}. Lower --learning-rate or --lam; the checkpoints before it are whole."
        )


def train(recipe: Recipe, folder: RunFolder, stop=lambda: False, title: str = "train", minutes: float = 10.0):
    """Trains the recipe's classifier in its folder and returns it; resumes, or returns the one that is done.

    Args:
        recipe: what to train. folder: claimed for the recipe. stop: () -> bool, asked after every step.
        title: of the progress bar. minutes: between checkpoints within an epoch.

    Raises:
        Interrupted: `stop` said so; everything is saved. NonFiniteLoss. OSError: the disk is full.
    """
    if folder.classifier_file.exists():
        return keras.models.load_model(folder.classifier_file, compile=False)
    data, validation = datasets.load(recipe.data, "train"), datasets.load(recipe.data, "validation")
    check_labels(data.labels, len(data.class_names))
    steps = datasets.steps_per_epoch(data, recipe.batch_size)
    trainer = CertifiedTrainer(build_classifier(recipe, data), recipe.objective(), seed=recipe.seed)
    trainer.compile(optimizer=build_optimizer(recipe, steps))
    trainer.optimizer.build(trainer.classifier.trainable_variables)
    checkpoints = CheckpointFolder(folder.checkpoints, recipe.digest())
    epoch, step = checkpoints.restore(trainer) or (0, 0)
    folder.keep_history(epoch)
    watch = _Watch(recipe, folder, data, steps, epoch, step, title)
    saver = Checkpointing(checkpoints, steps, step, minutes, stop)
    board = keras.callbacks.TensorBoard(folder.path / "tensorboard", write_graph=False)
    held_out = tf.data.Dataset.from_tensor_slices((validation.floats(), validation.labels)).batch(recipe.batch_size)
    try:
        while epoch < recipe.epochs:
            # An epoch interrupted in its middle is finished by a `fit` of its own.
            last = epoch + 1 if step else recipe.epochs
            trainer.fit(
                datasets.batches(data, recipe.batch_size, recipe.seed, epoch, step),
                initial_epoch=epoch,
                epochs=last,
                steps_per_epoch=steps - step,
                validation_data=held_out,
                callbacks=[watch, saver, board],
                verbose=0,
                shuffle=False,
            )
            if saver.stopped:
                raise Interrupted
            epoch, step = last, 0
    finally:
        watch.bar.close()
    write_aside(folder.classifier_file, trainer.classifier.save)
    return trainer.classifier


def certify(recipe: Recipe, folder: RunFolder, classifier, stop=lambda: False, title: str = "certify"):
    """Certifies the recipe's test images, appending to certificates.tsv; images already there are not done again.

    Returns:
        (indices, labels, Certificates) of all certified images, in the order of the test set.

    Raises:
        Interrupted: `stop` said so; every finished image is in the file.
    """
    data = datasets.load(recipe.data, "test").head(recipe.certify_images)
    smoothed = SmoothedClassifier(classifier, recipe.sigma, recipe.certify_batch or None)
    with CertificateFile(folder.certificates_file) as file:
        todo = np.array([i for i in range(len(data)) if i not in file.done], np.int64)
        work = smoothed.certify_each(
            data.floats(todo), recipe.certify_n0, recipe.certify_n, recipe.certify_alpha, recipe.seed, todo
        )
        _, labels, done = read_certificates(folder.certificates_file)
        parts, truth = [done], labels.tolist()
        bar = progress_bar(total=len(data), initial=len(data) - len(todo), desc=title, unit="image")
        with bar:
            for index, certificate in zip(todo, work, strict=True):
                file.append(int(index), int(data.labels[index]), certificate)
                parts.append(certificate)
                truth.append(int(data.labels[index]))
                running = average_certified_radius(Certificates.concatenate(parts), truth)
                bar.set_postfix({"ACR": f"{running:.3f}"}, refresh=False)
                bar.update()
                if stop():
                    raise Interrupted
    return sorted_certificates(folder.certificates_file)


def sorted_certificates(path: str | os.PathLike):
    """Reads (indices, labels, Certificates) in the order of the test set."""
    indices, labels, certificates = read_certificates(path)
    order = np.argsort(indices, kind="stable")
    taken = functools.partial(np.take, indices=order)
    fields = (certificates.label, certificates.radius, certificates.p_lower, certificates.samples, certificates.seconds)
    return taken(indices), taken(labels), Certificates(*map(taken, fields))
