"""Certifies any Keras classifier file on any data set, image by image, and resumes by itself.

At a fixed number of samples (Cohen), or sequentially: with --radius until one radius is decided, with --radii until its
place among them is, with --tolerance until it is precise enough. Each finished image is one line on the disk. A sidecar
FILE.json says what made the file: classifier, data set, sigma, n, alpha, seed, noise, precision, library versions; a
file is resumed, and shards are merged, only with the same.
"""

import argparse
import math
import sys
from pathlib import Path

import numpy as np

from covkeras import datasets
from covkeras.commands import certify_work, cli
from covkeras.experiments.recipe import CERTIFIED_PRECISIONS, NOISES
from covkeras.runtime.files import user_path
from covkeras.runtime.interrupts import Interrupted
from covkeras.runtime.later import Later
from covkeras.runtime.validation import check_count

certification = Later("covkeras.certification")
devices = Later("covkeras.runtime.devices")
jobs = Later("covkeras.experiments.jobs")
precision = Later("covkeras.experiments.precision")
records = Later("covkeras.certification.records")
report = Later("covkeras.reports.results")
statements = Later("covkeras.reports.statements")
voting = Later("covkeras.certification.voting")

EXAMPLES = """examples:
  covkeras certify runs/digits_stepped/classifier.keras --data digits --sigma 0.25 --out digits.tsv
  covkeras certify mine.keras --data cifar10 --data-dir DIR --sigma 0.5 --skip 20 --n 100000 --out mine.tsv
  covkeras certify mine.keras --data mnist --data-dir DIR --sigma 0.5 --shard 3/8 --out shard3.tsv
  covkeras certify mine.keras --data mnist --data-dir DIR --sigma 0.5 --radius 0.5 --precision bfloat16
  covkeras certify mine.keras --data mnist --data-dir DIR --sigma 0.5 --radii 0 0.25 0.5 0.75 1 --out curve.tsv
  covkeras certify mine.keras --data mnist --data-dir DIR --sigma 0.5 --tolerance 0.05 --out to.tsv
  covkeras certify exported/1 --input-range 0 255 --ends-in softmax --data cifar10 --data-dir DIR --sigma 0.25
  covkeras certify mine.keras --data mnist --data-dir DIR --sigma 0.5 --on ray --address auto --out scattered.tsv
  covkeras certify --merge whole.tsv shard*.tsv
"""


