"""How long it takes to decide a radius for an image: certify_at beside a plain loop with a fixed n, and IBM ART.

    python benchmarks/deciding.py CLASSIFIER.keras --data mnist --data-dir DIR --sigma 0.5 --radius 0.5
    python benchmarks/deciding.py CLASSIFIER.keras ... --art        # where adversarial-robustness-toolbox is installed

In turns, in one process. The loop is Cohen's, translated line by line: batches of 1,000, float32, one image at a time;
it and ART are timed on one image at a fraction of --n samples and scaled to all of them, both being linear in n.
certify_at decides all the images of a round, with the classifier in float32 and in bfloat16. The factor is the median,
over the rounds, of the loop's time for an image over certify_at's.
"""

import time

from flags import parser_of

from covkeras.runtime import startup

startup.quiet_tensorflow()

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from covkeras import datasets  # noqa: E402
from covkeras.certification import SmoothedClassifier  # noqa: E402
from covkeras.experiments.jobs import progress_bar  # noqa: E402
from covkeras.reports import results as report  # noqa: E402


def cohen(classifier, image, sigma: float, n: int) -> np.ndarray:
    """The field's loop: counts of n noisy copies of one image."""
    counts = np.zeros(classifier.outputs[0].shape[-1], int)
    while n > 0:
        size = min(1_000, n)
        n -= size
        batch = tf.repeat(image[None], size, 0)
        predictions = tf.argmax(classifier(batch + sigma * tf.random.normal(batch.shape), training=False), 1)
        counts += np.bincount(predictions.numpy(), minlength=len(counts))
    return counts


def art(classifier, image, sigma: float, n: int) -> None:
    from art.estimators.certification.randomized_smoothing import TensorFlowV2RandomizedSmoothing

    smoothing = TensorFlowV2RandomizedSmoothing(
        classifier, classifier.outputs[0].shape[-1], image.shape, sample_size=100, scale=sigma, alpha=0.001
    )
    smoothing.certify(image[None], n=n, batch_size=1_000)


def timed(run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    parser = parser_of(__doc__, classifier="a .keras file", images=500)
    parser.add_argument("--radius", type=float, default=0.5)
    parser.add_argument("--n", type=int, default=100_000, help="of the fixed-n loop (default 100,000)")
    parser.add_argument("--share", type=float, default=0.1, help="of n that is timed (default 0.1)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--art", action="store_true", help="time IBM ART too")
    flags = parser.parse_args()
    loaded = keras.models.load_model(flags.classifier, compile=False)
    images = datasets.load(flags.data, "test", flags.data_dir).head(flags.images).floats()
    ours = {p: SmoothedClassifier(loaded, flags.sigma, precision=p) for p in ("float32", "bfloat16")}
    plain = ours["float32"].classifier
    n = int(flags.n * flags.share)
    sides = {"Cohen's loop": lambda image: timed(lambda: cohen(plain, image, flags.sigma, n)) * flags.n / n}
    if flags.art:
        sides["IBM ART"] = lambda image: timed(lambda: art(plain, image, flags.sigma, n)) * flags.n / n
    for precision, smoothed in ours.items():
        sides[f"certify_at, {precision}"] = lambda _, s=smoothed: (
            timed(lambda: s.certify_at(images, flags.radius, max_n=flags.n)) / len(images)
        )
    seconds = {name: [] for name in sides}
    for side in sides.values():
        side(images[0])
    for i in progress_bar(iterable=range(flags.rounds), desc="rounds", unit="round"):
        for name, side in sides.items():
            seconds[name].append(side(images[i]))
    base = np.array(seconds["Cohen's loop"])
    rows = [["per image", "factor", "range", "rounds"]]
    for name, values in seconds.items():
        factors = base / np.array(values)
        rows.append(
            [name, f"{np.median(factors):.2f}", f"{factors.min():.2f} to {factors.max():.2f}", str(len(values))]
        )
    print(report.plain(rows))


if __name__ == "__main__":
    main()
