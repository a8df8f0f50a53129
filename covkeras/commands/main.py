"""covkeras: certified image classifiers from the command line.

covkeras COMMAND --help     what a command does, with examples
"""

import importlib
import sys

from covkeras import __version__

# Command -> its module here, and what it does.
COMMANDS = {
    "train": ("train", "train, certify, report and export a recipe"),
    "denoise": ("denoise", "certify a trained classifier as it is, behind a denoiser"),
    "certify": ("certify", "certify any Keras classifier file, in shards, fixed or sequentially"),
    "report": ("report", "tables and curves of certification logs, ours or the field's"),
    "compare": ("compare", "methods against each other, with equal epochs or seconds"),
    "search": ("search", "keras-tuner over any fields of a recipe"),
    "diagnose": ("diagnose", "look inside a classifier: propagated against sampled moments"),
    "attack": ("attack", "attack certified images"),
    "noisy-labels": ("noisy_labels", "methods on labels of which a share is wrong"),
    "export": ("export", "a finished run as a SavedModel for TF-Serving"),
    "serve": ("serve", "serve exports locally, with a page; for development"),
    "client": ("client", "ask a server for certified predictions of image files"),
}
# What the extra [serving] brings.
_SERVING = ("aiohttp", "grpc", "tensorflow_serving", "PIL")


def usage() -> str:
    lines = [f"  {name:<14}{what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join([__doc__.strip(), "", "commands:", *lines, "", "  --version     print the version"])


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; returns its exit code: 2 for a refusal, 130 for Ctrl-C."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name == "--version":
        print(__version__)
        return 0
    if name not in COMMANDS:
        print(f"error: covkeras has no command {name!r}; it has {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    # argparse takes a program's name from here.
    sys.argv[0] = f"covkeras {name}"
    try:
        return importlib.import_module(f"covkeras.commands.{COMMANDS[name][0]}").main(rest)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in _SERVING:
            raise
        print(f"error: covkeras {name} needs {error.name}: pip install 'covkeras[serving]'", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
