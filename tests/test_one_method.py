"""A method trains the same from every program; precision by the device; splits alike; rules of the user's."""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import forked
import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import call_program, small_classifier
from keras import layers, ops
from kit import free_ports

from covkeras import MomentNetwork, Moments, datasets, moments
from covkeras.experiments import fitting, precision, recipes
from covkeras.experiments.comparing import Entry
from covkeras.experiments.recipes import Recipe
from covkeras.experiments.runs import RunFolder
from covkeras.experiments.tuning import CertifiedHyperModel, Range
from covkeras.moments import Context, Gaussian, GaussianInput, propagate
from covkeras.moments.adjoint import adjoint_margin, calibrate_gates, noisy_pass
from covkeras.objectives import METHODS
from covkeras.runtime import devices

TRAINING = Path(__file__).parent.parent / "training"

# Published lam at sigma .25, .5 and 1, on MNIST and on all but it.
PUBLISHED = {
    "macer": {"mnist": (16, 16, 6), "cifar10": (12, 12, 12)},
    "consistency": {"mnist": (10, 5, 5), "cifar10": (20, 10, 10)},
    "covariance_radius": {"mnist": (4, 4, 4), "cifar10": (4, 4, 4)},
}


def parsed(name, *flags) -> Recipe:
    from covkeras.commands import cli

    program = importlib.import_module(f"covkeras.commands.{name}")
    return cli.recipe_from(program.parse([*map(str, flags)]))


@pytest.mark.parametrize("method", PUBLISHED)
@pytest.mark.parametrize("data", ["mnist", "cifar10"])
def test_every_program_trains_a_method_with_its_authors_weights(method, data):
    for sigma, lam in zip((0.25, 0.5, 1.0), PUBLISHED[method][data], strict=True):
        flags = ["--recipe", data, "--method", method, "--sigma", sigma]
        for name in ("train", "search", "noisy_labels"):
            assert parsed(name, *flags).objective().lam == lam, (name, sigma)
        compared = Entry.parse(method, recipes.find(data).replace(sigma=sigma, method="cross_entropy")).recipe
        assert compared.objective().lam == lam
        assert parsed("train", *flags).objective().get_config() == compared.objective().get_config()
        if method != "covariance_radius":
            # A file that names the method alone; and what is told otherwise wins.
            text = json.dumps({"method": method, "data": data, "sigma": sigma})
            assert Recipe.from_json(text).lam == lam
        assert parsed("train", *flags, "--lam", 2.5).lam == 2.5


def test_a_recipes_weights_stay_its_own_methods(tmp_path):
    mnist = recipes.find("mnist")
    assert parsed("train", "--recipe", "mnist", "--sigma", 0.25) == mnist.replace(sigma=0.25)
    mine = mnist.with_method("macer").replace(lam=7.0)
    (tmp_path / "mine.json").write_text(mine.to_json())
    assert parsed("train", "--recipe", tmp_path / "mine.json", "--sigma", 1.0).lam == 7.0
    # The reference of a run, and a baseline of a search, are that method's too.
    assert mine.with_method("consistency").objective().lam == 5
    assert mine.with_method("gaussian_augmentation").objective().copies == 1


def test_a_search_over_methods_gives_each_its_own(tmp_path):
    import keras_tuner as kt

    base = recipes.find("digits").replace(sigma=1.0)
    model = CertifiedHyperModel(base, [Range.parse("method=macer,consistency"), Range.parse("lam=0,3")], tmp_path)
    hp = kt.HyperParameters()
    for one in model.space:
        one.declare(hp)
    hp.values = {"method": "macer", "lam": 3.0}
    assert model.trial_recipe(hp).lam == 3.0
    alone = CertifiedHyperModel(base, [Range.parse("method=macer,consistency")], tmp_path)
    lams = []
    for method in ("macer", "consistency"):
        hp = kt.HyperParameters()
        hp.values = {"method": method}
        lams.append(alone.trial_recipe(hp).lam)
    assert lams == [6, 5]


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_publishes_is_what_it_takes(method):
    kind = METHODS[method]
    for data in ("mnist", "cifar10", "svhn"):
        assert set(kind.published(data, 0.3, 90, 10)) <= set(kind.hyperparameters())
        kind(sigma=0.3, **kind.published(data, 0.3, 90, 10))


FLAGS = {
    "with units": ({"fma", "avx512_bf16"}, "mixed_bfloat16"),
    "amx": ({"amx_bf16", "amx_tile"}, "mixed_bfloat16"),
    "without": ({"fma", "avx2", "avx512f"}, "float32"),
    "unknown": (set(), "float32"),
}


