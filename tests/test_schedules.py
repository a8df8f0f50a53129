"""--epochs: the schedule goes with them, and nothing of it waits for an epoch that never comes."""

import pytest

from covkeras.commands import cli, train
from covkeras.experiments.comparing import Entry
from covkeras.experiments.recipes import check_schedule, find, scaled, smoke
from covkeras.experiments.tuning import CertifiedHyperModel
from covkeras.experiments.tuning_space import Range


def recipe_of(*flags):
    return cli.recipe_from(train.parse(list(flags)))


def test_other_epochs_scale_the_schedule():
    """The paper's hinge begins half-way. With 30 epochs and the named recipe's epoch 50 it never did, in silence."""
    recipe = recipe_of("--recipe", "digits", "--epochs", "30")
    assert (recipe.epochs, recipe.decay_epochs, recipe.switch_epoch) == (30, (15, 22), 15)
    # What is given besides is what is meant.
    recipe = recipe_of("--recipe", "digits", "--epochs", "30", "--switch-epoch", "3", "--decay-epochs", "20")
    assert (recipe.decay_epochs, recipe.switch_epoch) == ((20,), 3)
    assert recipe_of("--recipe", "digits", "--epochs", "100") == find("digits")
    assert recipe_of("--recipe", "cifar10_protocol", "--epochs", "37").epochs == 37


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--switch-epoch", "100"], r"^switch_epoch must lie within the 100 epochs, got 100"),
        (["--epochs", "30", "--switch-epoch", "50"], r"^switch_epoch must lie within the 30 epochs, got 50"),
        (["--epochs", "30", "--decay-epochs", "20", "50"], r"^decay_epochs must lie within the 30 epochs"),
        (["--decay-epochs", "50", "20"], r"^decay_epochs must increase, got 50 20"),
        (["--decay-epochs", "20", "20"], r"^decay_epochs must increase, got 20 20"),
        (["--epochs", "5", "--warmup-epochs", "20"], r"^warmup_epochs must lie within the 5 epochs, got 20"),
        (["--method", "smooth_mix", "--epochs", "5", "--warmup", "6"], r"^warmup must lie within the 5 epochs, got 6"),
        (["--method", "sphere_attack", "--discard-epoch", "200"], r"^discard_epoch must lie within the 100 epochs"),
    ],
)
def test_what_would_never_begin_is_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        recipe_of("--recipe", "digits", *flags)


@pytest.mark.parametrize("method", ["smooth_adv", "smooth_mix"])
def test_the_authors_ten_epochs_of_warm_up_are_scaled(method):
    """Ten of 90 on MNIST, of 150 on CIFAR-10; they stayed ten in a training of twelve."""
    for recipe, epochs, warmup in [("mnist", 90, 10), ("mnist", 12, 1), ("cifar10", 150, 10), ("cifar10", 3, 0)]:
        flags = ["--recipe", recipe, "--method", method, "--epochs", str(epochs)]
        assert recipe_of(*flags).warmup == warmup, (recipe, epochs)
    # One that ends with the training is whole, and is refused no more than it is useful.
    assert recipe_of("--recipe", "digits", "--method", method, "--epochs", "5", "--warmup", "5").warmup == 5


def test_the_learning_rates_warm_up_is_scaled():
    protocol = find("cifar10_protocol").replace(warmup_epochs=4)
    assert [scaled(protocol, e).warmup_epochs for e in (1, 5, 20, 40)] == [1, 1, 4, 8]
    assert scaled(find("digits"), 30).warmup_epochs == 0


def test_a_comparisons_methods_too():
    recipe = find("digits")
    with pytest.raises(ValueError, match=r"^switch_epoch must lie within the 20 epochs, got 50"):
        Entry.parse("covariance_radius:epochs=20,switch_epoch=50", recipe)
    assert Entry.parse("covariance_radius:epochs=20", recipe).recipe.switch_epoch == 10


@pytest.mark.parametrize("epochs", [1, 2, 100])
def test_a_smoke_test_of_any_recipe_has_a_whole_schedule(epochs):
    for name in ("digits", "cifar10", "mnist_protocol", "mnist_cosine"):
        assert check_schedule(smoke(recipe_of("--recipe", name, "--epochs", str(epochs)))).epochs == min(epochs, 3)


def hypermodel(tmp_path, *ranges):
    recipe = find("digits")
    return CertifiedHyperModel(recipe, [Range.parse(text, recipe) for text in ranges], tmp_path)


def test_a_search_over_epochs_scales_each_trials_schedule(tmp_path):
    model = hypermodel(tmp_path, "epochs=10,50")
    hp = model.hyperparameters()
    for epochs in (10, 50):
        hp.values["epochs"] = epochs
        recipe = model.trial_recipe(hp)
        assert (recipe.epochs, recipe.switch_epoch) == (epochs, epochs // 2)


@pytest.mark.parametrize("ranges", [["switch_epoch=0:100"], ["switch_epoch=0,20", "epochs=10,50"]])
def test_a_search_over_epochs_that_never_come_is_refused(ranges, tmp_path):
    with pytest.raises(ValueError, match=r"^switch_epoch must lie within the \d+ epochs"):
        hypermodel(tmp_path, *ranges)
    hypermodel(tmp_path, "switch_epoch=0:99")
