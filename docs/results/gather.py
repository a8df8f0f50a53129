"""Takes comparisons on CIFAR-10 into the committed figures, logs and picture.

    python docs/results/gather.py COMPARISON [COMPARISON ...] --published LOG

Each COMPARISON is a folder of `covkeras compare --recipe cifar10_protocol`. Its rows go to data/cifar10.json, their
certificates to data/logs/; the differences, image by image, are computed anew for all rows of a sigma and seed, and
images/cifar10_curve.png is drawn: without a COMPARISON from what is there. Then `python docs/results/build.py`.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np

from covkeras.certification import certified_accuracy
from covkeras.certification.logs import sorted_certificates
from covkeras.experiments.comparing import run_name
from covkeras.experiments.result import Result
from covkeras.reports.comparison import gains
from covkeras.reports.pages import legend, new_figure, style_of
from covkeras.reports.shares import BINS, shares_of

HERE = Path(__file__).parent
FILE, LOGS = HERE / "data" / "cifar10.json", HERE / "data" / "logs"
PICTURE = HERE.parent / "images" / "cifar10_curve.png"
TRAINING_IMAGES, EPOCHS = 50_000, 20
NETWORK = "narrow_resnet, 308,746 weights (ours)"
ESTIMATES = {"adjoint": "adjoint, calibrated gates", "paper": "paper (r_max 0.1)"}


def rate() -> float:
    """Training images a second with noise alone, float32, quiet (data/cifar10_choice.json)."""
    rows = json.loads((HERE / "data" / "cifar10_choice.json").read_text())["rows"]
    return rows[0]["float32"]


def step_cost(row: dict) -> float:
    """Of a step, in plain ones, quiet (data/cifar10_steps.json): beside other work a comparison's own is off. Of the
    method's forms there it is the longest that the row's holds."""
    rows = json.loads((HERE / "data" / "cifar10_steps.json").read_text())["rows"]
    forms = [r for r in rows if r["method"] == row["method"] and r["form"] in row["form"]]
    return max(forms, key=lambda r: len(r["form"]))["step cost"]


def row_of(folder: Path, figures: dict) -> dict:
    """Returns a method's row, and copies its certificates."""
    recipe, label = figures["recipe"], figures["method"]
    name = label.replace(":", ",")
    log = f"cifar10_{name}_sigma{recipe['sigma']:g}_epochs{figures['epochs']}_seed{figures['seed']}.tsv"
    shutil.copyfile(folder / "runs" / run_name(label, figures["seed"]) / "certificates.tsv", LOGS / log)
    row = {"network": NETWORK, "method": recipe["method"], "form": label.partition(":")[2], "sigma": recipe["sigma"]}
    row |= {"seed": figures["seed"], "epochs": figures["epochs"], "n": recipe["certify_n"], "log": log}
    row |= {"arithmetic": f"{recipe['precision']}, AVX-512"}
    row |= {k: v for k, v in figures.items() if k in ("images", "ACR", "ACR se", "abstained", "p_A", "clean")}
    row |= {k: v for k, v in figures.items() if k.startswith("acc at")}
    for short, name in ESTIMATES.items():
        known = (figures.get("fidelity") or {}).get(name) or {}
        row |= {f"{short} rank": known.get("rank correlation"), f"{short} ratio": known.get("median ratio")}
    return row


def result_of(row: dict) -> Result:
    """A row's certificates, from its log."""
    indices, labels, certificates = sorted_certificates(LOGS / row["log"])
    return Result(" ".join([row["method"], row["form"]]).strip(), labels, certificates, indices=indices)


def compare(rows: list[dict]) -> None:
    """Adds to each row the differences from noise alone and from Consistency of its sigma and seed, and its hours."""
    # In epochs of noise alone: the time of two passes.
    same_time = EPOCHS * step_cost({"method": "consistency", "form": ""})
    for row in rows:
        row["step cost"] = step_cost(row)
        row["at"] = f"sigma {row['sigma']:g}, {row['epochs']} epochs, seed {row['seed']}"
        row["plain epochs"] = row["step cost"] * row["epochs"]
        row["time"] = "equal" if abs(row["plain epochs"] - same_time) < 5 else ""
        row["hours"] = row["step cost"] * row["epochs"] * TRAINING_IMAGES / rate() / 3600
        for other, title in (("gaussian_augmentation", "over Gaussian"), ("consistency", "over Consistency")):
            same = [r for r in rows if r["method"] == other and r["epochs"] == EPOCHS]
            same = [r for r in same if (r["sigma"], r["seed"]) == (row["sigma"], row["seed"]) and r is not row]
            if same:
                row[title], row[f"{title} se"] = gains([result_of(row)], [result_of(same[0])])


def draw(rows: list[dict], published: str) -> None:
    """Certified accuracy against radius, the published log behind ours, and how sure the classifiers are."""
    figure, (curve, shares) = new_figure(2)
    _, labels, certificates = sorted_certificates(published)
    at, title = np.linspace(0.0, 2.0, 401), "ResNet-110, noise alone (published)"
    curve.plot(at, certified_accuracy(certificates, labels, at), color="#bbbbbb", linewidth=3, label=title)
    shown = [r for r in rows if r["sigma"] == 0.5 and r["seed"] == 0 and r["epochs"] == EPOCHS]
    for i, one in enumerate(map(result_of, shown)):
        colour, style = style_of(i)
        how = {"color": colour, "linestyle": style}
        accuracy = certified_accuracy(one.certificates, one.labels, at)
        curve.plot(at, accuracy, linewidth=1.8, label=one.name, **how)
        shares.stairs(shares_of([one]), BINS, linewidth=1.6, **how)
    curve.set(xlabel="certified radius (Euclidean norm, pixels in [0, 1])", ylabel="certified accuracy", ylim=(0, 1.0))
    shares.set(xlabel="lower bound on p_A of the right class", ylabel="share of images", xlim=(0.5, 1.0))
    legend(figure, curve, 7)
    figure.savefig(PICTURE, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparisons", nargs="*", type=Path, metavar="COMPARISON", help="folders of covkeras compare")
    parser.add_argument("--published", required=True, metavar="LOG", help="the published log of sigma 0.5")
    flags = parser.parse_args()
    data = json.loads(FILE.read_text())
    found = {row["log"]: row for row in data["rows"]}
    for folder in flags.comparisons:
        for figures in json.loads((folder / "report" / "results.json").read_text())["rows"]:
            row = row_of(folder, figures)
            found[row["log"]] = row
    rows = sorted(found.values(), key=lambda r: (-r["sigma"], r["epochs"] != EPOCHS, r["seed"], r["ACR"]))
    compare(rows)
    data["rows"] = rows
    FILE.write_text(json.dumps(data, indent=1) + "\n")
    draw(rows, flags.published)
    for row in rows:
        print(f"{row['sigma']:g} {row['seed']} {row['epochs']} {row['method']} {row['form']}: {row['ACR']:.3f}")


if __name__ == "__main__":
    main()
