import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
from conftest import call_program

from covkeras import models

PROGRAM = str(Path(__file__).parent.parent / "training" / "certify.py")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    path = tmp_path_factory.mktemp("classifier") / "classifier.keras"
    models.lenet((8, 8, 1)).save(path)
    return path


def certify(*arguments, **options):
    return call_program(PROGRAM, *arguments, **options)


def without_time(path) -> list[list[str]]:
    return [[c for i, c in enumerate(line.split("\t")) if i != 5] for line in path.read_text().splitlines()]


COMMON = ["--sigma", "0.25", "--n", "500", "--n0", "50", "--max", "12", "--skip", "2"]


def test_shards_in_any_order_and_kills_give_the_same_file(classifier, tmp_path):
    """Bit for bit, except the time column."""
    whole = tmp_path / "whole.tsv"
    done = certify(classifier, *COMMON, "--out", whole)
    assert done.returncode == 0, done.stderr
    assert [row[0] for row in without_time(whole)] == ["idx", "0", "2", "4", "6", "8", "10"]
    shards = [tmp_path / f"s{i}.tsv" for i in range(2)]
    for i in (1, 0):
        assert certify(classifier, *COMMON, "--shard", f"{i}/2", "--out", shards[i]).returncode == 0
    merged = certify("--merge", tmp_path / "merged.tsv", shards[1], shards[0])
    assert merged.returncode == 0, merged.stderr
    assert without_time(tmp_path / "merged.tsv") == without_time(whole)
    settings = json.loads((tmp_path / "merged.json").read_text())
    assert settings["noise"] == "lattice" and settings["n"] == 500 and settings["precision"] == "float32"
    assert {"tensorflow", "keras", "numpy", "covkeras"} == set(settings["versions"])

    again = certify("--merge", tmp_path / "merged.tsv", *shards)
    assert again.returncode == 2 and "exists" in again.stderr
    overlap = certify("--merge", tmp_path / "overlap.tsv", shards[0], whole)
    assert overlap.returncode == 2 and "overlap: both certify image 0" in overlap.stderr
    other = tmp_path / "other.tsv"
    assert certify(classifier, *COMMON, "--seed", "1", "--shard", "1/2", "--out", other).returncode == 0
    mismatch = certify("--merge", tmp_path / "mismatch.tsv", shards[0], other)
    assert mismatch.returncode == 2 and "different settings (seed: 0 there, 1 here)" in mismatch.stderr
    resumed = certify(classifier, *COMMON, "--alpha", "0.01", "--out", whole)
    assert resumed.returncode == 2 and "was made with other settings (alpha: 0.001 there, 0.01 here)" in resumed.stderr


def test_sequential_runs_resume_and_merge(classifier, tmp_path):
    """The same decisions and samples; the lines come in the order of deciding."""
    arguments = [classifier, "--sigma", "0.25", "--n", "3000", "--max", "24", "--radius", "0.05"]
    whole, first = tmp_path / "whole.tsv", tmp_path / "first.tsv"
    done = certify(*arguments, "--out", whole)
    assert done.returncode == 0 and "certified at 0.05: " in done.stdout, done.stderr
    assert certify(*arguments, "--shard", "0/2", "--out", first).returncode == 0
    assert certify(*arguments, "--shard", "1/2", "--out", tmp_path / "second.tsv").returncode == 0
    assert certify("--merge", tmp_path / "merged.tsv", first, tmp_path / "second.tsv").returncode == 0
    merged = without_time(tmp_path / "merged.tsv")
    # The last column, all samples drawn, counts those that a batch held beyond the decision.
    assert [row[:-1] for row in merged[1:]] == sorted(
        (row[:-1] for row in without_time(whole)[1:]), key=lambda r: int(r[0])
    )
    assert {row[3] for row in merged[1:]} <= {"0.05", "0.0"}
    precise = certify(*arguments[:-2], "--tolerance", "0.05", "--out", tmp_path / "to.tsv")
    assert precise.returncode == 0 and len(without_time(tmp_path / "to.tsv")) == 25, precise.stderr
    mixed = certify("--merge", tmp_path / "mixed.tsv", first, tmp_path / "to.tsv")
    assert mixed.returncode == 2 and "radius: 0.05 there, None here" in mixed.stderr


@pytest.mark.slow
def test_killed_it_resumes_to_the_same_file(classifier, tmp_path):
    """kill -9 three times, each after another image is on the disk; then to the end."""
    arguments = [str(classifier), "--sigma", "0.25", "--n", "20000", "--max", "12"]
    assert certify(*arguments, "--out", tmp_path / "whole.tsv").returncode == 0
    path, kills = tmp_path / "killed.tsv", 0
    for _ in range(3):
        before = path.read_text().count("\n") if path.exists() else 1
        command = [sys.executable, PROGRAM, *arguments, "--out", str(path)]
        process = forked.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and (not path.exists() or path.read_text().count("\n") <= before):
            time.sleep(0.02)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills > 0
    assert certify(*arguments, "--out", path).returncode == 0
    assert without_time(path) == without_time(tmp_path / "whole.tsv")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "give one classifier file and --sigma"),
        (["--sigma", "0"], "sigma must be a number in"),
        (["--sigma", "0.5", "--shard", "2/2"], "shard must be I/N with 0 <= I < N"),
        (["--sigma", "0.5", "--radius", "-1"], "radius must be a number in [0, inf)"),
        (["--sigma", "0.5", "--radius", "1", "--tolerance", "1"], "give one of --radius, --radii and --tolerance"),
        (["--sigma", "0.5", "--devices", "3"], "devices must be auto, cpu, or a number from 1 to 2"),
        (["--sigma", "0.5", "--n", "0"], "n must be a whole number from 1"),
        (["--sigma", "0.5", "--data", "nothing"], "data set must be one of digits"),
    ],
)
def test_bad_arguments_write_nothing(arguments, message, classifier, tmp_path):
    done = certify(classifier, *arguments, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
