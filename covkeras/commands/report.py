"""Prints ACR and certified accuracy of certification logs, ours or Cohen's, and writes curve, table and page."""

import argparse
import sys
from pathlib import Path

from covkeras.commands import cli
from covkeras.runtime.files import user_path
from covkeras.runtime.later import Later

certification = Later("covkeras.certification")
records = Later("covkeras.certification.records")
report = Later("covkeras.reports.results")

EXAMPLES = """examples:
  covkeras report runs/digits/certificates.tsv runs/digits/reference/certificates.tsv --out compared
  covkeras report logs/*.tsv
"""


def parse(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=cli.Formatter, allow_abbrev=False
    )
    parser.add_argument(
        "files", nargs="+", type=user_path, metavar="FILE", help="idx label predict radius correct time, by tabs"
    )
    parser.add_argument("--out", type=user_path, metavar="DIR", help="write curve.png, table.md and index.html there")
    return parser.parse_args(arguments)


def names_of(files: list[str]) -> list[str]:
    """The shortest ends of the paths that tell them apart: their own names, or with their folders."""
    for parts in range(1, max(len(Path(f).parts) for f in files) + 1):
        names = ["/".join(Path(f).with_name(records.log_name(f)).parts[-parts:]) for f in files]
        if len(set(names)) == len(names):
            return names
    return files


def main(arguments=None) -> int:
    flags = parse(arguments)

    def program(stop):
        results = []
        for name, file in zip(names_of(flags.files), flags.files, strict=True):
            _, labels, certificates = certification.read_certificates(file)
            if not len(labels):
                raise ValueError(f"{file} holds no certificate. Certify first, or leave it out.")
            results.append(report.Result(name, labels, certificates))
        if flags.out:
            print(report.write_report(Path(flags.out), results))
            print(f"\nreport: {Path(flags.out) / 'index.html'}")
        else:
            print(report.plain(report.accuracy_table(results)))

    return cli.run(program)


if __name__ == "__main__":
    sys.exit(main())