@pytest.mark.parametrize("kind", FLAGS)
def test_precision_is_chosen_by_the_device_and_recorded(kind, monkeypatch, tmp_path):
    flags, expected = FLAGS[kind]
    monkeypatch.setattr(devices, "processor_flags", lambda: flags)
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    said = []
    recipe = recipes.find("mnist").replace(precision="auto")
    settled = precision.settled(recipe, report=said.append)
    assert settled.precision == expected and said[0].startswith(f"precision: {expected}")
    # A job that was begun goes on as it began, on whatever processor.
    begun = recipe.replace(precision="mixed_float16")
    assert precision.settled(recipe, begun, report=said.append).precision == "mixed_float16"
    assert precision.settled(begun, report=said.append) == begun and len(said) == 2
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    assert devices.best_precision()[0] == "float32"


@pytest.mark.parametrize(
    "capability, expected", [((9, 0), "mixed_bfloat16"), ((7, 5), "mixed_float16"), ((6, 1), "float32")]
)
def test_precision_of_gpus(capability, expected, monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["gpu"])
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: {"compute_capability": capability})
    assert devices.best_precision()[0] == expected


def test_an_explicit_slow_choice_is_warned_of_with_the_factor(monkeypatch):
    monkeypatch.setattr(devices, "processor_flags", set)
    import time

    said, recipe = [], recipes.find("mnist").replace(precision="mixed_bfloat16")
    slow = lambda one: lambda: time.sleep(0.05 if one.precision == "mixed_bfloat16" else 0.01)  # noqa: E731
    factor = precision.warn_if_slow(recipe, slow, said.append)
    assert 3 < factor < 8 and f"mixed_bfloat16 is {factor:.1f} times slower than float32" in said[0]
    fast = lambda one: lambda: time.sleep(0.01 if one.precision == "mixed_bfloat16" else 0.05)  # noqa: E731
    assert precision.warn_if_slow(recipe, fast, said.append) < 1 and len(said) == 1
    for quiet in ("float32", "auto"):
        assert precision.warn_if_slow(recipe.replace(precision=quiet), slow, said.append) is None
    monkeypatch.setattr(devices, "processor_flags", lambda: {"amx_bf16"})
    assert precision.warn_if_slow(recipe, slow, said.append) is None


def test_run_records_its_choice_and_resumes_with_it(tmp_path, monkeypatch):
    flags = ["--epochs", 1, "--switch-epoch", 0, "--decay-epochs", "--reference", "none", "--certify-images", 1]
    flags += ["--certify-n", 100, "--precision", "auto", "--run-dir", tmp_path / "run"]
    monkeypatch.setattr(devices, "processor_flags", set)
    first = call_program(TRAINING / "run.py", *flags)
    assert first.returncode == 0 and "precision: float32 (this processor has no bfloat16 units)" in first.stderr
    assert RunFolder(tmp_path / "run").recipe().precision == "float32"
    monkeypatch.setattr(devices, "processor_flags", lambda: {"amx_bf16"})
    again = call_program(TRAINING / "run.py", *flags)
    assert again.returncode == 0 and "precision: float32 (as the folder records)" in again.stderr
    with pytest.raises(ValueError, match="precision settled"):
        fitting.train(recipes.find("mnist"), RunFolder(tmp_path / "other"))


def test_parts_of_a_batch_are_the_batch(digits):
    for augmentation in ("none", "crop_flip"):
        whole = next(iter(digits.batches(32, 3, epoch=1, augmentation=augmentation)))
        parts = [next(iter(digits.batches(32, 3, epoch=1, augmentation=augmentation, part=(i, 2)))) for i in range(2)]
        for j in range(2):
            assert np.array_equal(np.concatenate([p[j] for p in parts]), whole[j])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_streamed_splits_are_as_those_in_memory(tmp_path):
    """Endless by default, the first images when limited, in parts."""
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data(num_examples=60):
        train = datasets.load("imagenet", "train", tmp_path, 32)
        some = train.limited(8)
        assert len(some) == 8 and some.records == "train[:8]"
        drawn = [np.sort(y.numpy()) for _, y in some.batches(8, 3, augmentation="none").take(3)]
        assert len(drawn) == 3
        whole = next(iter(train.batches(20, 3, epochs=1)))
        parts = [next(iter(train.batches(20, 3, epochs=1, part=(i, 2)))) for i in range(2)]
        assert np.array_equal(np.concatenate([p[0] for p in parts]), whole[0])
        assert len(list(train.batches(20, 3).take(7))) == 7
        with pytest.raises(ValueError, match="is not the beginning of a split"):
            datasets.load("imagenet", "validation", tmp_path, 32).limited(3)


@keras.saving.register_keras_serializable("tests")
class Square(layers.Layer):
    def call(self, inputs):
        return inputs * inputs


