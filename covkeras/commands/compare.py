"""Compares methods: trains each on one recipe with one budget, certifies all on the same images with the same noise.

A method is METHOD or METHOD:FIELD=VALUE,... with its authors' weights unless they are given. The table has certified
accuracy, average certified radius, clean accuracy, and what a training step costs beside Gaussian augmentation's.
"""

import argparse
import json
import sys
from pathlib import Path

from covkeras.commands import cli
from covkeras.experiments.runs import recorded_recipe
from covkeras.runtime.files import held, user_path
from covkeras.runtime.later import Later

comparing = Later("covkeras.experiments.comparing")
fitting = Later("covkeras.experiments.fitting")
comparison_report = Later("covkeras.reports.comparison")
precision = Later("covkeras.experiments.precision")

DEFAULT = ("gaussian_augmentation", "covariance_radius", "consistency", "adjoint_radius")
EXAMPLES = """examples:
  covkeras compare                                            four methods on digits, in minutes
  covkeras compare --seeds 0 1 2 --out comparisons/seeds
  covkeras compare --seconds 60                               equal time instead of equal epochs
  covkeras compare --methods gaussian_augmentation consistency:lam=10 consistency:lam=10,antithetic=true
  covkeras compare --recipe mnist_protocol --data-dir DIR --sigma 0.5 --methods gaussian_augmentation \\
      covariance_radius consistency adjoint_radius macer:epochs=24

A method whose training diverges is left out, and named at the end; the others go on.
The same command resumes, and so does covkeras compare --continue --out DIR, which does all that the folder was ever
asked for. More methods and seeds may be named later; what is done is not done again. The folder holds comparison.json,
asked.json, steps.json (the step times), runs/METHOD-seedN/ (each a run folder) and report/ (open index.html).
"""


def parse(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=cli.Formatter, allow_abbrev=False
    )
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help=f"default: {' '.join(DEFAULT)}")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="default: 0")
    parser.add_argument(
        "--continue",
        dest="resume",
        action="store_true",
        help="do what the folder --out was asked for and has not; more --methods and --seeds may be named",
    )
    parser.add_argument("--seconds", type=float, help="of training for each method (default: the recipe's epochs)")
    parser.add_argument(
        "--out", type=user_path, metavar="DIR", help="the comparison's folder (default: comparisons/RECIPE)"
    )
    cli.add_environment_flags(parser)
    cli.add_recipe_flags(parser, arguments)
    return parser.parse_args(arguments)


def work(flags, stop) -> None:
    if flags.resume:
        out, recipe, seconds, methods, seeds = recorded(flags)
    else:
        recipe, seconds = cli.recipe_from(flags), flags.seconds or 0.0
        if flags.show:
            return cli.show(flags, recipe)
        out = Path(flags.out or Path("comparisons") / recipe.name)
        recipe = precision.settled(recipe, recorded_recipe(out / "comparison.json"), on=flags.devices)
        methods, seeds = flags.methods or list(DEFAULT), flags.seeds or [0]
    entries = [comparing.Entry.parse(text, recipe) for text in methods]
    for what, values in (("methods", methods), ("seeds", seeds)):
        if len(set(values)) < len(values):
            raise ValueError(f"{what} must differ, got {' '.join(map(str, values))}.")
    environment = cli.environment_from(flags, stop)
    comparison = comparing.Comparison(out, recipe, seconds, environment)
    comparison.claim(entries, seeds)
    with held(out):
        comparison.ask(methods, seeds)
        run(comparison, entries, seeds)


def recorded(flags) -> tuple:
    """What --continue goes on with: the folder, its recipe, its seconds, the methods and the seeds it was asked for."""
    if told := cli.recipe_flags_given(flags) + (["--seconds"] if flags.seconds is not None else []):
        raise ValueError(f"--continue takes the recipe from the folder: leave out {' '.join(told)}.")
    out = Path(flags.out or Path("comparisons") / flags.recipe)
    recipe = recorded_recipe(out / "comparison.json")
    if recipe is None:
        raise ValueError(f"{out} holds no comparison.json to continue. Name the comparison's folder with --out.")
    wanted = comparing.asked(out)
    methods, seeds = (
        [*values, *(value for value in given or [] if value not in values)]
        for values, given in ((wanted["methods"], flags.methods), (wanted["seeds"], flags.seeds))
    )
    if not methods or not seeds:
        raise ValueError(f"{out} does not say what it was asked for: name --methods and --seeds.")
    known = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    return out, recipe, known.get("seconds", 0.0), methods, seeds


def run(comparison: "comparing.Comparison", entries, seeds) -> None:
    """Times, trains and certifies what is not done yet, and reports."""
    costs = comparison.costs(entries)
    entries = [comparison.budgeted(e, costs) for e in entries]
    done, diverged = trained(comparison, entries, seeds)
    outcomes = []
    for e in entries:
        if e.label in diverged:  # its other seeds are no fair sample of it
            continue
        results, clean = zip(*(done[e.label, seed] for seed in seeds), strict=True)
        seconds = comparison.epoch_seconds(e, costs)
        outcomes.append(
            comparing.Outcome(
                e, results=results, clean=clean, cost=costs[e.label], epoch_seconds=seconds, seeds=tuple(seeds)
            )
        )
    if outcomes:
        print(comparison_report.write_comparison_report(comparison, outcomes, diverged))
        print(f"\nreport: {comparison.path / 'report' / 'index.html'}")
    if diverged:
        raise fitting.NonFiniteLoss(
            "left out, since the training diverged: " + "; ".join(f"{label}, {why}" for label, why in diverged.items())
        )


def trained(comparison: "comparing.Comparison", entries, seeds) -> tuple[dict, dict[str, str]]:
    """What each method and seed came to; and what the training of those that diverged ended with."""
    done, diverged = {}, {}
    for seed in seeds:  # a whole table with one seed before the next begins
        for entry in entries:
            if entry.label in diverged:
                continue
            try:
                done[entry.label, seed] = comparison.run(entry, seed)
            except fitting.NonFiniteLoss as error:
                diverged[entry.label] = f"seed {seed}: {error}"
                print(f"{entry.label} {diverged[entry.label]}\nThe others go on.", file=sys.stderr)
    return done, diverged


def main(arguments=None) -> int:
    flags = parse(arguments)
    return cli.run(lambda stop: work(flags, stop))


if __name__ == "__main__":
    sys.exit(main())
