"""What a recipe's training is made of: its classifier, with a denoiser in front if it has one, and its optimizer."""

import os

import keras

from covkeras import models
from covkeras.experiments.recipe import DENOISERS, MODELS, objective_kind
from covkeras.experiments.recipes import Recipe
from covkeras.runtime.classifiers import check_fits, with_a_graph
from covkeras.runtime.later import Later
from covkeras.runtime.loading import load_keras
from covkeras.training.schedules import WarmedUp

# It needs TensorFlow, and an optimizer doesn't.
precision = Later("covkeras.experiments.precision")


def build_classifier(recipe: Recipe, data):
    """Builds the recipe's model for the data's images and classes, with weights drawn from the recipe's seed, or reads
    it from its file; with a denoiser in front where the recipe has one."""
    classifier = None
    if recipe.model not in MODELS:
        classifier = with_a_graph(load_keras(recipe.model, "model"))
        check_fits(classifier, data.name, data.image_shape, len(data.class_names))
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision.settled(recipe, report=lambda text: None).precision)
    try:
        keras.utils.set_random_seed(recipe.seed)
        if classifier is None:
            build = getattr(models, recipe.model)
            classifier = build(input_shape=data.image_shape, num_classes=len(data.class_names))
        if recipe.denoiser == "none":
            return classifier
        # What its method does not train must not move, nor a normalisation in it look at batches.
        classifier.trainable = not objective_kind(recipe.method).denoises
        conditioned = recipe.hyper.get("sigma_low", 0.0) > 0
        denoiser = getattr(models, recipe.denoiser)(input_shape=data.image_shape, conditioned=conditioned)
        return models.joined(denoiser, classifier, recipe.sigma if conditioned else None)
    finally:
        keras.config.set_dtype_policy(before)


def check_parts(recipe: Recipe) -> None:
    """Refuses a recipe whose classifier can't be built, or whose method has nothing to train in it.

    Raises:
        ValueError: a method that trains a denoiser, without one, or in front of a classifier that is not trained; what
            the method itself refuses.
        FileNotFoundError: the classifier's file.
    """
    # A method from elsewhere may have no such question.
    getattr(recipe.objective(), "ready", lambda: None)()
    if objective_kind(recipe.method).denoises:
        if recipe.denoiser == "none":
            raise ValueError(f"denoiser must be one of {', '.join(DENOISERS)} for {recipe.method}, which trains it.")
        if recipe.model in MODELS:
            raise ValueError(
                f"model must be a trained classifier, a .keras file, for {recipe.method}, which trains a denoiser in "
                f"front of it, got {recipe.model!r}, of which nothing is trained yet."
            )
    if recipe.model not in MODELS and not os.path.exists(recipe.model):
        raise FileNotFoundError(f"model {recipe.model} does not exist. Name the classifier's .keras file.")


def learning_rates(recipe: Recipe, steps: int):
    """Builds the recipe's step-wise learning rate, `steps` steps an epoch: a schedule of Keras', or a number."""
    boundaries = [epoch * steps for epoch in recipe.decay_epochs]
    rates = [recipe.learning_rate * recipe.decay**i for i in range(len(boundaries) + 1)]
    rate = keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, rates) if boundaries else rates[0]
    if recipe.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(recipe.learning_rate, recipe.epochs * steps)
    return WarmedUp(rate, recipe.warmup_epochs * steps) if recipe.warmup_epochs else rate


def build_optimizer(recipe: Recipe, steps: int) -> keras.optimizers.Optimizer:
    """Builds the recipe's optimizer with its learning rates, `steps` steps an epoch."""
    schedule, decay = learning_rates(recipe, steps), recipe.weight_decay or None
    if recipe.optimizer == "adam":
        optimizer = keras.optimizers.Adam(schedule, beta_1=recipe.momentum, weight_decay=decay)
    else:
        optimizer = keras.optimizers.SGD(schedule, momentum=recipe.momentum, weight_decay=decay)
    if recipe.precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer
