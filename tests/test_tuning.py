"""The search: its ranges, its trials, and the program as a user runs it, alone and in parallel."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import forked
import keras_tuner as kt
import numpy as np
import pytest
from conftest import call_program

from covkeras.commands import search as search_command
from covkeras.experiments import fitting, jobs, recipes, tuning
from covkeras.experiments.recipe import METHODS, Recipe, objective_kind
from covkeras.experiments.runs import RunFolder
from covkeras.experiments.tuning import CertifiedHyperModel, Objective, Range
from covkeras.experiments.tuning_space import check_space, declared_space

PROGRAM = str(Path(__file__).parent.parent / "training" / "search.py")
TINY = recipes.find("digits").replace(
    epochs=1, switch_epoch=0, decay_epochs=(), train_images=256, certify_images=8, certify_n=100, model="lenet"
)
FLAGS = [
    *["--epochs", "1", "--switch-epoch", "0", "--decay-epochs", "--train-images", "256"],
    *["--certify-images", "8", "--certify-n", "100", "--seeds", "0"],
]


def command(*arguments):
    return [sys.executable, PROGRAM, *FLAGS, *map(str, arguments)]


def search(*arguments, **options):
    return forked.run(command(*arguments), capture_output=True, text=True, timeout=300, **options)


def test_ranges_are_read():
    assert Range.parse("lam=0:8") == Range("lam", 0.0, 8.0)
    assert Range.parse("learning-rate=0.001:0.1:log") == Range("learning_rate", 0.001, 0.1, True)
    assert Range.parse("switch_epoch=0:9") == Range("switch_epoch", 0, 9)
    assert Range.parse("r_max=0,0.1") == Range("r_max", values=(0.0, 0.1))
    assert Range.parse("noisy_mean=true,false").values == (True, False)
    # What is declared, for the paper's method and for another.
    assert [Range.parse("lam"), Range.parse("r_max")] == [Range("lam", 0.0, 8.0), Range("r_max", 0.0, 0.4)]
    assert Range.parse("eta", Recipe(method="consistency")) == Range("eta", 0.0, 1.0)
    assert Range.parse("method=covariance_radius,gaussian_augmentation").values[1] == "gaussian_augmentation"


@pytest.mark.parametrize(
    "text, message",
    [
        ("lamda", "must be FIELD=LOW:HIGH or FIELD=A,B,C, FIELD one of"),
        ("noisy_mean", "noisy_mean declares no range"),
        ("lamda=0:1", "FIELD one of"),
        ("sigma_=0:1", "FIELD one of"),
        ("certify_n=1:2", "FIELD one of"),
        ("lam=", "must list different values"),
        ("lam=1,1", "must list different values"),
        ("lam=8:0", "must have LOW below HIGH"),
        ("lam=1:1", "must have LOW below HIGH"),
        ("lam=0:1:log", "both above 0 for log"),
        ("lam=0:1:quadratic", r"must be FIELD=LOW:HIGH\[:log\] of numbers"),
        ("noisy_mean=false:true", r"must be FIELD=LOW:HIGH\[:log\] of numbers"),
        ("lam=a:b", "lam must be a number, got 'a'"),
        ("switch_epoch=0.5:2", "switch_epoch must be a whole number"),
        ("r_max=0:2", r"r_max must be a number in \[0, 1\)"),
    ],
)
def test_bad_ranges_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Range.parse(text)


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_declares_for_a_search_is_searched(method):
    """Every declared range is read, lies within the field's limits, and holds a value that the method takes."""
    recipe = Recipe(method=method)
    if not any(field.metadata["search"] for field in objective_kind(method).hyperparameters().values()):
        with pytest.raises(ValueError, match=f"method {method} declares nothing to search"):
            declared_space(recipe)
        return
    space = declared_space(recipe)
    check_space(space, recipe)
    for one in space:
        for value in one.values or (one.low, one.high):
            if value:  # an interval's open end is never drawn
                recipe.replace(**{one.field: value}).objective()


def test_a_field_that_the_methods_of_a_search_lack_is_refused():
    with pytest.raises(ValueError, match="search 'eta' must be a field of the method covariance_radius, which has lam"):
        check_space([Range.parse("eta=0:1")], Recipe())
    both = [Range.parse("method=macer,consistency"), Range.parse("lam=0,3")]
    check_space(both, Recipe())
    with pytest.raises(ValueError, match="search 'eta' must be a field of the method macer"):
        check_space([*both, Range.parse("eta=0:1")], Recipe())


