"""Shared by all tests: two logical CPU devices, fixed seeds, and what sampling tests need."""

import contextlib
import gc
import importlib.util
import io
import os
import types
from pathlib import Path

# Keras looks at the environment when it is imported; a test must not depend on the caller's.
os.environ["KERAS_BACKEND"] = "tensorflow"
# Three workers, and the processes they start, share two cores: pools of threads in each would wait for one another.
os.environ["TF_NUM_INTRAOP_THREADS"] = os.environ["TF_NUM_INTEROP_THREADS"] = "1"

import forked

from covkeras.runtime import startup

startup.quiet_tensorflow(logical_cpus=2)

import keras  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from covkeras import datasets  # noqa: E402

# Prepared TFDS folders for the tests marked real_data: named by the environment, or beside the checkout.
_BESIDE = Path(__file__).parents[2] / "shared" / "tfds"
DATA_DIR = os.environ.get("COVKERAS_DATA_DIR") or (str(_BESIDE) if _BESIDE.is_dir() else None)


# Their tests take up to a minute each: begun last they would run alone.
LONG = ("test_tuning", "test_one_method", "test_distributed", "test_runs", "test_attacking", "test_serving")


# Modules that train many networks for a few steps: TensorFlow's graph optimizer would take a sixth of their time, more
# than it saves there. They do without, and so do the processes they start, unless FULL asks for it (as by night); all
# others have it, the programs, certificates, exports and servers among them.
SHORT = {
    f"test_{name}"
    for name in (
        *("any_model", "comparing", "denoising", "keras_habits", "objectives", "odd_files", "one_method"),
        *("own_method", "prepared", "runs", "trainer", "tuning", "changed_inputs", "handed_in", "own_images"),
        *("copies", "numbers"),
    )
}
FULL = os.environ.get("COVKERAS_TESTS_FULL") == "1"


def pytest_collection_modifyitems(config, items):
    """Leaves the tests on real data out where there is none; the long ones come first."""
    items.sort(key=lambda item: item.path.stem not in LONG)
    if DATA_DIR is None:
        there = [item for item in items if not item.get_closest_marker("real_data")]
        config.hook.pytest_deselected(items=[i for i in items if i not in there])
        items[:] = there


@pytest.fixture(autouse=True, scope="module")
def frozen():
    """Takes what a module's graphs leave behind out of the garbage collector's sight: in a worker that has run for
    minutes a single collection of millions of objects takes seconds, in the middle of somebody else's test."""
    yield
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def graphs(request):
    """As users have them, or not optimized; see SHORT."""
    plain = not FULL and request.module.__name__ in SHORT
    forked.optimize_graphs(not plain)
    yield
    forked.optimize_graphs(True)


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def digits():
    return datasets.load("digits", "train")


def call_program(path, *arguments, cwd=None) -> types.SimpleNamespace:
    """Runs a program's main in this process, which has TensorFlow up already: returncode, stdout, stderr."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.chdir(cwd or Path.cwd()):
        try:
            code = program.main([str(a) for a in arguments])
        except SystemExit as stop:
            code = stop.code
    return types.SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


def grid_images(rng, count: int, size: int) -> np.ndarray:
    """Random images on the 8-bit grid, (count, size, size, 1) float32."""
    return rng.integers(0, 256, (count, size, size, 1)).astype(np.float32) / np.float32(255)


def small_classifier(input_shape=(8, 8, 1), classes=3, activation="relu"):
    """Two convolutions with average pooling and a dense head: small enough for explicit Jacobians."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input(input_shape),
            layers.Conv2D(4, 3, padding="same", activation=activation),
            layers.AveragePooling2D(2),
            layers.Conv2D(5, 3, activation=activation),
            layers.Flatten(),
            layers.Dense(classes),
        ]
    )
