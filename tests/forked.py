"""Processes for the tests without TensorFlow's three seconds of imports each: forked from one that has them done.

`Popen` and `run` stand for subprocess's own and take the same arguments. A command that is not this Python running a
script or `-c` goes to subprocess as it is. What a test says about importing itself (how long `--help` takes, what
`import covkeras` draws in) belongs to subprocess.

The server is imported into and forks before TensorFlow has looked for devices or started its threads. A child is
handed over to the test's process (the nearest "subreaper" above it, Linux), so signals, exit codes and `wait` are
subprocess's.
"""

import atexit
import ctypes
import inspect
import json
import os
import socket
import subprocess
import sys
from functools import cache

_PR_SET_CHILD_SUBREAPER = 36
_PLAIN = "COVKERAS_TESTS_PLAIN_GRAPHS"
_SIGNATURE = inspect.signature(subprocess.Popen._execute_child)


@cache
def _server() -> socket.socket:
    """Starts the process that forks, once in each test worker, and returns the way to it."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        command = [sys.executable, __file__, str(theirs.fileno())]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)

    @atexit.register
    def end():
        ours.close()  # it ends when nobody can ask any more
        process.wait()

    return ours


def _takes(command) -> bool:
    """Whether a command is this Python with a script or a program in its arguments, and no option of Python's."""
    if isinstance(command, str) or not sys.platform.startswith("linux"):
        return False
    head, *rest = map(str, command)
    return head == sys.executable and bool(rest) and (rest[0] == "-c" or not rest[0].startswith("-"))


class Popen(subprocess.Popen):
    """subprocess.Popen, whose child is forked by the server instead of started."""

    def _execute_child(self, *given):
        of = _SIGNATURE.bind(self, *given).arguments
        if not _takes(of["args"]):
            return super()._execute_child(*given)
        pipes = [of["p2cread"], of["c2pwrite"], of["errwrite"]]
        wanted = [own if own != -1 else standard for standard, own in enumerate(pipes)]
        what = {
            "arguments": [str(a) for a in of["args"][1:]],
            "folder": str(of["cwd"] or os.getcwd()),
            "environment": dict(os.environ if of["env"] is None else of["env"]),
        }
        server = _server()
        try:
            # A packet holds 200 kB at most; an environment with the arguments stays far below.
            socket.send_fds(server, [json.dumps(what).encode()], wanted)
            self.pid = int(server.recv(64))
            self._child_created = True
        finally:
            names = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
            self._close_pipe_fds(*(of[name] for name in names))


def run(command, *, capture_output=False, timeout=None, check=False, **options) -> subprocess.CompletedProcess:
    """subprocess.run for what the tests need of it."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(command, **options) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


def _serve(way: socket.socket) -> list[str]:
    """Forks for each request. Returns in the child only: its arguments."""
    while True:
        message, files, _, _ = socket.recv_fds(way, 1 << 20, 3)
        if not message:
            os._exit(0)
        started = os.fork()
        if started:
            os.waitpid(started, 0)
            for file in files:
                os.close(file)
            continue
        between = os.getpid()
        if os.fork():
            os._exit(0)  # the child's parent is gone: it is the test's process's now
        # The pid is told when the parent is gone: the test may wait for its child at once.
        while os.getppid() == between:
            pass
        what = json.loads(message)
        for standard, file in enumerate(files):
            os.dup2(file, standard)
        for file in files:
            os.close(file)
        os.chdir(what["folder"])
        os.environ.clear()
        os.environ.update(what["environment"])
        way.send(str(os.getpid()).encode())
        way.close()
        return what["arguments"]


def optimize_graphs(wanted: bool) -> None:
    """Whether TensorFlow optimizes graphs from here on, in this process and those that it starts."""
    import tensorflow as tf

    os.environ[_PLAIN] = "" if wanted else "1"
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": not wanted})


def _import_what_takes_long() -> None:
    """What every program imports. Nothing of it may look for devices: TensorFlow's threads would not survive a fork."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    error = os.dup(2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    import tensorflow  # noqa: F401

    os.dup2(error, 2)
    os.close(error)


def _become(arguments: list[str]) -> dict:
    """Makes this process look like a Python just started with these arguments; what it is to run, and as what."""
    for name, standard in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        line = {"line_buffering": True, "errors": "backslashreplace"} if name == "stderr" else {}
        stream = open(standard, "r" if name == "stdin" else "w", closefd=False)  # noqa: SIM115
        if line:
            stream.reconfigure(**line)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    import random

    random.seed()
    sys.argv = arguments[:1] + (arguments[2:] if arguments[0] == "-c" else arguments[1:])
    if os.environ.get(_PLAIN):
        optimize_graphs(False)
    sys.path[0] = "" if arguments[0] == "-c" else os.path.dirname(os.path.abspath(arguments[0]))
    return arguments


if __name__ == "__main__":
    import gc
    import runpy

    _import_what_takes_long()
    gc.freeze()
    _given = _become(_serve(socket.socket(fileno=int(sys.argv[1]))))
    if _given[0] == "-c":
        exec(compile(_given[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_path(_given[0], run_name="__main__")
