"""Numbers that no command can mean, for every one of its number flags: one line, exit 2, and nothing written."""

import pytest
from conftest import small_classifier

from covkeras.certification.certificates import Certificates
from covkeras.certification.logs import CertificateFile
from covkeras.commands.main import main
from covkeras.diagnostics import layerwise

# Too small, no number, too large for a machine's.
ODD = ("-1", "nan", "9" * 20)
COMMANDS = {
    "certify": (
        ["{classifier}", "--data", "digits", "--sigma", "0.25", "--max", "2", "--n", "1000", "--out", "{out}.tsv"],
        ["sigma", "n0", "n", "alpha", "seed", "batch", "start", "max", "skip", "image-size", "actors", "block"]
        + ["radius", "radii", "tolerance", "devices"],
    ),
    "attack": (
        ["{classifier}", "--certificates", "{log}"],
        ["max", "factors", "steps", "copies", "n", "seed"],
    ),
    "report": (["{log}", "--out", "{out}"], ["alpha"]),
    "diagnose": (
        ["--classifier", "{classifier}", "--data", "digits", "--out", "{out}"],
        ["sigma", "r-max", "images", "samples", "seed", "memory-gb"],
    ),
    "search": (["--smoke", "--out", "{out}"], ["trials", "tuner-seed", "seeds", "checkpoint-minutes", "devices"]),
    "compare": (["--smoke", "--out", "{out}"], ["seeds", "seconds", "devices"]),
    "noisy-labels": (["--smoke", "--out", "{out}"], ["last", "label-noise", "devices", "seed", "checkpoint-minutes"]),
    "export": (
        ["{classifier}", "--sigma", "0.25", "--data", "digits", "--out", "{out}/1"],
        ["sigma", "sigmas", "n0", "n", "alpha", "n-predict", "max-samples", "image-size"],
    ),
    "train": (
        ["--smoke", "--run-dir", "{out}"],
        ["checkpoint-minutes", "devices", "sigma", "epochs", "batch-size", "learning-rate", "seed", "image-size"]
        + ["widen", "reference-epochs", "certify-n", "certify-alpha", "certify-batch", "train-images", "decay-epochs"],
    ),
    "denoise": (
        ["{classifier}", "--data", "digits", "--smoke", "--run-dir", "{out}"],
        ["checkpoint-minutes", "devices", "sigma", "epochs", "batch-size", "certify-images"],
    ),
    "serve": (["{out}"], ["threads", "poll", "grace", "rest-port", "grpc-port"]),
    "client": (
        ["{classifier}", "--model", "mine", "--retries", "0"],
        ["n0", "n", "sigma", "radius", "alpha", "seed", "version", "timeout", "retries", "channels"],
    ),
}
# What a huge number may well mean: all images or memory; a precision, or attacks, beyond every radius.
MEANT = {("certify", "max"), ("certify", "tolerance"), ("certify", "block"), ("attack", "max"), ("attack", "factors")}
MEANT |= {("diagnose", "memory-gb"), ("compare", "seconds"), ("search", "checkpoint-minutes")}
MEANT |= {("train", "checkpoint-minutes"), ("denoise", "checkpoint-minutes"), ("client", "radius")}
MEANT |= {("train", "learning-rate"), ("noisy-labels", "last"), ("noisy-labels", "checkpoint-minutes")}
MEANT |= {(command, name) for command in ("train", "denoise") for name in ("train-images", "certify-images")}
CASES = [
    (command, flag, value)
    for command, (_, flags) in COMMANDS.items()
    for flag in flags
    for value in ODD
    if not (value.startswith("9") and (command, flag) in MEANT)
]


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    folder = tmp_path_factory.mktemp("there")
    small_classifier(classes=10).save(folder / "classifier.keras")
    with CertificateFile(folder / "c.tsv") as file:
        file.append(0, 7, Certificates.single(-1, 0.0, p_lower=0.4, samples=1_100, seconds=0.1))
    return {"classifier": str(folder / "classifier.keras"), "log": str(folder / "c.tsv")}


@pytest.mark.parametrize(("command", "flag", "value"), CASES)
def test_odd_numbers_are_refused_in_one_line(command, flag, value, there, tmp_path, capsys):
    arguments = [a.format(out=tmp_path / "out", **there) for a in COMMANDS[command][0]]
    if f"--{flag}" in arguments:
        del arguments[arguments.index(f"--{flag}") : arguments.index(f"--{flag}") + 2]
    try:
        code = main([command, *arguments, f"--{flag}", value])
    except SystemExit as error:  # argparse's own
        code = error.code
    said = capsys.readouterr().err.strip().splitlines()
    # By its own name, or that of one of them: radius of --radii, sigma of --sigmas.
    assert "unrecognized arguments" not in said[-1]
    # The client's own refusals are as a server's.
    assert (
        code in ((1, 2) if command == "client" else (2,))
        and "error: " in said[-1]
        and flag[:4].replace("-", "_") in said[-1].replace("-", "_")
    )
    assert not list(tmp_path.iterdir())


def test_a_report_that_cannot_be_written_is_refused_before_the_sampling(there, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(layerwise, "layer_moments", lambda *_, **__: pytest.fail("sampled"))
    (tmp_path / "taken").write_text("mine")
    arguments = ["--classifier", there["classifier"], "--data", "digits", "--out", str(tmp_path / "taken")]
    assert main(["diagnose", *arguments]) == 2
    assert "taken: File exists" in capsys.readouterr().err and (tmp_path / "taken").read_text() == "mine"
