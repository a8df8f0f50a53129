"""Trains on labels of which a share is flipped to the next class, by several methods, and judges each on clean labels.

The paper's Sec. 4.2 and Table 5: accuracy on the clean test images, averaged over the last 10 epochs. The paper's
method trains on all labels as if clean and drops, from an epoch on, the classification loss of the images with the
largest propagated radius; beside it plain cross-entropy and the truncated L_q loss.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from covkeras.commands import cli
from covkeras.experiments.runs import RunFolder
from covkeras.runtime.files import user_path
from covkeras.runtime.later import Later
from covkeras.runtime.validation import check_count

fitting = Later("covkeras.experiments.fitting")
precision = Later("covkeras.experiments.precision")
report = Later("covkeras.reports.results")

EXAMPLES = """examples:
  covkeras noisy-labels --recipe mnist --data-dir DIR --label-noise 0.45 --epochs 90
  covkeras noisy-labels --recipe cifar10 --smoke
  covkeras noisy-labels --recipe digits --label-noise 0.3 --methods cross_entropy truncated_lq

Each method has a run folder in --run-dir; the same command resumes.
"""
METHODS = ("cross_entropy", "truncated_lq", "gaussian_augmentation", "covariance_radius", "covariance_radius+drop")


def parse(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=cli.Formatter, allow_abbrev=False
    )
    parser.add_argument(
        "--run-dir", "--out", type=user_path, metavar="DIR", help="folder of the runs (default: runs/noisy-RECIPE)"
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="default: all")
    parser.add_argument("--last", type=int, default=10, metavar="N", help="epochs to average over (default: 10)")
    cli.add_environment_flags(parser)
    cli.add_recipe_flags(parser, arguments)
    return parser.parse_args(arguments)


def recipes_of(recipe, flags):
    """The recipe of each method, with the flags that it has. Dropping takes the paper's 10 % unless told otherwise."""
    made = {}
    for name in flags.methods:
        method, plus, _ = name.partition("+")
        given, _ = cli.hyper_given(flags, method)
        if method == "truncated_lq":
            given.setdefault("drop_epoch", recipe.hyper.get("drop_epoch", 0))
        if method == "covariance_radius":
            share = given.get("drop_share", recipe.hyper.get("drop_share", 0.0))
            given["drop_share"] = (share or 0.1) if plus else 0.0
        made[name] = recipe.with_method(method, **given)
    return made


def main(arguments=None) -> int:
    flags = parse(arguments)

    def program(stop):
        recipe = cli.recipe_from(flags, others=True).replace(reference="none")
        recipe = recipe if recipe.label_noise else recipe.replace(label_noise=0.45)
        if flags.show:
            return cli.show(flags, recipe)
        folder = Path(flags.run_dir or f"runs/noisy-{recipe.name}")
        environment = cli.environment_from(flags, stop)
        check_count("last", flags.last)
        fitting.check_devices(recipe, environment)
        fitting.load_training(recipe, environment)
        rows = [["method", "clean test accuracy", "sd", "last epochs", "best epoch's"]]
        for name, one in recipes_of(recipe, flags).items():
            place = RunFolder(folder / name)
            one = precision.settled(one, place.recorded(), on=environment.devices)
            place.claim(one)
            fitting.train(one, place, environment, title=f"train {name}")
            accuracy = np.array([float(row["clean_test_accuracy"]) for row in place.history()])
            last = accuracy[-flags.last :]
            rows.append([name, f"{last.mean():.3f}", f"{last.std():.3f}", str(len(last)), f"{accuracy.max():.3f}"])
        (folder / "table.md").write_text(report.markdown(rows) + "\n", encoding="utf-8")
        print(report.plain(rows))

    return cli.run(program)


if __name__ == "__main__":
    sys.exit(main())
