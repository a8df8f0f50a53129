"""Certificates: the record of what was certified, its file, and the figures the field quotes."""

import dataclasses
import datetime
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

ABSTAIN = -1
# Cohen's columns come first, so that the field's scripts read our files; then ours.
COHEN_COLUMNS = ("idx", "label", "predict", "radius", "correct", "time")
COLUMNS = (*COHEN_COLUMNS, "p_lower", "samples")


class Predictions(NamedTuple):
    """label: (batch,) int64, -1 = abstain. counts: (batch, classes) int64, the votes."""

    label: np.ndarray
    counts: np.ndarray


@dataclasses.dataclass(frozen=True)
class Certificates:
    """One entry per image: label int64, -1 = abstain; radius float64, in [0, 1] pixel units, rounded down, 0 where
    abstained; p_lower float64; samples int64; seconds float64."""

    label: np.ndarray
    radius: np.ndarray
    p_lower: np.ndarray
    samples: np.ndarray
    seconds: np.ndarray

    def __len__(self) -> int:
        return len(self.label)

    def take(self, positions) -> "Certificates":
        """Returns those at the given positions, in their order."""
        return Certificates(*(getattr(self, f.name)[positions] for f in dataclasses.fields(self)))

    @classmethod
    def single(cls, label, radius, p_lower, samples, seconds) -> "Certificates":
        ints, floats = np.int64, np.float64
        return cls(
            *(
                np.array([v], t)
                for v, t in ((label, ints), (radius, floats), (p_lower, floats), (samples, ints), (seconds, floats))
            )
        )

    @classmethod
    def concatenate(cls, parts: Iterable["Certificates"]) -> "Certificates":
        parts = list(parts) or [
            cls(*(np.zeros(0, t) for t in (np.int64, np.float64, np.float64, np.int64, np.float64)))
        ]
        return cls(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(cls)))


_DECISION_TYPES = (np.int64, bool, bool, np.int64, np.int64, np.int64, np.float64)


@dataclasses.dataclass(frozen=True)
class RadiusDecisions:
    """One entry per image. label: int64, the class tested. certified: bool, whether `radius` is certified for it.
    decided: bool, whether a test at level alpha said so or the contrary; False where max_n samples did not suffice, or
    would hardly have, which is not certified. samples: int64, all that were drawn for it; hits, trials: int64, those
    the decision rests on. seconds: float64. radius: the one decided."""

    label: np.ndarray
    certified: np.ndarray
    decided: np.ndarray
    samples: np.ndarray
    hits: np.ndarray
    trials: np.ndarray
    seconds: np.ndarray
    radius: float

    def __len__(self) -> int:
        return len(self.label)

    @classmethod
    def single(cls, label, certified, decided, samples, hits, trials, seconds, radius: float) -> "RadiusDecisions":
        values = (label, certified, decided, samples, hits, trials, seconds)
        return cls(*(np.array([v], t) for v, t in zip(values, _DECISION_TYPES, strict=True)), radius)

    @classmethod
    def concatenate(cls, parts: Sequence["RadiusDecisions"], radius: float) -> "RadiusDecisions":
        empty = cls(*(np.zeros(0, t) for t in _DECISION_TYPES), radius)
        names = [f.name for f in dataclasses.fields(cls) if f.name != "radius"]
        return cls(*(np.concatenate([getattr(p, name) for p in (empty, *parts)]) for name in names), radius)

    def as_certificates(self, p0: float) -> Certificates:
        """Returns certificates: the radius, and the p0 it requires, where it is certified; else an abstention."""
        label = np.where(self.certified, self.label, ABSTAIN)
        radius = np.where(self.certified, self.radius, 0.0)
        p_lower = np.where(self.certified, p0, 0.0)
        return Certificates(label, radius, p_lower, self.samples, self.seconds)


