"""Searches a recipe's fields for the largest certified radius on validation images: by default those that its method
declares, lam and r_max for the paper's.

Trials are recipes, trained in run folders of their own and certified by Monte Carlo on the same images with the same
noise; the test set is never touched. The same command resumes. The result is best_recipe.json, which `covkeras train`
takes as it is, and a report with the trials, the baselines beside them and the spread over seeds.

In parallel: one chief and any number of workers, the same command in each, told apart by the environment:
  KERASTUNER_TUNER_ID=chief   KERASTUNER_ORACLE_IP=127.0.0.1 KERASTUNER_ORACLE_PORT=8000 covkeras search ...
  KERASTUNER_TUNER_ID=worker0 KERASTUNER_ORACLE_IP=127.0.0.1 KERASTUNER_ORACLE_PORT=8000 covkeras search ...
A worker that was killed takes its trial up again when it is started again with the same id.
"""

import argparse
import contextlib
import os
import sys
from pathlib import Path

from covkeras.commands import cli
from covkeras.experiments.recipe import METHODS, TUNERS, objective_kind
from covkeras.experiments.runs import recorded_recipe
from covkeras.runtime.files import held, quoted, user_path, write_text_aside
from covkeras.runtime.later import Later
from covkeras.runtime.validation import check_count

fitting = Later("covkeras.experiments.fitting")
precision = Later("covkeras.experiments.precision")
report = Later("covkeras.reports.results")
tuning = Later("covkeras.experiments.tuning")
tuning_space = Later("covkeras.experiments.tuning_space")
tuning_report = Later("covkeras.reports.search")

EXAMPLES = """examples:
  covkeras search --trials 12
  covkeras search --search lam=0:8 r_max=0:0.4 gamma=0.25:8:log --tuner bayesian --trials 30
  covkeras search --recipe mnist --data-dir DIR --tuner ablation --search lam=0,0.5,1,4 r_max=0,0.1,0.2,0.4
  covkeras search --search lam=0,1,4 noisy_mean=true,false --tuner grid --objective accuracy@0.5
  covkeras train --recipe searches/digits/best_recipe.json
"""


def _declared() -> str:
    """What each method declares for a search."""
    listed = []
    for method in METHODS:
        known = objective_kind(method).hyperparameters().items()
        ranges = [f"{name}={field.metadata['search']}" for name, field in known if field.metadata["search"]]
        listed += [f"{method}: {' '.join(ranges)}"] if ranges else []
    return "; ".join(listed)


def parse(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=cli.Formatter, allow_abbrev=False
    )
    parser.add_argument(
        "--search",
        nargs="+",
        metavar="FIELD=RANGE",
        help="LOW:HIGH, LOW:HIGH:log, or a list A,B,C, of any field of the recipe or its method; FIELD alone: the "
        f"range it declares (default: all that the method declares, {_declared()})",
    )
    parser.add_argument("--tuner", default="bayesian", choices=TUNERS, help="default: bayesian")
    parser.add_argument("--trials", type=int, default=12, help="at most (default: 12)")
    parser.add_argument("--objective", default="acr", help="acr, or accuracy@RADIUS (default: acr)")
    parser.add_argument("--tuner-seed", type=int, default=0, help="of the tuner's choices (default: 0)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of the best and of the baselines (default: 3)")
    parser.add_argument("--out", type=user_path, metavar="DIR", help="the search's folder (default: searches/RECIPE)")
    cli.add_environment_flags(parser)
    cli.add_recipe_flags(parser, arguments)
    return parser.parse_args(arguments)


CLUSTER = ("KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT")


def is_worker() -> bool:
    """Whether this process is a worker of a search in parallel, by the environment. Raises ValueError: a part of it."""
    given = {name: os.environ[name] for name in CLUSTER if os.environ.get(name)}
    if not given:
        return False
    if missing := [name for name in CLUSTER if name not in given]:
        raise ValueError(f"{' and '.join(missing)} must be set beside {', '.join(given)}, or none of them.")
    port = given["KERASTUNER_ORACLE_PORT"]
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        raise ValueError(f"KERASTUNER_ORACLE_PORT must be a whole number from 1 to 65535, got {port!r}.")
    # As keras-tuner tells them apart.
    return "chief" not in given["KERASTUNER_TUNER_ID"]


def show_progress(tuner, hypermodel) -> None:
    """Prints the trials' table after each of them, in the process that knows them all."""
    oracle, end = tuner.oracle, tuner.oracle.end_trial

    def end_trial(trial):
        end(trial)
        trials = tuning.trials_of(oracle, hypermodel)
        print(f"\n{report.plain(tuning_report.trials_table(trials, hypermodel.objective.text))}", flush=True)

    oracle.end_trial = end_trial


def work(flags, stop) -> None:
    recipe = cli.recipe_from(flags)
    if flags.show:
        return cli.show(flags, recipe)
    space = [tuning.Range.parse(text, recipe) for text in flags.search or []] or tuning_space.declared_space(recipe)
    objective = tuning.Objective(flags.objective)
    folder = Path(flags.out or Path("searches") / recipe.name)
    recipe = precision.settled(recipe, recorded_recipe(folder / "search.json"), on=flags.devices)
    environment = cli.environment_from(flags, stop)
    fitting.check_devices(recipe, environment)
    hypermodel = tuning.CertifiedHyperModel(recipe, space, folder=folder, objective=objective, environment=environment)
    worker = is_worker()
    check_count("seeds", flags.seeds, 0, 1000)
    check_count("tuner_seed", flags.tuner_seed, 0, 2**31 - 1)
    tuning.check_tuner(hypermodel, flags.tuner, flags.trials, flags.tuner_seed)
    tuning.claim(hypermodel, flags.tuner, flags.tuner_seed)
    # Workers share the folder with their chief.
    with contextlib.nullcontext() if worker else held(folder):
        if not worker:
            tuning.set_damage_aside(folder / "trials")
        tuner = tuning.make_tuner(hypermodel, flags.tuner, flags.trials, flags.tuner_seed)
        if not worker:
            show_progress(tuner, hypermodel)
        tuner.search(verbose=0)
        if not worker:
            finish(hypermodel, tuning.trials_of(tuner.oracle, hypermodel), flags.seeds)


def finish(hypermodel, trials, seeds: int) -> None:
    """Trains the baselines, and the best and them with other seeds; writes best_recipe.json and the report."""
    done = [t for t in trials if t.score is not None]
    if not done:
        raise ValueError("every trial failed: lower the learning rate, or narrow the search.")
    best = done[0].recipe
    source = f"search of {', '.join(o.field for o in hypermodel.space)} from {hypermodel.recipe.name}"
    result = best.replace(name=f"{hypermodel.recipe.name}-best", source=source)
    write_text_aside(hypermodel.folder / "best_recipe.json", result.to_json())
    plain = tuning.baselines(hypermodel.recipe)
    beside = [tuning.Trial(name, recipe, hypermodel.score(recipe), "baseline") for name, recipe in plain.items()]
    spread = {
        name: tuning.over_seeds(hypermodel, recipe, seeds) for name, recipe in {"best": best, **plain}.items() if seeds
    }
    print(f"\n{tuning_report.write_search_report(hypermodel.folder / 'report', hypermodel, trials, beside, spread)}")
    print(f"\nreport: {hypermodel.folder / 'report' / 'index.html'}")
    print(f"best: .venv/bin/covkeras train --recipe {quoted(hypermodel.folder / 'best_recipe.json')}")


def main(arguments=None) -> int:
    flags = parse(arguments)
    return cli.run(lambda stop: work(flags, stop))


if __name__ == "__main__":
    sys.exit(main())
