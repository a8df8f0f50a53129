"""Would the exact covariance of two ReLUs bring the propagated radius nearer to the certified one?

    python benchmarks/bivariate.py CLASSIFIER.keras --data digits --sigma 0.25 [--data-dir DIR]

The paper takes the covariance through a ReLU as unchanged; `MomentNetwork(rectifier="bivariate")` takes that of two
ReLUs of jointly Gaussian units, in the mean over the pixels; here one image at a time. Prints rank correlation with the
certified radius (n = 2,000) of so many test images, median ratio to it, and the margin's standard deviation over that
of 4,000 noisy copies, for both; --record NAME adds them to docs/results/data/bivariate.json.
"""

import json
from pathlib import Path

from flags import parser_of

from covkeras.runtime import startup

startup.quiet_tensorflow()

import keras  # noqa: E402
import numpy as np  # noqa: E402
import scipy.stats  # noqa: E402

from covkeras import MomentNetwork, SmoothedClassifier, datasets  # noqa: E402
from covkeras.moments.gaussian import margin  # noqa: E402
from covkeras.reports import results as report  # noqa: E402

OUT = Path(__file__).parent.parent / "docs" / "results" / "data" / "bivariate.json"


def main() -> None:
    parser = parser_of(__doc__, classifier="a .keras file, of ReLUs", sigma=0.25, images=200)
    parser.add_argument("--r-max", type=float, nargs="+", default=[0.0, 0.1], help="default 0 and 0.1")
    parser.add_argument("--record", metavar="NAME", help="the network's name in the committed figures")
    flags = parser.parse_args()
    classifier = keras.models.load_model(flags.classifier, compile=False)
    data = datasets.load(flags.data, "test", flags.data_dir)
    images = data.floats(np.arange(0, len(data), max(1, len(data) // flags.images))[: flags.images])
    certificates = SmoothedClassifier(classifier, flags.sigma).certify(images, n=2_000, alpha=0.001)
    capped = certificates.radius >= certificates.radius.max()
    kept = []
    rows = [["r_max", "ReLU's covariance", "rank correlation", "median ratio", "images", "margin's sd over sampled"]]
    for r_max in flags.r_max:
        for name in ("unchanged", "bivariate"):
            network = MomentNetwork(classifier, flags.sigma, r_max, rectifier=name)
            found = [margin(network(image[None])) for image in images]
            mean, sd, label, second = (np.concatenate([np.asarray(f[i]) for f in found]) for i in range(4))
            compared = (certificates.radius > 0) & ~capped & (certificates.label == label)
            radius, certified = flags.sigma * mean / sd, certificates.radius
            rank = scipy.stats.spearmanr(radius[compared], certified[compared]).statistic
            ratios = [
                s / _sampled(classifier, image, flags.sigma, c, d)
                for image, s, c, d in list(zip(images, sd, label, second, strict=True))[:: max(1, len(images) // 20)]
            ]
            ratio = np.median(radius[compared] / certified[compared])
            row = {"network": flags.record, "sigma": flags.sigma, "r_max": r_max, "covariance": name, "rank": rank}
            kept.append(row | {"ratio": ratio, "images": int(compared.sum()), "sd over sampled": np.median(ratios)})
            rows.append(
                [f"{r_max:g}", name, f"{rank:.3f}", f"{ratio:.3f}", str(compared.sum()), f"{np.median(ratios):.2f}"]
            )
    print(report.plain(rows))
    if flags.record:
        record = (
            json.loads(OUT.read_text()) if OUT.exists() else {"command": __doc__.splitlines()[2].strip(), "rows": []}
        )
        others = [row for row in record["rows"] if (row["network"], row["sigma"]) != (flags.record, flags.sigma)]
        record |= {"machine": "two cores, float32", "rows": [*others, *kept]}
        OUT.write_text(json.dumps(record, indent=1, default=float) + "\n")


def _sampled(classifier, image, sigma, label, second) -> float:
    """The standard deviation of the margin over 4,000 noisy copies."""
    noise = np.random.default_rng(5).standard_normal((4_000, *image.shape), np.float32)
    logits = np.concatenate(
        [np.asarray(classifier(image + sigma * part, training=False)) for part in np.split(noise, 8)]
    )
    return float((logits[:, label] - logits[:, second]).std())


if __name__ == "__main__":
    main()
