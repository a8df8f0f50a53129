"""Command lines: a flag for every field of a recipe, and errors as one line that names the remedy."""

import argparse
import contextlib
import errno
import signal
import sys
import warnings
from collections.abc import Callable, Sequence

from covkeras.experiments import recipes
from covkeras.experiments.environment import Environment
from covkeras.experiments.recipe import METHODS, Recipe, own_hyperparameters
from covkeras.runtime import fields, startup
from covkeras.runtime.files import is_keras_file, user_path
from covkeras.runtime.interrupts import Interrupted, Interrupts
from covkeras.runtime.later import Later
from covkeras.runtime.validation import check_between

adapting, loading = Later("covkeras.runtime.adapting"), Later("covkeras.runtime.loading")


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the examples' lines."""


def add_recipe_flags(parser: argparse.ArgumentParser, arguments=None, default=("digits", "digits")) -> None:
    """Adds --recipe, one flag for every field and one for every hyper-parameter that a method declares; a flag given
    replaces the recipe's value. A method from outside adds its own: `arguments` may name it.

    default: the recipe where none is named, and how the help says so.
    """
    names = ", ".join(recipes.RECIPES)
    help = f"{names}, or a .json file (default: {default[1]})"
    parser.add_argument("--recipe", default=default[0], metavar="NAME", help=help)
    parser.add_argument("--smoke", action="store_true", help="scale the recipe to minutes; its figures mean nothing")
    show = "print the recipe as JSON, and what differs from the named one, then stop"
    parser.add_argument("--show", action="store_true", help=show)
    group = parser.add_argument_group("recipe fields (default: the recipe's)")
    for name, field in _fields().items():
        if name == "decay_epochs":
            words = {"type": int, "nargs": "*", "metavar": "EPOCH"}
        else:
            choices = field.metadata.get("choices")
            kind = type(field.default)
            words = {"type": kind, "choices": choices, "metavar": None if choices else kind.__name__.upper()}
        _add(group, name, field, fields.help_of(field), words)
    group = parser.add_argument_group(
        "hyper-parameters of methods (default: the recipe's, else what its authors publish)"
    )
    for name, owners in declared(_outside(parser, arguments)).items():
        said = {}
        for method, field in owners.items():
            said.setdefault(fields.describe(field), []).append(method)
        listed = "; ".join(f"{', '.join(methods)}: {help}" for help, methods in said.items())
        field = list(owners.values())[-1]
        # Read when the method is known: two methods may mean different things by one name.
        _add(group, name, field, listed, {"metavar": type(field.default).__name__.upper()})


def _add(group, name: str, field: fields.Field, help: str, words: dict) -> None:
    words = {"action": argparse.BooleanOptionalAction} if isinstance(field.default, bool) else words
    group.add_argument("--" + name.replace("_", "-"), default=None, help=help.replace("%", "%%"), **words)


def _fields() -> dict[str, fields.Field]:
    return {name: field for name, field in Recipe.own_fields().items() if name not in ("name", "source")}


def declared(methods: Sequence[str] = ()) -> dict[str, dict[str, fields.Field]]:
    """Returns what methods declare, {name: {method: field}}: covkeras' own methods, and those named besides."""
    found = {}
    for method in (*METHODS, *methods):
        for name, field in own_hyperparameters(method).items():
            found.setdefault(name, {})[method] = field
    return found


def _outside(parser: argparse.ArgumentParser, arguments) -> list[str]:
    """The methods from outside that a command line names, itself or by its recipe file."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--method")
    early.add_argument("--recipe", default="digits")
    known, _ = early.parse_known_args([*map(str, arguments)] if arguments is not None else None)
    try:
        method = known.method or recipes.find(known.recipe).method
        if ":" in method:
            own_hyperparameters(method)
    except (ValueError, OSError) as error:
        if known.method and ":" in known.method:
            parser.error(str(error))
        return []  # told when the recipe is made
    return [method] if ":" in method else []


def add_environment_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say where and how a job runs, and change none of its results."""
    parser.add_argument(
        "--data-dir", type=user_path, metavar="DIR", help="folder of prepared TFDS data sets (default: TFDS's own)"
    )
    parser.add_argument("--devices", default="auto", help="auto (all GPUs, or the CPU), cpu, or a number of devices")
    parser.add_argument("--checkpoint-minutes", type=float, default=10.0, metavar="MIN", help="between checkpoints")


