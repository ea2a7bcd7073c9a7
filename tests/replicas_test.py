"""Two epochs on 1, 2 and 4 replicas and on two workers give one device's history and weights."""

import functools
import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

WORKER = Path(__file__).with_name("replicas_worker.py")
spec = importlib.util.spec_from_file_location("replicas_worker", WORKER)
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)
# Relative to the largest weight of the model: some biases have a gradient of exactly zero in theory
# (those before a BatchNorm, say) and hold nothing but rounding.
TOLERANCE = 1e-5


def start(out, tf_config):
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "TF_CONFIG": json.dumps(tf_config),
    }
    return subprocess.Popen(
        [sys.executable, str(WORKER), str(out)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("localhost", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """The results of two workers, by worker and name."""
    folder = tmp_path_factory.mktemp("replicas")
    addresses = [f"localhost:{port}" for port in free_ports(2)]
    processes = [
        start(
            folder / f"{i}.npz",
            {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": i}},
        )
        for i in range(2)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=400)
        assert process.returncode == 0, output[-4000:]
    results: dict = {}
    for i in range(2):
        for key, value in np.load(folder / f"{i}.npz").items():
            name, _, quantity = key.partition("/")
            results.setdefault((i, name), {})[quantity] = value
    return results


@pytest.fixture(scope="module")
def one_device(replicas):
    return functools.cache(lambda name: worker.run(name, replicas(1)))


def assert_equal(got, expected):
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
@pytest.mark.parametrize(
    ("name", "count"),
    [
        *((name, 2) for name in worker.CASES),
        *((name, 4) for name in ("plain", "sim_clr", "sim_clr_synchronised_norm", "maml")),
    ],
)
def test_replicas_equal_one_device(name, count, one_device, replicas):
    assert_equal(worker.run(name, replicas(count)), one_device(name))


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("name", worker.ON_MANY_WORKERS)
def test_workers_equal_one_device(name, index, one_device, workers):
    assert_equal(workers[index, name], one_device(name))


@pytest.mark.slow
def test_weights_and_training_matter(one_device):
    """The comparison could fail: the cases differ from each other, and two epochs changed the loss."""
    plain, weighted = one_device("plain"), one_device("plain_weighted")
    assert not np.allclose(plain["history"], weighted["history"], rtol=1e-3)
    assert not np.allclose(plain["weight_0"], weighted["weight_0"], rtol=1e-3)
    sim_clr, weighted = one_device("sim_clr"), one_device("sim_clr_weighted")
    assert not np.allclose(sim_clr["history"], weighted["history"], rtol=1e-3)
    assert abs(plain["history"][0] - plain["history"][1]) > 1e-2
