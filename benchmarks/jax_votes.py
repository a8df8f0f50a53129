"""Certificates from the votes of `jax_frontier.py`: the library's bounds, tables, paired differences.

    python benchmarks/jax_votes.py FOLDER ... --data IMAGES.npz --out docs/results/data/frontier.json --command "..."

FOLDER holds log.jsonl and votes_*.npz. A vote was cast by the classifier as the GPU computes it (float32 with TF32
products), under noise that all images and methods share: the certificates speak of that classifier. Class by 100
samples, its bound by n others. OUT_seeds.json: ours beside Consistency, seed by seed; OUT_choice.json: held-out images.
"""

import argparse
import json
from pathlib import Path

from covkeras.runtime import startup

startup.quiet_tensorflow()

import numpy as np  # noqa: E402

from covkeras import datasets  # noqa: E402
from covkeras.certification.cohen import bounds_of  # noqa: E402
from covkeras.reports.pages import plain  # noqa: E402

ALPHA = 0.001
RADII = {0.25: (0, 0.25, 0.5, 0.75), 0.5: tuple(i / 4 for i in range(7)), 1.0: tuple(i / 2 for i in range(7))}


def trainings(folders, split: str):
    """Yields (job, votes): what was trained, and int (2, images, classes), to choose and to bound."""
    for folder in folders:
        jobs = {job["label"]: job for job in map(json.loads, (folder / "log.jsonl").read_text().splitlines())}
        for file in sorted(folder.glob("votes_*.npz")):
            found = np.load(file)
            for name in found.files:
                label, _, of = name.partition("|")
                if of == split and label in jobs:
                    yield jobs[label], found[name]


