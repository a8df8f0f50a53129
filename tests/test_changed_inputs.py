"""What a run reads from paths, images of one's own, a model, a teacher: known again by its content."""

import gc
import json
import weakref
from pathlib import Path

import keras
import numpy as np
import pytest

from covkeras import models
from covkeras.commands import attack as attack_command
from covkeras.commands import certify as certify_command
from covkeras.commands import diagnose as diagnose_command
from covkeras.commands import train as train_command
from covkeras.experiments import comparing, fitting, tuning
from covkeras.experiments.environment import Environment
from covkeras.experiments.recipes import find

CERTIFY = ["--sigma", "0.25", "--n0", "10", "--n", "100", "--alpha", "0.05", "--max", "3"]


@pytest.fixture
def mine(tmp_path, monkeypatch, rng):
    """The arrays of an .npz, which lies in the folder that is worked in."""
    monkeypatch.chdir(tmp_path)
    images, labels = rng.integers(0, 256, (60, 8, 8), dtype=np.uint8), np.arange(60) % 4
    arrays = {"x_train": images, "y_train": labels, "x_test": 255 - images[:8], "y_test": labels[:8]}
    np.savez("mine.npz", **arrays)
    return arrays


def changed(arrays) -> None:
    np.savez("mine.npz", **arrays | {"x_train": arrays["x_train"][::-1]})


def tiny(channels=1, classes=4, name="classifier.keras", seed=0):
    keras.utils.set_random_seed(seed)
    image = keras.Input((8, 8, channels))
    classifier = keras.Model(image, keras.layers.Dense(classes)(keras.layers.Flatten()(image)))
    classifier.save(name)
    return classifier


TRAIN = ["--smoke", "--data", "mine.npz", "--method", "gaussian_augmentation", "--batch-size", "16"]


@pytest.mark.parametrize("kind", ["comparison", "search"])
def test_nor_is_a_folder_of_many_runs(kind, mine):
    recipe = find("digits").replace(data="mine.npz", batch_size=16, precision="float32")

    def claim():
        if kind == "comparison":
            entries = [comparing.Entry.parse("consistency", recipe)]
            return comparing.Comparison("out", recipe, environment=Environment()).claim(entries, [0])
        space = [tuning.Range.parse("lam=0,1", recipe)]
        return tuning.claim(tuning.CertifiedHyperModel(recipe, space, "out", environment=Environment()), "grid", 0)

    claim()
    changed(mine)
    with pytest.raises(ValueError, match=r"^data .*mine\.npz has changed since out was begun with it"):
        claim()
    np.savez("mine.npz", **mine)
    claim()


@pytest.mark.parametrize("field", ["model", "teacher"])
def test_a_model_or_a_teacher_that_changed_is_refused(field, mine):
    tiny(name="a.keras")
    given = {"model": {"model": "a.keras"}, "teacher": {"method": "distillation", "teacher": "a.keras"}}[field]
    recipe = find("digits").replace(data="mine.npz", epochs=1, batch_size=16, precision="float32", **given)
    folder = fitting.RunFolder("out")
    folder.claim(recipe)
    fitting.train(recipe, folder)
    assert set(json.loads(Path("out/inputs.json").read_text())) == {"data", field}
    tiny(name="a.keras", seed=1)
    with pytest.raises(ValueError, match=rf"^{field} .*a\.keras has changed since out was begun with it"):
        fitting.train(recipe, folder)


def test_a_folder_of_an_older_version_and_embedded_data_note_nothing_wrong(mine):
    recipe = find("digits").replace(epochs=1, train_images=64, precision="float32", method="gaussian_augmentation")
    folder = fitting.RunFolder("out")
    folder.claim(recipe)
    fitting.train(recipe, folder)
    assert not Path("out/inputs.json").exists()


def test_images_are_read_once_in_a_job(mine):
    """While they are in use; never past a change of the file: a default environment lives as long as the process."""
    environment, recipe = Environment(), find("digits").replace(data="mine.npz")
    held = environment.load(recipe, "train")
    assert environment.load(recipe, "train") is held
    assert Environment().load(recipe, "train") is not held
    changed(mine)
    assert environment.load(recipe, "train").digest != held.digest
    kept = weakref.ref(held)
    del held
    gc.collect()
    assert kept() is None


def test_grey_images_train_a_model_of_colour(mine):
    tiny(channels=3, name="colour.keras")
    recipe = find("digits").replace(data="mine.npz", model="colour.keras")
    for split in ("train", "validation", "test"):
        data = Environment().load(recipe, split)
        assert data.image_shape == (8, 8, 3) and (data.images[..., :1] == data.images).all()
    fitting.check_method(recipe, data)


def test_test_images_come_in_the_training_images_channels_or_are_refused(mine):
    environment, recipe = Environment, find("digits").replace(data="mine.npz")
    np.savez("mine.npz", **mine | {"x_train": np.stack([mine["x_train"]] * 2 + [mine["x_train"] // 2], -1)})
    assert environment().load(recipe, "test").image_shape == (8, 8, 3)
    np.savez("mine.npz", **mine | {"x_test": np.full((8, 9, 9), 255, np.uint8)})
    with pytest.raises(ValueError, match=r"test images of .* have shape \(9, 9, 1\), the training images \(8, 8, 1\)"):
        environment().load(recipe, "test")
    assert train_command.main([*TRAIN, "--run-dir", "out"]) == 2 and not Path("out").exists()


def test_an_attack_knows_the_images_it_is_made_for(mine, capsys):
    """Grey ones for a classifier of colour, moved ones by --data, and others not at all."""
    tiny(channels=3)
    certify = [*CERTIFY, "--out", "out.tsv", "--data", "mine.npz"]
    assert certify_command.main(["classifier.keras", *certify]) == 0
    attack = ["classifier.keras", "--certificates", "out.tsv", "--n", "100", "--steps", "2", "--factors", "1"]
    assert attack_command.main(attack) == 0
    Path("mine.npz").rename("moved.npz")
    assert attack_command.main(attack) == 2
    assert attack_command.main([*attack, "--data", "moved.npz"]) == 0
    np.savez("moved.npz", **mine | {"x_test": mine["x_test"][::-1]})
    capsys.readouterr()
    for other in ("moved.npz", "digits"):
        assert attack_command.main([*attack, "--data", other]) == 2
        assert "was made of other images than" in capsys.readouterr().err


def test_an_attack_by_name_is_on_the_data_set_that_was_certified(mine, capsys):
    models.lenet((8, 8, 1), 10).save("digits.keras")
    assert certify_command.main(["digits.keras", *CERTIFY, "--out", "out.tsv"]) == 0
    capsys.readouterr()
    assert attack_command.main(["digits.keras", "--certificates", "out.tsv", "--data", "mnist"]) == 2
    assert attack_command.main(["digits.keras", "--certificates", "out.tsv", "--data", "./mine.npz"]) == 2
    assert "was made of other images than" in capsys.readouterr().err


@pytest.mark.nightly
def test_grey_images_of_ones_own_are_diagnosed_in_colour(mine, capsys):
    tiny(channels=3)
    flags = ["--data", "mine.npz", "--images", "1", "--samples", "2000", "--sigma", "0.1", "--out", "diagnosis"]
    assert diagnose_command.main(["--classifier", "classifier.keras", *flags]) == 0
    assert Path("diagnosis/index.html").exists()
