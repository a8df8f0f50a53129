"""Certification on a Ray cluster: blocks of images as tasks, a classifier in each actor, one writer of the file.

An image's noise is a function of (seed, index), so that its certificate does not depend on who made it. The block of a
killed actor is given to another one, and Ray starts the actor anew, on another node where one was lost and there is
room; the driver alone writes, each image once.
"""

import dataclasses
import os
import warnings
from collections.abc import Callable, Iterator

import numpy as np

from covkeras.certification.certificates import Certificates

# Seconds without any actor after which it says so.
PATIENCE = 60
# What a hint costs where Ray is missing.
NEEDED = "--on ray needs Ray: pip install 'covkeras[ray]'."


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Where actors run.

    address: "" starts a local cluster in this process; "auto", or HOST:PORT, joins one that runs. actors: how many, 0
    for one a GPU, or one a core without any. images: of a block, the task of an actor.
    """

    address: str = ""
    actors: int = 0
    images: int = 64


class _Actor:
    """One classifier on one device, in a process of its own.

    make: () -> (images, indices) -> iterator of (position, Certificates of length 1).
    """

    def __init__(self, make: Callable):
        self.work = make()

    def certify(self, images: np.ndarray, indices: np.ndarray) -> list[tuple[int, Certificates]]:
        return list(self.work(images, indices))

    def process(self) -> int:
        return os.getpid()


class Scattered:
    """The actors of a cluster; a context manager, of what is called as any other procedure of certification.

        with Scattered(Cluster(), make, local) as work:
            certify_images(..., work=work)

    Args:
        cluster: where. make: a function that Ray can send, () -> work, of an actor. local: the same work here: it
            checks the arguments, before the cluster is asked for anything.
    """

    def __init__(self, cluster: Cluster, make: Callable, local: Callable):
        self.cluster, self.make, self.local = cluster, make, local
        self.actors: list = []

    def __enter__(self) -> Callable:
        try:
            import ray
        except ModuleNotFoundError:
            raise ValueError(NEEDED) from None
        self.ray, address = ray, self.cluster.address
        # Nothing is told to anyone.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
        if address:
            ray.init(address, log_to_driver=False, logging_level="ERROR")
        else:
            # A machine without another interface has no other address than its own.
            ray.init(_node_ip_address="127.0.0.1", num_cpus=os.cpu_count(), **quiet)
        resources = ray.cluster_resources()
        gpus, cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
        count = self.cluster.actors or gpus or cores
        if count > (gpus or cores):
            ray.shutdown()
            raise ValueError(f"actors must be at most {gpus or cores}, the cluster's devices, got {count}.")
        options = {"num_gpus": 1, "num_cpus": 1} if gpus else {"num_cpus": 1}
        options["max_restarts"] = -1
        if not gpus:
            threads = {"TF_NUM_INTRAOP_THREADS": str(max(1, cores // count))}
            options["runtime_env"] = {"env_vars": {**threads, "TF_CPP_MIN_LOG_LEVEL": "3"}}
        # Kept as long as an actor may be started anew with it: Ray would drop what it stored for the first start.
        self.sent, remote = ray.put(self.make), ray.remote(_Actor)
        self.actors = [remote.options(**options).remote(self.sent) for _ in range(count)]
        return self.work

    def __exit__(self, *exception) -> None:
        for actor in self.actors:
            self.ray.kill(actor)
        self.ray.shutdown()

    def work(self, images: np.ndarray, indices: np.ndarray) -> Iterator[tuple[int, Certificates]]:
        """Yields (position, Certificates of length 1) in the order in which blocks are done."""
        if not len(images):
            return iter(self.local(images, indices))
        return self._scattered(images, np.asarray(indices))

    def _scattered(self, images, indices) -> Iterator[tuple[int, Certificates]]:
        size, lost = self.cluster.images, (self.ray.exceptions.RayActorError, self.ray.exceptions.NodeDiedError)
        waiting = list(range(0, len(images), size))[::-1]
        # An actor gets a block once it answers: one for which the cluster has no room, since a node is lost and not yet
        # missed, would keep it for ever.
        idle, running, returning, told = [], {}, {_answer(actor): actor for actor in self.actors}, False
        while waiting or running:
            while waiting and idle:
                first, actor = waiting.pop(), idle.pop()
                part = slice(first, first + size)
                running[actor.certify.remote(images[part], indices[part])] = (first, actor)
            ready, _ = self.ray.wait([*running, *returning], num_returns=1, timeout=PATIENCE)
            if not ready:
                if not running and not told:
                    warnings.warn(
                        f"no actor has started in {PATIENCE} s: the cluster has no room for one.", stacklevel=2
                    )
                    told = True
                continue
            (done,) = ready
            try:
                result = self.ray.get(done)
            except lost as error:
                self._lose(done, error, waiting, running, returning)
                continue
            if done in returning:
                idle.append(returning.pop(done))
                continue
            first, actor = running.pop(done)
            idle.append(actor)
            for position, certificate in result:
                yield first + position, certificate

    def _lose(self, done, error, waiting, running, returning) -> None:
        """Takes a lost actor's block back, for whoever is idle first, and waits for the actor to be started anew: where
        its node is gone, that may be never."""
        if done in returning:
            # It will not come back.
            returning.pop(done)
        else:
            first, actor = running.pop(done)
            waiting.append(first)
            returning[_answer(actor)] = actor
        if not running and not returning:
            raise RuntimeError(f"no actor of the cluster is left ({error}). The same command goes on.") from None


def _answer(actor):
    """Ray's promise of the actor's answer, wherever and whenever it is started."""
    return actor.process.options(max_task_retries=-1).remote()