def radii_of(job: dict, votes, labels, n: int):
    """Certified radii (images,), -1 where the class is wrong or abstained from, and the lower bounds of p_A."""
    every = max(1, len(labels) // votes.shape[1])
    won = votes[0].argmax(1)
    p_lower, _, radius = bounds_of(votes[1], won, n=n, alpha=ALPHA, sigma=job["sigma"])
    return np.where((won == labels[::every]) & (radius > 0), radius, -1.0), p_lower


def row_of(job: dict, radius, p_lower) -> dict:
    certified = np.maximum(radius, 0.0)
    row = {"at": f"sigma {job['sigma']:g}"} | {k: job[k] for k in ("method", "sigma", "seed", "n")}
    row |= {k: job["hyper"][k] for k in ("eps", "lam") if k in job["hyper"]}
    row |= {"step": f"eps {row['eps']:g}"} if "eps" in row else {}
    row |= {"images": len(radius), "ACR": certified.mean(), "ACR se": certified.std(ddof=1) / len(radius) ** 0.5}
    for r in RADII[job["sigma"]]:
        row[f"acc at {r:g}"] = float((radius > 0).mean() if r == 0 else (radius >= r).mean())
    row["p_A"] = [round(float(c), 4) for c in np.histogram(p_lower, 20, (0, 1))[0] / len(radius)]
    return row


def differences(rows: list[dict], radii: list) -> None:
    """Paired, over the same images and noise, from Consistency and from ours of the same sigma and seed."""
    for other, name in (("consistency", "over Consistency"), ("stepped_consistency", "over ours")):
        for row, mine in zip(rows, radii, strict=True):
            same = [
                theirs
                for one, theirs in zip(rows, radii, strict=True)
                if (one["method"], one["sigma"], one["seed"]) == (other, row["sigma"], row["seed"])
                and len(theirs) == len(mine)
            ]
            if same and row["method"] != other:
                apart = np.maximum(mine, 0.0) - np.maximum(same[0], 0.0)
                row[name], row[f"{name} se"] = apart.mean(), apart.std(ddof=1) / len(apart) ** 0.5


def thinned(job: dict, votes, labels, n: int) -> dict:
    """The row that n of the votes give, drawn without replacement, on every other image: as on two cores."""
    rng = np.random.default_rng(0)
    fewer = np.stack([rng.multivariate_hypergeometric(counts, n) for counts in votes[1]])
    radius, p_lower = radii_of(job, np.stack([votes[0], fewer]), labels, n)
    return row_of({**job, "n": n}, radius[::2], p_lower[::2])


def by_seed(rows: list[dict]) -> list[dict]:
    """Ours beside Consistency, {(sigma, seed)}."""
    found = []
    for row in rows:
        if row["method"] == "stepped_consistency":
            same = ("at", "sigma", "seed", "images")
            other = next(o for o in rows if o["method"] == "consistency" and all(o[k] == row[k] for k in same))
            shown = {k: row[k] for k in same} | {"training": f"{row['at']}, seed {row['seed']}"}
            shown |= {"consistency": other["ACR"], "ours": row["ACR"]}
            found.append(shown | {"difference": row["over Consistency"], "se": row["over Consistency se"]})
    return found


def plot(rows: list[dict], radii: list, path: Path) -> None:
    """Certified accuracy against radius, a panel a sigma, of the trainings with seed 0."""
    from covkeras.reports import pages

    sigmas = sorted({row["sigma"] for row in rows})
    figure, axes = pages.new_figure(len(sigmas), width=4.6, columns=len(sigmas))
    for sigma, ax in zip(sigmas, axes, strict=True):
        mine = [(r, c) for r, c in zip(rows, radii, strict=True) if r["sigma"] == sigma and r["seed"] == 0]
        for row, certified in sorted(mine, key=lambda pair: -pair[0]["ACR"]):
            at = np.linspace(0, certified.max() * 1.001, 400)
            share = [(certified > r).mean() if r == 0 else (certified >= r).mean() for r in at]
            ax.plot(at, share, label=f"{row['method']} {row['ACR']:.3f}")
        ax.set(title=f"sigma {sigma:g}", xlabel="radius", ylim=(0, 1))
        ax.legend(title="ACR", loc="lower left", fontsize="small")
    axes[0].set_ylabel("certified accuracy")
    path.write_bytes(pages.png(figure))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--make-images", metavar="NAME", help="write the data set's images into --data, and stop")
    parser.add_argument("--data-dir", help="folder of prepared TFDS data sets")
    parser.add_argument("--data", required=True, help="the images of jax_frontier.py")
    parser.add_argument("--out", type=Path, help="a .json file of rows: those with seed 0")
    parser.add_argument("--command", default="", help="what made them, for the record")
    parser.add_argument("--machine", default="one NVIDIA H200, float32 with TF32 products")
    parser.add_argument("--thin", type=int, default=0, help="rows of so many of the votes, too, on every other image")
    parser.add_argument("--plot", type=Path, help="a .png file of the curves")
    asked = parser.parse_args()
    if asked.make_images:
        return make_images(asked)
    if not (asked.folders and asked.out):
        parser.error("name the folders of votes, and --out")
    labels = np.load(asked.data)["test_y"].astype(int)
    # A training that was repeated counts once.
    keys = ("method", "sigma", "seed", "n", "hyper")
    tests = {str([job[k] for k in keys]): (job, votes) for job, votes in trainings(asked.folders, "test")}
    certified = [(job, *radii_of(job, votes, labels, job["n"])) for job, votes in tests.values()]
    certified.sort(key=lambda one: (one[0]["sigma"], np.maximum(one[1], 0.0).mean()))
    rows, radii = [row_of(*one) for one in certified], [one[1] for one in certified]
    differences(rows, radii)
    write(asked.out, [row for row in rows if row["seed"] == 0], asked)
    beside = asked.out.with_name
    if seeds := by_seed(rows):
        write(beside(f"{asked.out.stem}_seeds.json"), seeds, asked)
    held = [
        {k: job["hyper"][k] for k in ("eps", "lam")} | {"at": f"sigma {job['sigma']:g}", "ACR": job["validation"]}
        for job, _ in trainings(asked.folders, "validation")
        if job["choice"]
    ]
    if held:
        write(beside(f"{asked.out.stem}_choice.json"), held, asked)
    if asked.thin:
        some = [one for one in tests.values() if one[0]["seed"] == 0 and one[0]["n"] > asked.thin]
        write(beside(f"{asked.out.stem}_thinned.json"), [thinned(*one, labels, asked.thin) for one in some], asked)
    if asked.plot:
        plot(rows, radii, asked.plot)


def make_images(asked) -> None:
    parts = {}
    for split in ("train", "validation", "test"):
        data = datasets.load(asked.make_images, split, asked.data_dir)
        parts |= {f"{split}_x": data.images, f"{split}_y": data.labels.astype(np.uint8)}
    np.savez_compressed(asked.data, **parts)


def write(path: Path, rows: list[dict], asked) -> None:
    text = json.dumps({"command": asked.command, "machine": asked.machine, "rows": rows}, indent=1)
    path.write_text(text + "\n")
    names = {k for row in rows for k, v in row.items() if k != "p_A"}
    shown = [k for k in dict.fromkeys(k for row in rows for k in row) if k in names]
    print(path, plain([shown, *([_text(row.get(k, "")) for k in shown] for row in rows)]), sep="\n")


def _text(value) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
