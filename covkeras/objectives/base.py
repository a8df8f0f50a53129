"""Objective: what the trainer, recipes, files and searches ask of every method."""

import copy
import dataclasses
import inspect
import sys
import typing

from covkeras.objectives.terms import Terms
from covkeras.runtime import fields
from covkeras.runtime.classifiers import check_classifier, with_a_graph

# The published tables are for MNIST and CIFAR-10, at these sigmas.
_SIGMAS = (0.25, 0.5, 1.0)
# Classes made before Keras was imported.
_UNREGISTERED = []


class Step(typing.Protocol):
    """What a method may ask of the step it is called in; the rules' `moments.Context` is one.

    training: whether it is a training step, or an evaluation. epoch: from 0, a number or an integer tensor. weighted:
    whether the images have weights, so that the loss is not their mean.
    """

    training: bool
    epoch: object
    weighted: bool


@typing.dataclass_transform(
    eq_default=False, field_specifiers=(fields.number, fields.count, fields.switch, fields.choice, fields.r_max)
)
@dataclasses.dataclass(eq=False)
class Objective:
    """A method's loss. A subclass is a dataclass without saying so: its hyper-parameters are `covkeras.runtime.fields`,
    each with its default, range, help and search, declared there and nowhere else.

    A module that defines one imports Keras later (`ops = Later("keras.ops")`), so that a command's --help, which shows
    the hyper-parameters, is there at once.

    Attributes:
        name: of the method. sigma: noise level. lam: weight of the robustness loss, from epoch `switch_epoch` on.
        copies: noise samples per image that a step needs. denoises: whether it trains a denoiser in front of a frozen
            classifier. labelled: whether its loss needs labels; without, batches may be images alone.
    """

    name = ""
    copies = 0
    denoises = False
    labelled = True
    lam = 0.0
    switch_epoch = 0

    sigma: float = fields.sigma()

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls._own_init = "__init__" in vars(cls)
        dataclasses.dataclass(eq=False)(cls)
        arguments = [f"    {name}: {fields.describe(field)}." for name, field in cls.hyperparameters().items()]
        cls.__doc__ = "\n".join([inspect.cleandoc(cls.__doc__ or cls.__name__), "", "Args:", *arguments])
        _UNREGISTERED.append(cls)
        if "keras" in sys.modules:
            register()

    def __post_init__(self):
        register()
        for name, field in fields.fields_of(type(self)).items():
            setattr(self, name, fields.check(field, getattr(self, name)))
        self.check()

    def check(self) -> None:
        """Refuses values that don't go together. Raises ValueError."""

    def ready(self) -> None:
        """Refuses a training whose files are missing; the programs ask before any work. Raises ValueError."""

    def attach(self, classifier) -> None:
        """Binds the objective to a classifier; called once, before the first step."""
        self.classifier = with_a_graph(classifier)
        check_classifier(self.classifier)

    def attached(self, classifier) -> "Objective":
        """Returns a copy bound to the classifier: one objective may serve several trainers."""
        return attached(self, classifier)

    def __call__(self, images, labels, noise, context: Step) -> Terms:
        """images (batch, h, w, c), labels (batch,), noise (copies, batch, h, w, c) standard normal -> Terms."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(images, labels, noise, context).")

    def __getattr__(self, name):
        if name in ("classifier", "network"):
            raise RuntimeError(
                f"{type(self).__name__} is attached to no classifier: CertifiedTrainer attaches a copy of it "
                "(trainer.objective), or call attach(classifier)."
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def get_config(self) -> dict:
        """Returns the constructor's arguments."""
        return {name: getattr(self, name) for name in self.hyperparameters()}

    @classmethod
    def from_config(cls, config: dict) -> "Objective":
        return cls(**config)

    @classmethod
    def hyperparameters(cls) -> dict[str, fields.Field]:
        """Returns what the constructor takes, {name: field}; of a constructor written by hand, its arguments."""
        if not cls._own_init:
            return fields.fields_of(cls)
        given = list(inspect.signature(cls.__init__).parameters.values())[1:]
        return {p.name: _argument(p) for p in given if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}

    def copies_to_count(self, epoch: int) -> int:
        """Returns how many noisy copies of each training image are to be classified before an epoch (from 0), for
        `image_weights`; 0 for none. The programs ask; who calls `fit` gives sample weights."""
        return 0

    def image_weights(self, epoch: int, shares, before):
        """Returns how often each training image is drawn from an epoch on, in proportion, (images,).

        shares: (images,), of the copies that the classifier gives the label. before: (images,), the last weights.
        """
        return before

    @classmethod
    def published(cls, data: str, sigma: float, epochs: int, switch_epoch: int) -> dict:
        """Returns the hyper-parameters that the method's authors print for the nearest setting; what every program
        trains it with unless told otherwise.

        Args:
            data: the data set's name; mnist and digits take the values for MNIST, all else those for CIFAR-10.
            sigma: noise level. epochs: of the training. switch_epoch: from which the recipe has robustness losses.
        """
        return {}


def register() -> None:
    """Lets Keras read the objectives back, "package>Class": once it is imported, and for each class once."""
    import keras

    while _UNREGISTERED:
        kind = _UNREGISTERED.pop()
        keras.saving.register_keras_serializable(kind.__module__.partition(".")[0])(kind)


def _argument(parameter: inspect.Parameter) -> fields.Field:
    default = None if parameter.default is parameter.empty else parameter.default
    made = dataclasses.field(default=default)
    made.name = parameter.name
    return made


def attached(objective, classifier):
    """Returns a copy of any object with an objective's methods, bound to the classifier."""
    bound = copy.copy(objective)
    bound.attach(classifier)
    return bound


def nearest(table: dict[str, tuple[float, float, float]], data: str, sigma: float) -> float:
    """Returns of a method's table {"mnist": values, "cifar10": values}, at sigma .25, .5 and 1, the nearest value."""
    values = table["mnist" if data in ("mnist", "digits") else "cifar10"]
    return values[min(range(3), key=lambda i: abs(_SIGMAS[i] - sigma))]
