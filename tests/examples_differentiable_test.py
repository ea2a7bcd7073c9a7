"""The examples that differentiate training run at a tiny size, and write what they say."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
TFDS = ROOT.parent / "shared" / "data" / "tfds"
NEEDS_MNIST = pytest.mark.skipif(
    not TFDS.exists(), reason="needs image sets prepared by TFDS beside the checkout"
)


def run(folder, script, *arguments):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    return subprocess.run(
        [sys.executable, ROOT / "examples" / script, *arguments],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


def result(folder, script, *arguments):
    """What a run printed and wrote, with its picture there."""
    done = run(folder, f"{script}.py", "--data_dir", str(TFDS), *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in done.stderr and "Traceback" not in done.stderr
    assert (folder / f"{script}.png").read_bytes().startswith(b"\x89PNG")
    return done.stdout, json.loads((folder / f"{script}.json").read_text())


@pytest.mark.slow
@NEEDS_MNIST
def test_learn_sample_weights(tmp_path):
    printed, found = result(
        tmp_path, "learn_sample_weights", "--seeds", "0", "1",
        "--samples", "600", "--sure", "200", "--steps", "10", "--rounds", "30", "--epochs", "2",
    )  # fmt: skip
    ways = {"all", "sure", "likely", "learnt", "right"}
    assert found["accuracy"].keys() == ways
    for accuracy, half_interval in found["accuracy"].values():
        assert 50 < accuracy < 100 and half_interval > 0
    assert found["auc"].keys() == {"likely", "learnt"} and len(found["learning_seconds"]) == 2
    assert all(0.8 < auc < 1 for auc, _ in found["auc"].values())  # Of weights by chance: 0.5.
    precision, recall = (found["below_half"][key][0] for key in ("precision", "recall"))
    assert 60 < precision <= 100 and 60 < recall <= 100  # By chance: 40, 50.
    assert "30/30" in printed and "right labels only (bound)" in printed


@pytest.mark.slow
@NEEDS_MNIST
def test_tune_temperature(tmp_path):
    printed, found = result(
        tmp_path, "tune_temperature", "--seeds", "0",
        "--steps", "4", "--rounds", "3", "--batch", "32", "--full_steps", "5",
    )  # fmt: skip
    ways = {"default", "grid", "gradient"}
    assert found["settings"].keys() == ways == found["objectives"].keys()
    objectives = {key: values[0] for key, values in found["objectives"].items()}
    assert max(objectives["gradient"], objectives["grid"]) <= objectives["default"]
    assert np.allclose(found["settings"]["default"], [0.01, 0.1])
    assert found["settings"]["gradient"] != found["settings"]["default"]
    assert all(20 < values[0] < 100 for values in found["accuracies"].values())
    assert found["passes"] == 3 * 5 * 4
    assert "3/3" in printed and "15/15" in printed and "hypergradient" in printed


@pytest.mark.slow
@pytest.mark.parametrize("script", ["learn_sample_weights.py", "tune_temperature.py"])
def test_says_what_it_would_download(tmp_path, script):
    done = run(tmp_path, script, "--data_dir", str(tmp_path))
    assert done.returncode != 0
    assert "--download" in done.stderr and "Traceback" not in done.stderr
