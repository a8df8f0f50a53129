"""Attacks certified images: predictions must not change within the certified radius; shows how far outside they do.

Projected gradient ascent on the smoothed classifier, at several multiples of each image's certified radius. Reads a
certificates.tsv with the settings beside it (FILE.json), as run.py and certify.py write them.
"""

import argparse
import sys

from covkeras import datasets
from covkeras.commands import cli
from covkeras.runtime.classifiers import fitted
from covkeras.runtime.files import user_path
from covkeras.runtime.later import Later
from covkeras.runtime.validation import check_count

attacking = Later("covkeras.diagnostics.attacking")
certification = Later("covkeras.certification")
jobs = Later("covkeras.experiments.jobs")
records = Later("covkeras.certification.records")
report = Later("covkeras.reports.results")

EXAMPLES = """examples:
  covkeras attack runs/digits_stepped/classifier.keras --certificates runs/digits_stepped/certificates.tsv
  covkeras attack mine.keras --certificates mine.tsv --data-dir DIR --factors 1 1.25 1.5 2 --max 200
"""


def parse(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=cli.Formatter, allow_abbrev=False
    )
    parser.add_argument(
        "classifier", type=user_path, help="the certified classifier, .keras, .h5 or a SavedModel's folder"
    )
    cli.add_classifier_flags(parser)
    parser.add_argument("--certificates", required=True, type=user_path, metavar="FILE", help="its certificates.tsv")
    parser.add_argument(
        "--data-dir", type=user_path, metavar="DIR", help="folder of prepared TFDS data sets (default: TFDS's own)"
    )
    parser.add_argument("--data", help="where the images are now (default: where they were certified)")
    parser.add_argument("--image-size", type=int, help="the images were resized to (default: as the certificates say)")
    parser.add_argument("--max", type=int, default=200, help="attack so many images at most (default: 200)")
    parser.add_argument("--factors", type=float, nargs="+", default=[1.0, 1.25, 1.5, 2.0, 3.0], help="of the radius")
    parser.add_argument("--steps", type=int, default=20, help="of the ascent (default: 20)")
    parser.add_argument("--copies", type=int, default=16, help="noisy copies for the gradient (default: 16)")
    parser.add_argument("--n", type=int, default=1_000, help="samples of a prediction (default: 1,000)")
    parser.add_argument("--seed", type=int, default=1, help="of the attack's and the predictions' noise (default: 1)")
    return parser.parse_args(arguments)


def attack(flags, stop) -> None:
    check_count("max", flags.max)
    # The others' numbers are looked at before any work.
    attacking.check_attack(flags.steps, flags.copies, flags.seed, flags.factors, flags.n)
    settings = records.read_settings(flags.certificates)
    classifier = cli.load_classifier(flags.classifier, flags)
    smoothed = certification.SmoothedClassifier(
        classifier, settings["sigma"], noise=settings["noise"], precision=settings.get("rebuilt_in")
    )
    if records.classifier_digest(smoothed.classifier) != settings["classifier"]:
        raise ValueError(f"{flags.certificates} was made with another classifier than {flags.classifier}.")
    indices, _, certificates = jobs.sorted_certificates(flags.certificates)
    chosen = (certificates.radius > 0).nonzero()[0][: flags.max]
    if not len(chosen):
        raise ValueError(f"{flags.certificates} has no image with a certified radius: there is nothing to attack.")
    # A file of an older version does not say the size.
    size = settings.get("image_size", 0) if flags.image_size is None else flags.image_size
    data = datasets.load(flags.data or settings["data"], settings["split"], flags.data_dir, size)
    known = settings.get("data_digest", "")
    if data.digest != known or (not known and flags.data not in (None, settings["data"])):
        raise ValueError(
            f"{flags.certificates} was made of other images than {data.name} has now. Give those by --data, or certify "
            "these."
        )
    data = fitted(data, classifier)
    images, part = data.floats(indices[chosen]), certificates.take(chosen)
    rows = [["factor", "images", "changed", "abstained", "unchanged", "median distance"]]
    for factor in jobs.progress_bar(iterable=flags.factors, desc="attack", unit="factor"):
        (outcome,) = attacking.attack_certificates(
            smoothed,
            images,
            certificates=part,
            factors=[factor],
            n=flags.n,
            alpha=settings["alpha"],
            steps=flags.steps,
            copies=flags.copies,
            seed=flags.seed,
        )
        changed, abstained = int(outcome.changed.sum()), int(outcome.abstained.sum())
        kept, distance = outcome.tried - changed - abstained, sorted(outcome.distance)[outcome.tried // 2]
        rows.append([f"{factor:g}", str(outcome.tried), str(changed), str(abstained), str(kept), f"{distance:.3f}"])
        if stop():
            break
    print(report.plain(rows))


def main(arguments=None) -> int:
    flags = parse(arguments)
    return cli.run(lambda stop: attack(flags, stop))


if __name__ == "__main__":
    sys.exit(main())
