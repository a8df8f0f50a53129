"""Comparing methods: what each is given, the program as a user runs it, what a table says."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import call_program

from covkeras.experiments import comparing, fitting, recipes
from covkeras.experiments.comparing import Comparison, Cost, Entry, Outcome
from covkeras.reports.comparison import comparison_figures, comparison_table, gains
from covkeras.reports.results import Result

PROGRAM = Path(__file__).parent.parent / "training" / "compare.py"
TINY = recipes.find("digits").replace(
    epochs=2, switch_epoch=1, decay_epochs=(1,), train_images=256, certify_images=12, certify_n=200
)
FLAGS = [
    *["--epochs", "2", "--switch-epoch", "1", "--decay-epochs", "1", "--train-images", "256"],
    *["--certify-images", "12", "--certify-n", "200"],
]


def compare(*arguments):
    return call_program(PROGRAM, *FLAGS, *arguments)


def test_methods_are_read_with_their_authors_weights():
    mnist = recipes.find("mnist_protocol")
    assert Entry.parse("consistency", mnist.replace(sigma=0.25)).recipe.lam == 10
    assert Entry.parse("consistency", mnist).recipe.lam == 5
    assert Entry.parse("macer", mnist.replace(sigma=1.0)).recipe.lam == 6
    assert Entry.parse("macer", mnist.replace(data="cifar10")).recipe.lam == 12
    ours = Entry.parse("adjoint_radius", mnist.replace(sigma=0.25, switch_epoch=3)).recipe
    assert (ours.consistency, ours.radius_every, ours.gamma, ours.switch_epoch) == (10, 16, 3, 3)
    ours = Entry.parse("adjoint_radius", mnist.replace(sigma=1.0)).recipe
    assert (ours.lam, ours.gamma, ours.sampled_share, ours.antithetic) == (0.2, 1.5, 0.9, False)
    # The recipe's own method keeps the recipe's weights; what is given wins.
    assert Entry.parse("covariance_radius", mnist.replace(lam=2.0)).recipe.lam == 2
    entry = Entry.parse("consistency:lam=3,antithetic=true,epochs=30", mnist)
    assert (entry.recipe.lam, entry.recipe.antithetic, entry.recipe.epochs) == (3, True, 30)
    assert entry.recipe.decay_epochs == (10, 20)


@pytest.mark.parametrize(
    "text, message",
    [
        ("cohen", "method must be one of"),
        ("macer:lamda=2", "FIELD one of"),
        ("macer:sigma=1", "FIELD one of"),
        ("macer:lam", "must be METHOD:FIELD=VALUE"),
        ("macer:lam=much", "lam must be a number, got 'much'"),
        ("macer:lam=-1", "lam must be a"),
        ("consistency:antithetic=maybe", "antithetic must be true or false, got 'maybe'"),
    ],
)
def test_bad_methods_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Entry.parse(text, TINY)


def test_compare_trains_certifies_reports_and_takes_up_more(tmp_path):
    out = tmp_path / "compared"
    methods = ["adjoint_radius:gamma=2", "gaussian_augmentation"]
    first = compare("--methods", methods[0], "--out", out)
    assert first.returncode == 0, first.stderr
    folder = out / "runs" / "adjoint_radius,gamma=2-seed0"
    before = (folder / "certificates.tsv").read_bytes()
    steps = json.loads((out / "steps.json").read_text())
    assert len(steps[methods[0]]["ratios"]) == 15

    # A second seed and another method: what is done stays.
    again = compare("--methods", *methods, "--seeds", 0, 1, "--out", out)
    assert again.returncode == 0, again.stderr
    rows = {line.split()[0]: line.split() for line in again.stdout.splitlines() if line and "adjoint," not in line}
    assert set(methods) <= set(rows)
    files = {f.name for f in (out / "report").iterdir()}
    assert files >= {"curves.png", "cost.png", "frontier.png", "fidelity_1.png", "table.md", "index.html"}
    assert (folder / "certificates.tsv").read_bytes() == before
    assert json.loads((out / "steps.json").read_text())[methods[0]] == steps[methods[0]]
    assert json.loads((out / "steps.json").read_text())[methods[1]]["ratios"] == [1.0] * 15
    runs = {p.name for p in (out / "runs").iterdir()}
    assert len(runs) == 4 and "gaussian_augmentation-seed1" in runs
    assert "±" in again.stdout
    with (out / "runs" / "gaussian_augmentation-seed1" / "certificates.tsv").open() as file:
        assert len(list(csv.DictReader(file, delimiter="\t"))) == 12

    # What is missing is picked up without saying again what was asked for.
    table = (out / "report" / "table.md").read_text()
    shutil.rmtree(out / "runs" / "gaussian_augmentation-seed1")
    assert json.loads((out / "asked.json").read_text()) == {"methods": methods, "seeds": [0, 1]}
    last = call_program(PROGRAM, "--continue", "--out", out)
    assert last.returncode == 0, last.stderr
    assert (folder / "certificates.tsv").read_bytes() == before
    assert (out / "report" / "table.md").read_text() == table


def test_a_runs_folder_is_one_folder_whatever_its_label_holds(tmp_path):
    """A teacher's path made folders in folders, and `../` others' folders."""
    recipe = recipes.find("digits")
    comparison = Comparison(tmp_path, recipe)
    found = {
        comparison.run_folder(Entry.parse(f"distillation:teacher={path}", recipe), 0).path
        for path in ("/data/a.keras", "../../a.keras", "a.keras")
    }
    assert len(found) == 3 and {path.parent for path in found} == {tmp_path / "runs"}


def test_other_comparisons_and_bad_flags_are_refused_with_nothing_written(tmp_path):
    out = tmp_path / "compared"
    for flags, message in (
        (["--methods", "macer", "macer"], "methods must differ"),
        (["--seeds", "0", "0"], "seeds must differ"),
        (["--seconds", "-1"], "seconds must be"),
        (["--seconds", "5", "--methods", "macer:epochs=2"], "sets epochs, and --seconds too"),
        (["--methods", "consistency:num_copies=1"], "num_copies must be at least 2"),
        (["--methods", "gaussian_augmentation", "cat_rs"], "teacher must be a .keras file"),
    ):
        result = compare(*flags, "--out", out)
        assert result.returncode == 2 and message in result.stderr, result.stderr
        assert not out.exists()
    out.mkdir()
    (out / "thesis.tex").touch()
    assert "holds no comparison.json" in compare("--out", out).stderr
    (out / "thesis.tex").unlink()
    Comparison(out, TINY).claim([Entry.parse("macer", TINY)], [0])
    for flags, message in (
        (["--continue", "--out", out, "--sigma", "0.5"], "leave out --sigma"),
        (["--continue", "--out", out, "--lam", "0.5", "--seconds", "3"], "leave out --lam --seconds"),
        (["--continue", "--out", tmp_path / "none"], "holds no comparison.json to continue"),
        (["--continue", "--out", out], "does not say what it was asked for"),
    ):
        result = call_program(PROGRAM, *flags)
        assert result.returncode == 2 and message in result.stderr, result.stderr
    (out / "asked.json").write_text('{"methods": 3}')
    assert "asked.json is damaged" in call_program(PROGRAM, "--continue", "--out", out).stderr
    result = compare("--out", out, "--sigma", "0.5")
    assert result.returncode == 2 and "sigma: 0.25 there, 0.5 here" in result.stderr


def test_equal_seconds_are_equal_epochs_times_their_cost(tmp_path):
    comparison = Comparison(tmp_path, TINY, seconds=8.0)
    entry = Entry.parse("consistency", TINY)
    # 256 images are 4 steps, each twice .25 s: 2 s an epoch, 4 epochs in 8 s.
    costs = {
        "gaussian_augmentation": Cost((0.2, 0.25, 1.5), (1.0, 1.0, 1.0)),
        "consistency": Cost((9.0, 9.0, 9.0), (1.0, 2.0, 2.5)),
    }
    assert comparison.epoch_seconds(entry, costs) == 2.0
    budgeted = comparison.budgeted(entry, costs).recipe
    assert (budgeted.epochs, budgeted.decay_epochs) == (4, (2,))
    costs["consistency"] = Cost((1.0,), (100.0,))
    assert comparison.budgeted(entry, costs).recipe.epochs == 1


def test_steps_are_timed_once_but_for_a_method_with_other_weights(tmp_path, monkeypatch):
    timed = []

    def interleave(sides, rounds, update):
        timed.append(set(sides))
        return {label: [1.0 + len(timed)] * rounds for label in sides}

    monkeypatch.setattr(comparing, "interleave", interleave)
    monkeypatch.setattr(Comparison, "_step", lambda self, entry: None)
    comparison = Comparison(tmp_path, TINY)
    plain, pair = (Entry.parse(m, TINY) for m in ("gaussian_augmentation", "consistency"))
    first = comparison.costs([plain, pair], 3)
    assert comparison.costs([plain, pair], 3) == first and len(timed) == 1
    newer = Entry("consistency", pair.recipe.replace(lam=7.0))
    again = comparison.costs([plain, newer], 3)
    assert timed[1:] == [{"gaussian_augmentation", "consistency"}]
    assert again["gaussian_augmentation"] == first["gaussian_augmentation"] and again["consistency"].seconds[0] == 3.0
    assert comparison.costs([plain, newer], 3) == again and len(timed) == 2


def test_a_tables_figures_are_means_over_seeds(tmp_path):
    from covkeras import Certificates

    def result(radius):
        radius = np.array(radius)
        given = Certificates(np.array([0, 1]), radius, 0.5 + 0 * radius, np.full(2, 100), np.zeros(2))
        return Result("macer", np.array([0, 0]), given)

    entry = Entry.parse("macer", TINY)
    seeds = (result([0.3, 0.9]), result([0.5, 0.9]))
    outcome = Outcome(entry, seeds, (0.9, 0.8), Cost((1.0,), (7.0,)), 4.0)
    first = Outcome(entry, (result([0.1, 0.9]), result([0.1, 0.9])), (0.9, 0.8), Cost((1.0,), (1.0,)), 4.0)
    rows = comparison_table([first, outcome])
    row = dict(zip(rows[0], rows[2], strict=True))
    # .4 less .1 on the one image, 0 on the other: .15, and .3 / sqrt 2 over sqrt 2.
    assert rows[1][2] == "-" and row["gain (s.e.)"] == "+0.150 (0.150)"
    # The second image is wrong: radii .3 and .5 over two images, and their mean's standard deviation.
    assert row["ACR"] == "0.200 ± 0.071" and row["acc at 0.25"] == "0.500 ± 0.000"
    assert row["acc at 0.5"] == "0.250 ± 0.354" and row["clean"] == "0.8500 ± 0.0707"
    assert (row["step cost"], row["s/epoch"], row["seeds"]) == ("7.00", "4.0", "2")
    # Differences are image by image: of other images there is none.
    some, others = (replace(result([0.1, 0.9]), indices=np.array(i)) for i in ([0, 20], [0, 1]))
    with pytest.raises(ValueError, match="are of different images"):
        gains([some], [others])


def test_a_tables_figures_are_there_as_data(tmp_path):
    """A row per method and seed: what results.json holds, by hand."""
    from covkeras import Certificates

    def outcome(method, radii, seeds):
        given = [
            Certificates(np.array([0, 1]), np.array(r), np.full(2, 0.9), np.full(2, 100), np.zeros(2)) for r in radii
        ]
        results = tuple(Result(method, np.array([0, 0]), c) for c in given)
        return Outcome(Entry.parse(method, TINY), results, (0.9,) * len(seeds), Cost((1.0,), (2.0, 4.0)), 1.0, seeds)

    first = outcome("gaussian_augmentation", [[0.1, 0.9], [0.2, 0.9]], (3, 7))
    second = outcome("macer", [[0.5, 0.9], [0.4, 0.9]], (3, 7))
    rows = json.loads(json.dumps(comparison_figures([first, second])))
    assert [(r["method"], r["seed"]) for r in rows] == [
        ("gaussian_augmentation", 3), ("gaussian_augmentation", 7), ("macer", 3), ("macer", 7),
    ]  # fmt: skip
    row = rows[2]
    # The second image is wrong: radii .5 and 0, their mean .25, its standard error .5 / sqrt 2 / sqrt 2.
    assert row["ACR"] == pytest.approx(0.25) and row["ACR se"] == pytest.approx(0.25)
    assert row["gain"] == pytest.approx(0.2) and row["gain se"] == pytest.approx(0.2)
    assert (row["acc at 0"], row["acc at 0.5"], row["images"], row["step cost"]) == (0.5, 0.5, 2, 3.0)
    assert row["recipe"]["method"] == "macer" and rows[0]["gain"] is None


def test_clean_accuracy_is_the_plain_classifiers(digits):
    from covkeras import models

    classifier, some = models.lenet((8, 8, 1)), digits.head(70)
    expected = (classifier.predict(some.floats(), verbose=0).argmax(1) == some.labels).mean()
    assert fitting.clean_accuracy(classifier, some, batch_size=32) == pytest.approx(expected)


def test_a_method_that_diverges_is_left_out_and_the_others_go_on(tmp_path, capsys):
    """Whole: its other seeds are no fair sample of it. It isn't trained on them, and the command fails by its name."""
    from covkeras import Certificates
    from covkeras.commands.compare import run

    asked = []

    class Some(Comparison):
        def costs(self, entries, rounds=15):
            return {e.label: Cost((1.0,), (2.0,)) for e in entries}

        def epoch_seconds(self, entry, costs):
            return 1.0

        def run(self, entry, seed):
            asked.append((entry.label, seed))
            if entry.label == "macer" and seed == 1:
                raise fitting.NonFiniteLoss("the loss became nan in epoch 0, step 7")
            radius = np.array([0.3, 0.9])
            given = Certificates(np.array([0, 1]), radius, 0.5 + 0 * radius, np.full(2, 100), np.zeros(2))
            return Result(entry.label, np.array([0, 1]), given), 0.9

    entries = [Entry.parse(method, TINY) for method in ("macer", "gaussian_augmentation", "consistency")]
    with pytest.raises(fitting.NonFiniteLoss, match=r"left out, since the training diverged: macer, seed 1: the loss"):
        run(Some(tmp_path, TINY), entries, (0, 1, 2))
    methods = ("gaussian_augmentation", "consistency")
    assert asked == [("macer", 0), *((m, 0) for m in methods), ("macer", 1), *((m, s) for s in (1, 2) for m in methods)]
    rows = json.loads((tmp_path / "report" / "results.json").read_text())["rows"]
    assert [(r["method"], r["seed"]) for r in rows] == [(m, s) for m in methods for s in (0, 1, 2)]
    page = (tmp_path / "report" / "index.html").read_text()
    assert "its training diverged" in page and "the loss became nan in epoch 0, step 7" in page
    assert "macer seed 1: the loss became nan" in capsys.readouterr().err
    # Where none is left there's no report.
    with pytest.raises(fitting.NonFiniteLoss, match="macer, seed 1"):
        run(Some(tmp_path / "none", TINY), entries[:1], (1,))
    assert not (tmp_path / "none" / "report").exists()
