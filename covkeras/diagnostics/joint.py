"""P(argmax = c) of the propagated logits over all classes, where the paper's radius looks at the top two alone."""

import numpy as np
import scipy.special

from covkeras.moments.gaussian import Gaussian


def top_probability(logits: Gaussian, samples: int = 20_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns the likeliest top class of Gaussian logits and its probability, by sampling the logits (not the network).

    Args:
        logits: mean (batch, classes), cov (classes, classes). samples: of every image. seed: of the samples.

    Returns:
        label (batch,) int64; P(argmax u = label) (batch,) float64, between 1 / (samples + 1) and 1 - that.
    """
    labels, shares = [], []
    for start in range(0, logits.mean.shape[0], 64):
        part = Gaussian(logits.mean[start : start + 64], logits.cov).distribution()
        top = part.sample(samples, seed=(seed, start)).numpy().argmax(-1)
        counts = np.stack([(top == c).sum(0) for c in range(logits.mean.shape[-1])], -1)
        labels.append(counts.argmax(-1))
        shares.append(counts.max(-1))
    share = np.concatenate(shares)
    return np.concatenate(labels), np.clip(share, 1, samples) / (samples + 1)


def all_class_radius(logits: Gaussian, sigma: float, samples: int = 20_000, seed: int = 0):
    """Returns sigma Phi^-1(P(argmax u = c)), Cohen's radius of the propagated logits. An estimate, NOT a certificate.

    Args, Returns: as `top_probability`; the radius (batch,), in the units of sigma, at most sigma Phi^-1(1 - 1 / n) for
        n samples, and the label (batch,).
    """
    label, p = top_probability(logits, samples, seed)
    return sigma * scipy.special.ndtri(p), label
