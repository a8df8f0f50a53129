"""Shows a classifier's inside: propagated against sampled moments layer by layer, and the paper's diagnostic figures.

Table 2 (variances), Figure 6 (clouds and ellipses) of the classifier; Figures 1a (boxes and covariances), 1b (samples
needed as images grow) of the method; Figure 5 (step costs) of a comparison, where one is given.
"""

import argparse
import json
import sys
from pathlib import Path

from covkeras import datasets
from covkeras.commands import cli
from covkeras.runtime.classifiers import fitted
from covkeras.runtime.files import user_path
from covkeras.runtime.interrupts import Interrupted
from covkeras.runtime.later import Later
from covkeras.runtime.validation import check_count

comparison_report = Later("covkeras.reports.comparison")
growth = Later("covkeras.diagnostics.growth")
layerwise = Later("covkeras.diagnostics.layerwise")
diagnosis = Later("covkeras.reports.diagnosis")
report = Later("covkeras.reports.report")
toy = Later("covkeras.diagnostics.toy")
jobs = Later("covkeras.experiments.jobs")
loading = Later("covkeras.runtime.loading")
moments = Later("covkeras.moments")

EXAMPLES = """examples:
  covkeras diagnose --classifier runs/digits_stepped/classifier.keras --data digits
  covkeras diagnose --classifier mine.keras --data cifar10 --data-dir DIR --sigma 0.25 --images 4
  covkeras diagnose --classifier mine.keras --data mnist --show conv1 conv2 logits --r-max 0.4
  covkeras diagnose --classifier mine.keras --data mnist --comparison comparisons/mnist_protocol
"""


def parse(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=cli.Formatter, allow_abbrev=False
    )
    parser.add_argument(
        "--classifier", required=True, type=user_path, metavar="FILE", help="any Keras classifier of supported layers"
    )
    parser.add_argument(
        "--data", required=True, metavar="NAME", help="digits, or a TFDS data set: the test split's images"
    )
    parser.add_argument(
        "--data-dir", type=user_path, metavar="DIR", help="folder of prepared TFDS data sets (default: TFDS's own)"
    )
    parser.add_argument("--sigma", type=float, default=0.5, help="noise level in [0, 1] pixel units (default: 0.5)")
    parser.add_argument("--r-max", type=float, default=0.1, help="bound on the pixels' correlation (default: 0.1)")
    parser.add_argument("--images", type=int, default=8, help="test images to sample around (default: 8)")
    parser.add_argument("--samples", type=int, default=1_000, help="noisy copies of each image (default: 1,000)")
    parser.add_argument("--show", nargs="+", default=[], metavar="LAYER", help="layers of the clouds (default: four)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    parser.add_argument("--memory-gb", type=float, default=4.0, help="for one chunk's pre-activations (default: 4)")
    parser.add_argument(
        "--comparison", type=user_path, metavar="DIR", help="a folder of compare.py, for the step costs"
    )
    parser.add_argument("--out", type=user_path, metavar="DIR", help="default: diagnosis beside the classifier")
    return parser.parse_args(arguments)


def sampled_layers(flags, stop, network, images) -> "list[layerwise.LayerMoments]":
    with jobs.progress_bar(total=20 * len(images), desc="sample the layers", unit="chunk") as bar:

        def progress():
            bar.update()
            if stop():
                raise Interrupted

        return layerwise.layer_moments(
            network, images, flags.samples, flags.seed, memory_gb=flags.memory_gb, progress=progress
        )


def spread_over(names: list[str], count: int = 4) -> list[str]:
    """The first, the last, and evenly between them."""
    if len(names) <= count:
        return names
    return [names[round(i * (len(names) - 1) / (count - 1))] for i in range(count)]


def work(flags, stop) -> None:
    check_count("images", flags.images)
    layerwise.check_sampling(flags.samples, flags.seed, flags.memory_gb)
    classifier = loading.load_keras(flags.classifier)
    network = moments.MomentNetwork(classifier, flags.sigma, flags.r_max)
    data = datasets.load(flags.data, "test", flags.data_dir, network.image_shape[0]).head(flags.images)
    data = fitted(data, classifier)
    names = list(layerwise.pre_activations(network, data.floats(slice(1)), sampled=False))
    if unknown := [name for name in flags.show if name not in names]:
        raise ValueError(f"show: no linear layers {unknown} in the classifier, which has {names}.")
    costs = costs_of(flags.comparison) if flags.comparison else None
    folder = Path(flags.out) if flags.out else Path(flags.classifier).parent / "diagnosis"
    # Where nothing can be written, before minutes of work.
    folder.mkdir(parents=True, exist_ok=True)
    rows = sampled_layers(flags, stop, network, data.floats())
    sections = diagnosis.layer_sections(rows, flags.show or spread_over(names), flags.r_max)
    print("measuring the method's own figures", file=sys.stderr, flush=True)
    sections += diagnosis.general_sections(toy.planes(toy.two_layer_network()), growth.growth())
    if costs:
        words = (
            f"Training steps in turns in one process, from {flags.comparison}; whiskers: the middle half of the rounds."
        )
        figures = {"cost": comparison_report.cost_bars(costs)}
        sections.append(report.Section("Cost of a training step", words, figures))
    caption = (
        f"{flags.classifier}, {len(data)} test images of {flags.data}, {flags.samples:,} samples each, sigma "
        f"{flags.sigma:g}, r_max {flags.r_max:g}"
    )
    print(report.Report(f"Inside {Path(flags.classifier).name}", caption, sections).write(folder, vector=True))
    print(f"\n{diagnosis.verdict(rows)}\n\nreport: {folder / 'index.html'}")


def costs_of(folder: str) -> dict[str, list[float]]:
    """The step-cost ratios that compare.py measured, by method."""
    file = Path(folder) / "steps.json"
    if not file.exists():
        raise FileNotFoundError(f"comparison {folder} holds no steps.json. Give a folder of training/compare.py.")
    return {label: step["ratios"] for label, step in json.loads(file.read_text(encoding="utf-8")).items()}


def main(arguments=None) -> int:
    flags = parse(arguments)
    return cli.run(lambda stop: work(flags, stop))


if __name__ == "__main__":
    sys.exit(main())