@pytest.mark.parametrize("text", ["loss", "accuracy", "accuracy@", "accuracy@-1", "accuracy@x", "accuracy@inf"])
def test_bad_objectives_are_refused(text):
    with pytest.raises(ValueError, match="objective must be acr or accuracy@RADIUS"):
        Objective(text)


def test_shorter_rungs_scale_the_schedule():
    recipe = recipes.find("mnist")
    short = tuning.scaled(recipe, 20)
    assert (short.epochs, short.switch_epoch, short.decay_epochs) == (20, 10, (10, 15))
    assert tuning.scaled(recipe, 1).decay_epochs == (1,)


def test_an_ablation_changes_one_field_at_a_time(tmp_path):
    space = [Range.parse("lam=0,1,4"), Range.parse("r_max=0,0.1")]
    model = CertifiedHyperModel(TINY.replace(lam=4.0, r_max=0.1), space, tmp_path)
    pairs = [(d["lam"], d["r_max"]) for d in tuning.designs(model)]
    assert pairs == [(0.0, 0.1), (1.0, 0.1), (4.0, 0.1), (4.0, 0.0)]


def test_trials_differ_by_their_hyperparameters_alone(tmp_path):
    """The score is what the trial's recipe gives anywhere: same weights, same validation images, same noise."""
    model = CertifiedHyperModel(TINY, [Range.parse("lam=0:8")], tmp_path / "search", Objective("accuracy@0.05"))
    hp = model.hyperparameters()
    hp.values["lam"] = 3.0
    assert model.trial_recipe(hp) == TINY.replace(lam=3.0)
    scores = model.fit(hp, model.build(hp))
    folder = RunFolder(tmp_path / "again")
    recipe = TINY.replace(lam=3.0, name="best", source="a search")
    folder.claim(recipe)
    _, labels, certificates = jobs.certify(recipe, folder, fitting.train(recipe, folder), split="validation")
    assert scores == {"accuracy@0.05": model.objective.value(certificates, labels)}
    settings = json.loads((folder.path / "certificates.json").read_text())
    assert settings["split"] == "validation"
    assert np.array_equal(jobs.sorted_certificates(folder.certificates_file)[0], np.arange(8))


@pytest.mark.parametrize("kind", ["random", "hyperband"])
def test_every_oracle_searches(kind, tmp_path):
    recipe = TINY.replace(epochs=4, train_images=128, certify_images=4)
    model = CertifiedHyperModel(recipe, [Range.parse("lam=0:8"), Range.parse("noisy_mean=true,false")], tmp_path)
    tuner = tuning.make_tuner(model, kind, trials=3)
    tuner.search(verbose=0)
    trials = tuning.trials_of(tuner.oracle, model)
    assert len(trials) >= 3 and all(t.status == "completed" for t in trials)
    assert [t.score for t in trials] == sorted((t.score for t in trials), reverse=True)
    epochs = {t.recipe.epochs for t in trials}
    assert epochs == {4} if kind == "random" else min(epochs) < 4
    assert tuner.load_model(tuner.oracle.get_best_trials()[0]).count_params() > 0


def test_a_failed_trial_is_marked_and_survived(tmp_path):
    model = CertifiedHyperModel(TINY, [Range.parse("learning_rate=1e30,0.01")], tmp_path)
    tuner = tuning.make_tuner(model, "grid", trials=5)
    tuner.search(verbose=0)
    good, bad = tuning.trials_of(tuner.oracle, model)
    assert (good.recipe.learning_rate, good.status) == (0.01, "completed")
    assert (bad.recipe.learning_rate, bad.status, bad.score) == (1e30, "failed", None)


def test_a_grid_over_an_interval_and_another_search_are_refused(tmp_path):
    model = CertifiedHyperModel(TINY, [Range.parse("lam=0:8")], tmp_path / "search")
    with pytest.raises(ValueError, match=r"the grid tuner takes lists, such as lam=0,0\.5,1,4"):
        tuning.make_tuner(model, "grid")
    with pytest.raises(ValueError, match="tuner must be one of random, bayesian, hyperband, grid, ablation"):
        tuning.make_tuner(model, "evolution")
    assert not (tmp_path / "search").exists()
    tuning.make_tuner(model, "random")
    other = CertifiedHyperModel(TINY, [Range.parse("lam=0:4")], tmp_path / "search")
    with pytest.raises(ValueError, match=r"holds another search .*space: "):
        tuning.make_tuner(other, "random")


