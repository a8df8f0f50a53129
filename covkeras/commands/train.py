"""Trains, certifies and reports: a method beside a reference, in one run folder. Where nothing is said, the best of
ours beside the paper's, that trains as long, on digits."""

import argparse
import sys
from pathlib import Path

from covkeras.commands import cli
from covkeras.experiments.environment import Environment
from covkeras.experiments.runs import RunFolder
from covkeras.runtime.files import quoted, user_path
from covkeras.runtime.later import Later

comparing = Later("covkeras.experiments.comparing")
denoised = Later("covkeras.reports.denoised")
devices = Later("covkeras.runtime.devices")
distributed = Later("covkeras.experiments.distributed")
exported = Later("covkeras.experiments.exported")
fitting = Later("covkeras.experiments.fitting")
forecast = Later("covkeras.experiments.forecast")
jobs = Later("covkeras.experiments.jobs")
precision = Later("covkeras.experiments.precision")
recipes = Later("covkeras.experiments.recipes")
report = Later("covkeras.reports.results")

# Where no recipe is named.
BEST, PAPERS = "digits_stepped", "digits"

EXAMPLES = """examples:
  covkeras train                                     ours beside the paper's method, on digits, in minutes
  covkeras train --recipe digits                     the paper's beside noise alone
  covkeras train --sigma 0.5 --run-dir runs/half
  covkeras train --recipe mnist --data-dir ~/tensorflow_datasets --sigma 0.5
  covkeras train --recipe cifar10 --smoke            any recipe, in minutes
  covkeras train --recipe imagenet_rn50 --dry-run    what it would take: ten steps, timed here
  covkeras train --method gaussian_augmentation --reference none
  covkeras train --model mine.keras --data cifar10 --data-dir DIR --method consistency   on from its weights
  covkeras train --recipe runs/digits_stepped/recipe.json --lam 2 --run-dir runs/lam2

The same command resumes a run that was stopped. The run folder holds recipe.json, classifier.keras, checkpoints/,
history.csv, certificates.tsv, report/ (open report/index.html), and the reference's run in reference/.
"""


def parse(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=cli.Formatter, allow_abbrev=False
    )
    parser.add_argument(
        "--run-dir", "--out", type=user_path, metavar="DIR", help="the run's folder (default: runs/RECIPE)"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="time ten steps and print what the run would take: steps, images/s, hours, memory; write nothing",
    )
    cli.add_environment_flags(parser)
    cli.add_recipe_flags(parser, arguments, (None, f"{BEST}; with --method, {PAPERS}"))
    flags = parser.parse_args(arguments)
    if flags.recipe is None:
        flags.recipe = PAPERS if flags.method else BEST
        if flags.model and not flags.method and not flags.reference:
            # The paper's method wants a rule for every layer.
            flags.reference = "gaussian_augmentation"
    return flags


def trained_by(recipe) -> dict:
    """Returns what a run trains, in order, {name: recipe}: the reference, if there is one, and the recipe's own."""
    if recipe.reference in ("none", recipe.method):
        return {recipe.method: recipe}
    epochs = max(1, round(recipe.epochs * recipe.reference_epochs))
    shared = recipe if epochs == recipe.epochs else recipes.scaled(recipe, epochs)
    beside = comparing.Entry.parse(recipe.reference, shared).recipe.replace(reference_epochs=1.0)
    name = recipe.reference if beside.method == recipe.method else beside.method
    return {name: beside, recipe.method: recipe}


def work(recipe, folder: RunFolder, environment: Environment) -> None:
    # A cluster must be joined before anything else asks for devices.
    strategy = distributed.connect() if distributed.cluster()[1] > 1 else None
    recorded = folder.recorded()
    if strategy and not recorded:
        recipe = distributed.agreed(recipe, strategy)
    recipe = precision.settled(recipe, recorded, on=environment.devices)
    folder.check(recipe)
    beside = RunFolder(folder.path / "reference")
    runs = {name: (one, folder if one is recipe else beside) for name, one in trained_by(recipe).items()}
    for one, place in runs.values():
        if place is not folder and place.path.exists():
            place.check(one)

    # Refuses what can't be loaded or shared before anything is written.
    data, (test, chosen) = fitting.load_training(recipe, environment), environment.load_certified(recipe)
    data.steps_per_epoch(recipe.batch_size)
    replicas = (strategy or devices.strategy(environment.devices)).num_replicas_in_sync
    fitting.check_batch(recipe, replicas)
    if len(runs) > 1:
        # Before hours of the reference: what the method itself refuses.
        for one, place in runs.values():
            if not place.classifier_file.exists():
                fitting.check_method(one, data)
    folder.claim(recipe)
    classifiers = {}
    for name, (one, place) in runs.items():
        place.claim(one)
        classifiers[name] = train(one, place, environment, strategy, f"train {name}")
    if distributed.cluster()[0] > 0:
        return  # the first worker certifies and reports
    with folder.held():
        finish(recipe, folder, runs, classifiers, data, test.floats(chosen), environment)


def foretell(recipe, environment: Environment) -> None:
    """Prints what a run of the recipe, and of its reference, would take here."""
    recipe = precision.settled(recipe, on=environment.devices)
    try:
        data = fitting.load_training(recipe, environment)
    except FileNotFoundError:
        data = forecast.stand_in(recipe)
        print(f"{recipe.data} is not prepared here: timed on random images of its size", file=sys.stderr)
    foretold = [forecast.forecast(one, data) for one in trained_by(recipe).values()]
    print(report.plain(forecast.rows_of(foretold)))


def finish(recipe, folder: RunFolder, runs, classifiers, data, test, environment) -> None:
    """Certifies, reports and exports."""
    results, histories = [], {}
    for name, (one, place) in runs.items():
        certified = jobs.certify(one, place, classifiers[name], environment, title=f"certify {name}")
        fidelity = jobs.estimates(one, classifiers[name], test, certified[2], data.head(64))
        results.append(jobs.result_of(name, one, certified, fidelity))
        if rows := place.history():
            histories[name] = rows
    title = f"{recipe.name}: {' and '.join(runs)}"
    more = []
    if recipe.denoiser != "none":
        more = [denoised.section(classifiers[recipe.method], test[:6], recipe.sigma, recipe.seed)]
    print(report.write_report(folder.report, results, recipe, histories, title, more))
    print(f"\nreport: {folder.report / 'index.html'}")
    served = folder.export / recipe.name / "1"
    if not served.exists():
        exported.export_run(folder.path, served, environment)
    print(f"export: {served}, served by: covkeras serve {quoted(folder.export)}")


def train(recipe, folder, environment, strategy, title):
    if strategy is None:
        return fitting.train(recipe, folder, environment, title)
    return distributed.train_across_workers(recipe, folder, strategy, environment, title)


def main(arguments=None) -> int:
    flags = parse(arguments)

    def program(stop):
        recipe = cli.recipe_from(flags)
        if flags.show:
            return cli.show(flags, recipe)
        if flags.dry_run:
            return foretell(recipe, cli.environment_from(flags, stop))
        folder = RunFolder(flags.run_dir or Path("runs") / recipe.name)
        work(recipe, folder, cli.environment_from(flags, stop))

    return cli.run(program)


if __name__ == "__main__":
    sys.exit(main())