def add_classifier_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a classifier that expects other images than ours, or does not end in logits."""
    parser.add_argument(
        "--input-range", nargs=2, type=float, default=[0.0, 1.0], metavar=("LOW", "HIGH"), help="pixels it expects"
    )
    parser.add_argument(
        "--ends-in",
        default="logits",
        choices=("logits", "softmax", "sigmoid"),
        help="its answers (default: logits)",
    )
    parser.add_argument("--channels-first", action="store_true", help="it takes (batch, channels, height, width)")


def told_of_the_classifier(arguments: argparse.Namespace) -> bool:
    """Whether a flag of `add_classifier_flags` says anything."""
    return (*arguments.input_range, arguments.ends_in, arguments.channels_first) != (0.0, 1.0, "logits", False)


def load_classifier(path: str, arguments: argparse.Namespace):
    """Loads a .keras file or the folder of a SavedModel, and adapts it to images in [0, 1] where the flags ask for it.

    Raises:
        ValueError, OSError: it is neither, or what `adapt` refuses.
    """
    if is_keras_file(path) and not told_of_the_classifier(arguments):
        return loading.load_keras(path)
    return adapting.adapt(
        path,
        input_range=arguments.input_range,
        ends_in=arguments.ends_in,
        channels_first=arguments.channels_first,
    )


def environment_from(arguments: argparse.Namespace, stop: Callable[[], bool]) -> Environment:
    minutes = check_between("checkpoint_minutes", arguments.checkpoint_minutes, 0, float("inf"))
    return Environment(arguments.data_dir, arguments.devices, minutes, stop)


def recipe_from(arguments: argparse.Namespace, others: bool = False) -> Recipe:
    """Returns the named recipe with the flags' values; another method than its own comes with its authors' weights.
    Other epochs scale the schedule, but for what of it is given, too.

    Args:
        others: whether flags of other methods than the recipe's may be given, for a program that trains them too.

    Raises:
        ValueError: naming the field and what is allowed; a schedule that ends after the epochs.
    """
    recipe = recipes.find(arguments.recipe)
    recipe = recipes.smoke(recipe) if arguments.smoke else recipe
    given = {name: value for name in _fields() if (value := getattr(arguments, name, None)) is not None}
    if given.get("epochs", 0) > 0:
        recipe = recipes.scaled(recipe, given["epochs"])
    method = given.pop("method", recipe.method)
    values, foreign = hyper_given(arguments, method)
    if foreign and not others:
        name, owners = next(iter(foreign.items()))
        flag, own = "--" + name.replace("_", "-"), ", ".join(own_hyperparameters(method)) or "none"
        raise ValueError(
            f"{flag} is a hyper-parameter of {', '.join(owners)}; the recipe's method is {method}, whose own are: "
            f"{own}. Choose the method by --method; in a comparison write {next(iter(owners))}:{name}=VALUE."
        )
    return recipes.check_schedule(recipe.with_method(method, **given, **values))


def recipe_flags_given(arguments: argparse.Namespace) -> list[str]:
    """Returns the flags of the recipe that a command line gives, as they are written."""
    names = [name for name in (*_fields(), *declared()) if getattr(arguments, name, None) is not None]
    names += ["smoke"] if arguments.smoke else []
    return ["--" + name.replace("_", "-") for name in names]


def hyper_given(arguments: argparse.Namespace, method: str) -> tuple[dict, dict]:
    """Returns the given hyper-parameters that the method declares, {name: value}, and the others, {name: methods}."""
    values, foreign = {}, {}
    for name, owners in declared([method] if method not in METHODS else ()).items():
        written = getattr(arguments, name, None)
        if written is None:
            continue
        if method in owners:
            values[name] = fields.read(owners[method], str(written))
        else:
            foreign[name] = owners
    return values, foreign


def show(arguments: argparse.Namespace, recipe: Recipe) -> None:
    """Prints the recipe as a file that --recipe takes, and to stderr its differences from the named one."""
    print(recipe.to_json(), end="")
    there = recipes.find(arguments.recipe).values()
    for name, value in recipe.values().items():
        if name not in there or there[name] != value:
            named = f"in {arguments.recipe} {there[name]!r}" if name in there else f"not in {arguments.recipe}"
            print(f"{name}: {value!r}, {named}", file=sys.stderr)


@contextlib.contextmanager
def plain_warnings():
    """Warnings of ours as one line, as errors are: not the line of code that gave them."""
    before = warnings.formatwarning

    def formatted(message, category, *place, **others):
        return f"warning: {message}\n" if category is UserWarning else before(message, category, *place, **others)

    warnings.formatwarning = formatted
    try:
        yield
    finally:
        warnings.formatwarning = before


_REMEDIES = {
    errno.ENOENT: "Name one that is there",
    errno.EEXIST: "Name another",
    errno.EISDIR: "Name a file",
    errno.ENOTDIR: "Name a folder",
    errno.EACCES: "Name a place that may be written",
    errno.EPERM: "Name a place that may be written",
    errno.EROFS: "Name a place that may be written",
    errno.ENOSPC: "Free space; the same command goes on",
}


def said(error: Exception) -> str:
    """An error in one sentence; the system's own with the file first, and the remedy."""
    if not isinstance(error, OSError) or not error.strerror or error.filename is None:
        return str(error)
    remedy = _REMEDIES.get(error.errno)
    return f"{error.filename}: {error.strerror}." + (f" {remedy}." if remedy and "." not in error.strerror else "")


def run(program: Callable[[Interrupts], None], resume: str = "") -> int:
    """Runs a program with Ctrl-C caught; expected errors end in one line and exit code 2, stops in 128 + signal."""
    startup.escape_what_cannot_be_printed()
    startup.quiet_tensorflow()
    try:
        with Interrupts() as stop, plain_warnings():
            program(stop)
    except Interrupted:
        print(f"\nstopped, everything is saved. To resume: {resume or 'run the same command'}", file=sys.stderr)
        # Of several machines another one may have been asked.
        return 128 + (stop.signal_number or signal.SIGTERM)
    except KeyboardInterrupt:
        print(f"\nstopped; what was saved stays. To resume: {resume or 'run the same command'}", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, NotImplementedError, RuntimeError) as error:
        print(f"error: {said(error)}", file=sys.stderr)
        return 2
    return 0
