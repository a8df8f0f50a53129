"""Estimates and certificates held against the truth.

fidelity    propagated radii against certified ones; joint, the one over all classes
layerwise   propagated against sampled variance, layer by layer; toy and growth, the paper's Figures 1
intervals   boxes beside covariances
attacking   projected gradient ascent on certified images
"""

from covkeras.diagnostics.fidelity import Fidelity, fidelity

__all__ = ["AttackOutcome", "Fidelity", "attack", "attack_certificates", "fidelity"]


def __getattr__(name: str):
    # The attack needs TensorFlow; fidelity runs on Keras' other backends too.
    if name in ("AttackOutcome", "attack", "attack_certificates"):
        from covkeras.diagnostics import attacking

        return getattr(attacking, name)
    raise AttributeError(f"module 'covkeras.diagnostics' has no attribute {name!r}")
