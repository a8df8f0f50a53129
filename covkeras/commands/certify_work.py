"""What `covkeras certify` does with each image, by its flags: here, or in the actors of a cluster."""

import contextlib
import functools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from covkeras.commands import cli
from covkeras.runtime import startup
from covkeras.runtime.later import Later

certification = Later("covkeras.certification")
cohen = Later("covkeras.certification.cohen")
deciding = Later("covkeras.certification.deciding")
scattered = Later("covkeras.experiments.scattered")
sequential = Later("covkeras.certification.sequential")


def smoothed_from(flags, classifier, strategy=None):
    """The smoothed classifier that the flags ask for."""
    return certification.SmoothedClassifier(
        classifier,
        flags.sigma,
        batch_size=flags.batch,
        noise=flags.noise,
        shared_noise=flags.shared_noise,
        precision=flags.precision,
        strategy=strategy,
        deterministic=flags.deterministic,
    )


def work_on(smoothed, flags):
    """(images, indices) -> the certificates as (position, Certificates): at fixed n, to a precision, or one radius."""
    budget = {"alpha": flags.alpha, "n0": flags.n0, "seed": flags.seed}

    def work(images, indices) -> Iterator:
        if flags.radius is not None:
            each = deciding.certify_at_each
            decisions = each(smoothed, images, flags.radius, max_n=flags.n, indices=indices, **budget)
            p0 = sequential.required_probability(flags.radius, flags.sigma)
            return ((position, decision.as_certificates(p0)) for position, decision in decisions)
        if flags.radii is not None:
            return deciding.certify_grid_each(smoothed, images, flags.radii, max_n=flags.n, indices=indices, **budget)
        if flags.tolerance is not None:
            how = {**budget, "max_n": flags.n, "runner_up": flags.runner_up}
            return deciding.certify_to_each(smoothed, images, flags.tolerance, indices=indices, **how)
        return cohen.certify_each(smoothed, images, n=flags.n, indices=indices, runner_up=flags.runner_up, **budget)

    return work


def actors_work(flags, content: bytes | None):
    """What an actor of a cluster does, in its own process: `work_on` the same classifier, sent along where it is a file
    (the folder of a SavedModel must be there)."""
    startup.quiet_tensorflow()
    path = flags.files[0]
    with tempfile.TemporaryDirectory() as folder:
        if content is not None:
            path = os.path.join(folder, "classifier.keras")
            Path(path).write_bytes(content)
        classifier = cli.load_classifier(path, flags)
    return work_on(smoothed_from(flags, classifier), flags)


def place(flags, smoothed):
    """Where the work is done: a context manager of `work`."""
    if flags.on == "here":
        return contextlib.nullcontext(work_on(smoothed, flags))
    path = Path(flags.files[0])
    make = functools.partial(actors_work, flags, path.read_bytes() if path.is_file() else None)
    cluster = scattered.Cluster(flags.address, flags.actors, flags.block)
    return scattered.Scattered(cluster, make, work_on(smoothed, flags))
