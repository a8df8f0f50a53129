import errno
import os
import signal
import subprocess
import sys
import time

import forked
import keras
import numpy as np
import pytest
from conftest import small_classifier

from covkeras import CertifiedTrainer, objectives
from covkeras.experiments import fitting, jobs, recipes
from covkeras.experiments.jobs import Environment
from covkeras.experiments.runs import RunFolder
from covkeras.runtime.interrupts import Interrupted
from covkeras.training.checkpoints import CheckpointFolder

SMALL = recipes.find("digits").replace(
    epochs=3, switch_epoch=1, decay_epochs=(2,), certify_images=3, certify_n=200, noisy_mean=True
)


def weights(classifier):
    return [np.asarray(w) for w in classifier.get_weights()]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = RunFolder(tmp_path_factory.mktemp("whole") / "run")
    folder.claim(SMALL)
    return weights(fitting.train(SMALL, folder)), folder


@pytest.mark.parametrize("steps", [25, 18])
def test_a_stopped_run_ends_in_exactly_the_same_weights(steps, tmp_path, uninterrupted):
    """Stopped in the middle and at the end of an epoch (18 steps), before and after lam's switch, several times."""
    folder = RunFolder(tmp_path / "run")
    folder.claim(SMALL)
    for _ in range(30):
        left = iter(range(steps))
        try:
            classifier = fitting.train(SMALL, folder, Environment(stop=lambda left=left: next(left, None) is None))
            break
        except Interrupted:
            assert not folder.classifier_file.exists()
    for a, b in zip(weights(classifier), uninterrupted[0], strict=True):
        assert np.array_equal(a, b)
    assert [row["epoch"] for row in folder.history()] == ["0", "1", "2"]
    assert folder.history()[-1]["lam"] == "4" and folder.history()[0]["lam"] == "0"
    assert float(folder.history()[-1]["learning_rate"]) == pytest.approx(0.005)


def test_a_finished_run_is_not_trained_again(uninterrupted):
    again = fitting.train(SMALL, uninterrupted[1], Environment(stop=lambda: pytest.fail("a step was made")))
    for a, b in zip(weights(again), uninterrupted[0], strict=True):
        assert np.array_equal(a, b)


def test_certification_resumes_to_the_same_file(tmp_path, uninterrupted):
    results = []
    for name, stops in (("whole", False), ("stopped", True)):
        folder = RunFolder(tmp_path / name)
        folder.claim(SMALL)
        classifier = keras.models.load_model(uninterrupted[1].classifier_file)
        for _ in range(4):
            try:
                results.append(jobs.certify(SMALL, folder, classifier, Environment(stop=lambda stops=stops: stops)))
                break
            except Interrupted:
                continue
    (_, labels, whole), (_, same, stopped) = results
    assert np.array_equal(labels, same) and np.array_equal(whole.radius, stopped.radius)
    assert np.array_equal(whole.p_lower, stopped.p_lower) and len(whole) == 3


PROGRAM = """
import sys
from covkeras.runtime import startup
startup.quiet_tensorflow()
from covkeras.experiments import fitting, jobs, recipes, runs
recipe, folder = recipes.find(sys.argv[2]), runs.RunFolder(sys.argv[1])
folder.claim(recipe)
fitting.train(recipe, folder, jobs.Environment(minutes=0.002))
"""


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_in_the_same_weights(tmp_path, uninterrupted):
    """kill -9, at most 3 times, each a random moment after the first new checkpoint; then to the end."""
    delays = np.random.default_rng(4).uniform(0.0, 0.25, 3)
    (tmp_path / "recipe.json").write_text(SMALL.to_json())
    checkpoints = tmp_path / "run" / "checkpoints"
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "run"), str(tmp_path / "recipe.json")]
    kills = 0
    for delay in [*delays, None]:
        before = set(checkpoints.glob("epoch_*"))
        process = forked.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while delay is not None and process.poll() is None and set(checkpoints.glob("epoch_*")) <= before:
            time.sleep(0.01)
        try:
            assert process.wait(delay) == 0
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    assert kills > 0
    classifier = keras.models.load_model(tmp_path / "run" / "classifier.keras")
    for a, b in zip(weights(classifier), uninterrupted[0], strict=True):
        assert np.array_equal(a, b)


def trainer():
    made = CertifiedTrainer(small_classifier(), objectives.GaussianAugmentation(0.5))
    made.compile(optimizer=keras.optimizers.SGD(0.1, momentum=0.9))
    made.optimizer.build(made.classifier.trainable_variables)
    return made


