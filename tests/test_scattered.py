"""Certification on a Ray cluster: the file of one process, with an actor killed in the middle, and a node lost.

By night, with Ray itself; by day its actors are objects here, and are lost when the test says so.
"""

import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

import numpy as np
import psutil
import pytest

from covkeras import models
from covkeras.certification import Certificates, read_certificates
from covkeras.commands.main import main
from covkeras.experiments import scattered

COMMAND = [sys.executable, "-m", "covkeras", "certify"]
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra [ray] is not installed")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    path = tmp_path_factory.mktemp("classifier") / "mine.keras"
    models.lenet((8, 8, 1)).save(path)
    return path


def claims(path):
    """What is claimed of each image, by its number: all but the times, and samples drawn for others' sake."""
    indices, labels, certificates = read_certificates(path)
    order = np.argsort(indices)
    assert len(set(indices.tolist())) == len(indices)
    columns = (indices, labels, certificates.label, certificates.radius, certificates.p_lower)
    return [column[order].tolist() for column in columns]


def alone(classifier, out, *flags):
    """The same file by one process, here."""
    assert main(["certify", str(classifier), "--sigma", "0.25", *flags, "--out", str(out)]) == 0
    return claims(out)


def actors_of(process) -> list[psutil.Process]:
    """The processes of a running command's actors."""
    return [child for child in psutil.Process(process.pid).children(recursive=True) if "_Actor" in child.name()]


def wait_for(condition, seconds: float = 200.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


@needs_ray
@pytest.mark.slow
@pytest.mark.nightly
def test_a_killed_actor_loses_nothing_and_does_nothing_twice(classifier, tmp_path):
    """kill -9 of one of two actors in the middle of a file: it ends as one process ends it."""
    flags = ["--n", "40000", "--max", "60", "--block", "4"]
    out = tmp_path / "ray.tsv"
    command = [*COMMAND, str(classifier), "--sigma", "0.25", *flags, "--on", "ray", "--actors", "2", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        wait_for(lambda: lines(out) > 4 or process.poll() is not None)
        victims = actors_of(process)
        assert len(victims) == 2 and lines(out) < 50, "it ended before it could be killed"
        victims[0].kill()
        output = process.communicate(timeout=200)[0]
    finally:
        process.kill()
    assert process.returncode == 0, output
    assert claims(out) == alone(classifier, tmp_path / "alone.tsv", *flags)


@needs_ray
@pytest.mark.slow
@pytest.mark.nightly
def test_a_lost_node_loses_nothing_and_a_running_cluster_is_joined(classifier, tmp_path):
    """Two nodes of one processor each, on this machine: the second is killed in the middle; its actor comes back on the
    first. Sequentially; then Ctrl-C, and the same command resumes."""
    flags = ["--radii", "0", "0.1", "0.2", "--max", "60", "--n", "200000", "--block", "4", "--n0", "64"]
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    common = ["--num-cpus", "1", "--disable-usage-stats"]
    # Not below tmp_path: the path of a socket must be short.
    place = {"RAY_TMPDIR": tempfile.mkdtemp(prefix="ray")}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 2}
    environment, log = {**os.environ, **token, **place}, (tmp_path / "head.log").open("w+")
    head = subprocess.Popen(
        [*ray, "start", "--head", "--port", "63791", "--include-dashboard=false", "--block", *common],
        env=environment,
        start_new_session=True,
        stdout=log,
        stderr=log,
    )
    wait_for(lambda: "ray start --address=" in (tmp_path / "head.log").read_text())
    address = re.search("--address='([^']+)'", (tmp_path / "head.log").read_text())[1]
    out, second = tmp_path / "ray.tsv", None
    command = [*COMMAND, str(classifier), "--sigma", "0.25", *flags, "--on", "ray", "--address", address]
    command += ["--out", str(out)]
    try:
        join = [*ray, "start", "--address", address, "--block", *common]
        second = subprocess.Popen(join, env=environment, start_new_session=True, stdout=log, stderr=log)
        time.sleep(10)
        how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}
        process = subprocess.Popen(command, **how)
        wait_for(lambda: lines(out) > 4 or process.poll() is not None)
        os.killpg(second.pid, signal.SIGKILL)
        wait_for(lambda: lines(out) > 12 or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=200)[0]
        assert process.returncode in (0, 130), output
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 0, done.stderr
    finally:
        for node in (second, head):
            if node and node.poll() is None:
                os.killpg(node.pid, signal.SIGKILL)
            if node:
                node.wait()
        log.close()
    assert claims(out) == alone(classifier, tmp_path / "alone.tsv", *flags)


class Lost(Exception):
    """Ray's word for a lost actor."""


