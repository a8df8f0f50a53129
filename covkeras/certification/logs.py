"""Certification logs, certificates.tsv: written line by line, read whoever wrote them (ours, or the field's)."""

import datetime
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from covkeras.certification.certificates import ABSTAIN, Certificates
from covkeras.runtime.files import lock

# Cohen's columns come first, so that the field's scripts read our files; then ours.
COHEN_COLUMNS = ("idx", "label", "predict", "radius", "correct", "time")
COLUMNS = (*COHEN_COLUMNS, "p_lower", "void", "samples")
# A file with the runner-up bounded has one column more.
RUNNER_UP = "p_upper"
# No image has so large a radius, in whatever units.
_LARGEST_RADIUS = 1e6
_TRUTH = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}


class CertificateFile:
    """Appends records to a certificates.tsv, each flushed to the disk: a kill loses at most the image in work.

    A last line cut off by a kill is dropped when the file is opened again. One process writes at a time.

    Raises:
        InUse: another process has it open. ValueError: it is damaged; the message names the line.
    """

    def __init__(self, path: str | os.PathLike, runner_up: bool = False):
        self.path, self._new = Path(path), (*COLUMNS, RUNNER_UP) if runner_up else COLUMNS
        self._file = self.path.open("a+b")
        try:
            lock(self._file, self.path)
            self._prepare()
            self.done = set(read_certificates(self.path)[0].tolist())
        except BaseException:
            self._file.close()
            raise

    def _prepare(self) -> None:
        """Drops a cut last line, writes the header of a new file, notes the columns of an old one."""
        self._file.seek(0)
        text = self._file.read()
        if not text.endswith(b"\n"):
            self._file.truncate(text.rfind(b"\n") + 1)
            text = text[: text.rfind(b"\n") + 1]
        if not text:
            self._write(self._new)
        # A file of an older version has fewer columns, and keeps them.
        self.columns = _header(_lines(self.path)[0][1]) if text else self._new

    def append(self, index: int, label: int, certificate: Certificates) -> None:
        """Writes one image's certificate (of length 1)."""
        predict, seconds = int(certificate.label[0]), certificate.seconds[0]
        # repr keeps all 17 digits: a radius rounded to fewer could be rounded up.
        values = {
            "idx": index,
            "label": label,
            "predict": predict,
            "radius": repr(float(certificate.radius[0])),
            "correct": int(predict == label),
            "time": f"{seconds:.4f}",
            "p_lower": repr(float(certificate.p_lower[0])),
            "samples": int(certificate.samples[0]),
            "void": int(certificate.void[0]),
            RUNNER_UP: repr(float(certificate.p_upper[0])),
        }
        self._write([values[column] for column in self.columns])

    def _write(self, fields) -> None:
        self._file.write(("\t".join(map(str, fields)) + "\n").encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


class _Row(NamedTuple):
    index: int
    label: int
    certificate: Certificates
    # What must agree where an image stands twice: all but the time.
    claim: tuple


def read_certificates(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray, Certificates]:
    """Reads a certificates.tsv, ours or Cohen's (both of his time formats).

    Byte-order marks, blank lines, comments (#), trailing tabs, headers in capitals or repeated, and repeated rows are
    passed over.

    Returns:
        idx (n,) int64, label (n,) int64, Certificates; p_lower is NaN and samples 0 where the file has none.

    Raises:
        ValueError: in one line, with the file and the line's number: no text, no certification log, a damaged or
            impossible value, an image with two different certificates.
    """
    lines = _lines(path)
    header = _header(lines[0][1]) if lines else ()
    missing = [c for c in COHEN_COLUMNS if c not in header]
    if missing:
        tabs = "" if len(header) > 1 or not lines else " Its columns must be separated by tabs."
        raise ValueError(
            f"{path} lacks the columns {missing}: not a certification log (idx label predict radius correct "
            f"time).{tabs}"
        )
    if len(set(header)) < len(header):
        raise ValueError(f"{path}, line {lines[0][0]}: a column stands twice in {' '.join(header)}.")
    rows: dict[int, tuple[int, _Row]] = {}
    for number, line in lines[1:]:
        if _header(line) == header:
            continue
        try:
            row = _parsed(header, line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}. Delete the line, or certify again.") from None
        before, first = rows.setdefault(row.index, (number, row))
        if first.claim != row.claim:
            raise ValueError(
                f"{path}, lines {before} and {number}: image {row.index} has two different certificates. Delete one."
            )
    kept = [row for _, row in rows.values()]
    index, labels = (np.array([getattr(r, name) for r in kept], np.int64) for name in ("index", "label"))
    return index, labels, Certificates.concatenate(r.certificate for r in kept)


def _lines(path) -> list[tuple[int, str]]:
    """The lines that say something, with their numbers."""
    raw = Path(path).read_bytes()
    encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        number = raw[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {number}: no {encoding.upper()} text. Save the log as UTF-8.") from None
    if "\0" in text:
        raise ValueError(f"{path}, line {text[: text.index(chr(0))].count(chr(10)) + 1}: no text. Save it as UTF-8.")
    lines = enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1)
    return [(number, line) for number, line in lines if line.strip() and not line.lstrip().startswith("#")]


def _fields(line: str) -> list[str]:
    return [field.strip() for field in line.rstrip().split("\t")]


def _header(line: str) -> tuple[str, ...]:
    return tuple(field.lower() for field in _fields(line))


def _parsed(header: tuple[str, ...], line: str) -> _Row:
    fields = _fields(line)
    if len(fields) != len(header):
        raise ValueError(f"{len(fields)} fields, where the header has {len(header)}")
    row = dict(zip(header, fields, strict=True))
    index, label = _whole(row, "idx", 0), _whole(row, "label", 0)
    predict, radius = _whole(row, "predict", ABSTAIN), _real(row, "radius", _LARGEST_RADIUS)
    if _TRUTH.get(row["correct"].lower()) != int(predict == label):
        raise ValueError(f"correct is {row['correct']!r}, but label is {label} and predict {predict}")
    if predict == ABSTAIN and radius > 0:
        raise ValueError(f"predict is -1, an abstention, but radius is {radius:g}")
    given = tuple(row.get(name, "nan") for name in ("p_lower", RUNNER_UP))
    p_lower, p_upper = (
        float("nan") if text.lower() == "nan" else _real(row, name, 1.0)
        for name, text in zip(("p_lower", RUNNER_UP), given, strict=True)
    )
    samples, void = (_whole(row, name, 0) if name in row else 0 for name in ("samples", "void"))
    certificate = Certificates.single(
        predict,
        radius,
        p_lower=p_lower,
        samples=samples,
        seconds=_seconds(row["time"]),
        void=void,
        p_upper=p_upper,
    )
    return _Row(index, label, certificate, (label, predict, radius, given, samples, void))


def _whole(row: dict[str, str], name: str, low: int) -> int:
    try:
        value = float(row[name]) if not row[name].lstrip("-").isdigit() else int(row[name])
        whole = value == int(value)
    except (ValueError, OverflowError):
        whole = False
    if not whole or not low <= value < 2**62:
        raise ValueError(f"{name} must be a whole number from {low} on, got {row[name]!r}")
    return int(value)


def _real(row: dict[str, str], name: str, high: float) -> float:
    try:
        value = float(row[name])
    except ValueError:
        value = float("nan")
    if not 0 <= value <= high:
        raise ValueError(f"{name} must be a number from 0 to {high:g}, got {row[name]!r}")
    return value


def _seconds(text: str) -> float:
    """Seconds of "12.5", "0:00:12.5" or "1 day, 0:00:12"."""
    try:
        if ":" not in text:
            return float(text)
        days, _, clock = text.rpartition(", ")
        hours, minutes, seconds = map(float, clock.split(":"))
        day = float(days.split()[0]) if days else 0.0
        return datetime.timedelta(days=day, hours=hours, minutes=minutes, seconds=seconds).total_seconds()
    except (ValueError, OverflowError, IndexError):
        raise ValueError(f"time must be seconds, or H:MM:SS, got {text!r}") from None


def sorted_certificates(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray, Certificates]:
    """Reads (indices, labels, Certificates) in the order of the data set."""
    indices, labels, certificates = read_certificates(path)
    order = np.argsort(indices, kind="stable")
    return indices[order], labels[order], certificates.take(order)
