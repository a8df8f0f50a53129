"""Prints ACR and certified accuracy of certification logs, ours or Cohen's, and writes curve, table and page."""

import argparse
import os
import sys
from pathlib import Path

from covkeras.commands import cli
from covkeras.runtime.files import user_path
from covkeras.runtime.later import Later
from covkeras.runtime.validation import check_alpha

certification = Later("covkeras.certification")
records = Later("covkeras.certification.records")
report = Later("covkeras.reports.results")

EXAMPLES = """examples:
  covkeras report runs/digits_stepped/certificates.tsv runs/digits_stepped/reference/certificates.tsv --out compared
  covkeras report logs/*.tsv --alpha 0.001
"""


def parse(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=cli.Formatter, allow_abbrev=False
    )
    parser.add_argument(
        "files", nargs="+", type=user_path, metavar="FILE", help="idx label predict radius correct time, by tabs"
    )
    parser.add_argument("--out", type=user_path, metavar="DIR", help="write curve.png, table.md and index.html there")
    parser.add_argument(
        "--alpha",
        type=float,
        help="of logs that don't say theirs; the field's is 0.001 (default: no statement on them)",
    )
    return parser.parse_args(arguments)


def names_of(files: list[str]) -> list[str]:
    """The shortest ends of the paths that tell them apart: their own names, or with their folders."""
    for parts in range(1, max(len(Path(f).parts) for f in files) + 1):
        names = ["/".join(Path(f).with_name(records.log_name(f)).parts[-parts:]) for f in files]
        if len(set(names)) == len(names):
            return names
    return files


def known_of(file: str, given: float | None) -> dict:
    """A log's alpha, whether its images shared their noise, which they are and how they were sampled: what its sidecar
    says, else the flag."""
    if not records.sidecar(file).exists():
        return {"alpha": given}
    settings = records.read_settings(file)
    return {
        "alpha": settings.get("alpha", given),
        "shared_noise": bool(settings.get("shared_noise")),
        "split": settings.get("split") or "test",
        "sequential": records.is_sequential(settings),
    }


def main(arguments=None) -> int:
    flags = parse(arguments)

    def program(stop):
        if flags.alpha is not None:
            check_alpha(flags.alpha)
        results = []
        for name, file in zip(names_of(flags.files), flags.files, strict=True):
            indices, labels, certificates = certification.read_certificates(file)
            if not len(labels):
                raise ValueError(f"{file} holds no certificate. Certify first, or leave it out.")
            # Of bytes that the locale knows no characters for, no picture can be drawn.
            name = os.fsencode(name).decode("utf-8", "replace")
            results.append(report.Result(name, labels, certificates, indices=indices, **known_of(file, flags.alpha)))
        if flags.out:
            report.write_report(Path(flags.out), results)
            print(report.shown(results))
            print(f"\nreport: {Path(flags.out) / 'index.html'}")
        else:
            print(report.shown(results))

    return cli.run(program)


if __name__ == "__main__":
    sys.exit(main())
