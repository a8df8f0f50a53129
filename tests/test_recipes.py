import dataclasses
import json
from pathlib import Path

import pytest

from covkeras.experiments import recipes
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


@pytest.mark.parametrize("method", OLD)
def test_a_file_of_the_time_when_recipes_had_all_fields_reads_and_resumes(method, tmp_path):
    """Written by the version before: the objective it builds, and the digest its checkpoints carry, are known."""
    old = OLD[method]
    (tmp_path / "recipe.json").write_text(old["recipe"])
    recipe = RunFolder(tmp_path).recipe()
    assert recipe.objective().get_config() == old["objective"]
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
        ("sigma", 0, r"sigma must be a number in \(0, inf\), got 0"),
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
