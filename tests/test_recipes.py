import dataclasses
import json
import math
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import call_program

from covkeras import models
from covkeras.commands import train
from covkeras.experiments import building, comparing, fitting, forecast, jobs, recipes
from covkeras.experiments.environment import Environment
from covkeras.experiments.recipe import Recipe
from covkeras.experiments.runs import RunFolder

OLD = json.loads((Path(__file__).parent / "recipes_before_hyper.json").read_text())


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_named_recipes_survive_json(name, tmp_path):
    recipe = recipes.find(name)
    assert recipe.name == name and recipe.source
    (tmp_path / "r.json").write_text(recipe.to_json())
    assert recipes.find(tmp_path / "r.json") == recipe
    assert recipe.objective().sigma == recipe.sigma


def test_differences_and_digest():
    recipe = recipes.find("digits")
    other = recipe.replace(lam=2.0, seed=1)
    assert recipe.diff(other) == {"lam": (recipe.lam, 2.0), "seed": (0, 1)}
    assert recipe.digest() != other.digest() and recipe.digest() == recipes.find("digits").digest()


def test_objectives_get_their_fields():
    recipe = recipes.find("digits").replace(lam=2.5, noisy_mean=True, switch_epoch=3)
    objective = recipe.objective()
    assert (objective.lam, objective.noisy_mean, objective.switch_epoch) == (2.5, True, 3)
    assert recipe.objective("gaussian_augmentation").name == "gaussian_augmentation"


def test_training_may_be_noisier_than_what_is_certified():
    recipe = recipes.find("digits").replace(sigma=0.5, widen=1.1)
    assert recipe.objective().sigma == pytest.approx(0.55)
    assert recipe.objective("macer").sigma == recipe.objective().sigma
    wider = comparing.Entry.parse("stepped_consistency:widen=1.2", recipe).recipe
    assert wider.objective().sigma == pytest.approx(0.6)
    # The step is of the noise that is certified.
    assert wider.eps == 2 * wider.sigma == 1.0
    assert jobs.smoothed(recipe, models.lenet((8, 8, 1))).sigma == 0.5


@pytest.mark.parametrize("method", OLD)
def test_a_file_of_the_time_when_recipes_had_all_fields_reads_and_resumes(method, tmp_path):
    """Written by the version before: the objective it builds, and the digest its checkpoints carry, are known."""
    old = OLD[method]
    (tmp_path / "recipe.json").write_text(old["recipe"])
    recipe = RunFolder(tmp_path).recipe()
    config, declared = recipe.objective().get_config(), recipe.objective().hyperparameters()
    since = {name: value for name, value in config.items() if name not in old["objective"]}
    assert config == {**old["objective"], **since}
    # What was added since does nothing unless it is asked for.
    assert since == {name: declared[name].default for name in since}
    assert RunFolder(tmp_path).digest() == old["digest"]
    RunFolder(tmp_path).claim(recipe)
    assert (tmp_path / "recipe.json").read_text() == old["recipe"]
    assert Recipe.from_json(recipe.to_json()) == recipe and json.loads(recipe.to_json())["hyper"] == recipe.hyper


def test_a_field_of_another_method_is_refused():
    with pytest.raises(ValueError, match=r"unknown fields \['eta'\]; macer has lam, gamma"):
        Recipe(method="macer", eta=0.3)
    with pytest.raises(ValueError, match=r"unknown fields \['eta'\]"):
        Recipe.from_json('{"method": "macer", "eta": 0.3}')
    with pytest.raises(AttributeError, match="recipe has no 'eta'; of its method macer it has"):
        _ = Recipe(method="macer").eta
    # Another method never inherits weights.
    assert Recipe(lam=2.0).replace(method="consistency").lam == 5.0
    assert hash(Recipe()) == hash(Recipe(lam=2.0)) and Recipe() != Recipe(lam=2.0)


def test_what_scales_with_the_epochs_is_what_a_method_says():
    recipe = Recipe(method="truncated_lq", epochs=40, drop_epoch=20)
    assert recipes.scaled(recipe, 10).drop_epoch == 5 and recipes.smoke(recipe).drop_epoch == 1
    assert recipes.scaled(Recipe(epochs=40, switch_epoch=20, drop_epoch=4), 10).hyper["switch_epoch"] == 5


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("widen", 2.5, r"widen must be a number in \(0, 2\], got 2.5"),
        ("sigma", 0, r"sigma must be a number in \(0, 10\), got 0"),
        ("r_max", 1.0, r"r_max must be a number in \[0, 1\), got 1.0"),
        ("epochs", 0, "epochs must be a whole number >= 1, got 0"),
        ("certify_alpha", 1, r"certify_alpha must be a number in \(0, 1\)"),
        ("certify_n", 10**8, "certify_n must be a whole number from 1 to 10000000"),
        ("method", "mace", "method must be one of gaussian_augmentation, covariance_radius"),
        ("noisy_mean", 1, "noisy_mean must be true or false"),
        ("data", 3, "data must be text"),
        ("decay_epochs", (0,), "decay_epochs must be a whole number"),
    ],
)
def test_bad_values_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(recipes.find("digits"), **{field: value})


def test_unknown_recipes_and_fields_are_refused(tmp_path):
    with pytest.raises(ValueError, match="recipe must be one of digits"):
        recipes.find("digit")
    (tmp_path / "r.json").write_text('{"sgima": 0.5}')
    with pytest.raises(ValueError, match=r"unknown fields \['sgima'\]"):
        recipes.find(tmp_path / "r.json")
    (tmp_path / "r.json").write_text("{")
    with pytest.raises(ValueError, match="is no recipe"):
        recipes.find(tmp_path / "r.json")


