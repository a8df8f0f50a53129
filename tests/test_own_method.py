"""A method from outside covkeras, in one file: the one that CONTRIBUTING.md shows, by every program."""

import json
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import small_classifier

from covkeras.commands.main import main
from covkeras.experiments.recipe import Recipe
from covkeras.experiments.runs import RunFolder
from covkeras.moments import Context

ROOT = Path(__file__).parent.parent
METHOD = "softened:SoftenedLabels"
TINY = ["--epochs", "2", "--decay-epochs", "--train-images", "128", "--certify-images", "4", "--certify-n", "100"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with the method's file, to work in."""
    text = re.search("```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL).group(1)
    (tmp_path / "softened.py").write_text(text)
    (tmp_path / "no_method.py").write_text("class Toy: pass\nNUMBER = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("softened", None)


def test_it_trains_certifies_and_exports_by_the_installed_command(folder):
    """In a process of its own, whose path holds the command's folder and not this one."""
    command = [Path(sys.executable).with_name("covkeras"), "train", *TINY, "--method", METHOD, "--lam", "0.2"]
    command += ["--reference", "none", "--switch-epoch", "1", "--run-dir", "run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    recipe = json.loads((folder / "run" / "recipe.json").read_text())
    assert recipe["method"] == METHOD and recipe["hyper"] == {"lam": 0.2, "switch_epoch": 1}
    assert [row["lam"] for row in RunFolder(folder / "run").history()] == ["0", "0.2"]
    table = (folder / "run" / "report" / "index.html").read_text()
    assert METHOD in table and (folder / "run" / "export" / "digits" / "1" / "saved_model.pb").exists()


def test_it_is_compared_with_fields_of_its_own(folder):
    methods = ["gaussian_augmentation", METHOD, f"{METHOD}:lam=0.3,epochs=1"]
    assert main(["compare", *TINY, "--sigma", "1", "--out", "compared", "--methods", *methods]) == 0
    rows = json.loads((folder / "compared" / "steps.json").read_text())
    assert set(rows) == set(methods)
    hyper = [RunFolder(folder / "compared" / "runs" / f"{m.replace(':', ',')}-seed0").recipe().hyper for m in methods]
    # Its authors' weight at sigma 1, and the one given.
    assert [h.get("lam") for h in hyper] == [None, 0.05, 0.3]


def test_it_is_searched_over_the_range_it_declares(folder):
    flags = ["--tuner", "random", "--trials", "2", "--seeds", "0", "--out", "searched"]
    assert main(["search", *TINY, "--method", METHOD, *flags]) == 0
    searched = json.loads((folder / "searched" / "search.json").read_text())
    assert searched["space"] == [{"field": "lam", "low": 0.0, "high": 0.5, "log": False, "values": []}]
    best = Recipe.from_json((folder / "searched" / "best_recipe.json").read_text())
    assert best.method == METHOD and 0 <= best.lam <= 0.5


def test_help_lists_its_fields(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--method", METHOD, "--help"])
    assert stop.value.code == 0
    assert f"{METHOD}: weight of the other classes" in " ".join(capsys.readouterr().out.split())


def test_its_loss_is_its_formula(rng, folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    from softened import SoftenedLabels

    objective = SoftenedLabels(sigma=0.5, lam=0.3).attached(small_classifier(classes=3))
    images, labels = rng.random((5, 8, 8, 1), np.float32), rng.integers(0, 3, 5)
    noise = rng.standard_normal((1, 5, 8, 8, 1)).astype(np.float32)
    terms = objective(images, labels, noise, Context(training=False))
    logits = np.asarray(objective.classifier(images + 0.5 * noise[0]), np.float64)
    log = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose(terms.classification, -log[np.arange(5), labels], rtol=1e-5)
    np.testing.assert_allclose(terms.robustness, -log.mean(1), rtol=1e-5)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(objective))
    assert type(again) is SoftenedLabels and again.get_config() == {"sigma": 0.5, "lam": 0.3, "switch_epoch": 0}


@pytest.mark.parametrize(
    "method, message",
    [
        ("softened:Softened", "can't be imported (module 'softened' has no attribute 'Softened')"),
        ("soft:SoftenedLabels", "can't be imported (No module named 'soft')"),
        ("no_method:Toy", "must be a subclass of covkeras.objectives.Objective"),
        ("no_method:NUMBER", "must be a subclass of covkeras.objectives.Objective"),
    ],
)
def test_what_is_no_method_is_refused(method, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--method", method])
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert main(["compare", "--methods", method, "--out", "none"]) == 2
    assert message in capsys.readouterr().err and not Path("none").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--lam", "-1"], "lam must be a number in [0, inf)"),
        (["--lam", "much"], "lam must be a number, got 'much'"),
        (["--eta", "0.3"], "--eta is a hyper-parameter of adjoint_radius, consistency"),
        (["--reference", "soft:Softened"], "can't be imported"),
    ],
)
def test_what_it_does_not_take_is_refused(flags, message, capsys):
    assert main(["train", "--method", METHOD, *flags, "--run-dir", "run"]) == 2
    assert message in capsys.readouterr().err and not Path("run").exists()


def test_a_run_without_its_file_says_what_is_missing(folder):
    RunFolder(folder / "run").claim(Recipe(method=METHOD))
    (folder / "softened.py").unlink()
    sys.modules.pop("softened")
    with pytest.raises(ValueError, match=r"'softened:SoftenedLabels' can't be imported .* in the folder that holds it"):
        RunFolder(folder / "run").recipe()
