"""The programs as a user runs them: the whole job in a process of its own, what is quick in this one."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
from conftest import call_program

ROOT = Path(__file__).parent.parent
QUICK = ["--epochs", "2", "--switch-epoch", "1", "--decay-epochs", "--certify-images", "4", "--certify-n", "200"]


def run(*arguments, cwd=ROOT):
    return call_program(ROOT / "training" / "run.py", *arguments, cwd=cwd)


def test_run_trains_certifies_and_reports(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, ROOT / "training" / "run.py", *QUICK, "--run-dir", folder]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for place in (folder, folder / "reference"):
        assert {"recipe.json", "classifier.keras", "checkpoints", "history.csv", "certificates.tsv"} <= {
            p.name for p in place.iterdir()
        }
        rows = list(csv.DictReader((place / "certificates.tsv").read_text().splitlines(), delimiter="\t"))
        assert [int(r["idx"]) for r in rows] == [0, 1, 2, 3]
    assert (folder / "report" / "index.html").exists()
    assert (folder / "export" / "digits_stepped" / "1" / "saved_model.pb").exists()
    # Where nothing is said: ours, beside the paper's method, that trains as long.
    recorded = [json.loads((place / "recipe.json").read_text()) for place in (folder, folder / "reference")]
    assert [r["method"] for r in recorded] == ["stepped_consistency", "covariance_radius"]
    assert [r["hyper"]["switch_epoch"] for r in recorded] == [1, 1] and recorded[1]["hyper"]["gamma"] == 0.5
    assert "ACR" in done.stdout and "adjoint, calibrated gates" in done.stdout
    # TensorFlow's start-up chatter is quiet: only the progress bars' own lines.
    assert all("%|" in line for line in done.stderr.replace("\r", "\n").splitlines() if line.strip()), done.stderr
    again = run(*QUICK, "--run-dir", folder)
    assert again.returncode == 0 and again.stdout == done.stdout
    other = run(*QUICK, "--lam", "3", "--run-dir", folder)
    assert other.returncode == 2 and "holds another recipe (lam: 2.0 there, 3.0 here)" in other.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--sigma", "-1"], "sigma must be a number in (0, 10), got -1.0"),
        (["--recipe", "nothing"], "recipe must be one of digits"),
        (["--sigam", "1"], "unrecognized arguments: --sigam 1"),
        (["--method", "magic"], "method must be one of gaussian_augmentation, "),
        (["--certify-n", "0"], "certify_n must be a whole number from 1 to 10000000, got 0"),
        (["--data", "nothing"], "data set must be one of digits"),
    ],
)
def test_bad_flags_are_refused_with_nothing_written(arguments, message, tmp_path):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())


def test_ctrl_c_saves_and_says_how_to_resume(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, str(ROOT / "training" / "run.py"), *QUICK, "--epochs", "400", "--run-dir", str(folder)]
    process = forked.Popen(command, stderr=subprocess.PIPE, text=True)
    checkpoints = folder / "reference" / "checkpoints"
    for _ in range(600):
        if list(checkpoints.glob("epoch_*")):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "To resume: run the same command" in errors
    assert "Traceback" not in errors and not (folder / "reference" / "classifier.keras").exists()


def test_a_recipe_is_shown_saved_and_taken_back(tmp_path):
    shown = run("--recipe", "mnist", "--lam", "2", "--show")
    (tmp_path / "my.json").write_text(shown.stdout)
    assert shown.stderr.splitlines() == ["lam: 2.0, in mnist 4.0"]
    again = run("--recipe", tmp_path / "my.json", "--show")
    assert again.stdout == shown.stdout and not again.stderr


def test_noisy_labels_are_compared_on_clean_ones(tmp_path):
    flags = [*QUICK[:5], "--run-dir", tmp_path, "--label-noise", "0.2"]
    done = call_program(ROOT / "training" / "noisy_labels.py", *flags)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    methods = ["cross_entropy", "truncated_lq", "gaussian_augmentation", "covariance_radius", "covariance_radius+drop"]
    assert [line.split()[0] for line in lines] == ["method", *methods]
    assert all(line.split()[3] == "2" for line in lines[1:])
    recipe = json.loads((tmp_path / "covariance_radius+drop" / "recipe.json").read_text())
    assert recipe["hyper"]["drop_share"] == 0.1 and recipe["label_noise"] == 0.2


def test_help_is_complete_and_has_examples():
    from covkeras import Recipe, objectives

    text = run("--help").stdout
    for kind in (Recipe, *objectives.METHODS.values()):
        for name in Recipe.own_fields() if kind is Recipe else kind.hyperparameters():
            assert name in ("name", "source") or f"--{name.replace('_', '-')}" in text
    assert "examples:" in text


def test_import_is_quick_and_light():
    program = (
        "import covkeras, sys; print(sorted(m for m in sys.modules if m in ('tensorflow', 'keras', 'matplotlib')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]" and not done.stderr
    # Loading every public name adds none of the heavy ones to what Keras and TensorFlow load themselves.
    heavy = "print([m for m in sys.modules if m in ('tensorflow_datasets', 'tensorflow_probability', 'keras_tuner')])"
    # `tuning` alone is keras-tuner's: it says so by its name.
    names = "for name in set(covkeras.__all__) - {'tuning'}: getattr(covkeras, name)"
    program = f"import covkeras, sys\n{names}\n{heavy}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


PEER = """idx\tlabel\tpredict\tradius\tcorrect\ttime
0\t3\t3\t0.5\t1\t0:00:12.5
1\t8\t-1\t0.0\t0\t0:00:12.5
2\t8\t8\t0.3\t1\t0:00:12.5
3\t0\t6\t0.9\t0\t0:00:12.5
"""


def test_report_reads_cohens_logs(tmp_path):
    (tmp_path / "peer.tsv").write_text(PEER)
    program = ROOT / "training" / "report.py"
    done = call_program(program, tmp_path / "peer.tsv", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    # ACR (0.5 + 0.3) / 4; accuracy 2/4 at 0 and 0.25, 1/4 at 0.5; one of four abstained.
    assert done.stdout.splitlines()[1].split()[:5] == ["peer", "0.2000", "0.500", "0.500", "0.250"]
    assert (tmp_path / "out" / "index.html").exists()
    (tmp_path / "peer.tsv").write_text("nothing")
    done = call_program(program, tmp_path / "peer.tsv")
    assert done.returncode == 2 and "not a certification log" in done.stderr


@pytest.mark.real_data
def test_published_logs_give_the_published_figures():
    """The ACR of Cohen's CIFAR-10 and ImageNet logs, to four digits."""
    from conftest import DATA_DIR

    logs = Path(DATA_DIR).parent / "peer_logs"
    sigmas = ("0.25", "0.50", "1.00")
    files = [logs / f"locuslab_{d}_sigma_{s}.tsv" for d in ("cifar10_resnet110", "imagenet_resnet50") for s in sigmas]
    done = call_program(ROOT / "training" / "report.py", *files)
    table = done.stdout.split("\n\n")[0]  # what follows compares them in pairs
    acr = [float(line.split()[1]) for line in table.splitlines()[1:]]
    assert acr == pytest.approx([0.4289, 0.5375, 0.5417, 0.4765, 0.7325, 0.8752], abs=6e-5)
