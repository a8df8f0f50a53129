"""Takes certificates of several trainings on MNIST into data/mnist_many.json: per sigma, per n, over the same images.

    python docs/results/gather_many.py LOG [LOG ...] [--machine WORDS]

Each LOG is a file of `covkeras certify` in whose path METHOD-seedN stands, as in consistency-seed0.tsv or
runs/consistency-seed0/certificates.tsv; sigma and n are those of the .json beside it. Several of one training are parts
of its images. Of a smaller n there are rows of the largest n's images, too. Then `python docs/results/build.py`.
"""

import argparse
import json
import re
from pathlib import Path

import numpy as np
from gather_mnist import differences

from covkeras.certification.certificates import Certificates, average_certified_radius, certified_accuracy
from covkeras.certification.logs import sorted_certificates
from covkeras.experiments.result import Result, steps_to

OUT = Path(__file__).parent / "data" / "mnist_many.json"
BASE = "consistency"


def read(path: Path) -> tuple[tuple, Result]:
    """((sigma, n), method, seed) of a log, and its certificates."""
    found = re.search(r"([a-z_]+)-seed(\d+)", str(path))
    if not found:
        raise SystemExit(f"{path}: METHOD-seedN must stand in its path.")
    made = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    indices, labels, certificates = sorted_certificates(path)
    key = (made["sigma"], made["n"]), found[1], int(found[2])
    return key, Result(found[1], labels, certificates, indices=indices)


def joined(one: Result, two: Result) -> Result:
    """The certificates of both, of different images, in the images' order."""
    if np.intersect1d(one.indices, two.indices).size:
        raise SystemExit(f"{one.name}: two logs have the same images.")
    labels, indices = (np.concatenate([getattr(r, name) for r in (one, two)]) for name in ("labels", "indices"))
    certificates = Certificates.concatenate([one.certificates, two.certificates])
    return only(Result(one.name, labels, certificates, indices=indices), np.sort(indices))


def only(result: Result, images: np.ndarray) -> Result:
    """Those of the images, in their order."""
    at = {index: i for i, index in enumerate(result.indices)}
    rows = [at[index] for index in images]
    return Result(result.name, result.labels[rows], result.certificates.take(rows), indices=result.indices[rows])


def row_of(method: str, mine: list[Result], theirs: list[Result], sigma: float) -> dict:
    """The means over a method's trainings, and its difference from Consistency's, where it has the same seeds."""
    acr = np.mean([average_certified_radius(r.certificates, r.labels) for r in mine])
    row = {"method": method, "trainings": len(mine), "ACR": float(acr)}
    if len(mine) == len(theirs):
        row |= differences("over Consistency", mine, theirs)
    radii = steps_to(3.8 * sigma, max(0.25, sigma / 2), 8)
    accuracy = np.mean([certified_accuracy(r.certificates, r.labels, radii) for r in mine], 0)
    return row | {f"acc at {radius:g}": float(a) for radius, a in zip(radii, accuracy, strict=True)}


def rows_of(logs: dict) -> list[dict]:
    """One row a method, per sigma, n and set of images: all that its trainings have, or the largest n's."""
    images = {}
    for (at, _, _), result in logs.items():
        images[at] = np.intersect1d(images.get(at, result.indices), result.indices)
    rows = []
    for (sigma, n), every in sorted(images.items()):
        few = np.intersect1d(every, images[max(at for at in images if at[0] == sigma)])
        for chosen in [every, few] if len(few) < len(every) else [every]:
            of = {}
            for (at, method, seed), result in sorted(logs.items()):
                if at == (sigma, n):
                    of.setdefault(method, {})[seed] = only(result, chosen)
            for method, trainings in of.items():
                known = of.get(BASE, {}) if method != BASE else {}
                mine, theirs = list(trainings.values()), [known[seed] for seed in trainings if seed in known]
                row = {"at": f"sigma {sigma:g}", "n": f"{n:,}", "images": len(chosen), "sigma": sigma}
                rows.append(row | row_of(method, mine, theirs, sigma))
    return rows


def given(description: str, read) -> tuple[dict, str]:
    """The command line's logs, by what `read` calls them, those of one training joined; and the machine's words."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", nargs="+", type=Path, metavar="LOG", help="files of covkeras certify")
    parser.add_argument("--machine", default="", metavar="WORDS", help="where they were made")
    flags = parser.parse_args()
    logs = {}
    for path in flags.logs:
        key, result = read(path)
        logs[key] = joined(logs[key], result) if key in logs else result
    return logs, flags.machine


def main() -> None:
    logs, machine = given(__doc__, read)
    data = {"command": "docs/results/pages/mnist.md names it", "machine": machine, "rows": rows_of(logs)}
    OUT.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
