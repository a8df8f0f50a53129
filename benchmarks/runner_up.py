"""What bounding the runner-up, too, adds to radii: both bounds from the same votes.

    python benchmarks/runner_up.py CLASSIFIER.keras --data cifar10 --data-dir DIR --sigma 0.5 --record "Gaussian"

Prints ACR and certified accuracy of every --every-th test image with p_B taken as 1 - p_A, as the field does, and with
every other class bounded (`certify(runner_up=True)`), the gain image by image with its standard error, and which images
gain. The votes are kept in --votes: what was counted is not counted again. Figures: docs/results/certification.md.
"""

import json
from pathlib import Path

from flags import parser_of

from covkeras.runtime import startup

startup.quiet_tensorflow()

import keras  # noqa: E402
import numpy as np  # noqa: E402

from covkeras import datasets  # noqa: E402
from covkeras.certification import SmoothedClassifier  # noqa: E402
from covkeras.certification.cohen import GROUP, bounds_of  # noqa: E402
from covkeras.certification.noise import ESTIMATION, SELECTION  # noqa: E402
from covkeras.experiments.jobs import progress_bar  # noqa: E402
from covkeras.reports.pages import plain  # noqa: E402

OUT = Path(__file__).parent.parent / "docs" / "results" / "data" / "runner_up.json"
ALPHA, N0 = 0.001, 100


def counted(flags) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Labels, the chosen classes, and the votes of n samples, (images, classes)."""
    if Path(flags.votes).exists():
        with np.load(flags.votes) as kept:
            return kept["labels"], kept["chosen"], kept["votes"], int(kept["n"])
    data = datasets.load(flags.data, "test", flags.data_dir).head(flags.images * flags.every)
    indices = np.arange(0, len(data), flags.every)
    smoothed = SmoothedClassifier(
        keras.models.load_model(flags.classifier, compile=False), flags.sigma, shared_noise=True
    )
    images, chosen, votes = data.floats(indices), [], []
    smoothed.checked(images, indices)
    for i in progress_bar(iterable=range(0, len(indices), GROUP), desc="votes", unit="group"):
        part = slice(i, i + GROUP)
        chosen.append(smoothed.ballot.count(images[part], indices[part], SELECTION, N0, 0).argmax(1))
        votes.append(smoothed.ballot.count(images[part], indices[part], ESTIMATION, flags.n, 0))
    found = data.labels[indices], np.concatenate(chosen), np.concatenate(votes), flags.n
    np.savez(flags.votes, **dict(zip(("labels", "chosen", "votes", "n"), found, strict=True)))
    return found


def main() -> None:
    parser = parser_of(__doc__, classifier="a .keras file", images=500)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--votes", default="counts.npz", help="file of the counts (default: counts.npz)")
    parser.add_argument("--record", metavar="NAME", help=f"add the figures to {OUT.name} under this name")
    flags = parser.parse_args()
    labels, chosen, votes, n = counted(flags)
    radii = {}
    for name, both in (("one class", False), ("and the runner-up", True)):
        _, _, radius = bounds_of(votes, chosen, n=n, alpha=ALPHA, sigma=flags.sigma, runner_up=both)
        radii[name] = np.where(chosen == labels, radius, 0.0)
    before, after = radii.values()
    gain = after - before
    row = {"classifier": flags.record or flags.classifier, "sigma": flags.sigma, "images": len(labels), "n": n}
    row |= {"ACR": before.mean(), "ACR with the runner-up": after.mean(), "gain": gain.mean()}
    row |= {"gain se": gain.std(ddof=1) / np.sqrt(len(gain)), "images that gain": float((gain > 0.001).mean())}
    row |= {"where they gain": float(gain[gain > 0.001].mean()) if (gain > 0.001).any() else 0.0}
    row |= {
        f"{kind} at {r:g}": float((v >= r).mean() if r else (v > 0).mean())
        for kind, v in (("before", before), ("after", after))
        for r in (0.0, 0.25, 0.5, 1.0)
    }
    print(plain([list(row), [f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()]]))
    if flags.record:
        kept = json.loads(OUT.read_text())["rows"] if OUT.exists() else []
        kept = [r for r in kept if (r["classifier"], r["sigma"]) != (row["classifier"], row["sigma"])] + [row]
        record = {"command": "python benchmarks/runner_up.py CLASSIFIER --record NAME", "rows": kept}
        OUT.write_text(json.dumps(record, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
