"""The command `covkeras`: its help is there at once, it does what the programs do, and it works from a wheel."""

import os
import shutil
import subprocess
import sys
import time
import venv
import warnings
from pathlib import Path

import pytest

from covkeras import models
from covkeras.certification.noise import NOISES
from covkeras.certification.rebuilding import PRECISIONS
from covkeras.commands import cli, denoise, noisy_labels, train
from covkeras.commands.main import COMMANDS, main
from covkeras.experiments import recipe

ROOT = Path(__file__).parent.parent
HEAVY = (
    "tensorflow",
    "keras",
    "scipy",
    "sklearn",
    "matplotlib",
    "keras_tuner",
    "tensorflow_datasets",
    "grpc",
    "aiohttp",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(command):
    program = (
        "import sys\n"
        "from covkeras.commands.main import main\n"
        f"try: main([{command!r}, '--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        f"found = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not found, found\n"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert f"usage: covkeras {command}" in done.stdout
    # .2 s where nothing else runs; a second is the promise, and this machine may be busy.
    assert time.perf_counter() - start < 10


def test_names_that_recipes_know_are_those_there_are():
    assert all(callable(getattr(models, name)) for name in recipe.MODELS)
    assert set(recipe.NOISES) == set(NOISES) and recipe.CERTIFIED_PRECISIONS == PRECISIONS


def test_the_command_itself(capsys):
    assert main(["--help"]) == 0 and main([]) == 0
    listed = capsys.readouterr().out
    assert all(f"\n  {name} " in listed for name in COMMANDS)
    assert main(["--version"]) == 0 and capsys.readouterr().out.strip()
    assert main(["magic"]) == 2 and "has no command 'magic'; it has train, denoise" in capsys.readouterr().err
    assert main(["train", "--show", "--lam", "2"]) == 0
    assert '"lam": 2.0' in capsys.readouterr().out


@pytest.mark.parametrize(("command", "arguments"), [(train, []), (denoise, ["mine.keras"]), (noisy_labels, [])])
def test_out_is_the_folder_of_every_command(command, arguments):
    for flag in ("--out", "--run-dir"):
        assert command.parse([*arguments, flag, "here"]).run_dir == "here"


def test_what_the_serving_extra_brings_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "grpc", None)
    for name in [n for n in sys.modules if n.startswith("covkeras.commands.serve")]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["serve", str(ROOT)]) == 2
    assert "pip install 'covkeras[serving]'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_wheel_does_the_main_job_outside_the_checkout(tmp_path):
    """Built, installed into an empty environment (which borrows what covkeras depends on), run elsewhere."""
    source, wheels = tmp_path / "source", tmp_path / "wheels"
    shutil.copytree(ROOT / "covkeras", source / "covkeras", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    alone = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    pip = [sys.executable, "-m", "pip"]

    def run(*command):
        words = [*map(str, command)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=240, env=alone, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", wheels, source)
    place = tmp_path / "environment"
    venv.create(place, with_pip=False, symlinks=True)
    python = place / "bin" / "python"
    site = next((place / "lib").glob("python3*")) / "site-packages"
    run(*pip, "--python", python, "install", "-q", "--no-deps", next(wheels.glob("covkeras-*.whl")))
    # The packages it depends on, and not the checkout: its editable finder is no path.
    (site / "dependencies.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")) + "\n")
    flags = ["--epochs", "1", "--switch-epoch", "0", "--decay-epochs", "--certify-images", "2", "--certify-n", "100"]
    run(place / "bin" / "covkeras", "train", *flags, "--run-dir", "run")
    home = run(python, "-c", "import covkeras, pathlib; print(pathlib.Path(covkeras.__file__).parent)").strip()
    assert Path(home) == site / "covkeras" and (site / "covkeras" / "commands" / "page.html").exists()
    assert (tmp_path / "run" / "report" / "index.html").exists()
    assert (tmp_path / "run" / "export" / "digits_stepped" / "1" / "saved_model.pb").exists()


def test_warnings_are_one_line_as_errors_are(capsys):
    before = warnings.formatwarning

    def program(stop):
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            print(warnings.formatwarning("look twice.", UserWarning, "a.py", 3), end="", file=sys.stderr)
            print(warnings.formatwarning("old.", DeprecationWarning, "a.py", 3, ""), end="", file=sys.stderr)

    assert cli.run(program) == 0
    assert capsys.readouterr().err.startswith("warning: look twice.\na.py:3: DeprecationWarning: old.")
    assert warnings.formatwarning is before
