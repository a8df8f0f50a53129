"""Exports a finished run, or any classifier's file, as a SavedModel with certification in the graph, for TF-Serving or
`covkeras serve`."""

import argparse
import sys
from pathlib import Path

from covkeras import datasets
from covkeras.commands import cli
from covkeras.experiments.environment import Environment
from covkeras.experiments.recipe import CERTIFIED_PRECISIONS, NOISES
from covkeras.runtime.files import quoted, user_path
from covkeras.runtime.later import Later

certification = Later("covkeras.certification")
classifiers = Later("covkeras.runtime.classifiers")
exported = Later("covkeras.experiments.exported")
exporting = Later("covkeras.exporting")

EXAMPLES = """examples:
  covkeras export --run runs/digits_stepped --out exports/digits/1
  covkeras export --run runs/mnist --data-dir DIR --out exports/mnist/1 --n 10000 --max-samples 100000
  covkeras export --run runs/denoised-mine --out exports/mine/1 --sigmas 0.12 0.5
  covkeras export mine.keras --sigma 0.25 --out exports/mine/1 --class-names cat dog bird
  covkeras export mine.keras --sigma 0.25 --out exports/mine/1 --data photos --image-size 64
"""


def parse(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=cli.Formatter, allow_abbrev=False
    )
    parser.add_argument(
        "classifier",
        nargs="?",
        type=user_path,
        metavar="FILE",
        help="a classifier, .keras, .h5 or a SavedModel's folder",
    )
    parser.add_argument("--run", type=user_path, metavar="DIR", help="or a finished run's folder")
    parser.add_argument("--out", required=True, type=user_path, metavar="DIR/VERSION", help="such as exports/digits/1")
    parser.add_argument(
        "--sigmas", type=float, nargs="+", default=[], help="others besides the one, for requests to choose from"
    )
    parser.add_argument("--n0", type=int, default=100, help="samples to choose the class (default: 100)")
    parser.add_argument("--n", type=int, default=1_000, help="samples to bound its probability (default: 1,000)")
    parser.add_argument("--alpha", type=float, default=0.001, help="of a wrong certificate (default: 0.001)")
    parser.add_argument("--n-predict", type=int, default=1_000, help="samples of a prediction (default: 1,000)")
    parser.add_argument(
        "--resize", action="store_true", help="serving_bytes resizes images of another size (default: refuses them)"
    )
    parser.add_argument("--max-samples", type=int, default=100_000, help="a request may ask for (default: 100,000)")
    parser.add_argument(
        "--data-dir", type=user_path, metavar="DIR", help="folder of prepared TFDS data sets (default: TFDS's own)"
    )
    group = parser.add_argument_group("for a classifier's file")
    group.add_argument("--sigma", type=float, help="noise level in [0, 1] pixel units")
    group.add_argument("--class-names", nargs="+", metavar="NAME", help="one for each class (default: 0, 1, ...)")
    group.add_argument("--data", help="data set whose classes' names, and images for the estimates' gates, are taken")
    group.add_argument("--image-size", type=int, help="its images are resized to so many pixels (default: as stored)")
    group.add_argument("--noise", choices=NOISES, help="exact, or float32's (default: lattice)")
    group.add_argument("--precision", choices=CERTIFIED_PRECISIONS, help="another classifier (default: its own)")
    cli.add_classifier_flags(group)
    return parser.parse_args(arguments)


_OF_A_FILE = ("sigma", "class_names", "data", "image_size", "noise", "precision")


def check(flags) -> None:
    """Refuses flags that say nothing, or two things."""
    if (flags.classifier is None) == (flags.run is None):
        raise ValueError("give a classifier's file and its --sigma, or --run and a finished run's folder.")
    given = [name for name in _OF_A_FILE if getattr(flags, name) is not None]
    given += ["input_range"] if cli.told_of_the_classifier(flags) else []
    if flags.run is not None and given:
        raise ValueError(f"--{given[0].replace('_', '-')} is for a classifier's file: the run in --run has its own.")
    if flags.classifier is not None and (Path(flags.classifier) / "recipe.json").exists():
        raise ValueError(f"{flags.classifier} is a run's folder: give it by --run, which has its sigma.")
    if flags.classifier is not None and flags.sigma is None:
        raise ValueError("give --sigma, the noise level that the classifier was trained and certified with.")
    if flags.image_size is not None and flags.data is None:
        raise ValueError(
            "give --image-size with --data, whose images it is the size of; --resize lets the server resize."
        )
    if flags.class_names and flags.data:
        raise ValueError("give --class-names or --data, which has the names of its own.")


def export_file(flags, defaults) -> Path:
    """Exports the classifier of a file."""
    classifier = cli.load_classifier(flags.classifier, flags)
    kind = {"noise": flags.noise or "lattice", "precision": flags.precision}
    each = [certification.SmoothedClassifier(classifier, s, **kind) for s in (flags.sigma, *flags.sigmas)]
    names, images = flags.class_names, None
    if flags.data is not None:
        data = datasets.load(flags.data, "test", flags.data_dir, flags.image_size or 0).head(64)
        data = classifiers.fitted(data, each[0].classifier)
        names, images = data.class_names, data.floats()
    metadata = {"file": Path(flags.classifier).name, **({"data": flags.data} if flags.data else {})}
    return exporting.export(
        each, flags.out, class_names=names, defaults=defaults, metadata=metadata, calibration_images=images
    )


def main(arguments=None) -> int:
    flags = parse(arguments)

    def program(stop):
        check(flags)
        defaults = exporting.Defaults(
            flags.n0,
            flags.n,
            alpha=flags.alpha,
            n_predict=flags.n_predict,
            max_samples=flags.max_samples,
            resize=flags.resize,
        )
        if flags.run:
            environment = Environment(flags.data_dir)
            folder = exported.export_run(flags.run, Path(flags.out), environment, defaults, flags.sigmas)
        else:
            folder = export_file(flags, defaults)
        print(f"exported {folder}: covkeras serve {quoted(folder.parent.parent)}")

    return cli.run(program)


if __name__ == "__main__":
    sys.exit(main())
