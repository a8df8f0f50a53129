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
    whether the images had one stream of noise. split: which images they are; only the classifier of test images is
    surely independent of them.
    """

    name: str
    labels: np.ndarray
    certificates: Certificates
    fidelity: Sequence[Fidelity] = ()
    indices: np.ndarray | None = None
    alpha: float | None = None
    shared_noise: bool = False
    split: str = "test"

    @property
    def tells_of_all(self) -> bool:
        """Whether the images say something of all that they were drawn from: not those that the classifier was made,
        or chosen, by."""
        return self.alpha is not None and self.split == "test"


def steps_to(largest: float, step: float, most: int) -> list[float]:
    """Returns 0, step, 2 step, ... up to `largest`, the step doubled until they are at most so many."""
    while int(largest / step) + 1 > most:
        step *= 2
    return [step * i for i in range(int(largest / step) + 1)]