def test_interruptions_stop_the_search(tmp_path):
    """keras-tuner takes other exceptions for failed trials."""
    environment = jobs.Environment(stop=lambda: True)
    model = CertifiedHyperModel(TINY, [Range.parse("lam=0:8")], tmp_path, environment=environment)
    with pytest.raises(jobs.Interrupted):
        tuning.make_tuner(model, "random").search(verbose=0)
    assert issubclass(tuning._Halt, kt.errors.FatalError)


@pytest.mark.slow
def test_killed_it_resumes_and_the_best_recipe_runs(tmp_path):
    """kill -9 after the first trial; the same command ends with the trials of a search that was not killed."""
    arguments = ["--tuner", "random", "--trials", "2", "--search", "lam=0:8", "r_max=0:0.4"]
    whole = call_program(PROGRAM, *FLAGS, *arguments, "--out", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    assert {p.name for p in (tmp_path / "whole" / "report").iterdir()} == {
        "index.html",
        "table.md",
        "results.json",
        "objective.png",
        "parallel.png",
    }
    process = forked.Popen(command(*arguments, "--out", tmp_path / "killed"), stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "completed" in line:
            break
    time.sleep(1.0)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    resumed = search(*arguments, "--out", tmp_path / "killed")
    assert resumed.returncode == 0, resumed.stderr
    tables = [(tmp_path / name / "report" / "table.md").read_text() for name in ("whole", "killed")]
    assert tables[0] == tables[1] and tables[0].count("completed") == 2
    assert "| lam 0 |" in tables[0] and "| gaussian_augmentation |" in tables[0]
    best = recipes.find(tmp_path / "whole" / "best_recipe.json")
    assert f"| lam {best.lam:.4g}, r_max {best.r_max:.4g} |" in tables[0].split("completed")[0]
    flags = ["--recipe", tmp_path / "whole" / "best_recipe.json", "--reference", "none", "--run-dir"]
    flags += [tmp_path / "run"]
    done = call_program(Path(PROGRAM).parent / "run.py", *flags)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_killed_worker_costs_one_trial(tmp_path):
    """A chief and two workers; one is killed in a trial and started again; every trial is completed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    arguments = command("--tuner", "random", "--trials", "2", "--epochs", "3", "--out", tmp_path / "search")

    def start(name):
        names = {"KERASTUNER_TUNER_ID": name, "KERASTUNER_ORACLE_IP": "127.0.0.1", "KERASTUNER_ORACLE_PORT": port}
        return forked.Popen(
            arguments, env={**os.environ, **names}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    processes = {name: start(name) for name in ("chief", "worker0")}
    runs = tmp_path / "search" / "runs"
    wait_for(lambda: runs.exists() and any(runs.glob("*/history.csv")))
    processes["worker0"].kill()
    processes["worker0"].communicate()
    processes |= {name: start(name) for name in ("worker0", "worker1")}
    outputs = {name: process.communicate(timeout=300)[0] for name, process in processes.items()}
    assert all(process.returncode == 0 for process in processes.values()), outputs
    assert (tmp_path / "search" / "report" / "table.md").read_text().count("completed") == 2
    # The trial in work was taken up again, not lost: two trials and two baselines in all.
    assert len(list(runs.iterdir())) == 4


def wait_for(condition, seconds: float = 120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--search", "lam=8:0"], "must have LOW below HIGH"),
        (["--objective", "loss"], "objective must be acr or accuracy@RADIUS"),
        (["--tuner", "magic"], "invalid choice: 'magic'"),
        (["--trials", "0"], "trials must be a whole number"),
        (["--search", "lam=0:8", "--tuner", "grid"], "the grid tuner takes lists"),
    ],
)
def test_bad_flags_are_refused_with_nothing_written(arguments, message, tmp_path):
    done = call_program(PROGRAM, *FLAGS, *arguments, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "names, message",
    [
        ({"ORACLE_IP": "127.0.0.1"}, "KERASTUNER_TUNER_ID and KERASTUNER_ORACLE_PORT must be set beside"),
        ({"TUNER_ID": "chief"}, "KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT must be set"),
        ({"TUNER_ID": "worker0", "ORACLE_IP": "127.0.0.1", "ORACLE_PORT": "99999"}, "from 1 to 65535, got '99999'"),
    ],
)
def test_half_of_a_search_in_parallel_is_refused(names, message, tmp_path, monkeypatch, capsys):
    """The first ended in a KeyError, and a worker waited for a port that no machine has."""
    for name, value in names.items():
        monkeypatch.setenv(f"KERASTUNER_{name}", value)
    assert search_command.main(["--smoke", "--trials", "1", "--out", str(tmp_path / "search")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "search").exists()
