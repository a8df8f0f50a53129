"""One method's certificates, with what its estimates said: what reports are made of."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from covkeras.certification.certificates import Certificates
from covkeras.diagnostics.fidelity import Fidelity


@dataclasses.dataclass(frozen=True)
class Result:
    """One certified classifier: its name in tables, the true labels and the certificates of the same images.

    indices: (images,), their numbers in the data set. alpha: of each certificate, None where nobody says. shared_noise:
    whether the images had one stream of noise. split: which images they are. sequential: whether each was sampled until
    it was decided, so that those that are not there yet are the ones that take longest.
    """

    name: str
    labels: np.ndarray
    certificates: Certificates
    fidelity: Sequence[Fidelity] = ()
    indices: np.ndarray | None = None
    alpha: float | None = None
    shared_noise: bool = False
    split: str = "test"
    sequential: bool = False

    @property
    def missing(self) -> int:
        """How many images between the first and the last a sequential test has not decided yet."""
        steps = np.diff(np.unique(self.indices)) if self.sequential and self.indices is not None else np.zeros(0, int)
        return int(steps.sum() // np.gcd.reduce(steps)) - len(steps) if len(steps) else 0

    @property
    def silent(self) -> str:
        """Why the images say nothing of those that they were drawn from; empty where they do. Only of test images the
        classifier is surely independent."""
        if self.split != "test":
            return (
                f"images of the {self.split} split say nothing of others: the classifier may have been trained on "
                "them, or chosen by them. Certify test images."
            )
        if not self.missing:
            return ""
        return (
            f"{self.missing} images between the first and the last are missing. Those that a sequential test has not "
            "decided yet are the hardest: what is there is no fair sample. End it by the same command, or certify "
            "them, too."
        )


def steps_to(largest: float, step: float, most: int) -> list[float]:
    """Returns 0, step, 2 step, ... up to `largest`, the step doubled until they are at most so many."""
    while int(largest / step) + 1 > most:
        step *= 2
    return [step * i for i in range(int(largest / step) + 1)]
