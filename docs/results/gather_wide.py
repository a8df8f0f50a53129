"""Takes certificates of trainings on more noise than is certified, and CAT-RS', into data/wide.json and wide_500.json.

    python docs/results/gather_wide.py LOG [LOG ...] [--machine WORDS]

Each LOG is a file of `covkeras certify` in whose path METHOD-noiseN-epochsE-rateR-seedS stands, N the noise in training
over the certified; several of one training are parts of its images. wide.json has those of all images that any has,
wide_500.json all of them on the images that every one has. Differences are image by image: from CAT-RS' best
training on the certified noise, and from the same training on that. Then `python docs/results/build.py`.
"""

import json
import re
from pathlib import Path

import numpy as np
from gather_many import given, only
from gather_mnist import DATA, differences

from covkeras.certification.certificates import average_certified_radius, certified_accuracy
from covkeras.certification.logs import sorted_certificates
from covkeras.experiments.result import Result
from covkeras.reports.results import counted_radii

NAMED = re.compile(r"([a-z_]+)-noise([\d.]+)-epochs(\d+)-rate([\d.]+)-seed(\d+)")
RADII = (0, 0.5, 1, 1.5, 2, 2.5, 3)


def read(path: Path) -> tuple[tuple, Result]:
    """(method, noise, epochs, rate, seed) of a log, and its certificates."""
    found = NAMED.search(str(path))
    if not found:
        raise SystemExit(f"{path}: METHOD-noiseN-epochsE-rateR-seedS must stand in its path.")
    method, noise, epochs, rate, seed = found.groups()
    indices, labels, certificates = sorted_certificates(path)
    return (method, float(noise), int(epochs), float(rate), int(seed)), Result(
        method, labels, certificates, indices=indices
    )


def step_costs() -> dict[str, float]:
    """Of a step in plain ones, in bfloat16 on one core, as the methods are now."""
    now = json.loads((DATA / "image_gradient.json").read_text())["rows"]
    costs = {r["method"]: r["after"] for r in now if r["precision"] == "mixed_bfloat16" and r["on"] == "one core"}
    seeds = json.loads((DATA / "mnist_seeds.json").read_text())["rows"]
    plain = (r for r in seeds if r["label"] == "consistency" and r["sigma"] == 1 and r["epochs"] == 24)
    return {"consistency": next(plain)["step cost"]} | costs


def rows_of(logs: dict, images: np.ndarray, costs: dict) -> list[dict]:
    mine = {key: only(result, images) for key, result in logs.items() if np.isin(images, result.indices).all()}
    acr = {key: average_certified_radius(result.certificates, result.labels) for key, result in mine.items()}
    best = max((key for key in mine if key[:2] == ("cat_rs", 1.0)), key=acr.get)
    rows = []
    for key, result in sorted(mine.items(), key=lambda pair: (pair[0][0], pair[0][2], pair[0][1], pair[0][4])):
        method, noise, epochs, rate, seed = key
        counted, cost = counted_radii(result), costs[method]
        row = {"at": f"noise {noise:g}, {epochs} epochs, seed {seed}", "method": method, "noise": noise}
        row |= {"epochs": epochs, "rate": rate, "seed": seed, "images": len(images), "step cost": cost}
        row |= {"plain epochs": epochs * cost, "ACR": acr[key]}
        row["ACR se"] = float(counted.std(ddof=1) / len(images) ** 0.5)
        if key != best:
            row |= differences("over CAT-RS", [result], [mine[best]])
        same = (method, 1.0, *key[2:])
        if noise != 1 and same in mine:
            row |= differences("over the certified noise", [result], [mine[same]])
        accuracy = certified_accuracy(result.certificates, result.labels, RADII)
        rows.append(row | {f"acc at {r:g}": float(a) for r, a in zip(RADII, accuracy, strict=True)})
    return rows


def main() -> None:
    logs, machine = given(__doc__, read)
    costs = step_costs()
    every = max((result.indices for result in logs.values()), key=len)
    common = every
    for result in logs.values():
        common = np.intersect1d(common, result.indices)
    for name, images in (("wide", every), ("wide_500", common)):
        data = {"command": "docs/results/pages/frontier.md names it", "machine": machine}
        data["rows"] = rows_of(logs, images, costs)
        (DATA / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