@keras.saving.register_keras_serializable("tests")
class Doubled(layers.Layer):
    def call(self, inputs):
        return 2.0 * inputs


@keras.saving.register_keras_serializable("tests")
class Neighbours(layers.Layer):
    """Nonlinear, and not element by element."""

    def call(self, inputs):
        return inputs * ops.roll(inputs, 1, axis=-1)


@propagate.register(Square)
def square(layer, gaussian, context):
    """Mean m^2 + s^2; cov 4 s^2 s^2 of a zero mean's Gaussian, roughly (approximate)."""
    variance = ops.tile(ops.diagonal(gaussian.cov), (gaussian.mean.shape[-1] // gaussian.cov.shape[-1],))
    return Gaussian(ops.square(gaussian.mean) + ops.cast(variance, gaussian.mean.dtype), 2.0 * ops.square(gaussian.cov))


@propagate.register(Doubled, Neighbours)
def doubled(layer, gaussian, context):
    return Gaussian(layer(gaussian.mean), 4.0 * gaussian.cov)


def squaring():
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [keras.Input((4, 4, 1)), layers.Conv2D(3, 3), Doubled(), Square(), layers.Flatten(), layers.Dense(2)]
    )


def test_a_users_nonlinear_rule_reaches_every_estimate(rng):
    """Its gate, its calibration and what it adds beyond first order, against 10^5 samples.

    The margin is a square form of Gaussians: Var = 4 m' A S A m + 2 tr (S A S A) exactly, of which first order has the
    first part, and the units' own kappa the second's diagonal.
    """
    model = squaring()
    network = MomentNetwork(model, 0.1, r_max=0.0)
    assert network.gate_shapes == ((2, 2, 3),)
    images = rng.random((3, 4, 4, 1)).astype("float32")
    gates = calibrate_gates(network, images, copies=400)
    assert [g.shape for g in gates] == [(3,)]
    logits, units = noisy_pass(network, tf.constant(images))
    np.testing.assert_allclose(logits, model(images), rtol=1e-5)
    np.testing.assert_allclose(units[0], 2.0 * np.asarray(model.layers[0](images)), rtol=1e-5)

    noise = rng.normal(size=(100_000, 4, 4, 1)).astype("float32") * 0.1
    estimate = adjoint_margin(network, images, gates)
    first_order = adjoint_margin(network, images, gates, kappa=False)
    for k in range(3):
        sampled = np.asarray(model.predict(images[k] + noise, batch_size=20_000, verbose=0), np.float64)
        label, other = int(estimate.label[k]), int(estimate.runner_up[k])
        margin = sampled[:, label] - sampled[:, other]
        # Five standard errors of the sampled mean and deviation: false alarms below 1e-6.
        assert abs(float(estimate.mean[k]) - margin.mean()) < 5 * margin.std() / 316 + 0.01 * margin.std()
        assert float(first_order.sd[k]) < float(estimate.sd[k]) < 1.25 * margin.std()
        assert float(estimate.sd[k]) == pytest.approx(margin.std(), rel=0.15)


def test_a_users_nonlinear_rule_trains_with_the_adjoint_radius(rng):
    from covkeras import CertifiedTrainer, objectives

    images, labels = rng.random((16, 4, 4, 1)).astype("float32"), np.arange(16) % 2
    for objective in (objectives.AdjointRadius(0.1, gates=g) for g in ("calibrated", "propagated")):
        trainer = CertifiedTrainer(squaring(), objective)
        trainer.compile("sgd")
        history = trainer.fit(images, labels, epochs=3, verbose=0, shuffle=False).history
        assert np.isfinite(history["loss"]).all()


def test_a_nonlinear_layer_that_mixes_its_units_is_refused_by_the_adjoint_estimate(rng):
    model = keras.Sequential(
        [keras.Input((4, 4, 2)), layers.Conv2D(3, 3), Neighbours(), layers.Flatten(), layers.Dense(2)]
    )
    network = MomentNetwork(model, 0.1)
    images = rng.random((1, 4, 4, 2)).astype("float32")
    network(images)  # the forward moments are the user's own rule's
    for refused in (lambda: adjoint_margin(network, images), lambda: calibrate_gates(network, images)):
        with pytest.raises(NotImplementedError, match=r"Neighbours .* is neither linear nor element-wise"):
            refused()


def test_r_max_of_the_context_wins_and_none_is_the_layers(rng):
    conv = layers.Conv2D(2, 3)
    conv.build((None, 5, 5, 1))
    images = rng.random((1, 5, 5, 1)).astype("float32")
    pair = GaussianInput(0.5)(images)
    base = Moments(conv, r_max=0.0)(pair)[1]
    np.testing.assert_allclose(Moments(conv, r_max=0.3)(pair)[1], 1.3 * base, rtol=1e-5)
    for context, factor in ((Context(), 1.3), (Context(r_max=0.0), 1.0), (Context(r_max=0.5), 1.5)):
        np.testing.assert_allclose(Moments(conv, r_max=0.3)(pair, context=context)[1], factor * base, rtol=1e-5)
    model = keras.Sequential([keras.Input((5, 5, 1)), conv, layers.GlobalAveragePooling2D()])
    network = MomentNetwork(model, 0.5, r_max=0.3)
    cov = network(images, context=Context(r_max=0.0)).cov
    np.testing.assert_allclose(network(images).cov, 1.3 * cov, rtol=1e-5)
    np.testing.assert_allclose(network(images, context=Context()).cov, 1.3 * cov, rtol=1e-5)


def test_gate_shapes_are_those_of_the_network_whatever_is_propagated(rng):
    network = MomentNetwork(small_classifier(), 0.5)
    shapes = network.gate_shapes
    assert shapes == ((8, 8, 4), (2, 2, 5))
    network.propagate(
        moments.Gaussian(tf.zeros((2, 8, 8, 1)), tf.eye(1)), Context(rectify=lambda gaussian, _: gaussian)
    )
    assert network.gate_shapes == shapes


def workers(recipe, folder, *flags):
    """run.py in two processes on this machine's loopback."""
    folder.mkdir(exist_ok=True)
    (folder / "recipe.json").write_text(recipe.to_json())
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}
    command = [sys.executable, str(TRAINING / "run.py"), "--recipe", str(folder / "recipe.json")]
    started = []
    for index in range(2):
        config = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        arguments = [*command, "--run-dir", str(folder / "run"), *flags]
        started.append(forked.Popen(arguments, env={**os.environ, "TF_CONFIG": config}, **pipes))
    return started