def parse(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=cli.Formatter, allow_abbrev=False
    )
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        type=user_path,
        help="the classifier, .keras, .h5 or a SavedModel's folder; with --merge the shards",
    )
    cli.add_classifier_flags(parser)
    parser.add_argument("--merge", metavar="OUT", type=user_path, help="merge shards into OUT instead of certifying")
    parser.add_argument(
        "--out", metavar="FILE", type=user_path, help="certificates, appended to (default: certificates.tsv)"
    )
    parser.add_argument(
        "--data",
        default="digits",
        help="data set: digits, a TFDS name, an .npz or a folder of image files (default: digits)",
    )
    parser.add_argument(
        "--data-dir", metavar="DIR", type=user_path, help="of prepared TFDS data sets (default: TFDS's own)"
    )
    parser.add_argument("--image-size", type=int, default=0, help="resize to so many pixels (default: as stored)")
    parser.add_argument("--split", default="test", choices=datasets.SPLITS, help="default: test")
    parser.add_argument("--sigma", type=float, help="noise level in [0, 1] pixel units")
    parser.add_argument(
        "--n0",
        type=int,
        help="samples to choose the class; 0 asks the image itself (default: 100; 0 with --radius and --radii)",
    )
    parser.add_argument("--n", type=int, default=100_000, help="samples to bound its probability (default: 100,000)")
    parser.add_argument(
        "--alpha", type=float, default=0.001, help="probability of a wrong certificate (default: 0.001)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    parser.add_argument("--noise", default="lattice", choices=NOISES, help="exact, or float32's (default: lattice)")
    parser.add_argument("--shared-noise", action="store_true", help="one stream of noise for all images: faster")
    parser.add_argument(
        "--precision",
        choices=CERTIFIED_PRECISIONS,
        help="of the layers but the last: another classifier (default: its own)",
    )
    parser.add_argument(
        "--deterministic", action="store_true", help="in float64: votes that hang on no last bit, several times slower"
    )
    parser.add_argument("--devices", default="auto", help="auto (all GPUs, or the CPU), cpu, or a number of devices")
    parser.add_argument("--on", default="here", choices=("here", "ray"), help="ray: actors of a cluster, one a device")
    parser.add_argument(
        "--address", default="", help="with --on ray: auto or HOST:PORT of a running cluster (default: a local one)"
    )
    parser.add_argument("--actors", type=int, default=0, help="with --on ray: how many (default: one a device)")
    parser.add_argument("--block", type=int, default=64, help="with --on ray: images of a task (default: 64)")
    parser.add_argument("--radius", type=float, help="decide this radius only, sequentially, with up to --n samples")
    parser.add_argument(
        "--radii", type=float, nargs="+", help="decide these, increasing, on the same samples: a curve, sequentially"
    )
    parser.add_argument("--tolerance", type=float, help="stop when a radius is this precise, with up to --n samples")
    parser.add_argument(
        "--runner-up", action="store_true", help="bound the other classes, too: larger radii of hard images"
    )
    parser.add_argument("--batch", type=int, default=None, help="noisy copies per pass (default: by the image's size)")
    parser.add_argument("--start", type=int, default=0, help="first image (default: 0)")
    parser.add_argument("--max", type=int, default=None, help="stop before this image (default: the end)")
    parser.add_argument("--skip", type=int, default=1, help="certify every so manieth image (default: 1)")
    parser.add_argument(
        "--shard", default="0/1", metavar="I/N", help="the I-th of N equal parts, from 0 (default: 0/1)"
    )
    return parser.parse_args(arguments)


def chosen(flags, count: int) -> np.ndarray:
    """The images' numbers in their data set."""
    check_count("start", flags.start, 0)
    check_count("skip", flags.skip)
    part, _, parts = flags.shard.partition("/")
    if not (part.isdigit() and parts.isdigit() and int(part) < int(parts)):
        raise ValueError(f"shard must be I/N with 0 <= I < N, such as 0/8, got {flags.shard!r}.")
    end = count if flags.max is None else min(flags.max, count)
    indices = np.arange(flags.start, end, flags.skip)[int(part) :: int(parts)]
    if not len(indices):
        raise ValueError(
            f"no image is left to certify: start {flags.start}, max {end}, skip {flags.skip}, shard {flags.shard} of "
            f"{count} images. Lower --start, or raise --max."
        )
    return indices


def check(flags) -> None:
    """Refuses flags that say nothing, or two things; fills in what another decides."""
    sequentially = [given for given in (flags.radius, flags.radii, flags.tolerance) if given is not None]
    if len(flags.files) != 1 or flags.sigma is None:
        raise ValueError("give one classifier file and --sigma, or --merge OUT and the shards.")
    if len(sequentially) > 1:
        raise ValueError(
            "give one of --radius, --radii and --tolerance: the first decides a radius, the second a grid of them, the "
            "third measures it."
        )
    if flags.runner_up and sequentially and flags.tolerance is None:
        raise ValueError(
            "give --runner-up where radii are measured, not with --radius or --radii: those ask of one class."
        )
    if flags.on == "here" and (flags.address or flags.actors):
        raise ValueError("give --address and --actors with --on ray.")
    if flags.max is not None:
        check_count("max", flags.max)
    check_count("actors", flags.actors, 0)
    check_count("block", flags.block)
    if flags.n0 is None:
        flags.n0 = 100 if flags.radius is None and flags.radii is None else 0


def certify(flags, stop) -> None:
    check(flags)
    classifier = cli.load_classifier(flags.files[0], flags)
    strategy = devices.strategy(flags.devices) if flags.on == "here" else None
    strategy = strategy if strategy and strategy.num_replicas_in_sync > 1 else None
    smoothed = certify_work.smoothed_from(flags, classifier, strategy)
    flags.precision = smoothed.precision
    if flags.precision and f"mixed_{flags.precision}" != devices.best_precision()[0] and flags.precision != "float32":
        size = smoothed.batch_size
        factor = precision.slowdown(*(precision.pass_of(c, size) for c in (smoothed.classifier, classifier)))
        if factor > 1.1:
            print(
                f"warning: {flags.precision} is {factor:.1f} times slower than the classifier's own precision on this "
                "device (two batches measured).",
                file=sys.stderr,
            )
    data = datasets.load(flags.data, flags.split, flags.data_dir, flags.image_size)
    data = data.head(min(flags.max or len(data), len(data)))
    indices = chosen(flags, len(data))
    out = Path(flags.out or "certificates.tsv")
    names = ("data", "split", "image_size", "n0", "n", "alpha", "seed", "radius", "radii", "tolerance")
    what = {name: getattr(flags, name) for name in names}
    sequentially = records.is_sequential(what)
    if sequentially:
        what["block"] = voting.BLOCK
    if flags.runner_up:
        what["runner_up"] = True
    with certify_work.place(flags, smoothed) as work:
        jobs.certify_images(
            smoothed,
            data,
            indices=indices,
            out=out,
            what=what,
            work=work,
            stop=stop,
            title="certify",
            sequentially=sequentially,
        )
    indices, labels, certificates = certification.read_certificates(out)
    result = report.Result(
        records.log_name(out),
        labels,
        certificates,
        indices=indices,
        alpha=flags.alpha,
        shared_noise=flags.shared_noise,
        split=flags.split,
        sequential=sequentially,
    )
    if flags.radius is None:
        print(report.shown([result]))
    else:
        share = certification.certified_accuracy(certificates, labels, [flags.radius])[0]
        print(f"certified at {flags.radius:g}: {share:.3f} of {len(labels)}, {certificates.samples.mean():.0f} samples")
        if bounds := statements.bounds_of(result, [flags.radius]):
            (least,) = bounds.values()
            print(f"of all images such as these, with 95 % confidence: at least {math.floor(1000 * least) / 1000:.3f}")
        else:
            print(statements.nothing_of_all([result]))
    void = int(certificates.void.sum())
    if void:
        print(f"void: {void} of {int(certificates.samples.sum())} votes, by NaN logits or noise in doubt")


def main(arguments=None) -> int:
    flags = parse(arguments)

    def program(stop):
        if flags.merge:
            count = records.merge(flags.files, flags.merge)
            print(f"{flags.merge}: {count} certificates of {len(flags.files)} files")
        else:
            certify(flags, stop)
        if stop():
            raise Interrupted

    return cli.run(program)


if __name__ == "__main__":
    sys.exit(main())
