"""Exports a finished run as a SavedModel with certification in the graph, for TF-Serving or `covkeras serve`."""

import argparse
import sys
from pathlib import Path

from covkeras.commands import cli
from covkeras.experiments.environment import Environment
from covkeras.runtime.files import quoted, user_path
from covkeras.runtime.later import Later

exported = Later("covkeras.experiments.exported")
exporting = Later("covkeras.exporting")

EXAMPLES = """examples:
  covkeras export --run runs/digits_stepped --out exports/digits/1
  covkeras export --run runs/mnist --data-dir DIR --out exports/mnist/1 --n 10000 --max-samples 100000
  covkeras export --run runs/denoised-mine --out exports/mine/1 --sigmas 0.12 0.5
"""


def parse(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=cli.Formatter, allow_abbrev=False
    )
    parser.add_argument("--run", required=True, type=user_path, metavar="DIR", help="a finished run's folder")
    parser.add_argument("--out", required=True, type=user_path, metavar="DIR/VERSION", help="such as exports/digits/1")
    parser.add_argument(
        "--sigmas", type=float, nargs="+", default=[], help="others besides the run's, for requests to choose from"
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
    return parser.parse_args(arguments)


def main(arguments=None) -> int:
    flags = parse(arguments)

    def program(stop):
        defaults = exporting.Defaults(
            flags.n0,
            flags.n,
            alpha=flags.alpha,
            n_predict=flags.n_predict,
            max_samples=flags.max_samples,
            resize=flags.resize,
        )
        folder = exported.export_run(flags.run, Path(flags.out), Environment(flags.data_dir), defaults, flags.sigmas)
        print(f"exported {folder}: covkeras serve {quoted(folder.parent.parent)}")

    return cli.run(program)


if __name__ == "__main__":
    sys.exit(main())
