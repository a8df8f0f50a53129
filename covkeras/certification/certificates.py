"""Certificates: the record of what was certified, and the figures the field quotes."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from covkeras.runtime.validation import check_radii

ABSTAIN = -1


class Predictions(NamedTuple):
    """label: (batch,) int64, -1 = abstain. counts: (batch, classes) int64, the votes."""

    label: np.ndarray
    counts: np.ndarray


@dataclasses.dataclass(frozen=True)
class Certificates:
    """One entry per image: label int64, -1 = abstain; radius float64, in [0, 1] pixel units, rounded down, 0 where
    abstained; p_lower float64; samples int64; seconds float64; void int64, samples whose logits had no largest entry
    (NaN) or whose noise was in doubt: they vote for nobody, and count among the samples. p_upper: float64, the upper
    bound of all other classes where the runner-up was bounded, too, else NaN."""

    label: np.ndarray
    radius: np.ndarray
    p_lower: np.ndarray
    samples: np.ndarray
    seconds: np.ndarray
    void: np.ndarray | None = None
    p_upper: np.ndarray | None = None

    def __post_init__(self):
        if self.void is None:
            object.__setattr__(self, "void", np.zeros(np.shape(self.label), np.int64))
        if self.p_upper is None:
            object.__setattr__(self, "p_upper", np.full(np.shape(self.label), np.nan))

    def __len__(self) -> int:
        return len(self.label)

    def take(self, positions) -> "Certificates":
        """Returns those at the given positions, in their order."""
        return Certificates(**{f.name: getattr(self, f.name)[positions] for f in dataclasses.fields(self)})

    @classmethod
    def single(cls, label, radius, p_lower, samples, seconds, void=0, p_upper=np.nan) -> "Certificates":
        """Returns one image's certificate, of length 1."""
        return cls(
            label=np.array([label], np.int64),
            radius=np.array([radius], np.float64),
            p_lower=np.array([p_lower], np.float64),
            samples=np.array([samples], np.int64),
            seconds=np.array([seconds], np.float64),
            void=np.array([void], np.int64),
            p_upper=np.array([p_upper], np.float64),
        )

    @classmethod
    def concatenate(cls, parts: Iterable["Certificates"]) -> "Certificates":
        parts = list(parts) or [cls.single(ABSTAIN, 0.0, p_lower=0.0, samples=0, seconds=0.0).take(slice(0, 0))]
        return cls(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(cls)})


@dataclasses.dataclass(frozen=True)
class RadiusDecisions:
    """One entry per image. label: int64, the class tested. certified: bool, whether `radius` is certified for it.
    decided: bool, whether a test at level alpha said so or the contrary; False where max_n samples did not suffice, or
    would hardly have, which is not certified. samples: int64, all that were drawn for it; hits, trials: int64, those
    the decision rests on. seconds: float64. radius: the one decided. void: int64, as of Certificates."""

    label: np.ndarray
    certified: np.ndarray
    decided: np.ndarray
    samples: np.ndarray
    hits: np.ndarray
    trials: np.ndarray
    seconds: np.ndarray
    radius: float
    void: np.ndarray | None = None

    def __post_init__(self):
        if self.void is None:
            object.__setattr__(self, "void", np.zeros(np.shape(self.label), np.int64))

    def __len__(self) -> int:
        return len(self.label)

    @classmethod
    def single(cls, *, label, certified, decided, samples, hits, trials, seconds, radius, void=0) -> "RadiusDecisions":
        """Returns one image's decision, of length 1."""
        counts = {"label": label, "samples": samples, "hits": hits, "trials": trials, "void": void}
        return cls(
            **{name: np.array([value], np.int64) for name, value in counts.items()},
            certified=np.array([certified], bool),
            decided=np.array([decided], bool),
            seconds=np.array([seconds], np.float64),
            radius=radius,
        )

    @classmethod
    def concatenate(cls, parts: Sequence["RadiusDecisions"], radius: float) -> "RadiusDecisions":
        zeros = dict.fromkeys(("label", "certified", "decided", "samples", "hits", "trials", "seconds"), 0)
        one = cls.single(**zeros, radius=radius)
        names = [f.name for f in dataclasses.fields(cls) if f.name != "radius"]
        joined = {n: np.concatenate([getattr(one, n)[:0], *(getattr(p, n) for p in parts)]) for n in names}
        return cls(**joined, radius=radius)

    def as_certificates(self, p0: float) -> Certificates:
        """Returns certificates: the radius, and the p0 it requires, where it is certified; else an abstention."""
        return Certificates(
            label=np.where(self.certified, self.label, ABSTAIN),
            radius=np.where(self.certified, self.radius, 0.0),
            p_lower=np.where(self.certified, p0, 0.0),
            samples=self.samples,
            seconds=self.seconds,
            void=self.void,
        )


def _radii_where_correct(certificates, labels) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(certificates, (Certificates, RadiusDecisions)):
        raise TypeError(
            f"certificates must be Certificates, as SmoothedClassifier.certify returns them, got "
            f"{type(certificates).__name__}. Several: Certificates.concatenate(parts)."
        )
    labels = np.asarray(labels)
    if labels.shape != certificates.label.shape:
        raise ValueError(
            f"labels must have shape {certificates.label.shape}, one for each certificate, got {labels.shape}."
        )
    if not len(labels):
        raise ValueError("certificates must hold at least one image, got none.")
    if labels.dtype.kind not in "iubf" or (labels.dtype.kind == "f" and not (labels == np.rint(labels)).all()):
        raise TypeError(
            f"labels must be class numbers, by which the classifier's classes go, got {labels.dtype} such as "
            f"{labels[0]!r}. Names: [class_names.index(name) for name in labels]."
        )
    if labels.min() < 0:
        raise ValueError(f"labels must be at least 0 ({ABSTAIN} stands for an abstention), got {labels.min()}.")
    correct = certificates.label == labels
    return np.where(correct, certificates.radius, 0.0), correct


def counted_at(certificates: Certificates, labels, radius: float) -> np.ndarray:
    """Returns which images count as certified at the radius, right and with at least that radius: bool (images,)."""
    values, correct = _radii_where_correct(certificates, labels)
    return correct & (values >= radius)


def average_certified_radius(certificates: Certificates, labels) -> float:
    """Returns the ACR: the mean over the images of the certified radius, 0 where wrong or abstained."""
    return float(_radii_where_correct(certificates, labels)[0].mean())


def certified_accuracy(certificates: Certificates, labels, radii: Sequence[float]) -> np.ndarray:
    """Returns, for each of `radii`, the share of images predicted correctly with certified radius >= it.

    At radius 0 that is the smoothed classifier's certified accuracy: right, and not abstained.
    """
    return np.array([counted_at(certificates, labels, r).mean() for r in check_radii(radii)])
