"""Two epochs on 1, 2 and 4 replicas and on two workers give one device's history and weights."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

WORKER = Path(__file__).with_name("replicas_worker.py")
# Relative to the largest weight of the model: some biases have a gradient of exactly zero in theory
# (those before a BatchNorm, say) and hold nothing but rounding.
TOLERANCE = 1e-5


def start(out, what, tf_config=None):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    if tf_config is not None:
        env["TF_CONFIG"] = json.dumps(tf_config)
    return subprocess.Popen(
        [sys.executable, str(WORKER), str(out), what],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*processes):
    for process in processes:
        output, _ = process.communicate(timeout=400)
        assert process.returncode == 0, output[-4000:]


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("localhost", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replicas")
    for what in ("1", "2", "4"):
        finish(start(folder / f"{what}.npz", what))
    addresses = [f"localhost:{port}" for port in free_ports(2)]
    finish(
        *(
            start(
                folder / f"worker_{i}.npz",
                "workers",
                {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": i}},
            )
            for i in range(2)
        )
    )
    return {path.stem: dict(np.load(path)) for path in folder.glob("*.npz")}


def case(results, run, name):
    prefix = f"{name}/"
    return {k.removeprefix(prefix): v for k, v in results[run].items() if k.startswith(prefix)}


RUNS = [
    (run, name)
    for run in ("2", "4")
    for name in (
        "plain",
        "plain_weighted",
        "plain_mean_of_weights",
        "sim_clr",
        "sim_clr_weighted",
        "sim_clr_synchronised_norm",
        "maml",
        "maml_weighted",
    )
] + [
    (f"worker_{i}", name)
    for i in (0, 1)
    for name in ("sim_clr", "sim_clr_weighted", "maml", "maml_weighted")
]


@pytest.mark.slow
@pytest.mark.parametrize(("run", "name"), RUNS)
def test_equals_one_device(results, run, name):
    expected, got = case(results, "1", name), case(results, run, name)
    assert got.keys() == expected.keys()
    np.testing.assert_allclose(got["history"], expected["history"], rtol=TOLERANCE)
    np.testing.assert_allclose(got["evaluate"], expected["evaluate"], rtol=TOLERANCE)
    weights = [key for key in expected if key.startswith("weight_")]
    scale = max(np.abs(expected[key]).max() for key in weights)
    for key in weights:
        np.testing.assert_allclose(got[key], expected[key], rtol=TOLERANCE, atol=TOLERANCE * scale)
    if "predict" in expected:
        np.testing.assert_allclose(got["predict"], expected["predict"], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_weights_and_training_matter(results):
    """The comparison could fail: the cases differ from each other, and two epochs changed the loss."""
    plain, weighted = case(results, "1", "plain"), case(results, "1", "plain_weighted")
    assert not np.allclose(plain["history"], weighted["history"], rtol=1e-3)
    assert not np.allclose(plain["weight_0"], weighted["weight_0"], rtol=1e-3)
    sim_clr, weighted = case(results, "1", "sim_clr"), case(results, "1", "sim_clr_weighted")
    assert not np.allclose(sim_clr["history"], weighted["history"], rtol=1e-3)
    assert abs(plain["history"][0] - plain["history"][1]) > 1e-2
