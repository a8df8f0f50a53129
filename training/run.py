"""Trains, certifies and reports: the paper's method beside a reference, in one run folder."""

import argparse
import sys
from pathlib import Path

from covkeras import startup

startup.quiet_tensorflow()

from covkeras import cli, datasets, diagnostics, jobs, moments, report  # noqa: E402
from covkeras.runs import RunFolder  # noqa: E402

EXAMPLES = """examples:
  python training/run.py                                     digits, in minutes
  python training/run.py --sigma 0.25 --run-dir runs/quarter
  python training/run.py --method gaussian_augmentation --reference none
  python training/run.py --recipe runs/digits/recipe.json --lam 2 --run-dir runs/lam2

The same command resumes a run that was stopped. The run folder holds recipe.json, classifier.keras, checkpoints/,
history.csv, certificates.tsv, report/ (open report/index.html), and the reference's run in reference/.
"""


def parse(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=cli.Formatter, allow_abbrev=False
    )
    parser.add_argument("--run-dir", metavar="DIR", help="the run's folder (default: runs/RECIPE)")
    cli.add_recipe_flags(parser)
    return parser.parse_args(arguments)


def work(recipe, folder: RunFolder, stop) -> None:
    folder.check(recipe)
    runs = {recipe.method: (recipe, folder)}
    if recipe.reference not in ("none", recipe.method):
        reference = RunFolder(folder.path / "reference")
        runs = {recipe.reference: (recipe.replace(method=recipe.reference, reference="none"), reference)} | runs
        if reference.path.exists():
            reference.check(runs[recipe.reference][0])

    datasets.load(recipe.data, "train")  # refuses an unknown data set before anything is written
    folder.claim(recipe)
    results, histories = [], {}
    for name, (one, place) in runs.items():
        place.claim(one)
        classifier = jobs.train(one, place, stop, title=f"train {name}")
        _, labels, certificates = jobs.certify(one, place, classifier, stop, title=f"certify {name}")
        network = moments.MomentNetwork(classifier, one.sigma, one.r_max)
        images = datasets.load(one.data, "test").floats(slice(len(labels)))
        calibration = datasets.load(one.data, "train").floats(slice(64))
        fidelity = diagnostics.fidelity(network, images, certificates, calibration)
        results.append(report.Result(name, labels, certificates, fidelity))
        histories[name] = place.history()
    title = f"{recipe.name}: {' and '.join(runs)}"
    print(report.write_report(folder.report, results, recipe, histories, title))
    print(f"\nreport: {folder.report / 'index.html'}")


def main(arguments=None) -> int:
    flags = parse(arguments)

    def program(stop):
        recipe = cli.recipe_from(flags)
        folder = RunFolder(flags.run_dir or Path("runs") / recipe.name)
        work(recipe, folder, stop)

    return cli.run(program)


if __name__ == "__main__":
    sys.exit(main())