SHARED = recipes.find("digits").replace(
    epochs=2, switch_epoch=1, decay_epochs=(), reference="none", certify_images=2, certify_n=100, label_noise=0.1
)


@pytest.mark.slow
def test_several_machines_watch_as_one_does(tmp_path):
    """Validation and clean-test columns, TensorBoard, a checkpoint within the epoch: as in one process."""
    alone = RunFolder(tmp_path / "alone")
    alone.claim(SHARED)
    fitting.train(SHARED, alone)
    outputs = [p.communicate(timeout=240) for p in workers(SHARED, tmp_path / "two")]
    together = RunFolder(tmp_path / "two" / "run")
    rows = [[{k: float(v) for k, v in row.items()} for row in folder.history()] for folder in (alone, together)]
    assert rows[0] and set(rows[0][0]) == set(rows[1][0]), outputs
    assert {"val_loss", "val_accuracy", "clean_test_accuracy", "lam"} <= set(rows[1][0])
    for one, two in zip(*rows, strict=True):
        for name in one:
            assert two[name] == pytest.approx(one[name], rel=2e-3, abs=1e-3), name
    assert list((together.path / "tensorboard").rglob("events*"))


@pytest.mark.slow
def test_several_machines_stop_at_a_loss_that_is_not_finite(tmp_path):
    recipe = dataclasses.replace(SHARED, learning_rate=1e18, label_noise=0.0)
    outputs = [p.communicate(timeout=240) + (p.returncode,) for p in workers(recipe, tmp_path / "two")]
    assert [o[2] for o in outputs] == [2, 2] and all("the loss became" in o[1] for o in outputs), outputs
    assert (tmp_path / "two" / "run" / "non_finite_batch.npz").exists()


@pytest.mark.slow
def test_several_machines_stop_after_the_same_step_and_resume(tmp_path):
    import signal
    import time

    recipe = SHARED.replace(epochs=12, train_images=256, label_noise=0.0, switch_epoch=0)
    started = workers(recipe, tmp_path / "two", "--checkpoint-minutes", "0.001")
    checkpoints, end = tmp_path / "two" / "run" / "checkpoints", time.monotonic() + 120
    while not list(checkpoints.glob("epoch*.npz")) and time.monotonic() < end:
        time.sleep(0.02)
    started[1].send_signal(signal.SIGTERM)
    outputs = [p.communicate(timeout=120) for p in started]
    assert [p.returncode for p in started] == [128 + signal.SIGTERM] * 2, outputs
    assert all("To resume: run the same command" in o[1] for o in outputs)
    history = len(RunFolder(tmp_path / "two" / "run").history())
    assert list(checkpoints.glob("epoch*.npz")) and history < 12
    again = workers(recipe, tmp_path / "two")
    outputs = [p.communicate(timeout=240) for p in again]
    assert [p.returncode for p in again] == [0, 0], outputs
    assert [row["epoch"] for row in RunFolder(tmp_path / "two" / "run").history()] == [str(i) for i in range(12)]
