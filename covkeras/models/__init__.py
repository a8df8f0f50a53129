"""Classifiers to start from, and denoisers to put in front of one: stock Keras models of pixels in [0, 1].

classifiers    LeNets and residual networks
denoisers      DnCNN and a small U-Net, and a classifier joined behind one
"""

from covkeras.models.classifiers import lenet, lenet_5x5, narrow_resnet, preact_resnet18, resnet50, resnet110
from covkeras.models.denoisers import at_sigma, dncnn, joined, parts_of, unet

__all__ = [
    "at_sigma",
    "dncnn",
    "joined",
    "lenet",
    "lenet_5x5",
    "narrow_resnet",
    "parts_of",
    "preact_resnet18",
    "resnet50",
    "resnet110",
    "unet",
]
