"""A Gaussian's way through a network (Zhen, Chakraborty, Singh, CVPR 2021).

    gaussian      the pair (mean, covariance); the margin and the propagated radius (Eqs. 3 to 5)
    rules         linear layers and affine ones (Table 1); merging, moving, pooling, normalising, attention, operations
    activations   every element-wise function; rectifiers, ReLU's and its loops
    dispatch      which rule is whose; unknown, layers without one; graph, Keras' walk through a model
    layers        GaussianInput, Moments; network, MomentNetwork: a classifier's graph laid again
    adjoint       J S J^T from the margin's end (ours)
    gradients     those written by hand

Knows nothing of certification.
"""

# The modules of rules register what they hold.
from covkeras.moments import attention, merging, moving, normalising, operations, pooling  # noqa: F401
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
