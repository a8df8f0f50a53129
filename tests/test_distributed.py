"""Two real processes on this machine's loopback, through the main program."""

import json
import os
import subprocess
import sys
from pathlib import Path

import forked
import keras
import numpy as np
import pytest
from kit import free_ports

from covkeras.experiments import distributed, fitting, jobs, recipes
from covkeras.experiments.runs import RunFolder
from covkeras.runtime.devices import strategy

ROOT = Path(__file__).parent.parent
RECIPE = recipes.find("digits").replace(
    epochs=2, switch_epoch=1, decay_epochs=(), reference="none", certify_images=2, certify_n=100
)


@pytest.mark.slow
def test_two_workers_equal_one_process(tmp_path):
    alone = RunFolder(tmp_path / "alone")
    alone.claim(RECIPE)
    expected = fitting.train(RECIPE, alone).get_weights()
    (tmp_path / "recipe.json").write_text(RECIPE.to_json())
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}
    command = [sys.executable, str(ROOT / "training" / "run.py"), "--recipe", str(tmp_path / "recipe.json")]
    processes = []
    for index in range(2):
        config = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
        environment = {**os.environ, "TF_CONFIG": config}
        arguments = [*command, "--run-dir", str(tmp_path / "together")]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(forked.Popen(arguments, env=environment, **pipes))
    outputs = [p.communicate(timeout=240) for p in processes]
    assert [p.returncode for p in processes] == [0, 0], outputs
    together = keras.models.load_model(tmp_path / "together" / "classifier.keras").get_weights()
    for a, b in zip(expected, together, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert "ACR" in outputs[0][0] and "ACR" not in outputs[1][0]
    losses = [[float(row["loss"]) for row in RunFolder(tmp_path / n).history()] for n in ("alone", "together")]
    np.testing.assert_allclose(*losses, rtol=1e-4)


@pytest.mark.parametrize("method", ["gaussian_augmentation", "covariance_radius"])
def test_two_devices_of_one_machine_equal_one(method, tmp_path):
    """Both methods in one process, as the main program trains them."""
    recipe, weights = RECIPE.replace(method=method), []
    for devices in ("cpu", "2"):
        folder = RunFolder(tmp_path / devices)
        folder.claim(recipe)
        weights.append(fitting.train(recipe, folder, jobs.Environment(devices=devices)).get_weights())
        assert folder.history()[-1]["lam"] == ("4" if method == "covariance_radius" else "0")
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("devices", ["3", "0", "gpu"])
def test_devices_that_are_not_there_are_refused(devices):
    with pytest.raises(ValueError, match="devices must be auto, cpu, or a number from 1 to 2"):
        strategy(devices)


def test_a_batch_that_devices_cannot_share_is_refused(tmp_path):
    folder = RunFolder(tmp_path)
    with pytest.raises(ValueError, match="batch_size must be divisible by the 2 devices, got 63"):
        fitting.train(RECIPE.replace(batch_size=63), folder, jobs.Environment(devices="2"))


@pytest.mark.parametrize(
    "text", ["{", '{"cluster": {}}', '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}']
)
def test_an_unusable_tf_config_is_refused_with_an_example(text, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match="TF_CONFIG is not usable"):
        distributed.cluster()


def test_slurms_variables_become_tf_config(tmp_path):
    fake = tmp_path / "scontrol"
    fake.write_text('#!/bin/sh\ntest "$3" = "node[1-2]" && printf "node1\\nnode2\\n"\n')
    fake.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_PROCID": "1"}
    command = [str(ROOT / "training" / "slurm.sh"), "printenv", "TF_CONFIG"]
    config = json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert config == {"cluster": {"worker": ["node1:12345", "node2:12345"]}, "task": {"type": "worker", "index": 1}}


def test_without_tf_config_there_is_one_worker(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert distributed.cluster() == (0, 1)
