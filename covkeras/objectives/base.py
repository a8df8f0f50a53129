"""Objective: what the trainer, recipes and files ask of every method."""

import copy
import inspect

from covkeras.runtime.classifiers import check_classifier

# The published tables are for MNIST and CIFAR-10, at these sigmas.
_SIGMAS = (0.25, 0.5, 1.0)


class Objective:
    """A method's loss. A subclass sets what its constructor is given as attributes of the same names.

    Attributes:
        name: of the method. sigma: noise level. lam: weight of the robustness loss, from epoch `switch_epoch` on.
        copies: noise samples per image that a step needs.
    """

    name = ""
    copies = 0
    lam = 0.0
    switch_epoch = 0

    def attach(self, classifier) -> None:
        """Binds the objective to a classifier; called once, before the first step."""
        check_classifier(classifier)
        self.classifier = classifier

    def attached(self, classifier) -> "Objective":
        """Returns a copy bound to the classifier: one objective may serve several trainers."""
        return attached(self, classifier)

    def __call__(self, images, labels, noise, context):
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
    def hyperparameters(cls) -> tuple[str, ...]:
        """Returns the names of the constructor's arguments."""
        return tuple(inspect.signature(cls.__init__).parameters)[1:]

    @classmethod
    def published(cls, data: str, sigma: float, epochs: int, switch_epoch: int) -> dict:
        """Returns the hyperparameters that the method's authors print for the nearest setting; what every program
        trains it with unless told otherwise.

        Args:
            data: the data set's name; mnist and digits take the values for MNIST, all else those for CIFAR-10.
            sigma: noise level. epochs: of the training. switch_epoch: from which the recipe has robustness losses.
        """
        return {}


def attached(objective, classifier):
    """Returns a copy of any object with an objective's methods, bound to the classifier."""
    bound = copy.copy(objective)
    bound.attach(classifier)
    return bound


def nearest(table: dict[str, tuple[float, float, float]], data: str, sigma: float) -> float:
    """Returns of a method's table {"mnist": values, "cifar10": values}, at sigma .25, .5 and 1, the nearest value."""
    values = table["mnist" if data in ("mnist", "digits") else "cifar10"]
    return values[min(range(3), key=lambda i: abs(_SIGMAS[i] - sigma))]
