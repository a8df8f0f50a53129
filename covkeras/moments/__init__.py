"""A Gaussian's way through a network: the rules of the paper's Table 1, and the adjoint estimate."""

from covkeras.moments.dispatch import Context
from covkeras.moments.gaussian import Gaussian, blocks, margin, propagated_radius, standard_deviation
from covkeras.moments.layers import GaussianInput, Moments
from covkeras.moments.network import MomentNetwork
from covkeras.moments.rectifiers import rectify
from covkeras.moments.rules import propagate

__all__ = [
    "Context",
    "Gaussian",
    "GaussianInput",
    "MomentNetwork",
    "Moments",
    "blocks",
    "margin",
    "propagate",
    "propagated_radius",
    "rectify",
    "standard_deviation",
]
