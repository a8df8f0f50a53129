"""Takes comparisons on MNIST into committed figures: data/mnist_cosine.json, what several seeds say together into
mnist_seeds.json, and those of held-out images into mnist_rates.json.

    python docs/results/gather_mnist.py COMPARISON [COMPARISON ...] [--machine WORDS]

Each COMPARISON is a folder of `covkeras compare`. Differences are image by image. Then `python docs/results/build.py`.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from covkeras.certification.logs import sorted_certificates
from covkeras.experiments.comparing import run_name
from covkeras.experiments.result import Result
from covkeras.reports.comparison import gains

DATA = Path(__file__).parent / "data"
KEPT = ("images", "ACR", "ACR se", "abstained", "p_A", "clean", "step cost", "seed", "epochs")


def rows_of(folder: Path) -> list[tuple[dict, Result]]:
    """A comparison's rows, each with its certificates."""
    found = []
    for figures in json.loads((folder / "report" / "results.json").read_text())["rows"]:
        recipe, label = figures["recipe"], figures["method"]
        at = f"sigma {recipe['sigma']:g}, {figures['epochs']} epochs, rate {recipe['learning_rate']:g}"
        at += f", seed {figures['seed']}" if figures["seed"] else ""
        row = {"at": at, "method": recipe["method"], "sigma": recipe["sigma"]}
        # A teacher's path is of one machine.
        row["label"] = label.partition(":teacher=")[0]
        row |= {"rate": recipe["learning_rate"], "schedule": recipe["schedule"], "n": recipe["certify_n"]}
        row |= {"arithmetic": recipe["precision"], "split": recipe["certify_split"]}
        row |= {k: v for k, v in figures.items() if k in KEPT or k.startswith("acc at")}
        log = folder / "runs" / run_name(label, figures["seed"]) / "certificates.tsv"
        indices, labels, certificates = sorted_certificates(log)
        found.append((row, Result(label, labels, certificates, indices=indices)))
    return found


# Of what a row is the difference from, and what they must have in common.
ALIKE = ("sigma", "seed", "split")
OTHERS = {
    "gaussian_augmentation": ("over Gaussian", (*ALIKE, "epochs", "schedule")),
    "consistency": ("over Consistency", (*ALIKE, "epochs", "schedule")),
    "cat_rs": ("over CAT-RS", ALIKE),
}


def compare(rows: list[tuple[dict, Result]]) -> None:
    """Adds each row's differences from the others in OTHERS, and its cost in epochs of noise alone."""
    for row, mine in rows:
        row["plain epochs"] = row["epochs"] * row["step cost"]
        for other, (title, alike) in OTHERS.items():
            same = [(r, its) for r, its in rows if r["label"] == other and all(r[k] == row[k] for k in alike)]
            same.sort(key=lambda pair: (pair[0]["rate"] != row["rate"], pair[0]["epochs"] != row["epochs"]))
            if same and same[0][0] is not row:
                row[title], row[f"{title} se"] = gains([mine], [same[0][1]])


def differences(title: str, mine: Sequence[Result], theirs: Sequence[Result]) -> dict:
    """Of trainings of the same seeds: image by image, the seeds averaged, and of several the least and the most."""
    gain, se = gains(mine, theirs)
    found = {title: gain, f"{title} se": se}
    if len(mine) > 1:
        each = [gains([one], [other])[0] for one, other in zip(mine, theirs, strict=True)]
        found |= {f"{title} least": min(each), f"{title} most": max(each)}
    return found


def over_seeds(rows: list[tuple[dict, Result]]) -> list[dict]:
    """One row of a method's trainings that differ by their seeds alone: means over the seeds, and differences from the
    others' of the same seeds, image by image."""
    alike = {}
    for row, mine in rows:
        if row["split"] == "test":
            key = (row["sigma"], row["epochs"], row["label"], row["rate"])
            alike.setdefault(key, {})[row["seed"]] = row, mine
    found = []
    for (sigma, epochs, label, rate), of_seed in alike.items():
        each, mine = zip(*(of_seed[seed] for seed in sorted(of_seed)), strict=True)
        row = {"at": f"sigma {sigma:g}, {epochs} epochs, rate {rate:g}", "label": label, "sigma": sigma}
        row |= {"epochs": epochs, "rate": rate, "seeds": len(each)}
        means = [k for k in each[0] if k in ("ACR", "clean", "step cost") or k.startswith("acc at")]
        row |= {k: float(np.mean([r[k] for r in each])) for k in means}
        acr = np.array([r["ACR"] for r in each])
        if len(each) > 1:
            row |= {"lowest": acr.min(), "highest": acr.max()}
        for other, (title, _) in OTHERS.items():
            # Of its own rate, where there is one, as in `compare`.
            same = sorted((k for k in alike if k[:3] == (sigma, epochs, other)), key=lambda k: k[3] != rate)
            theirs = alike[same[0]] if same else {}
            if other != label and set(of_seed) <= set(theirs):
                row |= differences(title, mine, [theirs[seed][1] for seed in sorted(of_seed)])
        found.append(row)
    return found


def write(name: str, rows: list[dict], machine: str) -> None:
    rows = sorted(rows, key=lambda r: (r["sigma"], -r["epochs"], r.get("schedule", ""), r["rate"], r["ACR"]))
    data = {"command": "docs/results/pages/mnist.md names it", "machine": machine, "rows": rows}
    (DATA / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparisons", nargs="+", type=Path, metavar="COMPARISON", help="folders of covkeras compare")
    parser.add_argument("--machine", default="", metavar="WORDS", help="where it was trained")
    flags = parser.parse_args()
    rows = [pair for folder in flags.comparisons for pair in rows_of(folder)]
    compare(rows)
    for split, name in (("test", "mnist_cosine"), ("validation", "mnist_rates")):
        found = [row for row, _ in rows if row["split"] == split]
        if found:
            write(name, found, flags.machine)
    write("mnist_seeds", over_seeds(rows), flags.machine)


if __name__ == "__main__":
    main()