def test_learning_rates_are_those_of_their_formulas():
    """A cosine from the rate to zero, multiplied by what warms up; steps as they were."""
    recipe = recipes.find("digits").replace(
        epochs=10, learning_rate=0.2, schedule="cosine", warmup_epochs=2, decay_epochs=()
    )
    rate = building.learning_rates(recipe, steps=5)
    for step in (0, 3, 9, 10, 25, 49):
        expected = 0.2 * 0.5 * (1 + math.cos(math.pi * step / 50)) * min((step + 1) / 10, 1)
        assert float(rate(step)) == pytest.approx(expected, rel=1e-5)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(rate))
    assert float(again(3)) == pytest.approx(float(rate(3)))
    stepped = building.learning_rates(recipe.replace(schedule="steps", decay_epochs=(4,)), steps=5)
    assert [float(stepped(step)) for step in (0, 12, 30)] == pytest.approx([0.02, 0.2, 0.02])
    assert building.learning_rates(recipe.replace(schedule="steps", warmup_epochs=0), steps=5) == 0.2


def test_every_kth_image_of_a_split_is_certified():
    recipe = recipes.find("digits").replace(certify_images=5, certify_every=60)
    data, chosen = Environment().load_certified(recipe)
    assert chosen.tolist() == [0, 60, 120, 180, 240] and len(data) == 241 and data.split == "test"
    data, chosen = Environment().load_certified(recipe.replace(certify_split="validation"))
    assert chosen.tolist() == [0, 60, 120, 180] and data.split == "validation"


def test_hyper_parameters_are_not_chosen_on_images_that_were_trained_on():
    recipe = recipes.find("digits").replace(train_on_validation=True)
    whole = fitting.load_training(recipe, Environment())
    parts = [Environment().load(recipe, split) for split in ("train", "validation")]
    assert len(whole) == sum(map(len, parts)) == 1437
    assert np.array_equal(whole.images, np.concatenate([part.images for part in parts]))
    with pytest.raises(ValueError, match="certify_split must be test where train_on_validation is true"):
        recipe.replace(certify_split="validation")


def test_a_dry_run_foretells_and_writes_nothing(tmp_path):
    run = Path(__file__).parent.parent / "training" / "run.py"
    flags = ["--recipe", "mnist_protocol", "--data-dir", tmp_path / "none", "--batch-size", "32", "--dry-run"]
    done = call_program(run, *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "mnist is not prepared here: timed on random images" in done.stderr and not list(tmp_path.iterdir())
    _, *rows = [line.split("  ") for line in done.stdout.splitlines() if line.strip()]
    assert [row[0] for row in rows] == ["gaussian_augmentation", "covariance_radius"]
    # 90 epochs of the 55,000 images that are not held out, in whole batches of 32.
    assert all("154,620" in " ".join(row) and "431,080" in " ".join(row) for row in rows)
    with pytest.raises(ValueError, match="its size not known"):
        forecast.stand_in(recipes.find("mnist").replace(data="mine"))


def test_a_dry_run_times_certificates_though_its_steps_leave_no_classifier():
    """Ten steps at the full rate and lam, without the schedule's warm-up, may end in NaN: they are only timed."""
    recipe = recipes.find("digits").replace(method="gaussian_augmentation", learning_rate=1e30, certify_images=2)
    found = forecast.forecast(recipe, fitting.load_training(recipe, Environment()))
    assert found.certify_hours > 0 and found.hours > 0


def test_a_reference_has_its_own_hyper_parameters_and_a_share_of_the_epochs():
    recipe = recipes.find("digits").replace(
        method="stepped_consistency", reference="covariance_radius:gamma=0.5", reference_epochs=2.0, epochs=30
    )
    recipe = recipe.replace(decay_epochs=(15, 22))
    runs = train.trained_by(recipe)
    assert list(runs) == ["covariance_radius", "stepped_consistency"] and runs["stepped_consistency"] is recipe
    beside = runs["covariance_radius"]
    assert (beside.gamma, beside.lam, beside.noisy_mean) == (0.5, 4.0, True)
    assert (beside.epochs, beside.switch_epoch, beside.decay_epochs) == (60, 30, (30, 44))
    assert (beside.reference, beside.reference_epochs, beside.sigma) == ("none", 1.0, recipe.sigma)
    # The same method in another way is called what it was asked for.
    other = recipe.replace(reference="stepped_consistency:eps=0.25", reference_epochs=1.0)
    assert list(train.trained_by(other)) == ["stepped_consistency:eps=0.25", "stepped_consistency"]
    assert list(train.trained_by(recipe.replace(reference="stepped_consistency"))) == ["stepped_consistency"]


@pytest.mark.parametrize(
    "reference, message",
    [
        ("magic", "method must be one of"),
        ("macer:sigma=1", "must be METHOD:FIELD=VALUE"),
        ("consistency:lamb=1", "must be METHOD:FIELD=VALUE"),
        ("consistency:lam=-1", "lam must be a number in"),
    ],
)
def test_a_wrong_reference_is_refused_before_any_work(reference, message):
    with pytest.raises(ValueError, match=message):
        train.trained_by(recipes.find("digits").replace(reference=reference))
