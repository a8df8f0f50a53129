"""Command lines: a flag for every field of a recipe, and errors as one line that names the remedy."""

import argparse
import dataclasses
import signal
import sys
from collections.abc import Callable

from covkeras.experiments import recipes
from covkeras.experiments.environment import Environment
from covkeras.experiments.recipes import Recipe
from covkeras.runtime import startup
from covkeras.runtime.files import user_path
from covkeras.runtime.interrupts import Interrupted, Interrupts
from covkeras.runtime.validation import check_between


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the examples' lines."""


def add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --recipe and one flag for every field; a flag given replaces the recipe's value."""
    names = ", ".join(recipes.RECIPES)
    parser.add_argument(
        "--recipe", default="digits", metavar="NAME", help=f"{names}, or a .json file (default: digits)"
    )
    parser.add_argument("--smoke", action="store_true", help="scale the recipe to minutes; its figures mean nothing")
    show = "print the recipe as JSON, and what differs from the named one, then stop"
    parser.add_argument("--show", action="store_true", help=show)
    group = parser.add_argument_group("recipe fields (default: the recipe's)")
    for field in dataclasses.fields(Recipe):
        if field.name in ("name", "source"):
            continue
        flag, limits = "--" + field.name.replace("_", "-"), field.metadata
        if field.type is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=limits["help"])
        elif field.name == "decay_epochs":
            group.add_argument(flag, type=int, nargs="*", default=None, metavar="EPOCH", help=limits["help"])
        else:
            metavar = None if "choices" in limits else field.type.__name__.upper()
            choices = limits.get("choices")
            group.add_argument(
                flag, type=field.type, default=None, choices=choices, metavar=metavar, help=limits["help"]
            )


def add_environment_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say where and how a job runs, and change none of its results."""
    parser.add_argument(
        "--data-dir", type=user_path, metavar="DIR", help="folder of prepared TFDS data sets (default: TFDS's own)"
    )
    parser.add_argument("--devices", default="auto", help="auto (all GPUs, or the CPU), cpu, or a number of devices")
    parser.add_argument("--checkpoint-minutes", type=float, default=10.0, metavar="MIN", help="between checkpoints")


def environment_from(arguments: argparse.Namespace, stop: Callable[[], bool]) -> Environment:
    minutes = check_between("checkpoint_minutes", arguments.checkpoint_minutes, 0, float("inf"))
    return Environment(arguments.data_dir, arguments.devices, minutes, stop)


def recipe_from(arguments: argparse.Namespace) -> Recipe:
    """Returns the named recipe with the flags' values; another method than its own comes with its authors' weights.

    Raises:
        ValueError: naming the field and what is allowed.
    """
    recipe = recipes.find(arguments.recipe)
    recipe = recipes.smoke(recipe) if arguments.smoke else recipe
    given = {
        f.name: getattr(arguments, f.name, None) for f in dataclasses.fields(Recipe) if f.name not in ("name", "source")
    }
    given = {k: v for k, v in given.items() if v is not None}
    return recipe.with_method(**{"method": recipe.method, **given})


def show(arguments: argparse.Namespace, recipe: Recipe) -> None:
    """Prints the recipe as a file that --recipe takes, and to stderr its differences from the named one."""
    print(recipe.to_json(), end="")
    for name, (value, named) in recipe.diff(recipes.find(arguments.recipe)).items():
        print(f"{name}: {value!r}, in {arguments.recipe} {named!r}", file=sys.stderr)


def run(program: Callable[[Interrupts], None], resume: str = "") -> int:
    """Runs a program with Ctrl-C caught; expected errors end in one line and exit code 2, stops in 128 + signal."""
    startup.quiet_tensorflow()
    try:
        with Interrupts() as stop:
            program(stop)
    except Interrupted:
        print(f"\nstopped, everything is saved. To resume: {resume or 'run the same command'}", file=sys.stderr)
        # Of several machines another one may have been asked.
        return 128 + (stop.signal_number or signal.SIGTERM)
    except KeyboardInterrupt:
        print(f"\nstopped; what was saved stays. To resume: {resume or 'run the same command'}", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, NotImplementedError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