class Pretended(types.ModuleType):
    """What `scattered` asks of Ray, in this process: the `deaths`-th calls are lost with their actor, which comes back,
    but those of `gone`. Those of `never` don't start: the cluster has no room."""

    def __init__(self, deaths=(), gone=(), never=()):
        super().__init__("ray")
        self.never, self.pending, self.asked_again = set(never), [], 0
        self.exceptions = types.SimpleNamespace(RayActorError=Lost, NodeDiedError=Lost)
        self.deaths, self.gone, self.calls, self.made, self.stopped = set(deaths), set(gone), 0, [], False

    def init(self, *args, **kwargs):
        self.asked = args, kwargs

    def cluster_resources(self):
        return {"CPU": 2.0}

    def put(self, value):
        return value

    def remote(self, kind):
        return types.SimpleNamespace(
            options=lambda **kwargs: types.SimpleNamespace(remote=lambda make: self.actor(kind, make))
        )

    def actor(self, kind, make):
        number, inner = len(self.made), kind(make)

        def certify(images, indices):
            self.calls += 1
            return (lambda: self.fail()) if self.calls in self.deaths else (lambda: inner.certify(images, indices))

        answers = iter([lambda: 1])

        def ping():
            # Once it is up; after its loss, if it comes back.
            first = next(answers, None)
            answer = first or ((lambda: self.fail()) if number in self.gone else (lambda: 1))
            self.pending += [answer] if number in self.never else []
            return answer

        asked = types.SimpleNamespace(options=lambda **kwargs: types.SimpleNamespace(remote=ping))
        self.made.append(types.SimpleNamespace(certify=types.SimpleNamespace(remote=certify), process=asked))
        return self.made[-1]

    def fail(self):
        raise Lost("gone")

    def wait(self, futures, num_returns, timeout):
        # The last asked is done first: blocks come back in any order.
        ready = [future for future in futures if future not in self.pending][-1:]
        if not ready:
            self.asked_again += 1
            assert self.asked_again < 3, "it waits for ever"
            # Then there is room.
            self.pending = [] if self.asked_again == 2 else self.pending
        return ready, [future for future in futures if future not in ready]

    def get(self, future):
        return future()

    def kill(self, actor):
        self.made.remove(actor)

    def shutdown(self):
        self.stopped = True


def squares(images, indices):
    """A procedure of certification that is quick: image i has the radius i / 10."""
    return (
        (k, Certificates.single(0, float(i) / 10, p_lower=0.9, samples=1, seconds=0.0)) for k, i in enumerate(indices)
    )


@pytest.mark.parametrize(
    ("deaths", "gone"), [((), ()), ((1,), ()), ((2, 3), ()), ((1, 2, 3, 4, 5), ()), ((2,), (0,)), ((2,), (1,))]
)
def test_every_image_is_yielded_once_whoever_is_lost(deaths, gone, monkeypatch):
    ray = Pretended(deaths, gone)
    monkeypatch.setitem(sys.modules, "ray", ray)
    images, indices = np.zeros((23, 8, 8, 1), np.float32), np.arange(100, 123)
    with scattered.Scattered(scattered.Cluster(actors=2, images=4), lambda: squares, squares) as work:
        found = dict(work(images, indices))
        # The arguments' check stays here.
        assert list(work(images[:0], indices[:0])) == [] and len(ray.made) == 2
    assert sorted(found) == list(range(23)) and ray.stopped and not ray.made
    assert all(found[k].radius[0] == (100 + k) / 10 for k in found)
    assert ray.asked[1]["_node_ip_address"] == "127.0.0.1"


def test_an_actor_that_never_starts_is_given_nothing(monkeypatch):
    """A lost node that the cluster still counts: the other actor does all; without one, it says so and waits."""
    for never in ((0,), (1,), (0, 1)):
        monkeypatch.setitem(sys.modules, "ray", Pretended(never=never))
        images, warns = np.zeros((9, 8, 8, 1), np.float32), contextlib.nullcontext()
        if len(never) == 2:
            warns = pytest.warns(UserWarning, match="no actor has started in 60 s: the cluster has no room")
        with scattered.Scattered(scattered.Cluster(actors=2, images=4), lambda: squares, squares) as work, warns:
            assert sorted(dict(work(images, np.arange(9)))) == list(range(9))


def test_without_an_actor_left_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", Pretended(deaths=range(1, 50), gone=(0, 1)))
    images = np.zeros((9, 8, 8, 1), np.float32)
    cluster = scattered.Scattered(scattered.Cluster(actors=2, images=4), lambda: squares, squares)
    with cluster as work, pytest.raises(RuntimeError, match="no actor of the cluster is left"):
        list(work(images, np.arange(9)))
    ray = Pretended()
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(ValueError, match="actors must be at most 2"):
        scattered.Scattered(scattered.Cluster(actors=3), lambda: squares, squares).__enter__()
    assert ray.stopped


def test_flags_of_a_cluster_are_refused_without_one(classifier, capsys):
    for flags, message in (
        (["--actors", "2"], "give --address and --actors with --on ray"),
        (["--on", "ray", "--block", "0"], "block must be a whole number >= 1"),
        (["--on", "ray", "--runner-up", "--radius", "1"], "give --runner-up where radii are measured"),
    ):
        assert main(["certify", str(classifier), "--sigma", "0.25", *flags]) == 2
        assert message in capsys.readouterr().err


def test_without_ray_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(ValueError, match=r"pip install 'covkeras\[ray\]'"),
        scattered.Scattered(scattered.Cluster(), lambda: None, lambda images, indices: []),
    ):
        pass