def test_a_damaged_checkpoint_falls_back_and_says_so(tmp_path):
    folder, made, said = CheckpointFolder(tmp_path, "d"), trainer(), []
    folder.save(made, 1, 0)
    good = weights(made.classifier)
    made.classifier.layers[0].bias.assign_add([1.0] * 4)
    newest = folder.save(made, 2, 3)
    assert folder.restore(made, said.append) == (2, 3) and not said
    whole = newest.read_bytes()
    for damage in (whole[:100], whole[: len(whole) // 2], whole.replace(whole[2000:2010], b"0123456789"), b""):
        newest.write_bytes(damage)
        assert folder.restore(made, said.append) == (1, 0)
        for a, b in zip(weights(made.classifier), good, strict=True):
            assert np.array_equal(a, b)
    assert len(said) == 4 and "damaged" in said[0]


def test_another_recipes_or_models_checkpoint_is_refused(tmp_path):
    made = trainer()
    CheckpointFolder(tmp_path, "one").save(made, 1, 0)
    with pytest.raises(ValueError, match="belongs to another recipe"):
        CheckpointFolder(tmp_path, "two").restore(made)
    other = CertifiedTrainer(small_classifier(classes=4), objectives.GaussianAugmentation(0.5))
    other.compile(optimizer=keras.optimizers.SGD(0.1, momentum=0.9))
    other.optimizer.build(other.classifier.trainable_variables)
    with pytest.raises(ValueError, match="another model"):
        CheckpointFolder(tmp_path, "one").restore(other)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    folder, made = CheckpointFolder(tmp_path, "d"), trainer()
    folder.save(made, 1, 0)

    def full(*args, **kwargs):
        args[0].write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="the one before is whole"):
        folder.save(made, 2, 0)
    monkeypatch.undo()
    assert folder.restore(made, pytest.fail) == (1, 0)
    assert [p.name for p in tmp_path.iterdir()] == ["epoch_00001_step_0000000.npz"]


def test_only_the_last_two_checkpoints_stay(tmp_path):
    folder, made = CheckpointFolder(tmp_path, "d"), trainer()
    for epoch in range(1, 5):
        folder.save(made, epoch, 0)
    assert sorted(p.name[:11] for p in tmp_path.iterdir()) == ["epoch_00003", "epoch_00004"]


def test_a_non_finite_loss_stops_with_the_batch_saved(tmp_path):
    recipe = SMALL.replace(learning_rate=1e6, method="gaussian_augmentation", reference="none")
    folder = RunFolder(tmp_path / "run")
    folder.claim(recipe)
    with pytest.raises(fitting.NonFiniteLoss, match=r"in epoch \d+, step \d+; the batch is in .*npz. Lower"):
        fitting.train(recipe, folder)
    with np.load(folder.path / "non_finite_batch.npz") as saved:
        assert saved["images"].shape == (64, 8, 8, 1) and saved["labels"].shape == (64,)


def test_weights_that_the_last_update_made_infinite_are_no_classifier(tmp_path):
    """One step in all: its loss, before the update, is finite."""
    recipe = SMALL.replace(
        learning_rate=1e39,
        method="gaussian_augmentation",
        reference="none",
        epochs=1,
        decay_epochs=(),
        train_images=64,
    )
    folder = RunFolder(tmp_path / "run")
    folder.claim(recipe)
    with pytest.raises(
        fitting.NonFiniteLoss, match=r"weight .* is not finite after the last of 1 epochs. Lower --learn"
    ):
        fitting.train(recipe, folder)
    assert not folder.classifier_file.exists()


def test_folders_of_others_are_refused_before_anything_is_written(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.claim(SMALL)
    with pytest.raises(ValueError, match=r"holds another recipe \(lam: 4.0 there, 3.0 here\)"):
        folder.check(SMALL.replace(lam=3.0))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"")
    with pytest.raises(ValueError, match="is not empty and holds no recipe"):
        RunFolder(tmp_path / "photos").claim(SMALL)
    # What another worker of the same run is writing aside at this moment is no other's file.
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / ".123.recipe.json").write_text("")
    RunFolder(tmp_path / "shared").check(SMALL)
    (tmp_path / "file").write_text("")
    with pytest.raises(PermissionError, match="can't be written"):
        RunFolder(tmp_path / "file" / "run").claim(SMALL)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "photos", "run", "shared"]


def test_a_classifier_with_another_head_is_refused(tmp_path):
    folder = RunFolder(tmp_path)
    with pytest.raises(ValueError, match="an output for each of digits's 10 classes, got 3 outputs"):
        jobs.certify(SMALL, folder, small_classifier(classes=3))
    with pytest.raises(ValueError, match=r"takes images of shape \(9, 9, 1\), digits has \(8, 8, 1\)"):
        jobs.certify(SMALL, folder, small_classifier((9, 9, 1), classes=10))
    assert not folder.certificates_file.exists()


def test_a_row_of_the_history_that_was_cut_off_is_none(tmp_path):
    """Of epoch 12 a full disk kept "1": a second row of epoch 1, without figures."""
    folder = RunFolder(tmp_path)
    for epoch in range(12):
        folder.append_history({"epoch": epoch, "loss": 1.0})
    with folder.history_file.open("a", encoding="utf-8") as file:
        file.write("1")
    assert [r["epoch"] for r in folder.history()] == [str(e) for e in range(12)]
    folder.keep_history(12)
    folder.append_history({"epoch": 12, "loss": 0.5})
    assert [r["epoch"] for r in folder.history()] == [str(e) for e in range(13)]


def test_history_is_cut_back_on_resume(tmp_path):
    folder = RunFolder(tmp_path)
    for epoch in range(4):
        folder.append_history({"epoch": epoch, "loss": 1.0})
    folder.keep_history(2)
    assert [r["epoch"] for r in folder.history()] == ["0", "1"]
    folder.keep_history(0)
    assert folder.history() == []


def test_interrupts_ask_once_then_stop():
    from covkeras.runtime.interrupts import Interrupts

    with Interrupts() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert stop() and stop.signal_number == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