def _radii_where_correct(certificates, labels) -> tuple[np.ndarray, np.ndarray]:
    labels = np.asarray(labels)
    if labels.shape != certificates.label.shape:
        raise ValueError(
            f"labels must have shape {certificates.label.shape}, one for each certificate, got {labels.shape}."
        )
    if not len(labels):
        raise ValueError("certificates must hold at least one image, got none.")
    correct = certificates.label == labels
    return np.where(correct, certificates.radius, 0.0), correct


def average_certified_radius(certificates: Certificates, labels) -> float:
    """Returns the ACR: the mean over the images of the certified radius, 0 where wrong or abstained."""
    return float(_radii_where_correct(certificates, labels)[0].mean())


def certified_accuracy(certificates: Certificates, labels, radii: Sequence[float]) -> np.ndarray:
    """Returns, for each of `radii`, the share of images predicted correctly with certified radius >= it.

    At radius 0 that is the smoothed classifier's certified accuracy: right, and not abstained.
    """
    values, correct = _radii_where_correct(certificates, labels)
    return np.array([(correct & (values >= r)).mean() for r in np.asarray(radii, np.float64)])


class CertificateFile:
    """Appends records to a certificates.tsv, each flushed to the disk: a kill loses at most the image in work.

    A last line cut off by a kill is dropped when the file is opened again.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if not self.path.exists():
            self.path.write_text("\t".join(COLUMNS) + "\n")
        text = self.path.read_bytes()
        if not text.endswith(b"\n"):
            whole = text[: text.rfind(b"\n") + 1]
            self.path.write_bytes(whole or ("\t".join(COLUMNS) + "\n").encode())
        self.done = set(read_certificates(self.path)[0].tolist())
        self._file = self.path.open("a")

    def append(self, index: int, label: int, certificate: Certificates) -> None:
        predict, radius, p_lower = int(certificate.label[0]), certificate.radius[0], certificate.p_lower[0]
        correct = int(predict == label)
        # repr keeps all 17 digits: a radius rounded to fewer could be rounded up.
        fields = (index, label, predict, repr(float(radius)), correct, f"{certificate.seconds[0]:.4f}")
        self._file.write("\t".join(map(str, (*fields, repr(float(p_lower)), int(certificate.samples[0])))) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


def read_certificates(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray, Certificates]:
    """Reads a certificates.tsv, ours or Cohen's (both of his time formats).

    Returns:
        idx (n,) int64, label (n,) int64, Certificates; p_lower is NaN and samples 0 where the file has none.

    Raises:
        ValueError: a file without Cohen's columns, or with a damaged line, named.
    """
    lines = Path(path).read_text().splitlines()
    header = lines[0].split("\t") if lines else []
    missing = [c for c in COHEN_COLUMNS if c not in header]
    if missing:
        raise ValueError(
            f"{path} lacks the columns {missing}: not a certification log (idx label predict radius correct time)."
        )
    rows = []
    for number, line in enumerate(lines[1:], 2):
        fields = line.split("\t")
        try:
            rows.append(_parsed(dict(zip(header, fields, strict=True))))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}. Delete the line, or certify again.") from None
    index, labels = (np.array([r[i] for r in rows], np.int64) for i in (0, 1))
    return index, labels, Certificates.concatenate(r[2] for r in rows)


def _parsed(row: dict[str, str]):
    predict, radius = int(row["predict"]), float(row["radius"])
    p_lower, samples = float(row.get("p_lower", "nan")), int(row.get("samples", 0))
    certificate = Certificates.single(predict, radius, p_lower, samples, _seconds(row["time"]))
    return int(row["idx"]), int(row["label"]), certificate


def _seconds(text: str) -> float:
    """Seconds of "12.5", "0:00:12.5" or "1 day, 0:00:12"."""
    if ":" not in text:
        return float(text)
    days, _, clock = text.rpartition(", ")
    hours, minutes, seconds = clock.split(":")
    day = float(days.split()[0]) if days else 0.0
    return datetime.timedelta(
        days=day, hours=float(hours), minutes=float(minutes), seconds=float(seconds)
    ).total_seconds()
