"""What a program has set for its whole process, in Keras or TensorFlow: it works, or is refused with the remedy."""

import codecs
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import covkeras as ck

SIGMA = 0.25


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 64)
    images = np.zeros((64, 8, 8, 1), np.float32)
    for image, label in zip(images, labels, strict=True):
        image[label // 2 * 4 :, label % 2 * 4 :] = 1.0
    return np.round(255 * (0.6 * images + 0.4 * rng.random(images.shape))).astype(np.float32) / 255, labels


@pytest.fixture
def classifier():
    keras.utils.set_random_seed(0)
    return ck.models.lenet((8, 8, 1), 4, filters=(4,), units=8)


@pytest.fixture
def checked_numerics():
    tf.debugging.enable_check_numerics()
    yield
    tf.debugging.disable_check_numerics()


def _loss(classifier, method, data) -> float:
    trainer = ck.CertifiedTrainer(classifier, method)
    trainer.compile(keras.optimizers.SGD(0.01))
    return float(trainer.fit(*data, epochs=1, batch_size=32, verbose=0).history["loss"][0])


@pytest.mark.parametrize("floatx", ["float64", "bfloat16"])
def test_every_floatx_trains_the_default_method(data, classifier, floatx):
    expected = _loss(classifier, ck.objectives.SteppedConsistency(SIGMA), data)
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(floatx)
    try:
        keras.utils.set_random_seed(0)
        again = ck.models.lenet((8, 8, 1), 4, filters=(4,), units=8)
        assert {w.dtype for w in again.weights} == {floatx, "float32"}
        loss = _loss(again, ck.objectives.SteppedConsistency(SIGMA), data)
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")
    assert np.isfinite(loss) and abs(loss - expected) < 0.5


def test_several_dtypes_have_the_gradients_of_one(data):
    """A body in float64 under a head in float32: the step is that of float32, to its rounding."""
    moved = []
    for dtype in ("float32", "float64"):
        keras.utils.set_random_seed(1)
        classifier = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                keras.layers.Conv2D(4, 3, activation="relu", dtype=dtype),
                keras.layers.Flatten(dtype=dtype),
                keras.layers.Dense(4, dtype="float32"),
            ]
        )
        # The same weights in both: a float64 initializer draws others.
        rng = np.random.default_rng(2)
        classifier.set_weights([0.1 * rng.normal(size=w.shape) for w in classifier.weights])
        _loss(classifier, ck.objectives.SteppedConsistency(SIGMA), data)
        moved.append([np.asarray(w, np.float64) for w in classifier.get_weights()])
    for one, other in zip(*moved, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_certificates_are_the_same_where_numerics_are_checked(data, classifier, shared, checked_numerics):
    smoothed = ck.SmoothedClassifier(classifier, SIGMA, shared_noise=shared)
    watched = smoothed.certify(data[0][:3], n0=32, n=500), smoothed.certify_at(data[0][:3], 0.1, max_n=500)
    tf.debugging.disable_check_numerics()
    smoothed = ck.SmoothedClassifier(classifier, SIGMA, shared_noise=shared)
    plain = smoothed.certify(data[0][:3], n0=32, n=500), smoothed.certify_at(data[0][:3], 0.1, max_n=500)
    np.testing.assert_array_equal(watched[0].radius, plain[0].radius)
    np.testing.assert_array_equal(watched[0].label, plain[0].label)
    np.testing.assert_array_equal(watched[1].certified, plain[1].certified)


def test_the_papers_method_trains_where_numerics_are_checked(data, classifier, checked_numerics):
    watched = _loss(classifier, ck.objectives.CovarianceRadius(SIGMA), data)
    tf.debugging.disable_check_numerics()
    keras.utils.set_random_seed(0)
    again = ck.models.lenet((8, 8, 1), 4, filters=(4,), units=8)
    assert watched == pytest.approx(_loss(again, ck.objectives.CovarianceRadius(SIGMA), data), rel=1e-4)


def test_what_debugging_does_not_go_with_is_refused(classifier, checked_numerics, tmp_path):
    trainer = ck.CertifiedTrainer(classifier, ck.objectives.Consistency(SIGMA))
    with pytest.raises(ValueError, match=r"jit_compile must be False where tf\.debugging watches"):
        trainer.compile(jit_compile=True)
    with pytest.raises(ValueError, match=r"export must not run where tf\.debugging watches"):
        ck.export(ck.SmoothedClassifier(classifier, SIGMA), tmp_path / "1")


@pytest.mark.parametrize(
    "use",
    [
        lambda c: ck.SmoothedClassifier(c, SIGMA),
        lambda c: ck.CertifiedTrainer(c, ck.objectives.Consistency(SIGMA)),
        lambda c: ck.MomentNetwork(c, SIGMA),
    ],
)
def test_a_graph_is_refused_with_the_remedy(classifier, use):
    with pytest.raises(ValueError, match="TensorFlow must execute eagerly"), tf.Graph().as_default():
        use(classifier)
    with pytest.raises(ValueError, match="TensorFlow must execute eagerly"):
        tf.function(lambda: use(classifier) and 0, autograph=False)()


@pytest.fixture
def channels_first():
    keras.config.set_image_data_format("channels_first")
    yield
    keras.config.set_image_data_format("channels_last")


@pytest.mark.parametrize("build", [ck.models.lenet, ck.models.preact_resnet18, ck.models.resnet110, ck.models.unet])
def test_models_of_the_other_order_are_refused_with_the_remedy(build, channels_first):
    with pytest.raises(
        ValueError, match=r"image_data_format must be channels_last .*covkeras.adapt\(model, channels_first=True"
    ):
        build((32, 32, 3))


def test_a_classifier_of_the_other_order_is_adapted(channels_first):
    """Under either setting of Keras, with numbers for each channel and another size: the same logits, by hand."""
    rng = np.random.default_rng(3)
    images = rng.random((5, 4, 6, 3), np.float32)
    keras.utils.set_random_seed(0)
    mine = keras.Sequential([keras.Input((3, 4, 6)), keras.layers.Flatten(data_format="channels_last")])
    mine.add(keras.layers.Dense(3))
    mean, std = np.array([0.1, 0.2, 0.3]), np.array([0.5, 1.0, 2.0])
    expected = mine(((images - mean) / std).transpose(0, 3, 1, 2))
    adapted = ck.adapt(mine, mean=mean, std=std, channels_first=True)
    np.testing.assert_allclose(adapted(images), expected, atol=1e-5)
    resized = ck.adapt(mine, mean=mean, std=std, channels_first=True, image_size=(8, 12))
    first = resized(np.repeat(np.repeat(images, 2, 1), 2, 2))
    keras.config.set_image_data_format("channels_last")
    np.testing.assert_allclose(adapted(images), expected, atol=1e-5)
    second = ck.adapt(mine, mean=mean, std=std, channels_first=True, image_size=(8, 12))
    np.testing.assert_allclose(first, second(np.repeat(np.repeat(images, 2, 1), 2, 2)), atol=1e-5)
    ck.SmoothedClassifier(adapted, SIGMA)


LOG = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t3\t3\t0.75\t1\t0:00:01\n1\t2\t-1\t0.0\t0\t0:00:01\n"


def test_a_terminal_of_few_characters_and_a_locale_of_none(tmp_path):
    """Reports are UTF-8 whatever the locale's own encoding is, and a name never stops a job."""
    log = tmp_path / "café.tsv"
    log.write_text(LOG, encoding="utf-8")
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment |= {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "covkeras", "report", str(log), "--out", str(tmp_path / "report")]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii() and b"0.375" in done.stdout
    for name in ("index.html", "table.md"):
        assert "café" in (tmp_path / "report" / name).read_text(encoding="utf-8")
        assert "0.375" in (tmp_path / "report" / name).read_text(encoding="utf-8")


def test_a_report_is_utf8_in_any_locale(tmp_path):
    program = "from covkeras.reports.report import Report; from pathlib import Path; "
    program += "Report('caf\\xe9 \\xb1 1', 'a', []).write(Path('report'))"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("index.html", "table.md"):
        assert "café ± 1" in (tmp_path / "report" / name).read_text(encoding="utf-8")


def test_flags_that_xla_does_not_know_are_said(tmp_path):
    """XLA ends the process; its last words must be seen."""
    command = [sys.executable, "-m", "covkeras", "report", str(tmp_path / "none.tsv")]
    environment = {**os.environ, "XLA_FLAGS": "--nonsense"}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False)
    assert done.returncode != 0 and b"--nonsense" in done.stderr


