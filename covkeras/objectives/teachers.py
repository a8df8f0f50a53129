"""Frozen classifiers that a method learns from."""

import os

from covkeras.objectives.base import Objective
from covkeras.runtime import fields
from covkeras.runtime.later import Later

loading = Later("covkeras.runtime.loading")


class Taught(Objective):
    """What methods with a teacher have in common: it is there before anything is trained, and `known` once attached."""

    teacher: str = fields.files("", "the classifier to learn from, a .keras file of the same images and classes")

    def ready(self) -> None:
        """Raises ValueError: no teacher."""
        check_teacher(self.teacher)

    def attach(self, classifier) -> None:
        """Raises ValueError: no teacher, or one of other images or classes."""
        super().attach(classifier)
        self.known = load_teacher(self.teacher, self.classifier)


def check_teacher(path: str) -> str:
    """Returns where a teacher's file is. Raises ValueError: there is none."""
    place = os.path.expanduser(path)
    if not os.path.isfile(place):
        raise ValueError(
            f"teacher must be a .keras file, a classifier trained by another method, got {path!r}. Train one, "
            "such as by covkeras train --method gaussian_augmentation, and name its classifier.keras."
        )
    return place


def load_teacher(path: str, classifier):
    """Returns the classifier of a .keras file, frozen. Raises ValueError: none, or one of other images or classes."""
    path = check_teacher(path)
    teacher = loading.load_keras(path, "teacher")
    teacher.trainable = False
    ours, theirs = ((tuple(m.inputs[0].shape[1:]), m.outputs[0].shape[-1]) for m in (classifier, teacher))
    if ours != theirs:
        raise ValueError(f"teacher must have the classifier's images and classes, {ours}, got {theirs}.")
    return teacher
