"""Fidelity: propagated radii against certified ones, image by image."""

import dataclasses

import numpy as np
import scipy.stats
from keras import ops

from covkeras.diagnostics.joint import all_class_radius
from covkeras.moments.adjoint import adjoint_margin, calibrate_gates
from covkeras.moments.gaussian import margin
from covkeras.moments.network import MomentNetwork


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """One sampling-free estimate against the certified radius.

    name: of the estimate. radius: (images,) the propagated radius, in [0, 1] pixel units. certified: (images,) the
    certified radius. compared: (images,) bool, where both name the same class and the certified radius is one: not
    abstained, and not the largest that the samples could give, where it is a bound that many images share.
    """

    name: str
    radius: np.ndarray
    certified: np.ndarray
    compared: np.ndarray

    @property
    def rank_correlation(self) -> float:
        """Spearman's, over the compared images; NaN for fewer than three, or where all radii are one."""
        pair = self.radius[self.compared], self.certified[self.compared]
        if self.compared.sum() < 3 or any(np.ptp(radii) == 0 for radii in pair):
            return float("nan")
        return float(scipy.stats.spearmanr(*pair).statistic)

    @property
    def median_ratio(self) -> float:
        """The median of propagated over certified radius, over the compared images."""
        if not self.compared.any():
            return float("nan")
        return float(np.median(self.radius[self.compared] / self.certified[self.compared]))


def fidelity(network: MomentNetwork, images, certificates, calibration_images, batch_size: int = 64) -> list[Fidelity]:
    """Holds the paper's radius, that over all classes and the adjoint one against the certificates of the same images.

    Args:
        network: the classifier's moments. images: (images, height, width, channels), as certified.
        certificates: of these images. calibration_images: a few dozen others, for the gates.
        batch_size: images per pass.

    Returns:
        The paper's estimate, the same moments over all classes instead of the top two, the adjoint with propagated
        gates, the adjoint with calibrated gates.
    """
    if len(images) != len(certificates):
        raise ValueError(f"images must be the {len(certificates)} that were certified, got {len(images)}.")
    gates = calibrate_gates(network, calibration_images)
    largest = certificates.radius == certificates.radius.max(initial=0.0)
    capped = largest & (largest.sum() > 1)
    estimates = {
        f"paper (r_max {network.r_max:g})": lambda x: _paper(network, x),
        "paper, all classes": lambda x: all_class_radius(network(x), network.sigma),
        "adjoint, gates from the propagated covariance": lambda x: _adjoint(network, x, None),
        "adjoint, calibrated gates": lambda x: _adjoint(network, x, gates),
    }
    results = []
    for name, estimate in estimates.items():
        parts = [estimate(images[i : i + batch_size]) for i in range(0, len(images), batch_size)]
        radius, label = (np.concatenate([ops.convert_to_numpy(p[j]) for p in parts]) for j in (0, 1))
        compared = (certificates.radius > 0) & ~capped & (label == certificates.label)
        results.append(Fidelity(name, radius, certificates.radius, compared))
    return results


def _paper(network, images):
    mean, sd, label, _ = margin(network(images))
    return network.sigma * mean / sd, label


def _adjoint(network, images, gates):
    estimate = adjoint_margin(network, images, gates)
    return estimate.radius, estimate.label
