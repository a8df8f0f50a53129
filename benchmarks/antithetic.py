"""What noise does to a classifier's probabilities, split into the part odd in the noise and the part even in it.

    python benchmarks/antithetic.py CLASSIFIER.keras ... --data mnist --data-dir DIR --sigma 1

p(x + e) = odd + even, odd = (p(x + e) - p(x - e)) / 2: copies x + e and x - e differ by 2 odd, so that a loss of their
difference sees nothing of the even part; two independent copies see both. The variances over the noise are summed over
the classes and averaged over the images. lenet_5x5 on MNIST, 24 epochs of `mnist_protocol`, 300 test images:

    trained with                            odd     even    even's share
    sigma 0.5, Consistency, independent     .0063   .0033   .34
    sigma 0.5, Consistency, antithetic      .0054   .0031   .37
    sigma 1, Consistency, independent       .0441   .0192   .30
    sigma 1, Consistency, antithetic        .0349   .0240   .41
"""

from flags import parser_of

from covkeras.runtime import startup

startup.quiet_tensorflow()

import keras  # noqa: E402
import numpy as np  # noqa: E402

from covkeras import datasets  # noqa: E402
from covkeras.reports import results as report  # noqa: E402


def odd_and_even(classifier, images, sigma: float, pairs: int) -> tuple[float, float]:
    """The variances of the class probabilities' odd and even part, images (batch, h, w, c) in [0, 1]."""
    rng = np.random.default_rng(0)
    odd, even = [], []
    for _ in range(pairs):
        noise = sigma * rng.standard_normal(images.shape, "float32")
        plus, minus = (
            np.asarray(keras.ops.softmax(keras.ops.cast(classifier(images + e, training=False), "float32")))
            for e in (noise, -noise)
        )
        odd.append((plus - minus) / 2)
        even.append((plus + minus) / 2)
    return tuple(float(np.var(part, 0, ddof=1, dtype="float64").sum(1).mean()) for part in (odd, even))


def main() -> None:
    parser = parser_of(__doc__, images=300)
    parser.add_argument("classifiers", nargs="+", help=".keras files")
    parser.add_argument("--pairs", type=int, default=64)
    flags = parser.parse_args()
    images = datasets.load(flags.data, "test", flags.data_dir).head(flags.images).floats()
    rows = [["classifier", "odd", "even", "even's share"]]
    for path in flags.classifiers:
        odd, even = odd_and_even(keras.models.load_model(path, compile=False), images, flags.sigma, flags.pairs)
        rows.append([path, f"{odd:.4f}", f"{even:.4f}", f"{even / (odd + even):.2f}"])
    print(report.plain(rows))


if __name__ == "__main__":
    main()