@pytest.mark.parametrize("told", ["nonsense", None])
def test_programs_run_on_tensorflow_whatever_keras_is_told(tmp_path, told):
    (tmp_path / "keras").mkdir()
    (tmp_path / "keras" / "keras.json").write_text('{"backend": "torch"}', encoding="utf-8")
    command = [sys.executable, "-m", "covkeras", "report", str(tmp_path / "none.tsv")]
    environment = {k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"}
    environment |= {"KERAS_HOME": str(tmp_path / "keras"), **({"KERAS_BACKEND": told} if told else {})}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    *notices, error = done.stderr.splitlines()
    expected = f"KERAS_BACKEND={told} is passed over: covkeras' programs run on TensorFlow"
    assert notices == ([expected] if told else [])
    assert error.startswith("error: ") and "none.tsv" in error


def test_a_notebooks_way_of_showing_pictures_does_not_stop_what_it_starts(tmp_path):
    """Keras imports matplotlib, which stops at a backend that it does not find."""
    command = [sys.executable, "-m", "covkeras", "report", str(tmp_path / "none.tsv")]
    environment = {**os.environ, "MPLBACKEND": "module://not_installed.backend_inline"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    (error,) = done.stderr.splitlines()
    assert error.startswith("error: ") and "none.tsv" in error


@pytest.mark.parametrize(
    "use", [lambda c: ck.SmoothedClassifier(c, SIGMA), lambda c: ck.CertifiedTrainer(c, ck.objectives.Macer(SIGMA))]
)
def test_another_backend_of_keras_is_refused_with_the_remedy(classifier, use, monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(RuntimeError, match=r"Keras was imported with 'jax'\. Set the .* KERAS_BACKEND=tensorflow"):
        use(classifier)


def test_kerass_limits_on_training_are_refused_in_a_run(tmp_path, monkeypatch, capsys):
    from covkeras.commands import train

    monkeypatch.setattr(keras.config, "max_steps_per_epoch", lambda: 2)
    assert train.main(["--smoke", "--out", str(tmp_path / "run")]) == 2
    assert "KERAS_MAX_STEPS_PER_EPOCH must not be set, got 2" in capsys.readouterr().err


def test_a_recipe_that_an_editor_marked_as_utf8(tmp_path):
    from covkeras.experiments import recipes

    recipe = recipes.find("digits")
    file = tmp_path / "mine.json"
    file.write_bytes(codecs.BOM_UTF8 + recipe.to_json().encode())
    assert recipes.find(file) == recipe
