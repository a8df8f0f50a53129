"""How many samples the sequential test needs to decide a radius, beside Cohen's fixed n.

    python benchmarks/sequential.py CLASSIFIER.keras --data mnist --data-dir DIR --sigma 0.5 --radii 0.5 1.0

For each radius: the mean, median and 95 % quantile of the samples an image took (100 to choose the class among them),
the share certified and undecided at max_n, and the images on which a fixed-n certificate of `--n` samples decides
otherwise. Both are valid at alpha; near the radius they may differ. Measured on the LeNet of README's MNIST run
(Gaussian augmentation, sigma 0.5, mixed_bfloat16, 500 images, alpha 0.001, max_n 100,000; --fixed at n = 10,000):

    radius  mean samples  median   95 %  certified  undecided  differ
       0.5           467     164    388      0.968          1       1
         1          2214     580   3015      0.882          4       4
"""

import argparse
import time

from covkeras import startup

startup.quiet_tensorflow()

import keras  # noqa: E402
import numpy as np  # noqa: E402
from tqdm import tqdm  # noqa: E402

from covkeras import datasets, report  # noqa: E402
from covkeras.certification import SmoothedClassifier, read_certificates  # noqa: E402


def measure(smoothed, data, radius, flags, fixed) -> list[str]:
    start = time.perf_counter()
    with tqdm(total=len(data), desc=f"r = {radius:g}", unit="image") as bar:
        decided = smoothed.certify_at(
            data.floats(), radius, flags.alpha, flags.max_n, seed=flags.seed, progress=lambda *_: bar.update()
        )
    seconds = time.perf_counter() - start
    samples = decided.samples
    differ = "-"
    if fixed is not None:
        differ = str(int((decided.certified != ((fixed.radius >= radius) & (fixed.label == decided.label))).sum()))
    quantiles = [f"{np.quantile(samples, q):.0f}" for q in (0.5, 0.95)]
    shares = [f"{decided.certified.mean():.3f}", str(int((~decided.decided).sum()))]
    return [f"{radius:g}", f"{samples.mean():.0f}", *quantiles, *shares, differ, f"{seconds:.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("classifier", help="a .keras file")
    parser.add_argument("--data", default="digits", help="data set (default: digits)")
    parser.add_argument("--data-dir", help="folder of prepared TFDS data sets")
    parser.add_argument("--sigma", type=float, default=0.5)
    parser.add_argument("--radii", type=float, nargs="+", default=[0.5, 1.0])
    parser.add_argument("--alpha", type=float, default=0.001)
    parser.add_argument("--max-n", type=int, default=100_000)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1, help="of the noise; not the fixed-n certificates' (default 1)")
    parser.add_argument("--fixed", help="certificates.tsv of the same images, to compare the decisions with")
    flags = parser.parse_args()
    smoothed = SmoothedClassifier(keras.models.load_model(flags.classifier, compile=False), flags.sigma)
    data = datasets.load(flags.data, "test", flags.data_dir).head(flags.images)
    fixed = read_certificates(flags.fixed)[2] if flags.fixed else None
    rows = [["radius", "mean samples", "median", "95 %", "certified", "undecided", "differ", "seconds"]]
    print(report.plain(rows + [measure(smoothed, data, r, flags, fixed) for r in flags.radii]))


if __name__ == "__main__":
    main()
